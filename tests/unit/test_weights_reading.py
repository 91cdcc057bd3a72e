"""Weights read by threads: which bytes, into what, and every way that a file can turn out wrong."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError
from nemotron_formats.tensors import FileSpan
from nemotron_runtime.bundle import weights_reading
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.weights_reading import Piece, PieceReader, plan_pieces
from nemotron_runtime.cuda import Device
from nemotron_runtime.executors.tensorrt import weights as tensorrt_weights
from nemotron_runtime.executors.tensorrt.weights import upload_weights
from support.tensorrt_fakes import install, make_tensorrt_bundle

# the last chunk is shorter
CHUNK, SHARD = 72, "model.safetensors"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(make_tensorrt_bundle(tmp_path, chunk_bytes=CHUNK))


def shard_of(bundle: Bundle) -> Path:
    return bundle.weights_directory / SHARD


def unscanned(bundle: Bundle) -> Bundle:
    files = tuple(replace(file, chunks=None) for file in bundle.manifest.weights.files)
    weights = replace(bundle.manifest.weights, files=files)
    return replace(bundle, manifest=replace(bundle.manifest, weights=weights))


def spans(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.start, piece.end) for piece in pieces]


def read(bundle: Bundle, pieces: list[Piece], threads: int = 3) -> bytes:
    """All pieces, one behind another."""
    targets = [bytearray(piece.length) for piece in pieces]
    with PieceReader(bundle, pieces, threads) as reader:
        waiting = [reader.read(piece, memoryview(target)) for piece, target in zip(pieces, targets, strict=True)]
        for each in waiting:
            each.result()
    return b"".join(targets)


def whole(bundle: Bundle, most: int = 1 << 20) -> list[Piece]:
    return plan_pieces(bundle, [FileSpan(SHARD, 0, shard_of(bundle).stat().st_size)], most)


def test_the_chunks_that_a_part_touches_are_read_once_and_whole(bundle: Bundle) -> None:
    places = ((2 * CHUNK + 2, 2), (3 * CHUNK - 2, 5), (2 * CHUNK, CHUNK), (5 * CHUNK, CHUNK))
    parts = [FileSpan(SHARD, *place) for place in places]
    pieces = plan_pieces(bundle, parts, 1 << 20)
    assert spans(pieces) == [(144, 216), (216, 288), (360, 432)]
    assert [piece.chunk.number for piece in pieces if piece.chunk] == [2, 3, 5]
    assert spans(plan_pieces(bundle, parts[:1], 40)) == [(144, 184), (184, 216)]
    size = shard_of(bundle).stat().st_size
    last = plan_pieces(bundle, [FileSpan(SHARD, size - 1, 1)], 1 << 20)
    assert spans(last) == [(size // CHUNK * CHUNK, size)]
    # without digests the parts alone, together where they touch
    plain = plan_pieces(unscanned(bundle), parts, 50)
    assert spans(plain) == [(144, 194), (194, 219), (360, 410), (410, 432)]
    assert {piece.chunk for piece in plain} == {None}


@pytest.mark.parametrize("most", [7, 26, CHUNK, 1 << 20])
@pytest.mark.parametrize("short", [False, True])
def test_every_byte_comes_whatever_the_pieces_and_reads(
    bundle: Bundle, most: int, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if short:
        real = os.preadv
        monkeypatch.setattr(weights_reading.os, "preadv", lambda fd, to, at: real(fd, [to[0][:5]], at))
    assert read(bundle, whole(bundle, most)) == shard_of(bundle).read_bytes()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def refuse(bundle: Bundle, pieces: list[Piece], match: str) -> BundleError:
    with pytest.raises(BundleError, match=match) as caught:
        read(bundle, pieces)
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
    assert caught.value.where == str(shard_of(bundle))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]
    return caught.value


@pytest.mark.parametrize("most", [10, 1 << 20])
def test_a_changed_chunk_is_named_by_number_and_bytes(bundle: Bundle, most: int) -> None:
    flip(shard_of(bundle), 3 * CHUNK + 1)
    error = refuse(bundle, whole(bundle, most), r"chunk 3 \(bytes 216 to 288\)")
    chunks = bundle.manifest.weights.files[0].chunks
    assert chunks is not None
    assert error.expected == chunks[3]


def test_a_file_that_is_gone_or_has_another_size_is_refused_at_once(bundle: Bundle) -> None:
    pieces, path = whole(bundle), shard_of(bundle)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    refuse(bundle, pieces, f"found {size - 1} bytes; expected {size} bytes")
    path.unlink()
    refuse(bundle, pieces, "cannot be opened")


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = shard_of(bundle), os.preadv

    def cut(descriptor: int, targets: list[memoryview], at: int) -> int:
        os.truncate(path, 100)
        return real(descriptor, targets, at)

    monkeypatch.setattr(weights_reading.os, "preadv", cut)
    refuse(bundle, whole(bundle)[1:2], "a file that ends at byte 100, and did not when it was opened")


def test_a_disk_that_fails_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, targets: list[memoryview], at: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(weights_reading.os, "preadv", fail)
    refuse(bundle, whole(bundle), "cannot be read .*Input/output error")


def test_a_file_that_is_replaced_stays_the_one_that_was_opened(bundle: Bundle, tmp_path: Path) -> None:
    pieces, path = whole(bundle), shard_of(bundle)
    expected = path.read_bytes()
    (tmp_path / "other").write_bytes(bytes(len(expected)))
    targets = [bytearray(piece.length) for piece in pieces]
    with PieceReader(bundle, pieces, 1) as reader:
        os.replace(tmp_path / "other", path)
        for piece, target in zip(pieces, targets, strict=True):
            reader.read(piece, memoryview(target)).result()
    assert b"".join(targets) == expected
    refuse(bundle, pieces, "for chunk 0")


def test_what_cannot_be_checked_is_said(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    open_ = unscanned(bundle)
    flip(shard_of(bundle), 3 * CHUNK + 1)
    with caplog.at_level(logging.WARNING):
        assert read(open_, whole(open_, 50)) == shard_of(bundle).read_bytes()
    assert "without a scan" in caplog.text
    object.__setattr__(bundle.manifest.weights, "algorithm", "crc0")
    with pytest.raises(BundleError, match="crc0"):
        read(bundle, whole(bundle))


class TestUpload:
    """The same on its way to the GPU."""

    @pytest.fixture
    def cuda(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        made = install(monkeypatch)[0]
        monkeypatch.setattr(tensorrt_weights.os, "cpu_count", lambda: 4)
        yield made
        assert made.leaks() == (0, 0, 0, 0)

    def record(self, bundle: Bundle, *names: str) -> Any:
        record = bundle.manifest.tensorrt
        assert record is not None
        return replace(record, weights=tuple(weight for weight in record.weights if weight.name in names))

    @pytest.mark.parametrize("staging", [26, 1 << 20])
    def test_what_no_weight_needs_is_not_read_and_nothing_is_mapped(
        self, cuda: Any, bundle: Bundle, staging: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = self.record(bundle, "model.layers.0.self_attn.qkv_proj.weight", "model.norm.weight")
        parts = [part for weight in record.weights for part in weight.parts]
        touched = {at // CHUNK for part in parts for at in range(part.offset, part.offset + part.length)}
        data = shard_of(bundle).read_bytes()
        other = next(n for n in range(-(-len(data) // CHUNK)) if n not in touched and n * CHUNK > len(data) // 3)
        flip(shard_of(bundle), other * CHUNK)
        times_read, real = np.zeros(len(data), np.int64), os.preadv

        def count(descriptor: int, targets: list[memoryview], at: int) -> int:
            got = real(descriptor, targets, at)
            times_read[at : at + got] += 1
            return got

        def refuse_to_map(*args: Any, **options: Any) -> Any:
            raise AssertionError("mapped pages count as this process's memory")

        monkeypatch.setattr(weights_reading.os, "preadv", count)
        monkeypatch.setattr(mmap, "mmap", refuse_to_map)
        monkeypatch.setattr(tensorrt_weights, "_STAGING_BYTES", staging)
        with Device() as device:
            uploaded = upload_weights(bundle, record, device)
            for weight in record.weights:
                expected = b"".join(data[part.offset : part.offset + part.length] for part in weight.parts)
                found = cuda.array(uploaded.addresses[weight.name], (len(expected),), np.uint8)
                assert found.tobytes() == expected, weight.name
            assert uploaded.uploaded == sum(part.length for part in parts)
            assert not cuda.pinned
            uploaded.buffer.close()
        expected_reads = np.repeat([number in touched for number in range(-(-len(data) // CHUNK))], CHUNK)[: len(data)]
        np.testing.assert_array_equal(times_read, expected_reads)

    def test_staging_does_not_grow_with_the_weights(
        self, cuda: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tensorrt_weights, "_STAGING_BYTES", 32)
        held, real = [], cuda.cuMemHostAlloc
        monkeypatch.setattr(cuda, "cuMemHostAlloc", lambda size, flags: held.append(size) or real(size, flags))
        record = bundle.manifest.tensorrt
        assert record is not None
        with Device() as device:
            upload_weights(bundle, record, device).buffer.close()
        assert held == [32] * 7, "four threads, one piece read ahead, two copied"

    def test_a_changed_chunk_leaves_nothing_on_the_gpu(
        self, cuda: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        record = self.record(bundle, "model.norm.weight")
        at = record.weights[0].parts[0].offset
        flip(shard_of(bundle), at)
        with Device() as device:
            with pytest.raises(BundleError, match=f"for chunk {at // CHUNK} "):
                upload_weights(bundle, record, device)
            assert cuda.leaks()[:3] == (0, 0, 0)
