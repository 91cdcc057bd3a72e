"""What a reference takes of memory, and so whether it is made with the whole model or layer by layer."""

from __future__ import annotations

import logging

from nemotron_errors import RequestError

from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.memory import available_memory, gigabytes

__all__ = ["BASE_MEMORY", "REFERENCE_MODES", "choose_reference", "layerwise_memory"]

_log = logging.getLogger(__name__)

REFERENCE_MODES = ("auto", "whole", "layerwise")
# Python with torch, onnx and ONNX Runtime loaded, and the traced graph.
BASE_MEMORY = 1_000_000_000
# A layer-by-layer reference's slice of the head, its read buffer, and what the allocator keeps.
_LAYERWISE_BUFFERS = 300_000_000
# The longest prompt of the parity protocol, and at least the tokens of all prompts and their greedy steps.
_LONGEST_PROMPT, _ALL_TOKENS = 1200, 1600


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
    needed = BASE_MEMORY + 4 * num_parameters
    if needed <= available:
        return "whole"
    _log.warning(
        "%s of memory available and about %s needed by the fp32 model: the reference is made layer by layer (%s), with "
        "fewer greedy steps unless --reference-steps names their number",
        gigabytes(available), gigabytes(needed), gigabytes(BASE_MEMORY + layerwise_memory(config)),
    )  # fmt: skip
    return "layerwise"
