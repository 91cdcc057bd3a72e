"""Compiles the kernels that requests ask for. Needs Triton, and no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nemotron_errors import GraphError

from nemotron_plugins.compiling.pool import CompileJob, compile_in_processes, worker_count
from nemotron_plugins.launches.argmax import argmax_launches
from nemotron_plugins.launches.candidates import candidates_launches
from nemotron_plugins.launches.launch import CompiledKernel, Gpu, Launch
from nemotron_plugins.library import KernelLibrary, kernel_key
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.registry import PLUGIN_OPS

__all__ = ["build_library", "launches_of"]

# what an executor launches itself, on logits [B, V]
_ON_LOGITS = {"Argmax": argmax_launches, "TopCandidates": candidates_launches}


def launches_of(request: KernelRequest, gpu: Gpu) -> dict[str, Launch]:
    """The launches of a request by variant, chosen by the rule of its op.

    Raises:
        GraphError: no such op, or a request that is not as the op takes it.
    """
    if request.op in _ON_LOGITS:
        ((_, vocab),) = request.shapes
        assert vocab is not None
        return _ON_LOGITS[request.op](vocab, gpu)
    if request.op not in PLUGIN_OPS:
        known = ", ".join([*PLUGIN_OPS, *_ON_LOGITS])
        raise GraphError("no kernels", f"one of {known}", "add a kernel (CONTRIBUTING.md)", where=request.op)
    op = PLUGIN_OPS[request.op]
    op.check(request)
    return op.launches(request, gpu)


def build_library(
    requests: Iterable[KernelRequest],
    gpus: Sequence[Gpu],
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, KernelLibrary]:
    """Compiles the kernels of a set of requests for each GPU; returns the libraries by architecture (90, …).

    Equal launches are compiled once. All kernels are compiled in one set of processes, as many as this one may use
    CPUs; one alone in this process.

    Args:
        requests: what the nodes of the graphs, and the executor, ask for.
        gpus: what is compiled for, one of each architecture.
        on_done: told (kernels compiled, kernels in all): at the start, and after each.

    Raises:
        GraphError: a request, an architecture or a dtype that kernels are not compiled for, or a compiler that crashed.
        ResourceError: a compiler was killed.
    """
    jobs: dict[str, CompileJob] = {}
    # architecture → key → its job's name
    names: dict[int, dict[str, str]] = {gpu.architecture: {} for gpu in gpus}
    for gpu in gpus:
        for request in requests:
            for variant, launch in launches_of(request, gpu).items():
                key, name = kernel_key(request, variant), f"{launch} {request.dtype} {gpu.architecture}"
                jobs.setdefault(name, CompileJob(key, launch, request.dtype, gpu.architecture))
                names[gpu.architecture][key] = name
    compiled = dict(zip(jobs, _compile(list(jobs.values()), on_done), strict=True))
    return {
        architecture: KernelLibrary(f"sm_{architecture}", {key: compiled[name] for key, name in keys.items()})
        for architecture, keys in names.items()
    }


def _compile(jobs: Sequence[CompileJob], on_done: Callable[[int, int], None]) -> list[CompiledKernel]:
    on_done(0, len(jobs))
    workers = worker_count(len(jobs))
    if workers > 1:
        return compile_in_processes(jobs, workers, lambda done: on_done(done, len(jobs)))
    # the compiler imports Triton
    from nemotron_plugins.compiling.compiler import compile_kernel

    compiled = []
    for job in jobs:
        compiled.append(compile_kernel(job.launch, dtype=job.dtype, architecture=job.architecture))
        on_done(len(compiled), len(jobs))
    return compiled
