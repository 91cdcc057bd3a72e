"""Everything that needs an NVIDIA GPU, in one go: tests, kernels' times, builds, parity, the bench.

    python ci/gpu/run.py --output results [--only tests kernels parity bench ort] [--jobs 4] [--work /dev/shm/nemotron]

Needs the `build` and `tensorrt` extras; `ort` needs onnxruntime-gpu and onnxruntime-genai-cuda instead of the latter. A
step that fails is named and the others run; the exit code is the number of steps that failed. `results` gets each
step's log, the measurements as JSON, and summary.json with every step's seconds, peak memory and exit code.

With `--jobs` so many of the tests and parity checks run at once: most of their time is the CPU's. What is measured runs
alone after them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from steps import Outcome, Step, run

ROOT = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "nemotron_export"]
MAKE = [sys.executable, str(ROOT / "ci/gpu/random_checkpoint.py")]


@dataclass(frozen=True)
class Weights:
    """A checkpoint of random weights.

    Attributes:
        folder: in the work folder; chains whose checkpoint has the same share it.
        arguments: of random_checkpoint.py.
        dtype: of the weights.
    """

    folder: str
    arguments: tuple[str, ...]
    dtype: str = "bfloat16"

    @property
    def command(self) -> list[str]:
        """Makes it, all but its folder. Some tools, and a quantized bundle's text, insist on a tokenizer."""
        return [*MAKE, *self.arguments, "--dtype", self.dtype, "--tokenizer"]


M4 = Weights("Minitron-4B", ("--model", "Minitron-4B"))
_HEADS = ("--model", "nemotron-3-8b", "--layers", "4")
# a thinner Nemotron-4-340B: its head_dim and rotary width, two layers
_SLICE = ("--model", "Nemotron-4-340B", "--layers", "2", "--set", "hidden_size=4608", "intermediate_size=18432",
          "num_attention_heads=24", "num_key_value_heads=4", "vocab_size=32000")  # fmt: skip
SLICE_16 = Weights("slice-float16", _SLICE, "float16")
# what the parity step builds
PARITY = (
    ("slice of 340B, bfloat16", Weights("slice-bfloat16", _SLICE)),
    ("slice of 340B, float16", SLICE_16),
    ("Minitron-4B, bfloat16", M4),
    ("multi-head, 4 layers of 3-8B, bfloat16", Weights("heads-bfloat16", _HEADS)),
    ("multi-head, 4 layers of 3-8B, float16", Weights("heads-float16", _HEADS, "float16")),
    ("Minitron-8B, bfloat16", Weights("Minitron-8B", ("--model", "Minitron-8B"))),
)


@dataclass(frozen=True)
class Chain:
    """Steps that need those before them, and the checkpoint that they read.

    `alone` where other work would disturb what they measure.
    """

    steps: list[Step]
    weights: Weights | None = None
    alone: bool = False


def chains(output: Path, work: Path, only: set[str]) -> Iterator[Chain]:
    """All of the chosen kinds."""
    if "tests" in only:
        pytest = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        for path in sorted((ROOT / "tests/gpu").glob("test_*.py")):
            yield Chain([Step(path.stem, [*pytest, str(path)], 580)])
    if "kernels" in only:
        command = _program("plugin_kernels", "--output", output / "kernels.json")
        yield Chain([Step("kernels", command, 200)], alone=True)
    for name, weights in PARITY if "parity" in only else ():
        command = _build(work, weights, f"{weights.folder}-tensorrt", "tensorrt", "--dtype", weights.dtype)
        yield Chain([Step(f"{name}: build and parity", command, 500)], weights)
    if "bench" in only:
        bundle = work / "bench-4B"
        command = _build(work, M4, bundle.name, "tensorrt", "--dtype", "bfloat16", "--no-parity")
        bench = [*CLI, "bench", str(bundle), "--allow-unverified", "--new-tokens", "64", "--rounds", "4", "--json"]
        against = ["--against", "eager", "--eager-dtype", "bfloat16", "--eager-device", "cuda"]
        found = [
            # with no kernel compiled and none timed before; scanned, so that its loads are checked by hashes
            Step("4B: build alone", command, home=work / "home"),
            _of_a_bundle("4B: profile of a step", "step_profile", bundle, output),
            _of_a_bundle("4B: sampling", "sampling_speed", bundle, output),
            Step("4B: batch of 8", [*bench, "--prompt-tokens", "128", "--batch", "8"]),
            Step("4B: bench", [*bench, "--prompt-tokens", "512", "--context", "2048", *against], 400),
        ]
        yield Chain(found, M4, alone=True)
    if "ort" in only:
        yield from _ort_chains(output, work)


def _ort_chains(output: Path, work: Path) -> Iterator[Chain]:
    """ONNX Runtime on CUDA: parity of 4B in bf16, int4 and int4 in fp16, and of a slice of 340B in fp16; its peers."""

    def build(name: str, weights: Weights, bundle: str, *options: str) -> Step:
        return Step(f"ort {name}: build and parity", _build(work, weights, bundle, "ort-cuda", *options), 500)

    folder = "cuda-peers"
    int4 = ("--quantize", "int4", "--group-size", "32", "--dtype")
    found = [
        build("4B, bfloat16", M4, "ort-4B-bfloat16", "--dtype", "bfloat16"),
        build("4B, int4, bfloat16", M4, "ort-4B-int4", *int4, "bfloat16"),
        # this one is among the peers: in fp16 the check measures which layers overflow, and without it all are in fp32
        build("4B, int4, float16", M4, f"{folder}/ort-cuda-int4-fp16", *int4, "float16"),
    ]
    yield Chain(found, M4)
    yield Chain([build("slice of 340B, float16", SLICE_16, "ort-slice", "--dtype", "float16")], SLICE_16)
    options = ("--checkpoint", work / M4.folder, "--json", output / "cuda_peers.json")
    command = _program("cuda_peers", "--work", work / folder, *options)
    bundles = {scheme: work / folder / f"ort-cuda-{scheme}" for scheme in ("bf16", "int4", "int4-fp16")}
    profiles = [
        _of_a_bundle(f"ort 4B, {scheme}: profile of a step", "step_profile", bundle, output)
        for scheme, bundle in bundles.items()
    ]
    sampling = _of_a_bundle("ort 4B, bf16: sampling", "sampling_speed", bundles["bf16"], output)
    yield Chain([Step("ort 4B: peers", command, 590), *profiles, sampling], M4, alone=True)


def _of_a_bundle(name: str, program: str, bundle: Path, output: Path) -> Step:
    """What a program of ci/benchmarks measures of a bundle."""
    return Step(name, _program(program, bundle, "--json", output / f"{program}-{bundle.name}.json"), 150)


def _program(name: str, *arguments: str | Path) -> list[str]:
    """A program of ci/benchmarks."""
    return [sys.executable, str(ROOT / f"ci/benchmarks/{name}.py"), *map(str, arguments)]


def _build(work: Path, weights: Weights, bundle: str, target: str, *options: str) -> list[str]:
    """Builds a bundle of the work folder."""
    command = [*CLI, "build", str(work / weights.folder), "-o", str(work / bundle), "--target", target]
    return [*command, *options]


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
        outcomes.extend(run(step, arguments.output) for step in chain.steps)

    def make(weights: Weights) -> None:
        folder = arguments.work / weights.folder
        if not folder.exists():
            outcomes.append(run(Step(f"weights, {weights.folder}", [*weights.command, str(folder)]), arguments.output))

    found = chains(arguments.output, arguments.work, set(arguments.only))
    matching = (replace(chain, steps=[step for step in chain.steps if arguments.match in step.name]) for chain in found)
    chosen = [chain for chain in matching if chain.steps]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(make, dict.fromkeys(chain.weights for chain in chosen if chain.weights is not None)))
        list(pool.map(run_chain, (chain for chain in chosen if not chain.alone)))
    for chain in chosen:
        if chain.alone:
            run_chain(chain)
    text = json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
    (arguments.output / "summary.json").write_text(text + "\n", encoding="utf-8")
    return sum(outcome.code != 0 for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
