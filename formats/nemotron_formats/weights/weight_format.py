"""What a weight format is: how a matrix is stored in place of the checkpoint's own numbers.

Shapes: O output features (rows of a weight), I input features, R rows of a block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

__all__ = ["Arrays", "Budget", "Operand", "WeightFormat"]

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Operand:
    """One array of a stored weight.

    Attributes:
        name: its suffix: the tensor is called ``{weight}.{name}``.
        dtype: numpy's name.
        shape: its dims; the first one is O.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """What a format may cost, as the parity check bounds it.

    The perplexity is the criterion. The other bounds are what is left to a model that still computes the same thing:
    they are wide, but zeros, noise, a wrong scale or a wrong cache go past them.

    Attributes:
        perplexity: ratio to fp32 PyTorch's on the same tokens.
        rmse: of the outputs, as a share of the standard deviation of the reference's. Outputs of zero have 1, those of
            another model about 1.4.
        drift: largest difference, as a share of the reference's range; another model's is about 1.
        value: largest difference inside the model that rounding the weights explains, as a share of the value's
            range: what the bisection takes for a mistake is above it.
    """

    perplexity: float
    rmse: float
    drift: float
    value: float


class WeightFormat(ABC):
    """One way to store a weight [O, I]; an instance has every parameter fixed, and its name says them all.

    A format is one file in this folder and one line in ``weights/__init__.py``; graphs, quantization, manifest and
    parity know it by its name and through this interface.

    Attributes:
        family: what ``--quantize`` takes.
        budget: what it may cost.
        group_size: input features that share a scale, where the family has members of several; else None.
    """

    family: ClassVar[str]
    budget: ClassVar[Budget]
    group_size: int | None = None

    @property
    def name(self) -> str:
        """Family and parameters: "int4-g32"."""
        return self.family if self.group_size is None else f"{self.family}-g{self.group_size}"

    @property
    @abstractmethod
    def method(self) -> str:
        """How :meth:`encode` chooses codes and scales, in words."""

    @abstractmethod
    def operands(self, O: int, I: int) -> tuple[Operand, ...]:  # noqa: E741
        """The arrays of a weight [O, I], in the order in which kernels take them."""

    @abstractmethod
    def encode(self, weight_RI: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """The operands' rows of some rows of a weight; each row depends on itself alone."""

    @abstractmethod
    def decode(self, arrays: Arrays, I: int) -> npt.NDArray[np.float32]:  # noqa: E741
        """The weight [R, I] that these operands mean: what kernels and the parity check are compared with."""
