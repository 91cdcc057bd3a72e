"""A backend without a model: it notes when it did what, and misbehaves on demand."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from nemotron_errors import LimitError

from nemotron_export.bench.backends.base import Backend, BackendSpec, BenchRequest, Description, Ids

__all__ = ["FakeBackend", "fake_spec"]


class FakeBackend(Backend):
    """Options: log (a file that gets a line per event), name, and `fault`, what goes wrong in `reset`."""

    kind: ClassVar[str] = "fake"

    @classmethod
    def specs(cls, request: BenchRequest) -> list[BackendSpec]:
        return []

    def prepare(self) -> None:
        print("a library that prints")
        self._note("prepare")
        if self.options["fault"] == "no package":
            raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")

    def load(self) -> Description:
        self._note("load")
        return Description("float32", 10, 1000, 8)

    def reset(self, sequences: int, capacity: int) -> None:
        self._note("begin")
        fault = self.options["fault"]
        if fault == "limit":
            raise LimitError("too much", "less", "take less", where="here")
        if fault == "bug":
            raise KeyError("a bug")
        if fault == "killed":
            os.kill(os.getpid(), 9)
        if fault == "hang":
            time.sleep(600)

    def prefill(self, ids_BS: Ids) -> Ids:
        self._ids = ids_BS
        sys.stdout.write("noise\n")
        time.sleep(0.001)
        return ids_BS[:, -1]

    def decode(self, tokens_B: Ids) -> Ids:
        time.sleep(0.001)
        self._note("step")
        return (tokens_B + 1) % 10

    def close(self) -> None:
        self._note("close")

    def _note(self, event: str) -> None:
        with Path(self.options["log"]).open("a", encoding="utf-8") as file:
            file.write(f"{self.options['name']} {os.getpid()} {event} {np.datetime64('now')}\n")


def fake_spec(name: str, log: Path, fault: str | None = None) -> BackendSpec:
    """A spec of it."""
    options: dict[str, Any] = {"name": name, "log": str(log), "fault": fault}
    return BackendSpec("fake", name, options, 1000)
