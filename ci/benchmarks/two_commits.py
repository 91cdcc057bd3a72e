"""Two checkouts of this project side by side in one run: each runs its own bundle of one checkpoint, taking turns.

    python ci/benchmarks/two_commits.py OLD_TREE OLD_BUNDLE NEW_TREE NEW_BUNDLE --shapes 512x1x64 2048x1x64 128x8x64

A shape is prompt tokens x sequences x new tokens. Each checkout has a process of its own, which loads its bundle once;
in each round every shape is generated once by each of them, greedily and past every end-of-sequence token, never two at
once, the first one changing from round to round, each after 0.1 s in which the other's threads go to sleep. Medians of
the rounds after a first one, and the ratio new to old.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = ("old", "new")


def work(bundle: str) -> None:
    """A checkout's process: a shape a line in, its times a line out."""
    import nemotron_runtime

    with nemotron_runtime.load(bundle, allow_unverified=True) as model:
        vocab = model.bundle.manifest.model.vocab_size
        print(json.dumps({"loaded": nemotron_runtime.__file__}), flush=True)
        for line in sys.stdin:
            prompt, sequences, new = json.loads(line)
            ids = np.random.default_rng(prompt).integers(0, vocab, (sequences, prompt))
            answers = model.generate([row.tolist() for row in ids], max_new_tokens=new, ignore_eos=True)
            timings = [answer.timings for answer in answers]
            decode = max(each.decode_seconds for each in timings)
            found = {
                "prefill_ms": 1e3 * timings[0].prefill_seconds,
                "decode_tokens_per_second": sequences * (new - 1) / decode,
                "tokens": [list(answer.token_ids) for answer in answers],
            }
            print(json.dumps(found), flush=True)


def start(tree: Path, bundle: Path) -> subprocess.Popen[str]:
    """The process of a checkout."""
    paths = [tree / name for name in ("", "formats", "graphs", "plugins", "runtime")]
    known = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), *filter(None, [known])])}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", str(bundle)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    loaded = Path(_answer(process)["loaded"])
    assert loaded.is_relative_to(tree.resolve()), f"{loaded} in place of {tree}"
    return process


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def measure(processes: list[subprocess.Popen[str]], shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """All rounds of one shape."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _NAMES}
    for number in range(rounds + 1):
        order = list(zip(_NAMES, processes, strict=True))
        for name, process in order[:: 1 if number % 2 else -1]:
            assert process.stdin is not None
            time.sleep(0.1)
            process.stdin.write(json.dumps(shape) + "\n")
            process.stdin.flush()
            found[name].append(_answer(process))
    result: dict[str, Any] = {"shape": shape, "same_tokens": found["old"][0]["tokens"] == found["new"][0]["tokens"]}
    for what in ("prefill_ms", "decode_tokens_per_second"):
        values = {name: [each[what] for each in found[name][1:]] for name in _NAMES}
        medians = {name: statistics.median(each) for name, each in values.items()}
        result[what] = {**medians, "ratio": medians["new"] / medians["old"], "rounds": values}
    return result


def main() -> None:
    """Prints a table; the JSON has every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", type=Path, metavar="TREE BUNDLE")
    parser.add_argument("--shapes", nargs="+", default=["128x1x64"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    old_tree, old_bundle, new_tree, new_bundle = arguments.places
    processes = [start(old_tree, old_bundle), start(new_tree, new_bundle)]
    results = [measure(processes, tuple(map(int, shape.split("x"))), arguments.rounds) for shape in arguments.shapes]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    print("| prompt x sequences x new | prefill ms, old, new | ratio | decode tok/s, old, new | ratio | tokens |")
    print("|---|---|---|---|---|---|")
    for each in results:
        prefill, decode = each["prefill_ms"], each["decode_tokens_per_second"]
        print(
            f"| {' x '.join(map(str, each['shape']))} | {prefill['old']:.2f}, {prefill['new']:.2f} | "
            f"{prefill['ratio']:.4f} | {decode['old']:.1f}, {decode['new']:.1f} | {decode['ratio']:.4f} | "
            f"{'the same' if each['same_tokens'] else 'different'} |"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
