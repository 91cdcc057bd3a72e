"""ONNX Runtime on a GPU: our bundles and ONNX Runtime GenAI's builder and runtime, all in one run.

    python ci/gpu/random_checkpoint.py /dev/shm/4B --tokenizer
    python ci/benchmarks/cuda_peers.py --checkpoint /dev/shm/4B --work /dev/shm/peers --json result.json

With `--provider cpu` and a small fp32 checkpoint it is a dry run. Everything is built, each in its own process, with
its seconds and peak memory; each backend is loaded in its own process, bf16 ones and int4 ones apart (the GPU holds
them at once), and measured in rounds, one at a time, one prompt length after the other, so that CUDA graphs are
captured in the warm-up; the tokens that they wrote are checked (cuda_peers_check.py). What fails is named and the rest
goes on; the exit code is the number of failures. Needs onnxruntime-gpu, onnxruntime-genai-cuda and the `build` extra.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import typer
from cuda_peers_backends import entries
from cuda_peers_builds import builds
from cuda_peers_measure import Say, measure
from document import JsonFile, write_json
from genai_peer import add_versions
from steps import run
from support.gpu_memory import gpu_query
from typer import Option

from nemotron_export.bench.options import Shape
from nemotron_export.cli.console import print_table
from nemotron_export.installation.versions import environment


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


def main(
    checkpoint: Annotated[Path, Option(help="see random_checkpoint.py; with a tokenizer")],
    work: Annotated[Path, Option(help="an empty folder, 35 GB for 4B")],
    json_file: JsonFile = None,
    provider: Literal["cuda", "cpu"] = "cuda",
    context: int = 512,
    prefill: int = 2048,
    new_tokens: int = 64,
    rounds: int = 5,
    warmup: int = 2,
    threads: Annotated[int, Option(help="of each backend")] = 4,
    jobs: Annotated[int, Option(help="builds at once; the seconds are then of a shared machine")] = 3,
) -> None:
    """Everything; the exit code is the number of failures."""
    began = time.monotonic()
    failures: list[str] = []

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)
        if text.startswith("FAILED"):
            failures.append(text)

    checkpoint, work = checkpoint.absolute(), work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    todo = [each for each in builds(checkpoint, work, provider) if not (work / each.name).exists()]
    with ThreadPoolExecutor(jobs) as pool:
        done = list(pool.map(lambda step: run(step, work), todo))
    for built in done:
        say(f"{'FAILED' if built.code else 'built'} {built.name}: code {built.code}, {built.seconds} s")
    # weights that a folder refers to elsewhere are left out
    sizes = [sum(path.stat().st_size for path in (work / built.name).rglob("*") if path.is_file()) for built in done]
    shapes = [Shape(count, new_tokens, 1) for count in (context, prefill)]
    records: list[dict[str, Any]] = []
    document: dict[str, Any] = {
        "command": shlex.join(sys.argv), "machine": machine(threads), "jobs": jobs, "rounds": rounds, "warmup": warmup,
        "shapes": [asdict(shape) for shape in shapes],
        "builds": [{**asdict(built), "folder_bytes": size} for built, size in zip(done, sizes, strict=True)],
        "contenders": records, "verdicts": {}, "failures": failures,
    }  # fmt: skip

    # after each stage: a run that is cut short keeps what it has
    write_json(json_file, document)
    chosen = entries(checkpoint, work, provider)
    for group in dict.fromkeys(entry.group for entry in chosen):
        members = [entry for entry in chosen if entry.group == group]
        records += measure(members, shapes, rounds, warmup, threads, say)
        say(f"measured {group}")
        write_json(json_file, document)
    verdicts = document["verdicts"] = compare(records, checkpoint, provider, context, say)
    for name, verdict in verdicts.items():
        # GenAI's builder has another epsilon: its tokens are reported, and held to nothing
        if not verdict["passed"] and "its builder" not in name:
            say(f"FAILED {name}: a token {verdict['worst_margin']:.4f} below the best, bound {verdict['bound']:.4f}")
    write_json(json_file, document)
    show(document, context, prefill)
    say(f"done, {len(failures)} failures")
    raise typer.Exit(len(failures))


if __name__ == "__main__":
    typer.run(main)
