"""The tensorrt target's two graphs, their plugins' ops made standard again, equal the eager dialect path."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from nemotron_errors import GraphError
from nemotron_formats.tensors import TensorEntry
from nemotron_graphs.targets import LoweringContext, lowering
from nemotron_graphs.targets.lowering import Lowered
from nemotron_graphs.targets.tensorrt import tensorrt
from support.graph_pairs import SLOTS, drive_beside_eager

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM, rope_tables
from nemotron_export.model.fp32_mlp import set_fp32_mlp
from nemotron_export.tracing import trace

BASE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "architectures": ["NemotronForCausalLM"],
    "dtype": "float16",
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases, tied, another epsilon": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "norm_eps": 1e-3,
    },
    "one key/value head": {"head_dim": 24, "num_key_value_heads": 1},
}
LAYER_OPS = ("PackedRotaryKVCacheUpdate", "CachedAttention", "PackedRotaryCachedAttention")
PLUGIN_OPS = (*LAYER_OPS, "LayerNormLinear", "LinearResidual")


def make(tmp_path: Path, **changes: Any) -> tuple[NemotronForCausalLM, Checkpoint]:
    config = NemotronConfig(**{**BASE, **changes})
    torch.manual_seed(0)
    dtype = getattr(torch, config.dtype or "float32")
    model = NemotronForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    save_checkpoint(tmp_path / "checkpoint", config, dict(model.state_dict()))
    return model, Checkpoint.open(tmp_path / "checkpoint")


def lower(checkpoint: Checkpoint, dtype: torch.dtype = torch.float16, wide: tuple[int, ...] = ()) -> Lowered:
    cos, sin = rope_tables(checkpoint.config, SLOTS, torch.float32)
    context = LoweringContext(checkpoint.tensors, cos.numpy(), sin.numpy(), fp32_mlp_layers=len(wide))
    return lowering.lower(tensorrt, trace(checkpoint.config, dtype, fp32_mlp_layers=wide), context)


def fused_projections(model: ir.Model) -> Counter[tuple[str, str]]:
    """How many nodes of each op a module's weight is read by."""
    places = {"LayerNormLinear": 3, "LinearResidual": 1}
    found: Counter[tuple[str, str]] = Counter()
    for node in model.graph:
        if node.op_type in places:
            weight = node.inputs[places[node.op_type]]
            assert weight is not None
            assert weight.name
            found[node.op_type, weight.name.split(".")[-2]] += 1
    return found


@pytest.mark.parametrize("name", MODELS)
def test_both_graphs_equal_eager(tmp_path: Path, name: str) -> None:
    model, checkpoint = make(tmp_path, **MODELS[name])
    assert drive_beside_eager(lower(checkpoint), model, checkpoint, rows=3) < 3e-3


def test_the_tolerance_sees_a_wrong_graph(tmp_path: Path) -> None:
    model, checkpoint = make(tmp_path)
    graphs = lower(checkpoint)
    for node in graphs.graphs["decode"].model.graph:
        if node.attributes.get_string("activation", "") == "relu_squared":
            node.attributes["activation"] = ir.AttrString("activation", "none")
    assert drive_beside_eager(graphs, model, checkpoint, rows=1) > 3e-2


def test_what_the_graphs_consist_of(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    graphs = lower(checkpoint)
    decode = Counter(node.op_type for node in graphs.graphs["decode"].model.graph)
    assert {op: decode[op] for op in PLUGIN_OPS} == {
        "PackedRotaryKVCacheUpdate": 0, "CachedAttention": 0, "PackedRotaryCachedAttention": 2, "LayerNormLinear": 5,
        "LinearResidual": 4,
    }  # fmt: skip
    # layers are plugins alone: what TensorRT ran between two would break their chain of launches
    assert {op: count for op, count in decode.items() if op not in PLUGIN_OPS} == {"Gather": 1, "Unsqueeze": 1}
    assert fused_projections(graphs.graphs["decode"].model) == {
        ("LayerNormLinear", "qkv_proj"): 2, ("LayerNormLinear", "up_proj"): 2, ("LayerNormLinear", "lm_head"): 1,
        ("LinearResidual", "o_proj"): 2, ("LinearResidual", "down_proj"): 2,
    }  # fmt: skip
    prefill = Counter(node.op_type for node in graphs.graphs["prefill"].model.graph)
    assert {op: prefill[op] for op in ("Gemm", "LayerNormalization", *LAYER_OPS)} == {
        "Gemm": 9, "LayerNormalization": 5, "PackedRotaryKVCacheUpdate": 2, "CachedAttention": 2,
        "PackedRotaryCachedAttention": 0,
    }  # fmt: skip
    # two for the tokens and rows of all layers, one for the chosen positions
    assert prefill["Shape"] == 3
    for lowered in graphs.graphs.values():
        assert {node.op_type for node in lowered.model.graph if node.domain} <= set(PLUGIN_OPS)
        assert not lowered.model.functions
        assert set(lowered.model.graph.initializers) >= {"cos", "sin"}
        assert not any(
            value.const_value.shape.numpy()[-1:] == (64,) for value in lowered.model.graph.initializers.values()
        )
        assert lowered.model.graph.outputs[0].name == "logits"
        assert lowered.model.graph.outputs[0].dtype == ir.DataType.FLOAT


def test_inputs_are_those_of_a_session(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    graphs = lower(checkpoint)
    rows = ["input_ids", "query_start"]
    caches = ["k_cache.0", "k_cache.1", "v_cache.0", "v_cache.1"]
    names = [weight.name for weight in graphs.weights]
    assert graphs.session["inputs"] == [*rows, *caches, *names]
    prefill = [value.name for value in graphs.graphs["prefill"].model.graph.inputs]
    assert prefill == [*rows, "logits_index", *caches, *names]
    shapes = {value.name: str(value.shape) for value in graphs.graphs["decode"].model.graph.inputs}
    assert (shapes["input_ids"], shapes["query_start"]) == ("[batch,1]", "[batch]")
    assert shapes["k_cache.1"] == "[batch,2,cache_len,32]"


def test_weights_name_their_parts(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path, attention_bias=True)
    weights = {weight.name: weight for weight in lower(checkpoint).weights}
    packed = [name for name in checkpoint.tensors if any(f".{part}_proj." in name for part in "qkv")]
    assert set(weights) == (set(checkpoint.tensors) - set(packed)) | {
        f"model.layers.{layer}.self_attn.qkv_proj.{kind}" for layer in range(2) for kind in ("weight", "bias")
    }
    qkv = weights["model.layers.1.self_attn.qkv_proj.weight"]
    assert (qkv.dtype, qkv.shape) == ("float16", (256, 64))
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    assert qkv.parts == tuple(checkpoint.tensors[name].span for name in names)
    norm = weights["model.norm.weight"]
    assert norm.parts == (checkpoint.tensors["model.norm.weight"].span,)


def test_a_trace_is_left_as_it_is(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    cos, sin = rope_tables(checkpoint.config, SLOTS, torch.float32)
    dialect = trace(checkpoint.config, torch.float16)
    before = _described(dialect)
    lowering.lower(tensorrt, dialect, LoweringContext(checkpoint.tensors, cos.numpy(), sin.numpy()))
    assert _described(dialect) == before
    assert ("Linear", "model.layers.1.mlp.up_proj.Linear", "[batch,tokens,96]", "FLOAT16") in before


def _described(model: ir.Model) -> list[tuple[str, str | None, str, str]]:
    values = [("input", value) for value in model.graph.inputs]
    values += [(node.op_type, value) for node in model.graph for value in node.outputs]
    return [(kind, value.name, str(value.shape), str(value.dtype)) for kind, value in values]


def test_a_layer_that_squares_in_fp32_keeps_its_nodes(tmp_path: Path) -> None:
    model, checkpoint = make(tmp_path)
    set_fp32_mlp(model, [1])
    graphs = lower(checkpoint, wide=(1,))
    fused = sorted(module for _, module in fused_projections(graphs.graphs["decode"].model).elements())
    assert fused == ["down_proj", "lm_head", "o_proj", "o_proj", "qkv_proj", "qkv_proj", "up_proj"]
    assert drive_beside_eager(graphs, model, checkpoint, rows=2) < 3e-3


@pytest.mark.parametrize(
    ("task", "last"),
    [
        ("token-classification", "LayerNormLinear"),
        ("question-answering", "LayerNormLinear"),
        ("sequence-classification", "LayerNormLinear"),
        ("feature-extraction", "Cast"),
    ],
)
def test_every_task_has_its_two_graphs(task: str, last: str) -> None:
    config = NemotronConfig(**BASE)
    dialect = trace(config, torch.bfloat16, task)
    names = {v.name: v for v in dialect.graph.inputs if (v.name or "").endswith((".weight", ".bias"))}
    weights = {
        name: TensorEntry(name or "", "BF16", tuple(value.shape.numpy()), "model.safetensors", 0, 0)  # type: ignore[union-attr]
        for name, value in names.items()
    }
    cos, sin = rope_tables(config, SLOTS, torch.float32)
    chooses = task == "causal-lm"
    context = LoweringContext(weights, cos.numpy(), sin.numpy(), chooses_tokens=chooses)  # type: ignore[arg-type]
    graphs = lowering.lower(tensorrt, dialect, context)
    output = graphs.graphs["decode"].model.graph.outputs[0]
    node = output.producer()
    assert node is not None
    assert (node.op_type, output.dtype) == (last, ir.DataType.FLOAT)
    if last == "LayerNormLinear":
        assert node.attributes["output"].value == "float32"
    assert graphs.graphs["prefill"].model.graph.outputs[0].name == output.name


def test_a_checkpoint_of_another_dtype_is_refused(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    with pytest.raises(GraphError, match=r"stored in float16(.|\n)*--dtype float16"):
        lower(checkpoint, torch.bfloat16)
    with pytest.raises(GraphError, match="float32"):
        lower(checkpoint, torch.float32)
    assert tensorrt.dtypes == ("bfloat16", "float16")
