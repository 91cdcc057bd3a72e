"""`nemotron-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from nemotron_errors import RequestError

from nemotron_export.cli.console import print_json, print_table, show_progress, size_text
from nemotron_export.cli.options import AllowUnverified, JsonOutput, WeightsDir

if TYPE_CHECKING:
    from nemotron_export.bench import BenchResult

__all__ = ["bench", "print_bench"]


def bench(
    bundles: Annotated[
        list[Path] | None, typer.Argument(metavar="BUNDLE...", help="Folders that `build` made.", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="eager: PyTorch, in fp32, the bundles' dtype and bf16 (needs the extra build).")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="For --against; by default the folder of the first bundle's weights.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Timed decode steps after it.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 1,
    context: Annotated[
        str | None, typer.Option(help="More prompt lengths, for decode against context: 128,512,1024.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count; everything is measured once in each.")] = 5,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Rounds before them; 1 by default, 3 where a GPU computes.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; one per physical core by default.")] = None,
    eager_dtype: Annotated[str | None, typer.Option(help="Only these dtypes of eager PyTorch, by commas.")] = None,
    eager_cache: Annotated[str, typer.Option(help="KV caches of eager PyTorch, by commas.")] = "dynamic,static",
    eager_device: Annotated[str, typer.Option(help="Where eager PyTorch computes: cpu or cuda.")] = "cpu",
    plot: Annotated[Path | None, typer.Option(help="Draw decode speed against context into this .png or .svg.")] = None,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    json_output: JsonOutput = False,
) -> None:
    """Measure bundles, and eager PyTorch with them, in one run: each in its own process, one at a time."""
    from nemotron_export.bench import BenchOptions, run_bench
    from nemotron_export.bench.plot import check_plot, draw

    if plot is not None:
        check_plot(plot)
    options = BenchOptions(
        prompt_tokens, new_tokens, batch, _numbers(context), rounds, warmup, threads, _words(eager_dtype),
        _words(eager_cache), eager_device,
    )  # fmt: skip
    with show_progress() as progress:
        result = run_bench(
            bundles or [], against=_words(against), checkpoint=checkpoint, weights_dir=weights_dir,
            allow_unverified=allow_unverified, options=options, progress=progress,
        )  # fmt: skip
    if plot is not None:
        draw(result, plot)
    if json_output:
        print_json(result.to_dict())
    else:
        print_bench(result)


def print_bench(result: BenchResult) -> None:
    """The result as tables on stdout, in tokens and gigabytes per second."""
    baseline, at = result.baseline, result.prompt_tokens
    columns = ["what runs", "prefill ms", "tok/s", "TTFT ms", "decode tok/s", "min-max", "GB/s", "of read bw"]
    rows: list[list[object]] = []
    for backend in result.backends:
        found = backend.at(at)
        speed, share, peak = found.decode_tokens_per_second, found.bandwidth_share, backend.device_peak_bytes
        rows.append([
            backend.name, f"{1e3 * found.prefill_seconds.median:.1f}",
            f"{found.prefill_tokens_per_second.median:.0f}", f"{1e3 * found.first_token_seconds.median:.1f}",
            f"{speed.median:.1f}", f"{speed.minimum:.0f}-{speed.maximum:.0f}",
            f"{found.decode_bytes_per_second.median / 1e9:.2f}", f"{share:.0%}",
            *([] if baseline is None else [f"{speed.median / baseline:.2f}x"]),
            f"{backend.load_seconds:.2f}", size_text(backend.peak_bytes),
            *([] if result.gpu is None else ["-" if peak is None else size_text(peak)]),
        ])  # fmt: skip
    ratio = [] if baseline is None else ["vs eager fp32"]
    on_gpu = [] if result.gpu is None else ["GPU memory"]
    title = f"{at} prompt tokens, {result.new_tokens} new, batch {result.batch} (median of {result.rounds} rounds)"
    print_table(title, [*columns, *ratio, "load s", "peak memory", *on_gpu], rows)
    if len(result.contexts) > 1:
        typer.echo()
        print_table(
            "Decode tok/s after so many prompt tokens",
            ["what runs", *map(str, result.contexts)],
            [[c.name, *(f"{m.decode_tokens_per_second.median:.1f}" for m in c.measurements)] for c in result.backends],
        )
    _print_conditions(result)


def _print_conditions(result: BenchResult) -> None:
    from nemotron_runtime.cuda import COPY_METHOD

    from nemotron_export.bench.bandwidth import METHOD
    from nemotron_export.bench.traffic import FORMULA

    machine, read = result.machine, result.read_bytes_per_second
    typer.echo(f"\nGB/s counts what a decode step must read: {FORMULA}.")
    typer.echo(
        f"Read bandwidth {read.median / 1e9:.1f} GB/s ({read.minimum / 1e9:.1f} - {read.maximum / 1e9:.1f}; {METHOD})."
    )
    if result.gpu is not None and result.gpu_bytes_per_second is not None:
        moved = result.gpu_bytes_per_second
        typer.echo(
            f"{result.gpu['name']}, {size_text(result.gpu['memory_bytes'])}, driver for CUDA "
            f"{result.gpu['cuda_driver']}: {moved.median / 1e9:.0f} GB/s ({moved.minimum / 1e9:.0f} - "
            f"{moved.maximum / 1e9:.0f}; {COPY_METHOD}), which shares of backends on it are of."
        )
    cache = machine["last_level_cache_bytes"]
    if cache and any(c.weight_bytes < cache for c in result.backends if c.device == "cpu"):
        typer.echo(f"Weights smaller than the last-level cache ({size_text(cache)}) may be read faster than memory.")
    typer.echo(
        f"\n{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{size_text(machine['memory_bytes'])} of memory, {machine['system']}, Python {machine['python']}, "
        f"load average before {machine['load_average']}"
    )
    typer.echo(", ".join(f"{name} {version}" for name, version in result.versions.items()))


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError as error:
        raise RequestError(repr(text), "numbers with commas between", "correct it", where="--context") from error
