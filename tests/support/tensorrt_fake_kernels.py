"""The kernels that a TensorRT session launches itself, in numpy, and a library that names them.

Shapes: B rows, V vocabulary, P parts of it, N logits or keys of a part.
"""

from __future__ import annotations

import hashlib

import numpy as np
from nemotron_plugins.launches.launch import CompiledKernel, GridAxis, LaunchRecord
from nemotron_plugins.library import KernelLibrary, kernel_key
from nemotron_plugins.requests import logits_request

__all__ = ["LOG_COUNT", "WORK", "V", "save_kernels"]

V, PARTS = 32, 8
# of a tournament of three launches: parts of 8 logits, 4 candidates
LOG_BLOCK, LOG_COUNT = 3, 2


def _argmax(cuda, logits, partial, index, B):
    logits_BV = cuda.array(logits, (B, V), np.float32)
    parts = np.array_split(np.arange(V), PARTS)
    partial_BP, index_BP = cuda.array(partial, (B, PARTS), np.float32), cuda.array(index, (B, PARTS), np.int64)
    for p, part in enumerate(parts):
        index_BP[:, p] = part[0] + logits_BV[:, part].argmax(-1)
        partial_BP[:, p] = logits_BV[:, part].max(-1)


def _combine(cuda, partial, index, token, B):
    best_B = cuda.array(partial, (B, PARTS), np.float32).argmax(-1)
    cuda.array(token, (B,), np.int64)[:] = cuda.array(index, (B, PARTS), np.int64)[np.arange(B), best_B]


def _candidates(cuda, logits, temperature, key, mass, B):
    P = V >> LOG_BLOCK
    logits_BPN = cuda.array(logits, (B, V), np.float32).reshape(B, P, -1)
    order_BPN = logits_BPN.view(np.int32)
    order_BPN = np.where(order_BPN < 0, order_BPN ^ 0x7FFFFFFF, order_BPN).astype(np.int64)
    key_BPN = (order_BPN << 32) | (0xFFFFFFFF - np.arange(V).reshape(P, -1))
    cuda.array(key, (B, P, 1 << LOG_COUNT), np.int64)[:] = -np.sort(-key_BPN)[..., : 1 << LOG_COUNT]
    score_BPN = logits_BPN / cuda.array(temperature, (1,), np.float32)
    mass_BP2 = cuda.array(mass, (B, P, 2), np.float32)
    mass_BP2[..., 0] = score_BPN.max(-1)
    mass_BP2[..., 1] = np.exp(score_BPN - score_BPN.max(-1, keepdims=True)).sum(-1)


def _merge(cuda, key, largest_key, keys, B, P):
    assert keys == P << LOG_BLOCK, "of this vocabulary no launch has a part that is not full"
    key_BPN = cuda.array(key, (B, P, keys // P), np.int64)
    cuda.array(largest_key, (B, P, 1 << LOG_COUNT), np.int64)[:] = -np.sort(-key_BPN)[..., : 1 << LOG_COUNT]


# what each kernel does, on the memory of a FakeCuda
WORK = {
    "argmax.argmax_kernel": _argmax,
    "argmax.argmax_combine_kernel": _combine,
    "candidates.candidates_kernel": _candidates,
    "candidates.candidates_merge_kernel": _merge,
}


def save_kernels(folder):
    """Writes a library of them."""

    def compiled(kernel, arguments, **constexprs):
        cubin = kernel.encode()
        record = LaunchRecord(
            kernel=kernel, entry=kernel, architecture="sm_90", dtype="float16", arguments=arguments,
            hidden_arguments=(), constexprs=constexprs or {"PARTS": PARTS}, grid=(GridAxis(1, ("B",)),),
            num_warps=4, num_stages=1, shared_bytes=0, cluster=(1, 1, 1), scratch_bytes={}, scratch_alignment={},
            fp_fusion=True, pdl=True, triton="3.6.0", cubin_sha256=hashlib.sha256(cubin).hexdigest(),
        )  # fmt: skip
        return CompiledKernel(cubin, record)

    parts = (("partial_ptr", "*fp32"), ("partial_index_ptr", "*i64"))
    blocks = {"LOG_BLOCK": LOG_BLOCK, "LOG_COUNT": LOG_COUNT}
    first = (("logits_ptr", "*fp32"), ("temperature_ptr", "*fp32"), ("key_ptr", "*i64"), ("mass_ptr", "*fp32"))
    merge = (("key_ptr", "*i64"), ("largest_key_ptr", "*i64"), ("keys", "i32"))
    own = {
        "candidates": compiled("candidates.candidates_kernel", first, VOCAB=V, **blocks),
        "candidates_merge": compiled("candidates.candidates_merge_kernel", merge, **blocks),
        "argmax": compiled("argmax.argmax_kernel", (("logits_ptr", "*fp32"), *parts)),
        "argmax_combine": compiled("argmax.argmax_combine_kernel", (*parts, ("token_ptr", "*i64"))),
    }
    ops = {"Argmax": ("argmax", "argmax_combine"), "TopCandidates": ("candidates", "candidates_merge")}
    kernels = {
        kernel_key(logits_request(op, V), variant): own[variant] for op, variants in ops.items() for variant in variants
    }
    return KernelLibrary("sm_90", kernels).save(folder)
