"""One copy of the weights on the GPU, taken from the mapped files through two pinned buffers while they are hashed."""

from __future__ import annotations

import logging
import math
import mmap
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from nemotron_errors import BundleError

from nemotron_runtime.bundle import Bundle
from nemotron_runtime.cuda import Device, DeviceBuffer
from nemotron_runtime.manifest import WeightPart
from nemotron_runtime.manifest_tensorrt import TensorRTRecord, TensorRTWeight
from nemotron_runtime.weights import checked_chunks, map_weights

__all__ = ["DeviceWeights", "check_weights", "upload_weights"]

_log = logging.getLogger(__name__)

_STAGING_BYTES = 64 << 20
# copies into one staging buffer at once: one core cannot keep up with the link to the GPU
_COPY_THREADS = 4
# what TensorRT's kernels, and vector loads in general, may take for granted
_ALIGNMENT = 256
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class DeviceWeights:
    """The uploaded weights.

    Attributes:
        buffer: all of them.
        addresses: of each weight, by the engines' name.
        uploaded: bytes; what two names share counts once.
        seconds: from the first byte to the last hash.
    """

    buffer: DeviceBuffer
    addresses: dict[str, int]
    uploaded: int
    seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Speed of the upload, hashing included."""
        return self.uploaded / self.seconds


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
        expected = math.prod(weight.shape) * _ITEM_BYTES[weight.dtype]
        found = sum(part.length for part in weight.parts)
        if found != expected:
            raise BundleError(f"{found} bytes", f"{expected} bytes", "build the bundle again", where=where)


def upload_weights(bundle: Bundle, record: TensorRTRecord, device: Device) -> DeviceWeights:
    """Allocates and fills one device buffer; a packed weight's parts lie one behind another.

    Chunks are hashed by threads meanwhile; nothing is returned before the last of them agrees.

    Raises:
        BundleError: a file that cannot be mapped, or a chunk that changed.
        ResourceError: too little GPU memory, with the numbers.
    """
    offsets, copies, size = _lay_out(record.weights)
    views = map_weights(bundle, verify_chunks=False)
    began = time.perf_counter()
    with ExitStack() as undo:
        buffer = undo.enter_context(device.allocate(size, "the weights"))
        with checked_chunks(bundle, views):
            _upload(device, buffer, views, copies)
        undo.pop_all()
    seconds = time.perf_counter() - began
    uploaded = sum(part.length for _, part in copies)
    done = DeviceWeights(buffer, {n: buffer.address + at for n, at in offsets.items()}, uploaded, seconds)
    _log.info("%.2f GB of weights in %.2f s: %.2f GB/s", uploaded / 1e9, seconds, done.bytes_per_second / 1e9)
    return done


def _lay_out(weights: Iterable[TensorRTWeight]) -> tuple[dict[str, int], list[tuple[int, WeightPart]], int]:
    """Offset of each weight, (offset, part) in the files' order, and bytes in all; equal parts are shared."""
    offsets: dict[str, int] = {}
    known: dict[tuple[WeightPart, ...], int] = {}
    copies: list[tuple[int, WeightPart]] = []
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


def _pieces(copies: Iterable[tuple[int, WeightPart]]) -> Iterator[tuple[int, WeightPart]]:
    """The copies cut into what one staging buffer holds."""
    for target, part in copies:
        for at in range(0, part.length, _STAGING_BYTES):
            length = min(_STAGING_BYTES, part.length - at)
            yield target + at, WeightPart(part.file, part.offset + at, length)


def _upload(
    device: Device, buffer: DeviceBuffer, views: Mapping[str, mmap.mmap], copies: list[tuple[int, WeightPart]]
) -> None:
    sources = {name: np.frombuffer(view, np.uint8) for name, view in views.items()}
    size = min(_STAGING_BYTES, max(part.length for _, part in copies))
    with ExitStack() as held:
        staging = [held.enter_context(device.pinned(size)) for _ in range(2)]
        arrays = [pinned.array(np.uint8, (size,)) for pinned in staging]
        free = [device.event() for _ in staging]
        for event in free:
            held.callback(event.close)
        stream = device.stream()
        # first to close: it waits for the copies out of the staging buffers
        held.callback(stream.close)
        pool = held.enter_context(ThreadPoolExecutor(_COPY_THREADS, "upload"))
        for number, (target, piece) in enumerate(_pieces(copies)):
            turn = number % 2
            free[turn].wait()
            _copy(pool, sources[piece.file][piece.offset : piece.offset + piece.length], arrays[turn])
            buffer.upload(staging[turn].address, piece.length, stream, offset=target)
            free[turn].record(stream)
        stream.synchronize()


def _copy(pool: ThreadPoolExecutor, source: np.ndarray, target: np.ndarray) -> None:
    parts = _COPY_THREADS if len(source) > 1 << 20 else 1
    pairs = zip(np.array_split(source, parts), np.array_split(target[: len(source)], parts), strict=True)
    list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))
