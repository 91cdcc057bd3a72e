"""What ONNX Runtime's graphs call their inputs and outputs, the check of them, and binding by address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt
from nemotron_errors import BundleError
from nemotron_formats.cache import CacheSpec

from nemotron_runtime.bundle.folder import Bundle

__all__ = ["ROW_INPUTS", "TOKENS_OUTPUT", "TOTAL_INPUT", "bind_input", "bind_output", "check_names"]

ROW_INPUTS = ("input_ids", "query_start", "query_length", "logits_index")
# tokens of the longest sequence, the new ones included: what some kernels read on the host
TOTAL_INPUT = "total_sequence_length"
# the likeliest tokens, next to the logits
TOKENS_OUTPUT = "tokens"


def bind_input(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    """Binds an array by address: it must live until the run is over."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    """:func:`bind_input` for an output."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def check_names(
    bundle: Bundle,
    session: Any,
    caches: Iterable[CacheSpec],
    *,
    inputs: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> None:
    """Holds a graph's inputs and outputs against the manifest and against what an executor binds.

    Args:
        bundle: whose graph it is.
        session: ONNX Runtime's session of it.
        caches: which it takes and gives.
        inputs: that it takes besides.
        optional: inputs and outputs that it may have.

    Raises:
        BundleError: other ones.
    """
    record, caches = bundle.manifest.session, tuple(caches)
    taken = {*inputs, *(cache.input_name for cache in caches)}
    given = {bundle.manifest.head.output, *(cache.output_name for cache in caches)}
    for what, values, recorded, required in (
        ("inputs", session.get_inputs(), record.inputs, taken),
        ("outputs", session.get_outputs(), record.outputs, given),
    ):
        names = [value.name for value in values]
        if set(names) != set(recorded) or not required <= set(names) <= required | set(optional):
            expected = ", ".join(recorded) if set(recorded) >= required else ", ".join(sorted(required))
            raise BundleError(
                f"{what} {', '.join(names)}", expected, "build the bundle again", where=str(bundle.file(record.graph))
            )
