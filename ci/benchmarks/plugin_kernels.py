"""Time and bandwidth of each GPU kernel at Minitron-4B's shape, and of a whole decode step of them.

    python ci/benchmarks/plugin_kernels.py --output kernels.json
    python ci/benchmarks/plugin_kernels.py --output sweep.json --sweep up.r8 down.r8
    python ci/benchmarks/plugin_kernels.py --output sweep.json --sweep o.r1 --by-step

Each figure is of one CUDA graph of many launches, one after another over different weights or caches, which together
are several times the L2 cache. Bytes are those that a launch must read and write once. A sweep tries block sizes: of a
projection outputs x inputs x warps x stages, of attention (fused.r1) splits x slots x warps x stages. The figure of a
projection of several rows holds the norm before it, and that of attention the combination after it. Kernels overlap in
a step: the fastest alone is not what makes the fastest step, which `--by-step` measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
import triton
from nemotron_plugins.launches.attention import cached_attention_combine_rule
from nemotron_plugins.launches.candidates import tournament
from nemotron_plugins.launches.launch import Gpu
from nemotron_plugins.launches.linear import row_bucket
from plugin_kernels_sweep import ATTENTION, variants
from support.kernel_requests import MINITRON_4B, ModelSizes
from support.torch_kernels import gpu_of, run_launch

LAYERS = 32
PROJECTIONS = ("qkv", "o", "up", "down", "head")
# of all that the launches of one figure read: several times the L2 cache of any GPU
_COLD_BYTES = 400e6
_MIN_LAUNCHES = 64
_REPLAYS = 10
Call = Callable[[], None]


class Kernels:
    """The launches of a model on this GPU, and tensors for them. ``bytes_of`` says what a call must move."""

    def __init__(self, spec: ModelSizes, gpu: Gpu) -> None:
        self.spec = spec
        self.launches = spec.launches(gpu)
        self.dtype: torch.dtype = getattr(torch, spec.dtype)
        self.width = spec.query_heads * spec.head_dim
        self.packed = self.width + 2 * spec.kv_heads * spec.head_dim

    def tensor(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Small random numbers."""
        return torch.randn(shape, device="cuda", dtype=dtype or self.dtype) * 0.02

    def linear(self, key: str, rows: int) -> tuple[Callable[[], Call], int]:
        """A maker of calls of a projection, each with a weight of its own, and the bytes of one."""
        launch = self.launches[key]
        inputs, outputs = int(launch.constexprs["INPUTS"]), int(launch.constexprs["OUTPUTS"])
        x, gamma = self.tensor(rows, inputs), self.tensor(inputs)
        float32 = dict(launch.arguments)["out_ptr"] == "*fp32"
        out = self.tensor(rows, outputs, dtype=torch.float32 if float32 else None)
        residual = self.tensor(rows, outputs)

        norm = None
        normed_first = "HAS_NORM" in launch.constexprs
        if normed_first and not launch.constexprs["HAS_NORM"]:
            norm = self.launches[f"{key.split('.')[0]}.norm"]
        normed = torch.empty_like(x)

        def make() -> Call:
            weight = self.tensor(outputs, inputs)
            arguments: tuple[Any, ...] = (x, weight, weight, residual, out, rows)
            if normed_first:
                arguments = (x if norm is None else normed, gamma, gamma, weight, weight, out, rows)

            def call() -> None:
                if norm is not None:
                    run_launch(norm, x, gamma, gamma, normed, B=rows, S=1)
                run_launch(launch, *arguments, B=rows, S=1)

            return call

        weight_bytes = outputs * inputs * x.element_size()
        return make, weight_bytes + (x.nbytes + out.nbytes) + (0 if normed_first else residual.nbytes)

    def norm(self, rows: int) -> tuple[Callable[[], Call], int]:
        """The norm before a projection of several rows."""
        launch, gamma = self.launches["qkv.norm"], self.tensor(self.spec.hidden)

        def make() -> Call:
            x = self.tensor(rows, self.spec.hidden)
            out = torch.empty_like(x)
            return lambda: run_launch(launch, x, gamma, gamma, out, B=rows, S=1)

        return make, 2 * rows * self.spec.hidden * gamma.element_size() + 2 * gamma.nbytes

    def attention(self, rows: int, filled: int) -> tuple[Callable[[], Call], int]:
        """Rotation, update and attention of one token per row, over caches of their own with so many filled slots, and
        the combination after it."""
        spec = self.spec
        decode = self.launches[f"{ATTENTION}.r{row_bucket(rows)}"]
        splits, slots = int(decode.constexprs["SPLITS"]), -(-filled // 256) * 256
        combine = cached_attention_combine_rule(
            query_heads=spec.query_heads, head_dim=spec.head_dim, splits=splits, pdl=decode.pdl
        )
        qkv = self.tensor(rows, 1, self.packed)
        table = self.tensor(slots, spec.rotary_dim // 2)
        out = self.tensor(rows, 1, spec.query_heads, spec.head_dim)
        start = torch.full((rows,), filled - 1, device="cuda")
        partial = self.tensor(rows, spec.query_heads, splits, spec.head_dim, dtype=torch.float32)
        partial_lse = self.tensor(rows, spec.query_heads, splits, dtype=torch.float32)

        def make() -> Call:
            caches = [self.tensor(rows, spec.kv_heads, slots, spec.head_dim) for _ in "kv"]

            def call() -> None:
                arguments: tuple[Any, ...] = (qkv, table, table, start, start, *caches, out, partial, partial_lse)
                run_launch(decode, *arguments, slots, slots, B=rows, S=1)
                if splits > 1:
                    run_launch(combine, partial, partial_lse, out, B=rows, S=1)

            return call

        cached = 2 * rows * spec.kv_heads * filled * spec.head_dim * qkv.element_size()
        return make, cached + qkv.nbytes + out.nbytes

    def argmax(self, rows: int) -> tuple[Callable[[], Call], int]:
        """The greedy choice: both kernels."""
        first, second = self.launches["Argmax.argmax"], self.launches["Argmax.argmax_combine"]
        parts = int(first.constexprs["PARTS"])
        partial = self.tensor(rows, parts, dtype=torch.float32)
        index = torch.zeros(rows, parts, dtype=torch.int64, device="cuda")
        tokens = torch.zeros(rows, dtype=torch.int64, device="cuda")

        def make() -> Call:
            logits = self.tensor(rows, self.spec.outputs, dtype=torch.float32)

            def call() -> None:
                run_launch(first, logits, partial, index, B=rows)
                run_launch(second, partial, index, tokens, B=rows)

            return call

        return make, 4 * rows * self.spec.outputs

    def candidates(self, rows: int) -> tuple[Callable[[], Call], int]:
        """The largest logits: all launches of the tournament."""
        first, merge = (self.launches[f"TopCandidates.{key}"] for key in ("candidates", "candidates_merge"))
        log_block, log_count = int(first.constexprs["LOG_BLOCK"]), int(first.constexprs["LOG_COUNT"])
        parts = tournament(self.spec.outputs, log_block, log_count)
        keys = [torch.zeros(rows, n, 1 << log_count, dtype=torch.int64, device="cuda") for n in parts]
        mass = self.tensor(rows, parts[0], 2, dtype=torch.float32)
        temperature = torch.ones(1, device="cuda")

        def make() -> Call:
            logits = self.tensor(rows, self.spec.outputs, dtype=torch.float32)

            def call() -> None:
                run_launch(first, logits, temperature, keys[0], mass, B=rows)
                for source, target in itertools.pairwise(keys):
                    run_launch(merge, source, target, source.shape[1] << log_count, B=rows, P=target.shape[1])

            return call

        return make, 4 * rows * self.spec.outputs

    def step(self, rows: int, filled: int) -> tuple[Callable[[], Call], int]:
        """All kernels of a decode step, without the engine around them; nothing of one feeds the next."""
        bucket, calls, total = row_bucket(rows), [], 0
        layer = [
            self.linear(f"qkv.r{bucket}", rows),
            self.attention(rows, filled),
            self.linear(f"o.r{bucket}", rows),
            self.linear(f"up.r{bucket}", rows),
            self.linear(f"down.r{bucket}", rows),
        ]
        for make, size in [*layer * LAYERS, self.linear(f"head.r{bucket}", rows), self.argmax(rows)]:
            calls.append(make())
            total += size

        def call_all() -> None:
            for call in calls:
                call()

        return lambda: call_all, total


def microseconds(make: Callable[[], Call], size: int, *, launches: int | None = None) -> float:
    """Time of one call, in a CUDA graph of so many (or enough) calls over different memory."""
    distinct = max(2, int(_COLD_BYTES / size) + 1) if launches is None else launches
    distinct = min(distinct, 256)
    calls = [make() for _ in range(distinct)]
    repeats = 1 if launches is not None else max(1, -(-_MIN_LAUNCHES // distinct))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for call in calls:
                call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    begin.record()
    for _ in range(_REPLAYS):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) * 1e3 / (_REPLAYS * repeats * distinct)


def figure(
    name: str, rows: int, filled: int | None, made: tuple[Callable[[], Call], int], **more: Any
) -> dict[str, Any]:
    """Measures, prints and returns one figure."""
    make, size = made
    time = microseconds(make, size, launches=1 if name == "step" else None)
    row = {"kernel": name, "rows": rows, "context": filled, "microseconds": time, "bytes": size, **more}
    row["gigabytes_per_second"] = size / time / 1e3
    context = "" if filled is None else f"context {filled}"
    print(
        f"{name:28} rows {rows}  {context:13} {time:9.2f} µs  {row['gigabytes_per_second']:7.0f} GB/s",
        *more.values(),
        flush=True,
    )
    return row


def kernels(made: Kernels, rows: Sequence[int], contexts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every kernel of a step, and the step, for each number of rows."""
    for count in rows:
        bucket = row_bucket(count)
        for key in made.launches:
            if key.split(".")[0] in PROJECTIONS and key.endswith(f".r{bucket}"):
                yield figure(key, count, None, made.linear(key, count))
        if bucket > 1:
            yield figure("norm", count, None, made.norm(count))
        yield figure("argmax", count, None, made.argmax(count))
        yield figure("candidates", count, None, made.candidates(count))
        for filled in contexts:
            yield figure(ATTENTION, count, filled, made.attention(count, filled))
            yield figure("step", count, filled, made.step(count, filled))
            torch.cuda.empty_cache()


def sweep(
    made: Kernels, keys: Sequence[str], contexts: Sequence[int], chosen: Sequence[Sequence[int]], by_step: bool
) -> Iterator[dict[str, Any]]:
    """The named kernels with other blocks, alone or in a whole step; what a GPU cannot hold is left out."""
    for key in keys:
        rows, own = int(key.rsplit(".r", 1)[1]), made.launches[key]
        depends = by_step or key.startswith(ATTENTION)
        for blocks, launch in variants(key, own, chosen):
            made.launches[key] = launch
            try:
                for filled in contexts if depends else (None,):
                    if by_step:
                        yield figure("step", rows, filled, made.step(rows, filled or 0), key=key, blocks=blocks)
                    elif filled is not None:
                        yield figure(key, rows, filled, made.attention(rows, filled), blocks=blocks)
                    else:
                        yield figure(key, rows, None, made.linear(key, rows), blocks=blocks)
            except (
                triton.runtime.errors.OutOfResources,
                triton.compiler.errors.CompilationError,
                RuntimeError,
            ) as error:
                print(f"{key}: {blocks}: {type(error).__name__}")
        made.launches[key] = own


def main() -> None:
    """Measures on the first GPU and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument(
        "--sweep",
        nargs="+",
        default=[],
        metavar="KEY",
        help="projection or fused attention, and its bucket of rows: up.r8",
    )
    parser.add_argument("--by-step", action="store_true", help="measure a whole step with each of the sweep's blocks")
    parser.add_argument(
        "--blocks", nargs="+", default=[], metavar="AxBxWARPSxSTAGES",
        type=lambda text: tuple(map(int, text.split("x"))),
        help="of the sweep; all that make sense by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    properties = torch.cuda.get_device_properties(0)
    made = Kernels(MINITRON_4B, gpu_of(torch.empty(0, device="cuda")))
    if arguments.sweep:
        found = sweep(made, arguments.sweep, arguments.contexts, arguments.blocks, arguments.by_step)
    else:
        found = kernels(made, arguments.rows, arguments.contexts)
    document = {
        "device": properties.name,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "sizes": dataclasses.asdict(MINITRON_4B),
        "figures": [],
    }
    for row in found:
        document["figures"].append(row)
        # what was measured is kept where a later figure fails
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
