"""What is built of one checkpoint: our bundles and what ONNX Runtime GenAI's builder makes, each in its own process."""

from __future__ import annotations

import sys
from pathlib import Path

from genai_peer import builder_command
from steps import Step

__all__ = ["builds"]

_BLOCK = 32


def builds(checkpoint: Path, work: Path, provider: str, parity: bool, more: bool) -> list[Step]:
    """All builds of a checkpoint.

    Args:
        checkpoint: the folder.
        work: where they go.
        provider: "cuda", in bf16, and int4 in fp16 too; or "cpu", in fp32, which shows that the commands are right
            where no GPU is.
        parity: whether our own bundles end with their parity check.
        more: GenAI's builder also with its options for a shorter prefill (prune_lm_head) and for the layout of
            another int4 kernel, of which it has one for groups of 32.
    """
    cuda = provider == "cuda"
    dtype, precision = ("bfloat16", "bf16") if cuda else ("float32", "fp32")
    cli = [sys.executable, "-m", "nemotron_export", "build", str(checkpoint)]

    def ours(target: str, suffix: str = "", *options: str, checked: bool = False) -> Step:
        name = "-".join((target, suffix or precision))
        arguments = ["-o", str(work / name), "--target", target, *options, *([] if checked else ["--no-parity"])]
        return Step(name, [*cli, *arguments], 500 if checked else 240)

    def theirs(suffix: str, kind: str, *options: str) -> Step:
        if cuda:
            options = ("enable_cuda_graph=true", *options)
        name = f"builder-{suffix}"
        return Step(name, builder_command(checkpoint, work / name, kind, provider, options), 240)

    # the longest first; of int4's kernels the fp16 ones are quicker, on both sides
    block, groups = f"block_size={_BLOCK}", ("--quantize", "int4", "--group-size", str(_BLOCK))
    found = [theirs("int4", "int4", block, *(["use_cuda_bf16=true"] if cuda else []))]
    found += [theirs("int4-fp16", "int4", block)] if cuda else []
    found.append(theirs(precision, precision))
    if more and cuda:
        found.append(theirs("int4-prepacked", "int4", block, "use_cuda_bf16=true", "matmulnbits_weights_prepacked=1"))
        found.append(theirs("bf16-pruned", "bf16", "prune_lm_head=true"))
    found.append(ours(f"ort-{provider}", "int4", *groups, "--dtype", dtype, checked=parity))
    # in fp16 the check measures which layers overflow; without it all of them are computed in fp32
    found += [ours("ort-cuda", "int4-fp16", *groups, "--dtype", "float16", checked=True)] if cuda else []
    found.append(ours(f"ort-{provider}", "", "--dtype", dtype, checked=parity))
    return [*found, ours(f"genai-{provider}", "", "--dtype", dtype)]
