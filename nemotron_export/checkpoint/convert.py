"""`convert`: a checkpoint in another dtype, written block by block."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from nemotron_errors import RequestError, ResourceError
from nemotron_formats.dtypes import DTYPES, RUN_DTYPES, item_bytes
from nemotron_formats.tensors import TensorEntry

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.file_layout import lay_out_file, write_array
from nemotron_export.checkpoint.index import INDEX_FILE
from nemotron_export.checkpoint.tensor_reader import READ_BYTES, TensorReader
from nemotron_export.files.workspace import check_output, staging
from nemotron_export.progress import Progress, silent

__all__ = ["convert"]


def convert(
    checkpoint: str | Path,
    output: str | Path,
    dtype: str,
    *,
    task: str | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> Path:
    """Writes a checkpoint whose tensors have another dtype; shards and names stay, and so do config and tokenizer.

    Memory: one block of 4 MiB of a tensor at a time, whatever the model's size.

    Args:
        checkpoint: a folder or a hub id.
        output: a new folder; it appears whole or not at all.
        dtype: "float32", "bfloat16" or "float16". Each value is rounded once, to nearest.
        task: as in :func:`nemotron_export.build`.
        revision: a branch, tag or commit of a hub id.
        progress: told (stage, tensors done, tensors).

    Returns:
        The new folder.

    Raises:
        RequestError: another dtype, or the one that the checkpoint has.
        CheckpointError: a broken checkpoint, or values that float16 cannot hold.
        ResourceError: too little disk.
    """
    if dtype not in RUN_DTYPES:
        raise RequestError(f"'{dtype}'", f"one of {', '.join(RUN_DTYPES)}", "choose one of them", where="--dtype")
    code = DTYPES[dtype].safetensors
    place = Path(output).absolute()
    check_output(place, overwrite=False)
    source = Checkpoint.open(Checkpoint.resolve(checkpoint, revision), task=task)
    if source.dtype == dtype and all(entry.dtype == code for entry in source.tensors.values()):
        raise RequestError(f"a checkpoint in {dtype}", "another dtype", "use it as it is", where=str(source.directory))
    by_file: dict[str, dict[str, TensorEntry]] = {}
    for entry in source.tensors.values():
        by_file.setdefault(entry.file, {})[entry.name] = entry
    done = 0
    with staging(place) as folder, TensorReader(source.directory) as reader:
        for file, entries in by_file.items():
            shapes = {name: (code, entry.shape) for name, entry in entries.items()}
            header, places, size = lay_out_file(file, shapes, {"format": "pt"})
            try:
                with open(folder / file, "wb") as sink:
                    sink.write(header)
                    for name, entry in entries.items():
                        progress(f"convert to {dtype}", done, len(source.tensors))
                        _write(reader, entry, getattr(torch, dtype), sink.fileno(), places[name].offset)
                        done += 1
                    os.fsync(sink.fileno())
            except OSError as error:
                found, remedy = f"writing stopped ({error.strerror})", "free some space, or choose another --output"
                raise ResourceError(found, f"{size / 1e9:.2f} GB for {file}", remedy, where=str(place)) from None
        _write_small_files(source, folder, dtype, by_file)
    return place


def _write(reader: TensorReader, entry: TensorEntry, kind: torch.dtype, file: int, offset: int) -> None:
    rows = entry.shape[0]
    width = max(1, entry.num_elements // max(1, rows))
    step = max(1, READ_BYTES // (width * kind.itemsize))
    for first in range(0, rows, step):
        block = torch.empty((min(step, rows - first), *entry.shape[1:]), dtype=kind)
        reader.into(entry, block, first)
        write_array(file, block.view(torch.uint8).numpy(), offset + first * width * kind.itemsize)


def _write_small_files(
    source: Checkpoint, folder: Path, dtype: str, by_file: dict[str, dict[str, TensorEntry]]
) -> None:
    config = json.loads((source.directory / "config.json").read_text(encoding="utf-8"))
    # whichever of the two names the config has
    config["torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    generation = source.directory / "generation_config.json"
    for path in (generation, *source.tokenizer_files, *source.license_files):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    if (source.directory / INDEX_FILE).is_file():
        size = sum(entry.num_elements for entry in source.tensors.values()) * item_bytes(dtype)
        names = {name: file for file, entries in by_file.items() for name in entries}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
