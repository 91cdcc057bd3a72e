"""What the TensorRT plugins tell TensorRT of a node, what they refuse, and how their errors come out."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from nemotron_errors import GraphError
from nemotron_graphs.ops import OPS as DEFINITIONS
from nemotron_plugins.build import launches_of
from nemotron_plugins.launches.launch import CompiledKernel
from nemotron_plugins.library import KernelLibrary, kernel_key
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt import PLUGIN_OPS, operator, take_error
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.plugin import plugin_classes
from support.kernel_requests import H100
from support.plugin_cases import BF, CASES, I64, make_plugin_op, placed, residual_call
from support.plugin_libraries import SIZES, FakeTensorRT, RecordingKernel, library_of

TRT_NAMES = {BF: "BF16", I64: "INT64", "float16": "HALF", "float32": "FLOAT"}


@pytest.fixture(autouse=True)
def _recording(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "LoadedKernel", RecordingKernel)
    monkeypatch.setattr(RecordingKernel, "launches", [])
    take_error()


def test_ops_are_as_their_schemas() -> None:
    for name, op in PLUGIN_OPS.items():
        definition = DEFINITIONS[name]
        assert op.attributes == {each.name: each.choices or type(each.example) for each in definition.attributes}
        schema = [(each.type, each.optional) for each in definition.inputs]
        assert [(each.dtype, each.optional) for each in op.inputs] == schema


@pytest.mark.parametrize("case", CASES)
def test_outputs_follow_from_inputs(case: str) -> None:
    inputs, outputs = CASES[case]
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](make_plugin_op(case))
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
    tensors = placed(CASES[case][0], 1)
    shape = list(tensors[index].shape)
    shape[axis] = size
    tensors[index] = dataclasses.replace(tensors[index], shape=tuple(shape))
    return tensors


@pytest.mark.parametrize(
    ("case", "index", "axis", "size", "words"),
    [
        ("update", 0, 2, 161, "input 0 of shape .3, 1, 161.; expected .'any', 'any', 160."),
        ("update", 1, 1, 5, "input 1 of shape .512, 5.; expected .512, 4."),
        ("update", 2, 1, 3, "input 2 of shape .512, 3.; expected .512, 4."),
        ("update", 4, 1, 3, "input 4 of shape .3, 3, 512, 16.; expected .'any', 2, 'any', 16."),
        ("update", 5, 3, 8, "input 5 of shape .3, 2, 512, 8.; expected .'any', 2, 'any', 16."),
        ("fused", 0, 1, 2, "input 0 of shape .3, 2, 160.; expected .'any', 1, 160."),
        ("attention", 0, 2, 8, "input 0 of shape .3, 1, 8, 16.; expected .'any', 'any', 6, 16."),
        ("attention", 0, 3, 8, "input 0 of shape .3, 1, 6, 8.; expected .'any', 'any', 6, 16."),
        ("attention", 1, 1, 3, "input 1 of shape .3, 3, 512, 16.; expected .'any', 2, 'any', 16."),
        ("up", 0, 2, 32, "input 0 of shape .3, 1, 32.; expected .'any', 1, 64."),
        ("up", 1, 0, 32, "input 1 of shape .32.; expected .64."),
        ("up", 3, 0, 97, "input 3 of shape .97, 64.; expected .96, 64."),
        ("down", 1, 1, 97, "input 1 of shape .64, 97.; expected .64, 96."),
        ("down", 2, 2, 65, "input 2 of shape .3, 1, 65.; expected .'any', 1, 64."),
    ],
)
def test_shapes_that_are_not_the_kernels_are_refused(case: str, index: int, axis: int, size: int, words: str) -> None:
    op = make_plugin_op(case)
    op.configure([Tensor(dtype, tuple(-1 if size == 3 else size for size in shape)) for dtype, shape in CASES[case][0]])
    with pytest.raises(GraphError, match=f"{op.name}: found {words}"):
        op.configure(_changed(case, index, axis, size))


def test_inputs_that_the_kernels_do_not_read_are_refused() -> None:
    for case in ("update", "attention", "up"):
        inputs, op = CASES[case][0], make_plugin_op(case)
        for given in ([*inputs, (I64, (3,))], inputs[:-1]):
            with pytest.raises(GraphError, match=f"{op.name}: found {len(given)} inputs; expected {len(inputs)}, as"):
                op.configure(placed(given, 1))
        with pytest.raises(GraphError, match="input 0 of float16; expected bfloat16; cast it"):
            op.output_dtypes(["float16", *(dtype for dtype, _ in inputs[1:])])


REQUESTS = SIZES.requests


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("down", {"shapes": REQUESTS["down"].shapes[:2]}, "LinearResidual: found 2 inputs; expected 3 to 4"),
        ("down", {"shapes": ((None, 1, 96), (64, 97), (None, 1, 64))}, "found size 97 of input 1; expected 96: I"),
        ("down", {"shapes": ((None, 1, 96), (64,), (None, 1, 64))}, r"found 1 axes of input 1; expected \[O, I\]"),
        ("down", {"shapes": ((None, 1, 96), (None, 96), (None, 1, None))}, "found a size O that varies"),
        ("down", {"attributes": (("bias", "x"),)}, "found attributes bias; expected none; make the node"),
        ("down", {"format": "int4"}, "found weights in format int4; expected dense"),
        ("up", {"attributes": REQUESTS["up"].attributes[1:]}, "found attributes epsilon, output; expected epsilon"),
        ("up", {"attributes": (("activation", "gelu"), *REQUESTS["up"].attributes[1:])},
         "LayerNormLinear.activation: found 'gelu'; expected one of none, relu_squared"),
        ("up", {"attributes": (*REQUESTS["up"].attributes[:2], ("output", "float16"))},
         "LayerNormLinear.output: found 'float16'; expected one of same, float32"),
        ("up", {"attributes": (REQUESTS["up"].attributes[0], ("epsilon", 1), REQUESTS["up"].attributes[2])},
         "LayerNormLinear.epsilon: found 1; expected a value of type float"),
        ("update", {"attributes": (("num_heads", 6),)}, "found attributes num_heads; expected num_heads, num_kv_heads"),
        ("update", {"attributes": (("num_heads", 6), ("num_kv_heads", 4))},
         "found num_heads 6 and num_kv_heads 4; expected heads that num_kv_heads divides"),
        ("update", {"attributes": (("num_heads", 0), ("num_kv_heads", 2))}, "found num_heads 0"),
        ("update", {"attributes": (("num_heads", 8), ("num_kv_heads", 2))},
         "found caches of 2 heads and qkv of width 160; expected 2 and 192, by num_heads 8"),
        ("fused", {"attributes": (("num_heads", 9), ("num_kv_heads", 3))}, "found caches of 2 heads .*expected 3 and"),
        ("fused", {"shapes": REQUESTS["update"].shapes}, "found any number of tokens per sequence; expected 1"),
        ("attention", {"shapes": ((None, None, 5, 16), *REQUESTS["attention"].shapes[1:])}, "found 5 query heads"),
    ],
)  # fmt: skip
def test_requests_that_no_rule_is_for_are_refused_before_anything_is_compiled(
    name: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(GraphError, match=words):
        launches_of(dataclasses.replace(REQUESTS[name], **changes), H100)


def _library_with(request: KernelRequest, **changes: Any) -> KernelLibrary:
    """A request's kernels, some with another record, or left out where that is None."""
    kernels = {
        kernel_key(request, variant): CompiledKernel(
            kernel.cubin, dataclasses.replace(kernel.record, **changes.get(variant, {}))
        )
        for variant, kernel in library_of([request]).of(request).items()
        if changes.get(variant, {}) is not None
    }
    return KernelLibrary("sm_90", kernels)


def test_libraries_that_do_not_hang_together_are_refused() -> None:
    attention = REQUESTS["attention"]
    decode = library_of()[kernel_key(attention, "r1")].record
    down = library_of()[kernel_key(REQUESTS["down"], "r2")].record
    for changes, words in (
        ({"combine2": None}, "CachedAttention.combine2: found no such kernel; expected one after r2"),
        ({"prefill": None}, "CachedAttention.prefill: found no such kernel"),
        ({f"r{rows}": None for rows in (1, 2, 4, 8)}, "CachedAttention.r.: found no such kernel"),
        (
            dict.fromkeys(("prefill", *(f"{kind}{n}" for kind in ("r", "combine") for n in (1, 2, 4, 8)))),
            "found no kernels in the library; expected those of CachedAttention",
        ),
        ({"r1": {"constexprs": {**decode.constexprs, "SPLITS": 2}}}, "combine1: found SPLITS = 16; expected 2, as r1"),
        ({"r1": {"constexprs": {**decode.constexprs, "HEAD_DIM": 8}}}, "combine1: found HEAD_DIM = 16; expected 8"),
        ({"r1": {"dtype": "float16"}}, "CachedAttention.r1: found .*kernel for float16 .*expected .*for bfloat16"),
        ({"r1": {"architecture": "sm_80"}}, "found kernels for sm_80, sm_90; expected for one architecture"),
        ({"r1": {"arguments": decode.arguments[1:]}}, "of k_cache_ptr, .*expected .* of q_ptr, k_cache_ptr"),
        ({"r1": {"kernel": "other.other", "arguments": down.arguments}}, "found other.other .* of x_ptr"),
    ):
        with pytest.raises(GraphError, match=words):
            make_plugin_op("attention", _library_with(attention, **changes))
    with pytest.raises(GraphError, match=r"PackedRotaryKVCacheUpdate\.many: found no such kernel"):
        make_plugin_op("update", _library_with(REQUESTS["update"], many=None))
    with pytest.raises(GraphError, match=r"LayerNormLinear\.norm: found no such kernel"):
        make_plugin_op("up", _library_with(REQUESTS["up"], norm=None))


def test_an_error_inside_a_call_is_kept_for_whoever_called_tensorrt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trt: Any = FakeTensorRT()
    plugin = plugin_classes(trt)[0](make_plugin_op("down"))

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
    plugin = plugin_classes(trt)[0](make_plugin_op("down")).attach_to_context(None)
    inputs = [SimpleNamespace(type=trt.DataType.BF16, dims=shape) for _, shape in residual_call(B=2)]
    plugin.on_shape_change(inputs, inputs[2:])
    plugin.enqueue(inputs, inputs[2:], [1, 2, 3], [4], 0, 7)
    ((key, _, values, _),) = RecordingKernel.launches
    assert key == "r2"
    assert values == {"x_ptr": 1, "weight_ptr": 2, "bias_ptr": 0, "residual_ptr": 3, "out_ptr": 4, "rows": 2}
    bound = [SimpleNamespace(desc=SimpleNamespace(type=each.type, dims=(-1, -1, -1)), max=each.dims) for each in inputs]
    bound[1].desc.dims = (64, 96)
    plugin.configure_plugin(bound, bound[2:])
    assert plugin.get_workspace_size(bound, bound[2:]) == 0
    assert plugin.get_valid_tactics() == []
