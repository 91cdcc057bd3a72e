"""What the plugins have in common, without TensorRT: requests, kernels, sizes, types, and launches by argument name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nemotron_errors import GraphError

from nemotron_plugins.driver.kernel import LoadedKernel
from nemotron_plugins.launches.launch import CompiledKernel, Gpu, Launch, LaunchRecord
from nemotron_plugins.requests import KernelRequest

__all__ = ["Operand", "PluginOp", "Tensor"]

_REBUILD = "build the kernels for this graph"
_MEND = "make the node as the op's schema says"
# sizes that calls may differ in: sequences, tokens, capacity of the caches, positions
_VARYING = "BSTP"
# what a letter of an operand's dtype stands for; T is the run dtype
_DTYPES = {"I": "int64", "F": "float32"}
# more multiprocessors than any GPU has
_ENDLESS = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """An input or output of a call: numpy's name of its dtype, its shape, and its address on the GPU.

    Before a call the address is 0 and unknown sizes of the shape are -1.
    """

    dtype: str
    shape: tuple[int, ...]
    address: int = 0


@dataclass(frozen=True)
class Operand:
    """An input or output of an op, as its schema has it.

    Attributes:
        name: the kernels' argument ``<name>_ptr`` is its address.
        dtype: T run dtype, I int64, F float32.
        sizes: a letter per axis; ``*X`` at the end stands for all further axes, whose product is X.
        optional: whether the input, the last one, may be left out.
    """

    name: str
    dtype: str
    sizes: str
    optional: bool = False


class PluginOp(ABC):
    """One op of the dialect with the request of a node and its kernels; immutable, so that plugins may share it.

    Subclasses name the op, its operands and attributes, and tell launches and workspace.

    Args:
        request: the node's.
        kernels: by variant, what :meth:`launches` gives.

    Raises:
        GraphError: a request that is not as the op takes it, or kernels that are not those of the request.
        BundleError: a cubin that is not its record's.
    """

    name: ClassVar[str]
    # the type of each attribute, or its choices
    attributes: ClassVar[Mapping[str, type | tuple[str, ...]]] = {}
    inputs: ClassVar[tuple[Operand, ...]]
    # output → the input whose memory it is
    aliases: ClassVar[Mapping[int, int]] = {}
    formats: ClassVar[tuple[str, ...]] = ("dense",)

    def __init__(self, request: KernelRequest, kernels: Mapping[str, CompiledKernel]) -> None:
        self.check(request)
        self.request, self.kernels = request, dict(kernels)
        self.sizes = self.sizes_of(request.shapes)
        self._check_kernels()
        self._loaded = {variant: LoadedKernel(kernel.record, kernel.cubin) for variant, kernel in kernels.items()}

    @classmethod
    @abstractmethod
    def launches(cls, request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
        """The launch rule: every kernel that a node of this request launches, by a name of its own (the variant).

        A larger GPU gets the same variants, or more.
        """

    @property
    @abstractmethod
    def outputs(self) -> tuple[Operand, ...]:
        """The outputs; a size that no input has is an attribute's: see :meth:`output_shapes`."""

    @abstractmethod
    def enqueue(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], workspace: int, stream: int) -> None:
        """Launches the kernels."""

    def workspace(self, inputs: Sequence[Tensor]) -> int:
        """Bytes of scratch memory for inputs of at most these shapes."""
        return 0

    @classmethod
    def check(cls, request: KernelRequest) -> None:
        """Holds a request against attributes, operands and formats of the op.

        Raises:
            GraphError: they do not fit.
        """
        found = dict(request.attributes)
        if sorted(found) != sorted(cls.attributes):
            names = ", ".join(found) or "none"
            cls._refuse(f"attributes {names}", ", ".join(cls.attributes) or "none", remedy=_MEND)
        for name, kind in cls.attributes.items():
            value = found[name]
            if isinstance(kind, tuple):
                if value not in kind:
                    cls._refuse(f"'{value}'", f"one of {', '.join(kind)}", name, remedy="use one of them")
            elif type(value) is not kind:
                cls._refuse(f"{value!r}", f"a value of type {kind.__name__}", name, remedy=_MEND)
        if request.format not in cls.formats:
            remedy = "choose such a format, or add a launch rule for this one"
            cls._refuse(f"weights in format {request.format}", ", ".join(cls.formats), remedy=remedy)
        for letter, size in cls.sizes_of(request.shapes).items():
            if letter not in _VARYING and not _is_known(size):
                cls._refuse(f"a size {letter} that varies", "a number, for its kernels", remedy=_MEND)

    @classmethod
    def sizes_of(cls, shapes: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The inputs' sizes by letter; of a size that several have, one that is known (a number that is not negative).

        Raises:
            GraphError: too many or few inputs or axes, or two sizes for a letter.
        """
        least = sum(not operand.optional for operand in cls.inputs)
        if not least <= len(shapes) <= len(cls.inputs):
            cls._refuse(f"{len(shapes)} inputs", f"{least} to {len(cls.inputs)}", remedy=_MEND)
        sizes: dict[str, Any] = {}
        for index, (operand, shape) in enumerate(zip(cls.inputs, shapes, strict=False)):
            letters, _, product = operand.sizes.partition("*")
            plain, rest = shape[: len(letters)], shape[len(letters) :]
            if len(plain) != len(letters) or bool(rest) != bool(product):
                cls._refuse(f"{len(shape)} axes of input {index}", f"[{', '.join(operand.sizes)}]", remedy=_MEND)
            pairs = [*zip(letters, plain, strict=True)]
            if product and all(map(_is_known, rest)):
                pairs.append((product, math.prod(rest)))
            for letter, size in pairs:
                known = sizes.get(letter)
                if _is_known(known) and _is_known(size) and size != known:
                    cls._refuse(f"size {size} of input {index}", f"{known}: {letter}, as an input before", remedy=_MEND)
                sizes[letter] = known if letter in sizes and not _is_known(size) else size
        return sizes

    @property
    def dtype(self) -> str:
        """The run dtype."""
        return self.request.dtype

    @property
    def values(self) -> dict[str, Any]:
        """The node's attributes."""
        return dict(self.request.attributes)

    @property
    def records(self) -> dict[str, LaunchRecord]:
        """The kernels' launch records, by variant."""
        return {variant: kernel.record for variant, kernel in self.kernels.items()}

    def output_shapes(self, inputs: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """Sizes of each output: expressions of the inputs', or integers."""
        sizes = {**self.sizes, **self.sizes_of(inputs)}
        return [[sizes[letter] for letter in operand.sizes] for operand in self.outputs]

    def output_dtypes(self, inputs: Sequence[str]) -> list[str]:
        """The outputs' dtypes.

        Raises:
            GraphError: inputs of other dtypes, or too many or few of them.
        """
        self._check_count(len(inputs))
        for index, (operand, found) in enumerate(zip(self.inputs, inputs, strict=False)):
            expected = self._dtype_of(operand)
            if found != expected:
                self._refuse(f"input {index} of {found}", expected, remedy="cast it, or build other kernels")
        return [self._dtype_of(operand) for operand in self.outputs]

    def supports(self, position: int, dtypes: Sequence[str], num_inputs: int) -> bool:
        """Whether the input, or after them output, of this position may have its dtype."""
        operands = [*self.inputs[:num_inputs], *self.outputs]
        return position < len(operands) and dtypes[position] == self._dtype_of(operands[position])

    def configure(self, inputs: Sequence[Tensor]) -> None:
        """Holds the inputs' known sizes, of a node or of a call, against those that the kernels were compiled for.

        Raises:
            GraphError: they do not fit.
        """
        self._check_count(len(inputs))
        for index, (tensor, shape) in enumerate(zip(inputs, self.request.shapes, strict=True)):
            pairs = zip(tensor.shape, shape, strict=False)
            if len(tensor.shape) != len(shape) or any(size not in (-1, known) for size, known in pairs if known):
                expected = f"{['any' if size is None else size for size in shape]}, as its kernels take it"
                self._refuse(f"input {index} of shape {list(tensor.shape)}", expected)

    def _addresses(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> dict[str, int]:
        """The kernels' pointer arguments; null for an input that is left out."""
        found = {f"{operand.name}_ptr": 0 for operand in self.inputs}
        pairs = [*zip(self.inputs, inputs, strict=False), *zip(self.outputs, outputs, strict=True)]
        return found | {f"{operand.name}_ptr": tensor.address for operand, tensor in pairs}

    def _launch(self, variant: str, stream: int, values: Mapping[str, int], **sizes: int) -> None:
        kernel = self._loaded[variant]
        kernel.launch(stream, [values[name] for name, _ in kernel.record.arguments], **sizes)

    def _dtype_of(self, operand: Operand) -> str:
        return _DTYPES.get(operand.dtype, self.dtype)

    def _check_count(self, count: int) -> None:
        if count != len(self.request.shapes):
            self._refuse(f"{count} inputs", f"{len(self.request.shapes)}, as its kernels take them")

    def _check_kernels(self) -> None:
        """Holds the kernels against the launch rule of this version; how far they split is the GPU's own."""
        architectures = {record.architecture for record in self.records.values()}
        if len(architectures) != 1:
            self._refuse(f"kernels for {', '.join(sorted(architectures)) or 'nothing'}", "for one architecture")
        number = int(architectures.pop().removeprefix("sm_"))
        least, most = (self.launches(self.request, Gpu(number, count)) for count in (0, _ENDLESS))
        for variant in least.keys() - self.kernels.keys():
            self._refuse("no such kernel", "every kernel of its launch rule", variant)
        for variant, record in self.records.items():
            found = f"{record.kernel} for {record.dtype} of {', '.join(name for name, _ in record.arguments)}"
            rule = most.get(variant)
            names = "none" if rule is None else ", ".join(name for name, _ in rule.arguments)
            expected = "no such kernel" if rule is None else f"{rule.kernel} for {self.dtype} of {names}"
            if found != expected:
                self._refuse(found, f"{expected}, as this version launches it", variant)

    @classmethod
    def _refuse(cls, found: str, expected: str, part: str = "", *, remedy: str = _REBUILD) -> None:
        raise GraphError(found, expected, remedy, where=f"{cls.name}.{part}" if part else cls.name)


def _is_known(size: Any) -> bool:
    return isinstance(size, int) and size >= 0
