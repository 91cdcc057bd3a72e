"""What is built of one checkpoint: our bundles and what ONNX Runtime GenAI's builder makes, each in its own process."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from genai_peer import builder_command, offline

__all__ = ["Build", "Built", "builds", "run_builds"]

_BLOCK = 32


@dataclass(frozen=True)
class Build:
    """A command that makes the folder `name`.

    Attributes:
        name: of the folder, and of the log next to it.
        command: what makes it.
        seconds: that it may take.
    """

    name: str
    command: list[str]
    seconds: int = 240


@dataclass(frozen=True)
class Built:
    """What became of a build; `peak_bytes` is the resident memory of its process, mapped files that it read included.

    `folder_bytes` are those of the folder, weights that it refers to elsewhere left out.
    """

    name: str
    command: str
    code: int
    seconds: float
    peak_bytes: int
    folder_bytes: int


def builds(checkpoint: Path, work: Path, provider: str, parity: bool, more: bool) -> list[Build]:
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

    def ours(target: str, suffix: str = "", *options: str, checked: bool = False) -> Build:
        name = "-".join((target, suffix or precision))
        arguments = ["-o", str(work / name), "--target", target, *options, *([] if checked else ["--no-parity"])]
        return Build(name, [*cli, *arguments], 500 if checked else 240)

    def theirs(suffix: str, kind: str, *options: str) -> Build:
        if cuda:
            options = ("enable_cuda_graph=true", *options)
        name = f"builder-{suffix}"
        return Build(name, builder_command(checkpoint, work / name, kind, provider, work / f"{name}-cache", options))

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


def run_builds(todo: Sequence[Build], work: Path, jobs: int) -> list[Built]:
    """Runs them, `jobs` at once; a log of each in `work`/NAME.log."""
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda build: _run(build, work), todo))


def _run(build: Build, work: Path) -> Built:
    began = time.monotonic()
    with (work / f"{build.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(build.command, stdout=log, stderr=subprocess.STDOUT, env=offline())
        timer = threading.Timer(build.seconds, process.kill)
        timer.start()
        # of this process alone: getrusage would give the largest of all children
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        # Popen itself did not wait for it
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = round(time.monotonic() - began, 1)
    size = sum(path.stat().st_size for path in (work / build.name).rglob("*") if path.is_file())
    command = shlex.join(build.command)
    return Built(build.name, command, process.returncode, seconds, usage.ru_maxrss * 1024, size)
