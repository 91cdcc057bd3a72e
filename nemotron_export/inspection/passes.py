"""`inspect --passes`: a model lowered once more, pass by pass."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
from nemotron_errors import BundleError
from nemotron_graphs.targets import get_target
from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.folder import Bundle

from nemotron_export.building.graph import make_graphs
from nemotron_export.building.limits import choose_limits
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.verdict import quiet_about_parity

__all__ = ["inspect_passes"]

_DEFAULT_TARGET = "ort-cpu"


def inspect_passes(
    path: str | Path, *, target: str | None = None, dtype: str | None = None, dump_graphs: Path | None = None
) -> Lowered:
    """Traces and lowers the model of a checkpoint or a bundle; no weight is read.

    Args:
        path: a checkpoint, or a bundle, whose target, dtype and limits are then the defaults.
        target: where the graph runs.
        dtype: run dtype; the target's first by default.
        dump_graphs: a folder, new or empty, for the graph after each pass: 00-dialect.onnx and so on.

    Raises:
        CheckpointError, BundleError: a folder that is neither, or a ``dump_graphs`` that holds something.
        GraphError: no such target, or a dtype that it does not run in.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        with quiet_about_parity():
            bundle = Bundle.open(folder, allow_unverified=True)
        manifest = bundle.manifest
        checkpoint = Checkpoint.open(bundle.weights_directory, task=manifest.task)
        chosen, limits = get_target(target or manifest.target), manifest.limits
        run_dtype = dtype or (manifest.dtype if target in (None, manifest.target) else chosen.dtypes[0])
    else:
        checkpoint = Checkpoint.open(folder, task=None)
        chosen, limits = get_target(target or _DEFAULT_TARGET), choose_limits(checkpoint.config)
        run_dtype = dtype or chosen.dtypes[0]
    chosen.check_dtype(run_dtype)
    if dump_graphs is None:
        return make_graphs(checkpoint, chosen, run_dtype, limits)
    if dump_graphs.exists() and (not dump_graphs.is_dir() or any(dump_graphs.iterdir())):
        remedy = "choose another folder, or remove what is there"
        raise BundleError("something that is there already", "a new or empty folder", remedy, where=str(dump_graphs))
    dump_graphs.mkdir(parents=True, exist_ok=True)

    def dump(graph: str, number: int, name: str, model: ir.Model) -> None:
        folder = dump_graphs if len(chosen.graphs) == 1 else dump_graphs / graph
        folder.mkdir(exist_ok=True)
        ir.save(model, folder / f"{number:02d}-{name}.onnx")

    return make_graphs(checkpoint, chosen, run_dtype, limits, on_stage=dump)
