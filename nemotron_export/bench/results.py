"""What a run found, as data: one document, whose fields ci/benchmarks/README.md lists."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from nemotron_runtime.cuda import COPY_METHOD

from nemotron_export.bench.backends.base import Description
from nemotron_export.bench.bandwidth import METHOD
from nemotron_export.bench.options import Shape, Times
from nemotron_export.bench.traffic import FORMULA, step_bytes

__all__ = ["FORMAT", "BackendResult", "BenchResult", "Measurement", "Spread"]

FORMAT = 1


@dataclass(frozen=True)
class Spread:
    """A quantity over the rounds."""

    minimum: float
    median: float
    maximum: float
    rounds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Of at least one value."""
        return cls(min(values), statistics.median(values), max(values), tuple(values))


@dataclass(frozen=True)
class Measurement:
    """One backend at one shape.

    Attributes:
        prefill_tokens_per_second: prompt tokens of all sequences over `prefill_seconds`.
        decode_tokens_per_second: new tokens of all sequences over the time of the decode steps.
        step_bytes: what an average decode step must read, see `bench.traffic`.
        decode_bytes_per_second: `step_bytes` times steps over their time.
        bandwidth_share: the median of that over the median bandwidth of the memory that it reads: the machine's, or
            the GPU's.
    """

    shape: Shape
    prefill_seconds: Spread
    first_token_seconds: Spread
    prefill_tokens_per_second: Spread
    decode_tokens_per_second: Spread
    step_bytes: float
    decode_bytes_per_second: Spread
    bandwidth_share: float

    @classmethod
    def of(cls, shape: Shape, times: Sequence[Times], description: Description, read_bandwidth: float) -> Self:
        """From the times of all rounds; `read_bandwidth` in bytes per second."""
        needed = step_bytes(description.weight_bytes, description.kv_bytes_per_token, shape)
        moved = Spread.of([needed * shape.new_tokens / t.decode for t in times])
        return cls(
            shape,
            Spread.of([t.prefill for t in times]),
            Spread.of([t.first_token for t in times]),
            Spread.of([shape.batch * shape.prompt_tokens / t.prefill for t in times]),
            Spread.of([shape.batch * shape.new_tokens / t.decode for t in times]),
            needed,
            moved,
            moved.median / read_bandwidth,
        )


@dataclass(frozen=True)
class BackendResult:
    """One backend.

    Attributes:
        kind: its key in `BACKENDS`.
        weight_bytes: of the weights that a decode step reads.
        load_seconds: from opening the files until it could compute, without imports; once, before the rounds.
        peak_bytes: high-water mark of its process's resident memory, libraries and mapped weights included.
        measurements: one per shape, shortest prompt first.
        device: where it computed: "cpu" or "cuda".
        device_peak_bytes: the most that it allocated of the GPU's memory; None without one.
    """

    name: str
    kind: str
    dtype: str
    weight_bytes: int
    kv_bytes_per_token: int
    load_seconds: float
    peak_bytes: int
    measurements: tuple[Measurement, ...]
    device: str = "cpu"
    device_peak_bytes: int | None = None

    def at(self, prompt_tokens: int) -> Measurement:
        """The measurement after so many prompt tokens."""
        return next(m for m in self.measurements if m.shape.prompt_tokens == prompt_tokens)


@dataclass(frozen=True)
class BenchResult:
    """A whole run.

    Attributes:
        prompt_tokens: prompt length of the main table.
        new_tokens: decode steps of a measurement.
        contexts: prompt lengths that decode was measured after.
        read_bytes_per_second: the machine's read bandwidth, one value per round.
        read_buffer_bytes: what was read for it.
        machine: processor, cores, threads used, memory, caches, system, load before the run.
        backends: in the order they were named.
        gpu: where a backend computed on it: name, architecture, cuda_driver, memory_bytes.
        gpu_bytes_per_second: bandwidth of its memory, one value per round; None without one.
    """

    prompt_tokens: int
    new_tokens: int
    batch: int
    contexts: tuple[int, ...]
    rounds: int
    warmup: int
    read_bytes_per_second: Spread
    read_buffer_bytes: int
    machine: dict[str, Any]
    versions: dict[str, str]
    backends: tuple[BackendResult, ...]
    gpu: dict[str, Any] | None = None
    gpu_bytes_per_second: Spread | None = None

    @property
    def baseline(self) -> float | None:
        """Decode tokens per second of the fastest fp32 eager PyTorch at `prompt_tokens`; None where none ran."""
        speeds = [
            c.at(self.prompt_tokens).decode_tokens_per_second.median
            for c in self.backends
            if c.kind == "eager" and c.dtype == "float32"
        ]
        return max(speeds, default=None)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        document = {"format": FORMAT, "step_formula": FORMULA, "read_method": METHOD, **asdict(self)}
        # format 1 calls them so
        document["contenders"] = document.pop("backends")
        if self.gpu is not None:
            return {**document, "gpu_method": COPY_METHOD}
        # a run without a GPU says nothing of one
        del document["gpu"], document["gpu_bytes_per_second"]
        for backend in document["contenders"]:
            del backend["device"], backend["device_peak_bytes"]
        return document
