"""The executor of a bundle's two TensorRT engines, weights and KV cache on the GPU; without torch.

Shapes: B sequences, S new tokens, K positions whose outputs are wanted, V values of an output.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError
from nemotron_formats.cache import cache_specs

from nemotron_runtime.bundle.engine_records import TensorRTRecord
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.cuda import Device
from nemotron_runtime.executors.batch import Ids, Logits
from nemotron_runtime.executors.padded import PaddedExecutor
from nemotron_runtime.executors.tensorrt.cache import DeviceCache
from nemotron_runtime.executors.tensorrt.context import BuiltEngine
from nemotron_runtime.executors.tensorrt.decode import Decoder
from nemotron_runtime.executors.tensorrt.kernels import load_library
from nemotron_runtime.executors.tensorrt.module import load_tensorrt
from nemotron_runtime.executors.tensorrt.prefill import Prefiller
from nemotron_runtime.executors.tensorrt.sampler import TensorRTSampler
from nemotron_runtime.executors.tensorrt.staging import Workspace
from nemotron_runtime.executors.tensorrt.weights import DeviceWeights, check_weights, upload_weights
from nemotron_runtime.sampling.device import DeviceSampler, Greedy, Sampling

__all__ = ["TensorRTExecutor"]


class TensorRTExecutor(PaddedExecutor):
    """Prompts go through the prefill engine, single tokens through the decode engine in a CUDA graph.

    The weights are on the GPU once, inputs of both engines, or inside each of them. The caches are there once: the
    engines' plugins write them in place. May be called from any thread, by one at a time.

    Args:
        bundle: the bundle.
        threads: not used: there is nothing for CPU threads to do.

    Attributes:
        weights: how fast the weights went to the GPU.

    Raises:
        MissingDependencyError: no cuda-python, TensorRT, driver or GPU.
        BundleError: another TensorRT or GPU architecture than the bundle was built for, an engine that does not load
            or is not what the manifest says, weights of another dtype, or a changed chunk of them.
        ResourceError: too little GPU memory, with the numbers.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        manifest, model = bundle.manifest, bundle.manifest.model
        record = manifest.tensorrt
        if record is None:
            found, where = "no record of its engines", str(bundle.directory)
            raise BundleError(found, "the key tensorrt", "build the bundle again", where=where)
        caches = cache_specs(model.num_layers, model.num_kv_heads, model.head_dim, manifest.session.cache_dtype)
        super().__init__(model.vocab_size, manifest.limits, manifest.head.size, caches)
        check_weights(bundle, record)
        self._held = ExitStack()
        try:
            self._open(bundle, record)
        except BaseException:
            self._held.close()
            raise

    def _open(self, bundle: Bundle, record: TensorRTRecord) -> None:
        manifest, hold = bundle.manifest, self._held
        # first: without a driver TensorRT's own runtime crashes
        self.device = hold.enter_context(Device())
        tensorrt = load_tensorrt()
        _check_machine(bundle, record, tensorrt.trt.__version__, self.device)
        if record.has_plugins:
            tensorrt.register_plugins()
        # other tasks choose no tokens
        chooses = manifest.task == "causal-lm"
        kernels = load_library(bundle, record.architecture, self.output_size) if chooses else (None, "")
        sampler = hold.enter_context(TensorRTSampler(self.device, self.output_size, *kernels))
        self.candidate_count = sampler.candidate_count
        free = self.device.memory()[0]
        prefill = hold.enter_context(BuiltEngine(tensorrt, bundle, record.prefill_engine))
        decode = hold.enter_context(BuiltEngine(tensorrt, bundle, record.decode_engine))
        prefill.check(bundle, record, self.caches, ("input_ids", "query_start", "logits_index"))
        decode.check(bundle, record, self.caches, ("input_ids", "query_start"))
        (sequences,) = decode.largest_shape("query_start")
        if sequences < manifest.limits.max_batch:
            found, expected = f"an engine for {sequences} sequences", f"one for {manifest.limits.max_batch}"
            raise BundleError(found, expected, "build the bundle again", where=decode.where)
        if record.embedded:
            # TensorRT took it for the weights, and gives it back
            taken = max(0, free - self.device.memory()[0])
            self.device.count(taken)
            hold.callback(self.device.count, -taken)
        # nothing large of our own was allocated until here
        stream = hold.enter_context(self.device.stream())
        self.weights: DeviceWeights = hold.enter_context(upload_weights(bundle, record, self.device))
        size = max(prefill.memory, decode.memory, 1)
        activations = hold.enter_context(self.device.allocate(size, "the engines' activations"))
        space = Workspace(self.device, stream, hold, self.weights.addresses, (activations.address, size))
        most, output = manifest.limits, manifest.head.output
        self._cache = hold.enter_context(
            DeviceCache(self.device, stream, self.caches, most.max_seq_len, record.cache_capacity or None)
        )
        self._prefiller = hold.enter_context(Prefiller(space, prefill, output, self.output_size))
        sampler.allocate(stream, most.max_batch)
        self._decoder = hold.enter_context(Decoder(space, decode, sampler, most.max_batch, output))
        self._closed = False

    @property
    def device_memory_peak(self) -> int | None:
        """The most bytes that its buffers took of the GPU's memory, the CUDA context not counted."""
        return self.device.peak

    def make_caches(self, sequences: int, capacity: int) -> None:
        assert not self._closed, "the executor is closed"
        self.device.make_current()
        self._decoder.forget()
        if self._cache.reset(sequences, capacity):
            self._prefiller.bind(self._cache)
            self._decoder.bind(self._cache)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        self.device.make_current()
        self._decoder.forget()
        return self._prefiller.run(input_ids_BS, query_start_B, query_length_B, logits_index_BK)

    def step(
        self, tokens_B: Ids, query_start_B: Ids, advancing_B: npt.NDArray[np.bool_] | None, sampling: Sampling | None
    ) -> DeviceSampler:
        """See :meth:`PaddedExecutor.step`: logits stay on the GPU; a greedy step's next one starts before it ends."""
        self.device.make_current()
        if not isinstance(sampling, Greedy):
            return self._decoder.step(tokens_B, query_start_B)
        if advancing_B is None:
            advancing_B = np.ones(len(tokens_B), np.bool_)
        return self._decoder.greedy_step(tokens_B, query_start_B, advancing_B, self.capacity)

    def close(self) -> None:
        """See :meth:`Executor.close`: in order, what is on the GPU."""
        if not self._closed:
            self._closed = True
            self.device.make_current()
            self._held.close()


def _check_machine(bundle: Bundle, record: TensorRTRecord, version: str, device: Device) -> None:
    """Refuses engines of another TensorRT or another GPU architecture: neither can load them."""
    where = str(bundle.directory)
    if version.split(".")[:3] != record.version.split(".")[:3]:
        remedy = f"install TensorRT {record.version}, or build the bundle again with {version}"
        raise BundleError(f"TensorRT {version}", f"TensorRT {record.version}, which built it", remedy, where=where)
    if device.architecture != record.architecture:
        found = f"{device.name} ({device.architecture})"
        expected = f"a GPU of {record.architecture}, as the {record.gpu} that it was built on"
        raise BundleError(found, expected, "build the bundle again on this GPU", where=where)
