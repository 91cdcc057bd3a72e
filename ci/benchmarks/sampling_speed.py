"""What sampling costs compared with greedy decoding: tokens/s by how tokens are chosen, on any bundle.

    python ci/benchmarks/sampling_speed.py BUNDLE [--prompt-tokens 512] [--new-tokens 64] [--rounds 3] [--json out.json]

Each way is measured with the session's candidates, the likeliest tokens, where it gives them, and with all logits
copied to the host, one at a time. "Fallbacks" are the steps at which the candidates did not decide. Times are of
decoding alone.
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
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_session

from nemotron_export.cli.console import print_table

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "top-k 40": {"temperature": 0.8, "top_k": 40},
    "top-p 0.9": {"temperature": 0.3, "top_p": 0.9},
    "top-k 40, top-p 0.9": {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
    "min-p 0.1": {"temperature": 0.3, "min_p": 0.1},
    "no filter": {"temperature": 0.8},
}


def measure(session: Any, prompt: np.ndarray, params: GenerationParams) -> tuple[float, int, tuple[int, ...]]:
    """Tokens/s of one request after its first token, the steps that fell back, and the tokens."""
    kind = type(session)
    with mock.patch.object(kind, "candidate_logits", autospec=True, side_effect=kind.candidate_logits) as fallback:
        (answer,) = generate(session, [prompt], params)
    return (len(answer.token_ids) - 1) / answer.timings.decode_seconds, fallback.call_count, answer.token_ids


def main(
    bundle: Path, prompt_tokens: int = 512, new_tokens: int = 64, rounds: int = 3, json_file: JsonFile = None
) -> None:
    """Measures and prints; the exit code is 1 where the two ways wrote different tokens."""
    rows, records = [], []
    with open_session(Bundle.open(bundle, allow_unverified=True)) as session:
        prompt = np.random.default_rng(0).integers(0, session.vocab_size, prompt_tokens)
        for name, options in WAYS.items():
            params = GenerationParams(max_new_tokens=new_tokens, seed=1, ignore_eos=True, **options)
            # by whether the session's candidates are used
            speeds: dict[bool, list[float]] = {True: [], False: []}
            tokens: dict[bool, tuple[int, ...]] = {}
            fallbacks = 0
            # what is captured and warmed is not measured
            for number in range(rounds + 2):
                for used in (True, False):
                    with mock.patch.object(type(session), "candidates", new=session.candidates if used else 0):
                        speed, fell_back, tokens[used] = measure(session, prompt, params)
                    if number >= 2:
                        speeds[used].append(speed)
                        fallbacks = max(fallbacks, fell_back)
            fast, slow, same = *map(statistics.median, speeds.values()), tokens[True] == tokens[False]
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
