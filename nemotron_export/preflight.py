"""Refuses a build that the disk or the memory cannot hold, with the numbers, before any work is done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
from nemotron_errors import ResourceError

from nemotron_export.config import NemotronConfig

__all__ = ["Estimate", "available_memory", "check_resources", "estimate"]

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

# Python with torch, onnx and ONNX Runtime loaded, and the traced graph.
_BASE_MEMORY = 1_000_000_000
# Graph, tokenizer, licence files and what a file system adds.
_BASE_DISK = 50_000_000


@dataclass(frozen=True)
class Estimate:
    """Upper estimates in bytes of what a build needs.

    Attributes:
        disk: what is written under the output's parent.
        weights: the weights in the run dtype, as a session holds them.
        caches: the KV caches that the parity check allocates.
        reference: the fp32 model that makes the reference.
        logits: the reference's logits.
    """

    disk: int
    weights: int
    caches: int
    reference: int
    logits: int

    @property
    def memory(self) -> int:
        """Peak in bytes: the reference model is gone before the session starts, so the larger of the two counts."""
        return _BASE_MEMORY + max(self.reference, self.weights) + self.caches + self.logits


def estimate(
    config: NemotronConfig,
    *,
    num_parameters: int,
    stored_bytes: int,
    run_dtype: str,
    slots: int,
    rows: int,
    weights_mode: str,
    parity: bool,
) -> Estimate:
    """Estimates a build.

    Args:
        config: the checkpoint's config.
        num_parameters: its number of parameters.
        stored_bytes: size of its weight files.
        run_dtype: dtype that the bundle computes in.
        slots: cache slots of a row, `max_seq_len` and the padding of a chunk.
        rows: rows that the parity check runs at once.
        weights_mode: "reference", "link" or "copy".
        parity: whether the reference is made and checked.
    """
    item = _ITEM_BYTES[run_dtype]
    # twice: the weights as mapped or converted, and the copy that ONNX Runtime reorders for its kernels
    weights = 2 * num_parameters * item if parity else 0
    row = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * slots * item
    # four prompts, six positions of each, float32
    logits = 4 * 6 * config.vocab_size * 4 if parity else 0
    disk = _BASE_DISK + logits + (stored_bytes if weights_mode == "copy" else 0)
    return Estimate(
        disk=disk,
        weights=weights,
        caches=row * rows if parity else 0,
        reference=num_parameters * 4 if parity else 0,
        logits=logits,
    )


def available_memory() -> int:
    """Bytes that this process may still take: the system's free memory, or less in a container."""
    available = psutil.virtual_memory().available
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit = Path(limit_file).read_text().strip()
            used = int(Path(used_file).read_text())
        except (OSError, ValueError):
            continue
        if limit.isdigit():
            # page cache counts as used but is given back
            return max(0, min(available, int(limit) - used + _page_cache(Path(limit_file).parent)))
    return available


def _page_cache(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    stat = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    return sum(int(stat.get(key, 0)) for key in ("inactive_file", "active_file"))


def check_resources(needed: Estimate, output: Path, *, memory: int | None = None, disk: int | None = None) -> None:
    """Compares an estimate with what there is.

    Args:
        needed: the estimate.
        output: the bundle's place; its nearest existing parent tells the file system.
        memory: bytes available; measured where None.
        disk: bytes free; measured where None.

    Raises:
        ResourceError: naming both numbers.
    """
    place = next(p for p in (output, *output.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free if disk is None else disk
    if needed.disk > free:
        raise ResourceError(
            f"{_gb(free)} free", f"{_gb(needed.disk)} for the bundle",
            "free some space, choose another --output, or keep the weights where they are (--weights reference)",
            where=str(place),
        )  # fmt: skip
    available = available_memory() if memory is None else memory
    if needed.memory > available:
        parts = (
            f"weights {_gb(needed.weights)}, caches {_gb(needed.caches)}, fp32 reference model {_gb(needed.reference)}"
        )
        raise ResourceError(
            f"{_gb(available)} of memory available", f"about {_gb(needed.memory)} ({parts})",
            "lower --max-seq-len, or build with --no-parity here and run `nemotron-export parity` on a larger machine",
            where="memory",
        )  # fmt: skip


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
