"""Time and peak memory of a reference made layer by layer, over a checkpoint of a published model's shape.

    python ci/benchmarks/layerwise_reference.py --model Nemotron-4-15B --steps 8

The checkpoint is sparse: its files are holes that read as zeros and take no disk. What is measured is the processor's
part, reading out of the page cache included; a disk adds the checkpoint's bytes by its bandwidth to each pass.
"""

from __future__ import annotations

import argparse
import logging
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import psutil
import torch
from support.raw_checkpoints import PUBLISHED, write_sparse

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.memory import available_memory
from nemotron_export.installation.versions import environment
from nemotron_export.parity.memory import layerwise_memory
from nemotron_export.parity.reference import reference_for


class _Clock:
    """Seconds of each pass over the layers, told by the progress of the reference."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._last = time.perf_counter()
        self._told = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done > self._told and done % self._layers == 0:
            now = time.perf_counter()
            seconds, peak = now - self._last, _peak_bytes() / 1e9
            print(
                f"pass {done // self._layers} of {total // self._layers}: {seconds:.1f} s, peak {peak:.2f} GB",
                flush=True,
            )
            self._last, self._told = now, done


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Writes the checkpoint, makes the reference, prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=PUBLISHED, default="Nemotron-4-15B")
    parser.add_argument("--steps", type=int, help="greedy steps after each prompt; by default what build takes")
    parser.add_argument("--dtype", default="float32", help="run dtype; a low one adds a pass in it")
    parser.add_argument("--reference", default="auto", help="auto, whole or layerwise")
    parser.add_argument("--folder", type=Path, help="where the sparse files go; a temporary folder by default")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_sparse(Path(folder), PUBLISHED[arguments.model], shard_bytes=5_000_000_000)
        checkpoint = Checkpoint.open(folder)
        config = checkpoint.config
        measured = environment(torch.get_num_threads())
        print(measured)
        print(f"{psutil.virtual_memory().total / 1e9:.1f} GB of memory, {available_memory() / 1e9:.1f} GB available")
        print(
            f"{arguments.model}: {checkpoint.num_parameters / 1e9:.2f} B parameters, "
            f"{checkpoint.num_bytes / 1e9:.1f} GB stored, {config.num_hidden_layers} layers, "
            f"hidden {config.hidden_size}, FFN {config.intermediate_size}, "
            f"{config.num_attention_heads}/{config.num_key_value_heads} heads of {config.head_dim}"
        )
        before = _peak_bytes()
        started = time.perf_counter()
        reference = reference_for(
            checkpoint, config.max_position_embeddings, arguments.dtype, _Clock(config.num_hidden_layers),
            mode=arguments.reference, greedy_steps=arguments.steps,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    lengths = ", ".join(str(len(prompt.ids)) for prompt in reference.prompts)
    print(f"{reference.judge['model']}: prompts of {lengths} tokens, {len(reference.prompts[0].greedy)} greedy steps")
    print(
        f"{seconds:.1f} s, peak RSS {_peak_bytes() / 1e9:.2f} GB ({before / 1e9:.2f} GB before it; estimated for the "
        f"reference alone: {layerwise_memory(config) / 1e9:.2f} GB)"
    )


if __name__ == "__main__":
    main()
