"""What the plugins have in common, without TensorRT: attributes, kernels, types, and launches by argument name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nemotron_errors import GraphError

from nemotron_plugins.driver.kernel import LoadedKernel
from nemotron_plugins.launches.launch import CompiledKernel, LaunchRecord
from nemotron_plugins.tensorrt.fields import Attribute, Field, FieldSpec, attribute_fields, kernel_fields

__all__ = ["PluginOp", "Tensor", "row_buckets_of", "smallest_bucket"]

_REBUILD = "build the kernels for this model"
# what a letter of ``inputs`` and ``outputs`` stands for; T is the dtype of the kernels
_DTYPES = {"I": "int64", "F": "float32"}


@dataclass(frozen=True)
class Tensor:
    """An input or output of a call: numpy's name of its dtype, its shape, and its address on the GPU.

    Before a call the address is 0 and unknown sizes of the shape are -1.
    """

    dtype: str
    shape: tuple[int, ...]
    address: int = 0


class PluginOp(ABC):
    """One op of the dialect with the attributes of a node and its kernels; immutable, so that plugins may share it.

    Subclasses name the op and tell shapes, workspace and launches.

    Args:
        values: every attribute's value.
        kernels: what :meth:`keys_of` names, by key.

    Raises:
        GraphError: kernels that are not those of these attributes.
        BundleError: a cubin that is not its record's.
    """

    name: ClassVar[str]
    attributes: ClassVar[tuple[FieldSpec, ...]] = ()
    # a letter for each input and output: T run dtype, I int64, F float32; the last inputs may be left out
    inputs: ClassVar[str]
    optional_inputs: ClassVar[int] = 1
    aliases: ClassVar[Mapping[int, int]] = {}
    # kernel → its arguments, in any order
    arguments: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, values: Mapping[str, Attribute], kernels: Mapping[str, CompiledKernel]) -> None:
        self.values = dict(values)
        self.kernels = dict(kernels)
        self._loaded = {key: LoadedKernel(kernel.record, kernel.cubin) for key, kernel in kernels.items()}
        if not kernels:
            self._refuse("no kernels", "kernels of this op")
        dtypes = {kernel.record.dtype for kernel in kernels.values()}
        if len(dtypes) != 1:
            self._refuse(f"kernels for {', '.join(sorted(dtypes))}", "kernels for one dtype")
        (self.dtype,) = dtypes
        for key, record in self.records.items():
            known, found = self.arguments.get(record.kernel, ()), [name for name, _ in record.arguments]
            if sorted(found) != sorted(known):
                expected = f"one of {', '.join(self.arguments)} with the arguments that this version passes"
                self._refuse(f"{record.kernel} with {', '.join(found)}", expected, key)

    @classmethod
    @abstractmethod
    def keys_of(cls, values: Mapping[str, Attribute], held: Sequence[str]) -> list[str]:
        """The keys, of those that a library holds, of the kernels that a node of these attributes launches.

        Raises:
            GraphError: one is missing.
        """

    @property
    @abstractmethod
    def outputs(self) -> str:
        """A letter for each output, as in ``inputs``."""

    @abstractmethod
    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Sizes of each output: expressions of the inputs', or integers."""

    @abstractmethod
    def check_shapes(self, inputs: Sequence[Tensor]) -> None:
        """Holds the inputs' known sizes against kernels and attributes.

        Raises:
            GraphError: they do not fit.
        """

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """Bytes of scratch memory for inputs of at most these shapes."""
        return 0

    @abstractmethod
    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """Launches the kernels."""

    @property
    def records(self) -> dict[str, LaunchRecord]:
        """The kernels' launch records, by key."""
        return {key: kernel.record for key, kernel in self.kernels.items()}

    @property
    def fields(self) -> list[Field]:
        """What an engine keeps of the plugin."""
        return attribute_fields(self.values) + kernel_fields(self.kernels)

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        """The outputs' dtypes.

        Raises:
            GraphError: inputs of other dtypes, or too many or few of them.
        """
        self._check_count(len(inputs))
        for index, (letter, found) in enumerate(zip(self.inputs, inputs, strict=False)):
            if found != self._dtype(letter):
                self._refuse(f"input {index} of {found}", self._dtype(letter), remedy="cast it, or build other kernels")
        return [self._dtype(letter) for letter in self.outputs]

    def supports(self, position: int, dtypes: Sequence[str], num_inputs: int) -> bool:
        """Whether the input, or behind them output, of this position may have its dtype."""
        letters = self.inputs[:num_inputs] + self.outputs
        return position < len(letters) and dtypes[position] == self._dtype(letters[position])

    def configure(self, inputs: Sequence[Tensor]) -> None:
        """Checks the inputs of a node, or of a call.

        Raises:
            GraphError: they do not fit kernels or attributes.
        """
        self._check_count(len(inputs))
        self.check_shapes(inputs)

    def _launch(self, key: str, stream: int, values: Mapping[str, int], **sizes: int) -> None:
        kernel = self._loaded[key]
        kernel.launch(stream, [values[name] for name, _ in kernel.record.arguments], **sizes)

    def _dtype(self, letter: str) -> str:
        return _DTYPES.get(letter, self.dtype)

    def _check_count(self, count: int) -> None:
        least, most = len(self.inputs) - self.optional_inputs, len(self.inputs)
        if not least <= count <= most:
            self._refuse(f"{count} inputs", f"{least} to {most}", remedy="make the node as the op's schema says")

    def _check_constant(self, key: str, constant: str, expected: object, what: str) -> None:
        found = self.kernels[key].record.constexprs.get(constant)
        if found != expected:
            self._refuse(f"a kernel compiled for {constant} = {found}", f"{expected}, {what}", key)

    def _check_size(self, what: str, found: int, expected: int) -> None:
        if found not in (-1, expected):
            remedy = "build the kernels for this model, or mend the graph"
            self._refuse(f"{what} of {found}", f"{expected}, as its kernels take it", remedy=remedy)

    def _refuse(self, found: str, expected: str, key: str = "", *, remedy: str = _REBUILD) -> None:
        raise GraphError(found, expected, remedy, where=f"{self.name}.{key}" if key else self.name)


def row_buckets_of(op: str, prefix: str, held: Sequence[str]) -> list[int]:
    """The row buckets R of the kernels ``prefix.rR`` that a library holds, in ascending order.

    Raises:
        GraphError: there is none.
    """
    start = f"{prefix}.r"
    buckets = sorted(int(key[len(start) :]) for key in held if key.startswith(start) and key[len(start) :].isdigit())
    if not buckets:
        known = ", ".join(sorted({key.rpartition(".r")[0] or key for key in held}))
        raise GraphError(f"kernels {known or 'none'}", f"kernels {start}1, …", _REBUILD, where=op)
    return buckets


def smallest_bucket(rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds so many rows, or the largest, whose grid takes any number."""
    return min((bucket for bucket in buckets if bucket >= rows), default=max(buckets))
