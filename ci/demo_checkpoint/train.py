"""Trains the demo checkpoint with the project's own reference model.

    python ci/demo_checkpoint/train.py CORPUS_DIR OUTPUT_DIR [--device cuda]

reads train.bin and heldout.bin, keeps the weights with the best held-out loss and writes config.json,
generation_config.json, model.safetensors (bfloat16) and training.json. Rows are cut from the corpus at random places:
1,024 tokens long at first, 2,048 in the last part, so that every position is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
import typer

from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM
from nemotron_export.model.layernorm import LayerNorm1P

CONFIG = NemotronConfig(
    vocab_size=4096, hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    initializer_range=0.02, architectures=["NemotronForCausalLM"], dtype="bfloat16",
)  # fmt: skip
TOKENS_PER_STEP = 32 * 1024
LONG_SHARE = 0.3  # of the steps, with rows of 2,048
WARMUP_SHARE = 0.05


def rows(tokens: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    """Random rows [TOKENS_PER_STEP / length, length]."""
    count = TOKENS_PER_STEP // length
    starts = torch.randint(0, len(tokens) - length, (count,), generator=generator)
    return torch.stack([tokens[start : start + length] for start in starts.tolist()])


@torch.no_grad()
def heldout_loss(
    model: NemotronForCausalLM, tokens: torch.Tensor, autocast: contextlib.AbstractContextManager
) -> float:
    """Mean loss per token over rows of 2,048, in nats."""
    usable = len(tokens) // 2048 * 2048
    total = 0.0
    with autocast:
        for row in tokens[:usable].view(-1, 1, 2048).to(model.device):
            total += float(model(row, labels=row, use_cache=False).loss)
    return total / (usable // 2048)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    warmup = max(1, int(steps * WARMUP_SHARE))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


def main(
    corpus: Path,
    output: Path,
    device: str = "cpu",
    steps: int = 1500,
    peak_lr: float = 4e-3,
    weight_decay: float = 0.1,
    seed: int = 1,
) -> None:
    """Trains and writes everything."""
    arguments = {"device": device, "steps": steps, "peak_lr": peak_lr, "weight_decay": weight_decay, "seed": seed}
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    stored = {n: (corpus / f"{n}.bin").read_bytes() for n in ("train", "heldout")}
    tokens = {n: torch.from_numpy(np.frombuffer(data, np.uint16).astype(np.int64)) for n, data in stored.items()}
    model = NemotronForCausalLM(CONFIG).to(device)
    for module in model.modules():
        if isinstance(module, LayerNorm1P):
            torch.nn.init.zeros_(module.weight)  # gamma = 1: a small model starts faster from there
    autocast: contextlib.AbstractContextManager = contextlib.nullcontext()
    if device.startswith("cuda"):
        autocast = torch.autocast("cuda", torch.bfloat16)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.95),
    )
    best, best_state, best_step = math.inf, {}, 0
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_lr)
        length = 2048 if step >= steps * (1 - LONG_SHARE) else 1024
        batch = rows(tokens["train"], length, generator).to(device)
        with autocast:
            loss = model(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0 or step + 1 == steps:
            model.eval()
            held = heldout_loss(model, tokens["heldout"], autocast)
            model.train()
            elapsed = time.monotonic() - started
            print(f"step {step + 1}: train {loss.item():.3f}, held out {held:.3f}, {elapsed:.0f} s", flush=True)
            if held < best:
                best, best_step = held, step + 1
                best_state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}

    rounded = {name: value.to(torch.bfloat16).contiguous() for name, value in best_state.items()}
    model.eval()
    losses = {}
    for name, state in (("float32", best_state), ("bfloat16", rounded)):
        model.load_state_dict({key: value.float() for key, value in state.items()})
        losses[name] = heldout_loss(model, tokens["heldout"], contextlib.nullcontext())
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    save_checkpoint(output, CONFIG, rounded, generation_config=ids)
    record = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(tokens["train"]),
        "heldout_tokens": len(tokens["heldout"]),
        "train_sha256": hashlib.sha256(stored["train"]).hexdigest(),
        "arguments": arguments,
        "best_step": best_step,
        "heldout_loss_nats": losses,
        "heldout_perplexity": {name: math.exp(value) for name, value in losses.items()},
        "seconds": time.monotonic() - started,
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    (output / "training.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    typer.run(main)
