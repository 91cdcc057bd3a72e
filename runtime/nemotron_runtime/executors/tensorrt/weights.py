"""One copy of the weights on the GPU: read into pinned buffers, hashed there and copied, all at the same time."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from nemotron_errors import BundleError
from nemotron_formats.dtypes import item_bytes
from nemotron_formats.tensors import FileSpan, WeightInput

from nemotron_runtime.bundle.engine_records import TensorRTRecord
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.weights_reading import Piece, PieceReader, plan_pieces
from nemotron_runtime.cuda import Device, DeviceBuffer

__all__ = ["DeviceWeights", "check_weights", "upload_weights"]

_log = logging.getLogger(__name__)

# of a pinned buffer, where chunks are not smaller: a thread reads and hashes a whole chunk of the usual size
_STAGING_BYTES = 16 << 20
# one core reads and hashes 1 to 1.5 GB/s, and the link to the GPU takes 25 to 50
_MAX_THREADS = 12
# buffers in addition to those that threads have: one read ahead, two that are copied from
_READ_AHEAD, _COPIED = 1, 2
# what TensorRT's kernels, and vector loads in general, may take for granted
_ALIGNMENT = 256


@dataclass(frozen=True)
class DeviceWeights:
    """The uploaded weights.

    Attributes:
        buffer: all of them; None where the engines hold them.
        addresses: of each weight, by the engines' name.
        uploaded: bytes; what two names share counts once.
        seconds: from the first byte to the last hash.
    """

    buffer: DeviceBuffer | None
    addresses: dict[str, int]
    uploaded: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Speed of the upload, hashing included; 0 where there was none."""
        return self.uploaded / self.seconds if self.seconds else 0.0

    def close(self) -> None:
        """Frees them; twice is allowed."""
        if self.buffer is not None:
            self.buffer.close()


def check_weights(bundle: Bundle, record: TensorRTRecord) -> None:
    """Refuses weights that are not what the engines read, before anything is allocated.

    Raises:
        BundleError: stored in another dtype than the bundle runs in, or bytes that do not make the tensor.
    """
    for weight in record.weights:
        where = f"{bundle.directory}: {weight.name}"
        if weight.dtype != bundle.manifest.dtype:
            remedy = (
                f"store the checkpoint in {bundle.manifest.dtype} with `nemotron-export convert`, and build from that"
            )
            raise BundleError(f"{weight.dtype} weights", f"{bundle.manifest.dtype} ones", remedy, where=where)
        expected = math.prod(weight.shape) * item_bytes(weight.dtype)
        found = sum(part.length for part in weight.parts)
        if found != expected:
            raise BundleError(f"{found} bytes", f"{expected} bytes", "build the bundle again", where=where)


def upload_weights(bundle: Bundle, record: TensorRTRecord, device: Device) -> DeviceWeights:
    """Allocates and fills one device buffer; the parts of a weight lie one after another.

    Of the files, the chunks that the weights touch are read and hashed, each once; nothing is returned before the last
    of them agrees. Where the engines hold the weights nothing is read.

    Raises:
        BundleError: a file that cannot be read or became shorter, or a chunk that changed.
        ResourceError: too little GPU memory, with the numbers.
    """
    if record.embedded:
        return DeviceWeights(None, {}, 0, 0.0)
    offsets, copies, size = _lay_out(record.weights)
    began = time.perf_counter()
    with ExitStack() as undo:
        buffer = undo.enter_context(device.allocate(size, "the weights"))
        _upload(device, buffer, bundle, copies)
        undo.pop_all()
    seconds = time.perf_counter() - began
    uploaded = sum(part.length for _, part in copies)
    done = DeviceWeights(buffer, {n: buffer.address + at for n, at in offsets.items()}, uploaded, seconds)
    _log.info("%.2f GB of weights in %.2f s: %.2f GB/s", uploaded / 1e9, seconds, done.bytes_per_second / 1e9)
    return done


def _lay_out(weights: Iterable[WeightInput]) -> tuple[dict[str, int], list[tuple[int, FileSpan]], int]:
    """Offset of each weight, (offset, part) in the files' order, and bytes in all; equal parts are shared."""
    offsets: dict[str, int] = {}
    known: dict[tuple[FileSpan, ...], int] = {}
    copies: list[tuple[int, FileSpan]] = []
    end = 0
    for weight in weights:
        if weight.parts in known:
            # lm_head tied to the embedding
            offsets[weight.name] = known[weight.parts]
            continue
        offsets[weight.name] = known[weight.parts] = end
        for part in weight.parts:
            copies.append((end, part))
            end += part.length
        end = -(-end // _ALIGNMENT) * _ALIGNMENT
    copies.sort(key=lambda copy: (copy[1].file, copy[1].offset))
    return offsets, copies, end


def _upload(device: Device, buffer: DeviceBuffer, bundle: Bundle, copies: list[tuple[int, FileSpan]]) -> None:
    pieces = plan_pieces(bundle, (part for _, part in copies), _STAGING_BYTES)
    by_file: dict[str, list[tuple[int, FileSpan]]] = defaultdict(list)
    for target, part in copies:
        by_file[part.file].append((target, part))
    size = max(piece.length for piece in pieces)
    threads = min(_MAX_THREADS, os.cpu_count() or 1, len(pieces))
    with ExitStack() as held:
        count = min(threads + _READ_AHEAD + _COPIED, len(pieces))
        staging = [held.enter_context(device.pinned(size)) for _ in range(count)]
        memory = [pinned.array(np.uint8, (size,)).data for pinned in staging]
        free = [device.event() for _ in staging]
        for event in free:
            held.callback(event.close)
        stream = device.stream()
        # it waits for the copies out of the staging buffers
        held.callback(stream.close)
        # first to close: no thread writes to the staging buffers any more
        reader = held.enter_context(PieceReader(bundle, pieces, threads))

        def finish(slot: int, piece: Piece, reading: Future[None]) -> None:
            reading.result()
            for target, at, length in _moves(piece, by_file[piece.file]):
                buffer.upload(staging[slot].address + at, length, stream, offset=target)
            free[slot].record(stream)

        reads: deque[tuple[int, Piece, Future[None]]] = deque()
        for number, piece in enumerate(pieces):
            if len(reads) == threads + _READ_AHEAD:
                finish(*reads.popleft())
            slot = number % len(staging)
            free[slot].wait()
            reads.append((slot, piece, reader.read(piece, memory[slot][: piece.length])))
        while reads:
            finish(*reads.popleft())
        stream.synchronize()


def _moves(piece: Piece, copies: Iterable[tuple[int, FileSpan]]) -> Iterator[tuple[int, int, int]]:
    """Sub-ranges of a piece to copy: offset on the device, offset in the piece, bytes."""
    for target, part in copies:
        first, last = max(piece.start, part.offset), min(piece.end, part.offset + part.length)
        if first < last:
            yield target + first - part.offset, first - piece.start, last - first
