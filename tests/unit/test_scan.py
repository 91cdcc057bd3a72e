"""The content scan: every NaN and Inf is found, every byte is hashed, memory stays flat."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.raw_checkpoints import TINY, tensors_of, write_checkpoint, write_config, write_sparse

from nemotron_export.checkpoint import Checkpoint, CheckpointError, scan
from nemotron_export.checkpoint.nonfinite import NonFiniteCounter

NAN = {"BF16": b"\xc0\x7f", "F16": b"\x01\xfc", "F32": b"\x00\x00\xc0\x7f"}
INF = {"BF16": b"\x80\xff", "F16": b"\x00\x7c", "F32": b"\x00\x00\x80\x7f"}
SIZE = {"BF16": 2, "F16": 2, "F32": 4}


def plant(checkpoint: Checkpoint, name: str, values: dict[int, bytes]) -> None:
    """Overwrites elements of a tensor in its file by flat index."""
    entry = checkpoint.tensors[name]
    with open(checkpoint.directory / entry.file, "r+b") as file:
        for index, value in values.items():
            file.seek(entry.offset + index * len(value))
            file.write(value)


def misalign(folder: Path, by: int) -> None:
    """Moves the data of model.safetensors by a few bytes, as headers of other writers do: spaces end the header."""
    data = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    moved = (length + by).to_bytes(8, "little") + data[8 : 8 + length] + b" " * by + data[8 + length :]
    (folder / "model.safetensors").write_bytes(moved)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [64, 1000, 16 << 20])
def test_hashes_of_every_chunk_of_every_file(tmp_path: Path, shards: int, chunk_bytes: int) -> None:
    write_checkpoint(tmp_path, shards=shards)
    checkpoint = Checkpoint.open(tmp_path)
    told: list[tuple[int, int]] = []
    report = scan(checkpoint, chunk_bytes=chunk_bytes, progress=lambda done, total: told.append((done, total)))
    total = sum(shard.size for shard in checkpoint.shards)
    for shard in checkpoint.shards:
        data = shard.path.read_bytes()
        parts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
        assert report.chunks[shard.path.name] == [hashlib.sha256(part).hexdigest() for part in parts]
    assert (report.bytes, report.chunk_bytes, report.algorithm) == (total, chunk_bytes, "sha256")
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("by", [0, 1, 3])
@pytest.mark.parametrize("chunk_bytes", [7, 64, 16 << 20])
def test_non_finite_values_are_named_wherever_they_lie(tmp_path: Path, dtype: str, by: int, chunk_bytes: int) -> None:
    # Chunks of 7 bytes and headers of odd length: elements straddle boundaries.
    write_checkpoint(tmp_path, {**TINY, "num_hidden_layers": 1, "vocab_size": 9}, dtype=dtype)
    misalign(tmp_path, by)
    checkpoint = Checkpoint.open(tmp_path)
    last = checkpoint.tensors["lm_head.weight"].num_elements - 1
    plant(checkpoint, "model.layers.0.mlp.up_proj.weight", {5: NAN[dtype], 700: INF[dtype], 701: NAN[dtype]})
    plant(checkpoint, "lm_head.weight", {last: INF[dtype]})
    with pytest.raises(CheckpointError) as caught:
        scan(checkpoint, chunk_bytes=chunk_bytes)
    assert "in 2 tensors" in caught.value.found
    assert "'model.layers.0.mlp.up_proj.weight' (3 of 768, the first at flat index 5)" in caught.value.found
    assert f"'lm_head.weight' (1 of {last + 1}, the first at flat index {last})" in caught.value.found
    assert str(caught.value.where).endswith("model.safetensors")


def test_the_largest_finite_values_pass(tmp_path: Path) -> None:
    tensors = tensors_of(TINY, dtype="F16")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = ("F16", (32, 24), np.full(768, -65504, "<f2").tobytes())
    write_checkpoint(tmp_path, TINY, tensors)
    assert scan(Checkpoint.open(tmp_path)).bytes == os.path.getsize(tmp_path / "model.safetensors")


def test_tensors_that_are_not_required_are_not_judged(tmp_path: Path) -> None:
    # The backbone alone is wanted: a broken head does not matter.
    write_checkpoint(tmp_path)
    plant(Checkpoint.open(tmp_path), "lm_head.weight", {0: NAN["BF16"]})
    assert scan(Checkpoint.open(tmp_path, task="feature-extraction")).bytes > 0
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        scan(Checkpoint.open(tmp_path))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(["BF16", "F16", "F32"]))
def test_bit_test_agrees_with_numpy(data: st.DataObject, dtype: str) -> None:
    raw = data.draw(st.binary(max_size=4000))
    raw = raw[: len(raw) // SIZE[dtype] * SIZE[dtype]]
    if dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    else:
        values = np.frombuffer(raw, "<f2" if dtype == "F16" else "<f4")
    bad = ~np.isfinite(values)
    first = int(bad.argmax()) if bad.any() else -1
    assert NonFiniteCounter().count(memoryview(raw), dtype) == (int(bad.sum()), first)


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    size = os.path.getsize(tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", size - 10)
    with pytest.raises(CheckpointError, match=f"found {size - 10} bytes; expected {size}, as when"):
        scan(checkpoint)


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        scan(checkpoint)


def test_a_chunk_size_must_be_positive(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="chunks of 0 bytes"):
        scan(Checkpoint.open(tmp_path), chunk_bytes=0)


_PEAK = """
import sys
from nemotron_export.checkpoint import Checkpoint, scan

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) << 10

assert "torch" not in sys.modules
checkpoint = Checkpoint.open(sys.argv[1])
before = peak()
report = scan(checkpoint)
assert "torch" not in sys.modules
print(report.bytes, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_memory_is_flat_and_torch_is_not_needed(tmp_path: Path) -> None:
    config = {**TINY, "vocab_size": 64000, "hidden_size": 1024, "intermediate_size": 4096}
    write_config(tmp_path, config)
    num_bytes = write_sparse(tmp_path, config, shard_bytes=200_000_000)
    ran = subprocess.run([sys.executable, "-c", _PEAK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    scanned, grown = map(int, ran.stdout.split())
    assert scanned > num_bytes > 250_000_000
    assert grown < 100_000_000
