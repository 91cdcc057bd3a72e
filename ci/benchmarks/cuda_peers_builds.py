"""What is built of one checkpoint: our bundles and what ONNX Runtime GenAI's builder makes, each in its own process."""

from __future__ import annotations

import sys
from pathlib import Path

from genai_peer import builder_command
from steps import Step

__all__ = ["builds"]

_BLOCK = 32


def builds(checkpoint: Path, work: Path, provider: str) -> list[Step]:
    """All builds of a checkpoint, into folders of `work` by the steps' names.

    The provider is "cuda", in bf16, and int4 in fp16 too; or "cpu", in fp32, which shows that the commands are right
    where no GPU is.
    """
    cuda = provider == "cuda"
    dtype, precision = ("bfloat16", "bf16") if cuda else ("float32", "fp32")

    def ours(name: str, *options: str, seconds: int = 240) -> Step:
        target = "-".join(name.split("-")[:2])
        command = [sys.executable, "-m", "nemotron_export", "build", str(checkpoint), "-o", str(work / name)]
        return Step(name, [*command, "--target", target, *options], seconds)

    def theirs(suffix: str, kind: str, *options: str) -> Step:
        if cuda:
            options = ("enable_cuda_graph=true", *options)
        name = f"builder-{suffix}"
        return Step(name, builder_command(checkpoint, work / name, kind, provider, options), 240)

    # the longest first; of int4's kernels the fp16 ones are quicker, on both sides
    block, int4 = f"block_size={_BLOCK}", ("--quantize", "int4", "--group-size", str(_BLOCK))
    found = [theirs("int4", "int4", block, *(["use_cuda_bf16=true"] if cuda else []))]
    found += [theirs("int4-fp16", "int4", block)] if cuda else []
    plain = ("--dtype", dtype, "--no-parity")
    found += [theirs(precision, precision), ours(f"ort-{provider}-int4", *int4, *plain)]
    # in fp16 the check measures which layers overflow; without it all of them are computed in fp32
    found += [ours("ort-cuda-int4-fp16", *int4, "--dtype", "float16", seconds=500)] if cuda else []
    return [*found, ours(f"ort-{provider}-{precision}", *plain), ours(f"genai-{provider}-{precision}", *plain)]
