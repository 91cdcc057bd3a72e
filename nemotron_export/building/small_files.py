"""The small files of a bundle, and what identifies them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.folder import file_record
from nemotron_runtime.bundle.manifest import FORMAT

from nemotron_export.building.head import head_record
from nemotron_export.building.plan import BuildPlan
from nemotron_export.checkpoint import Checkpoint, ScanReport
from nemotron_export.installation.versions import versions

__all__ = ["copy_small_files", "describe_files", "manifest_document"]

# of a manifest without a scan, which has no chunks
_CHUNK_BYTES = 16 << 20
_NOT_LISTED = {"manifest.json", "parity.json"}


def copy_small_files(checkpoint: Checkpoint, bundle: Path) -> None:
    """Copies config, generation config, tokenizer and licence files."""
    for source in (
        checkpoint.directory / "config.json",
        checkpoint.directory / "generation_config.json",
        *checkpoint.tokenizer_files,
        *checkpoint.license_files,
    ):
        if source.is_file():
            shutil.copyfile(source, bundle / source.name)


def describe_files(bundle: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file but the weights and those that change after the build."""
    described = {}
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        if path.is_file() and name not in _NOT_LISTED and not (path.suffix == ".safetensors" and path.parent != bundle):
            described[name] = asdict(file_record(path))
    return described


def manifest_document(
    plan: BuildPlan,
    lowered: Lowered,
    scanned: ScanReport | None,
    fp32_mlp_layers: Sequence[int],
    weights_directory: str,
    files: dict[str, dict[str, Any]],
    reason: str,
) -> dict[str, Any]:
    """The manifest as JSON but for the records of quantization and engines; its parity is pending for ``reason``."""
    checkpoint, config = plan.checkpoint, plan.checkpoint.config
    shards = [
        {
            "name": shard.path.name,
            "size": shard.size,
            "header_sha256": shard.header_sha256,
            "chunks": None if scanned is None else scanned.chunks[shard.path.name],
        }
        for shard in checkpoint.shards
    ]
    return {
        "format": FORMAT,
        "producer": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": plan.target.name,
        "task": checkpoint.task,
        "dtype": plan.dtype,
        "model": {
            "config": config.to_dict(),
            "vocab_size": config.vocab_size,
            "num_layers": config.num_hidden_layers,
            "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "eos_token_ids": _eos_token_ids(checkpoint),
            "bos_token_id": config.bos_token_id,
            "pad_token_id": config.pad_token_id,
            "fp32_mlp_layers": list(fp32_mlp_layers),
        },
        "head": head_record(config, checkpoint.task),
        "limits": asdict(plan.limits),
        "session": lowered.session,
        "files": files,
        "weights": {
            "mode": plan.weights,
            "directory": weights_directory,
            "chunk_bytes": _CHUNK_BYTES if scanned is None else scanned.chunk_bytes,
            "algorithm": "sha256" if scanned is None else scanned.algorithm,
            "files": shards,
        },
        "scan": {"done": scanned is not None},
        "parity": {"state": "pending", "reason": reason, "checked": None},
    }


def _eos_token_ids(checkpoint: Checkpoint) -> list[int]:
    """What ends a text: the generation config's tokens go before the config's, as in transformers."""
    tokens = checkpoint.generation_config.get("eos_token_id")
    if tokens is None:
        return list(checkpoint.config.eos_token_ids)
    return tokens if isinstance(tokens, list) else [tokens]
