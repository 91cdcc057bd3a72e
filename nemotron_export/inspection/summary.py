"""What a checkpoint or a bundle holds, as plain data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError

from nemotron_export.installation.extras import install_command

__all__ = ["bundle_size", "inspect_bundle", "inspect_checkpoint", "inspect_path"]


def inspect_path(path: str | Path) -> dict[str, Any]:
    """Inspects whichever of the two a folder is.

    Raises:
        BundleError: where it is neither.
    """
    folder = Path(path)
    if (folder / "manifest.json").is_file():
        return inspect_bundle(folder)
    if (folder / "config.json").is_file():
        return inspect_checkpoint(folder)
    raise BundleError(
        "neither manifest.json nor config.json" if folder.is_dir() else "no such folder",
        "a bundle or a checkpoint", "check the path", where=str(folder),
    )  # fmt: skip


def inspect_checkpoint(path: str | Path) -> dict[str, Any]:
    """Config, tensors and files of a checkpoint; it is opened strictly, no weight is read."""
    from nemotron_export.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path, task=None)
    entries = checkpoint.tensors.values()
    return {
        "Checkpoint": {
            "path": str(checkpoint.directory),
            "task": checkpoint.task,
            "parameters": checkpoint.num_parameters,
            "weight bytes": checkpoint.num_bytes,
            "dtype": checkpoint.dtype,
            "tied lm_head": checkpoint.tied,
            "tokenizer files": [file.name for file in checkpoint.tokenizer_files],
            "licence files": [file.name for file in checkpoint.license_files],
        },
        "Config": checkpoint.config.to_dict(),
        "Tensors": {
            "count": len(checkpoint.tensors),
            "bytes by dtype": _bytes_by((entry.dtype, entry.length) for entry in entries),
            "bytes by file": _bytes_by((entry.file, entry.length) for entry in entries),
        },
    }


def inspect_bundle(path: str | Path) -> dict[str, Any]:
    """Manifest, graph and sizes of a bundle; its small files are checked, no weight is read."""
    from nemotron_runtime.bundle.folder import Bundle

    from nemotron_export.parity.verdict import quiet_about_parity

    with quiet_about_parity():
        bundle = Bundle.open(path, allow_unverified=True)
    manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
    weights = manifest["weights"]
    return {
        "Bundle": {
            "path": str(bundle.directory),
            "target": manifest["target"],
            "task": manifest["task"],
            "run dtype": manifest["dtype"],
            "created": manifest["created"],
            "made with": manifest["producer"],
        },
        "Config": manifest["model"]["config"],
        "Limits": manifest["limits"],
        "Weights": {
            "mode": weights["mode"],
            "directory": weights["directory"],
            "bytes": sum(file["size"] for file in weights["files"]),
            "files": [file["name"] for file in weights["files"]],
            "content scanned": manifest["scan"]["done"],
        },
        "Files": {name: file["size"] for name, file in manifest["files"].items()},
        "Graph": _graph(bundle.directory / manifest["session"]["graph"]),
        "Parity": manifest["parity"],
    }


def bundle_size(path: str | Path) -> int:
    """Bytes of all files in a bundle's folder."""
    return sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())


def _bytes_by(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for key, count in pairs:
        totals[key] += count
    return dict(totals)


def _graph(path: Path) -> dict[str, Any]:
    try:
        import onnx
    except ModuleNotFoundError:
        return {"ops": f"not shown: no package onnx; {install_command('build')}"}
    model = onnx.load(path, load_external_data=False)
    ops = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in model.graph.node)
    return {
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "nodes": len(model.graph.node),
        "ops": dict(ops.most_common()),
        "functions": [f"{function.domain}.{function.name}" for function in model.functions],
        "inputs": [value.name for value in model.graph.input],
        "outputs": [value.name for value in model.graph.output],
    }
