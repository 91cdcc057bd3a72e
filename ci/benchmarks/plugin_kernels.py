"""Time and bandwidth of each GPU kernel at Minitron-4B's shape, and of a whole decode step of them.

    python ci/benchmarks/plugin_kernels.py --output kernels.json
    python ci/benchmarks/plugin_kernels.py --output sweep.json --sweep up.r8 down.r8
    python ci/benchmarks/plugin_kernels.py --output sweep.json --sweep o.r1 --by-step

Each figure is of one CUDA graph of many launches, one after another over different weights or caches, which together
are several times the L2 cache. Bytes are those that a launch must read and write once. A sweep tries block sizes: of a
projection outputs x inputs x warps x stages, of attention (fused.r1) splits x tokens x warps x stages. The figure of a
projection of several rows holds the norm before it, and that of attention the combination after it. Kernels overlap in
a step: the fastest alone is not what makes the fastest step, which `--by-step` measures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
import triton
from nemotron_formats.dtypes import item_bytes
from nemotron_plugins.launches.attention import cached_attention_combine_rule
from nemotron_plugins.launches.launch import Gpu, Launch
from nemotron_plugins.launches.linear import row_bucket
from plugin_kernels_sweep import ATTENTION, variants
from support.kernel_requests import MINITRON_4B, ModelSizes
from support.torch_kernels import argmax, candidates, gpu_of, prepare_op, run_launch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

LAYERS = 32
# of all that the launches of one figure read: several times the L2 cache of any GPU
_COLD_BYTES = 400e6
_MIN_LAUNCHES = 64
_REPLAYS = 10
Call = Callable[[], Any]
# makes calls over memory of their own, and the bytes that one must move
Made = tuple[Callable[[], Call], int]


class Kernels:
    """The launches of a model on a GPU, and the plugins that call them on random tensors."""

    def __init__(self, spec: ModelSizes, gpu: Gpu, device: str = "cuda") -> None:
        self.spec, self.requests, self.launches, self.device = spec, spec.requests, spec.launches(gpu), device

    def tensor(self, *shape: int, dtype: str = "") -> torch.Tensor:
        """Small random numbers, of the run dtype by default."""
        return torch.randn(shape, device=self.device, dtype=getattr(torch, dtype or self.spec.dtype)) * 0.02

    def call(self, name: str, inputs: Sequence[torch.Tensor], **changed: Launch) -> Call:
        """One call of the plugin of a node; of its variants, the named ones are changed."""
        own = (key.removeprefix(f"{name}.") for key in self.launches if key.startswith(f"{name}."))
        launches = {variant: self.launches[f"{name}.{variant}"] for variant in own} | changed
        return prepare_op(self.requests[name], inputs, launches)[0]

    def linear(self, name: str, rows: int) -> Made:
        """A projection; each call has a weight of its own."""
        request = self.requests[name]
        inputs = [self.tensor(*(rows if size is None else size for size in shape)) for shape in request.shapes]
        place = 3 if request.op == "LayerNormLinear" else 1
        weight_OI = inputs[place]
        output = "float32" if ("output", "float32") in request.attributes else request.dtype
        # gamma and beta are not counted
        size = sum(each.nbytes for each in inputs if each.dim() > 1) + rows * len(weight_OI) * item_bytes(output)
        weight_shape = weight_OI.shape
        return lambda: self.call(name, [*inputs[:place], self.tensor(*weight_shape), *inputs[place + 1 :]]), size

    def norm(self, rows: int) -> Made:
        """The norm before a projection of several rows."""
        launch, gamma = self.launches["qkv.norm"], self.tensor(self.spec.hidden)

        def make() -> Call:
            x = self.tensor(rows, self.spec.hidden)
            out = torch.empty_like(x)
            return lambda: run_launch(launch, x, gamma, gamma, out, B=rows, S=1)

        return make, 2 * rows * gamma.nbytes + 2 * gamma.nbytes

    def attention(self, rows: int, filled: int) -> Made:
        """Rotation, update and attention of one token per sequence, over caches of their own that hold so many tokens,
        and the combination after it."""
        spec, bucket = self.spec, row_bucket(rows)
        decode = self.launches[f"{ATTENTION}.r{bucket}"]
        combine = cached_attention_combine_rule(
            query_heads=spec.query_heads,
            head_dim=spec.head_dim,
            splits=int(decode.constexprs["SPLITS"]),
            pdl=decode.pdl,
        )
        qkv = self.tensor(rows, 1, (spec.query_heads + 2 * spec.kv_heads) * spec.head_dim)
        table = self.tensor(spec.capacity, spec.rotary_dim // 2)
        start = torch.full((rows,), filled - 1, device=self.device)
        cache_shape = rows, spec.kv_heads, -(-filled // 256) * 256, spec.head_dim

        def make() -> Call:
            caches = [self.tensor(*cache_shape) for _ in "kv"]
            inputs = [qkv, table, table, start[:, None], *caches, start]
            return self.call(ATTENTION, inputs, **{f"combine{bucket}": combine})

        vectors = 2 * spec.kv_heads * filled + 2 * (spec.query_heads + spec.kv_heads)
        return make, rows * vectors * spec.head_dim * qkv.element_size()

    def choice(self, rows: int, choose: Callable[[torch.Tensor], Any]) -> Made:
        """What is chosen of logits [rows, outputs]."""
        shape = rows, self.spec.outputs

        def make() -> Call:
            logits = self.tensor(*shape, dtype="float32")
            return lambda: choose(logits)

        return make, 4 * rows * self.spec.outputs

    def step(self, rows: int, filled: int) -> Made:
        """All kernels of a decode step, without the engine around them; nothing of one feeds the next."""
        qkv, o, up, down, head = (self.linear(name, rows) for name in ("qkv", "o", "up", "down", "head"))
        layer = [qkv, self.attention(rows, filled), o, up, down]
        made = [*layer * LAYERS, head, self.choice(rows, argmax)]
        calls = [make() for make, _ in made]

        def call_all() -> None:
            for call in calls:
                call()

        return lambda: call_all, sum(size for _, size in made)


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


def figure(name: str, rows: int, filled: int | None, made: Made, **more: Any) -> dict[str, Any]:
    """Measures, prints and returns one figure."""
    make, size = made
    time = microseconds(make, size, launches=1 if name == "step" else None)
    row = {"kernel": name, "rows": rows, "context": filled, "microseconds": time, "bytes": size, **more}
    row["gigabytes_per_second"] = size / time / 1e3
    context = "" if filled is None else f"context {filled}"
    line = f"{name:28} rows {rows}  {context:13} {time:9.2f} µs  {row['gigabytes_per_second']:7.0f} GB/s"
    print(line, *more.values(), flush=True)
    return row


def kernels(made: Kernels, rows: Sequence[int], contexts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every kernel of a step, and the step, for each number of rows."""
    temperature = torch.ones(1, device=made.device)
    for count in rows:
        bucket = row_bucket(count)
        for name in ("qkv", "up", "o", "down", "head"):
            yield figure(f"{name}.r{bucket}", count, None, made.linear(name, count))
        if bucket > 1:
            yield figure("norm", count, None, made.norm(count))
        yield figure("argmax", count, None, made.choice(count, argmax))
        yield figure("candidates", count, None, made.choice(count, partial(candidates, temperature=temperature)))
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
        attention = key.startswith(ATTENTION)
        for blocks, launch in variants(key, own, chosen):
            made.launches[key] = launch
            try:
                if not by_step and not attention:
                    yield figure(key, rows, None, made.linear(key.split(".")[0], rows), blocks=blocks)
                    continue
                for filled in contexts:
                    if by_step:
                        yield figure("step", rows, filled, made.step(rows, filled), key=key, blocks=blocks)
                    else:
                        yield figure(key, rows, filled, made.attention(rows, filled), blocks=blocks)
            except (OutOfResources, CompilationError, RuntimeError) as error:
                print(f"{key}: {blocks}: {type(error).__name__}")
        made.launches[key] = own


def main() -> None:
    """Measures on the first GPU and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 2048])
    what = "projection or fused attention, and its bucket of rows: up.r8"
    parser.add_argument("--sweep", nargs="+", default=[], metavar="KEY", help=what)
    parser.add_argument("--by-step", action="store_true", help="measure a whole step with each of the sweep's blocks")
    parser.add_argument(
        "--blocks", nargs="+", default=[], metavar="AxBxWARPSxSTAGES",
        type=lambda text: tuple(map(int, text.split("x"))),
        help="of the sweep; all that make sense by default",
    )  # fmt: skip
    arguments = parser.parse_args()
    made = Kernels(MINITRON_4B, gpu_of(torch.empty(0, device="cuda")))
    if arguments.sweep:
        found = sweep(made, arguments.sweep, arguments.contexts, arguments.blocks, arguments.by_step)
    else:
        found = kernels(made, arguments.rows, arguments.contexts)
    document = {
        "device": torch.cuda.get_device_name(0), "torch": torch.__version__, "triton": triton.__version__,
        "sizes": dataclasses.asdict(MINITRON_4B), "figures": [],
    }  # fmt: skip
    for row in found:
        document["figures"].append(row)
        # what was measured is kept where a later figure fails
        arguments.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
