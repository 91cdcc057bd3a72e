"""The session that runs a bundle's two TensorRT engines, weights and KV cache on the GPU; without torch.

Shapes: B rows, S new tokens, K positions whose logits are wanted, V vocabulary, G key/value heads, T cache slots,
D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
from nemotron_errors import BundleError

from nemotron_runtime.bundle.engine_records import TensorRTRecord
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.cuda import Device
from nemotron_runtime.executors.base import Ids, Logits, Session
from nemotron_runtime.executors.tensorrt.argmax import Argmax
from nemotron_runtime.executors.tensorrt.cache import DeviceCache, cache_names
from nemotron_runtime.executors.tensorrt.candidates import TopLogits
from nemotron_runtime.executors.tensorrt.context import Engine, check_machine, load_tensorrt
from nemotron_runtime.executors.tensorrt.decode import Decoder
from nemotron_runtime.executors.tensorrt.prefill import Prefiller
from nemotron_runtime.executors.tensorrt.weights import DeviceWeights, check_weights, upload_weights
from nemotron_runtime.sampling.candidates import Candidates

__all__ = ["TensorRTSession", "sub_chunks"]

_KERNEL_FOLDER = "kernels"


class TensorRTSession(Session):
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
        manifest = bundle.manifest
        super().__init__(manifest.model.vocab_size, manifest.limits, manifest.head.size)
        record = _record(bundle)
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
        argmax, self._top = None, None
        # other tasks choose no tokens
        if manifest.task == "causal-lm":
            library, where = _kernels(bundle, record)
            argmax = hold.enter_context(Argmax(library, self.device, where))
            self._top = TopLogits.open(library, self.output_size, self.device, where)
            if self._top is not None:
                hold.callback(self._top.close)
        free = self.device.memory()[0]
        prefill = Engine(tensorrt, bundle, record.prefill_engine)
        hold.callback(prefill.close)
        decode = Engine(tensorrt, bundle, record.decode_engine)
        hold.callback(decode.close)
        _check_engine(prefill, bundle, record, ("input_ids", "query_start", "logits_index"))
        _check_engine(decode, bundle, record, ("input_ids", "query_start"))
        (rows,) = decode.largest_shape("query_start")
        if rows < manifest.limits.max_batch:
            found, expected = f"an engine for {rows} rows", f"one for {manifest.limits.max_batch}"
            raise BundleError(found, expected, "build the bundle again", where=decode.where)
        if record.embedded:
            # TensorRT took it for the weights, and gives it back
            taken = max(0, free - self.device.memory()[0])
            self.device.count(taken)
            hold.callback(self.device.count, -taken)
        # nothing large of our own was allocated until here
        stream = self.device.stream()
        hold.callback(stream.close)
        if argmax is not None:
            argmax.allocate(manifest.limits.max_batch)
        self.weights: DeviceWeights = upload_weights(bundle, record, self.device)
        hold.callback(self.weights.close)
        size = max(prefill.memory, decode.memory, 1)
        activations = hold.enter_context(self.device.allocate(size, "the engines' activations"))
        memory = (activations.address, size)
        self._cache = hold.enter_context(DeviceCache(self.device, stream, manifest))
        self._prefiller = Prefiller(
            self.device, stream, prefill, self.weights.addresses, memory, manifest.head.output, self.output_size
        )
        hold.callback(self._prefiller.close)
        if self._top is not None:
            self._top.allocate(manifest.limits.max_batch)
        self._decoder = Decoder(
            self.device, stream, decode, self.weights.addresses, memory, argmax, manifest.limits.max_batch,
            manifest.head.output, self.output_size, self._top,
        )  # fmt: skip
        hold.callback(self._decoder.close)
        self._closed = False

    @property
    def device_memory_peak(self) -> int:
        """The most bytes that this session's buffers took of the GPU's memory, the CUDA context not counted."""
        return self.device.peak

    def allocate(self, rows: int, slots: int) -> None:
        """See :meth:`Session.allocate`."""
        assert not self._closed, "the session is closed"
        self.device.make_current()
        self._decoder.forget()
        try:
            moved = self._cache.reset(rows, slots)
        except BaseException:
            # there is no cache: nothing may be fed before a reset that succeeds
            self._lengths_B, self._slots = np.zeros(0, np.int64), 0
            raise
        if moved:
            self._prefiller.bind(self._cache.addresses, self._cache.shape_BGTD, self._cache.item_bytes)
            self._decoder.bind(self._cache.addresses, self._cache.shape_BGTD)

    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """See :meth:`Session.forward`; more rows, or logits per row, than a pass takes go in several."""
        S, K = input_ids_BS.shape[1], logits_index_BK.shape[1]
        if S == K == 1 and (query_length_B == 1).all():
            return self.step(input_ids_BS[:, 0], query_start_B)[:, None]
        self.device.make_current()
        self._decoder.forget()
        found = []
        for first, last in self._prefiller.turns(len(query_start_B)):
            # those of a turn may all be shorter than another's
            longest = max(1, int(query_length_B[first:last].max()))
            found.append(
                self._turn(input_ids_BS[first:last, :longest], query_start_B[first:last], logits_index_BK[first:last],
                           first)
            )  # fmt: skip
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _turn(self, input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, first_row: int) -> Logits:
        """Passes of the rows from ``first_row`` on: logits [B, K, V]."""
        run, limits = self._prefiller.run, self._prefiller.limits
        if limits.positions >= logits_index_BK.shape[1]:
            return run(input_ids_BS, query_start_B, logits_index_BK, first_row)
        logits_BKV = np.zeros((*logits_index_BK.shape, self.output_size), np.float32)
        for first, last in sub_chunks(logits_index_BK, input_ids_BS.shape[1], limits.positions):
            inside_BK = (logits_index_BK >= first) & (logits_index_BK < last)
            wanted = [np.unique(row[inside]) for row, inside in zip(logits_index_BK, inside_BK, strict=True)]
            index_Bk = np.zeros((len(wanted), max(map(len, wanted))), np.int64)
            for b, positions in enumerate(wanted):
                index_Bk[b, : len(positions)] = positions - first
            found_BkV = run(input_ids_BS[:, first:last], query_start_B + first, index_Bk, first_row)
            for b, positions in enumerate(wanted):
                logits_BKV[b, inside_BK[b]] = found_BkV[b, np.searchsorted(positions, logits_index_BK[b, inside_BK[b]])]
        return logits_BKV

    def step(self, tokens_B: Ids, query_start_B: Ids) -> Logits:
        """See :meth:`Session.step`."""
        self.device.make_current()
        return self._decoder.step(tokens_B, query_start_B)

    def greedy_step(self, tokens_B: Ids, query_start_B: Ids, advance_B: npt.NDArray[np.bool_] | None = None) -> Ids:
        """See :meth:`Session.greedy_step`: logits stay on the GPU, and the next step starts before the host asks."""
        self.device.make_current()
        going_B = np.ones(len(tokens_B), np.bool_) if advance_B is None else advance_B
        return self._decoder.greedy(tokens_B, query_start_B, going_B, self.slots)

    @property
    def candidates(self) -> int:
        """See :attr:`Session.candidates`."""
        return 0 if self._top is None else self._top.count

    def candidate_step(self, tokens_B: Ids, query_start_B: Ids, temperature: float) -> Candidates:
        """See :meth:`Session.candidate_step`."""
        self.device.make_current()
        return self._decoder.candidates(tokens_B, query_start_B, temperature)

    def candidate_logits(self) -> Logits:
        """See :meth:`Session.candidate_logits`."""
        self.device.make_current()
        return self._decoder.logits(self.rows)

    def close(self) -> None:
        """Frees what is on the GPU, at once and in order. Twice is allowed."""
        if not self._closed:
            self._closed = True
            self.device.make_current()
            self._held.close()


def sub_chunks(logits_index_BK: Ids, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts a pass of ``tokens`` positions so that no row wants more than ``most`` logits of a piece.

    Args:
        logits_index_BK: the positions whose logits are wanted.
        tokens: positions in all.
        most: logits of a row and piece.

    Returns:
        (first, last) of each piece, the last one excluded; they cover all positions, in order.
    """
    rows = [np.unique(row) for row in logits_index_BK]
    first = 0
    while first < tokens:
        last = tokens
        for positions in rows:
            ahead = positions[positions >= first]
            if len(ahead) > most:
                last = min(last, int(ahead[most]))
        yield first, last
        first = last


def _record(bundle: Bundle) -> TensorRTRecord:
    record = bundle.manifest.tensorrt
    if record is None:
        raise BundleError(
            "no record of its engines", "the key tensorrt", "build the bundle again", where=str(bundle.directory)
        )
    return record


def _kernels(bundle: Bundle, record: TensorRTRecord) -> tuple[Mapping[str, Any], str]:
    """The bundle's kernels by key, and their folder.

    Raises:
        BundleError: none for this architecture, or changed ones.
    """
    # needs no Triton
    from nemotron_plugins.library import KernelLibrary
    from nemotron_plugins.requests import logits_request

    folder = bundle.file(_KERNEL_FOLDER)
    library = KernelLibrary.load(folder, record.architecture)
    wanted = (logits_request(op, bundle.manifest.head.size) for op in ("Argmax", "TopCandidates"))
    return library.of(*wanted), str(folder)


def _check_engine(engine: Engine, bundle: Bundle, record: TensorRTRecord, row_inputs: tuple[str, ...]) -> None:
    manifest = bundle.manifest
    model, dtype = manifest.model, manifest.session.cache_dtype
    names = cache_names(model.num_layers)
    shape_BGTD = (-1, model.num_kv_heads, record.cache_capacity or -1, model.head_dim)
    tensors: dict[str, tuple[str, Any]] = {w.name: (w.dtype, w.shape) for w in record.weights}
    tensors |= dict.fromkeys(row_inputs, ("int64", None))
    tensors |= {name: (dtype, shape_BGTD) for pair in names.items() for name in pair}
    tensors[manifest.head.output] = ("float32", None)
    inputs = (*row_inputs, *names, *(weight.name for weight in record.weights))
    engine.check(inputs, (manifest.head.output, *names.values()), tensors)
