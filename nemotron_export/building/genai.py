"""What makes a bundle a folder for ONNX Runtime GenAI: genai_config.json, and what such a folder cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nemotron_errors import RequestError
from nemotron_graphs.targets.lowering import Lowered
from nemotron_runtime.bundle.limits import Limits

from nemotron_export.building.builder import Builder
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.progress import Progress

__all__ = ["GENAI_CONFIG", "GenaiBuilder", "genai_config"]

GENAI_CONFIG = "genai_config.json"

# GenAI's provider options by ONNX Runtime's provider. A CUDA graph is off, as GenAI's own builder has it by
# default: it rules out beam search and more tokens after the prompt's.
_PROVIDERS: dict[str, list[dict[str, dict[str, str]]]] = {
    "CPUExecutionProvider": [],
    "CUDAExecutionProvider": [{"cuda": {"enable_cuda_graph": "0"}}],
}
# what GenAI's search takes of a generation config, under the same names
_SEARCH = (
    "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "min_length", "num_beams",
    "num_return_sequences", "no_repeat_ngram_size", "length_penalty", "diversity_penalty",
)  # fmt: skip


class GenaiBuilder(Builder):
    """Folders that ONNX Runtime GenAI loads."""

    def plan(self, checkpoint: Checkpoint, dtype: str, limits: Limits) -> None:
        """Refuses a head that generates no text."""
        if checkpoint.task != "causal-lm":
            raise RequestError(
                f"task {checkpoint.task}", f"causal-lm for target {self.target.name}, which generates text",
                "choose --target ort-cpu, or a checkpoint with a language-model head", where="--task",
            )  # fmt: skip

    def write(
        self, lowered: Lowered, checkpoint: Checkpoint, limits: Limits, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Adds genai_config.json."""
        lowered.save(folder)
        text = json.dumps(genai_config(checkpoint, limits, lowered.session), indent=2, ensure_ascii=False)
        (folder / GENAI_CONFIG).write_text(text + "\n", encoding="utf-8")
        return {}


def genai_config(checkpoint: Checkpoint, limits: Limits, session: dict[str, Any]) -> dict[str, Any]:
    """The content of genai_config.json.

    Token ids and search defaults come from generation_config.json, then from config.json. ``context_length`` and the
    default ``max_length`` are the bundle's max_seq_len: the RoPE tables reach no further, and GenAI makes a cache of
    ``max_length`` tokens. ``nemotron`` is a type that GenAI runs as any decoder.
    """
    config, generation = checkpoint.config, checkpoint.generation_config

    def token(name: str) -> Any:
        value = generation.get(name)
        return getattr(config, name) if value is None else value

    eos, bos, pad = token("eos_token_id"), token("bos_token_id"), token("pad_token_id")
    tokens: dict[str, Any] = {"eos_token_id": eos, "bos_token_id": bos}
    # GenAI pads batches with it and masks what it finds at a row's end
    first_eos = eos[0] if isinstance(eos, list) and eos else eos
    tokens["pad_token_id"] = first_eos if pad is None else pad
    longest = generation.get("max_length")
    search = {name: generation[name] for name in _SEARCH if generation.get(name) is not None}
    return {
        "model": {
            "type": "nemotron",
            "vocab_size": config.vocab_size,
            "context_length": limits.max_seq_len,
            **{name: value for name, value in tokens.items() if value is not None},
            "decoder": {
                "filename": session["graph"],
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": _PROVIDERS[session["provider"]],
                },
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "head_size": config.head_dim,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            **search,
            "max_length": limits.max_seq_len if longest is None else min(longest, limits.max_seq_len),
            "past_present_share_buffer": True,
        },
    }
