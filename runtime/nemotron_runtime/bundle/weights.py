"""Maps the weights where they are and checks their chunks by threads."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError
from nemotron_formats.tensors import FileSpan

from nemotron_runtime.bundle.folder import Bundle, PlacedWeights

__all__ = ["changed_chunk", "check_digests", "checked_chunks", "map_weights", "packed_weights"]

_log = logging.getLogger(__name__)

_MAX_THREADS = 8


def map_weights(bundle: Bundle, *, verify_chunks: bool = True) -> dict[str, mmap.mmap]:
    """Maps every weights file read-only; nothing is copied.

    Args:
        verify_chunks: hash every chunk before returning.

    Returns:
        File name, as the manifest has it → mapping. They close with their last reference.

    Raises:
        BundleError: a file that cannot be mapped or a chunk that changed, naming file, chunk and bytes.
    """
    views = {placed.record.name: _map(placed.path) for placed in bundle.placed_weights()}
    if verify_chunks:
        with checked_chunks(bundle, views):
            pass
    return views


def packed_weights(bundle: Bundle, views: Mapping[str, mmap.mmap]) -> npt.NDArray[np.uint8]:
    """The graph's file ``packed``: pieces of the weights files, put together by threads as the manifest says."""
    parts = [part for weight in bundle.manifest.session.packed for part in weight]
    packed = np.empty(sum(part.length for part in parts), np.uint8)
    starts = itertools.accumulate((part.length for part in parts), initial=0)

    def copy(part: FileSpan, at: int) -> None:
        # numpy copies without the interpreter's lock
        packed[at : at + part.length] = np.frombuffer(views[part.file], np.uint8, part.length, part.offset)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "packing") as pool:
        # reading the results raises what a copy raised
        list(pool.map(copy, parts, starts))
    return packed


def check_digests(bundle: Bundle) -> None:
    """Looks at what the manifest has to check chunks with; where it has nothing, a warning says so.

    Raises:
        BundleError: digests of an algorithm that this Python has not.
    """
    weights = bundle.manifest.weights
    if any(file.chunks is None for file in weights.files):
        _log.warning("%s: built without a scan: only size and header of its weights can be checked", bundle.directory)
    if weights.algorithm not in hashlib.algorithms_available:
        raise BundleError(
            f"chunk digests by {weights.algorithm}",
            "an algorithm that this Python's hashlib has",
            "use another Python, or build the bundle again",
            where=str(bundle.directory),
        )


def changed_chunk(bundle: Bundle, placed: PlacedWeights, number: int, start: int, end: int, found: str) -> BundleError:
    """The error for a chunk, bytes ``start`` to ``end``, with another digest than the manifest's."""
    assert placed.record.chunks is not None
    return BundleError(
        f"{bundle.manifest.weights.algorithm} {found} for chunk {number} (bytes {start} to {end})",
        placed.record.chunks[number],
        "restore the file from where it came from, or build the bundle again",
        where=str(placed.path),
    )


@contextmanager
def checked_chunks(bundle: Bundle, views: Mapping[str, mmap.mmap]) -> Iterator[None]:
    """Hashes the chunks by threads while the body runs; leaving the body waits for the last of them.

    Where the build skipped the scan there are no digests: size and header are all that is known, and a warning says
    so. Of a quantized bundle's checkpoint only the chunks with tensors that the graph still reads are hashed: their
    place in it takes the quantized file, which is hashed whole.

    Raises:
        BundleError: a chunk that changed, naming file, chunk and bytes.
    """
    check_digests(bundle)
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1), "weights") as pool:
        checks = [
            pool.submit(_check_chunk, bundle, placed, views[placed.record.name], number, digest)
            for placed in bundle.placed_weights()
            for number, digest in _needed_chunks(bundle, placed, views[placed.record.name])
        ]
        try:
            yield
            for check in checks:
                check.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _needed_chunks(bundle: Bundle, placed: PlacedWeights, view: mmap.mmap) -> Iterator[tuple[int, str]]:
    """Number and digest of the chunks that loading reads."""
    quantization, size = bundle.manifest.quantization, bundle.manifest.weights.chunk_bytes
    chunks = placed.record.chunks or ()
    if quantization is None or placed.record is quantization.file:
        yield from enumerate(chunks)
        return
    unread = set(quantization.tensors) - set(quantization.skipped)
    # the header's hash was checked when the bundle was opened
    data = 8 + int.from_bytes(view[:8], "little")
    header = json.loads(view[8:data])
    spans = [e["data_offsets"] for name, e in header.items() if name != "__metadata__" and name not in unread]
    needed = {n for a, b in spans if a < b for n in range((data + a) // size, (data + b - 1) // size + 1)}
    yield from ((number, digest) for number, digest in enumerate(chunks) if number in needed)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        remedy = "restore the file, or name the right folder with --weights-dir"
        raise BundleError(f"a file that cannot be mapped ({error})", "weights", remedy, where=str(path)) from error


def _check_chunk(bundle: Bundle, placed: PlacedWeights, view: mmap.mmap, number: int, expected: str) -> None:
    weights = bundle.manifest.weights
    start = number * weights.chunk_bytes
    end = min(start + weights.chunk_bytes, len(view))
    with memoryview(view) as whole, whole[start:end] as chunk:
        found = hashlib.new(weights.algorithm, chunk, usedforsecurity=False).hexdigest()
    if found != expected:
        raise changed_chunk(bundle, placed, number, start, end, found)
