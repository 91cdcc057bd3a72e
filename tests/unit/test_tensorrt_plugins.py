"""The TensorRT plugins' shapes, types, workspace and launches, with kernels that keep what they are launched with."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from nemotron_errors import GraphError
from nemotron_graphs.ops import OPS as DEFINITIONS
from nemotron_plugins.launch import CompiledKernel
from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.tensorrt import PLUGIN_OPS, operator, packed_rotary_kv_cache_update, take_error, use_library
from nemotron_plugins.tensorrt.fields import attribute_fields
from nemotron_plugins.tensorrt.operator import PluginOp, Tensor
from nemotron_plugins.tensorrt.plugin import make_op, plugin_classes
from support.plugin_libraries import SPEC, FakeTensorRT, RecordingKernel, library_of

OPS = {op.name: op for op in PLUGIN_OPS}
ROTARY, ATTENTION = "PackedRotaryKVCacheUpdate", "CachedAttention"
HEADS = {"num_heads": 6, "num_kv_heads": 2}
UP = {"epsilon": 1e-5, "activation": "relu_squared", "kernel": "up"}
HEAD = {"epsilon": 1e-5, "output": "float32", "kernel": "head"}
BF, I64 = "bfloat16", "int64"
# B 3 rows, T 512 slots, P 300 positions; S tokens


def _rotary_inputs(S: int = 1, B: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 160)), (BF, (300, 4)), (BF, (300, 4)), (I64, (B, S)), cache, cache, (I64, (B,))]


def _attention_inputs(S: int = 1, B: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    cache = (BF, (B, 2, 512, 16))
    return [(BF, (B, S, 6, 16)), cache, cache, (I64, (B,))]


def _normed_inputs(outputs: int, B: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    return [(BF, (B, 1, 64)), (BF, (64,)), (BF, (64,)), (BF, (outputs, 64))]


def _residual_inputs(B: int = 3) -> list[tuple[str, tuple[int, ...]]]:
    return [(BF, (B, 1, 96)), (BF, (64, 96)), (BF, (B, 1, 64))]


CASES: dict[str, tuple[str, dict[str, Any], list[tuple[str, tuple[int, ...]]], list[tuple[str, tuple[int, ...]]]]] = {
    "rotary": (
        ROTARY, HEADS, _rotary_inputs(),
        [(BF, (3, 1, 6, 16)), (BF, (3, 2, 512, 16)), (BF, (3, 2, 512, 16))],
    ),
    "attention": (ATTENTION, {}, _attention_inputs(), [(BF, (3, 1, 6, 16))]),
    "up": ("LayerNormLinear", UP, _normed_inputs(96), [(BF, (3, 1, 96))]),
    "head": ("LayerNormLinear", HEAD, _normed_inputs(40), [("float32", (3, 1, 40))]),
    "down": ("LinearResidual", {"kernel": "down"}, _residual_inputs(), [(BF, (3, 1, 64))]),
}  # fmt: skip
TRT_NAMES = {BF: "BF16", I64: "INT64", "float16": "HALF", "float32": "FLOAT"}


@pytest.fixture(autouse=True)
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LoadedKernel", RecordingKernel)
    monkeypatch.setattr(RecordingKernel, "launches", [])
    take_error()


def _make(name: str, attributes: dict[str, Any], library: KernelLibrary | None = None) -> PluginOp:
    with use_library(library or library_of()):
        return make_op(OPS[name], attribute_fields(attributes))


def _placed(tensors: list[tuple[str, tuple[int, ...]]], first: int) -> list[Tensor]:
    return [Tensor(dtype, shape, (first + i) << 12) for i, (dtype, shape) in enumerate(tensors)]


def _run(case: str, inputs: list[tuple[str, tuple[int, ...]]]) -> list[tuple[str, int, dict[str, int], dict[str, int]]]:
    """Launches of a call, whose inputs lie at 0x1000, 0x2000, …, outputs at 0x64000, … and workspace at 0x99000."""
    name, attributes, _, outputs = CASES[case]
    op = _make(name, attributes)
    placed = _placed(inputs, 1)
    places = [Tensor(dtype, shape, (100 + i) << 12) for i, (dtype, shape) in enumerate(outputs)]
    for output, source in op.aliases.items():
        places[output] = dataclasses.replace(places[output], address=placed[source].address)
    op.configure(placed)
    op.enqueue(placed, places, 0x99000, 7)
    assert {stream for _, stream, _, _ in RecordingKernel.launches} == {7}
    return RecordingKernel.launches


def test_fields_are_the_attributes_of_the_ops_schemas() -> None:
    for name, op in OPS.items():
        definition = DEFINITIONS[name]
        specs = {spec.name: spec for spec in op.attributes}
        assert list(specs) == [attribute.name for attribute in definition.attributes]
        for attribute in definition.attributes:
            spec = specs[attribute.name]
            assert spec.kind is type(attribute.example)
            assert spec.choices == attribute.choices
            # a kernel has a name, and the schema's default is none
            default = None if attribute.required or attribute.example == "" else attribute.example
            assert spec.default == default
        letters = [each.type for each in definition.inputs]
        assert list(op.inputs) == letters
        assert op.optional_inputs == sum(each.optional for each in definition.inputs)


@pytest.mark.parametrize("case", CASES)
def test_outputs_follow_from_inputs(case: str) -> None:
    name, attributes, inputs, outputs = CASES[case]
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](_make(name, attributes))
    builder = SimpleNamespace(constant=lambda value: ("constant", value))
    shapes = plugin.get_output_shapes([list(shape) for _, shape in inputs], [], builder)
    plain = [tuple(size[1] if isinstance(size, tuple) else size for size in shape) for shape in shapes]
    assert plain == [shape for _, shape in outputs]
    types = plugin.get_output_data_types([getattr(trt.DataType, TRT_NAMES[dtype]) for dtype, _ in inputs])
    assert [kind.name for kind in types] == [TRT_NAMES[dtype] for dtype, _ in outputs]
    tensors = [
        SimpleNamespace(
            desc=SimpleNamespace(type=getattr(trt.DataType, TRT_NAMES[dtype]), format=trt.TensorFormat.LINEAR)
        )
        for dtype, _ in [*inputs, *outputs]
    ]
    for position, tensor in enumerate(tensors):
        assert plugin.supports_format_combination(position, tensors, len(inputs))
        for changes in ({"format": trt.TensorFormat.CHW32}, {"type": trt.DataType.HALF}):
            other = [*tensors]
            other[position] = SimpleNamespace(desc=SimpleNamespace(**{**vars(tensor.desc), **changes}))
            assert not plugin.supports_format_combination(position, other, len(inputs))
    assert [plugin.get_aliased_input(i) for i in range(len(outputs))] == [-1, 4, 5][: len(outputs)]


def test_rotation_takes_the_packed_tensor_three_times_and_writes_into_the_caches() -> None:
    ((key, _, values, sizes),) = _run("rotary", _rotary_inputs())
    assert (key, sizes) == ("packed_rotary_kv_cache_update", {"B": 3, "S": 1})
    assert values == {
        "q_ptr": 0x1000, "k_ptr": 0x1000, "v_ptr": 0x1000, "cos_ptr": 0x2000, "sin_ptr": 0x3000,
        "position_ptr": 0x4000, "write_index_ptr": 0x7000, "cache_row_ptr": 0x7000, "q_out_ptr": 0x64000,
        "k_cache_ptr": 0x5000, "v_cache_ptr": 0x6000, "tokens": 1, "cache_rows": 3, "slots": 512, "positions": 300,
    }  # fmt: skip


def test_rotation_of_many_tokens_has_its_kernel() -> None:
    ((key, _, values, sizes),) = _run("rotary", _rotary_inputs(S=9))
    assert (key, sizes, values["tokens"]) == ("packed_rotary_kv_cache_update_prefill", {"B": 3, "S": 9}, 9)


def test_a_cache_whose_output_lies_elsewhere_is_copied_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copies: list[tuple[int, ...]] = []
    monkeypatch.setattr(packed_rotary_kv_cache_update, "copy_on_device", lambda *a: copies.append(a))
    name, attributes, inputs, outputs = CASES["rotary"]
    _make(name, attributes).enqueue(_placed(inputs, 1), _placed(outputs, 100), 0, 7)
    size = 3 * 2 * 512 * 16 * 2
    assert copies == [(7, 0x65000, 0x5000, size), (7, 0x66000, 0x6000, size)]
    assert "a cache is copied" in caplog.text
    ((_, _, values, _),) = RecordingKernel.launches
    assert (values["k_cache_ptr"], values["v_cache_ptr"]) == (0x65000, 0x66000)


@pytest.mark.parametrize(("B", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (40, 8)])
@pytest.mark.parametrize("S", [1, 5])
def test_few_tokens_attend_split_over_the_cache(B: int, bucket: int, S: int) -> None:
    decode, combine = _run("attention", _attention_inputs(S=S, B=B))
    assert (decode[0], combine[0]) == (f"cached_attention_decode.r{bucket}", f"cached_attention_combine.r{bucket}")
    assert decode[3] == combine[3] == {"B": B, "S": S}
    splits = library_of()[decode[0]].record.constexprs["SPLITS"]
    lse = 0x99000 + B * S * 6 * splits * 16 * 4
    assert decode[2] == {
        "q_ptr": 0x1000, "k_cache_ptr": 0x2000, "v_cache_ptr": 0x3000, "query_start_ptr": 0x4000,
        "cache_row_ptr": 0x4000, "out_ptr": 0x64000, "partial_ptr": 0x99000, "partial_lse_ptr": lse, "tokens": S,
        "slots": 512,
    }  # fmt: skip
    assert combine[2] == {"partial_ptr": 0x99000, "partial_lse_ptr": lse, "out_ptr": 0x64000}


def test_more_tokens_than_the_decode_kernel_has_place_for_attend_tiled() -> None:
    # a tile of 16 query vectors holds 5 tokens of 3 heads
    ((key, _, values, sizes),) = _run("attention", _attention_inputs(S=6))
    assert (key, sizes) == ("cached_attention_prefill", {"B": 3, "S": 6})
    assert values == {
        "q_ptr": 0x1000, "k_cache_ptr": 0x2000, "v_cache_ptr": 0x3000, "query_start_ptr": 0x4000,
        "cache_row_ptr": 0x4000, "out_ptr": 0x64000, "tokens": 6, "slots": 512,
    }  # fmt: skip


def test_workspace_holds_the_partial_results_of_every_call_within_the_limits() -> None:
    op = _make(ATTENTION, {})
    records = library_of()
    for most_rows, most_tokens in ((1, 1), (5, 1), (5, 4), (5, 512)):
        most = [Tensor(dtype, shape) for dtype, shape in _attention_inputs(S=most_tokens, B=most_rows)]
        needed = 0
        for B in range(1, most_rows + 1):
            bucket = next(rows for rows in (1, 2, 4, 8) if rows >= B)
            splits = records[f"cached_attention_decode.r{bucket}"].record.constexprs["SPLITS"]
            needed = max(needed, B * min(most_tokens, 5) * 6 * splits * (16 + 1) * 4)
        assert needed <= op.workspace(most) < needed + 512
    assert _make("LinearResidual", {"kernel": "o"}).workspace([]) == 0


def test_one_split_needs_neither_workspace_nor_a_second_launch() -> None:
    spec = dataclasses.replace(SPEC, multiprocessors=1)
    op = _make(ATTENTION, {}, library_of(spec))
    inputs = _placed(_attention_inputs(), 1)
    op.enqueue(inputs, _placed([(BF, (3, 1, 6, 16))], 100), 0, 7)
    assert [key for key, *_ in RecordingKernel.launches] == ["cached_attention_decode.r4"]
    assert op.workspace(inputs) == 0


@pytest.mark.parametrize(("B", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (11, 8)])
def test_projections_run_by_their_number_of_rows(B: int, bucket: int) -> None:
    _run("up", _normed_inputs(96, B))
    _run("head", _normed_inputs(40, B))
    up, head, down = _run("down", _residual_inputs(B))
    assert [up[0], head[0], down[0]] == [
        f"layernorm_linear.up.r{bucket}", f"layernorm_linear.head.r{bucket}", f"linear_residual.down.r{bucket}"
    ]  # fmt: skip
    assert up[3] == head[3] == down[3] == {"B": B, "S": 1}
    normed = {
        "x_ptr": 0x1000, "norm_weight_ptr": 0x2000, "norm_bias_ptr": 0x3000, "weight_ptr": 0x4000, "bias_ptr": 0,
        "out_ptr": 0x64000, "rows": B,
    }  # fmt: skip
    assert up[2] == head[2] == normed
    assert down[2] == {
        "x_ptr": 0x1000, "weight_ptr": 0x2000, "bias_ptr": 0, "residual_ptr": 0x3000, "out_ptr": 0x64000, "rows": B,
    }  # fmt: skip


def test_biases_are_passed_where_the_kernels_read_them() -> None:
    library = library_of(dataclasses.replace(SPEC, mlp_bias=True))
    for name, attributes, inputs, outputs in (
        ("LayerNormLinear", UP, [*_normed_inputs(96), (BF, (96,))], CASES["up"][3]),
        ("LinearResidual", {"kernel": "down"}, [*_residual_inputs(), (BF, (64,))], CASES["down"][3]),
    ):
        op = _make(name, attributes, library)
        placed = _placed(inputs, 1)
        op.configure(placed)
        op.enqueue(placed, _placed(outputs, 100), 0, 7)
        with pytest.raises(GraphError, match=r"HAS_BIAS = True; expected False, by the node's inputs"):
            op.configure(placed[:-1])
    assert [values["bias_ptr"] for _, _, values, _ in RecordingKernel.launches] == [0x5000, 0x4000]


def _changed(case: str, index: int, axis: int, size: int) -> list[Tensor]:
    tensors = _placed(CASES[case][2], 1)
    shape = list(tensors[index].shape)
    shape[axis] = size
    tensors[index] = dataclasses.replace(tensors[index], shape=tuple(shape))
    return tensors


@pytest.mark.parametrize(
    ("case", "index", "axis", "size", "words"),
    [
        ("rotary", 0, 2, 161, "qkv's width of 161; expected 160"),
        ("rotary", 1, 1, 5, "width of cos, half the rotary width, of 5; expected 4"),
        ("rotary", 2, 1, 3, "width of sin, half the rotary width, of 3; expected 4"),
        ("rotary", 4, 1, 3, "heads of k_cache of 3; expected 2"),
        ("rotary", 5, 3, 8, "head_dim of v_cache of 8; expected 16"),
        ("attention", 0, 2, 8, "heads of q of 8; expected 6"),
        ("attention", 0, 3, 8, "head_dim of q of 8; expected 16"),
        ("attention", 1, 1, 3, "heads of k_cache of 3; expected 2"),
        ("up", 0, 2, 32, "x's width of 32; expected 64"),
        ("up", 1, 0, 32, "length of norm_weight of 32; expected 64"),
        ("up", 3, 0, 97, "weight's rows of 97; expected 96"),
        ("down", 1, 1, 97, "weight's columns of 97; expected 96"),
        ("down", 2, 2, 65, "residual's width of 65; expected 64"),
    ],
)
def test_shapes_that_are_not_the_kernels_are_refused(case: str, index: int, axis: int, size: int, words: str) -> None:
    name, attributes, inputs, _ = CASES[case]
    op = _make(name, attributes)
    op.configure([Tensor(dtype, tuple(-1 if size == 3 else size for size in shape)) for dtype, shape in inputs])
    with pytest.raises(GraphError, match=f"{name}: found {words}"):
        op.configure(_changed(case, index, axis, size))


def test_inputs_that_the_kernels_do_not_read_are_refused() -> None:
    for case, row in (("rotary", (I64, (3,))), ("attention", (I64, (3,)))):
        name, attributes, inputs, _ = CASES[case]
        op = _make(name, attributes)
        with pytest.raises(GraphError, match="HAS_CACHE_ROW = False; expected True"):
            op.configure(_placed([*inputs, row], 1))
        with pytest.raises(GraphError, match=f"{name}: found {len(inputs) - 1} inputs"):
            op.configure(_placed(inputs[:-1], 1))
        with pytest.raises(GraphError, match="input 0 of float16; expected bfloat16; cast it"):
            op.output_dtypes(["float16", *(dtype for dtype, _ in inputs[1:])])


def _library_with(**changes: Any) -> KernelLibrary:
    library = library_of()
    kernels = {
        key: CompiledKernel(kernel.cubin, dataclasses.replace(kernel.record, **changes.get(key, {})))
        for key, kernel in library.items()
        if changes.get(key) is not None or key not in changes
    }
    return KernelLibrary("sm_90", kernels)


def test_libraries_that_do_not_hang_together_are_refused() -> None:
    decode = library_of()["cached_attention_decode.r1"].record
    down = library_of()["linear_residual.down.r2"].record
    for changes, words in (
        ({"cached_attention_combine.r2": None}, "cached_attention_combine.r2: found no such kernel"),
        ({"cached_attention_prefill": None}, "cached_attention_prefill: found no such kernel"),
        ({f"cached_attention_decode.r{rows}": None for rows in (1, 2, 4, 8)}, "expected kernels cached_attention_dec"),
        ({"cached_attention_decode.r1": {"constexprs": {**decode.constexprs, "SPLITS": 2}}}, "found .*SPLITS = 16"),
        ({"cached_attention_decode.r1": {"constexprs": {**decode.constexprs, "HEAD_DIM": 8}}}, "found .*HEAD_DIM = 8"),
        ({"cached_attention_decode.r1": {"dtype": "float16"}}, "kernels for bfloat16, float16; expected .*one dtype"),
        ({"cached_attention_decode.r1": {"arguments": decode.arguments[1:]}}, "_kernel with k_cache_ptr, .*arguments"),
        ({"cached_attention_decode.r1": {"kernel": "other", "arguments": down.arguments}}, "found other with x_ptr"),
    ):
        with pytest.raises(GraphError, match=words):
            _make(ATTENTION, {}, _library_with(**changes))
    with pytest.raises(GraphError, match="packed_rotary_kv_cache_update_prefill: found no such kernel"):
        _make(ROTARY, HEADS, _library_with(packed_rotary_kv_cache_update_prefill=None))


def test_an_error_inside_a_call_is_kept_for_whoever_called_tensorrt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](_make("LinearResidual", {"kernel": "down"}))

    def fail(*arguments: Any, **sizes: int) -> None:
        raise RuntimeError("the launch failed")

    monkeypatch.setattr(RecordingKernel, "launch", fail)
    inputs = [SimpleNamespace(type=trt.DataType.BF16, dims=shape) for _, shape in _residual_inputs()]
    with pytest.raises(RuntimeError, match="the launch failed"):
        plugin.enqueue(inputs, inputs[2:], [1, 2, 3], [4], 0, 7)
    assert str(take_error()) == "the launch failed"
    assert "LinearResidual, enqueue: the launch failed" in caplog.text
    assert take_error() is None
    # of several the first: the others follow from it
    for _ in range(2):
        with pytest.raises(GraphError):
            plugin.on_shape_change(inputs[:2], [])
        with pytest.raises(RuntimeError):
            plugin.enqueue(inputs, inputs[2:], [1, 2, 3], [4], 0, 7)
    assert isinstance(take_error(), GraphError)


def test_a_call_reaches_the_op_with_the_dims_and_addresses_of_this_call() -> None:
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](_make("LinearResidual", {"kernel": "down"})).attach_to_context(None)
    inputs = [SimpleNamespace(type=trt.DataType.BF16, dims=shape) for _, shape in _residual_inputs(B=2)]
    plugin.on_shape_change(inputs, inputs[2:])
    plugin.enqueue(inputs, inputs[2:], [1, 2, 3], [4], 0, 7)
    ((key, _, values, _),) = RecordingKernel.launches
    assert key == "linear_residual.down.r2"
    assert values == {"x_ptr": 1, "weight_ptr": 2, "bias_ptr": 0, "residual_ptr": 3, "out_ptr": 4, "rows": 2}
    bound = [SimpleNamespace(desc=SimpleNamespace(type=each.type, dims=(-1, -1, -1)), max=each.dims) for each in inputs]
    bound[1].desc.dims = (64, 96)
    plugin.configure_plugin(bound, bound[2:])
    assert plugin.get_workspace_size(bound, bound[2:]) == 0
    assert plugin.get_valid_tactics() == []
