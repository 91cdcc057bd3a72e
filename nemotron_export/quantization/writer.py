"""Writes the quantized weights: blocks of rows, one after the other, so that memory does not grow with the tensors."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from nemotron_errors import ResourceError
from nemotron_runtime.bundle.records import WeightsFile

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.file_layout import write_array
from nemotron_export.checkpoint.scan import ALGORITHM, CHUNK_BYTES
from nemotron_export.checkpoint.tensor_reader import TensorReader
from nemotron_export.quantization.layout import QUANTIZED_FILE, QuantizedLayout, QuantizedTensor

__all__ = ["write_quantized"]

# a megabyte of float32: what is computed of it stays in a processor's cache
_BLOCK_VALUES = 256 << 10
_WORKERS = min(4, os.cpu_count() or 1)
_Block = tuple[QuantizedTensor, int, int]


def write_quantized(
    checkpoint: Checkpoint,
    layout: QuantizedLayout,
    bundle: Path,
    on_values: Callable[[int, int], None] = lambda done, total: None,
    *,
    block_values: int = _BLOCK_VALUES,
) -> WeightsFile:
    """Quantizes the layout's tensors into the bundle's file; the result does not depend on the blocks.

    Up to four threads each read, round and write a block of rows (numpy releases the GIL), then hash a chunk each.

    Args:
        on_values: told (weights rounded, weights in all).
        block_values: weights of a block; at least one row.

    Returns:
        What identifies the file.

    Raises:
        CheckpointError: files that changed since the checkpoint was opened.
        ResourceError: the disk fills up.
    """
    path = bundle / QUANTIZED_FILE
    path.parent.mkdir(exist_ok=True)
    try:
        with open(path, "w+b") as file:
            file.write(layout.header)
            file.truncate(layout.size)
            file.flush()
            _quantize(checkpoint, layout, file.fileno(), on_values, block_values)
            os.fsync(file.fileno())
    except OSError as error:
        remedy = "free some space, or choose another --output"
        found = f"writing stopped ({error.strerror})"
        raise ResourceError(found, f"{layout.size / 1e9:.2f} GB of room", remedy, where=str(path)) from None
    header_sha256 = hashlib.sha256(layout.header).hexdigest()
    return WeightsFile(QUANTIZED_FILE, layout.size, header_sha256, _chunk_digests(path, layout.size))


def _quantize(
    checkpoint: Checkpoint, layout: QuantizedLayout, file: int, on_values: Callable[[int, int], None], values: int
) -> None:
    local = threading.local()
    readers: list[TensorReader] = []

    def work(block: _Block) -> int:
        if not hasattr(local, "reader"):
            local.reader = TensorReader(checkpoint.directory)
            readers.append(local.reader)
        tensor, first, rows = block
        weight_RI = torch.empty((rows, tensor.source.shape[1]))
        local.reader.into(tensor.source, weight_RI, first)
        for name, part in layout.format.encode(weight_RI.numpy()).items():
            entry = tensor.operands[name]
            row_bytes = entry.length // entry.shape[0]
            write_array(file, part, entry.offset + first * row_bytes)
        return weight_RI.numel()

    total, done = sum(tensor.source.num_elements for tensor in layout.tensors), 0
    blocks = _blocks(layout, values)
    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="quantize") as pool:
        try:
            # a few at a time: a large model has millions of blocks
            while batch := list(islice(blocks, 64)):
                for count in pool.map(work, batch):
                    done += count
                on_values(done, total)
        finally:
            pool.shutdown(cancel_futures=True)
            for reader in readers:
                reader.__exit__()


def _blocks(layout: QuantizedLayout, values: int) -> Iterator[_Block]:
    for tensor in layout.tensors:
        rows, features = tensor.source.shape
        step = max(1, values // features)
        for first in range(0, rows, step):
            yield tensor, first, min(step, rows - first)


def _chunk_digests(path: Path, size: int) -> tuple[str, ...]:
    def digest(start: int) -> str:
        with open(path, "rb") as file:
            file.seek(start)
            return hashlib.new(ALGORITHM, file.read(CHUNK_BYTES), usedforsecurity=False).hexdigest()

    with ThreadPoolExecutor(_WORKERS, thread_name_prefix="hash") as pool:
        return tuple(pool.map(digest, range(0, size, CHUNK_BYTES)))
