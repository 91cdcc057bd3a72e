"""Fields of the TensorRT plugins: what nodes may say, and what an engine gives back; beside the real bindings too."""

from __future__ import annotations

import gc
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from nemotron_errors import BundleError, GraphError, MissingDependencyError
from nemotron_plugins.tensorrt import PLUGIN_OPS, register, registry, take_error, use_library
from nemotron_plugins.tensorrt.fields import Field, kernel_fields, kernels_of
from nemotron_plugins.tensorrt.plugin import make_op, plugin_classes
from nemotron_plugins.tensorrt.raw_fields import FieldCollection, field_reader
from support.kernel_requests import TINY
from support.plugin_libraries import SIZES, FakeTensorRT, library_of, to_fields

REQUESTS = SIZES.requests
NODES = ("fused", "update", "attention", "up", "down")
ROWS = (1, 2, 4, 8)
VARIANTS = {
    "fused": [*(f"r{rows}" for rows in ROWS), *(f"combine{rows}" for rows in ROWS)],
    "update": ["decode", "many"],
    "attention": ["prefill", *(f"r{rows}" for rows in ROWS), *(f"combine{rows}" for rows in ROWS)],
    "up": ["norm", *(f"r{rows}" for rows in ROWS)],
    "down": [f"r{rows}" for rows in ROWS],
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


def _create(trt: Any, name: str) -> Any:
    request = REQUESTS[name]
    creator = plugin_classes(trt)[1](PLUGIN_OPS[request.op])
    fields, kept = to_fields(trt, {"kernel": request.to_json()})
    plugin = creator.create_plugin("node", fields, None)
    del kept
    return plugin


@pytest.mark.parametrize("name", NODES)
def test_a_node_and_what_an_engine_keeps_of_it_make_the_same_plugin(trt: Any, name: str) -> None:
    library = library_of()
    with use_library(library):
        built = _create(trt, name)
    kept = built.get_fields_to_serialize()
    gc.collect()
    read = field_reader(trt)
    fields = [read(each) for each in kept]
    # an engine alone, without a library
    stored = FieldCollection(trt, fields)
    request = REQUESTS[name]
    run = plugin_classes(trt)[1](PLUGIN_OPS[request.op]).create_plugin("node", stored.collection, None)
    assert sorted(run.op.kernels) == sorted(VARIANTS[name])
    assert run.op.kernels == built.op.kernels == library.of(request)
    assert run.op.request == built.op.request == request
    assert run.clone().op is run.op
    assert (run.plugin_name, run.plugin_version, run.plugin_namespace) == (request.op, "1", "")
    assert run.num_outputs == len(run.op.outputs)


def test_a_field_is_read_whole(trt: Any) -> None:
    numbers = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32, "FLOAT64": np.float64}
    fields = [Field(f"field of {kind}", kind, np.arange(7).astype(dtype).tobytes()) for kind, dtype in numbers.items()]
    fields += [Field("cubin", "INT8", bytes(range(256)) * 200), Field("text", "CHAR", b"qkv")]
    made = FieldCollection(trt, fields)
    gc.collect()
    assert list(map(field_reader(trt), made.collection)) == fields


def test_creators_name_the_attribute_that_the_parser_shall_pass(trt: Any) -> None:
    _, creator = plugin_classes(trt)
    for name, op in PLUGIN_OPS.items():
        made = creator(op)
        gc.collect()
        assert [field.name for field in made.field_names] == ["kernel"]
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
    assert sorted(creators) == sorted(PLUGIN_OPS)
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
    for name in PLUGIN_OPS:
        assert trt.get_plugin_registry().get_creator(name, "1", "").name == name


def _text(text: str) -> Field:
    return Field("kernel", "CHAR", text.encode())


DOWN = REQUESTS["down"].to_json()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([], "LinearResidual.kernel: found no such attribute; expected a request for kernels of LinearResidual; bind"),
        ([_text("")], "LinearResidual.kernel: found ''"),
        ([_text("down")], "LinearResidual.kernel: found 'down' .*expected a request for kernels in JSON"),
        ([_text("[]")], r"LinearResidual.kernel: found '\[\]'"),
        ([_text('{"shapes":[],"attributes":[]}')], "TypeError.*build again with this version"),
        ([Field("kernel", "INT64", bytes(8))], "kernel: found a field of INT64; expected a request"),
        ([_text(REQUESTS["up"].to_json())], "found a request for kernels of LayerNormLinear; expected .*LinearResid"),
        ([_text(DOWN.replace("96", "97"))], "LinearResidual: found no kernels in the library; expected those of Lin"),
        ([_text(DOWN.replace("64,96", "64,97"))], "found no kernels in the library"),
    ],
)
def test_wrong_fields_are_refused_by_op_and_name(fields: list[Field], words: str) -> None:
    with use_library(library_of()), pytest.raises(GraphError, match=words):
        make_op(PLUGIN_OPS["LinearResidual"], fields)


def test_a_string_may_end_with_its_mark() -> None:
    with use_library(library_of()):
        made = make_op(PLUGIN_OPS["LinearResidual"], [Field("kernel", "CHAR", DOWN.encode() + b"\0")])
    assert made.request == REQUESTS["down"]


def test_building_without_a_library_is_refused_and_the_error_is_kept() -> None:
    with pytest.raises(GraphError, match=r"LinearResidual: found no kernels.*use_library"):
        _create(FakeTensorRT(), "down")
    error = take_error()
    assert isinstance(error, GraphError)
    assert take_error() is None


def test_broken_kernels_of_an_engine_are_refused() -> None:
    kernels = library_of().of(REQUESTS["down"])
    fields = kernel_fields(kernels)
    assert kernels_of("LinearResidual", fields) == kernels
    with pytest.raises(BundleError, match=r"no field cubin.zlib:r1"):
        kernels_of("LinearResidual", fields[1:])
    with pytest.raises(BundleError, match=r"no field record:r8"):
        kernels_of("LinearResidual", fields[:-1])
    for broken in (b"\xff", b"{}"):
        with pytest.raises(BundleError, match=r"record:r1"):
            kernels_of("LinearResidual", [fields[0], Field(fields[1].name, "INT8", broken), *fields[2:]])
    cut = [Field(fields[0].name, "INT8", fields[0].data[:-1]), *fields[1:]]
    with pytest.raises(BundleError, match=r"cubin.zlib:r1: found .*expected a cubin compressed"):
        kernels_of("LinearResidual", cut)
    other = [Field(fields[0].name, "INT8", zlib.compress(b"another cubin")), *fields[1:]]
    with pytest.raises(BundleError, match=r"linear_residual_kernel: found a cubin of 13 bytes.*as its record says"):
        make_op(PLUGIN_OPS["LinearResidual"], [_text(DOWN), *other])


def test_a_cubin_is_kept_compressed() -> None:
    pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
    from nemotron_plugins.compiling.compiler import compile_kernel

    kernel = compile_kernel(TINY.launches()["o.r1"], dtype="bfloat16", architecture=90)
    fields = kernel_fields({"r1": kernel})
    assert kernels_of("LinearResidual", fields) == {"r1": kernel}
    (kept,) = (field for field in fields if field.name == "cubin.zlib:r1")
    assert 2 * len(kept.data) < len(kernel.cubin)
    assert zlib.decompress(kept.data) == kernel.cubin
