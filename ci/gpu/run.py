"""Everything that needs an NVIDIA GPU, in one go: tests, kernels' times, builds, parity, the bench.

    python ci/gpu/run.py --output results [--only tests kernels parity bench ort] [--jobs 4] [--work /dev/shm/nemotron]

Needs the `build` and `tensorrt` extras; `ort` needs onnxruntime-gpu and onnxruntime-genai-cuda instead of the latter. A
step that fails is named and the others run; the exit code is the number of steps that failed. `results` gets each
step's log, the measurements as JSON, and summary.json with every step's seconds, peak memory and exit code.

With `--jobs` so many of the tests and parity checks run at once: most of their time is the CPU's. What is measured,
free memory too, runs alone behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "nemotron_export"]
MAKE = [sys.executable, str(ROOT / "ci/gpu/random_checkpoint.py")]

# a thinner Nemotron-4-340B: its head_dim and rotary width, two layers
SLICE = ["--model", "Nemotron-4-340B", "--layers", "2", "--set", "hidden_size=4608", "intermediate_size=18432",
         "num_attention_heads=24", "num_key_value_heads=4", "vocab_size=32000"]  # fmt: skip
# what the parity step builds: name, arguments of random_checkpoint.py, run dtypes
PARITY = (
    ("slice of 340B", SLICE, ("bfloat16", "float16")),
    ("Minitron-4B", ["--model", "Minitron-4B"], ("bfloat16",)),
    ("multi-head, 4 layers of 3-8B", ["--model", "nemotron-3-8b", "--layers", "4"], ("bfloat16", "float16")),
    ("Minitron-8B", ["--model", "Minitron-8B"], ("bfloat16",)),
)


@dataclass(frozen=True)
class Step:
    """A command, and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: int = 300


@dataclass(frozen=True)
class Chain:
    """Steps that need those before them; `alone` where other work would disturb what they measure."""

    steps: list[Step]
    alone: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a step; `peak_bytes` is the resident memory of its largest process."""

    name: str
    command: str
    code: int
    seconds: float
    peak_bytes: int


def chains(output: Path, work: Path, only: set[str]) -> Iterator[Chain]:
    """All of the chosen kinds."""
    if "tests" in only:
        pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        for path in sorted((ROOT / "tests/gpu").glob("test_*.py")):
            yield Chain([Step(path.stem, [*pytest, "-m", "not free_memory", str(path)], 400)])
        yield Chain([Step("tests of free memory", [*pytest, "-m", "free_memory", "tests/gpu"], 400)], alone=True)
    if "kernels" in only:
        command = [sys.executable, str(ROOT / "ci/benchmarks/plugin_kernels.py"), "--output"]
        yield Chain([Step("kernels", [*command, str(output / "kernels.json")], 200)], alone=True)
    for number, (name, arguments, dtypes) in enumerate(PARITY if "parity" in only else ()):
        for dtype in dtypes:
            checkpoint, bundle = work / f"{number}-{dtype}", work / f"{number}-{dtype}-bundle"
            weights = Step(f"{name}, {dtype}: weights", [*MAKE, str(checkpoint), *arguments, "--dtype", dtype])
            command = [*CLI, "build", str(checkpoint), "-o", str(bundle), "--target", "tensorrt", "--dtype", dtype]
            yield Chain([weights, Step(f"{name}, {dtype}: build and parity", command, 500)])
    if "bench" in only:
        checkpoint, bundle = work / "bench-4B", work / "bench-4B-bundle"
        command = [*CLI, "build", str(checkpoint), "-o", str(bundle), "--target", "tensorrt", "--dtype", "bfloat16"]
        bench = [*CLI, "bench", str(bundle), "--allow-unverified", "--new-tokens", "64", "--rounds", "4", "--json"]
        against = ["--against", "eager", "--eager-dtype", "bfloat16", "--eager-device", "cuda"]
        found = [
            Step("4B: weights", [*MAKE, str(checkpoint), "--model", "Minitron-4B"]),
            Step("4B: build alone", [*command, "--no-parity", "--no-scan"]),
            _profile("4B", bundle, output),
            Step("4B: batch of 8", [*bench, "--prompt-tokens", "128", "--batch", "8"]),
            Step("4B: bench", [*bench, "--prompt-tokens", "512", "--context", "2048", *against], 400),
        ]
        yield Chain(found, alone=True)
    if "ort" in only:
        yield from _ort_chains(output, work)


def _ort_chains(output: Path, work: Path) -> Iterator[Chain]:
    """ONNX Runtime on CUDA: parity of 4B in bf16 and int4 and of a slice of 340B in fp16, then its peers."""
    # a quantized bundle is judged by a text, which needs a tokenizer
    cases = (
        ("4B, bfloat16", "ort-4B", ["--model", "Minitron-4B"], "bfloat16", (None, "int4")),
        ("slice of 340B, float16", "ort-slice", SLICE, "float16", (None,)),
    )
    for name, folder, arguments, dtype, quantized in cases:
        checkpoint = work / folder / "checkpoint"
        command = [*MAKE, str(checkpoint), *arguments, "--dtype", dtype, "--tokenizer"]
        found = [Step(f"ort {name}: weights", command)]
        for scheme in quantized:
            bundle = work / folder / f"parity-{scheme or dtype}"
            command = [*CLI, "build", str(checkpoint), "-o", str(bundle), "--target", "ort-cuda", "--dtype", dtype]
            command += [] if scheme is None else ["--quantize", scheme]
            label = "build and parity" if scheme is None else f"{scheme} build and parity"
            found.append(Step(f"ort {name}: {label}", command, 500))
        yield Chain(found)
    # it takes the checkpoint that is there
    command = [sys.executable, str(ROOT / "ci/benchmarks/cuda_peers.py"), "--work", str(work / "ort-4B")]
    peers = Step("ort 4B: peers", [*command, "--json", str(output / "cuda_peers.json")], 560)
    profiles = [
        _profile(f"ort 4B, {scheme}", work / f"ort-4B/ort-cuda-{scheme}", output) for scheme in ("bf16", "int4")
    ]
    yield Chain([peers, *profiles], alone=True)


def _profile(name: str, bundle: Path, output: Path) -> Step:
    file = output / f"profile-{bundle.name}.json"
    program = str(ROOT / "ci/benchmarks/step_profile.py")
    return Step(f"{name}: profile of a step", [sys.executable, program, str(bundle), "--json", str(file)], 120)


def run(step: Step, output: Path) -> Outcome:
    """Runs a step, its output in a log of its own."""
    log = output / ("".join(c if c.isalnum() else "-" for c in step.name) + ".log")
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(step.command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        timer = threading.Timer(step.seconds, process.kill)
        timer.start()
        # of this step alone: getrusage would give the largest of all steps so far
        _, status, usage = os.wait4(process.pid, 0)
        timed_out = not timer.is_alive()
        timer.cancel()
    code = 124 if timed_out else os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    outcome = Outcome(step.name, shlex.join(step.command), code, round(time.monotonic() - began, 1), peak)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-(6 if code == 0 else 30) :]
    head = f"{'ok  ' if code == 0 else 'FAIL'} {outcome.seconds:6.1f} s  {step.name}"
    print("\n".join([head, *(f"      {line[:220]}" for line in lines)]), flush=True)
    return outcome


def main() -> int:
    """All steps; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/nemotron"), help="60 GB for the checkpoints")
    kinds = ("tests", "kernels", "parity", "bench", "ort")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--match", default="", help="steps whose names hold this")
    parser.add_argument("--jobs", type=int, default=1, help="tests and parity checks at once; each may take 60 GB")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []

    def run_chain(chain: Chain) -> None:
        outcomes.extend(run(step, arguments.output) for step in chain.steps if arguments.match in step.name)

    chosen = list(chains(arguments.output, arguments.work, set(arguments.only)))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(run_chain, (chain for chain in chosen if not chain.alone)))
    for chain in chosen:
        if chain.alone:
            run_chain(chain)
    text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
    (arguments.output / "summary.json").write_text(text + "\n", encoding="utf-8")
    return sum(outcome.code != 0 for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
