"""The nodes that the tensorrt target leaves to plugins, beside the plugins and the kernels chosen for the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from nemotron_graphs.targets import LoweringContext, lowering
from nemotron_graphs.targets.tensorrt import tensorrt
from nemotron_plugins.tensorrt import PLUGIN_OPS, use_library
from nemotron_plugins.tensorrt.fields import request_field
from nemotron_plugins.tensorrt.operator import Tensor
from nemotron_plugins.tensorrt.plugin import make_op
from nemotron_runtime.bundle.limits import Limits
from support.plugin_libraries import library_of

from nemotron_export.building.kernels import bind_kernels
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model import NemotronForCausalLM, rope_tables
from nemotron_export.tracing import trace

SLOTS = 48
DECODE_OPS = {"PackedRotaryCachedAttention": 2, "LayerNormLinear": 5, "LinearResidual": 4}


def _tensor(value: ir.Value) -> Tensor:
    assert value.dtype is not None
    assert value.shape is not None
    sizes = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return Tensor(value.dtype.numpy().name, sizes)


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "norm_eps": 1e-3}],
    ids=["plain", "biases, tied, another epsilon"],
)
def test_every_node_fits_its_plugin_and_the_models_kernels(changes: dict[str, Any], tmp_path: Path) -> None:
    config = NemotronConfig(
        vocab_size=120, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=SLOTS, architectures=["NemotronForCausalLM"],
        dtype="float16", **changes,
    )  # fmt: skip
    model = NemotronForCausalLM(config).to(torch.float16)
    save_checkpoint(tmp_path / "checkpoint", config, dict(model.state_dict()))
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    cos, sin = rope_tables(config, SLOTS, torch.float32)
    context = LoweringContext(checkpoint.tensors, cos.numpy(), sin.numpy())
    lowered = lowering.lower(tensorrt, trace(config, torch.float16), context)
    for name, expected in (("prefill", {"PackedRotaryKVCacheUpdate": 2, "CachedAttention": 2}),
                           ("decode", DECODE_OPS)):  # fmt: skip
        graph = lowered.graphs[name].model
        library = library_of(bind_kernels(graph, Limits(SLOTS, 4, 16)))
        nodes = [node for node in graph.graph if node.domain == "nemotron"]
        assert {name: sum(node.op_type == name for node in nodes) for name in expected} == expected
        assert len(nodes) == sum(expected.values())
        for node in nodes:
            with use_library(library):
                op = make_op(PLUGIN_OPS[node.op_type], [request_field(node.attributes["kernel"].as_string())])
            constexprs = [record.constexprs for record in op.records.values()]
            epsilons = {each["EPSILON"] for each in constexprs if "EPSILON" in each}
            assert epsilons == ({config.norm_eps} if node.op_type == "LayerNormLinear" else set())
            inputs = [_tensor(value) for value in node.inputs if value is not None]
            op.configure(inputs)
            outputs = [_tensor(value) for value in node.outputs]
            assert op.output_dtypes([each.dtype for each in inputs]) == [each.dtype for each in outputs]
            assert op.output_shapes([each.shape for each in inputs]) == [[*each.shape] for each in outputs]
