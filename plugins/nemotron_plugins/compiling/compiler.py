"""Compiles kernels ahead of time, for named GPU architectures and without a GPU."""

from __future__ import annotations

import hashlib
import importlib
import re
from typing import Any

import triton
from nemotron_errors import GraphError
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemotron_plugins.launches.launch import CompiledKernel, Gpu, Launch, LaunchRecord

__all__ = ["ARCHITECTURES", "compile_kernel", "kernel_function"]

# compute capability × 10: A100, RTX 30, RTX 40 and L40, H100 and H200, B200, RTX 50
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
_TRITON_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# what Triton appends to a kernel's own parameters, in this order
_HIDDEN_ARGUMENTS = ("global_scratch", "profile_scratch")


def kernel_function(launch: Launch) -> Any:
    """The Triton function that a launch names."""
    file, function = launch.kernel.split(".")
    return getattr(importlib.import_module(f"nemotron_plugins.kernels.{file}"), function)


def compile_kernel(launch: Launch, *, dtype: str, architecture: int) -> CompiledKernel:
    """Compiles one kernel for one architecture.

    Pointers are taken to be aligned to 16 bytes.

    Args:
        launch: what its rule gave.
        dtype: of the activations: ``float32``, ``float16`` or ``bfloat16``.
        architecture: one of :data:`ARCHITECTURES`.

    Raises:
        GraphError: another dtype or architecture, or programmatic dependent launch before sm_90.
    """
    if architecture not in ARCHITECTURES:
        names = ", ".join(f"sm_{known}" for known in ARCHITECTURES)
        raise GraphError(f"architecture sm_{architecture}", names, "name one of them", where=launch.kernel)
    if dtype not in _TRITON_TYPES:
        raise GraphError(f"dtype {dtype}", ", ".join(_TRITON_TYPES), "name one of them", where=launch.kernel)
    if launch.pdl and not Gpu(architecture, 1).pdl:
        raise GraphError(
            f"programmatic dependent launch on sm_{architecture}",
            "an architecture that has it",
            "make the launch rule with pdl=False",
            where=launch.kernel,
        )
    kernel = kernel_function(launch)
    arguments = tuple((name, kind.replace("T", _TRITON_TYPES[dtype])) for name, kind in launch.arguments)
    source = ASTSource(
        fn=kernel,
        signature=_signature(kernel, dict(arguments), launch),
        constexprs=dict(launch.constexprs),
        attrs={
            (index,): [["tt.divisibility", 16]] for index, (_, kind) in enumerate(arguments) if kind.startswith("*")
        },
    )
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": launch.fp_fusion,
        "launch_pdl": launch.pdl,
    }
    compiled: Any = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    meta, cubin = compiled.metadata, compiled.asm["cubin"]
    hidden = _HIDDEN_ARGUMENTS[: _parameter_count(compiled.asm["ptx"]) - len(arguments)]
    record = LaunchRecord(
        kernel=launch.kernel,
        entry=meta.name,
        architecture=f"sm_{architecture}",
        dtype=dtype,
        arguments=arguments,
        hidden_arguments=hidden,
        constexprs=launch.constexprs,
        grid=launch.grid,
        num_warps=meta.num_warps,
        num_stages=launch.num_stages,
        shared_bytes=meta.shared,
        cluster=getattr(meta, "cluster_dims", (meta.num_ctas, 1, 1)),
        scratch_bytes={name: getattr(meta, f"{name}_size") for name in hidden},
        scratch_alignment={name: getattr(meta, f"{name}_align") for name in hidden},
        fp_fusion=launch.fp_fusion,
        pdl=launch.pdl,
        triton=triton.__version__,
        cubin_sha256=hashlib.sha256(cubin).hexdigest(),
    )
    return CompiledKernel(cubin, record)


def _signature(kernel: Any, arguments: dict[str, str], launch: Launch) -> dict[str, str]:
    names = list(kernel.arg_names)
    own, fixed = names[: len(arguments)], names[len(arguments) :]
    complaint = f"{launch.kernel}: the launch rule and the kernel name different arguments"
    assert own == list(arguments), complaint
    assert set(fixed) == set(launch.constexprs), complaint
    return {name: arguments.get(name, "constexpr") for name in names}


def _parameter_count(ptx: str) -> int:
    """Parameters of the entry function: the driver's argument array must have as many."""
    head = re.search(r"\.entry[^(]*\(([^)]*)\)", ptx)
    assert head is not None, "PTX of a kernel has an entry function"
    return head[1].count(".param")
