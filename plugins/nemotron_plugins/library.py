"""The kernels of one model on one architecture: what a TensorRT build compiles and a bundle keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron_errors import BundleError

from nemotron_plugins.compiling.pool import CompileJob, compile_in_processes, worker_count
from nemotron_plugins.launches.launch import CompiledKernel, LaunchRecord

if TYPE_CHECKING:
    from nemotron_plugins.kernel_spec import KernelSpec

__all__ = ["SESSION_KERNELS", "KernelLibrary", "build_library"]

# what a session launches beside its engines, whatever those consist of
SESSION_KERNELS = ("argmax", "argmax_combine", "candidates", "candidates_merge")


@dataclass(frozen=True)
class KernelLibrary(Mapping[str, CompiledKernel]):
    """Kernels by key, for one architecture.

    The keys, R being a bucket of rows (see :func:`nemotron_plugins.launches.linear.row_bucket`):
        - ``packed_rotary_kv_cache_update`` for decoding, ``packed_rotary_kv_cache_update_prefill`` for many tokens;
          the packed tensor is the argument of ``q_ptr``, ``k_ptr`` and ``v_ptr`` alike;
        - ``rotary_cached_attention_decode.rR`` and ``cached_attention_decode.rR`` for one token per row, with and
          without the rotation and update in front, and, where their constexpr ``SPLITS`` passes 1,
          ``cached_attention_combine.rR`` behind them; ``cached_attention_prefill`` for any number of tokens;
        - ``layernorm_linear.NAME.rR`` with the names ``qkv``, ``up`` (with relu²) and ``head`` (giving float32), and
          ``linear_residual.NAME.rR`` with the names ``o`` and ``down``: NAME is the attribute ``kernel`` of the node;
          ``layernorm_rows`` for any number of rows goes in front of a ``layernorm_linear`` whose constexpr ``HAS_NORM``
          is false;
        - ``argmax`` and, behind it, ``argmax_combine``;
        - ``candidates`` and, behind it, launches of ``candidates_merge``: see
          :func:`nemotron_plugins.launches.candidates.tournament`.
    """

    architecture: str
    kernels: Mapping[str, CompiledKernel]

    def __getitem__(self, key: str) -> CompiledKernel:
        return self.kernels[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kernels)

    def __len__(self) -> int:
        return len(self.kernels)

    def save(self, folder: Path) -> tuple[Path, ...]:
        """Writes ``<architecture>/<key>.cubin`` and ``.json`` for each kernel below ``folder``; returns the files."""
        place = folder / self.architecture
        place.mkdir(parents=True, exist_ok=True)
        written = []
        for key, kernel in self.kernels.items():
            cubin, record = place / f"{key}.cubin", place / f"{key}.json"
            cubin.write_bytes(kernel.cubin)
            record.write_text(kernel.record.to_json() + "\n", encoding="utf-8")
            written += [cubin, record]
        return tuple(written)

    @classmethod
    def load(cls, folder: Path, architecture: str) -> KernelLibrary:
        """Reads what :meth:`save` wrote.

        Raises:
            BundleError: no kernels for ``architecture``, a kernel for another, a missing file, or a cubin that is not
                its record's.
        """
        place = folder / architecture
        remedy = "build the bundle again on the GPU that shall run it"
        records = sorted(place.glob("*.json")) if place.is_dir() else []
        if not records:
            held = sorted({path.parent.name for path in folder.glob("*/*.json")})
            found = f"kernels for {', '.join(held)}" if held else "no kernels"
            raise BundleError(found, f"kernels for {architecture}", remedy, where=str(folder))
        kernels = {}
        for path in records:
            record = LaunchRecord.from_json(path.read_text(encoding="utf-8"), where=str(path))
            cubin_path = path.with_suffix(".cubin")
            cubin = cubin_path.read_bytes() if cubin_path.is_file() else b""
            found = hashlib.sha256(cubin).hexdigest()
            if found != record.cubin_sha256:
                expected = f"SHA-256 {record.cubin_sha256}, as its record says"
                raise BundleError(f"SHA-256 {found}", expected, remedy, where=str(cubin_path))
            if record.architecture != architecture:
                raise BundleError(f"a kernel for {record.architecture}", architecture, remedy, where=str(path))
            kernels[path.stem] = CompiledKernel(cubin, record)
        return cls(architecture, kernels)


def build_library(
    spec: KernelSpec,
    architectures: Sequence[int],
    on_done: Callable[[int, int], None] = lambda done, total: None,
    *,
    keys: Collection[str] | None = None,
) -> dict[int, KernelLibrary]:
    """Compiles the kernels of a model, for each architecture (90, …). Needs Triton, and no GPU.

    All kernels are compiled in one set of processes, as many as this one may use CPUs; one alone in this process.

    Args:
        spec: the model.
        architectures: what it is compiled for.
        on_done: told (kernels compiled, kernels in all): at the start, and after each.
        keys: of the kernels that are wanted; all where None.

    Raises:
        GraphError: an architecture or dtype that kernels are not compiled for, or a compiler that crashed.
        ResourceError: a compiler was killed.
    """
    jobs = [
        CompileJob(key, launch, spec.dtype, architecture)
        for architecture in architectures
        for key, launch in spec.launches(architecture).items()
        if keys is None or key in keys
    ]
    on_done(0, len(jobs))
    workers = worker_count(len(jobs))
    if workers > 1:
        compiled = compile_in_processes(jobs, workers, lambda done: on_done(done, len(jobs)))
    else:
        compiled = _compile_here(jobs, on_done)
    pairs = list(zip(jobs, compiled, strict=True))
    return {
        architecture: KernelLibrary(
            f"sm_{architecture}", {job.key: kernel for job, kernel in pairs if job.architecture == architecture}
        )
        for architecture in architectures
    }


def _compile_here(jobs: Sequence[CompileJob], on_done: Callable[[int, int], None]) -> list[CompiledKernel]:
    from nemotron_plugins.compiling.compiler import compile_kernel

    compiled = []
    for job in jobs:
        compiled.append(compile_kernel(job.launch, dtype=job.dtype, architecture=job.architecture))
        on_done(len(compiled), len(jobs))
    return compiled
