"""ONNX Runtime on a GPU: our bundles and ONNX Runtime GenAI's builder and runtime, all in one run.

    python ci/benchmarks/cuda_peers.py --work /dev/shm/peers --json result.json
    python ci/benchmarks/cuda_peers.py --work /tmp/peers --provider cpu --layers 2 --set hidden_size=256 …   # a dry run

A random checkpoint is made (by ci/gpu/random_checkpoint.py); everything is built, each in its own process, with its
seconds and peak memory; each backend is loaded in its own process, bf16 ones and int4 ones apart (the GPU holds them
at once), and measured in rounds, one at a time, one prompt length after the other, so that CUDA graphs are captured in
the warm-up; the tokens that they wrote are checked (cuda_peers_check.py). What fails is named and the rest goes on;
the exit code is the number of failures. Needs onnxruntime-gpu, onnxruntime-genai-cuda and the `build` extra.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from cuda_peers_backends import entries
from cuda_peers_builds import builds
from cuda_peers_measure import Say, measure
from genai_peer import add_versions
from steps import run
from support.gpu_memory import gpu_query

from nemotron_export.bench.shapes import Shape
from nemotron_export.cli.console import print_table
from nemotron_export.installation.versions import environment

HERE = Path(__file__).parent
MAKE = HERE.parent / "gpu" / "random_checkpoint.py"
CONTEXT, PREFILL = 512, 2048


def compare(
    records: Sequence[dict[str, Any]], checkpoint: Path, provider: str, context: int, say: Say
) -> dict[str, Any]:
    """Tokens differing from those of the group's first backend; and, unquantized, eager PyTorch's verdicts."""
    measured = [record for record in records if not record["failed"]]
    written = {record["name"]: record["tokens"][str(context)] for record in measured}
    first: dict[str, list[int]] = {}
    for record in measured:
        tokens = written[record["name"]]
        base = first.setdefault(record["group"], tokens)
        differing = [n for n, (a, b) in enumerate(zip(tokens, base, strict=True)) if a != b]
        record["first_difference"] = differing[0] if differing else None
        record["tokens_differing"] = len(differing)
    checked = {record["name"]: written[record["name"]] for record in measured if "int4" not in record["group"]}
    if not checked:
        return {}
    try:
        # imported here: PyTorch would be part of the peak memory of builds, which begin as forks of this process
        from cuda_peers_check import check

        return check(checkpoint, checked, context, provider)
    except Exception as error:  # what was measured is kept
        say(f"FAILED check of tokens: {type(error).__name__}: {error}")
        return {}


def machine(threads: int) -> dict[str, Any]:
    """Versions, hardware, driver."""
    found = environment(threads)
    add_versions(found["versions"], ("onnxruntime-genai", "onnxruntime-genai-cuda", "transformers"))
    # besides onnxruntime-gpu in a folder of PYTHONPATH another onnxruntime may be installed: this is what is imported
    program = "import onnxruntime as o; print(o.__version__, o.__file__, ','.join(o.get_available_providers()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    found["onnxruntime_imported"] = done.stdout.strip() or done.stderr[-500:]
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.mem"
    found["gpus"] = [dict(zip(fields.split(","), row, strict=False)) for row in gpu_query("gpu", fields)]
    return found


def show(document: dict[str, Any], context: int, prefill: int) -> None:
    """The tables."""
    rows: list[list[str]] = []
    for built in document["builds"]:
        sizes = (f"{built[key] / 1e9:.2f}" for key in ("peak_bytes", "folder_bytes"))
        rows.append([built["name"], str(built["code"]), f"{built['seconds']:.1f}", *sizes])
    print_table("Builds", ["folder", "exit code", "s", "peak GB", "folder GB"], rows)
    measured = [record for record in document["contenders"] if not record["failed"]]
    rows = [[record["name"], "failed", *[""] * 8] for record in document["contenders"] if record["failed"]]
    for record in measured:
        speed, wait = record["decode_tokens_per_second"], record["prefill_seconds"][prefill]
        cells = [*(speed[context][key] for key in ("median", "minimum", "maximum")), speed[prefill]["median"]]
        cells += [1e3 * wait[key] for key in ("median", "minimum", "maximum")]
        memory = "" if record["gpu_mib"] is None else str(record["gpu_mib"])
        rows.append([record["name"], *(f"{cell:.1f}" for cell in cells), memory, f"{record['load_seconds']:.1f}"])
    heads = [f"tok/s at {context}", "min", "max", f"at {prefill}", f"prefill {prefill} ms", "min", "max", "GPU MiB"]
    print_table("Speed, batch 1", ["what runs", *heads, "load s"], rows)
    rows = []
    for record in measured:
        verdict = document["verdicts"].get(record["name"], {})
        margins = [f"{verdict[key]:.4f}" for key in ("worst_margin", "bound")] if verdict else ["", ""]
        cells = [record["tokens_differing"], record["first_difference"], verdict.get("fp32_best", ""), *margins]
        rows.append([record["name"], *map(str, cells), str(verdict.get("passed", ""))])
    heads = ["differ from ours", "first", "fp32's choice", "worst margin", "bound", "passed"]
    print_table(f"Greedy tokens after {context} of the prompt", ["what runs", *heads], rows)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, 35 GB for 4B")
    parser.add_argument("--checkpoint", type=Path, help="WORK/checkpoint by default; made where it is not there")
    parser.add_argument("--json", type=Path, help="where the document goes")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", default="Minitron-4B")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="see random_checkpoint.py")
    numbers = {"context": CONTEXT, "prefill": PREFILL, "new-tokens": 64, "rounds": 5, "warmup": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=4, help="of each backend")
    parser.add_argument("--jobs", type=int, default=3, help="builds at once; the seconds are then of a shared machine")
    return parser.parse_args()


def main() -> int:
    """Everything; the number of failures."""
    arguments = parse()
    began = time.monotonic()
    failures: list[str] = []

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)
        if text.startswith("FAILED"):
            failures.append(text)

    work, cuda = arguments.work.absolute(), arguments.provider == "cuda"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = (arguments.checkpoint or work / "checkpoint").absolute()
    command = [sys.executable, str(MAKE), str(checkpoint), "--model", arguments.model]
    command += ["--dtype", "bfloat16" if cuda else "float32", "--tokenizer"]
    command += [] if arguments.layers is None else ["--layers", str(arguments.layers)]
    command += ["--set", *arguments.set] if arguments.set else []
    if not checkpoint.exists():
        subprocess.run(command, check=True)
    say("built the checkpoint")
    todo = [each for each in builds(checkpoint, work, arguments.provider) if not (work / each.name).exists()]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        done = list(pool.map(lambda step: run(step, work), todo))
    for built in done:
        say(f"{'FAILED' if built.code else 'built'} {built.name}: code {built.code}, {built.seconds} s")
    # weights that a folder refers to elsewhere are left out
    sizes = [sum(path.stat().st_size for path in (work / built.name).rglob("*") if path.is_file()) for built in done]
    shapes = [Shape(count, arguments.new_tokens, 1) for count in (arguments.context, arguments.prefill)]
    records: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "command": shlex.join(sys.argv), "checkpoint_command": shlex.join(command),
        "machine": machine(arguments.threads), "jobs": arguments.jobs,
        "rounds": arguments.rounds, "warmup": arguments.warmup,
        "shapes": [asdict(shape) for shape in shapes],
        "builds": [{**asdict(built), "folder_bytes": size} for built, size in zip(done, sizes, strict=True)],
        "contenders": records, "verdicts": {}, "failures": failures,
    }  # fmt: skip

    def save() -> None:
        # after each stage: a run that is cut short keeps what it has
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    save()
    chosen = entries(checkpoint, work, arguments.provider)
    for group in dict.fromkeys(entry.group for entry in chosen):
        members = [entry for entry in chosen if entry.group == group]
        records += measure(members, shapes, arguments.rounds, arguments.warmup, arguments.threads, say)
        say(f"measured {group}")
        save()
    verdicts = document["verdicts"] = compare(records, checkpoint, arguments.provider, arguments.context, say)
    for name, verdict in verdicts.items():
        # GenAI's builder has another epsilon: its tokens are reported, and held to nothing
        if not verdict["passed"] and "its builder" not in name:
            say(f"FAILED {name}: a token {verdict['worst_margin']:.4f} below the best, bound {verdict['bound']:.4f}")
    save()
    show(document, arguments.context, arguments.prefill)
    say(f"done, {len(failures)} failures")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main())
