"""Compiled kernels for one architecture: what a build makes and a bundle keeps. Needs no Triton."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron_errors import BundleError

from nemotron_plugins.launches.launch import CompiledKernel, LaunchRecord
from nemotron_plugins.requests import KernelRequest

__all__ = ["KernelLibrary", "kernel_key"]

_REBUILD = "build the bundle again on the GPU that shall run it"


def kernel_key(request: KernelRequest, variant: str) -> str:
    """A kernel's key in a library, which is the name of its files."""
    return f"{request.key}.{variant}"


@dataclass(frozen=True)
class KernelLibrary(Mapping[str, CompiledKernel]):
    """Kernels by key, for one architecture; :meth:`of` gives those of a request."""

    architecture: str
    kernels: Mapping[str, CompiledKernel]

    def __getitem__(self, key: str) -> CompiledKernel:
        return self.kernels[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.kernels)

    def __len__(self) -> int:
        return len(self.kernels)

    def of(self, *requests: KernelRequest) -> dict[str, CompiledKernel]:
        """The kernels of requests by variant, the names that their ops' launch rules give; those that are here."""
        return {
            key[len(start) :]: kernel
            for start in (kernel_key(request, "") for request in requests)
            for key, kernel in self.kernels.items()
            if key.startswith(start)
        }

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
        records = sorted(place.glob("*.json")) if place.is_dir() else []
        if not records:
            held = sorted({path.parent.name for path in folder.glob("*/*.json")})
            found = f"kernels for {', '.join(held)}" if held else "no kernels"
            raise BundleError(found, f"kernels for {architecture}", _REBUILD, where=str(folder))
        kernels = {}
        for path in records:
            record = LaunchRecord.from_json(path.read_text(encoding="utf-8"), where=str(path))
            cubin_path = path.with_suffix(".cubin")
            cubin = cubin_path.read_bytes() if cubin_path.is_file() else b""
            found = hashlib.sha256(cubin).hexdigest()
            if found != record.cubin_sha256:
                expected = f"SHA-256 {record.cubin_sha256}, as its record says"
                raise BundleError(f"SHA-256 {found}", expected, _REBUILD, where=str(cubin_path))
            if record.architecture != architecture:
                raise BundleError(f"a kernel for {record.architecture}", architecture, _REBUILD, where=str(path))
            kernels[path.stem] = CompiledKernel(cubin, record)
        return cls(architecture, kernels)
