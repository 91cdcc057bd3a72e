"""The graphs of TensorRT's native layers equal the eager dialect path, in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from nemotron_errors import GraphError
from nemotron_graphs.targets import LoweringContext, get_target, lowering, tensorrt_native
from nemotron_graphs.targets.lowering import Lowered
from nemotron_graphs.targets.tensorrt import NATIVE_OPSET
from support.checkpoints import write_checkpoint
from support.graph_pairs import SLOTS, drive_beside_eager

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import rope_tables
from nemotron_export.model.load import load_model
from nemotron_export.tracing import trace

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases, tied, all lanes rotated": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "partial_rotary_factor": 1.0,
    },
    "one key/value head, few lanes": {"num_key_value_heads": 1, "partial_rotary_factor": 0.25},
}


def lower(checkpoint: Checkpoint, dtype: torch.dtype = torch.float16) -> Lowered:
    cos, sin = rope_tables(checkpoint.config, SLOTS, torch.float32)
    context = LoweringContext(checkpoint.tensors, cos.numpy(), sin.numpy())
    return lowering.lower(tensorrt_native, trace(checkpoint.config, dtype), context)


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_native_layers_compute_what_eager_does(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_checkpoint(tmp_path, torch.float16, **changes)
    checkpoint = Checkpoint.open(tmp_path)
    model = load_model(checkpoint, torch.float16)
    graphs = lower(checkpoint)
    # fp16 has steps of a thousandth
    assert drive_beside_eager(graphs, model, checkpoint, 1) < 4e-3
    assert drive_beside_eager(graphs, model, checkpoint, 3) < 4e-3


def test_the_tolerance_sees_a_wrong_graph(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, torch.float16)
    checkpoint = Checkpoint.open(tmp_path)
    graphs = lower(checkpoint)
    for node in graphs.graphs["prefill"].model.graph:
        if node.op_type == "RotaryEmbedding":
            node.attributes["interleaved"] = ir.AttrInt64("interleaved", 1)
    assert drive_beside_eager(graphs, load_model(checkpoint, torch.float16), checkpoint, 1) > 3e-2


def test_both_graphs_hold_native_layers_alone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, torch.bfloat16)
    graphs = lower(Checkpoint.open(tmp_path), torch.bfloat16)
    for graph, tokens in ((graphs.graphs["prefill"], "tokens"), (graphs.graphs["decode"], 1)):
        counts = Counter(node.op_type for node in graph.model.graph)
        assert (counts["RotaryEmbedding"], counts["TensorScatter"], counts["Attention"]) == (6, 6, 3)
        assert {node.domain for node in graph.model.graph} == {""}
        assert graph.model.opset_imports == {"": NATIVE_OPSET}
        inputs = {value.name: value for value in graph.model.graph.inputs}
        assert [str(dim) for dim in inputs["input_ids"].shape or ()] == ["batch", str(tokens)]
        # of a known length, which TensorRT's layer for the cache wants
        assert [str(dim) for dim in inputs["k_cache.0"].shape or ()] == ["batch", "2", str(SLOTS), "32"]
        assert [w.name for w in graphs.weights] == [
            n for n in inputs if (n and n.endswith(".weight")) or (n and n.endswith(".bias"))
        ]
    # one mask for all layers
    assert Counter(node.op_type for node in graphs.graphs["prefill"].model.graph)["LessOrEqual"] == 1


def test_weights_of_another_dtype_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, torch.float16)
    with pytest.raises(GraphError, match="stored in float16; expected bfloat16"):
        lower(Checkpoint.open(tmp_path), torch.bfloat16)
    assert get_target("tensorrt-rtx").dtypes == ("bfloat16", "float16")
