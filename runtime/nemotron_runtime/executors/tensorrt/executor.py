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
from nemotron_runtime.executors.tensorrt.passes import run_in_sub_chunks
from nemotron_runtime.executors.tensorrt.prefill import Prefiller
from nemotron_runtime.executors.tensorrt.requirements import check_engine, check_machine
from nemotron_runtime.executors.tensorrt.sampler import TensorRTSampler
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
        check_machine(bundle, record, tensorrt.trt.__version__, self.device)
        if record.has_plugins:
            tensorrt.register_plugins()
        # other tasks choose no tokens
        chooses = manifest.task == "causal-lm"
        kernels = load_library(bundle, record.architecture, self.output_size) if chooses else (None, "")
        sampler = hold.enter_context(TensorRTSampler(self.device, self.output_size, *kernels))
        self.candidate_count = sampler.candidate_count
        free = self.device.memory()[0]
        prefill = BuiltEngine(tensorrt, bundle, record.prefill_engine)
        hold.callback(prefill.close)
        decode = BuiltEngine(tensorrt, bundle, record.decode_engine)
        hold.callback(decode.close)
        check_engine(prefill, bundle, record, self.caches, ("input_ids", "query_start", "logits_index"))
        check_engine(decode, bundle, record, self.caches, ("input_ids", "query_start"))
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
        stream = self.device.stream()
        hold.callback(stream.close)
        self.weights: DeviceWeights = upload_weights(bundle, record, self.device)
        hold.callback(self.weights.close)
        size = max(prefill.memory, decode.memory, 1)
        activations = hold.enter_context(self.device.allocate(size, "the engines' activations"))
        memory = (activations.address, size)
        fixed_capacity = record.cache_capacity or None
        self._cache = hold.enter_context(
            DeviceCache(self.device, stream, self.caches, manifest.limits.max_seq_len, fixed_capacity)
        )
        self._prefiller = Prefiller(
            self.device, stream, prefill, self.weights.addresses, memory, manifest.head.output, self.output_size
        )
        hold.callback(self._prefiller.close)
        sampler.allocate(stream, manifest.limits.max_batch)
        self._decoder = Decoder(
            self.device, stream, decode, self.weights.addresses, memory, sampler, manifest.limits.max_batch,
            manifest.head.output,
        )  # fmt: skip
        hold.callback(self._decoder.close)
        self._closed = False

    @property
    def device_memory_peak(self) -> int | None:
        """The most bytes that its buffers took of the GPU's memory, the CUDA context not counted."""
        return self.device.peak

    def make_caches(self, sequences: int, capacity: int) -> None:
        """See :meth:`PaddedExecutor.make_caches`."""
        assert not self._closed, "the executor is closed"
        self.device.make_current()
        self._decoder.forget()
        if self._cache.reset(sequences, capacity):
            self._prefiller.bind(self._cache.addresses, self._cache.shape_BGTD, self._cache.item_bytes)
            self._decoder.bind(self._cache.addresses, self._cache.shape_BGTD)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """See :meth:`PaddedExecutor.forward`; more sequences, or outputs of each, than a pass takes go in several."""
        self.device.make_current()
        self._decoder.forget()
        found, most = [], self._prefiller.limits.positions
        for first, last in self._prefiller.micro_batches(len(query_start_B)):

            def run(ids_bs: Ids, start_b: Ids, index_bk: Ids, first: int = first) -> Logits:
                return self._prefiller.run(ids_bs, start_b, index_bk, first)

            # those of a micro-batch may all be shorter than another's
            longest = max(1, int(query_length_B[first:last].max()))
            ids_bS, index_bK = input_ids_BS[first:last, :longest], logits_index_BK[first:last]
            found.append(run_in_sub_chunks(run, ids_bS, query_start_B[first:last], index_bK, most))
        return found[0] if len(found) == 1 else np.concatenate(found)

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
