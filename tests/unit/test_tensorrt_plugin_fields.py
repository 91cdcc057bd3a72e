"""Fields of the TensorRT plugins: what nodes may say, and what an engine gives back; beside the real bindings too."""

from __future__ import annotations

import gc
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError, GraphError, MissingDependencyError
from nemotron_plugins.tensorrt import PLUGIN_OPS, register, registry, take_error, use_library
from nemotron_plugins.tensorrt.fields import Field, attribute_fields, attributes_of, kernel_fields, kernels_of
from nemotron_plugins.tensorrt.plugin import make_op, plugin_classes
from nemotron_plugins.tensorrt.raw_fields import FieldCollection, field_reader
from support.kernel_specs import TINY
from support.plugin_libraries import FakeTensorRT, library_of, to_fields

OPS = {op.name: op for op in PLUGIN_OPS}
NODES: dict[str, dict[str, Any]] = {
    "PackedRotaryCachedAttention": {"num_heads": 6, "num_kv_heads": 2},
    "PackedRotaryKVCacheUpdate": {"num_heads": 6, "num_kv_heads": 2},
    "CachedAttention": {},
    "LayerNormLinear": {"epsilon": 1e-5, "activation": "relu_squared", "output": "same", "kernel": "up"},
    "LinearResidual": {"kernel": "down"},
}
KEYS = {
    "PackedRotaryCachedAttention": [
        *(f"rotary_cached_attention_decode.r{rows}" for rows in (1, 2, 4, 8)),
        *(f"cached_attention_combine.r{rows}" for rows in (1, 2, 4, 8)),
    ],
    "PackedRotaryKVCacheUpdate": ["packed_rotary_kv_cache_update", "packed_rotary_kv_cache_update_prefill"],
    "CachedAttention": [
        "cached_attention_prefill",
        *(f"cached_attention_{part}.r{rows}" for part in ("decode", "combine") for rows in (1, 2, 4, 8)),
    ],
    "LayerNormLinear": ["layernorm_rows", *(f"layernorm_linear.up.r{rows}" for rows in (1, 2, 4, 8))],
    "LinearResidual": [f"linear_residual.down.r{rows}" for rows in (1, 2, 4, 8)],
}


@pytest.fixture(params=["fake", "real"])
def trt(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return FakeTensorRT()
    module = pytest.importorskip("tensorrt", reason="needs TensorRT's Python bindings", exc_type=ImportError)
    if not hasattr(module, "IPluginV3OneBuildV2"):
        pytest.skip("TensorRT is older than 10.6")
    return module


@pytest.fixture(autouse=True)
def _no_errors() -> Iterator[None]:
    take_error()
    yield
    take_error()


def _create(trt: Any, name: str, attributes: dict[str, Any]) -> Any:
    creator = plugin_classes(trt)[1](OPS[name])
    fields, kept = to_fields(trt, attributes)
    plugin = creator.create_plugin("node", fields, None)
    del kept
    return plugin


@pytest.mark.parametrize("name", NODES)
def test_a_node_and_what_an_engine_keeps_of_it_make_the_same_plugin(trt: Any, name: str) -> None:
    library = library_of()
    with use_library(library):
        built = _create(trt, name, NODES[name])
    kept = built.get_fields_to_serialize()
    gc.collect()
    read = field_reader(trt)
    fields = [read(each) for each in kept]
    # an engine alone, without a library
    stored = FieldCollection(trt, fields)
    run = plugin_classes(trt)[1](OPS[name]).create_plugin("node", stored.collection, None)
    assert sorted(run.op.kernels) == sorted(KEYS[name])
    assert run.op.kernels == built.op.kernels == {key: library[key] for key in KEYS[name]}
    assert run.op.values == built.op.values == attributes_of(name, OPS[name].attributes, attribute_fields(NODES[name]))
    assert run.clone().op is run.op
    assert (run.plugin_name, run.plugin_version, run.plugin_namespace) == (name, "1", "")
    assert run.num_outputs == len(run.op.outputs)


def test_a_field_is_read_whole(trt: Any) -> None:
    numbers = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32, "FLOAT64": np.float64}
    fields = [Field(f"field of {kind}", kind, np.arange(7).astype(dtype).tobytes()) for kind, dtype in numbers.items()]
    fields += [Field("cubin", "INT8", bytes(range(256)) * 200), Field("text", "CHAR", b"qkv")]
    made = FieldCollection(trt, fields)
    gc.collect()
    assert list(map(field_reader(trt), made.collection)) == fields


def test_creators_name_the_attributes_that_the_parser_shall_pass(trt: Any) -> None:
    _, creator = plugin_classes(trt)
    for name, attributes in NODES.items():
        made = creator(OPS[name])
        gc.collect()
        assert [field.name for field in made.field_names] == list(attributes)
        assert (made.name, made.plugin_version, made.plugin_namespace) == (name, "1", "")


def test_bindings_whose_fields_cannot_be_read_are_refused() -> None:
    class Repeating(FakeTensorRT):
        """Every item of a field's data is the first one, as TensorRT 10.6 gives it beside NumPy 2."""

        def __init__(self) -> None:
            super().__init__()
            base = FakeTensorRT.PluginField

            class PluginField(base):  # type: ignore[misc, valid-type]
                @property
                def data(self) -> Any:
                    return np.full_like(super().data, super().data[0])

            self.PluginField = PluginField  # type: ignore[misc]

    with pytest.raises(MissingDependencyError, match="cannot be read"):
        field_reader(Repeating())


def test_registering_twice_registers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(registry, "_creators", [])
    register()
    creators = dict(fake.registry.creators)
    register()
    assert sorted(creators) == sorted(OPS)
    assert fake.registry.creators == creators
    # another copy of this package was there before
    monkeypatch.setattr(registry, "_creators", [])
    with pytest.raises(MissingDependencyError, match="a plugin PackedRotaryCachedAttention already"):
        register()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"no tensorrt.*nemotron-export\[tensorrt\]"):
        register()


def test_real_tensorrt_knows_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = pytest.importorskip("tensorrt", reason="needs TensorRT's Python bindings", exc_type=ImportError)
    register()
    for name in OPS:
        assert trt.get_plugin_registry().get_creator(name, "1", "").name == name


def _text(name: str, text: str) -> Field:
    return Field(name, "CHAR", text.encode())


GOOD = {name: attribute_fields(attributes) for name, attributes in NODES.items()}


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("LinearResidual", [], "LinearResidual.kernel: found no such attribute; expected a string; make the node"),
        ("LinearResidual", [_text("kernel", "")], "LinearResidual.kernel: found an empty string"),
        ("LinearResidual", [Field("kernel", "INT64", bytes(8))], "kernel: found 1 values of INT64; expected a string"),
        ("LinearResidual", [_text("kernel", "o"), _text("bias", "x")], "LinearResidual: found an attribute bias; exp"),
        ("LinearResidual", [_text("kernel", "gate")], "LinearResidual: found kernels .*expected kernels linear_res"),
        ("CachedAttention", [_text("scale", "x")], "CachedAttention: found an attribute scale; expected no attributes"),
        ("LayerNormLinear", GOOD["LayerNormLinear"][1:], "LayerNormLinear.epsilon: found no such attribute; expected"),
        ("LayerNormLinear", [_text("activation", "gelu"), *GOOD["LayerNormLinear"][::3]],
         "LayerNormLinear.activation: found 'gelu'; expected one of none, relu_squared"),
        ("LayerNormLinear", [_text("output", "float16"), *GOOD["LayerNormLinear"][::3]],
         "LayerNormLinear.output: found 'float16'; expected one of same, float32"),
        ("LayerNormLinear", [Field("epsilon", "FLOAT32", struct.pack("f", 1e-6)), *GOOD["LayerNormLinear"][1:]],
         "LayerNormLinear.layernorm_linear.up.r1: found a kernel compiled for EPSILON = 1e-05; expected the node's 9"),
        ("LayerNormLinear", [Field("epsilon", "FLOAT32", bytes(8)), *GOOD["LayerNormLinear"][1:]],
         "epsilon: found 2 values of FLOAT32; expected a floating-point number"),
        ("LayerNormLinear", [GOOD["LayerNormLinear"][0], _text("kernel", "up")], "up.r1: found .*RELU_SQUARED = True"),
        ("LayerNormLinear", [*GOOD["LayerNormLinear"][:2], _text("output", "float32"), _text("kernel", "up")],
         r"found a kernel that writes \*bf16; expected the node's output 'float32'"),
        ("PackedRotaryKVCacheUpdate", attribute_fields({"num_heads": 6}), "num_kv_heads: found no such attribute"),
        ("PackedRotaryKVCacheUpdate", attribute_fields({"num_heads": 6, "num_kv_heads": 4}),
         "found num_heads 6 and num_kv_heads 4; expected heads that num_kv_heads divides"),
        ("PackedRotaryKVCacheUpdate", attribute_fields({"num_heads": 0, "num_kv_heads": 2}), "found num_heads 0"),
        ("PackedRotaryKVCacheUpdate", attribute_fields({"num_heads": 8, "num_kv_heads": 2}),
         "update: found a kernel compiled for QUERY_HEADS = 6; expected 8, the node's num_heads"),
        ("PackedRotaryCachedAttention", attribute_fields({"num_heads": 6}), "num_kv_heads: found no such attribute"),
        ("PackedRotaryCachedAttention", attribute_fields({"num_heads": 6, "num_kv_heads": 4}),
         "found num_heads 6 and num_kv_heads 4; expected heads that num_kv_heads divides"),
        ("PackedRotaryCachedAttention", attribute_fields({"num_heads": 8, "num_kv_heads": 2}),
         "decode.r1: found a kernel compiled for GROUP = 3; expected 4, as many of the node's num_heads"),
        ("PackedRotaryCachedAttention", attribute_fields({"num_heads": 9, "num_kv_heads": 3}),
         "decode.r1: found a kernel compiled for KV_HEADS = 2; expected 3, the node's num_kv_heads"),
        ("PackedRotaryKVCacheUpdate", attribute_fields({"num_heads": 6.0, "num_kv_heads": 2}),
         "num_heads: found 1 values of FLOAT32; expected an integer"),
        ("PackedRotaryKVCacheUpdate", [Field("num_heads", "FLOAT16", b""), *GOOD["PackedRotaryKVCacheUpdate"][1:]],
         "num_heads: found a field of FLOAT16; expected an integer"),
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_by_op_and_name(name: str, fields: list[Field], words: str) -> None:
    with use_library(library_of()), pytest.raises(GraphError, match=words):
        make_op(OPS[name], fields)


def test_strings_may_end_with_their_mark_and_optional_ones_be_left_out() -> None:
    fields = [Field("epsilon", "FLOAT32", struct.pack("f", 1e-5)), Field("kernel", "CHAR", b"qkv\0")]
    with use_library(library_of()):
        made = make_op(OPS["LayerNormLinear"], fields)
    epsilon = struct.unpack("f", struct.pack("f", 1e-5))[0]
    assert made.values == {"epsilon": epsilon, "activation": "none", "output": "same", "kernel": "qkv"}


def test_building_without_a_library_is_refused_and_the_error_is_kept() -> None:
    with pytest.raises(GraphError, match=r"LinearResidual: found no kernels.*use_library"):
        _create(FakeTensorRT(), "LinearResidual", NODES["LinearResidual"])
    error = take_error()
    assert isinstance(error, GraphError)
    assert take_error() is None


def test_broken_kernels_of_an_engine_are_refused() -> None:
    library = library_of()
    kernels = {key: library[key] for key in KEYS["LinearResidual"]}
    fields = kernel_fields(kernels)
    assert kernels_of("LinearResidual", fields) == kernels
    with pytest.raises(BundleError, match=r"no field cubin.zlib:linear_residual.down.r1"):
        kernels_of("LinearResidual", fields[1:])
    with pytest.raises(BundleError, match=r"no field record:linear_residual.down.r8"):
        kernels_of("LinearResidual", fields[:-1])
    for broken in (b"\xff", b"{}"):
        with pytest.raises(BundleError, match=r"record:linear_residual.down.r1"):
            kernels_of("LinearResidual", [fields[0], Field(fields[1].name, "INT8", broken), *fields[2:]])
    cut = [Field(fields[0].name, "INT8", fields[0].data[:-1]), *fields[1:]]
    with pytest.raises(BundleError, match=r"cubin.zlib:linear_residual.down.r1: found .*expected a cubin compressed"):
        kernels_of("LinearResidual", cut)
    other = [Field(fields[0].name, "INT8", zlib.compress(b"another cubin")), *fields[1:]]
    with pytest.raises(BundleError, match=r"linear_residual_kernel: found a cubin of 13 bytes.*as its record says"):
        make_op(OPS["LinearResidual"], [*GOOD["LinearResidual"], *other])


def test_a_cubin_is_kept_compressed() -> None:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    from nemotron_plugins.compiling.compiler import compile_kernel

    kernel = compile_kernel(TINY.launches(90)["linear_residual.o.r1"], dtype="bfloat16", architecture=90)
    fields = kernel_fields({"linear_residual.o.r1": kernel})
    assert kernels_of("LinearResidual", fields) == {"linear_residual.o.r1": kernel}
    (kept,) = (field for field in fields if field.name == "cubin.zlib:linear_residual.o.r1")
    assert 2 * len(kept.data) < len(kernel.cubin)
    assert zlib.decompress(kept.data) == kernel.cubin
