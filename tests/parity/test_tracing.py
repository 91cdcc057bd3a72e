"""The stamped trace equals the whole trace, and lowered graphs equal the eager dialect path."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from nemotron_errors import GraphError
from nemotron_graphs.targets import LoweringContext, get_target, lowering
from support.whole_trace import trace_whole

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM, rope_tables
from nemotron_export.tracing import trace

SLOTS = 1200
BASE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "architectures": ["NemotronForCausalLM"],
}
ODD: dict[str, dict[str, Any]] = {
    "plain": {},
    "biases-tied-bf16": {
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    },
    "one-kv-head-rotary-outside": {"head_dim": 24, "num_key_value_heads": 1, "norm_eps": 1e-3},
    "full-rotary-scaled": {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "partial_rotary_factor": 1.0}},
    "width-96": {"head_dim": 192, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 120},
}


def make(tmp_path: Path, **changes: Any) -> tuple[NemotronForCausalLM, Checkpoint]:
    config = NemotronConfig(**{**BASE, **changes})
    torch.manual_seed(0)
    model = NemotronForCausalLM(config).eval()
    dtype = getattr(torch, config.dtype or "float32")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.2).to(dtype).float())
    state = {name: value.to(dtype) for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path / "checkpoint", config, state)
    return model, Checkpoint.open(tmp_path / "checkpoint")


@functools.cache
def _traced(make_trace: Callable[..., ir.Model], config_json: str) -> onnx.ModelProto:
    return ir.to_proto(make_trace(NemotronConfig.from_dict(json.loads(config_json)), torch.float32))


def traced(config: NemotronConfig, make_trace: Callable[..., ir.Model] = trace) -> ir.Model:
    """A trace of its own for the caller to lower; equal configs are traced once."""
    return ir.from_proto(_traced(make_trace, config.to_json()))


def lower(graph: ir.Model, checkpoint: Checkpoint, target: str) -> ir.Model:
    """The target's graph; the weights that it packs are put beside the checkpoint's, where the graph looks for them."""
    cos, sin = rope_tables(checkpoint.config, SLOTS)
    context = LoweringContext(checkpoint.tensors, cos.numpy(), sin.numpy())
    lowered = lowering.lower(get_target(target), graph, context)
    files = {shard.path.name: shard.path.read_bytes() for shard in checkpoint.shards}
    parts = [part for weight in lowered.session["packed"] for part in weight]
    packed = b"".join(files[part["file"]][part["offset"] : part["offset"] + part["length"]] for part in parts)
    (checkpoint.directory / "packed").write_bytes(packed)
    return lowered.main.model


def drive(graph: ir.Model, model: NemotronForCausalLM, checkpoint: Checkpoint, rows: int) -> float:
    """Largest difference from eager over prefill past 1,000, a padded chunk and single steps, over the logit range."""
    config = model.config
    path = checkpoint.directory / "model.onnx"
    ir.save(graph, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    declared = {i.name for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    layers = range(config.num_hidden_layers)
    shape = (rows, config.num_key_value_heads, SLOTS, config.head_dim)
    caches = {f"{kind}_cache.{i}": torch.zeros(shape) for kind in "kv" for i in layers}
    eager = [torch.zeros(shape) for _ in layers], [torch.zeros(shape) for _ in layers]
    cos, sin = rope_tables(config, SLOTS)
    generator = torch.Generator().manual_seed(1)
    start, worst = torch.zeros(rows, dtype=torch.long), 0.0
    for tokens, lengths in ((1050, [1050, 1000]), (7, [7, 3]), (1, [1, 1]), (1, [1, 1])):
        length = torch.tensor(lengths[:rows])
        ids = torch.randint(0, config.vocab_size, (rows, tokens), generator=generator)
        wanted = torch.stack([length - 1, (length - 2).clamp(min=0)], 1)
        with torch.no_grad():
            expected, *eager = model.forward_dialect(ids, start, length, wanted, cos, sin, *eager)
        feed = {"input_ids": ids, "query_start": start, "query_length": length, "logits_index": wanted, **caches}
        found = dict(
            zip(outputs, session.run(None, {n: t.numpy() for n, t in feed.items() if n in declared}), strict=True)
        )
        caches = {n: torch.from_numpy(found[n.replace("cache.", "cache_out.")]) for n in caches}
        difference = np.abs(found["logits"] - expected.numpy()).max()
        worst = max(worst, float(difference) / float(expected.max() - expected.min()))
        start = start + length
    return worst


@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
@pytest.mark.parametrize("name", ODD)
def test_lowered_graph_equals_eager(tmp_path: Path, name: str, target: str) -> None:
    model, checkpoint = make(tmp_path, **ODD[name])
    graph = lower(traced(checkpoint.config), checkpoint, target)
    # ort-cpu takes several tokens for one row at a time; the runtime drives it so
    assert drive(graph, model, checkpoint, rows=2 if target == "onnx" else 1) < 1e-5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("target", ["onnx", "ort-cpu"])
def test_stamped_trace_equals_whole_trace(tmp_path: Path, target: str, tied: bool) -> None:
    model, checkpoint = make(tmp_path, tie_word_embeddings=tied, attention_bias=True)
    graphs = [lower(traced(checkpoint.config, make_trace), checkpoint, target) for make_trace in (trace, trace_whole)]
    stamped, whole = graphs
    assert Counter(n.op_type for n in stamped.graph) == Counter(n.op_type for n in whole.graph)
    assert [v.name for v in stamped.graph.inputs] == [v.name for v in whole.graph.inputs]
    packs = target == "ort-cpu"
    unpacked = {name for name in checkpoint.tensors if not (packs and re.search(r"\.[qkv]_proj\.", name))}
    assert set(stamped.graph.initializers) >= unpacked
    assert sum("qkv_proj.weight" in name for name in stamped.graph.initializers) == 3 * packs
    results = [drive(graph, model, checkpoint, rows=1) for graph in graphs]
    assert results[0] == results[1] < 1e-5


def test_no_standard_op_is_missing_from_the_onnx_target(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    graph = lower(traced(checkpoint.config), checkpoint, "onnx")
    assert {node.domain for node in graph.graph} == {""}
    assert not graph.functions


def test_values_are_named_by_module_path(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path)
    graph = traced(checkpoint.config)
    names = {value.name for node in graph.graph for value in node.outputs}
    for index in range(3):
        assert f"model.layers.{index}.self_attn.q_proj.Linear" in names
        assert f"model.layers.{index}.mlp.down_proj.Linear" in names


def test_ort_cpu_refuses_a_head_dim_its_kernel_does_not_take(tmp_path: Path) -> None:
    _, checkpoint = make(tmp_path, head_dim=20)
    with pytest.raises(GraphError, match="multiple of 8"):
        lower(traced(checkpoint.config), checkpoint, "ort-cpu")
