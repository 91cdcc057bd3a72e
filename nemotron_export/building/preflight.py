"""Refuses a build that the disk or the memory cannot hold, with the numbers, before any work is done."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
from nemotron_errors import RequestError, ResourceError
from nemotron_formats.dtypes import item_bytes

from nemotron_export.config.config import NemotronConfig

__all__ = [
    "REFERENCE_MODES",
    "Estimate",
    "available_memory",
    "check_resources",
    "choose_reference",
    "estimate",
    "layerwise_memory",
]

REFERENCE_MODES = ("auto", "whole", "layerwise")

_log = logging.getLogger(__name__)

# Python with torch, onnx and ONNX Runtime loaded, and the traced graph.
_BASE_MEMORY = 1_000_000_000
# A layer-by-layer reference's slice of the head, its read buffer, and what the allocator keeps.
_LAYERWISE_BUFFERS = 300_000_000
# The longest prompt of the parity protocol, and at least the tokens of all prompts and their greedy steps.
_LONGEST_PROMPT, _ALL_TOKENS = 1200, 1600
# Graph, tokenizer, licence files and what a file system adds.
_BASE_DISK = 50_000_000


@dataclass(frozen=True)
class Estimate:
    """Upper estimates in bytes of what a build needs.

    Attributes:
        disk: what is written under the output's parent.
        weights: the weights in the run dtype, as a session holds them.
        caches: the KV caches that the parity check allocates.
        reference: what makes the reference: the fp32 model, or one layer of it and what passes through.
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
    capacity: int,
    sequences: int,
    weights_mode: str,
    parity: bool,
    reference: str = "whole",
    quantized_bytes: int = 0,
) -> Estimate:
    """Estimates a build.

    Args:
        config: the checkpoint's config.
        num_parameters: its number of parameters.
        stored_bytes: size of its weight files.
        run_dtype: dtype that the bundle computes in.
        capacity: of a sequence's cache.
        sequences: that the parity check runs at once.
        weights_mode: "reference", "link", "copy" or "embedded", which writes them into two engines.
        parity: whether the reference is made and checked.
        reference: "whole" or "layerwise".
        quantized_bytes: size of the quantized weights, where there are some.
    """
    model = layerwise_memory(config) if reference == "layerwise" else 4 * num_parameters
    item = item_bytes(run_dtype)
    # twice: the weights as mapped or converted, and the copy that ONNX Runtime reorders for its kernels
    weights = 2 * num_parameters * item if parity else 0
    if parity and quantized_bytes:
        # codes are copied once more by the kernels, and the embedding is mapped
        weights = 2 * quantized_bytes + item * config.vocab_size * config.hidden_size
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * capacity * item
    # four prompts, six positions of each, float32
    logits = 4 * 6 * config.vocab_size * 4 if parity else 0
    disk = _BASE_DISK + logits + quantized_bytes + stored_bytes * {"copy": 1, "embedded": 2}.get(weights_mode, 0)
    return Estimate(
        disk=disk,
        weights=weights,
        caches=cache * sequences if parity else 0,
        reference=model if parity else 0,
        logits=logits,
    )


def layerwise_memory(config: NemotronConfig) -> int:
    """Bytes of the fp32 reference made layer by layer: an upper estimate.

    Counts one decoder layer, a slice of the head, the keys and values of all prompts, their hidden states and their
    embedding's rows, and what a layer makes of the longest prompt.
    """
    E, F = config.hidden_size, config.intermediate_size
    HD, GD = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = 2 * E * F + 2 * E * HD + 2 * E * GD + 2 * (E + F) + 4 * E + HD + 2 * GD
    caches = 2 * config.num_hidden_layers * GD * _ALL_TOKENS
    activations = _LONGEST_PROMPT * (3 * F + 4 * E + 6 * HD) + 3 * _ALL_TOKENS * E
    return 4 * (layer + caches + activations) + _LAYERWISE_BUFFERS


def choose_reference(mode: str, config: NemotronConfig, num_parameters: int, *, memory: int | None = None) -> str:
    """How the reference is made: "whole" or "layerwise". What "auto" chose for want of memory is logged.

    Args:
        mode: one of REFERENCE_MODES.
        config: the checkpoint's config.
        num_parameters: its number of parameters.
        memory: bytes available; measured where None.

    Raises:
        RequestError: another mode.
    """
    if mode not in REFERENCE_MODES:
        expected = f"one of {', '.join(REFERENCE_MODES)}"
        raise RequestError(f"'{mode}'", expected, "choose one of them", where="--reference")
    if mode != "auto":
        return mode
    available = available_memory() if memory is None else memory
    needed = _BASE_MEMORY + 4 * num_parameters
    if needed <= available:
        return "whole"
    _log.warning(
        "%s of memory available and about %s needed by the fp32 model: the reference is made layer by layer (%s), with "
        "fewer greedy steps unless --reference-steps names their number",
        _gb(available), _gb(needed), _gb(_BASE_MEMORY + layerwise_memory(config)),
    )  # fmt: skip
    return "layerwise"


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
        parts = f"weights {_gb(needed.weights)}, caches {_gb(needed.caches)}, fp32 reference {_gb(needed.reference)}"
        raise ResourceError(
            f"{_gb(available)} of memory available", f"about {_gb(needed.memory)} ({parts})",
            "lower --max-seq-len, or build with --no-parity here and run `nemotron-export parity` on a larger machine",
            where="memory",
        )  # fmt: skip


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
