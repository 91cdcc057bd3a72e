"""Kernels of a model, compiled, kept in a folder and read back."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from nemotron_errors import BundleError, GraphError
from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.launches.linear import row_bucket
from nemotron_plugins.library import KernelLibrary, build_library
from support.kernel_specs import MINITRON_4B, TINY


@pytest.fixture(scope="module")
def library() -> KernelLibrary:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    return build_library(TINY, [90])[90]


def test_a_model_has_every_kernel_of_its_steps() -> None:
    launches = MINITRON_4B.launches(90)
    assert {key.rsplit(".r", 1)[0] for key in launches} == {
        "packed_rotary_kv_cache_update",
        "packed_rotary_kv_cache_update_prefill",
        "rotary_cached_attention_decode",
        "cached_attention_decode",
        "cached_attention_combine",
        "cached_attention_prefill",
        "layernorm_rows",
        "layernorm_linear.qkv",
        "layernorm_linear.up",
        "layernorm_linear.head",
        "linear_residual.o",
        "linear_residual.down",
        "argmax",
        "argmax_combine",
        "candidates",
        "candidates_merge",
    }
    assert {f"layernorm_linear.head.r{rows}" for rows in (1, 2, 4, 8)} < set(launches)
    shapes = {
        key: (launch.constexprs.get("OUTPUTS"), launch.constexprs.get("INPUTS")) for key, launch in launches.items()
    }
    assert shapes["layernorm_linear.qkv.r1"] == (5120, 3072)
    assert shapes["layernorm_linear.up.r4"] == (9216, 3072)
    assert shapes["linear_residual.o.r1"] == (3072, 3072)
    assert shapes["linear_residual.down.r8"] == (3072, 9216)
    assert launches["layernorm_linear.up.r1"].constexprs["RELU_SQUARED"] is True
    assert dict(launches["layernorm_linear.head.r1"].arguments)["out_ptr"] == "*fp32"
    assert all(launch.pdl for launch in launches.values())
    assert not any(launch.pdl for launch in MINITRON_4B.launches(80).values())


def test_what_is_asked_of_the_l2_cache_ends_with_the_row_and_is_aligned() -> None:
    odd = dataclasses.replace(MINITRON_4B, hidden=1100, head_dim=40, intermediate=1032, outputs=70)
    wanted = {}
    for spec in (MINITRON_4B, TINY, odd):
        for key, launch in spec.launches(90).items():
            if "linear" not in key:
                continue
            inputs, tile, count = (launch.constexprs[name] for name in ("INPUTS", "BLOCK_IN", "PREFETCH"))
            assert count == 0 or tile + count <= inputs
            assert inputs * 2 % 16 == count * 2 % 16 == 0 or count == 0
            wanted[spec.hidden, key] = count
    assert wanted[3072, "linear_residual.o.r1"] == wanted[3072, "layernorm_linear.up.r8"] == 512
    # a row with a norm reads ahead by itself
    assert wanted[3072, "layernorm_linear.up.r1"] == 0
    # 2,200 bytes a row are no multiple of 16; 2,064 are, of which the first tile leaves 16
    assert wanted[1100, "layernorm_linear.up.r8"] == 0
    assert wanted[1100, "linear_residual.down.r1"] == 8
    # before sm_90 there is neither the request nor a kernel that waits
    assert not any(launch.constexprs.get("PREFETCH") for launch in MINITRON_4B.launches(89).values())


def test_a_model_without_a_head_has_no_kernels_for_one() -> None:
    keys = dataclasses.replace(MINITRON_4B, outputs=0, max_batch=3).launches(90)
    assert not [key for key in keys if "head" in key or "argmax" in key or "candidates" in key]
    assert "linear_residual.o.r4" in keys
    assert "linear_residual.o.r8" not in keys


def test_rows_and_their_buckets() -> None:
    assert [row_bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 64)] == [1, 2, 4, 4, 8, 8, 8, 8]
    launch = MINITRON_4B.launches(90)["linear_residual.o.r8"]
    assert launch.grid_of(B=8, S=1)[1] == 1
    assert launch.grid_of(B=9, S=1)[1] == 2


def test_a_library_is_kept_and_read_back(library: KernelLibrary, tmp_path: Path) -> None:
    assert set(library) == set(TINY.launches(90))
    assert library["layernorm_linear.qkv.r1"].record.constexprs["HAS_BIAS"] is True
    assert library["layernorm_linear.up.r1"].record.constexprs["HAS_BIAS"] is False
    files = library.save(tmp_path)
    assert {path.parent for path in files} == {tmp_path / "sm_90"}
    assert len(files) == 2 * len(library)
    assert KernelLibrary.load(tmp_path, "sm_90") == library


def test_what_is_not_the_library_s_is_refused(library: KernelLibrary, tmp_path: Path) -> None:
    small = KernelLibrary("sm_90", {"argmax": library["argmax"]})
    small.save(tmp_path)
    with pytest.raises(BundleError, match="kernels for sm_80"):
        KernelLibrary.load(tmp_path, "sm_80")
    cubin = tmp_path / "sm_90" / "argmax.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match="SHA-256"):
        KernelLibrary.load(tmp_path, "sm_90")
    cubin.unlink()
    with pytest.raises(BundleError, match="SHA-256"):
        KernelLibrary.load(tmp_path, "sm_90")
    other = dataclasses.replace(library["argmax"].record, architecture="sm_80")
    KernelLibrary("sm_90", {"argmax": CompiledKernel(library["argmax"].cubin, other)}).save(tmp_path)
    with pytest.raises(BundleError, match="sm_80"):
        KernelLibrary.load(tmp_path, "sm_90")


def test_an_architecture_without_kernels_is_refused() -> None:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    with pytest.raises(GraphError, match="sm_75"):
        build_library(TINY, [75])


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
