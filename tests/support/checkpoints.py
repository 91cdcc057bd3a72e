"""Small odd-shaped checkpoints that transformers writes, and an environment without the build packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import NemotronConfig, NemotronForCausalLM

__all__ = ["ODD", "run_blocked", "write_checkpoint", "write_tokenizer"]

# head_dim 32 with 4 heads is not hidden_size 96 / 4; two KV heads; half of the lanes are rotated
ODD = {
    "vocab_size": 320, "hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048,
    "norm_eps": 1e-5, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
}  # fmt: skip


def write_checkpoint(
    path: Path, dtype: torch.dtype, *, seed: int = 0, cls: Any = NemotronForCausalLM, **changes: object
) -> Any:
    """Writes a random checkpoint and a byte-level tokenizer; returns the model in fp32, with the stored values."""
    torch.manual_seed(seed)
    model = cls(NemotronConfig(**{**ODD, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # norms at their defaults would hide a wrong gamma or bias, small projections a wrong attention
            table = "embed_tokens" in name or "lm_head" in name
            parameter.normal_(0.0, 0.3 if "norm" in name else 0.08 if table else 0.25)
    model.to(dtype).save_pretrained(path)
    write_tokenizer(path / "tokenizer.json")
    (path / "LICENSE").write_text("Random numbers, free to use.\n", encoding="utf-8")
    # loaded anew: a model cast to bf16 and back would keep RoPE frequencies rounded to bf16
    return cls.from_pretrained(path, dtype=torch.float32).eval()


def write_tokenizer(path: Path) -> None:
    """Writes a byte-level tokenizer.json of 260 tokens to the path."""
    vocabulary = {token: index for index, token in enumerate(("<pad>", "<unk>", "<s>", "</s>"))}
    # sorted: the set comes in another order in every process, and with it what a text is to a random model
    for letter in sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    tokenizer.save(str(path))


# Fails any import of the build packages, as an environment without them does.
_BLOCKER = """
import sys
class Blocker:
    names = {"torch", "onnx", "onnxscript", "onnx_ir", "triton", "transformers", "ml_dtypes"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from nemotron_export.cli import main
sys.argv = ["nemotron-export", *sys.argv[1:]]
main()
"""


def run_blocked(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line in a process that cannot import torch, onnx, triton or transformers."""
    command = [sys.executable, "-c", _BLOCKER, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    # not text=True: it turns a generated carriage return into a newline
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())
