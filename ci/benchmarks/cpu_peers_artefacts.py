"""A random checkpoint of 125 M parameters, and what this project, ONNX Runtime GenAI and llama.cpp make of it."""

from __future__ import annotations

from pathlib import Path

import torch
from genai_peer import run_builder
from support.checkpoints import write_checkpoint

from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint

__all__ = ["BUNDLES", "GENAI", "GGUF_BITS", "make"]

SHAPE = {
    "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 1280,
}  # fmt: skip

# folder → target, --quantize
BUNDLES = {
    "ort-cpu": ("ort-cpu", None),
    "ort-cpu-int8": ("ort-cpu", "int8"),
    "ort-cpu-int4": ("ort-cpu", "int4"),
    "onnx": ("onnx", None),
}
OUR_FOLDERS = {
    "genai-cpu": ("genai-cpu", None),
    "genai-cpu-int8": ("genai-cpu", "int8"),
    "genai-cpu-int4": ("genai-cpu", "int4"),
}
# folder → name, bits of a weight with its group's scale
GENAI = {
    "genai-cpu": ("GenAI, our folder, fp32", 32),
    "genai-cpu-int8": ("GenAI, our folder, int8 g128", 8.25),
    "genai-cpu-int4": ("GenAI, our folder, int4 g32", 5),
    "builder-fp32": ("GenAI, its builder, fp32", 32),
    "builder-int8": ("GenAI, its builder, int8 g32", 9),
    "builder-int4": ("GenAI, its builder, int4 g32", 5),
}
GGUF_BITS = {"f32": 32, "bf16": 16, "f16": 16, "q8_0": 8.5, "q4_0": 4.5}


def make(work: Path) -> None:
    """Makes what is missing in the folder."""
    from cpu_peers_gguf import write_gguf

    work.mkdir(parents=True, exist_ok=True)
    source = work / "checkpoint"
    if not source.exists():
        _write_checkpoint(source)
    for name, (target, quantize) in (BUNDLES | OUR_FOLDERS).items():
        if _is_missing(work / name):
            build(source, work / name, target=target, quantize=quantize, max_seq_len=1280, reference_steps=16)
    for name in GENAI:
        if name.startswith("builder-") and _is_missing(work / name):
            run_builder(source, work / name, name.removeprefix("builder-"))
    for kind in GGUF_BITS:
        if _is_missing(work / f"{kind}.gguf"):
            write_gguf(Checkpoint.open(source), work / f"{kind}.gguf", kind)


def _is_missing(path: Path) -> bool:
    if not path.exists():
        print(path.name, flush=True)
    return not path.exists()


def _write_checkpoint(path: Path) -> None:
    model = write_checkpoint(path, torch.float32, **SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # of unit gain, so that twelve layers neither blow up nor drown what a step before them did
            if parameter.ndim == 2 and "embed_tokens" not in name:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(0.0, 1.0 if parameter.ndim == 2 else 0.1)
    model.to(torch.bfloat16).save_pretrained(path)
