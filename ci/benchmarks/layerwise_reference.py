"""Time and peak memory of a reference made layer by layer, over a checkpoint of a published model's shape.

    python ci/benchmarks/layerwise_reference.py --model Nemotron-4-15B --steps 8

The checkpoint is sparse: its files are holes that read as zeros and take no disk. What is measured is the processor's
part, reading out of the page cache included; a disk adds the checkpoint's bytes by its bandwidth to each pass.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import psutil
import torch
import typer
from support.raw_checkpoints import PUBLISHED, write_sparse
from typer import Option

from nemotron_export.bench.worker import peak_memory
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.memory import available_memory
from nemotron_export.installation.versions import environment
from nemotron_export.parity.memory import layerwise_memory
from nemotron_export.parity.reference import reference_for
from nemotron_export.progress import Progress


def pass_clock(layers: int) -> Progress:
    """Prints the seconds of each pass over the layers, told by the progress of the reference."""
    last, told = time.perf_counter(), 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last, told
        if done > told and done % layers == 0:
            now, peak = time.perf_counter(), peak_memory() / 1e9
            print(f"pass {done // layers} of {total // layers}: {now - last:.1f} s, peak {peak:.2f} GB", flush=True)
            last, told = now, done

    return progress


def main(
    model: str = "Nemotron-4-15B",
    steps: Annotated[int | None, Option(help="greedy steps after each prompt; by default what build takes")] = None,
    dtype: Annotated[str, Option(help="run dtype; a low one adds a pass in it")] = "float32",
    reference: Annotated[str, Option(help="auto, whole or layerwise")] = "auto",
    folder: Annotated[Path | None, Option(help="where the sparse files go; a temporary folder by default")] = None,
) -> None:
    """Writes the checkpoint, makes the reference, prints the figures."""
    if model not in PUBLISHED:
        raise typer.BadParameter(f"{model} is none of {', '.join(PUBLISHED)}")
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        write_sparse(Path(made), PUBLISHED[model], shard_bytes=5_000_000_000)
        checkpoint = Checkpoint.open(made)
        config = checkpoint.config
        measured = environment(torch.get_num_threads())
        print(measured)
        print(f"{psutil.virtual_memory().total / 1e9:.1f} GB of memory, {available_memory() / 1e9:.1f} GB available")
        print(
            f"{model}: {checkpoint.num_parameters / 1e9:.2f} B parameters, "
            f"{checkpoint.num_bytes / 1e9:.1f} GB stored, {config.num_hidden_layers} layers, "
            f"hidden {config.hidden_size}, FFN {config.intermediate_size}, "
            f"{config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}"
        )
        before = peak_memory()
        started = time.perf_counter()
        found = reference_for(
            checkpoint, config.max_position_embeddings, dtype, pass_clock(config.num_hidden_layers),
            mode=reference, greedy_steps=steps,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    lengths = ", ".join(str(len(prompt.ids)) for prompt in found.prompts)
    print(f"{found.judge['model']}: prompts of {lengths} tokens, {len(found.prompts[0].greedy)} greedy steps")
    print(
        f"{seconds:.1f} s, peak RSS {peak_memory() / 1e9:.2f} GB ({before / 1e9:.2f} GB before it; estimated for the "
        f"reference alone: {layerwise_memory(config) / 1e9:.2f} GB)"
    )


if __name__ == "__main__":
    typer.run(main)
