"""The weights that a graph refers to: read without the onnx package, given to ONNX Runtime where they are mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import onnx
import onnxruntime
import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.weights import map_weights
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.onnxruntime import graph as onnxruntime_graph
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from nemotron_runtime.executors.onnxruntime.graph import open_graph
from nemotron_runtime.executors.onnxruntime.initializers import ExternalTensor, external_tensors
from onnx import TensorProto, helper

from nemotron_export import build

DEMO = Path(__file__).parents[2] / "nemotron_export" / "assets" / "demo"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> nemotron_runtime.Bundle:
    """Packed projections, a checkpoint elsewhere."""
    folder = tmp_path_factory.mktemp("initializers")
    path = build(DEMO, folder / "bundle", target="ort-cpu", max_seq_len=64, parity=False)
    return nemotron_runtime.Bundle.open(path, allow_unverified=True)


def external(name: str, data_type: int, dims: list[int], **entries: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_of(*tensors: TensorProto) -> bytes:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], tensors)
    return helper.make_model(graph, producer_name="test").SerializeToString()


def test_external_tensors_alone_are_found_in_order() -> None:
    big = 5 << 32
    model = model_of(
        external("w", TensorProto.BFLOAT16, [300, 2], location="a/b.safetensors", offset=big, length=1200),
        helper.make_tensor("inside", TensorProto.FLOAT, [2], [1.0, 2.0]),
        external("scalar", TensorProto.FLOAT, [], location="packed", length=4),
    )
    assert external_tensors(model) == [
        ExternalTensor("w", TensorProto.BFLOAT16, (300, 2), "a/b.safetensors", big, 1200),
        ExternalTensor("scalar", TensorProto.FLOAT, (), "packed", 0, 4),
    ]
    assert external_tensors(b"") == []


def test_dims_may_be_written_packed() -> None:
    entries = b"".join(
        b"\x6a" + bytes([len(pair)]) + pair for pair in (b"\x0a\x08location\x12\x01f", b"\x0a\x06length\x12\x041200")
    )
    # field 1 with wire type 2: 300 and 2 behind each other
    tensor = b"\x0a\x03\xac\x02\x02" + b"\x10\x10" + b"\x42\x01w" + entries + b"\x70\x01"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x3a" + bytes([len(graph)]) + graph
    assert onnx.load_from_string(model).graph.initializer[0].dims == [300, 2]
    assert external_tensors(model) == [ExternalTensor("w", TensorProto.BFLOAT16, (300, 2), "f", 0, 1200)]


def test_what_is_no_model_is_a_value_error() -> None:
    model = model_of(external("w", TensorProto.FLOAT, [4], location="f", length=16))
    for cut in range(1, len(model)):
        try:
            found = external_tensors(model[:cut])
        except ValueError:
            continue
        # cut between two fields of the model
        assert len(found) in (0, 1)
    for broken in (b"no graph", b"\x3a\x05\x2a", b"\x38\x01", b"\x3b", b"\xff" * 12):
        with pytest.raises(ValueError, match=r"field|number"):
            external_tensors(broken)
    with pytest.raises(ValueError, match="'w' without location or length"):
        external_tensors(model_of(external("w", TensorProto.FLOAT, [4], location="f")))


def test_a_graphs_weights_agree_with_what_onnx_reads(bundle: nemotron_runtime.Bundle) -> None:
    path = bundle.file("model.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    expected = []
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            entry = {pair.key: pair.value for pair in tensor.external_data}
            place = entry["location"], int(entry["offset"]), int(entry["length"])
            expected.append(ExternalTensor(tensor.name, tensor.data_type, tuple(tensor.dims), *place))
    assert external_tensors(path.read_bytes()) == expected
    assert "packed" in {tensor.location for tensor in expected}


def test_onnx_runtime_gets_the_mapped_bytes_and_no_file(
    bundle: nemotron_runtime.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    views: list[Any] = []
    monkeypatch.setattr(
        onnxruntime_graph,
        "map_weights",
        lambda *args, **options: views.append(map_weights(*args, **options)) or views[0],
    )
    session = open_graph(bundle, str(bundle.file("model.onnx")), 1)
    expected = {tensor.name: tensor for tensor in external_tensors(bundle.file("model.onnx").read_bytes())}
    assert set(session.weights) == set(expected)
    whole = {name: np.frombuffer(view, np.uint8) for name, view in views[0].items()}
    mapped = 0
    for name, value in session.weights.items():
        assert isinstance(value, onnxruntime.OrtValue)
        assert tuple(value.shape()) == expected[name].shape
        if expected[name].location in whole:
            start = whole[expected[name].location].ctypes.data
            assert value.data_ptr() == start + expected[name].offset
            mapped += 1
    assert 0 < mapped < len(expected)


def test_weights_inside_the_bundle_are_left_to_onnx_runtime_but_for_packed_ones(tmp_path: Path) -> None:
    tokens = []
    for weights in ("reference", "copy"):
        options: Any = {"target": "ort-cpu", "max_seq_len": 64, "parity": False, "weights": weights}
        path = build(DEMO, tmp_path / weights, **options)
        opened = nemotron_runtime.Bundle.open(path, allow_unverified=True)
        with Engine(OnnxRuntimeExecutor(opened, threads=1)) as session:
            given = {t.name: t.location for t in external_tensors(opened.file("model.onnx").read_bytes())}
            if weights == "copy":
                given = {name: location for name, location in given.items() if location == "packed"}
                assert given
            assert set(session.executor._session.weights) == set(given)
            session.reset(1, 40)
            tokens.append(session.prefill([np.arange(4, 24)]))
    np.testing.assert_array_equal(tokens[0], tokens[1])


@pytest.mark.parametrize("change", ["length", "offset", "location", "type"])
def test_a_graph_that_refers_to_what_is_not_there_is_refused(bundle: nemotron_runtime.Bundle, change: str) -> None:
    model = onnx.load(bundle.file("model.onnx"), load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    changed = {"length": "12", "offset": str(1 << 40), "location": "other.safetensors"}
    if change == "type":
        tensor.data_type = TensorProto.COMPLEX64
    for entry in tensor.external_data:
        if entry.key == change:
            entry.value = changed[change]
    with pytest.raises(BundleError, match=rf"a graph that fails to load: initializer '{tensor.name}'"):
        open_graph(bundle, model.SerializeToString(), 1)
