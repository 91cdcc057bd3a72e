"""Tensors out of safetensors files, read through one small buffer: no file's pages count as the process's own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Self

import torch
from nemotron_errors import CheckpointError
from nemotron_formats.tensors import TensorEntry

__all__ = ["READ_BYTES", "TensorReader"]

# Small enough for a processor's cache: the cast reads what the kernel has just copied.
READ_BYTES = 4 << 20


class TensorReader:
    """Reads a checkpoint's tensors, or parts of them, cast to the dtype that a model runs in.

    Every tensor is a copy, never a view of a file: BLAS results may depend on alignment, and safetensors' offsets
    have any. A context manager: it holds the files open.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, FileIO] = {}
        self._buffer = torch.empty(READ_BYTES, dtype=torch.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def tensor(self, entry: TensorEntry, dtype: torch.dtype, device: str | torch.device = "cpu") -> torch.Tensor:
        """The whole tensor; raises as :meth:`into`."""
        out = torch.empty(entry.shape, dtype=dtype, device=device)
        self.into(entry, out)
        return out

    def into(self, entry: TensorEntry, out: torch.Tensor, first_row: int = 0) -> None:
        """Fills a contiguous tensor with the entry's rows from `first_row` on, cast to its dtype.

        Raises:
            CheckpointError: a file that is shorter than when the checkpoint was opened, or values that float16, where
                the tensor has that dtype, cannot hold.
        """
        assert out.is_contiguous()
        start = first_row * math.prod(entry.shape[1:])
        flat = out.view(-1)
        narrowing = out.dtype == torch.float16 and entry.dtype != "F16"
        done = 0
        for part in self._parts(entry, start, flat.numel()):
            target = flat[done : done + len(part)]
            target.copy_(part)
            if narrowing and not bool(torch.isfinite(target).all()):
                raise self._past_float16(entry)
            done += len(part)

    def rows(self, entry: TensorEntry, rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Chosen rows [n, …] of a tensor, in the order asked for; each is read once. Raises as :meth:`into`."""
        unique, where = torch.unique(rows, return_inverse=True)
        found = torch.empty((len(unique), *entry.shape[1:]), dtype=dtype)
        for index, row in enumerate(unique.tolist()):
            self.into(entry, found[index : index + 1], row)
        return found[where]

    def _parts(self, entry: TensorEntry, start: int, count: int) -> Iterator[torch.Tensor]:
        """`count` elements from element `start` on, as stored; each part is valid until the next one."""
        stored: torch.dtype = getattr(torch, entry.dtype_name)
        assert (start + count) * stored.itemsize <= entry.length
        file = self._open(entry)
        file.seek(entry.offset + start * stored.itemsize)
        view = memoryview(self._buffer.numpy())  # type: ignore[arg-type]
        left = count * stored.itemsize
        while left:
            wanted = min(left, READ_BYTES)
            got = 0
            while got < wanted:
                read = file.readinto(view[got:wanted])
                if not read:
                    raise self._short(entry, entry.offset + entry.length - left + got)
                got += read
            yield self._buffer[:wanted].view(stored)
            left -= wanted

    def _open(self, entry: TensorEntry) -> FileIO:
        file = self._files.get(entry.file)
        if file is None:
            try:
                file = self._files[entry.file] = FileIO(self._directory / entry.file)
            except OSError as error:
                found, remedy = str(error.strerror or error), "put the file back, and open the checkpoint again"
                where = f"{entry.file}: {entry.name}"
                raise CheckpointError(found, "the file that the checkpoint had", remedy, where=where) from error
        size = os.fstat(file.fileno()).st_size
        if size < entry.offset + entry.length:
            raise self._short(entry, size)
        return file

    def _short(self, entry: TensorEntry, size: int) -> CheckpointError:
        return CheckpointError(
            f"{size} bytes",
            f"at least {entry.offset + entry.length}, as when the checkpoint was opened",
            "leave the files alone while they are read, and open the checkpoint again",
            where=f"{entry.file}: {entry.name}",
        )

    def _past_float16(self, entry: TensorEntry) -> CheckpointError:
        largest = max(part.abs().max().item() for part in self._parts(entry, 0, math.prod(entry.shape)))
        return CheckpointError(
            f"values up to {largest:.4g} in {entry.dtype}",
            "values that float16 holds (up to 65504)",
            "run in bfloat16 or float32",
            where=f"{entry.file}: {entry.name}",
        )
