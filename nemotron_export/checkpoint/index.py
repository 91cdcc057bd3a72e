"""Which safetensors files a checkpoint's folder has, and one index over all their tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron_errors import CheckpointError
from nemotron_formats.tensors import TensorEntry

from nemotron_export.checkpoint.safetensors_header import Shard, read_header
from nemotron_export.files.untrusted import number, quote, read_json, several

__all__ = ["INDEX_FILE", "SINGLE_FILE", "read_index"]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_TORCH_REMEDY = (
    "load it with transformers (from_pretrained) and write it with save_pretrained(folder, safe_serialization=True)"
)
# What else may lie in a folder without safetensors, and how to get from there to here.
_OTHER_FORMATS = {
    ".bin": ("PyTorch pickles (.bin)", _TORCH_REMEDY),
    ".pt": ("PyTorch pickles (.pt)", _TORCH_REMEDY),
    ".pth": ("PyTorch pickles (.pth)", _TORCH_REMEDY),
    ".nemo": ("a NeMo archive (.nemo)", "convert it with transformers' convert_nemotron_nemo_to_hf.py"),
    ".gguf": ("a GGUF file", "use the checkpoint that it was made from"),
    ".msgpack": ("Flax weights (.msgpack)", _TORCH_REMEDY),
    ".h5": ("TensorFlow weights (.h5)", _TORCH_REMEDY),
    ".onnx": ("an ONNX file", "use the checkpoint that it was exported from"),
}


def read_index(directory: Path, names: list[str]) -> tuple[list[Shard], dict[str, TensorEntry]]:
    """Reads the headers of all weight files of a folder whose listing is `names`; loads no tensor.

    Raises:
        CheckpointError: where files are missing, broken, or disagree with the index.
    """
    has_single, has_index = SINGLE_FILE in names, INDEX_FILE in names
    if not has_single and not has_index:
        raise _no_weights(directory, names)
    if not has_index:
        return _read_files(directory, [SINGLE_FILE])
    path = directory / INDEX_FILE
    weight_map = _weight_map(path)
    files = sorted(set(weight_map.values()))
    if has_single and files != [SINGLE_FILE]:
        raise CheckpointError(
            f"both {SINGLE_FILE} and {INDEX_FILE}, which names {several([quote(file) for file in files], most=3)}",
            "one of the two",
            "keep the one that belongs to config.json and move the other away",
            where=str(directory),
        )
    _check_present(directory, names, files, path)
    shards, tensors = _read_files(directory, files)
    _check_agreement(path, weight_map, tensors)
    return shards, tensors


def _no_weights(directory: Path, names: list[str]) -> CheckpointError:
    expected = f"{SINGLE_FILE}, or {INDEX_FILE} with its shards"
    if "adapter_config.json" in names:
        found, remedy = (
            "an adapter (adapter_config.json) without its model",
            "merge it into the model first (PEFT's merge_and_unload)",
        )
        return CheckpointError(found, expected, remedy, where=str(directory))
    for suffix, (found, remedy) in _OTHER_FORMATS.items():
        if any(name.endswith(suffix) for name in names):
            return CheckpointError(f"{found} and no safetensors file", expected, remedy, where=str(directory))
    loose = [name for name in names if name.endswith(".safetensors")]
    if loose:
        found = f"{several([quote(name) for name in loose], most=3)} without {INDEX_FILE}"
        return CheckpointError(found, expected, "download the index too, or rename a single file", where=str(directory))
    return CheckpointError("no weights", expected, "check that the download was complete", where=str(directory))


def _weight_map(path: Path) -> dict[str, str]:
    index = read_json(path, "an index of weights")
    again = "download or write the index again"
    if "weight_map" not in index:
        raise CheckpointError("no weight_map", "weight_map: tensor name -> file name", again, where=str(path))
    weight_map: Any = index["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        found = "an empty weight_map" if weight_map == {} else f"weight_map = {quote(weight_map)}"
        raise CheckpointError(found, "an object: tensor name -> file name", again, where=str(path))
    for name, file in weight_map.items():
        where = f"{path}: weight_map[{quote(name)}]"
        if not isinstance(file, str):
            raise CheckpointError(f"{quote(file)}", "a file name", again, where=where)
        # A name with a folder could lead anywhere on this machine.
        if not file.endswith(".safetensors") or any(mark in file for mark in "/\\\0:"):
            expected = "the name of a .safetensors file beside the index, without folders"
            raise CheckpointError(f"{quote(file)}", expected, again, where=where)
    return weight_map


def _check_present(directory: Path, names: list[str], files: list[str], index: Path) -> None:
    missing = [quote(file) for file in files if file not in names]
    if missing:
        found = f"{len(missing)} of {len(files)} shards missing: {several(missing)}"
        raise CheckpointError(
            found, f"every shard that the index names in {directory}", "download the missing files", where=str(index)
        )


def _read_files(directory: Path, files: list[str]) -> tuple[list[Shard], dict[str, TensorEntry]]:
    shards: list[Shard] = []
    tensors: dict[str, TensorEntry] = {}
    twice: list[str] = []
    for file in files:
        shard = read_header(directory / file)
        shards.append(shard)
        for name, entry in shard.tensors.items():
            if name in tensors:
                twice.append(f"{quote(name)} (in {tensors[name].file} and {file})")
            tensors[name] = entry
    if twice:
        raise CheckpointError(
            f"{number(len(twice), 'tensor')} in two shards: {several(twice)}",
            "every tensor in one shard",
            "write the checkpoint again, or remove shards left over from another version",
            where=str(directory),
        )
    return shards, tensors


def _check_agreement(path: Path, weight_map: dict[str, str], tensors: dict[str, TensorEntry]) -> None:
    """The index and the shards' headers must tell the same story."""
    again = "download the index and the shards again, from one revision"
    absent = [f"{quote(name)} (named in {file})" for name, file in weight_map.items() if name not in tensors]
    moved = [
        f"{quote(name)} (in {tensors[name].file}, the index says {file})"
        for name, file in weight_map.items()
        if name in tensors and tensors[name].file != file
    ]
    unlisted = [f"{quote(name)} (in {entry.file})" for name, entry in tensors.items() if name not in weight_map]
    for wrong, what, expected in (
        (absent, "that no shard holds", "every tensor of the index in its shard"),
        (moved, "in another shard", "every tensor of the index in its shard"),
        (unlisted, "that the index does not list", "every tensor of the shards in the index"),
    ):
        if wrong:
            found = f"{number(len(wrong), 'tensor')} {what}: {several(wrong)}"
            raise CheckpointError(found, expected, again, where=str(path))
