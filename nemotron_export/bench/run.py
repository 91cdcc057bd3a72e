"""One run: starts a process per backend, loads them one after another, measures in rounds, ends them all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
from nemotron_errors import RequestError, ResourceError
from nemotron_runtime.bundle.folder import Bundle

from nemotron_export.bench.backends import BACKENDS
from nemotron_export.bench.backends.base import BackendSpec, BenchRequest
from nemotron_export.bench.bandwidth import ReadBandwidth, last_level_cache
from nemotron_export.bench.gpu import Gpu
from nemotron_export.bench.options import BenchOptions, default_threads
from nemotron_export.bench.process import BackendProcess
from nemotron_export.bench.results import BackendResult, BenchResult, Measurement, Spread
from nemotron_export.bench.schedule import run_rounds
from nemotron_export.installation.memory import available_memory
from nemotron_export.installation.versions import environment
from nemotron_export.parity.verdict import quiet_about_parity
from nemotron_export.progress import Progress, silent

__all__ = ["measure_specs", "run_bench"]


def run_bench(
    bundles: Sequence[str | Path],
    *,
    against: Sequence[str] = (),
    checkpoint: str | Path | None = None,
    weights_dir: str | Path | None = None,
    allow_unverified: bool = False,
    options: BenchOptions | None = None,
    progress: Progress = silent,
) -> BenchResult:
    """Measures bundles, and what they are compared with, in one run.

    Every backend has a process of its own, so that load time and peak memory are its own; all are loaded before the
    first round, and only one of them computes at a time.

    Args:
        bundles: folders of bundles.
        against: kinds of other backends, keys of `BACKENDS`: "eager".
        checkpoint: for the others; the folder of the first bundle's weights where None.
        weights_dir: where the bundles' weights are, if they were moved.
        allow_unverified: measure bundles whose parity is pending.
        options: how to measure.
        progress: told (stage, done, total).

    Raises:
        RequestError: nothing to measure, an unknown kind, or numbers below 1.
        BundleError: a bundle that cannot be opened.
        LimitError: more tokens or sequences than a bundle was built for.
        MissingDependencyError: what a backend needs is not installed.
        ResourceError: too little memory to hold all backends at once.
    """
    chosen = options or BenchOptions()
    _check(chosen, bundles, against)
    with quiet_about_parity():
        opened = tuple(Bundle.open(b, weights_dir=weights_dir, allow_unverified=allow_unverified) for b in bundles)
    source, weights = (None if folder is None else Path(folder) for folder in (checkpoint, weights_dir))
    request = BenchRequest(opened, source, weights, allow_unverified, chosen)
    specs = [spec for kind in dict.fromkeys(("bundle", *against)) for spec in BACKENDS[kind].specs(request)]
    return measure_specs(specs, chosen, progress)


def measure_specs(specs: Sequence[BackendSpec], options: BenchOptions, progress: Progress = silent) -> BenchResult:
    """Measures backends whose kinds are in `BACKENDS`, in one run; see :func:`run_bench`.

    Raises:
        ResourceError: too little memory to hold all backends at once.
        NemotronError: what a backend raised.
    """
    _check_memory(specs)
    threads = options.threads or default_threads()
    warmup = options.warmup_of(any(spec.device == "cuda" for spec in specs))
    machine = _machine(threads)
    with ExitStack() as stack:
        gpu = stack.enter_context(Gpu(specs)) if any(spec.device == "cuda" for spec in specs) else None
        processes = [stack.enter_context(BackendProcess(spec, threads)) for spec in specs]
        # they import at once, and load one after another
        progress("start", 0, 0)
        for process in processes:
            process.wait_ready()
        loaded = {}
        for number, process in enumerate(processes):
            progress("load", number, len(processes))
            loaded[process.name] = process.load()
        read = stack.enter_context(closing(ReadBandwidth(threads)))

        def probe() -> float:
            if gpu is not None:
                gpu()
            return read()

        times, probed = run_rounds(
            processes, options.shapes, rounds=options.rounds, warmup=warmup, probe=probe, progress=progress
        )
        peaks = {process.name: (process.close(), process.device_peak_bytes) for process in processes}
        buffer_bytes = read.buffer_bytes
        on_gpu = None if gpu is None else (gpu.describe(), Spread.of(gpu.measured(options.rounds)))
    bandwidth = Spread.of(probed)
    backends = []
    for spec in specs:
        seconds, described = loaded[spec.name]
        memory = on_gpu[1] if on_gpu is not None and spec.device == "cuda" else bandwidth
        found = tuple(
            Measurement.of(shape, times[spec.name, shape], described, memory.median) for shape in options.shapes
        )
        peak, device_peak = peaks[spec.name]
        backends.append(
            BackendResult(
                spec.name, spec.kind, described.dtype, described.weight_bytes, described.kv_bytes_per_token, seconds,
                peak, found, spec.device, device_peak,
            )
        )  # fmt: skip
    versions = machine.pop("versions")
    return BenchResult(
        options.prompt_tokens,
        options.new_tokens,
        options.batch,
        tuple(shape.prompt_tokens for shape in options.shapes),
        options.rounds,
        warmup,
        bandwidth,
        buffer_bytes,
        machine,
        versions,
        tuple(backends),
        *(on_gpu or ()),
    )


def _machine(threads: int) -> dict[str, Any]:
    return {
        **environment(threads),
        "memory_bytes": psutil.virtual_memory().total,
        "last_level_cache_bytes": last_level_cache(),
        # of the minute before: above zero, something else was running
        "load_average": round(psutil.getloadavg()[0], 2),
    }


def _check(options: BenchOptions, bundles: Sequence[str | Path], against: Sequence[str]) -> None:
    if not bundles and not against:
        raise RequestError("nothing to measure", "a bundle, or --against", "name one", where="bench")
    known = [kind for kind in BACKENDS if kind != "bundle"]
    for kind in against:
        if kind not in known:
            raise RequestError(repr(kind), f"one of {', '.join(known)}", "choose one of them", where="--against")
    numbers = {
        "--prompt-tokens": (options.prompt_tokens,), "--new-tokens": (options.new_tokens,), "--batch": (options.batch,),
        "--context": options.contexts, "--rounds": (options.rounds,),
        "--warmup": () if options.warmup is None else (options.warmup + 1,),
        "--threads": () if options.threads is None else (options.threads,),
    }  # fmt: skip
    for option, values in numbers.items():
        for value in values:
            if value < 1:
                raise RequestError(str(value), "a number of at least 1", "correct it", where=option)


def _check_memory(specs: Sequence[BackendSpec]) -> None:
    # the GPU's own memory is looked at where it is opened
    specs = [spec for spec in specs if spec.device == "cpu"]
    needed, available = sum(spec.weight_bytes for spec in specs), available_memory()
    if needed > available:
        raise ResourceError(
            f"{available / 1e9:.1f} GB of memory available",
            f"{needed / 1e9:.1f} GB for the weights of {len(specs)} backends, which are loaded at once",
            "measure fewer of them: fewer bundles, --eager-dtype bfloat16, --eager-cache static",
            where="memory",
        )
