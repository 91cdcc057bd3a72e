"""Limits and resources are refused with numbers before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from nemotron_errors import LimitError, RequestError, ResourceError

from nemotron_export.building.limits import choose_limits
from nemotron_export.building.preflight import check_resources, estimate
from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.memory import available_memory
from nemotron_export.parity.memory import choose_reference, layerwise_memory
from nemotron_export.parity.prompts import plan_prompts

# Minitron-4B: 4.191 B parameters, 128 KiB of bf16 cache per token
CONFIG = NemotronConfig(
    hidden_size=3072, intermediate_size=9216, num_attention_heads=24, num_key_value_heads=8, head_dim=128
)
PARAMETERS = 4_191_000_000


def _estimate(**changes: object):  # type: ignore[no-untyped-def]
    arguments = {
        "num_parameters": PARAMETERS, "stored_bytes": 2 * PARAMETERS, "run_dtype": "float32", "capacity": 4096,
        "sequences": 1, "weights_mode": "reference", "parity": True,
    }  # fmt: skip
    return estimate(CONFIG, **{**arguments, **changes})  # type: ignore[arg-type]


def test_estimates_follow_the_model() -> None:
    needed = _estimate()
    assert needed.reference == 4 * PARAMETERS
    assert needed.weights >= 4 * PARAMETERS
    assert needed.caches == 2 * 128 * 1024 * 4096  # fp32 is twice bf16
    assert needed.disk < 200_000_000
    assert _estimate(weights_mode="copy").disk == needed.disk + 2 * PARAMETERS
    assert _estimate(weights_mode="embedded").disk == needed.disk + 2 * 2 * PARAMETERS
    assert _estimate(parity=False).memory < 2_000_000_000


def test_memory_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"16\.00 GB of memory available.*--no-parity"):
        check_resources(_estimate(), tmp_path, memory=16_000_000_000, disk=10**15)
    check_resources(_estimate(), tmp_path, memory=64_000_000_000, disk=10**15)


# Nemotron-4-15B
LARGE = NemotronConfig(
    hidden_size=6144, intermediate_size=24576, num_attention_heads=48, num_key_value_heads=8, head_dim=128
)


def test_the_reference_goes_layer_by_layer_where_the_whole_does_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_reference("auto", LARGE, 15_630_000_000, memory=64_000_000_000) == "whole"
    assert caplog.text == ""
    assert choose_reference("auto", LARGE, 15_630_000_000, memory=63_000_000_000) == "layerwise"
    # never silently
    assert "63.00 GB of memory available and about 63.52 GB needed" in caplog.text
    assert "layer by layer" in caplog.text
    assert choose_reference("whole", LARGE, 15_630_000_000, memory=1) == "whole"
    assert choose_reference("layerwise", LARGE, 1, memory=10**12) == "layerwise"
    with pytest.raises(RequestError, match="--reference: found 'both'; expected one of auto, whole, layerwise"):
        choose_reference("both", LARGE, 1)


def test_a_layer_wise_estimate_is_about_a_layer() -> None:
    layer = 4 * (2 * 6144 * 24576 + 2 * 6144 * 6144 + 2 * 6144 * 1024)
    assert layer < layerwise_memory(LARGE) < 2.5 * layer
    longest = plan_prompts(256000, 4096)
    tokens = [len(ids) + longest.steps for ids in longest.prompts]
    # what the estimate counts on
    assert max(len(ids) for ids in longest.prompts) <= 1200
    assert sum(tokens) <= 1600


def test_the_layer_wise_peak_counts_where_it_is_the_reference() -> None:
    whole, layerwise = _estimate(), _estimate(reference="layerwise")
    assert layerwise.reference == layerwise_memory(CONFIG) < whole.reference / 10
    assert layerwise.weights == whole.weights
    assert _estimate(reference="layerwise", parity=False).reference == 0


def test_disk_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"1\.00 GB free.*8\.\d\d GB.*--weights reference"):
        check_resources(_estimate(weights_mode="copy"), tmp_path / "not" / "yet", memory=10**15, disk=10**9)


def test_a_real_machine_holds_a_pending_bundle(tmp_path: Path) -> None:
    assert available_memory() > 0
    check_resources(_estimate(parity=False), tmp_path / "bundle", memory=2_000_000_000)


def test_limits_default_to_the_config() -> None:
    limits = choose_limits(CONFIG)
    assert (limits.max_seq_len, limits.max_batch, limits.prefill_chunk) == (4096, 8, 2048)
    assert choose_limits(CONFIG.replace(max_position_embeddings=100_000)).max_seq_len == 4096
    short = choose_limits(CONFIG.replace(max_position_embeddings=64))
    assert (short.max_seq_len, short.prefill_chunk) == (64, 64)


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ((8192, None, None), "max_position_embeddings = 4096"),
        ((1, None, None), "--max-seq-len.*at least 2"),
        ((None, 0, None), "--max-batch.*at least 1"),
        ((None, None, 0), "--prefill-chunk.*at least 1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: tuple[int | None, ...], match: str) -> None:
    with pytest.raises(LimitError, match=match):
        choose_limits(CONFIG, *limits)
