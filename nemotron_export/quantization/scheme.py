"""What `--quantize` means: bits, group size, and how weights are rounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nemotron_errors import RequestError
from nemotron_graphs.targets import Target

__all__ = ["DEFAULT_GROUP_SIZE", "GROUP_SIZES", "SCHEMES", "Scheme", "choose_scheme"]

SCHEMES: dict[str, Literal[8, 4]] = {"int8": 8, "int4": 4}
GROUP_SIZES = (32, 64, 128)
# By the demo checkpoint's held-out text: int4 perplexity grows by 3.0 % with 32, 3.7 % with 64 and 4.2 % with 128, at
# 5, 4.5 and 4.25 bits a weight. Eight bits lose nothing worth smaller groups (0.07 % with 128).
DEFAULT_GROUP_SIZE = {8: 128, 4: 32}

# Scales tried for a group, as shares of the one that its largest value asks for. Plain rounding to 4 bits costs 4.1 %,
# 5.6 % and 7.0 %; four or seven shares in place of two gain nothing. With 8 bits plain rounding is within 0.1 %.
_CANDIDATES = {8: (1.0,), 4: (1.0, 0.9)}


@dataclass(frozen=True)
class Scheme:
    """Symmetric weight-only quantization in groups along the input features.

    A weight is (code - 2^(bits - 1)) x scale, the scale of its group in float32.

    Zero points were measured and left out: in groups of 32 the perplexity is the same within 0.3 %, in groups of 128
    they would gain 0.7 %, less than smaller groups do, and they lengthen the kernels' inner loop.

    Attributes:
        bits: of a code, 8 or 4.
        group_size: input features that share a scale.
        accuracy_level: of MatMulNBits; 4: activations become int8, by group and token, for the product. With 0 the
            8-bit op of ONNX Runtime's CPU provider converts the whole weight in every call (22 ms in place of 0.07 ms
            for [3072, 768]), and the 4-bit op is 3 times slower, for an error that is small beside that of the weights.
    """

    bits: Literal[8, 4]
    group_size: int
    accuracy_level: Literal[0, 4] = 4

    @property
    def candidates(self) -> tuple[float, ...]:
        """Scales to try, see the module."""
        return _CANDIDATES[self.bits]

    @property
    def method(self) -> Literal["round to nearest", "scale search"]:
        """The manifest's word for how weights are rounded."""
        return "scale search" if len(self.candidates) > 1 else "round to nearest"

    def groups(self, features: int) -> int:
        """Groups of a row; the last one is padded with zeros."""
        return -(-features // self.group_size)

    @property
    def group_bytes(self) -> int:
        """Bytes of a group's codes."""
        return self.group_size * self.bits // 8


def choose_scheme(quantize: str | None, group_size: int | None, target: Target) -> Scheme | None:
    """What the options ask for; None without `--quantize`.

    Raises:
        RequestError: a scheme or group size that does not exist, or that the target cannot run.
    """
    if quantize is None:
        if group_size is not None:
            remedy = "add --quantize int8 or int4, or leave --group-size out"
            raise RequestError("a group size without --quantize", "both", remedy, where="--group-size")
        return None
    if quantize not in SCHEMES:
        expected = f"one of {', '.join(SCHEMES)}"
        raise RequestError(f"'{quantize}'", expected, "choose one of them", where="--quantize")
    bits = SCHEMES[quantize]
    if bits not in target.quantized_bits:
        raise RequestError(
            f"{quantize} for target {target.name}", "a target with quantized projections",
            "use --target ort-cpu, or leave --quantize out", where="--quantize",
        )  # fmt: skip
    size = DEFAULT_GROUP_SIZE[bits] if group_size is None else group_size
    if size not in GROUP_SIZES:
        expected = f"one of {', '.join(map(str, GROUP_SIZES))}"
        raise RequestError(str(size), expected, "choose one of them", where="--group-size")
    return Scheme(bits, size)
