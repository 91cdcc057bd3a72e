"""The parts of a measurement: turns, statistics, what a step must read, the bandwidth probe. No timings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nemotron_export.bench.backends.base import Description
from nemotron_export.bench.bandwidth import ReadBandwidth, last_level_cache
from nemotron_export.bench.options import Shape, Times
from nemotron_export.bench.results import Measurement, Spread
from nemotron_export.bench.schedule import run_rounds
from nemotron_export.bench.traffic import kv_bytes_per_token, read_parameters, step_bytes, total_parameters
from nemotron_export.config.config import NemotronConfig

_COMMON = {"vocab_size": 256000, "num_hidden_layers": 32, "num_key_value_heads": 8, "head_dim": 128}
MINITRON_4B = {**_COMMON, "hidden_size": 3072, "num_attention_heads": 24, "intermediate_size": 9216}
MINITRON_8B = {**_COMMON, "hidden_size": 4096, "num_attention_heads": 48, "intermediate_size": 16384}
NEMOTRON_4_340B = {
    **_COMMON, "num_hidden_layers": 96, "head_dim": 192, "hidden_size": 18432, "num_attention_heads": 96,
    "intermediate_size": 73728,
}  # fmt: skip


@dataclass
class Fake:
    name: str
    order: list[tuple[str, int]] = field(default_factory=list)

    def measure(self, shape: Shape) -> Times:
        self.order.append((self.name, shape.prompt_tokens))
        return Times(1.0, 2.0, float(len(self.order)))


def test_backends_take_turns_and_each_round_begins_with_another() -> None:
    order: list[tuple[str, int]] = []
    fakes = [Fake(name, order) for name in "abc"]
    shapes = [Shape(8, 4, 1), Shape(16, 4, 1)]
    probed = iter(range(100))
    told: list[tuple[str, int, int]] = []
    times, probes = run_rounds(
        fakes, shapes, rounds=2, warmup=1, probe=lambda: float(next(probed)), rest=0,
        progress=lambda *state: told.append(state),
    )  # fmt: skip
    rounds = ["abc", "bca", "cab"]
    assert order == [(name, length) for names in rounds for length in (8, 16) for name in names]
    assert set(times) == {(name, shape) for name in "abc" for shape in shapes}
    assert all(len(found) == 2 for found in times.values()), "the warm-up does not count"
    assert times["a", shapes[0]] == [Times(1.0, 2.0, 9.0), Times(1.0, 2.0, 14.0)]
    assert probes == [1.0, 2.0]
    assert told == [("measure", done, 18) for done in range(18)]


def test_backends_of_one_name_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="distinct"):
        run_rounds([Fake("a"), Fake("a")], [Shape(8, 4, 1)], rounds=1, warmup=0, probe=lambda: 1.0, rest=0)


def test_a_spread_keeps_the_rounds() -> None:
    assert Spread.of([3.0, 1.0, 2.0, 10.0]) == Spread(1.0, 2.5, 10.0, (3.0, 1.0, 2.0, 10.0))


def test_a_measurement_by_hand() -> None:
    shape = Shape(prompt_tokens=100, new_tokens=9, batch=2)
    times = [Times(0.5, 0.75, 2.0), Times(0.25, 0.5, 1.0), Times(1.0, 2.0, 4.0)]
    found = Measurement.of(shape, times, Description("float32", 10, 1000, 8), read_bandwidth=100_000.0)
    # 1000 of weights, and 2 rows with 105 tokens on average (101 to 109) of 8 bytes each
    assert found.step_bytes == 1000 + 2 * 105 * 8
    assert (found.prefill_seconds.minimum, found.prefill_seconds.median) == (0.25, 0.5)
    assert found.first_token_seconds.median == 0.75
    assert found.prefill_tokens_per_second.rounds == (400.0, 800.0, 200.0)
    assert found.decode_tokens_per_second.rounds == (9.0, 18.0, 4.5)
    assert found.decode_bytes_per_second.median == 2680 * 9 / 2
    assert found.bandwidth_share == pytest.approx(0.1206)


@pytest.mark.parametrize(("config", "gigabytes"), [(MINITRON_4B, 6.81), (MINITRON_8B, 14.45), (NEMOTRON_4_340B, 673.0)])
def test_a_decode_step_reads_all_but_the_embedding(config: dict[str, int], gigabytes: float) -> None:
    read = 2 * read_parameters(NemotronConfig.from_dict({"model_type": "nemotron", **config}))
    assert read / 1e9 == pytest.approx(gigabytes, rel=1e-3)


def test_tied_heads_are_read_and_counted_once() -> None:
    config = {"model_type": "nemotron", **MINITRON_4B}
    untied, tied = (NemotronConfig.from_dict({**config, "tie_word_embeddings": tie}) for tie in (False, True))
    assert total_parameters(untied) / 1e9 == pytest.approx(4.191, rel=1e-3)
    assert read_parameters(tied) == read_parameters(untied) == total_parameters(tied)
    assert total_parameters(untied) - total_parameters(tied) == 256000 * 3072


def test_the_kv_cache_grows_with_rows_and_tokens() -> None:
    per_token = kv_bytes_per_token(NemotronConfig.from_dict({"model_type": "nemotron", **MINITRON_4B}), "bfloat16")
    assert per_token == 128 * 1024
    assert step_bytes(0, per_token, Shape(10, 1, 1)) == 11 * per_token
    assert step_bytes(5, per_token, Shape(10, 3, 4)) == 5 + 4 * 12 * per_token


def test_the_probe_reads_its_whole_buffer() -> None:
    probe = ReadBandwidth(2, buffer_bytes=(1 << 20) + 3)
    assert sum(len(part) for part in probe._parts) == probe.buffer_bytes == (1 << 20) + 3
    assert all((part == 1).all() for part in probe._parts)
    assert probe() > 0
    probe.close()
    assert probe._parts == []


def test_the_buffer_is_larger_than_the_last_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    for cache in (None, 1 << 20, 80 << 20):
        monkeypatch.setattr("nemotron_export.bench.bandwidth.last_level_cache", lambda size=cache: size)
        probe = ReadBandwidth(1)
        sizes.append(probe.buffer_bytes >> 20)
        probe.close()
    assert sizes == [256, 256, 320]


def test_last_level_caches_are_summed(tmp_path: Path) -> None:
    def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> None:
        folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)):
            (folder / name).write_text(f"{text}\n")

    assert last_level_cache(tmp_path) is None
    for cpu, pair in enumerate(("0-1", "0-1", "2-3", "2-3")):
        cache(cpu, 0, 1, "Data", "32K", str(cpu))
        cache(cpu, 1, 1, "Instruction", "32K", str(cpu))
        cache(cpu, 2, 2, "Unified", "512K", str(cpu))
        cache(cpu, 3, 3, "Unified", "16M", pair)
    assert last_level_cache(tmp_path) == 32 << 20
