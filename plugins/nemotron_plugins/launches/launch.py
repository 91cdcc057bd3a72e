"""What a kernel launch is, as data: the rule before compilation and the record kept with a cubin. Needs no Triton."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from nemotron_errors import BundleError

__all__ = ["CompiledKernel", "Gpu", "GridAxis", "Launch", "LaunchRecord", "declared", "next_power_of_two"]

Constant = int | float | bool
_FIRST_WITH_PDL = 90


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n below 1."""
    return 1 << max(n - 1, 0).bit_length()


def declared(text: str) -> tuple[tuple[str, str], ...]:
    """The arguments of a kernel, name and type, from types and the names that have each: ``*T x_ptr y_ptr, i32 n``."""
    groups = (group.split() for group in text.split(","))
    return tuple((name, kind) for kind, *names in groups for name in names)


@dataclass(frozen=True)
class Gpu:
    """What launches are chosen for.

    Attributes:
        architecture: compute capability × 10, for example 90.
        multiprocessors: how many it has.
    """

    architecture: int
    multiprocessors: int

    @property
    def pdl(self) -> bool:
        """Whether it has programmatic dependent launch."""
        return self.architecture >= _FIRST_WITH_PDL


@dataclass(frozen=True)
class GridAxis:
    """Blocks along one axis of a grid: ``times`` by the product of the named sizes, over ``per_block``, rounded up.

    The sizes are those of a call, for example ``B`` rows and ``S`` new tokens.
    """

    times: int
    sizes: tuple[str, ...] = ()
    per_block: int = 1

    def blocks(self, sizes: dict[str, int]) -> int:
        """The number of blocks for the sizes of this call."""
        return -(-self.times * math.prod(sizes[name] for name in self.sizes) // self.per_block)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How one kernel is compiled and launched.

    Attributes:
        kernel: ``file.function`` in :mod:`nemotron_plugins.kernels`.
        arguments: name and type of each run-time argument, in the kernel's order, as Triton writes types (``*i64``,
            ``i32``); ``*T`` is a pointer to activations.
        constexprs: compile-time arguments.
        grid: one to three axes.
        num_warps: warps of 32 threads per block.
        num_stages: depth of the software pipeline of loads.
        fp_fusion: whether a multiplication and an addition may become one instruction with one rounding.
        pdl: programmatic dependent launch: the block starts while the kernel before it drains, then waits for it.
            Architectures from sm_90 on.
    """

    kernel: str
    arguments: tuple[tuple[str, str], ...]
    constexprs: dict[str, Constant]
    grid: tuple[GridAxis, ...]
    num_warps: int
    num_stages: int = 1
    fp_fusion: bool = True
    pdl: bool

    def grid_of(self, **sizes: int) -> tuple[int, ...]:
        """Blocks along each axis for the sizes of a call."""
        return tuple(axis.blocks(sizes) for axis in self.grid)


@dataclass(frozen=True, kw_only=True)
class LaunchRecord(Launch):
    """Everything a driver needs to launch a cubin without Triton; its arguments' types have no ``T``.

    Attributes:
        entry: name of the function in the cubin.
        architecture: for example ``sm_90``.
        dtype: of the activations: ``float32``, ``float16`` or ``bfloat16``.
        hidden_arguments: pointers that follow them; null where the scratch of that name has no bytes.
        shared_bytes: dynamic shared memory per block.
        cluster: blocks per cluster along each axis.
        scratch_bytes: global scratch per block, by hidden argument.
        scratch_alignment: in bytes, by hidden argument.
        triton: version of the compiler.
        cubin_sha256: of the cubin that it belongs to.
    """

    entry: str
    architecture: str
    dtype: str
    hidden_arguments: tuple[str, ...]
    shared_bytes: int
    cluster: tuple[int, int, int]
    scratch_bytes: dict[str, int]
    scratch_alignment: dict[str, int]
    triton: str
    cubin_sha256: str

    def to_json(self) -> str:
        """JSON text that :meth:`from_json` reads back into an equal record."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, *, where: str = "launch record") -> LaunchRecord:
        """Reads what :meth:`to_json` wrote.

        Raises:
            BundleError: text that is no JSON object of exactly these keys, or a value of another kind.
        """
        remedy = "compile the kernel again"
        try:
            data: dict[str, Any] = json.loads(text)
            names = {f.name for f in fields(cls)}
            if set(data) != names:
                odd = ", ".join(sorted(set(data) ^ names))
                raise BundleError(f"missing or unknown keys {odd}", "the keys of a launch record", remedy, where=where)
            data["arguments"] = tuple((str(name), str(kind)) for name, kind in data["arguments"])
            data["hidden_arguments"] = tuple(data["hidden_arguments"])
            data["grid"] = tuple(
                GridAxis(axis["times"], tuple(axis["sizes"]), axis["per_block"]) for axis in data["grid"]
            )
            data["cluster"] = tuple(data["cluster"])
        except BundleError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise BundleError(f"{error}", "a launch record in JSON", remedy, where=where) from error
        return cls(**data)


@dataclass(frozen=True)
class CompiledKernel:
    """A cubin, and what a driver needs to launch it."""

    cubin: bytes
    record: LaunchRecord
