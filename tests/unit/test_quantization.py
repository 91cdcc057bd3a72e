"""Codes and scales against plain numpy; the streamed file; the op that runs them; options and their refusals."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from nemotron_errors import RequestError
from nemotron_graphs.targets import get_target
from onnx import TensorProto, helper, numpy_helper
from safetensors import safe_open
from support.checkpoints import write_checkpoint

from nemotron_export.checkpoint import Checkpoint, read_header
from nemotron_export.quantization import QUANTIZED_FILE, Scheme, choose_scheme, lay_out, write_quantized
from nemotron_export.quantization.rounding import quantize_rows

SCHEMES = [Scheme(bits, group) for bits in (8, 4) for group in (32, 64, 128)]  # type: ignore[arg-type]
SHAPES = [(1, 32), (7, 96), (5, 100), (16, 257), (3, 1)]


def weights(rows: int, features: int, seed: int = 0) -> np.ndarray:
    """Of very different sizes by group, so that a scale in the wrong place is seen."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, features)) * 2.0 ** rng.integers(-8, 8, (rows, 1))
    return (values * np.linspace(0.1, 3, features)).astype(np.float32)


def dequantize(packed: np.ndarray, scales: np.ndarray, bits: int, features: int) -> np.ndarray:
    """The definition, one code after the other."""
    rows, groups, _ = packed.shape
    out = []
    for row in range(rows):
        values: list[float] = []
        for group in range(groups):
            codes: list[int] = []
            for byte in packed[row, group].tolist():
                codes += [byte] if bits == 8 else [byte & 15, byte >> 4]
            values += [(code - 2 ** (bits - 1)) * float(scales[row, group]) for code in codes]
        out.append(values)
    whole = np.array(out)
    assert not whole[:, features:].any(), "padding must weigh nothing"
    return whole[:, :features]


def op(packed: np.ndarray, scales: np.ndarray, scheme: Scheme, features: int, bias: np.ndarray | None, accuracy: int):
    """A session of MatMulNBits alone."""
    parts = {"packed": packed, "scales": scales, **({} if bias is None else {"bias": bias})}
    inputs = ["x", "packed", "scales", *(["", "", "bias"] if bias is not None else [])]
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft", K=features, N=len(packed), bits=scheme.bits,
        block_size=scheme.group_size, accuracy_level=accuracy,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", len(packed)])],
        [numpy_helper.from_array(value, name) for name, value in parts.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_weight_is_within_a_step_of_its_value(scheme: Scheme, shape: tuple[int, int]) -> None:
    weight = weights(*shape)
    packed, scales = quantize_rows(weight, scheme)
    groups = -(-shape[1] // scheme.group_size)
    assert packed.shape == (shape[0], groups, scheme.group_size * scheme.bits // 8)
    assert packed.dtype == np.uint8
    assert scales.shape == (shape[0], groups)
    assert scales.dtype == np.float32
    error = np.abs(dequantize(packed, scales, scheme.bits, shape[1]) - weight)
    for group in range(groups):
        columns = slice(group * scheme.group_size, (group + 1) * scheme.group_size)
        largest = np.abs(weight[:, columns]).max(-1)
        # plain rounding is off by half a step, and by a whole one at the end that has no partner
        step = largest / 2 ** (scheme.bits - 1)
        bound = step if scheme.bits == 8 else 3 * step
        assert (error[:, columns].max(-1) <= bound * 1.001).all()


def test_the_scale_search_never_loses_to_plain_rounding() -> None:
    weight = weights(64, 256, seed=3)
    scheme = Scheme(4, 32)

    class Plain(Scheme):
        candidates = (1.0,)  # type: ignore[assignment]

    squares = []
    for each in (scheme, Plain(4, 32)):
        packed, scales = quantize_rows(weight, each)
        error = dequantize(packed, scales, 4, 256) - weight
        squares.append(np.square(error).reshape(64, 8, 32).sum(-1))
    assert (squares[0] <= squares[1] * (1 + 1e-5)).all()
    assert squares[0].sum() < 0.97 * squares[1].sum()


@pytest.mark.parametrize("scheme", [Scheme(8, 32), Scheme(4, 32)], ids=str)
def test_zeros_extremes_and_tiny_values(scheme: Scheme) -> None:
    low = 2 ** (scheme.bits - 1)
    exact = np.zeros((4, 32), np.float32)
    exact[1] = np.arange(-16, 16) % low - low // 2
    exact[1, 0] = -low
    exact[2, 5] = -3.0
    exact[3] = np.float32(1e-42)
    packed, scales = quantize_rows(exact, scheme)
    found = dequantize(packed, scales, scheme.bits, 32)
    assert np.isfinite(scales).all()
    np.testing.assert_allclose(found[:3], exact[:3], rtol=1e-6, atol=1e-6)
    assert np.abs(found[3]).max() < 1e-40


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("features", [32, 96, 100, 257])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_op_computes_with_the_dequantized_weight(scheme: Scheme, features: int, with_bias: bool) -> None:
    rng = np.random.default_rng(1)
    weight = weights(48, features, seed=2)
    packed, scales = quantize_rows(weight, scheme)
    bias = rng.normal(size=48).astype(np.float32) * 10 if with_bias else None
    exact = dequantize(packed, scales, scheme.bits, features)
    for rows in (1, 9):
        x = rng.normal(size=(rows, features)).astype(np.float32)
        expected = x @ exact.T + (0 if bias is None else bias)
        size = np.abs(x) @ np.abs(exact.T)
        # activations as int8: off by half a step of 127 at most
        for accuracy, share in ((0, 1e-6), (4, 0.02)):
            (found,) = op(packed, scales, scheme, features, bias, accuracy).run(None, {"x": x})
            assert (np.abs(found - expected) <= share * size + 1e-4).all()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_products_of_extremes_do_not_saturate(scheme: Scheme, sign: int) -> None:
    """Kernels that add products of bytes in 16 bits would overflow here."""
    packed, scales = quantize_rows(np.full((16, 256), -0.1 * sign, np.float32), scheme)
    exact = dequantize(packed, scales, scheme.bits, 256)
    for rows in (1, 8):
        x = np.full((rows, 256), sign, np.float32)
        (found,) = op(packed, scales, scheme, 256, None, 4).run(None, {"x": x})
        np.testing.assert_allclose(found, x @ exact.T, rtol=1e-2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(path, torch.bfloat16, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    return Checkpoint.open(path)


@pytest.mark.parametrize("scheme", [Scheme(8, 128), Scheme(4, 32)], ids=str)
def test_the_file_does_not_depend_on_blocks_and_says_what_it_holds(
    checkpoint: Checkpoint, scheme: Scheme, tmp_path: Path
) -> None:
    layout = lay_out(checkpoint, scheme)
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
            packed, scales = quantize_rows(weight, scheme)
            np.testing.assert_array_equal(file.get_tensor(tensor.packed.name), packed)
            np.testing.assert_array_equal(file.get_tensor(tensor.scales.name), scales)


def test_what_is_quantized_and_what_is_kept(checkpoint: Checkpoint) -> None:
    layout = lay_out(checkpoint, Scheme(4, 32))
    names = {tensor.source.name for tensor in layout.tensors}
    layers = checkpoint.config.num_hidden_layers
    assert len(names) == 6 * layers + 1
    # tied: codes of its own for lm_head, the stored rows for the lookup
    assert "model.embed_tokens.weight" in names
    assert set(layout.kept) == {"model.embed_tokens.weight"}
    assert not any("norm" in name or "bias" in name for name in names)
    assert set(layout.weights) == names


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("int3", None, "ort-cpu"), "--quantize"),
        (("int4", 48, "ort-cpu"), "--group-size"),
        ((None, 32, "ort-cpu"), "--group-size"),
        (("int4", None, "onnx"), "--quantize"),
    ],
)
def test_refused_options(arguments: tuple[str | None, int | None, str], where: str) -> None:
    quantize, group_size, target = arguments
    with pytest.raises(RequestError) as caught:
        choose_scheme(quantize, group_size, get_target(target))
    assert caught.value.where == where


def test_default_schemes() -> None:
    target = get_target("ort-cpu")
    assert choose_scheme(None, None, target) is None
    assert choose_scheme("int8", None, target) == Scheme(8, 128)
    assert choose_scheme("int4", None, target) == Scheme(4, 32)
    assert choose_scheme("int4", 128, target) == Scheme(4, 128)
