"""Small and sparse checkpoints written without torch, and hand-made safetensors files for what no library writes."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from nemotron_export.checkpoint import expected_tensors
from nemotron_export.config.config import NemotronConfig

__all__ = [
    "PUBLISHED",
    "TINY",
    "Tensors",
    "draw",
    "raw_file",
    "tensors_of",
    "write_checkpoint",
    "write_config",
    "write_index",
    "write_shard",
    "write_sparse",
]

TINY: dict[str, Any] = {
    "architectures": ["NemotronForCausalLM"], "model_type": "nemotron", "vocab_size": 40, "hidden_size": 24,
    "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 64, "partial_rotary_factor": 0.5, "dtype": "bfloat16",
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "Minitron-4B": {
        **TINY, "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 32,
        "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "Minitron-8B": {
        **TINY, "vocab_size": 256000, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "nemotron-3-8b": {
        **TINY, "vocab_size": 256000, "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "Nemotron-4-15B": {
        **TINY, "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 32,
        "num_attention_heads": 48, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "Nemotron-3-22B": {
        **TINY, "vocab_size": 256000, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 40,
        "num_attention_heads": 48, "num_key_value_heads": 48, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "Nemotron-4-340B": {
        **TINY, "vocab_size": 256000, "hidden_size": 18432, "intermediate_size": 73728, "num_hidden_layers": 96,
        "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 192, "max_position_embeddings": 4096,
    },
}  # fmt: skip

# name -> (dtype in the format's words, shape, little-endian bytes)
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

_NUMPY_DTYPES: dict[str, Any] = {
    "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8,
    "I64": np.int64, "F8_E4M3": ml_dtypes.float8_e4m3fn, "U8": np.uint8,
}  # fmt: skip


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> bytes:
    """Small random finite values of a floating dtype, zeros of another."""
    kind = np.dtype(_NUMPY_DTYPES[dtype])
    if not dtype.startswith(("F", "BF")):
        return bytes(kind.itemsize * math.prod(shape))
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)) * 0.1
    return values.astype(kind).tobytes()


def tensors_of(config: Mapping[str, Any], task: str = "causal-lm", dtype: str = "BF16") -> Tensors:
    """Random tensors of a task's state dict; a tied lm_head is left out."""
    parsed = NemotronConfig.from_dict(dict(config))
    shapes = expected_tensors(parsed, task)
    if parsed.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return {name: (dtype, shape, draw(shape, dtype, seed)) for seed, (name, shape) in enumerate(shapes.items())}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes config.json."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def write_index(folder: Path, weight_map: Mapping[str, Any]) -> None:
    """Writes model.safetensors.index.json."""
    document = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document), encoding="utf-8")


def write_shard(path: Path, tensors: Tensors) -> None:
    """Writes one file by the safetensors library."""
    arrays = {
        name: np.frombuffer(data, _NUMPY_DTYPES[dtype]).reshape(shape) for name, (dtype, shape, data) in tensors.items()
    }
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any] = TINY,
    tensors: Tensors | None = None,
    *,
    shards: int = 1,
    task: str = "causal-lm",
    dtype: str = "BF16",
) -> Tensors:
    """Writes a whole checkpoint of one or several files; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = tensors_of(config, task, dtype) if tensors is None else tensors
    write_config(folder, config)
    if shards == 1:
        write_shard(folder / "model.safetensors", tensors)
        return tensors
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_shard(folder / file, {name: tensors[name] for name in own})
        weight_map.update(dict.fromkeys(own, file))
    write_index(folder, weight_map)
    return tensors


def raw_file(path: Path, header: Any, data: bytes | int = b"", *, length: int | None = None) -> None:
    """Writes length, header and data as they are; an object becomes JSON, a number of bytes becomes a hole.

    Args:
        path: the file.
        header: bytes as they are, or what JSON holds.
        data: the bytes after the header, or how many (sparse).
        length: what the length field says; the truth by default.
    """
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    start = struct.pack("<Q", len(raw) if length is None else length) + raw
    path.write_bytes(start + (data if isinstance(data, bytes) else b""))
    if isinstance(data, int):
        os.truncate(path, len(start) + data)


def write_sparse(folder: Path, config: Mapping[str, Any], *, shard_bytes: int) -> int:
    """Writes a bf16 checkpoint of any size as holes: headers alone take disk. Returns the bytes of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    shards: list[dict[str, Any]] = [{}]
    sizes = [0]
    for name, shape in expected_tensors(NemotronConfig.from_dict(dict(config))).items():
        count = 2 * math.prod(shape)
        if sizes[-1] and sizes[-1] + count > shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = {"dtype": "BF16", "shape": shape, "data_offsets": [sizes[-1], sizes[-1] + count]}
        sizes[-1] += count
    weight_map = {}
    for number, (header, size) in enumerate(zip(shards, sizes, strict=True), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        raw_file(folder / file, header, size)
        weight_map.update(dict.fromkeys(header, file))
    write_index(folder, weight_map)
    return sum(sizes)
