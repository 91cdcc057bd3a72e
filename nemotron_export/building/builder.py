"""How bundles of a target are made: the ordinary way, which each target's own builder changes where it differs."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar

from nemotron_errors import GraphError, RequestError
from nemotron_graphs.targets import Target
from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.preflight import Estimate
from nemotron_export.building.request import BuildRequest
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.extras import require
from nemotron_export.parity.provider import check_runs_here
from nemotron_export.progress import Progress

__all__ = ["Builder", "check_stored_dtype"]

# option → its field of the request, what it is without the option, and the targets that take it
_OPTIONS = {
    "--embed-weights": ("embed_weights", False, "tensorrt, whose engines can hold them"),
    "--no-plugins": ("plugins", True, "tensorrt, which has plugins"),
    "--architectures": ("architectures", (), "tensorrt or tensorrt-rtx"),
}


class Builder:
    """Bundles whose graphs ONNX Runtime opens.

    The methods are called in their order here; each may refuse the request.

    Raises:
        RequestError: options that the target does not take.
    """

    # options of _OPTIONS that mean something for the target
    takes: ClassVar[Collection[str]] = ()

    def __init__(self, target: Target, request: BuildRequest) -> None:
        self.target = target
        self.request = request
        for option, (name, default, takers) in _OPTIONS.items():
            value = getattr(request, name)
            if option not in self.takes and (tuple(value) if name == "architectures" else value) != default:
                found, expected = f"{option} for target {target.name}", f"it for target {takers}"
                raise RequestError(found, expected, "leave it out", where=option)

    def find(self) -> None:
        """Looks for what the build needs here, before anything is read.

        Raises:
            MissingDependencyError: what the build, or the parity check at its end, needs is not here.
            RequestError: a parity check of a bundle that this runtime does not run.
        """
        if self.request.parity:
            require("onnxruntime", "which runs the bundle for its parity check (or build with --no-parity)")
            check_runs_here(self.target, f"target {self.target.name}", building=True)

    def plan(self, checkpoint: Checkpoint, dtype: str, limits: Limits) -> None:
        """Checks whether such a bundle can be built, before anything is made."""

    def needs(self, estimate: Estimate, checkpoint: Checkpoint) -> Estimate:
        """What of an estimate the build takes on the host."""
        return estimate

    def write(
        self, lowered: Lowered, checkpoint: Checkpoint, limits: Limits, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Writes the target's files into the bundle's folder; gives the manifest's further records, by key."""
        lowered.save(folder)
        return {}


def check_stored_dtype(checkpoint: Checkpoint, dtype: str) -> None:
    """Refuses a checkpoint whose weights an engine cannot read as they are.

    Raises:
        GraphError: naming the weights.
    """
    others = {name: entry.dtype_name for name, entry in checkpoint.tensors.items() if entry.dtype_name != dtype}
    if others:
        name, found = next(iter(others.items()))
        choose = f"build with --dtype {found}, or " if found in ("bfloat16", "float16") else ""
        raise GraphError(
            f"{len(others)} weights in another dtype, for example {name} in {found}",
            f"{dtype}: an engine reads the checkpoint's weights as they are",
            f"{choose}make such a checkpoint with `nemotron-export convert --dtype {dtype}`", where="--dtype",
        )  # fmt: skip
