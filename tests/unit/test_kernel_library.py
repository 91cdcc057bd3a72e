"""Kernels of a model, compiled, kept in a folder and read back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from nemotron_errors import BundleError, GraphError
from nemotron_plugins.build import build_library, launches_of
from nemotron_plugins.launches.launch import CompiledKernel, Gpu
from nemotron_plugins.library import KernelLibrary, kernel_key
from support.kernel_requests import H100, TINY

PART = kernel_key(TINY.requests["Argmax"], "argmax")


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    return build_library(TINY.requests.values(), [H100])[90]


def test_a_library_is_kept_and_read_back(library: KernelLibrary, tmp_path: Path) -> None:
    launches = {name: launches_of(request, H100) for name, request in TINY.requests.items()}
    assert set(library) == {kernel_key(TINY.requests[name], variant) for name in launches for variant in launches[name]}
    for name, request in TINY.requests.items():
        assert {variant: kernel.record.constexprs for variant, kernel in library.of(request).items()} == {
            variant: launch.constexprs for variant, launch in launches[name].items()
        }
    assert library.of(TINY.requests["qkv"])["r1"].record.constexprs["HAS_BIAS"] is True
    assert library.of(TINY.requests["up"])["r1"].record.constexprs["HAS_BIAS"] is False
    files = library.save(tmp_path)
    assert {path.parent for path in files} == {tmp_path / "sm_90"}
    assert len(files) == 2 * len(library)
    assert KernelLibrary.load(tmp_path, "sm_90") == library


def test_what_is_not_the_library_s_is_refused(library: KernelLibrary, tmp_path: Path) -> None:
    small = KernelLibrary("sm_90", {PART: library[PART]})
    small.save(tmp_path)
    with pytest.raises(BundleError, match="kernels for sm_80"):
        KernelLibrary.load(tmp_path, "sm_80")
    cubin = tmp_path / "sm_90" / f"{PART}.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="SHA-256"):
        KernelLibrary.load(tmp_path, "sm_90")
    cubin.unlink()
    with pytest.raises(BundleError, match="SHA-256"):
        KernelLibrary.load(tmp_path, "sm_90")
    other = dataclasses.replace(library[PART].record, architecture="sm_80")
    KernelLibrary("sm_90", {PART: CompiledKernel(library[PART].cubin, other)}).save(tmp_path)
    with pytest.raises(BundleError, match="sm_80"):
        KernelLibrary.load(tmp_path, "sm_90")


def test_an_architecture_without_kernels_is_refused() -> None:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    with pytest.raises(GraphError, match="sm_75"):
        build_library(TINY.requests.values(), [Gpu(75, 40)])


def test_reading_needs_no_triton(library: KernelLibrary, tmp_path: Path) -> None:
    library.save(tmp_path)
    code = f"""
import sys
sys.modules["triton"] = sys.modules["torch"] = None
from pathlib import Path
from nemotron_plugins.library import KernelLibrary
print(len(KernelLibrary.load(Path({str(tmp_path)!r}), "sm_90")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(library)
