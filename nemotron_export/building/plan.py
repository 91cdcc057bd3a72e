"""What a build will do, decided and checked before anything is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nemotron_errors import BundleError, RequestError
from nemotron_formats.weights import choose_format
from nemotron_graphs.targets import Target
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.builder import Builder
from nemotron_export.building.limits import choose_limits
from nemotron_export.building.preflight import check_resources, estimate
from nemotron_export.building.request import BuildRequest
from nemotron_export.building.weight_files import choose_weight_mode
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.parity.heldout import HeldOut, held_out_texts
from nemotron_export.parity.memory import choose_reference
from nemotron_export.quantization import QuantizedLayout, lay_out

__all__ = ["BuildPlan", "make_plan"]

# sequences that the parity check runs at once
_CHECKED_SEQUENCES = 4


@dataclass(frozen=True)
class BuildPlan:
    """What was decided.

    Attributes:
        dtype: run dtype.
        weights: where the weights will be, see :func:`place_weights`.
        reference: how the reference is made: "whole" or "layerwise".
        quantized: what is stored in another weight format; None without.
        held_out: the text that measures it; None without.
    """

    request: BuildRequest
    builder: Builder
    checkpoint: Checkpoint
    dtype: str
    limits: Limits
    weights: str
    reference: str
    quantized: QuantizedLayout | None
    held_out: HeldOut | None

    @property
    def target(self) -> Target:
        """The builder's target."""
        return self.builder.target


def make_plan(request: BuildRequest, builder: Builder, source: Path, place: Path) -> BuildPlan:
    """Opens the checkpoint, fills in what the request leaves open, and refuses what cannot be built.

    Args:
        source: the checkpoint's folder.
        place: the bundle's folder.

    Raises:
        NemotronError: a broken checkpoint, an option that makes no sense, too little disk or memory, …
    """
    target = builder.target
    mode = choose_weight_mode(request.weights, target, request.embed_weights)
    if request.dtype is not None:
        target.check_dtype(request.dtype)
    checkpoint = Checkpoint.open(source, task=request.task)
    stored = target.stored_dtype_first and checkpoint.dtype in target.dtypes
    dtype = request.dtype or (checkpoint.dtype if stored else target.dtypes[0])
    if checkpoint.directory.resolve().is_relative_to(place.resolve()):
        raise BundleError(
            "the checkpoint inside the output", "two separate folders", "choose another --output", where=str(place)
        )
    limits = choose_limits(checkpoint.config, request.max_seq_len, request.max_batch, request.prefill_chunk)
    quantized = _quantized(request, target, checkpoint)
    builder.plan(checkpoint, dtype, limits)
    reference, held_out = request.reference, None
    if request.parity:
        reference = choose_reference(reference, checkpoint.config, checkpoint.num_parameters)
        if quantized is not None:
            held_out = held_out_texts(checkpoint, limits.max_seq_len, request.eval_text, mode=reference)
    needed = estimate(
        checkpoint.config,
        num_parameters=checkpoint.num_parameters,
        stored_bytes=checkpoint.num_bytes,
        run_dtype=dtype,
        capacity=limits.max_seq_len,
        sequences=min(limits.max_batch, _CHECKED_SEQUENCES),
        weights_mode=mode,
        parity=request.parity,
        reference=reference,
        quantized_bytes=0 if quantized is None else quantized.size,
    )
    check_resources(builder.needs(needed, checkpoint), place)
    return BuildPlan(request, builder, checkpoint, dtype, limits, mode, reference, quantized, held_out)


def _quantized(request: BuildRequest, target: Target, checkpoint: Checkpoint) -> QuantizedLayout | None:
    if request.quantize is None:
        if request.group_size is not None:
            remedy = "add --quantize int8 or int4, or leave --group-size out"
            raise RequestError("a group size without --quantize", "both", remedy, where="--group-size")
        quantized = None
    else:
        quantized = lay_out(checkpoint, choose_format(request.quantize, request.group_size, target.formats))
    if request.eval_text is not None and not (quantized and request.parity):
        found, remedy = "a text and no perplexity to measure", "add --quantize, and leave --no-parity out"
        raise RequestError(found, "a quantized bundle that is checked", remedy, where="--eval-text")
    return quantized
