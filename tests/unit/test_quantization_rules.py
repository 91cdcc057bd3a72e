"""The pass that makes MatMulNBits, the judge's refusals, the reference's text and the estimate of a quantized build."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from nemotron_errors import BundleError, LimitError
from nemotron_formats.tensors import EncodedWeight, TensorEntry
from nemotron_formats.weights import Int4, Int8
from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes import LowerLinearToMatMulNBitsPass
from nemotron_runtime.checks import check
from nemotron_runtime.checks.perplexity import perplexity, token_nll
from nemotron_runtime.checks.reference import Reference, ReferencePrompt, ReferenceText, read_reference, write_reference
from safetensors.numpy import load_file, save_file
from support.toy_engine import ToyEngine

from nemotron_export.building.preflight import estimate
from nemotron_export.config.config import NemotronConfig


def _graph(bias: bool = False) -> ir.Model:
    """Two projections of one weight, one of another."""
    x = ir.Value(name="x", shape=ir.Shape((1, "S", 100)), type=ir.TensorType(ir.DataType.FLOAT))
    weights = [
        ir.Value(name=name, shape=ir.Shape((24, 100)), type=ir.TensorType(ir.DataType.FLOAT)) for name in ("w", "other")
    ]
    b = ir.Value(name="b", shape=ir.Shape((24,)), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.Node(DOMAIN, "Linear", [x, weight, *([b] if bias else [])]) for weight in (*weights, weights[0])]
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"y{index}"
    inputs = [x, *weights, *([b] if bias else [])]
    graph = ir.Graph(inputs, [n.outputs[0] for n in nodes], nodes=nodes, opset_imports={"": 21, DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def _weight(name: str = "w", groups: int = 4) -> dict[str, EncodedWeight]:
    operands = {
        "codes": TensorEntry(f"{name}.codes", "U8", (24, groups, 16), "q", 0, 0),
        "scales": TensorEntry(f"{name}.scales", "F32", (24, groups), "q", 0, 0),
    }
    return {name: EncodedWeight(Int4(32), operands)}


@pytest.mark.parametrize("bias", [False, True])
def test_the_pass_replaces_quantized_projections_alone(bias: bool) -> None:
    model = LowerLinearToMatMulNBitsPass(_weight(), 4)(_graph(bias)).model
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "Linear", "MatMulNBits"]
    first, _, second = list(model.graph)
    # one input of each kind, however many nodes read it
    assert first.inputs[1] is second.inputs[1]
    assert first.inputs[2] is second.inputs[2]
    assert [value.name for value in model.graph.inputs][-2:] == ["w.codes", "w.scales"]
    names = [None if value is None else value.name for value in first.inputs]
    assert names == ["x", "w.codes", "w.scales", *([None, None, "b"] if bias else [])]
    found = {name: attribute.as_int() for name, attribute in first.attributes.items()}
    assert found == {"K": 100, "N": 24, "bits": 4, "block_size": 32, "accuracy_level": 4}
    assert [value.name for value in model.graph.outputs] == ["y0", "y1", "y2"]
    assert model.opset_imports["com.microsoft"] == 1


def test_the_pass_refuses_what_does_not_fit() -> None:
    with pytest.raises(
        ir.passes.PreconditionError, match=r"found codes of shape \[24, 3, 16\]; expected \[24, 4, 16\]"
    ):
        LowerLinearToMatMulNBitsPass(_weight(groups=3), 4)(_graph())
    with pytest.raises(ir.passes.PostconditionError, match="found missing; expected none"):
        LowerLinearToMatMulNBitsPass(_weight("missing"), 4)(_graph())


def _reference(tokens: int = 17, steps: int = 4) -> Reference:
    """One prompt of the toy session's own numbers."""
    with ToyEngine() as session:
        ids = np.arange(tokens) * 5 % session.vocab_size
        logits = session.logits(ids)
        history, chosen = list(ids), [logits[-1]]
        for _ in range(steps):
            history.append(int(chosen[-1].argmax()))
            chosen.append(session.row_logits(history))
    top = np.sort(chosen[:steps], -1)
    where = np.array([0, tokens - 1])
    greedy, margins = np.array(history[tokens:]), top[:, -1] - top[:, -2]
    prompt = ReferencePrompt(ids, where, logits[where], greedy, margins, np.array([1]), chosen[2][None])
    return Reference((prompt,), judge={"model": "toy"})


def _text(tokens: int = 12) -> ReferenceText:
    ids = np.arange(tokens, dtype=np.int64) % 7
    with ToyEngine() as session:
        return ReferenceText(ids, token_nll(session.logits(ids)[:-1], ids[1:]))


def test_a_session_that_equals_the_reference_passes_and_one_that_is_off_fails() -> None:
    reference = replace(_reference(), texts=(_text(), _text(5)))
    report = check(ToyEngine(), reference, "float32", weight_format=Int8(128))
    assert report.passed
    (row,) = (row for row in report.rows if row.check == "perplexity ratio")
    assert row.measured == pytest.approx(1, abs=1e-6)
    assert row.tolerance == 1.01
    assert "15 tokens" in row.prompt
    worse = replace(reference, texts=tuple(replace(text, nll=text.nll - np.float32(0.02)) for text in reference.texts))
    failed = [row.check for row in check(ToyEngine(), worse, "float32", weight_format=Int8(128)).rows if not row.passed]
    assert failed == ["perplexity ratio"]
    assert check(ToyEngine(), worse, "float32", weight_format=Int4(32)).passed
    shifted = check(ToyEngine(error=100.0), reference, "float32", weight_format=Int4(32))
    assert {"prefill, RMSE / deviation", "largest drift / range"} <= {r.check for r in shifted.rows if not r.passed}


def test_refused_references() -> None:
    with pytest.raises(BundleError, match="without held-out text"):
        check(ToyEngine(), _reference(), "float32", weight_format=Int8(128))
    session = ToyEngine(max_seq_len=40)
    with pytest.raises(LimitError, match="a text of 41 tokens"):
        check(session, replace(_reference(), texts=(_text(41),)), "float32", weight_format=Int8(128))


def test_the_reference_keeps_its_text(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    write_reference(path, replace(_reference(), texts=(_text(), _text(5))))
    found = read_reference(path)
    assert len(found.prompts) == len(_reference().prompts)
    assert [len(text.ids) for text in found.texts] == [12, 5]
    np.testing.assert_array_equal(found.texts[1].nll, _text(5).nll)


@pytest.mark.parametrize(
    "change",
    [
        {"text-000/nll": np.zeros(3, np.float32)},
        {"text-000/nll": np.full(11, np.nan, np.float32)},
        {"text-000/nll": np.zeros(11, np.float64)},
        {"text-000/ids": np.zeros(12, np.int32)},
        {"text-000/ids": np.zeros((2, 6), np.int64)},
    ],
)
def test_broken_text_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    import safetensors

    path = tmp_path / "reference.safetensors"
    write_reference(path, replace(_reference(), texts=(_text(),)))
    with safetensors.safe_open(str(path), "numpy") as file:
        metadata = file.metadata()
    save_file({**load_file(path), **change}, path, metadata=metadata)
    with pytest.raises(BundleError):
        read_reference(path)


def test_perplexity_of_what_is_not_finite_is_nan() -> None:
    assert np.isnan(perplexity([np.array([1.0, np.nan], np.float32)]))
    assert np.isnan(perplexity([np.array([np.inf], np.float32)]))
    assert np.isnan(perplexity([np.array([1e6], np.float32)]))
    assert perplexity([np.log([2.0, 8.0]).astype(np.float32)]) == pytest.approx(4)


def test_the_estimate_counts_the_quantized_file() -> None:
    config = NemotronConfig()
    common: dict[str, Any] = {
        "num_parameters": 4_000_000_000, "stored_bytes": 8_000_000_000, "run_dtype": "float32", "capacity": 64,
        "sequences": 1, "weights_mode": "reference", "parity": True,
    }  # fmt: skip
    plain, small = (estimate(config, **common, quantized_bytes=count) for count in (0, 2_500_000_000))
    assert small.disk - plain.disk == 2_500_000_000
    assert small.weights < plain.weights / 2
