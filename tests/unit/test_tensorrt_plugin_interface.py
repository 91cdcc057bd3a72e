"""What the TensorRT plugins tell TensorRT of a node, what they refuse, and how their errors come out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from nemotron_errors import GraphError
from nemotron_graphs.ops import OPS as DEFINITIONS
from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.library import KernelLibrary
from nemotron_plugins.tensorrt import operator, take_error
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.plugin import plugin_classes
from support.plugin_cases import (
    ATTENTION,
    BF,
    CASES,
    HEADS,
    I64,
    OPS,
    ROTARY,
    make_plugin_op,
    placed,
    residual_call,
)
from support.plugin_libraries import FakeTensorRT, RecordingKernel, library_of

TRT_NAMES = {BF: "BF16", I64: "INT64", "float16": "HALF", "float32": "FLOAT"}


@pytest.fixture(autouse=True)
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LoadedKernel", RecordingKernel)
    monkeypatch.setattr(RecordingKernel, "launches", [])
    take_error()


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
    plugin = plugin_classes(trt)[0](make_plugin_op(name, attributes))
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


def _changed(case: str, index: int, axis: int, size: int) -> list[Tensor]:
    tensors = placed(CASES[case][2], 1)
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
    op = make_plugin_op(name, attributes)
    op.configure([Tensor(dtype, tuple(-1 if size == 3 else size for size in shape)) for dtype, shape in inputs])
    with pytest.raises(GraphError, match=f"{name}: found {words}"):
        op.configure(_changed(case, index, axis, size))


def test_inputs_that_the_kernels_do_not_read_are_refused() -> None:
    for case, row in (("rotary", (I64, (3,))), ("attention", (I64, (3,)))):
        name, attributes, inputs, _ = CASES[case]
        op = make_plugin_op(name, attributes)
        with pytest.raises(GraphError, match="HAS_CACHE_ROW = False; expected True"):
            op.configure(placed([*inputs, row], 1))
        with pytest.raises(GraphError, match=f"{name}: found {len(inputs) - 1} inputs"):
            op.configure(placed(inputs[:-1], 1))
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
            make_plugin_op(ATTENTION, {}, _library_with(**changes))
    with pytest.raises(GraphError, match="packed_rotary_kv_cache_update_prefill: found no such kernel"):
        make_plugin_op(ROTARY, HEADS, _library_with(packed_rotary_kv_cache_update_prefill=None))


def test_an_error_inside_a_call_is_kept_for_whoever_called_tensorrt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](make_plugin_op("LinearResidual", {"kernel": "down"}))

    def fail(*arguments: Any, **sizes: int) -> None:
        raise RuntimeError("the launch failed")

    monkeypatch.setattr(RecordingKernel, "launch", fail)
    inputs = [SimpleNamespace(type=trt.DataType.BF16, dims=shape) for _, shape in residual_call()]
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
    plugin = plugin_classes(trt)[0](make_plugin_op("LinearResidual", {"kernel": "down"})).attach_to_context(None)
    inputs = [SimpleNamespace(type=trt.DataType.BF16, dims=shape) for _, shape in residual_call(B=2)]
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
