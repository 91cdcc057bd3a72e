"""The TensorRT plugins' launches and workspace, with kernels that keep what they are launched with."""

from __future__ import annotations

import dataclasses

import pytest
from nemotron_errors import GraphError
from nemotron_plugins.launches.launch import LaunchRecord
from nemotron_plugins.tensorrt import operator, packed_rotary, take_error
from nemotron_plugins.tensorrt.operator import Tensor
from support.plugin_cases import (
    BF,
    CASES,
    Call,
    attention_call,
    make_plugin_op,
    normed_call,
    placed,
    residual_call,
    rotary_call,
)
from support.plugin_libraries import SIZES, RecordingKernel


@pytest.fixture(autouse=True)
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LoadedKernel", RecordingKernel)
    monkeypatch.setattr(RecordingKernel, "launches", [])
    take_error()


def _records(case: str) -> dict[str, LaunchRecord]:
    return make_plugin_op(case).records


def _run(case: str, inputs: Call) -> list[tuple[str, int, dict[str, int], dict[str, int]]]:
    """Launches of a call, whose inputs lie at 0x1000, 0x2000, …, outputs at 0x64000, … and workspace at 0x99000."""
    outputs = CASES[case][1]
    op = make_plugin_op(case)
    tensors = placed(inputs, 1)
    places = [Tensor(dtype, shape, (100 + i) << 12) for i, (dtype, shape) in enumerate(outputs)]
    for output, source in op.aliases.items():
        places[output] = dataclasses.replace(places[output], address=tensors[source].address)
    op.configure(tensors)
    op.enqueue(tensors, places, 0x99000, 7)
    assert {stream for _, stream, _, _ in RecordingKernel.launches} == {7}
    return RecordingKernel.launches


def test_rotation_takes_the_packed_tensor_three_times_and_writes_into_the_caches() -> None:
    ((key, _, values, sizes),) = _run("update", rotary_call())
    assert (key, sizes) == ("decode", {"B": 3, "S": 1})
    assert values == {
        "q_ptr": 0x1000, "k_ptr": 0x1000, "v_ptr": 0x1000, "cos_ptr": 0x2000, "sin_ptr": 0x3000,
        "position_ptr": 0x4000, "write_index_ptr": 0x7000, "q_out_ptr": 0x64000,
        "k_cache_ptr": 0x5000, "v_cache_ptr": 0x6000, "tokens": 1, "capacity": 512, "positions": 512,
    }  # fmt: skip


def test_rotation_of_many_tokens_has_its_kernel() -> None:
    ((key, _, values, sizes),) = _run("update", rotary_call(S=9))
    assert (key, sizes, values["tokens"]) == ("many", {"B": 3, "S": 9}, 9)


@pytest.mark.parametrize("case", ["update", "fused"])
def test_a_cache_whose_output_lies_elsewhere_is_copied_first(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copies: list[tuple[int, ...]] = []
    monkeypatch.setattr(packed_rotary, "copy_on_device", lambda *a: copies.append(a))
    inputs, outputs = CASES[case]
    make_plugin_op(case).enqueue(placed(inputs, 1), placed(outputs, 100), 0, 7)
    size = 3 * 2 * 512 * 16 * 2
    assert copies == [(7, 0x65000, 0x5000, size), (7, 0x66000, 0x6000, size)]
    assert "a cache is copied" in caplog.text
    values = RecordingKernel.launches[0][2]
    assert (values["k_cache_ptr"], values["v_cache_ptr"]) == (0x65000, 0x66000)


@pytest.mark.parametrize(("B", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (40, 8)])
def test_one_token_is_rotated_kept_and_attends_in_one_launch(B: int, bucket: int) -> None:
    fused, combine = _run("fused", rotary_call(B=B))
    assert (fused[0], combine[0]) == (f"r{bucket}", f"combine{bucket}")
    assert fused[3] == combine[3] == {"B": B, "S": 1}
    splits = _records("fused")[fused[0]].constexprs["SPLITS"]
    lse = 0x99000 + -(-B * 6 * splits * 16 * 4 // 256) * 256
    assert fused[2] == {
        "qkv_ptr": 0x1000, "cos_ptr": 0x2000, "sin_ptr": 0x3000, "position_ptr": 0x4000, "query_start_ptr": 0x7000,
        "k_cache_ptr": 0x5000, "v_cache_ptr": 0x6000, "out_ptr": 0x64000,
        "partial_ptr": 0x99000, "partial_lse_ptr": lse, "capacity": 512, "positions": 512,
    }  # fmt: skip
    assert combine[2] == {"partial_ptr": 0x99000, "partial_lse_ptr": lse, "out_ptr": 0x64000}
    needed = B * 6 * splits * (16 + 1) * 4
    if B <= 5:
        assert make_plugin_op("fused").workspace(placed(rotary_call(B=B), 1)) >= needed


@pytest.mark.parametrize(("B", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (40, 8)])
@pytest.mark.parametrize("S", [1, 5])
def test_few_tokens_attend_split_over_the_cache(B: int, bucket: int, S: int) -> None:
    decode, combine = _run("attention", attention_call(S=S, B=B))
    assert (decode[0], combine[0]) == (f"r{bucket}", f"combine{bucket}")
    assert decode[3] == combine[3] == {"B": B, "S": S}
    splits = _records("attention")[decode[0]].constexprs["SPLITS"]
    lse = 0x99000 + B * S * 6 * splits * 16 * 4
    assert decode[2] == {
        "q_ptr": 0x1000, "k_cache_ptr": 0x2000, "v_cache_ptr": 0x3000, "query_start_ptr": 0x4000,
        "out_ptr": 0x64000, "partial_ptr": 0x99000, "partial_lse_ptr": lse, "tokens": S,
        "capacity": 512,
    }  # fmt: skip
    assert combine[2] == {"partial_ptr": 0x99000, "partial_lse_ptr": lse, "out_ptr": 0x64000}


def test_more_tokens_than_the_decode_kernel_has_place_for_attend_tiled() -> None:
    # a tile of 16 query vectors holds 5 tokens of 3 heads
    ((key, _, values, sizes),) = _run("attention", attention_call(S=6))
    assert (key, sizes) == ("prefill", {"B": 3, "S": 6})
    assert values == {
        "q_ptr": 0x1000, "k_cache_ptr": 0x2000, "v_cache_ptr": 0x3000, "query_start_ptr": 0x4000,
        "out_ptr": 0x64000, "tokens": 6, "capacity": 512,
    }  # fmt: skip


def test_workspace_holds_the_partial_results_of_every_call_within_the_limits() -> None:
    op = make_plugin_op("attention")
    for most_rows, most_tokens in ((1, 1), (5, 1), (5, 4), (5, 512)):
        most = [Tensor(dtype, shape) for dtype, shape in attention_call(S=most_tokens, B=most_rows)]
        needed = 0
        for B in range(1, most_rows + 1):
            bucket = next(rows for rows in (1, 2, 4, 8) if rows >= B)
            splits = op.records[f"r{bucket}"].constexprs["SPLITS"]
            needed = max(needed, B * min(most_tokens, 5) * 6 * splits * (16 + 1) * 4)
        assert needed <= op.workspace(most) < needed + 512
    assert make_plugin_op("o").workspace([]) == 0


def test_one_split_needs_neither_workspace_nor_a_second_launch() -> None:
    op = make_plugin_op("attention", sizes=dataclasses.replace(SIZES, capacity=32))
    inputs = placed(attention_call(), 1)
    op.enqueue(inputs, placed([(BF, (3, 1, 6, 16))], 100), 0, 7)
    assert [key for key, *_ in RecordingKernel.launches] == ["r4"]
    assert op.workspace(inputs) == 0


@pytest.mark.parametrize(("B", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (11, 8)])
def test_projections_run_by_their_number_of_rows(B: int, bucket: int) -> None:
    _run("up", normed_call(96, B))
    _run("head", normed_call(40, B))
    *normed, down = _run("down", residual_call(B))
    assert [key for key, *_ in normed] == [*(["norm"] if B > 1 else []), f"r{bucket}"] * 2
    assert down[3] == {"B": B, "S": 1}
    assert all(sizes == down[3] for *_, sizes in normed)
    norm = {"x_ptr": 0x1000, "norm_weight_ptr": 0x2000, "norm_bias_ptr": 0x3000}
    # several rows are normalised into the workspace first
    front = [{**norm, "out_ptr": 0x99000}] if B > 1 else []
    x = 0x99000 if B > 1 else 0x1000
    linear = {**norm, "x_ptr": x, "weight_ptr": 0x4000, "bias_ptr": 0, "out_ptr": 0x64000, "rows": B}
    assert [values for _, _, values, _ in normed] == [*front, linear] * 2
    assert down[0] == f"r{bucket}"
    assert down[2] == {
        "x_ptr": 0x1000, "weight_ptr": 0x2000, "bias_ptr": 0, "residual_ptr": 0x3000, "out_ptr": 0x64000, "rows": B,
    }  # fmt: skip


def test_normalised_rows_have_their_place_in_the_workspace() -> None:
    op = make_plugin_op("up")
    sizes = [op.workspace([Tensor(dtype, shape) for dtype, shape in normed_call(96, B)]) for B in (1, 2, 5)]
    assert sizes == [0, 2 * 64 * 2, 5 * 64 * 2]


def test_biases_are_passed_where_the_kernels_read_them() -> None:
    sizes = dataclasses.replace(SIZES, biases=("up", "down"))
    for name, inputs in (("up", [*normed_call(96), (BF, (96,))]), ("down", [*residual_call(), (BF, (64,))])):
        op = make_plugin_op(name, sizes=sizes)
        tensors = placed(inputs, 1)
        op.configure(tensors)
        op.enqueue(tensors, placed(CASES[name][1], 100), 0, 7)
        with pytest.raises(GraphError, match=f"found {len(inputs) - 1} inputs; expected {len(inputs)}"):
            op.configure(tensors[:-1])
    biases = [values["bias_ptr"] for key, _, values, _ in RecordingKernel.launches if key != "norm"]
    assert biases == [0x5000, 0x4000]
