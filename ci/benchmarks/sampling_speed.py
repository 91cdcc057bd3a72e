"""What sampling costs next to greedy decoding: tokens/s by how tokens are chosen, on any bundle.

    python ci/benchmarks/sampling_speed.py BUNDLE [--prompt-tokens 512] [--new-tokens 64] [--rounds 3] [--json out.json]

Each way is measured with the executor's top-k candidates, where it gives them, and with all logits copied to the host,
taking turns. "Fallbacks" are the steps at which the likeliest tokens did not decide. Times are of decoding alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
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


def main() -> int:
    """Measures and prints; 1 where the two ways wrote different tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows, records, differing = [], [], 0
    with Engine(open_executor(Bundle.open(arguments.bundle, allow_unverified=True))) as engine:
        given = engine.executor.candidate_count
        prompt = np.random.default_rng(0).integers(0, engine.vocab_size, arguments.prompt_tokens)
        for name, options in WAYS.items():
            new = arguments.new_tokens
            params = GenerationParams(max_new_tokens=new, seed=1, ignore_eos=True, **options)
            speeds: dict[bool, list[float]] = {True: [], False: []}
            tokens: dict[bool, tuple[int, ...]] = {}
            fallbacks = 0
            # what is captured and warmed is not measured
            for round_ in range(arguments.rounds + 2):
                for few in (True, False):
                    engine.executor.candidate_count = given if few else 0
                    speed, fell_back, tokens[few] = measure(engine, prompt, params)
                    if round_ >= 2:
                        speeds[few].append(speed)
                        fallbacks = max(fallbacks, fell_back if few and params.draws_from_candidates else 0)
            differing += tokens[True] != tokens[False]
            few_speed, all_speed = (statistics.median(speeds[few]) for few in (True, False))
            same = "yes" if tokens[True] == tokens[False] else "NO"
            rows.append([name, f"{few_speed:.1f}", f"{all_speed:.1f}", f"{fallbacks} of {new - 1}", same])
            record = {"way": name, "tokens_per_second": few_speed, "by_all_logits": all_speed, "fallbacks": fallbacks}
            records.append({**record, "same_tokens": tokens[True] == tokens[False]})
    heads = ["tokens chosen by", "tok/s", "tok/s by all logits", "fallbacks", "same tokens"]
    print_table(f"After {arguments.prompt_tokens} tokens, batch 1", heads, rows)
    if arguments.json is not None:
        document = {"bundle": arguments.bundle.name, "prompt_tokens": arguments.prompt_tokens, "ways": records}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
