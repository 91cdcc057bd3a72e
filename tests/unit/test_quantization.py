"""Codes and scales against plain numpy; the streamed file; the op that runs them; options and their refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from nemotron_errors import BundleError, RequestError
from nemotron_formats.weights import FORMATS, GroupedIntegers, Int4, Int8, choose_format, format_named
from nemotron_graphs.targets import get_target
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from support.checkpoints import write_checkpoint

from nemotron_export.checkpoint import Checkpoint, read_header
from nemotron_export.quantization import QUANTIZED_FILE, lay_out, write_quantized

INTEGERS = [each for each in FORMATS.values() if isinstance(each, GroupedIntegers)]
SHAPES = [(1, 32), (7, 96), (5, 100), (16, 257), (3, 1)]


def weights(rows: int, features: int, seed: int = 0) -> np.ndarray:
    """Of very different sizes by group, so that a scale in the wrong place is seen."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, features)) * 2.0 ** rng.integers(-8, 8, (rows, 1))
    return (values * np.linspace(0.1, 3, features)).astype(np.float32)


def encode(integers: GroupedIntegers, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales; what they decode to is the definition's."""
    arrays = integers.encode(weight)
    assert [(name, array.dtype.name, array.shape) for name, array in arrays.items()] == [
        (each.name, each.dtype, each.shape) for each in integers.operands(*weight.shape)
    ]
    decoded = integers.decode(arrays, weight.shape[1])
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(
        decoded, dequantize(arrays["codes"], arrays["scales"], integers.bits, weight.shape[1]), rtol=1e-6
    )
    return arrays["codes"], arrays["scales"]


def dequantize(codes: np.ndarray, scales: np.ndarray, bits: int, features: int) -> np.ndarray:
    """The definition, one code after the other."""
    rows, groups, _ = codes.shape
    out = []
    for row in range(rows):
        values: list[float] = []
        for group in range(groups):
            found: list[int] = []
            for byte in codes[row, group].tolist():
                found += [byte] if bits == 8 else [byte & 15, byte >> 4]
            values += [(code - 2 ** (bits - 1)) * float(scales[row, group]) for code in found]
        out.append(values)
    whole = np.array(out)
    assert not whole[:, features:].any(), "padding must weigh nothing"
    return whole[:, :features]


def op(
    codes: np.ndarray,
    scales: np.ndarray,
    integers: GroupedIntegers,
    features: int,
    bias: np.ndarray | None,
    accuracy: int,
):
    """A session of MatMulNBits alone."""
    parts = {"codes": codes, "scales": scales, **({} if bias is None else {"bias": bias})}
    inputs = ["x", "codes", "scales", *(["", "", "bias"] if bias is not None else [])]
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft", K=features, N=len(codes), bits=integers.bits,
        block_size=integers.group_size, accuracy_level=accuracy,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", len(codes)])],
        [numpy_helper.from_array(value, name) for name, value in parts.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("integers", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_is_within_a_step_of_its_value(integers: GroupedIntegers, shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    codes, scales = encode(integers, weight)
    groups = -(-shape[1] // integers.group_size)
    assert codes.shape == (shape[0], groups, integers.group_size * integers.bits // 8)
    assert codes.dtype == np.uint8
    assert scales.shape == (shape[0], groups)
    assert scales.dtype == np.float32
    error = np.abs(dequantize(codes, scales, integers.bits, shape[1]) - weight)
    for group in range(groups):
        columns = slice(group * integers.group_size, (group + 1) * integers.group_size)
        largest = np.abs(weight[:, columns]).max(-1)
        # plain rounding is off by half a step, and by a whole one at the end that has no partner
        step = largest / 2 ** (integers.bits - 1)
        bound = step if integers.bits == 8 else 3 * step
        assert (error[:, columns].max(-1) <= bound * 1.001).all()


def test_the_scale_search_never_loses_to_plain_rounding() -> None:
    weight = weights(64, 256, seed=3)

    class Plain(Int4):
        shares = (1.0,)

    squares = []
    for each in (Int4(32), Plain(32)):
        codes, scales = encode(each, weight)
        error = dequantize(codes, scales, 4, 256) - weight
        squares.append(np.square(error).reshape(64, 8, 32).sum(-1))
    assert (squares[0] <= squares[1] * (1 + 1e-5)).all()
    assert squares[0].sum() < 0.97 * squares[1].sum()


@pytest.mark.parametrize("integers", [Int8(32), Int4(32)], ids=str)
def test_zeros_extremes_and_tiny_values(integers: GroupedIntegers) -> None:
    low = 2 ** (integers.bits - 1)
    exact = np.zeros((4, 32), np.float32)
    exact[1] = np.arange(-16, 16) % low - low // 2
    exact[1, 0] = -low
    exact[2, 5] = -3.0
    exact[3] = np.float32(1e-42)
    codes, scales = encode(integers, exact)
    found = dequantize(codes, scales, integers.bits, 32)
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(found[:3], exact[:3], rtol=1e-6, atol=1e-6)
    assert np.abs(found[3]).max() < 1e-40


@pytest.mark.parametrize("integers", INTEGERS, ids=str)
@pytest.mark.parametrize("features", [32, 96, 100, 257])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_op_computes_with_the_dequantized_weight(integers: GroupedIntegers, features: int, with_bias: bool) -> None:
    rng = np.random.default_rng(1)
    weight = weights(48, features, seed=2)
    codes, scales = encode(integers, weight)
    bias = rng.normal(size=48).astype(np.float32) * 10 if with_bias else None
    exact = dequantize(codes, scales, integers.bits, features)
    for rows in (1, 9):
        x = rng.normal(size=(rows, features)).astype(np.float32)
        expected = x @ exact.T + (0 if bias is None else bias)
        size = np.abs(x) @ np.abs(exact.T)
        # activations as int8: off by half a step of 127 at most
        for accuracy, share in ((0, 1e-6), (4, 0.02)):
            (found,) = op(codes, scales, integers, features, bias, accuracy).run(None, {"x": x})
            assert (np.abs(found - expected) <= share * size + 1e-4).all()


@pytest.mark.parametrize("integers", INTEGERS, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_products_of_extremes_do_not_saturate(integers: GroupedIntegers, sign: int) -> None:
    """Kernels that add products of bytes in 16 bits would overflow here."""
    codes, scales = encode(integers, np.full((16, 256), -0.1 * sign, np.float32))
    exact = dequantize(codes, scales, integers.bits, 256)
    for rows in (1, 8):
        x = np.full((rows, 256), sign, np.float32)
        (found,) = op(codes, scales, integers, 256, None, 4).run(None, {"x": x})
        np.testing.assert_allclose(found, x @ exact.T, rtol=1e-2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, torch.bfloat16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    return Checkpoint.open(path)


@pytest.mark.parametrize("integers", [Int8(128), Int4(32)], ids=str)
def test_the_file_does_not_depend_on_blocks_and_says_what_it_holds(
    checkpoint: Checkpoint, integers: GroupedIntegers, tmp_path: Path
) -> None:
    layout = lay_out(checkpoint, integers)
    records, told = [], []
    for index, values in enumerate((1, 1000, 1 << 20)):
        folder = tmp_path / str(index)
        folder.mkdir()
        records.append(
            write_quantized(checkpoint, layout, folder, lambda *call: told.append(call), block_values=values)
        )
    assert records[0] == records[1] == records[2]
    assert told[-1][0] == told[-1][1] == sum(tensor.source.num_elements for tensor in layout.tensors)
    path = tmp_path / "0" / QUANTIZED_FILE
    data = path.read_bytes()
    assert len(data) == records[0].size == layout.size
    assert records[0].chunks == (hashlib.sha256(data).hexdigest(),)
    header = read_header(path)
    assert header.header_sha256 == records[0].header_sha256
    assert {name: (e.offset, e.shape) for name, e in header.tensors.items()} == {
        name: (e.offset, e.shape) for name, e in layout.entries.items()
    }
    assert all(entry.offset % 4 == 0 for name, entry in header.tensors.items() if name.endswith(".scales"))
    sources = safe_open(str(checkpoint.directory / "model.safetensors"), "pt")
    with safe_open(str(path), "numpy") as file:
        for tensor in layout.tensors:
            weight = sources.get_tensor(tensor.source.name).float().numpy()
            codes, scales = encode(integers, weight)
            np.testing.assert_array_equal(file.get_tensor(tensor.operands["codes"].name), codes)
            np.testing.assert_array_equal(file.get_tensor(tensor.operands["scales"].name), scales)


def test_what_is_quantized_and_what_is_skipped(checkpoint: Checkpoint) -> None:
    layout = lay_out(checkpoint, Int4(32))
    names = {tensor.source.name for tensor in layout.tensors}
    layers = checkpoint.config.num_hidden_layers
    assert len(names) == 6 * layers + 1
    # tied: codes of its own for lm_head, the stored rows for the lookup
    assert "model.embed_tokens.weight" in names
    assert set(layout.skipped) == {"model.embed_tokens.weight"}
    assert not any("norm" in name or "bias" in name for name in names)
    assert set(layout.encoded) == names


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("int3", None, "ort-cpu"), "--quantize"),
        (("int4", 48, "ort-cpu"), "--group-size"),
        (("int4", None, "onnx"), "--quantize"),
    ],
)
def test_refused_options(arguments: tuple[str, int | None, str], where: str) -> None:
    quantize, group_size, target = arguments
    with pytest.raises(RequestError) as caught:
        choose_format(quantize, group_size, get_target(target).formats)
    assert caught.value.where == where


def test_formats_by_option_and_by_name() -> None:
    offered = get_target("ort-cpu").formats
    assert choose_format("int8", None, offered) == Int8(128)
    assert choose_format("int4", None, offered) == Int4(32)
    assert choose_format("int4", 128, offered) == Int4(128)
    assert [format_named(name, "here") for name in FORMATS] == list(FORMATS.values())
    with pytest.raises(BundleError, match=r"weight format 'fp2'; expected one of int8-g128, .*update nemotron-export"):
        format_named("fp2", "here")
