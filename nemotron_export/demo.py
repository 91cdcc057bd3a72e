"""The whole way on the embedded checkpoint: build, prove, generate, measure next to eager PyTorch."""

from __future__ import annotations

import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_export.progress import Progress, silent

if TYPE_CHECKING:
    from nemotron_runtime.checks.report import ParityReport

    from nemotron_export.bench import BenchResult

__all__ = ["DemoResult", "run_demo"]

_PROMPTS = ("If the file does not exist,", "This module provides")
# greedy, with a penalty: a model this small repeats itself without one
_GENERATION: dict[str, Any] = {"max_new_tokens": 64, "repetition_penalty": 1.15}


@dataclass(frozen=True)
class DemoResult:
    """What the demo has to show; ``texts`` are prompts and what the bundle went on with."""

    checkpoint: str
    bundle_bytes: int
    build_seconds: float
    texts: dict[str, str]
    report: ParityReport
    benchmark: BenchResult

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "checkpoint": self.checkpoint,
            "bundle_bytes": self.bundle_bytes,
            "build_seconds": self.build_seconds,
            "texts": [{"prompt": prompt, "completion": text} for prompt, text in self.texts.items()],
            "parity": self.report.to_dict(),
            "benchmark": self.benchmark.to_dict(),
        }


def run_demo(
    output: Path | None = None,
    *,
    checkpoint: Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> DemoResult:
    """Runs the demo.

    Args:
        output: where the bundle stays; a temporary folder where None.
        checkpoint: another checkpoint than the embedded one.
        threads: CPU threads of PyTorch and of the bundle; all cores where None.
        progress: told (stage, done, total).

    Raises:
        ParityError: where the bundle's numbers differ from PyTorch's.
    """
    import nemotron_runtime

    from nemotron_export.bench import BenchOptions, run_bench
    from nemotron_export.building import build
    from nemotron_export.checkpoint import Checkpoint
    from nemotron_export.inspection.summary import bundle_size
    from nemotron_export.parity.verdict import read_report

    embedded = as_file(files("nemotron_export") / "assets" / "demo")
    with (
        embedded if checkpoint is None else nullcontext(checkpoint) as source,
        tempfile.TemporaryDirectory(prefix="nemotron-demo-") as temporary,
    ):
        opened = Checkpoint.open(source)
        started = time.perf_counter()
        path = build(source, output or Path(temporary) / "bundle", target="ort-cpu", progress=progress)
        seconds = time.perf_counter() - started
        report = read_report(path)
        assert report is not None
        with nemotron_runtime.load(path, threads=threads) as model:
            progress("generate", 0, 0)
            results = model.generate(list(_PROMPTS), **_GENERATION)
            texts = {prompt: result.text for prompt, result in zip(_PROMPTS, results, strict=True)}
        benchmark = run_bench(
            [path], against=["eager"], checkpoint=source, options=BenchOptions(threads=threads), progress=progress
        )
        config = opened.config
        described = (
            f"{opened.num_parameters / 1e6:.1f} M parameters ({opened.dtype}): {config.num_hidden_layers} layers, "
            f"hidden {config.hidden_size}, {config.num_attention_heads} heads, {config.num_key_value_heads} KV heads, "
            f"head_dim {config.head_dim}, vocabulary {config.vocab_size}"
        )
        return DemoResult(described, bundle_size(path), seconds, texts, report, benchmark)
