"""What the nodes of a graph ask kernels for: the compiled set is made of these. Needs no Triton."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from nemotron_errors import GraphError

__all__ = ["Attribute", "KernelRequest", "logits_request", "request_of"]

Attribute = int | float | str
# a size that varies from call to call: sequences, tokens, the capacity of a cache
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class KernelRequest:
    """What one node asks for; nodes with equal requests share kernels.

    Attributes:
        op: its name, for example ``LayerNormLinear``.
        shapes: of the inputs, None for a size that varies; an input that is left out has none.
        dtype: run dtype.
        attributes: the node's own, sorted by name.
        sequences: most sequences of a pass.
        capacity: most tokens that a sequence's cache can hold.
        format: of the weights.
    """

    op: str
    shapes: tuple[Shape, ...]
    dtype: str
    attributes: tuple[tuple[str, Attribute], ...] = ()
    sequences: int = 1
    capacity: int = 0
    format: str = "dense"

    @property
    def key(self) -> str:
        """A name that tells requests apart, readable and safe as a file's; the last part is a digest of them whole.

        For example ``LayerNormLinear.9216x3072.relu_squared.same.bfloat16.dense.5f0e3a1b``; the shape is that of the
        largest input.
        """
        largest = max(([size for size in shape if size] for shape in self.shapes), key=math.prod, default=[])
        words = [value for _, value in self.attributes if isinstance(value, str)]
        digest = hashlib.sha256(self.to_json().encode()).hexdigest()[:8]
        return ".".join([self.op, "x".join(map(str, largest)), *words, self.dtype, self.format, digest])

    def to_json(self) -> str:
        """JSON text that :meth:`from_json` reads back into an equal request: the value of a node's ``kernel``."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, *, where: str) -> KernelRequest:
        """Reads what :meth:`to_json` wrote.

        Raises:
            GraphError: other text.
        """
        try:
            data = json.loads(text)
            data["shapes"] = tuple(map(tuple, data["shapes"]))
            data["attributes"] = tuple((str(name), value) for name, value in data["attributes"])
            return cls(**data)
        except (ValueError, TypeError, KeyError) as error:
            raise GraphError(
                f"'{text[:80]}' ({type(error).__name__})", "a request for kernels in JSON, as this version writes it",
                "build again with this version", where=where,
            ) from error  # fmt: skip


def request_of(
    op: str, shapes: Sequence[Sequence[int | None]], dtype: str, attributes: Mapping[str, Attribute], *,
    sequences: int, capacity: int, format: str = "dense",
) -> KernelRequest:  # fmt: skip
    """The request of a node: see :class:`KernelRequest` for the arguments.

    A floating-point attribute has the digits of fp32, as ONNX stores it: the shortest that mean the same number, so
    that 1e-5 stays 1e-5 whether the graph was stored or not.
    """
    rounded = {name: _shortest(value) if isinstance(value, float) else value for name, value in attributes.items()}
    return KernelRequest(
        op, tuple(tuple(shape) for shape in shapes), dtype, tuple(sorted(rounded.items())), sequences, capacity, format
    )


def logits_request(op: str, vocab: int) -> KernelRequest:
    """The request of what an executor itself runs on logits float32 [B, vocab]: ``Argmax`` or ``TopCandidates``."""
    return KernelRequest(op, ((None, vocab),), "float32")


def _shortest(value: float) -> float:
    fp32 = struct.pack("f", value)
    return next(short for digits in range(1, 18) if struct.pack("f", short := float(f"{value:.{digits}g}")) == fp32)
