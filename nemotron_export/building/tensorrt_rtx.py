"""Bundles of engines of TensorRT for RTX, which are built on any machine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir
from nemotron_errors import RequestError
from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.engine_records import RTXRecord
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.builder import Builder, check_stored_dtype
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.provider import check_runs_here
from nemotron_export.progress import Progress
from nemotron_export.tensorrt import EngineJob, build_engine, load_product
from nemotron_export.tensorrt.messages import node_ops
from nemotron_export.tensorrt.shapes import Range, input_shapes, prefill_ranges

__all__ = ["DEFAULT_ARCHITECTURES", "ENGINES_FOLDER", "RTXBuilder"]

# RTX 30, RTX 40 and L4, RTX 50
DEFAULT_ARCHITECTURES = ("sm_86", "sm_89", "sm_120")
ENGINES_FOLDER = "engines"


class RTXBuilder(Builder):
    """One engine for each architecture, of one graph, for prompts and single tokens.

    Attributes:
        trt: the builder's module, once it was found.
        architectures: as it spells them ("SM89"), once they were chosen.
    """

    takes = ("--architectures",)
    trt: Any
    architectures: tuple[str, ...]

    def find(self) -> None:
        if self.request.parity:
            check_runs_here(self.target, f"target {self.target.name}", building=True)
        self.trt = load_product("tensorrt-rtx")

    def plan(self, checkpoint: Checkpoint, dtype: str, limits: Limits) -> None:
        """Raises GraphError for weights in another dtype, RequestError for an architecture that it cannot build for."""
        check_stored_dtype(checkpoint, dtype)
        known = [name for name in dir(self.trt.ComputeCapability) if name.startswith("SM")]
        chosen: dict[str, None] = {}
        for name in self.request.architectures or DEFAULT_ARCHITECTURES:
            spelled = f"SM{name.strip().removeprefix('sm_')}"
            if spelled not in known:
                expected = ", ".join(each.replace("SM", "sm_") for each in known)
                raise RequestError(f"'{name}'", expected, "name some of them", where="--architectures")
            chosen[spelled] = None
        self.architectures = tuple(chosen)

    def write(
        self, lowered: Lowered, checkpoint: Checkpoint, limits: Limits, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Raises EngineError where NVIDIA's builder refuses the graph."""
        lowered.save(folder)
        (folder / ENGINES_FOLDER).mkdir()
        model = lowered.graphs["model"].model
        ranges = prefill_ranges(limits)
        one = {"tokens": Range(1, 1, 1), "positions": Range(1, 1, 1)}
        profiles = [input_shapes(model.graph.inputs, each) for each in (ranges, {**ranges, **one})]
        data = ir.to_proto(model).SerializeToString()
        engines = {}
        for spelled in self.architectures:

            def options(config: Any, capability: Any = getattr(self.trt.ComputeCapability, spelled)) -> None:
                config.num_compute_capabilities = 1
                config.set_compute_capability(capability, 0)

            architecture = spelled.replace("SM", "sm_")
            job = EngineJob(architecture, data, profiles, node_ops(model.graph), options=options, loads=False)
            engines[architecture] = f"{ENGINES_FOLDER}/{architecture}.engine"
            (folder / engines[architecture]).write_bytes(build_engine(self.trt, job, progress=progress).plan)
        version = ".".join(str(self.trt.__version__).split(".")[:3])
        return {"tensorrt_rtx": asdict(RTXRecord(version, engines, limits.max_seq_len, lowered.weights))}
