"""What sampling costs next to greedy decoding: tokens/s by how tokens are chosen, on any bundle.

    python ci/benchmarks/sampling_speed.py BUNDLE [--prompt-tokens 512] [--new-tokens 64] [--rounds 3] [--json out.json]

Each way is measured with the executor's top-k candidates, where it gives them, and with all logits copied to the host,
taking turns. "Fallbacks" are the steps at which the likeliest tokens did not decide. Times are of decoding alone.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import typer
from document import JsonFile, write_json
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.sampling.sequence import SequenceSampler

from nemotron_export.cli.console import print_table

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-p 0.9": {"temperature": 0.3, "top_p": 0.9},
    "top-k 40, top-p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "min-p 0.1": {"temperature": 0.3, "min_p": 0.1},
    "no filter": {"temperature": 0.8},
}


def measure(engine: Engine, prompt: np.ndarray, params: GenerationParams) -> tuple[float, int, tuple[int, ...]]:
    """Tokens/s of one request after its first token, the steps that fell back, and the tokens."""
    choose = SequenceSampler.choose
    with mock.patch.object(SequenceSampler, "choose", autospec=True, side_effect=choose) as from_all:
        (answer,) = generate(engine, [prompt], params)
    # the first token comes from the prompt's logits
    return (len(answer.token_ids) - 1) / answer.timings.decode_seconds, from_all.call_count - 1, answer.token_ids


def main(
    bundle: Path, prompt_tokens: int = 512, new_tokens: int = 64, rounds: int = 3, json_file: JsonFile = None
) -> None:
    """Measures and prints; the exit code is 1 where the two ways wrote different tokens."""
    rows, records = [], []
    with Engine(open_executor(Bundle.open(bundle, allow_unverified=True))) as engine:
        given = engine.executor.candidate_count
        prompt = np.random.default_rng(0).integers(0, engine.vocab_size, prompt_tokens)
        for name, options in WAYS.items():
            params = GenerationParams(max_new_tokens=new_tokens, seed=1, ignore_eos=True, **options)
            # by whether the executor's candidates are used
            speeds: dict[bool, list[float]] = {True: [], False: []}
            tokens: dict[bool, tuple[int, ...]] = {}
            fallbacks = 0
            # what is captured and warmed is not measured
            for number in range(rounds + 2):
                for used in (True, False):
                    engine.executor.candidate_count = given if used else 0
                    speed, fell_back, tokens[used] = measure(engine, prompt, params)
                    if number >= 2:
                        speeds[used].append(speed)
                        fallbacks = max(fallbacks, fell_back if used and params.draws_from_candidates else 0)
            fast, slow = (statistics.median(speeds[used]) for used in (True, False))
            same = tokens[True] == tokens[False]
            records.append({
                "way": name, "tokens_per_second": fast, "by_all_logits": slow, "fallbacks": fallbacks,
                "same_tokens": same,
            })  # fmt: skip
            rows.append([name, f"{fast:.1f}", f"{slow:.1f}", f"{fallbacks} of {new_tokens - 1}", same])
    heads = ["tokens chosen by", "tok/s", "tok/s by all logits", "fallbacks", "same tokens"]
    print_table(f"After {prompt_tokens} tokens, batch 1", heads, rows)
    write_json(json_file, {"bundle": bundle.name, "prompt_tokens": prompt_tokens, "ways": records})
    raise typer.Exit(0 if all(record["same_tokens"] for record in records) else 1)


if __name__ == "__main__":
    typer.run(main)
