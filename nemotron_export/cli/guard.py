"""Exit codes, and the decorator that turns a user's mistake into one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from nemotron_errors import NemotronError

from nemotron_export.cli.console import print_error
from nemotron_export.cli.interrupts import Terminated, interrupts
from nemotron_export.installation.extras import missing_dependency

__all__ = ["EXIT_CODES", "INTERRUPTED", "TERMINATED", "guarded"]

INTERRUPTED = 130
TERMINATED = 143

EXIT_CODES = {
    0: "done, and every check passed",
    1: "parity or verification failed",
    2: "wrong usage, or an input that is broken or does not fit",
    3: "something is not installed or not available here",
    4: "too little disk or memory",
    INTERRUPTED: "interrupted (143 by SIGTERM); nothing half-written is left behind",
}

P = ParamSpec("P")
R = TypeVar("R")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Runs a command so that a user's mistake prints three lines and exits with its code, without a traceback.

    SIGTERM unwinds as Ctrl-C does, so that temporary folders are removed.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with interrupts():
                return command(*args, **kwargs)
        except (NemotronError, ModuleNotFoundError) as error:
            mistake = error if isinstance(error, NemotronError) else missing_dependency(error)
            if mistake is None:
                raise
            print_error(mistake)
            raise typer.Exit(mistake.exit_code) from None
        except Terminated:
            print("terminated", file=sys.stderr)
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None

    return run
