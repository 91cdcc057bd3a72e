"""A process of :mod:`nemotron_plugins.compiling.pool`: compiles the jobs that come on stdin until that ends."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from typing import Any

from nemotron_errors import NemotronError

from nemotron_plugins.compiling.compiler import compile_kernel
from nemotron_plugins.compiling.pool import CompileJob

__all__ = ["answer", "serve"]


def serve() -> None:
    """Answers each pickled :class:`CompileJob` on stdin with a pickle on stdout; returns where stdin ends."""
    # what compilers print goes to stderr: it would break the answers
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(job), answers)
        answers.flush()


def answer(job: CompileJob) -> tuple[str, Any]:
    """("kernel", it), ("error", the parts of a NemotronError) or ("bug", (its last line, the traceback))."""
    try:
        return "kernel", compile_kernel(job.launch, dtype=job.dtype, architecture=job.architecture)
    except NemotronError as error:
        parts = {name: getattr(error, name) for name in ("found", "expected", "remedy", "where")}
        return "error", {"kind": type(error).__name__, **parts}
    except Exception as error:
        return "bug", (f"{type(error).__name__}: {error}", traceback.format_exc())
