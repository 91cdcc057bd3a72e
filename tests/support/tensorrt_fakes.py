"""A TensorRT whose engines compute :class:`ToyEngine`'s logits in numpy, and bundles for it.

Its cache holds token ids, so a token in a wrong slot, a stale address or a lost chunk changes every logit behind it.

Shapes: B rows, S new tokens, K positions, V vocabulary, G key/value heads, T slots, D head_dim.
"""

from __future__ import annotations

import gc
import hashlib
import json
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
from nemotron_plugins.driver.cuda import load_driver
from nemotron_runtime.bundle.folder import write_manifest
from nemotron_runtime.bundle.manifest import FORMAT, Manifest
from nemotron_runtime.executors.tensorrt.module import load_tensorrt
from safetensors.numpy import save_file

from support.cuda_driver import FakeCuda
from support.tensorrt_fake_kernels import LOG_COUNT, WORK, V, save_kernels
from support.toy_engine import ToyEngine

__all__ = [
    "LAYERS", "LOG_COUNT", "WEIGHTS", "FakeTensorRT", "G", "V", "install", "installed", "make_tensorrt_bundle", "toy",
]  # fmt: skip

G, D, LAYERS, MAX_LOGITS = 2, 4, 2, 4
# engine's name → the checkpoint's tensors that it is made of
WEIGHTS = {
    "model.embed_tokens.weight": ("model.embed_tokens.weight",),
    "model.layers.0.self_attn.qkv_proj.weight": ("q", "k", "v"),
    "model.norm.weight": ("model.norm.weight",),
    "lm_head.weight": ("model.embed_tokens.weight",),
}
_SHAPES = {"model.embed_tokens.weight": (V, 8), "q": (5, 7), "k": (3, 7), "v": (3, 7), "model.norm.weight": (7,)}


def toy(**options):
    """The session whose logits the engines give."""
    return ToyEngine(V, **{"max_seq_len": 600, "max_batch": 4, "prefill_chunk": 16, **options})


class _Named:
    def __init__(self, name):
        self.name = name


class FakeTensorRT(ModuleType):
    """The module ``tensorrt`` over a :class:`FakeCuda`.

    Attributes:
        batch: the caches' first dim as engines tell it.
        profiles: (rows, tokens, positions) at most of each optimization profile of prefill engines.
        rows: at most of a decode engine.
        passes: (engine, B, S, K) of each pass that was given to a stream, captured ones included.
        expected: what the weights must be: name → array.
        embedded: whether the engines hold the weights, which are no inputs then.
        fails: a message that the next pass fails with.
        living: contexts and engines that exist.
    """

    def __init__(self, cuda, version="10.6.0.post1"):
        super().__init__("tensorrt")
        self.cuda, self.__version__ = cuda, version
        self.passes, self.expected, self.fails = [], {}, None
        self.living = 0
        self.embedded = False
        self.logger = None
        self.memory = {"prefill": 5000, "decode": 3000}
        self.renamed = {}
        self.batch = -1
        self.rows = 1 << 10
        self.profiles = [(4, 16, MAX_LOGITS)]
        module = self

        class ILogger:
            pass

        class Runtime:
            def __init__(self, logger):
                module.logger = logger

            def deserialize_cuda_engine(self, data):
                try:
                    return _Engine(module, json.loads(data)["kind"])
                except ValueError:
                    module.logger.log(module.Logger.Severity.ERROR, "Magic tag does not match")
                    return None

        self.ILogger, self.Runtime = ILogger, Runtime
        self.Logger = SimpleNamespace(Severity=SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4))
        self.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="ours")


class _Living:
    def __init__(self, module):
        self._module = module
        module.living += 1

    def __del__(self):
        self._module.living -= 1


class _Engine(_Living):
    def __init__(self, module, kind):
        super().__init__(module)
        self.module, self.kind = module, kind
        rows = {"input_ids": "INT64", "query_start": "INT64"}
        if kind == "prefill":
            rows["logits_index"] = "INT64"
        caches = [f"{k}_cache.{layer}" for layer in range(LAYERS) for k in "kv"]
        self.inputs = {**rows, **dict.fromkeys(caches, "HALF")}
        if not module.embedded:
            self.inputs |= dict.fromkeys(WEIGHTS, "HALF")
        self.outputs = {"logits": "FLOAT", **dict.fromkeys((c.replace(".", "_out.") for c in caches), "HALF")}
        self.names = [module.renamed.get(name, name) for name in (*self.inputs, *self.outputs)]
        self.num_io_tensors = len(self.names)
        self.device_memory_size_v2 = module.memory[kind]
        # decode takes a token per row
        self.profiles = list(module.profiles) if kind == "prefill" else [(module.rows, 1, 1)]
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return "out" if name in self.outputs else "in"

    def get_tensor_dtype(self, name):
        return _Named({**self.inputs, **self.outputs}[name])

    def get_tensor_shape(self, name):
        if "cache" in name:
            return (self.module.batch, G, -1, D)
        return _shape(name) if name in WEIGHTS else (-1,)

    def get_tensor_profile_shape(self, name, profile):
        rows, tokens, positions = self.profiles[profile]
        largest = {"input_ids": (rows, tokens), "query_start": (rows,), "logits_index": (rows, positions)}[name]
        return [tuple(1 for _ in largest), largest, largest]

    def create_execution_context(self, strategy):
        assert strategy == "ours"
        return _Context(self)


class _Context(_Living):
    def __init__(self, engine):
        super().__init__(engine.module)
        self.engine, self.module = engine, engine.module
        self.addresses, self.shapes, self.memory = {}, {}, None
        self.profile = self.ran = None

    def set_optimization_profile_async(self, index, stream):
        self.profile = self.engine.profiles[index]
        return True

    def set_device_memory(self, address, size):
        assert size >= self.engine.device_memory_size_v2
        self.memory = (address, size)

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def set_input_shape(self, name, shape):
        assert name in self.engine.inputs
        self.shapes[name] = tuple(shape)
        return True

    def execute_async_v3(self, stream):
        if self.module.fails:
            self.module.logger.log(1, self.module.fails)
            self.module.fails = None
            return False
        assert set(self.addresses) == set(self.engine.names)
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        B, S = shapes["input_ids"]
        K = shapes["logits_index"][1] if self.engine.kind == "prefill" else 1
        assert all(found <= most for found, most in zip((B, S, K), self.profile, strict=True))
        if self.module.cuda.streams[int(stream)].recording is None:
            self.ran = shapes
        assert self.ran == shapes, "what the first run of a shape sets up cannot be recorded"
        self.module.passes.append((self.engine.kind, B, S, K))
        self.module.cuda.give(stream, lambda: self._compute(addresses, shapes, B, S, K))
        return True

    def _compute(self, addresses, shapes, B, S, K):
        cuda = self.module.cuda
        # activations share their memory: whatever was there is gone
        cuda.array(self.memory[0], (self.memory[1],), np.uint8).fill(B)
        for name, expected in () if self.module.embedded else self.module.expected.items():
            found = cuda.array(addresses[name], expected.shape, np.float16)
            np.testing.assert_array_equal(found, expected, err_msg=name)
        ids_BS = cuda.array(addresses["input_ids"], (B, S), np.int64)
        start_B = cuda.array(addresses["query_start"], (B,), np.int64)
        index_BK = np.zeros((B, 1), np.int64)
        if "logits_index" in addresses:
            index_BK = cuda.array(addresses["logits_index"], (B, K), np.int64)
        assert ((ids_BS >= 0) & (ids_BS < V)).all()
        assert (start_B + S <= shapes["k_cache.0"][2]).all(), "inside the cache"
        caches = []
        for name in self.engine.inputs:
            if "_cache." in name:
                assert shapes[name][0] == B
                assert addresses[name] == addresses[name.replace(".", "_out.")], "in place"
                caches.append(cuda.array(addresses[name], shapes[name], np.float16))
        logits_BKV = cuda.array(addresses["logits"], (B, K, V), np.float32)
        reference = ToyEngine(V)
        for b in range(B):
            end = start_B[b] + S
            for cache_BGTD in caches:
                # slots that do not exist are not written
                room = max(0, min(end, cache_BGTD.shape[2]) - start_B[b])
                cache_BGTD[b, :, start_B[b] : start_B[b] + room] = ids_BS[b, :room, None]
            for k, index in enumerate(index_BK[b]):
                histories = [cache_BGTD[b, -1, : start_B[b] + index + 1, 0] for cache_BGTD in caches]
                assert all((history == histories[0]).all() for history in histories)
                logits_BKV[b, k] = reference.row_logits(histories[0].astype(np.int64))


def install(monkeypatch, *, cuda=None, version="10.6.0.post1", plugin_errors=None):
    """Puts the fakes where the runtime imports them from; gives both."""
    cuda = cuda or FakeCuda()
    trt = FakeTensorRT(cuda, version)
    errors = [] if plugin_errors is None else plugin_errors
    trt.registered = 0

    def register():
        trt.registered += 1

    plugins = SimpleNamespace(register=register, take_error=lambda: errors.pop() if errors else None)

    class LoadedKernel:
        def __init__(self, record, cubin):
            assert hashlib.sha256(cubin).hexdigest() == record.cubin_sha256
            self.record = record

        def launch(self, stream, arguments, **sizes):
            work = WORK[self.record.kernel]
            cuda.give(stream, lambda: work(cuda, *arguments, **sizes))

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "nemotron_plugins.tensorrt", plugins)
    monkeypatch.setitem(sys.modules, "nemotron_plugins.driver.kernel", SimpleNamespace(LoadedKernel=LoadedKernel))
    load_driver.cache_clear()
    load_tensorrt.cache_clear()
    return cuda, trt


@contextmanager
def installed(monkeypatch):
    """:func:`install`; when it ends nothing of either may be left."""
    cuda, trt = install(monkeypatch)
    yield cuda, trt
    gc.collect()
    assert cuda.leaks() == (0, 0, 0, 0)
    assert trt.living == 0


def _shape(name):
    shapes = [_SHAPES[part] for part in WEIGHTS[name]]
    return shapes[0] if len(shapes) == 1 else (sum(s[0] for s in shapes), *shapes[0][1:])


def make_tensorrt_bundle(
    folder, trt=None, *, dtype="float16", max_batch=4, max_seq_len=600, prefill_chunk=16, chunk_bytes=256,
    task="causal-lm", **record,
):  # fmt: skip
    """Writes a bundle and, in the folder ``checkpoint`` beside it, its weights; ``trt`` is told what they must be."""
    checkpoint, bundle = folder / "checkpoint", folder / "bundle"
    checkpoint.mkdir(parents=True)
    bundle.mkdir()
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float16) for name, shape in _SHAPES.items()}
    shard = checkpoint / "model.safetensors"
    save_file(tensors, str(shard))
    if trt is not None:
        trt.expected = {n: np.concatenate([tensors[p] for p in parts]) for n, parts in WEIGHTS.items()}
    data = shard.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:header])

    def part(name):
        first, last = entries[name]["data_offsets"]
        return {"file": shard.name, "offset": header + first, "length": last - first}

    for kind in ("prefill", "decode"):
        (bundle / f"{kind}.engine").write_text(json.dumps({"kind": kind}))
        (bundle / f"{kind}.onnx").write_text(kind)
    save_kernels(bundle / "kernels")
    files = [path for path in sorted(bundle.rglob("*")) if path.is_file()]
    document = {
        "format": FORMAT,
        "producer": {"nemotron_export": "0.2.0"},
        "created": "2026-01-01T00:00:00+00:00",
        "target": "tensorrt",
        "task": task,
        "dtype": "float16",
        "model": {
            "config": {"model_type": "nemotron"}, "vocab_size": V, "num_layers": LAYERS, "num_kv_heads": G,
            "head_dim": D, "eos_token_ids": [3], "bos_token_id": 2, "pad_token_id": None,
        },
        "head": {"output": "logits", "size": V, "labels": [], "problem_type": None},
        "limits": {"max_seq_len": max_seq_len, "max_batch": max_batch, "prefill_chunk": prefill_chunk},
        "session": {
            "executor": "tensorrt", "provider": "TensorRT", "device": "cuda", "graph": "prefill.onnx",
            "cache_dtype": "float16", "inputs": [], "outputs": [], "prefill_rows": "all",
        },
        "files": {
            path.relative_to(bundle).as_posix(): {
                "size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
        "weights": {
            "mode": "reference", "directory": str(checkpoint), "chunk_bytes": chunk_bytes, "algorithm": "sha256",
            "files": [
                {
                    "name": shard.name, "size": len(data),
                    "chunks": [
                        hashlib.sha256(data[i : i + chunk_bytes]).hexdigest() for i in range(0, len(data), chunk_bytes)
                    ],
                    "header_sha256": hashlib.sha256(data[:header]).hexdigest(),
                }
            ],
        },
        "scan": {"done": True},
        "parity": {"state": "passed", "reason": None, "checked": None},
        "tensorrt": {
            "version": "10.6.0", "architecture": "sm_90", "gpu": "A GPU of numpy", "driver": "12.8",
            "prefill_engine": "prefill.engine", "decode_engine": "decode.engine",
            "weights": [
                {"name": name, "dtype": dtype, "shape": list(_shape(name)), "parts": [part(p) for p in parts]}
                for name, parts in WEIGHTS.items()
            ],
            **record,
        },
    }  # fmt: skip
    write_manifest(bundle, Manifest.from_dict(document))
    return bundle
