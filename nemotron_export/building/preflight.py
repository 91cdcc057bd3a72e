"""Refuses a build that the disk or the memory cannot hold, with the numbers, before any work is done."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from nemotron_errors import ResourceError
from nemotron_formats.dtypes import item_bytes

from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.memory import available_memory, gigabytes
from nemotron_export.parity.memory import BASE_MEMORY, layerwise_memory

__all__ = ["Estimate", "check_resources", "estimate"]

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
        return BASE_MEMORY + max(self.reference, self.weights) + self.caches + self.logits


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
        stored_bytes: size of the checkpoint's weight files.
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


def check_resources(needed: Estimate, output: Path, *, memory: int | None = None, disk: int | None = None) -> None:
    """Compares an estimate with what there is.

    Args:
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
            f"{gigabytes(free)} free", f"{gigabytes(needed.disk)} for the bundle",
            "free some space, choose another --output, or keep the weights where they are (--weights reference)",
            where=str(place),
        )  # fmt: skip
    available = available_memory() if memory is None else memory
    if needed.memory > available:
        parts = (
            f"weights {gigabytes(needed.weights)}, caches {gigabytes(needed.caches)}, "
            f"fp32 reference {gigabytes(needed.reference)}"
        )
        raise ResourceError(
            f"{gigabytes(available)} of memory available", f"about {gigabytes(needed.memory)} ({parts})",
            "lower --max-seq-len, or build with --no-parity here and run `nemotron-export parity` on a larger machine",
            where="memory",
        )  # fmt: skip
