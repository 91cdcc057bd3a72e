"""Reads pieces of the weights files into the caller's memory and hashes their chunks on the way, by threads.

Nothing is mapped: what is read takes no more memory than the caller gives.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nemotron_errors import BundleError
from nemotron_formats.tensors import FileSpan

from nemotron_runtime.bundle.folder import Bundle, PlacedWeights
from nemotron_runtime.bundle.weights import changed_chunk, check_digests

__all__ = ["Chunk", "Piece", "PieceReader", "plan_pieces"]

_REMEDY = "restore the file, or name the right folder with --weights-dir"


@dataclass(frozen=True)
class Chunk:
    """Bytes ``start`` to ``end`` of a file, whose digest the manifest has."""

    number: int
    start: int
    end: int
    digest: str


@dataclass(frozen=True)
class Piece:
    """Bytes ``start`` to ``end`` of a file, read at once; of ``chunk`` where the file has digests."""

    file: str
    start: int
    end: int
    chunk: Chunk | None = None

    @property
    def length(self) -> int:
        """Its bytes."""
        return self.end - self.start


def plan_pieces(bundle: Bundle, parts: Iterable[FileSpan], most: int) -> list[Piece]:
    """What is read for these parts: every chunk that one of them touches, whole and once, and nothing else.

    Files that the build did not scan have no digests: of those the parts alone are read.

    Args:
        most: bytes of a piece, at most.

    Returns:
        The pieces in the order of the files' names and bytes.
    """
    wanted = list(parts)
    pieces = []
    for placed in sorted(bundle.placed_weights(), key=lambda placed: placed.record.name):
        name = placed.record.name
        needed = sorted((part.offset, part.offset + part.length) for part in wanted if part.file == name)
        for start, end, chunk in _spans(bundle, placed, needed):
            pieces += [Piece(name, at, min(at + most, end), chunk) for at in range(start, end, most)]
    return pieces


def _spans(
    bundle: Bundle, placed: PlacedWeights, needed: list[tuple[int, int]]
) -> Iterator[tuple[int, int, Chunk | None]]:
    if placed.record.chunks is not None:
        size = bundle.manifest.weights.chunk_bytes
        for number in sorted({n for first, last in needed for n in range(first // size, (last - 1) // size + 1)}):
            start, end = number * size, min((number + 1) * size, placed.record.size)
            yield start, end, Chunk(number, start, end, placed.record.chunks[number])
        return
    start = end = 0
    for first, last in needed:
        if first > end:
            if start < end:
                yield start, end, None
            start = first
        end = max(end, last)
    if start < end:
        yield start, end, None


class PieceReader:
    """Threads that read; as a context manager it ends them, and closes the files.

    Args:
        pieces: what will be read, which names the files that are opened.
        threads: how many pieces are read at once.

    Raises:
        BundleError: a file that cannot be opened or has another size, or digests that this Python cannot make.
    """

    def __init__(self, bundle: Bundle, pieces: Iterable[Piece], threads: int) -> None:
        self._bundle = bundle
        self._before: Future[None] | None = None
        self._hash: Any = None
        self._files: dict[str, tuple[int, PlacedWeights]] = {}
        check_digests(bundle)
        names = {piece.file for piece in pieces}
        with ExitStack() as held:
            for placed in bundle.placed_weights():
                if placed.record.name in names:
                    descriptor = _open(placed)
                    held.callback(os.close, descriptor)
                    self._files[placed.record.name] = (descriptor, placed)
            self._pool = ThreadPoolExecutor(threads, "weights")
            # first to go: the threads use the files
            held.callback(self._pool.shutdown, cancel_futures=True)
            self._held = held.pop_all()

    def read(self, piece: Piece, target: memoryview) -> Future[None]:
        """Starts to fill ``target``, of the piece's length; pieces of a chunk come one behind another.

        The future's result is None once the bytes are there and hashed, a chunk's digest being right with its last
        piece; else it is a BundleError: a chunk that changed, or a file that cannot be read or became shorter.
        """
        assert len(target) == piece.length
        chunk = piece.chunk
        if chunk is None:
            return self._pool.submit(self._read, piece, target, None, None)
        if piece.start == chunk.start:
            self._hash = hashlib.new(self._bundle.manifest.weights.algorithm, usedforsecurity=False)
            self._before = None
        assert self._hash is not None
        self._before = self._pool.submit(self._read, piece, target, self._hash, self._before)
        return self._before

    def _read(self, piece: Piece, target: memoryview, state: Any, before: Future[None] | None) -> None:
        descriptor, placed = self._files[piece.file]
        _fill(descriptor, placed.path, piece.start, target)
        if piece.chunk is None:
            return
        if before is not None:
            # given to the threads earlier, so it is done or in another one's hands
            before.result()
        state.update(target)
        if piece.end == piece.chunk.end and state.hexdigest() != piece.chunk.digest:
            chunk = piece.chunk
            raise changed_chunk(self._bundle, placed, chunk.number, chunk.start, chunk.end, state.hexdigest())

    def close(self) -> None:
        """Drops what no thread has begun, waits for the others and closes the files; twice is allowed."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open(placed: PlacedWeights) -> int:
    try:
        descriptor = os.open(placed.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise BundleError(
            f"a file that cannot be opened ({error})", "weights", _REMEDY, where=str(placed.path)
        ) from error
    size = os.fstat(descriptor).st_size
    if size != placed.record.size:
        os.close(descriptor)
        raise BundleError(f"{size} bytes", f"{placed.record.size} bytes", _REMEDY, where=str(placed.path))
    return descriptor


def _fill(descriptor: int, path: Path, start: int, target: memoryview) -> None:
    at = 0
    while at < len(target):
        try:
            count = os.preadv(descriptor, [target[at:]], start + at)
        except OSError as error:
            raise BundleError(f"a file that cannot be read ({error})", "weights", _REMEDY, where=str(path)) from error
        if count == 0:
            found = f"a file that ends at byte {start + at}, and did not when it was opened"
            raise BundleError(found, f"{start + len(target)} bytes at least", _REMEDY, where=str(path))
        at += count
