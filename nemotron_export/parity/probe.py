"""Values inside an artefact: its graph opened once more, with the values that are wanted as outputs.

Shapes: n tokens, k chosen positions, f values of each, G key/value heads, T capacity, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from nemotron_formats.cache import CACHES, GENAI_CACHES, cache_specs, find_cache
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.executors.onnxruntime.graph import open_graph

from nemotron_export.parity.points import PACKED, Point
from nemotron_export.parity.recording import Values

__all__ = ["Probe"]

_LAYOUT_OPS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast", "CastLike"}


class Probe:
    """One sequence through the graph of an ONNX Runtime bundle, any of its values visible.

    The caches are bound in place, as the bundle's own session binds them.
    """

    def __init__(self, bundle: Bundle, capacity: int, threads: int | None = None) -> None:
        self._bundle, self._threads = bundle, threads
        session, model = bundle.manifest.session, bundle.manifest.model
        self._model = onnx.load(bundle.file(session.graph), load_external_data=False)
        self._own_outputs = [value.name for value in self._model.graph.output]
        names = CACHES if any(find_cache(name) for name in session.inputs) else GENAI_CACHES
        specs = cache_specs(model.num_layers, model.num_kv_heads, model.head_dim, session.cache_dtype, names)
        # by the name of the graph's output, which is the input's memory
        self._caches = {spec.output_name: (spec, np.zeros(spec.shape(1, capacity), spec.dtype)) for spec in specs}
        width = model.num_kv_heads * model.head_dim
        self._lanes = {"q": slice(0, -2 * width), "k": slice(-2 * width, -width), "v": slice(-width, None)}
        self._producers = {name: node for node in self._model.graph.node for name in node.output}

    @property
    def names(self) -> set[str]:
        """Every value that a node of the graph gives."""
        return set(self._producers)

    def op_of(self, value: str) -> str:
        """The type of the node that computes a value; nodes that only give it another shape or dtype are passed."""
        node = self._producers[value]
        while node.op_type in _LAYOUT_OPS and node.input[0] in self._producers:
            node = self._producers[node.input[0]]
        return str(node.op_type)

    def feed(
        self, ids: npt.NDArray[np.int64], start: int, points: Sequence[Point], positions: npt.NDArray[np.int64]
    ) -> Values:
        """Runs new tokens after ``start`` earlier ones.

        Args:
            ids: int64 [n].
            start: tokens in the cache.
            points: what to show; those that the graph lacks are left out.
            positions: int64 [k], which of the new tokens.

        Returns:
            Point's name → float32 [k, f].
        """
        shown = {point: value for point in points if (value := point.found_in(self.names)) is not None}
        extra = [value for value in shown.values() if value not in self._own_outputs]
        session = self._open(list(dict.fromkeys(extra)))
        inputs = {
            "input_ids": ids[None],
            "query_start": np.array([start]),
            "query_length": np.array([len(ids)]),
            "logits_index": positions[None],
            "attention_mask": np.ones((1, start + len(ids)), np.int64),
        }
        binding = session.io_binding()
        for value in session.get_inputs():
            if value.name in inputs:
                binding.bind_cpu_input(value.name, np.ascontiguousarray(inputs[value.name]))
        for spec, cache in self._caches.values():
            where = ("cpu", 0, cache.dtype.type, cache.shape, cache.ctypes.data)
            binding.bind_input(spec.input_name, *where)
            binding.bind_output(spec.output_name, *where)
        free = [self._bundle.manifest.head.output, *dict.fromkeys(extra)]
        for name in free:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        # a binding gives its outputs in the order in which they were bound
        outputs = binding.get_outputs()[len(self._caches) :]
        found = {name: output.numpy() for name, output in zip(free, outputs, strict=True)}
        chosen = {}
        for point, value in shown.items():
            if point.layout == "cache":
                cache_GTD = self._caches[value][1][0]
                rows = cache_GTD[:, start + positions].swapaxes(0, 1)
            else:
                # values after logits_index hold the chosen positions alone
                rows = found[value][0]
                rows = rows[positions] if len(rows) == len(ids) else rows
                if value.endswith(PACKED):
                    rows = rows[:, self._lanes[point.packed]]
            chosen[point.name] = rows.reshape(len(positions), -1).astype(np.float32)
        return chosen

    def _open(self, extra: Sequence[str]) -> Any:
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        # no type is needed: ONNX Runtime infers it
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        return open_graph(self._bundle, model.SerializeToString(), self._threads)
