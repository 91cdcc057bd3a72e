"""GGUF files of a Nemotron checkpoint for llama.cpp, whose loader and graph for this family expect what is here.

llama.cpp's norms have no "+ 1": a gamma is written as float32(weight) + 1. Its rotation is of half-split lanes, as the
checkpoint's, so queries and keys keep their order. Norms stay in float32; all matrices, lm_head and the embedding
included, take the file's type. The vocabulary is left out (tokenizer model "none"): prompts are token ids.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model.load import load_model

__all__ = ["write_gguf"]

_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_gguf(checkpoint: Checkpoint, path: Path, kind: str) -> None:
    """Writes a file with matrices of a kind: f32, bf16, f16, q8_0 or q4_0.

    The checkpoint has no attention or MLP biases, RoPE scaling or tied embeddings.
    """
    config = checkpoint.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.NEMOTRON])
    matrix_type = gguf.GGMLQuantizationType[kind.upper()]
    writer.add_file_type(gguf.LlamaFileType[f"{'ALL' if kind == 'f32' else 'MOSTLY'}_{kind.upper()}"])
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, parameter in load_model(checkpoint, torch.float32).named_parameters():
        values = parameter.detach().numpy()
        if values.ndim == 1:
            writer.add_tensor(_name(name), values + np.float32(1) if name.endswith("norm.weight") else values)
        else:
            writer.add_tensor(_name(name), gguf.quants.quantize(values, matrix_type), raw_dtype=matrix_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _name(name: str) -> str:
    """llama.cpp's name of a parameter: blk.0.attn_q.weight of model.layers.0.self_attn.q_proj.weight."""
    module, _, leaf = name.rpartition(".")
    if module in _WHOLE:
        return f"{_WHOLE[module]}.{leaf}"
    _, _, number, part = module.split(".", 3)
    return f"blk.{number}.{_PARTS[part]}.{leaf}"
