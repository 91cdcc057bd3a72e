"""CUDA's driver API in numpy: memory behind real addresses, streams that run as late as they may.

Work given to a stream is only done when somebody waits for it, so whoever changes pinned memory too early, reads too
early, or frees what is still used is found out.
"""

# ruff: noqa: N802 (the driver's own names)
from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from types import SimpleNamespace

import numpy as np

__all__ = ["FakeCuda"]

CUresult = IntEnum(
    "CUresult",
    {
        "CUDA_SUCCESS": 0, "CUDA_ERROR_INVALID_VALUE": 1, "CUDA_ERROR_OUT_OF_MEMORY": 2, "CUDA_ERROR_NO_DEVICE": 100,
        "CUDA_ERROR_ILLEGAL_ADDRESS": 700, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": 900,
    },
)  # fmt: skip
_OK = (CUresult.CUDA_SUCCESS,)
_GARBAGE, _FREED = 0xCD, 0xDD
_CONTEXT = 77


@dataclass
class _Stream:
    handle: int
    queue: deque = field(default_factory=deque)
    recording: list | None = None

    def __int__(self):
        return self.handle

    def give(self, work):
        (self.queue if self.recording is None else self.recording).append(work)

    def run(self, until=None):
        while self.queue:
            work = self.queue.popleft()
            work()
            if work is until:
                return


@dataclass
class _Event:
    stream: _Stream | None = None
    marker: object = None


class FakeCuda:
    """What ``cuda.bindings.driver`` is to the runtime, over one GPU.

    Args:
        total: bytes of GPU memory.
        capability: compute capability.

    Attributes:
        buffers: address → array, of device memory that is not freed.
        pinned: likewise of pinned memory.
        current: the current context, whatever the thread.
        handles: streams, events and graphs that were not destroyed.
        graphs: how many graphs were instantiated; launches: how often one was launched.
    """

    CUresult = CUresult
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=16,
    )  # fmt: skip

    def __init__(self, total=1 << 30, capability=(9, 0), devices=1):
        self.total, self.capability, self.devices = total, capability, devices
        self.buffers: dict[int, np.ndarray] = {}
        self.pinned: dict[int, np.ndarray] = {}
        self.handles: set[int] = set()
        self.streams: dict[int, _Stream] = {}
        self.contexts = self.graphs = self.launches = self.host_copies = 0
        self.current = 0
        self.pinned_limit = 1 << 40
        self._kept: list[np.ndarray] = []
        self._number = 1000
        self._objects: dict[int, object] = {}

    # what tests ask

    @property
    def used(self):
        return sum(map(len, self.buffers.values()))

    def leaks(self):
        """What was not given back."""
        return len(self.buffers), len(self.pinned), len(self.handles), self.contexts

    def give(self, stream, work):
        """Puts work of a kernel into a stream, by its number."""
        self.streams[int(stream)].give(work)

    def array(self, address, shape, dtype, kinds=("buffers",)):
        """An array over memory that must be allocated."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for kind in kinds:
            for start, raw in getattr(self, kind).items():
                if start <= address and address + size <= start + len(raw):
                    return raw[address - start : address - start + size].view(dtype).reshape(shape)
        raise AssertionError(f"{size} bytes at {address:x} are not allocated {kinds}")

    # devices and contexts

    def cuInit(self, flags):
        return _OK if self.devices else (CUresult.CUDA_ERROR_NO_DEVICE,)

    def cuDriverGetVersion(self):
        return *_OK, 12080

    def cuDeviceGetCount(self):
        return *_OK, self.devices

    def cuDeviceGet(self, ordinal):
        return *_OK, ordinal

    def cuDeviceGetName(self, length, device):
        return *_OK, b"A GPU of numpy".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute, device):
        return *_OK, {75: self.capability[0], 76: self.capability[1], 16: 132}[attribute]

    def cuDevicePrimaryCtxRetain(self, device):
        self.contexts += 1
        return *_OK, _CONTEXT

    def cuDevicePrimaryCtxRelease(self, device):
        self.contexts -= 1
        return _OK

    def cuCtxSetCurrent(self, context):
        self.current = int(context)
        return _OK

    def cuCtxGetCurrent(self):
        return *_OK, self.current

    # memory

    def cuMemGetInfo(self):
        return *_OK, self.total - self.used, self.total

    def cuMemAlloc(self, size):
        assert self.current
        if any(stream.recording is not None for stream in self.streams.values()):
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, None
        if size > self.total - self.used:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return *_OK, self._new(self.buffers, size)

    def cuMemFree(self, address):
        for stream in self.streams.values():
            stream.run()
        return self._free(self.buffers, address)

    def cuMemHostAlloc(self, size, flags):
        if size > self.pinned_limit:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        return *_OK, self._new(self.pinned, size)

    def cuMemFreeHost(self, address):
        return self._free(self.pinned, address)

    def cuMemsetD8Async(self, address, value, size, stream):
        self.streams[int(stream)].give(lambda: self.array(address, (size,), np.uint8).fill(value))
        return _OK

    def cuMemcpyHtoDAsync(self, target, source, size, stream):
        def copy():
            self.host_copies += 1
            self.array(target, (size,), np.uint8)[:] = self.array(source, (size,), np.uint8, ("pinned",))

        self.streams[int(stream)].give(copy)
        return _OK

    def cuMemcpyDtoHAsync(self, target, source, size, stream):
        def copy():
            self.array(target, (size,), np.uint8, ("pinned",))[:] = self.array(source, (size,), np.uint8)

        self.streams[int(stream)].give(copy)
        return _OK

    def cuMemcpyDtoDAsync(self, target, source, size, stream):
        def copy():
            self.array(target, (size,), np.uint8)[:] = self.array(source, (size,), np.uint8)

        self.streams[int(stream)].give(copy)
        return _OK

    # streams, events, graphs

    def cuStreamCreate(self, flags):
        handle = self._handle()
        self.streams[handle] = _Stream(handle)
        return *_OK, self.streams[handle]

    def cuStreamDestroy(self, stream):
        self.handles.remove(stream.handle)
        assert not self.streams.pop(stream.handle).queue, "work that nobody waited for"
        return _OK

    def cuStreamSynchronize(self, stream):
        if stream.recording is not None:
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        stream.run()
        return _OK

    def cuStreamBeginCapture(self, stream, mode):
        assert stream.recording is None
        stream.recording = []
        return _OK

    def cuStreamEndCapture(self, stream):
        graph = self._handle()
        self._objects[graph], stream.recording = stream.recording, None
        return *_OK, graph

    def cuGraphInstantiate(self, graph, flags):
        self.graphs += 1
        made = self._handle()
        self._objects[made] = list(self._objects[graph])
        return *_OK, made

    def cuGraphLaunch(self, graph, stream):
        assert graph in self.handles, "a graph that was destroyed"
        self.launches += 1
        for work in self._objects[graph]:
            stream.give(work)
        return _OK

    def cuGraphDestroy(self, graph):
        return self._destroy(graph)

    def cuGraphExecDestroy(self, graph):
        return self._destroy(graph)

    def cuEventCreate(self, flags):
        handle = self._handle()
        self._objects[handle] = _Event()
        return *_OK, handle

    def cuEventRecord(self, event, stream):
        state = self._objects[event]
        state.stream, state.marker = stream, lambda: None
        stream.give(state.marker)
        return _OK

    def cuEventSynchronize(self, event):
        state = self._objects[event]
        if state.stream is not None and state.marker in state.stream.queue:
            state.stream.run(state.marker)
        return _OK

    def cuEventElapsedTime(self, start, end):
        return *_OK, 2.0

    def cuEventDestroy(self, event):
        return self._destroy(event)

    def _handle(self):
        self._number += 1
        self.handles.add(self._number)
        return self._number

    def _destroy(self, handle):
        self.handles.remove(handle)
        del self._objects[handle]
        return _OK

    def _new(self, kind, size):
        raw = np.full(size + 256, _GARBAGE, np.uint8)
        self._kept.append(raw)
        first = -raw.ctypes.data % 256
        aligned = raw[first : first + size]
        kind[aligned.ctypes.data] = aligned
        return aligned.ctypes.data

    def _free(self, kind, address):
        if address not in kind:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        # arrays that outlive their memory must not keep its values
        ctypes.memset(address, _FREED, len(kind.pop(address)))
        return _OK
