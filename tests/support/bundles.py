"""A bundle around a one-layer model, with its numbers in plain numpy, for tests that need neither torch nor a build.

Shapes: B rows, S new tokens, K positions, E hidden, H heads, G key/value heads, D head_dim, R rotary_dim, T slots,
V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from nemotron_graphs.ops import OPS
from nemotron_runtime.bundle.folder import write_manifest
from nemotron_runtime.bundle.manifest import FORMAT, Manifest
from nemotron_runtime.checks.reference import Reference, ReferencePrompt, write_reference
from onnx import TensorProto, numpy_helper, parser
from safetensors.numpy import save_file

__all__ = ["TinyModel", "make_bundle", "make_reference"]

_COMMON = """
  x_BSE = Gather<axis=0>(embed, input_ids)
  q_BSn = MatMul(x_BSE, w_q)
  k_BSn = MatMul(x_BSE, w_k)
  v_BSn = MatMul(x_BSE, w_v)
"""
_PORTABLE = """
  one = Constant<value_int=1>()
  zero = Constant<value_int=0>()
  shape_q = Constant<value_ints=[0, 0, {H}, {D}]>()
  shape_kv = Constant<value_ints=[0, 0, {G}, {D}]>()
  shape_out = Constant<value_ints=[0, 0, -1]>()
  column = Constant<value_ints=[1]>()
  q_BSHD = Reshape(q_BSn, shape_q)
  k_BSGD = Reshape(k_BSn, shape_kv)
  v_BSGD = Reshape(v_BSn, shape_kv)
  tokens_1 = Shape<start=1, end=2>(input_ids)
  tokens = Squeeze(tokens_1)
  token_S = Range(zero, tokens, one)
  start_B1 = Unsqueeze(query_start, column)
  position_BS = Add(start_B1, token_S)
  qr = nemotron.PartialRotaryEmbedding(q_BSHD, cos, sin, position_BS)
  kr = nemotron.PartialRotaryEmbedding(k_BSGD, cos, sin, position_BS)
  k_cache_out.0 = nemotron.KVCacheUpdate(k_cache.0, kr, query_start)
  v_cache_out.0 = nemotron.KVCacheUpdate(v_cache.0, v_BSGD, query_start)
  a_BSHD = nemotron.CachedAttention(qr, k_cache_out.0, v_cache_out.0, query_start)
  a_BSn = Reshape(a_BSHD, shape_out)
"""
_FUSED = """
  one_B = Constant<value_int=1>()
  total_B = Add(query_start, query_length)
  last_B = Sub(total_B, one_B)
  seqlens_k = Cast<to=6>(last_B)
  longest = ReduceMax<keepdims=0>(total_B)
  total = Cast<to=6>(longest)
  a_BSn, k_cache_out.0, v_cache_out.0 = com.microsoft.GroupQueryAttention<num_heads={H}, kv_num_heads={G}, do_rotary=1>
    (q_BSn, k_BSn, v_BSn, k_cache.0, v_cache.0, seqlens_k, total, cos, sin)
"""
_TAIL = """
  o_BSE = MatMul(a_BSn, w_o)
  h_BSE = Add(x_BSE, o_BSE)
  index_axis = Constant<value_ints=[2]>()
  index_BK1 = Unsqueeze(logits_index, index_axis)
  last_BKE = GatherND<batch_dims=1>(h_BSE, index_BK1)
  logits = MatMul(last_BKE, lm_head)
"""


class TinyModel:
    """Embedding, one attention layer with partial rotary positions, a head; all of it once more in numpy."""

    V, E, H, G, D, R = 96, 64, 4, 2, 32, 16

    def __init__(self, seed: int = 0, positions: int = 4096) -> None:
        rng = np.random.default_rng(seed)
        shapes = {
            "embed": (self.V, self.E),
            "w_q": (self.E, self.H * self.D),
            "w_k": (self.E, self.G * self.D),
            "w_v": (self.E, self.G * self.D),
            "w_o": (self.H * self.D, self.E),
            "lm_head": (self.E, self.V),
        }
        self.weights = {
            name: (rng.normal(size=shape) * (shape[0] ** -0.5 if name != "embed" else 1)).astype(np.float32)
            for name, shape in shapes.items()
        }
        angles = np.arange(positions)[:, None] * 10000.0 ** (-np.arange(0, self.R, 2) / self.R)
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def logits(self, ids) -> np.ndarray:
        """Logits of every position [S, V], by the definition in float64."""
        w = {name: value.astype(np.float64) for name, value in self.weights.items()}
        x = w["embed"][np.asarray(ids)]
        S = len(x)
        q, k, v = ((x @ w[name]).reshape(S, -1, self.D) for name in ("w_q", "w_k", "w_v"))
        q, k = self._rotate(q), self._rotate(k)
        k, v = (np.repeat(a, self.H // self.G, axis=1) for a in (k, v))
        scores = np.einsum("shd,thd->hst", q, k) * self.D**-0.5
        scores = np.where(np.tril(np.ones((S, S), bool)), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = np.einsum("hst,thd->shd", scores / scores.sum(-1, keepdims=True), v).reshape(S, -1)
        return ((x + attended @ w["w_o"]) @ w["lm_head"]).astype(np.float32)

    def greedy(self, ids, steps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Greedy tokens [m], their margins [m] and the logits that chose them [m, V]."""
        history, rows = list(ids), []
        for _ in range(steps):
            rows.append(self.logits(history)[-1])
            history.append(int(rows[-1].argmax()))
        top = np.sort(rows, axis=-1)
        return np.array(history[len(ids) :]), top[:, -1] - top[:, -2], np.stack(rows)

    def _rotate(self, x_SHD):
        half = self.R // 2
        cos, sin = self.cos[: len(x_SHD), None].astype(np.float64), self.sin[: len(x_SHD), None].astype(np.float64)
        first, second = x_SHD[..., :half], x_SHD[..., half : self.R]
        return np.concatenate((first * cos - second * sin, second * cos + first * sin, x_SHD[..., self.R :]), -1)

    def graph(self, kind: str, shard: str, offsets: dict[str, tuple[int, int]]) -> onnx.ModelProto:
        """The graph: ``portable`` by the dialect's function bodies, ``fused`` by GroupQueryAttention."""
        sizes = {"H": self.H, "G": self.G, "D": self.D}
        length = "int64[batch] query_length, " if kind == "fused" else ""
        cache = f"float[batch, {self.G}, cache_len, {self.D}]"
        text = f"""<ir_version: 10, opset_import: ["": 21, "nemotron": 1, "com.microsoft": 1]>
tiny (int64[batch, tokens] input_ids, int64[batch] query_start, {length}int64[batch, positions] logits_index,
      {cache} k_cache.0, {cache} v_cache.0)
  => (float[batch, positions, {self.V}] logits, {cache} k_cache_out.0, {cache} v_cache_out.0) {{
{_COMMON}{(_FUSED if kind == "fused" else _PORTABLE).format(**sizes)}{_TAIL}}}"""
        model = parser.parse_model(text.replace(".0", "_0"))
        for value in (*model.graph.input, *model.graph.output):
            value.name = value.name.replace("_0", ".0")
        for node in model.graph.node:
            for names in (node.input, node.output):
                names[:] = [n.replace("_0", ".0") if "_cache" in n else n for n in names]
        if kind == "portable":
            used = {node.op_type for node in model.graph.node if node.domain == "nemotron"}
            model.functions.extend(parser.parse_function(OPS[name].function_text(21)) for name in sorted(used))
        for name, value in self.weights.items():
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
            tensor.data_location = TensorProto.EXTERNAL
            entries = {"location": shard, "offset": offsets[name][0], "length": offsets[name][1]}
            for key, entry in entries.items():
                tensor.external_data.add(key=key, value=str(entry))
            model.graph.initializer.append(tensor)
        model.graph.initializer.extend(
            [numpy_helper.from_array(self.cos, "cos"), numpy_helper.from_array(self.sin, "sin")]
        )
        return model


def make_reference(model: TinyModel, lengths=(3, 7, 40), steps=6, seed=1) -> Reference:
    """A reference of random prompts."""
    rng, prompts = np.random.default_rng(seed), []
    for n in lengths:
        ids = rng.integers(0, model.V, n)
        greedy, margins, chosen = model.greedy(ids, steps)
        positions = np.unique([0, n // 2, n - 1])
        step_positions = np.unique([0, steps // 2, steps - 2])
        prompts.append(
            ReferencePrompt(
                ids, positions, model.logits(ids)[positions], greedy, margins.astype(np.float32), step_positions,
                chosen[step_positions + 1],
            )
        )  # fmt: skip
    return Reference(tuple(prompts))


def make_bundle(
    folder: Path, *, kind="fused", scan=True, parity="passed", max_seq_len=256, max_batch=4, prefill_chunk=16,
    chunk_bytes=4096, model=None, reference=None,
) -> Path:  # fmt: skip
    """Writes a bundle and, in the folder ``checkpoint`` beside it, its weights."""
    model = model or TinyModel(positions=max_seq_len)
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    checkpoint.mkdir(parents=True)
    bundle.mkdir()
    shard = checkpoint / "model.safetensors"
    save_file(model.weights, str(shard))
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:header])
    offsets = {
        name: (header + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    graph = model.graph(kind, shard.name, offsets)
    (bundle / "model.onnx").write_bytes(graph.SerializeToString())
    write_reference(bundle / "reference.safetensors", reference or make_reference(model))
    chunks = [hashlib.sha256(data[i : i + chunk_bytes]).hexdigest() for i in range(0, len(data), chunk_bytes)]
    document = {
        "format": FORMAT,
        "producer": {"nemotron_export": "0.2.0"},
        "created": "2026-01-01T00:00:00+00:00",
        "target": "ort-cpu" if kind == "fused" else "onnx",
        "task": "causal-lm",
        "dtype": "float32",
        "model": {
            "config": {"model_type": "nemotron"}, "vocab_size": model.V, "num_layers": 1, "num_kv_heads": model.G,
            "head_dim": model.D, "eos_token_ids": [3], "bos_token_id": 2, "pad_token_id": None,
        },
        "head": {"output": "logits", "size": model.V, "labels": [], "problem_type": None},
        "limits": {"max_seq_len": max_seq_len, "max_batch": max_batch, "prefill_chunk": prefill_chunk},
        "session": {
            "executor": "onnxruntime", "provider": "CPUExecutionProvider", "device": "cpu",
            "graph": "model.onnx", "cache_dtype": "float32",
            "inputs": [value.name for value in graph.graph.input],
            "outputs": [value.name for value in graph.graph.output],
            "prefill_rows": "one" if kind == "fused" else "all",
        },
        "files": {
            path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in bundle.iterdir()
        },
        "weights": {
            "mode": "reference", "directory": str(checkpoint), "chunk_bytes": chunk_bytes, "algorithm": "sha256",
            "files": [
                {
                    "name": shard.name, "size": len(data), "chunks": chunks if scan else None,
                    "header_sha256": hashlib.sha256(data[:header]).hexdigest(),
                }
            ],
        },
        "scan": {"done": scan},
        "parity": {"state": parity, "reason": None if parity == "passed" else "not checked yet", "checked": None},
    }  # fmt: skip
    write_manifest(bundle, Manifest.from_dict(document))
    return bundle
