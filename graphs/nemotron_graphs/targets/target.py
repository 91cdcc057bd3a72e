"""What a target is: the graphs that it makes of a trace, and what a bundle and a machine must know of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import onnx_ir as ir
from nemotron_errors import GraphError
from nemotron_formats.cache import find_cache
from nemotron_formats.tensors import FileSpan

from nemotron_graphs import passes
from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.targets.lowering import (
    Lowered,
    LoweredGraph,
    LoweringContext,
    ModelCounts,
    dtype_name,
    weight_inputs,
)
from nemotron_graphs.targets.record import OnStage, run_passes

__all__ = ["GraphRecipe", "Target"]

Passes = Sequence[ir.passes.PassBase]


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
        built_on_device: whether a build needs what runs it, and its device; else the extra ``build`` does.
        runner: the other software that alone runs its bundles, whose numbers cannot be checked then; empty where this
            project's runtime does.
        session: further keys of the session's entry.
        stored_dtype_first: the default dtype is the checkpoint's instead, where it is among ``dtypes``.
        weight_modes: what ``--weights`` may be; the first is the default.
        formats: families of weight formats that its projections take, as ``--quantize`` names them.
        takes_cpu_nodes: whether ``--allow-cpu-nodes`` means anything.
        add: adds graphs that are made beside the lowered ones, and what the session must know of them.
    """

    name: str
    description: str
    dtypes: tuple[str, ...]
    graphs: Mapping[str, GraphRecipe]
    executor: str
    provider: str
    device: Literal["cpu", "cuda"]
    extra: str
    built_on_device: bool = False
    runner: str = ""
    session: Mapping[str, Any] = field(default_factory=dict)
    stored_dtype_first: bool = False
    weight_modes: tuple[str, ...] = ("reference", "link", "copy")
    formats: tuple[str, ...] = ()
    takes_cpu_nodes: bool = False
    add: Callable[[Lowered, LoweringContext], Lowered] = lambda lowered, context: lowered

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

    def lower(self, model: ir.Model, context: LoweringContext, on_stage: OnStage | None = None) -> Lowered:
        """Makes the target's graphs of a dialect graph, which a target of one graph uses up.

        Args:
            model: the dialect graph, as ``trace`` gave it.
            context: what is bound to it.
            on_stage: told of every graph after each pass.

        Raises:
            GraphError: another dtype than the target's, weights in another dtype than an engine reads, or a fusion that
                found fewer places than the model has.
        """
        caches = [v for v in model.graph.inputs if find_cache(v.name) is not None]
        dtype = dtype_name(caches[0])
        self.check_dtype(dtype)
        counts = ModelCounts.of(model, context)
        graphs: dict[str, LoweredGraph] = {}
        bound: Sequence[Sequence[FileSpan]] = ()
        for name, recipe in self.graphs.items():
            own = model if len(self.graphs) == 1 else model.clone()
            chosen = recipe.passes(context)
            own, records = run_passes(own, chosen, name, on_stage)
            self._check(name, recipe, own, chosen, counts)
            graphs[name] = LoweredGraph(own, recipe.file, records)
            bound = next((each.packed for each in chosen if isinstance(each, passes.BindWeightsPass)), ())
        weights = [weight_inputs(graph.model, context) for graph in graphs.values()]
        assert all([w.name for w in each] == [w.name for w in weights[0]] for each in weights)
        main = graphs[name]
        session = {
            "executor": self.executor,
            "provider": self.provider,
            "device": self.device,
            "graph": main.file,
            "cache_dtype": dtype,
            "inputs": [v.name for v in main.model.graph.inputs],
            "outputs": [v.name for v in main.model.graph.outputs],
            "weights_folder": context.weights_folder,
            "packed": [[asdict(span) for span in spans] for spans in bound],
            **self.session,
        }
        return self.add(Lowered(graphs, session, weights[0]), context)

    def _check(self, name: str, recipe: GraphRecipe, model: ir.Model, chosen: Passes, counts: ModelCounts) -> None:
        """Refuses a graph in which a fusion found fewer places than it must, or that has ops that nothing lowers."""
        for each in chosen:
            if not isinstance(each, passes.FusionPass) or each.forms not in recipe.forms:
                continue
            wanted = recipe.forms[each.forms](counts)
            if each.found < wanted:
                reasons = "; ".join(each.missed[:3]) or "no node that it could begin at"
                raise GraphError(
                    f"{each.found} {each.forms} in graph '{name}' ({reasons})",
                    f"{wanted} of {counts.layers} layers",
                    "report it with the checkpoint's config.json: the graph would be slower than it says",
                    where=f"target {self.name}",
                )
        left = {node.op_type for node in model.graph if node.domain == DOMAIN}
        assert left <= set(recipe.keeps), f"ops that nothing lowers: {', '.join(sorted(left - set(recipe.keeps)))}"
