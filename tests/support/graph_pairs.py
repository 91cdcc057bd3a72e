"""Drives a prefill and a decode graph in ONNX Runtime, fp16, beside the eager dialect path."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from nemotron_graphs.passes import InlineDialectOpsPass
from nemotron_graphs.targets.lowering import Lowered

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.model import NemotronForCausalLM, rope_tables

__all__ = ["SLOTS", "drive_beside_eager"]

# cache slots of the graphs that are driven here, and rows of their RoPE tables
SLOTS = 48


class _Runner:
    """One graph, ops of plugins made standard again; its weights are put together from the files as a session does."""

    def __init__(self, graph: ir.Model, graphs: Lowered, checkpoint: Checkpoint) -> None:
        InlineDialectOpsPass()(graph)
        proto = ir.to_proto(graph).SerializeToString()
        self.session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
        files = {shard.path.name: shard.path.read_bytes() for shard in checkpoint.shards}
        self.weights = {
            weight.name: np.frombuffer(
                b"".join(files[part.file][part.offset : part.offset + part.length] for part in weight.parts), np.float16
            ).reshape(weight.shape)
            for weight in graphs.weights
        }

    def __call__(self, feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = {name: tensor.numpy() for name, tensor in feed.items()} | self.weights
        names = [value.name for value in self.session.get_inputs()]
        assert set(names) == set(values)
        outputs = [value.name for value in self.session.get_outputs()]
        results = self.session.run(outputs, values)
        return {name: torch.from_numpy(result) for name, result in zip(outputs, results, strict=True)}


@torch.no_grad()
def drive_beside_eager(graphs: Lowered, model: NemotronForCausalLM, checkpoint: Checkpoint, rows: int) -> float:
    """Largest difference from eager over padded chunks and single steps, over the logit range."""
    torch.set_num_threads(1)
    config = model.config
    prefill, decode = (_Runner(each.model, graphs, checkpoint) for each in graphs.graphs.values())
    shape = (rows, config.num_key_value_heads, SLOTS, config.head_dim)
    layers = range(config.num_hidden_layers)
    caches = {f"{kind}_cache.{i}": torch.zeros(shape, dtype=torch.float16) for kind in "kv" for i in layers}
    eager: Any = ([torch.zeros(shape, dtype=torch.float16) for _ in layers] for _ in "kv")
    cos, sin = rope_tables(config, SLOTS, torch.float16)
    generator = torch.Generator().manual_seed(1)
    start, worst = torch.zeros(rows, dtype=torch.long), 0.0
    for tokens, lengths in ((30, (30, 17, 1)), (5, (5, 2, 4)), (1, (1, 1, 1)), (1, (1, 1, 1))):
        length = torch.tensor(lengths[:rows])
        ids = torch.randint(0, config.vocab_size, (rows, tokens), generator=generator)
        wanted = (length - 1)[:, None] if tokens == 1 else torch.stack([length - 1, (length - 2).clamp(min=0)], 1)
        expected, *eager = model.forward_dialect(ids, start, length, wanted, cos, sin, *eager)
        feed = {"input_ids": ids, "query_start": start, **caches}
        found = decode(feed) if tokens == 1 else prefill({**feed, "logits_index": wanted})
        caches = {name: found[name.replace("cache.", "cache_out.")] for name in caches}
        assert found["logits"].dtype == torch.float32
        assert found["logits"].shape == expected.shape
        worst = max(worst, float((found["logits"] - expected).abs().max() / (expected.max() - expected.min())))
        start = start + length
    return worst
