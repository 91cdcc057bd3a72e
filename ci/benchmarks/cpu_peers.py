"""Speed on a CPU, and that of what else runs this family: eager PyTorch, torch.compile, ONNX Runtime GenAI, llama.cpp.

    pip install --target peers llama-cpp-python gguf         # CMAKE_ARGS="-DGGML_NATIVE=ON"
    python ci/benchmarks/cpu_peers.py make work --site peers     # a random checkpoint, and what each peer makes of it
    python ci/benchmarks/cpu_peers.py check work --site peers    # do they compute the same?
    python ci/benchmarks/cpu_peers.py measure work --site peers --json result.json

`make` leaves alone what is there. `check` holds every backend against eager PyTorch in fp32: logits of the last token
after prompts of 128 and 512 tokens, and 64 greedy tokens after the shorter one. `measure` is the package's own bench:
a process per backend, all loaded, one at a time; see README.md in this folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import typer
from cpu_peers_artefacts import BUNDLES, GENAI, GGUF_BITS, make
from document import JsonFile, write_json
from genai_peer import add_versions, greedy, peer_spec
from nemotron_runtime.bundle.folder import Bundle
from typer import Argument, Option

from nemotron_export.bench import BenchOptions
from nemotron_export.bench.backends import BACKENDS, BackendSpec, BenchRequest
from nemotron_export.bench.backends.base import Backend
from nemotron_export.bench.backends.eager import EagerBackend
from nemotron_export.bench.options import Shape
from nemotron_export.bench.run import measure_specs
from nemotron_export.bench.worker import prompt_ids
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.cli.bench import print_bench
from nemotron_export.cli.console import print_table, show_progress

PROMPTS = (128, 512)
NEW_TOKENS = 64
THREADS = 2
OPTIONS = BenchOptions(
    PROMPTS[0], NEW_TOKENS, contexts=PROMPTS, warmup=1, threads=THREADS, eager_dtypes=("float32", "bfloat16")
)
REFERENCE = "eager float32, sdpa, dynamic cache"


def backends(work: Path, site: Path, only: str = "") -> list[BackendSpec]:
    """Everything that `make` made, ours first."""
    checkpoint = Checkpoint.open(work / "checkpoint")
    config = checkpoint.config
    bundles = tuple(Bundle.open(work / name, allow_unverified=True) for name in BUNDLES)
    request = BenchRequest(bundles, checkpoint.directory, None, True, OPTIONS)
    specs = [spec for kind in ("bundle", "eager") for spec in BACKENDS[kind].specs(request)]

    def peer(kind: str, name: str, path: Path, dtype: str, bits: float, cache: str, **options: Any) -> None:
        specs.append(peer_spec(kind, name, path, config, dtype, bits, cache, **options))

    peer("compiled", "torch.compile float32, static cache", checkpoint.directory, "float32", 32, "float32")
    for folder, (name, bits) in GENAI.items():
        peer("genai", name, work / folder, "float32", bits, "float32")
    for kind, bits in GGUF_BITS.items():
        cache, cache_dtype = ("f32", "float32") if kind == "f32" else ("f16", "float16")
        peer(
            "llama", f"llama.cpp {kind}, {cache} cache", work / f"{kind}.gguf", kind, bits, cache_dtype,
            site=str(site), capacity=max(PROMPTS) + NEW_TOKENS, kv=cache,
        )  # fmt: skip
    return [spec for spec in specs if only in spec.name]


def last_logits(backend: Backend, ids_S: np.ndarray) -> np.ndarray:
    """A backend's logits [V] after a prompt [S]."""
    if backend.kind == "bundle":
        return backend._model.logits(ids_S)[-1]
    if isinstance(backend, EagerBackend):
        import torch

        backend.reset(1, len(ids_S))
        with torch.inference_mode():
            ids_BS = torch.from_numpy(ids_S[None])
            found = backend._model(ids_BS, past_key_values=backend._past, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1].float().numpy()
    return backend.scores(ids_S)


def compute(spec: BackendSpec) -> tuple[list[np.ndarray], list[int]]:
    """Logits after each prompt, and greedy tokens after the first."""
    backend = BACKENDS[spec.kind](spec.options, THREADS)
    backend.prepare()
    vocab_size = backend.load().vocab_size
    prompts = [prompt_ids(Shape(count, NEW_TOKENS, 1), vocab_size) for count in PROMPTS]
    logits = [last_logits(backend, ids_BS[0]).astype(np.float64) for ids_BS in prompts]
    tokens = greedy(backend, prompts[0][0], NEW_TOKENS)
    backend.close()
    return logits, tokens


def check(specs: list[BackendSpec], work: Path) -> None:
    """Compares every backend with eager PyTorch in fp32; prints it, and leaves check.json for `measure`."""
    (reference,) = (spec for spec in specs if spec.name == REFERENCE)
    expected, written = compute(reference)
    rows: list[list[str]] = []
    found: dict[str, dict[str, Any]] = {}
    for spec in specs:
        logits, tokens = compute(spec)
        errors = [got - want for got, want in zip(logits, expected, strict=True)]
        differing = [n for n, (got, want) in enumerate(zip(tokens, written, strict=True)) if got != want]
        result = found[spec.name] = {
            "max_error_over_range": [float(np.abs(e).max() / np.ptp(w)) for e, w in zip(errors, expected, strict=True)],
            "rmse_over_deviation": [
                float(np.sqrt(np.square(e).mean()) / w.std()) for e, w in zip(errors, expected, strict=True)
            ],
            "greedy_tokens_differing": len(differing),
            "first_greedy_difference": differing[0] if differing else None,
        }
        worst = [f"{value:.1e}" for key in ("max_error_over_range", "rmse_over_deviation") for value in result[key]]
        rows.append([spec.name, *worst, str(result["greedy_tokens_differing"])])
        print(rows[-1], file=sys.stderr, flush=True)
    what = [f"{name} {count}" for name in ("max |Δ|/range", "RMSE/deviation") for count in PROMPTS]
    print_table("Logits of the last token against eager fp32", ["what runs", *what, f"of {NEW_TOKENS} greedy"], rows)
    write_json(work / "check.json", found)


def measure(specs: list[BackendSpec], work: Path, rounds: int, output: Path | None) -> None:
    """Measures, prints, and writes the document with what `check` found."""
    with show_progress() as progress:
        result = measure_specs(specs, dataclasses.replace(OPTIONS, rounds=rounds), progress)
    versions = dict(result.versions)
    named = ("transformers", "onnxruntime-genai", "llama_cpp_python", "llama-cpp-python", "gguf")
    add_versions(versions, named, path=[specs[-1].options.get("site", "")])
    add_versions(versions, named)
    result = dataclasses.replace(result, versions=versions)
    print_bench(result)
    rows = []
    for backend in result.backends:
        for shape in backend.measurements:
            prefill, decode = shape.prefill_seconds, shape.decode_tokens_per_second
            times = [f"{1e3 * value:.0f}" for value in (prefill.minimum, prefill.median, prefill.maximum)]
            speeds = [f"{value:.1f}" for value in (decode.minimum, decode.median, decode.maximum)]
            rows.append([backend.name, str(shape.shape.prompt_tokens), *times, *speeds])
    heads = [f"{what} {stat}" for what in ("prefill ms", "tok/s") for stat in ("min", "median", "max")]
    print_table("All of it", ["what runs", "prompt", *heads], rows)
    if output is not None:
        checked = json.loads((work / "check.json").read_text(encoding="utf-8"))
        write_json(output, {**result.to_dict(), "equality": checked})


def main(
    stage: Literal["make", "check", "measure"],
    work: Annotated[Path, Argument(help="the folder that `make` fills, 4 GB")],
    site: Annotated[Path, Option(help="where llama-cpp-python and gguf are")],
    rounds: int = 5,
    only: Annotated[str, Option(help="backends whose names hold this, to look closer at some")] = "",
    json_file: JsonFile = None,
) -> None:
    """One stage."""
    logging.basicConfig(level=logging.ERROR)
    work, site = work.resolve(), site.resolve()
    if stage == "make":
        sys.path.append(str(site))
        make(work)
        return
    import cpu_peers_backends  # noqa: F401 (it registers the peers)

    specs = backends(work, site, only)
    if stage == "check":
        check(specs, work)
    else:
        measure(specs, work, rounds, json_file)


if __name__ == "__main__":
    typer.run(main)
