"""What a target is: the graphs that it makes of a trace, and what a bundle and a machine must know of them.

Nothing here or in a target's own file needs torch or onnx: passes are made when a graph is lowered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from nemotron_errors import GraphError
from nemotron_formats.tensors import EncodedWeight, TensorEntry

__all__ = ["GraphRecipe", "LoweringContext", "ModelCounts", "Passes", "Target"]

# onnx_ir's PassBase each
Passes = Sequence[Any]


@dataclass(frozen=True)
class LoweringContext:
    """What lowering needs besides the graph.

    Attributes:
        weights: name in the checkpoint → where it lies on disk.
        cos: RoPE table, float32 [table, R/2]; ``table`` is the largest capacity of a cache.
        sin: likewise.
        weights_folder: the bundle's folder that holds the weights' files; empty where they stay outside.
        encoded: name of a weight → its operands in another format, which ``weights`` has as well.
        fp32_mlp_layers: how many layers compute relu² and down_proj in fp32.
        chooses_tokens: whether the model is a language model, whose outputs are logits over the vocabulary.
    """

    weights: Mapping[str, TensorEntry]
    cos: np.ndarray
    sin: np.ndarray
    weights_folder: str = ""
    encoded: Mapping[str, EncodedWeight] = field(default_factory=dict)
    fp32_mlp_layers: int = 0
    chooses_tokens: bool = True


@dataclass(frozen=True)
class ModelCounts:
    """What a dialect graph has, by which a recipe says how much each fusion must find.

    Attributes:
        layers: decoder layers.
        fp32_mlp_layers: those whose relu² and down_proj are in fp32.
        heads: 1, or 0 where the graph gives hidden states.
        encoded: whether the projections' weights are in another format.
        rotary_half: pairs of lanes that are rotated.
    """

    layers: int
    fp32_mlp_layers: int
    heads: int
    encoded: bool
    rotary_half: int


@dataclass(frozen=True)
class GraphRecipe:
    """How one graph of a target is made.

    Attributes:
        file: its name in the bundle.
        passes: makes the passes, in order.
        forms: op type that a fusion forms → how many of it a model must give; a lowering that finds fewer is an error.
        keeps: ops of the dialect that the target runs itself.
    """

    file: str
    passes: Callable[[LoweringContext], Passes]
    forms: Mapping[str, Callable[[ModelCounts], int]] = field(default_factory=dict)
    keeps: Collection[str] = ()


@dataclass(frozen=True)
class Target:
    """A place where graphs run.

    Attributes:
        name: what ``--target`` takes.
        description: one line for users.
        dtypes: run dtypes that it takes ("float32", …); the first is the default.
        graphs: name → recipe; a session's entry in the manifest describes the last one.
        executor: what the runtime runs it with; see the manifest's session.executor.
        provider: ONNX Runtime's execution provider, or NVIDIA's runtime.
        device: where it computes.
        extra: of this distribution, which brings what runs it.
        extra_runs: whether that extra brings what runs its bundles.
        builds_with: what a build needs besides the extra ``build``: "extra", the target's own; "device", that and the
            device; or nothing.
        runner: the other software that alone runs its bundles, whose numbers cannot be checked then; empty where this
            project's runtime does.
        session: further keys of the session's entry.
        stored_dtype_first: the default dtype is the checkpoint's instead, where it is among ``dtypes``.
        weight_modes: what ``--weights`` may be; the first is the default.
        formats: families of weight formats that its projections take, as ``--quantize`` names them.
        takes_cpu_nodes: whether ``--allow-cpu-nodes`` means anything.
        add: adds auxiliary graphs, and what the session must know of them, to what lowering gives (``Lowered``).
    """

    name: str
    description: str
    dtypes: tuple[str, ...]
    graphs: Mapping[str, GraphRecipe]
    executor: str
    provider: str
    device: Literal["cpu", "cuda"]
    extra: str
    extra_runs: bool = True
    builds_with: Literal["", "extra", "device"] = ""
    runner: str = ""
    session: Mapping[str, Any] = field(default_factory=dict)
    stored_dtype_first: bool = False
    weight_modes: tuple[str, ...] = ("reference", "link", "copy")
    formats: tuple[str, ...] = ()
    takes_cpu_nodes: bool = False
    add: Callable[[Any, LoweringContext], Any] = lambda lowered, context: lowered

    def check_dtype(self, dtype: str) -> None:
        """Raises GraphError where the target cannot run in ``dtype``."""
        if dtype not in self.dtypes:
            raise GraphError(
                f"dtype {dtype}",
                f"one of {', '.join(self.dtypes)} for target {self.name}",
                "choose another --dtype or another --target",
                where="--dtype",
            )

    def allowing_cpu_nodes(self) -> Target:
        """The target whose session accepts nodes that ONNX Runtime places on the CPU.

        Raises:
            GraphError: where that means nothing.
        """
        if not self.takes_cpu_nodes:
            remedy = "leave --allow-cpu-nodes out, or choose --target ort-cuda"
            raise GraphError(f"target {self.name}", "ort-cuda", remedy, where="--allow-cpu-nodes")
        return replace(self, session={**self.session, "allow_cpu_nodes": True})
