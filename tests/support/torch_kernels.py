"""The plugins and kernels on PyTorch tensors: Triton launches them, on a GPU or under its interpreter.

Shapes: B sequences, S tokens, V vocabulary, T cache capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from nemotron_plugins.build import launches_of
from nemotron_plugins.compiling.compiler import kernel_function
from nemotron_plugins.launches.candidates import tournament
from nemotron_plugins.launches.launch import CompiledKernel, Gpu, Launch, LaunchRecord
from nemotron_plugins.requests import KernelRequest, logits_request, request_of
from nemotron_plugins.tensorrt import PLUGIN_OPS, attention, operator
from nemotron_plugins.tensorrt.operator import Tensor

from support.plugin_libraries import record_of

__all__ = ["argmax", "candidates", "gpu_of", "prepare_op", "run_launch", "run_op"]

_ELEMENTS = {"*fp32": torch.float32, "*fp16": torch.float16, "*bf16": torch.bfloat16, "*i64": torch.int64}


def run_launch(launch: Launch | LaunchRecord, *arguments: torch.Tensor | int, **sizes: int) -> None:
    """Compiles the kernel where that is not done yet, and launches it on the current stream."""
    kernel_function(launch)[launch.grid_of(**sizes)](
        *arguments,
        **launch.constexprs,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        enable_fp_fusion=launch.fp_fusion,
        launch_pdl=launch.pdl,
    )


def gpu_of(tensor: torch.Tensor) -> Gpu:
    """The tensor's GPU; the interpreter, which has none, is given a small one."""
    if not tensor.is_cuda:
        return Gpu(80, 8)
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return Gpu(10 * major + minor, torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def run_op(
    name: str, inputs: Sequence[torch.Tensor], attributes: Mapping[str, Any] | None = None, *, splits: int | None = None
) -> list[torch.Tensor]:
    """The outputs of a plugin's call; those that are an input's memory are the input.

    Args:
        name: of the op.
        inputs: contiguous, in the op's order.
        attributes: of the node.
        splits: of attention, in place of what fills the GPU.
    """
    like = inputs[0]
    cache = next((tensor for tensor in inputs if tensor.dim() == 4 and tensor is not like), None)
    request = request_of(
        name, [tuple(tensor.shape) for tensor in inputs], _name(like.dtype), attributes or {},
        sequences=like.shape[0], capacity=0 if cache is None else cache.shape[2],
    )  # fmt: skip
    with ExitStack() as patches:
        if splits is not None:
            patches.enter_context(mock.patch.object(attention, "decode_splits", return_value=splits))
        call, outputs = prepare_op(request, inputs, launches_of(request, gpu_of(like)))
    call()
    return outputs


def prepare_op(
    request: KernelRequest, inputs: Sequence[torch.Tensor], launches: Mapping[str, Launch]
) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """What calls a plugin as often as wanted, and the outputs [as the op's] that every call writes.

    Args:
        request: of the node.
        inputs: contiguous, in the op's order.
        launches: by variant, those of the op's rule or others of the same kernels.
    """
    like = inputs[0]
    memory: list[torch.Tensor] = [*inputs]

    class TritonKernel:
        """In the place of a ``LoadedKernel``: its addresses lie in ``memory``."""

        def __init__(self, record: LaunchRecord, cubin: bytes) -> None:
            self.record = record

        def launch(self, stream: int, arguments: Sequence[int], **sizes: int) -> None:
            kinds = [kind for _, kind in self.record.arguments]
            given = [
                _at(memory, value, _ELEMENTS[kind]) if kind in _ELEMENTS else value
                for kind, value in zip(kinds, arguments, strict=True)
            ]
            run_launch(self.record, *given, **sizes)

    kernels = {
        variant: CompiledKernel(b"", record_of(launch, b"", dtype=request.dtype))
        for variant, launch in launches.items()
    }
    with mock.patch.object(operator, "LoadedKernel", TritonKernel):
        op = PLUGIN_OPS[request.op](request, kernels)
    tensors = [_tensor(each) for each in inputs]
    op.configure(tensors)
    kinds = op.output_dtypes([each.dtype for each in tensors])
    outputs = [
        inputs[op.aliases[i]] if i in op.aliases else like.new_empty(shape, dtype=getattr(torch, kind))
        for i, (kind, shape) in enumerate(zip(kinds, op.output_shapes([each.shape for each in tensors]), strict=True))
    ]
    workspace = torch.empty(max(op.workspace(tensors), 1), dtype=torch.uint8, device=like.device)
    memory += [*outputs, workspace]
    written = [_tensor(each) for each in outputs]
    return lambda: op.enqueue(tensors, written, workspace.data_ptr(), 0), outputs


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """The index of the largest logit of each sequence, int64 [B], of logits float32 [B, V]."""
    B, vocab = logits.shape
    part, combine = launches_of(logits_request("Argmax", vocab), gpu_of(logits)).values()
    parts = int(part.constexprs["PARTS"])
    partial, tokens = logits.new_empty((B, parts)), logits.new_empty((B,), dtype=torch.int64)
    index = torch.empty_like(partial, dtype=torch.int64)
    run_launch(part, logits, partial, index, B=B)
    run_launch(combine, partial, index, tokens, B=B)
    return tokens


def candidates(logits: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys, int64 [B, C], and each part's largest score and sum, float32 [B, P, 2], of logits float32 [B, V].

    The temperature is float32 [1].
    """
    B, vocab = logits.shape
    first, merge = launches_of(logits_request("TopCandidates", vocab), gpu_of(logits)).values()
    log_block, log_count = int(first.constexprs["LOG_BLOCK"]), int(first.constexprs["LOG_COUNT"])
    counts = tournament(vocab, log_block, log_count)
    keys = logits.new_empty((B, counts[0], 1 << log_count), dtype=torch.int64)
    masses = logits.new_empty((B, counts[0], 2))
    run_launch(first, logits, temperature, keys, masses, B=B)
    for parts in counts[1:]:
        largest = keys.new_empty((B, parts, 1 << log_count))
        run_launch(merge, keys, largest, keys.shape[1] << log_count, B=B, P=parts)
        keys = largest
    return keys[:, 0], masses


def _tensor(tensor: torch.Tensor) -> Tensor:
    assert tensor.is_contiguous()
    return Tensor(_name(tensor.dtype), tuple(tensor.shape), tensor.data_ptr())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _at(memory: Sequence[torch.Tensor], address: int, dtype: torch.dtype) -> torch.Tensor:
    """What lies from an address on, in that dtype; of null, and of what has no bytes, something that nobody reads."""
    for tensor in memory:
        if tensor.data_ptr() <= address < tensor.data_ptr() + tensor.nbytes:
            rest = tensor.view(-1).view(torch.uint8)[address - tensor.data_ptr() :]
            return rest[: rest.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
    return torch.empty(4, dtype=dtype, device=memory[0].device)
