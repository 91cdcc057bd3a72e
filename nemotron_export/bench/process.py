"""The parent's side of a backend's process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Self

import nemotron_errors
from nemotron_errors import ResourceError

from nemotron_export.bench.backends import BACKENDS
from nemotron_export.bench.backends.base import BackendSpec, Description
from nemotron_export.bench.options import Shape, Times

__all__ = ["BackendProcess"]

_CLOSE_SECONDS = 20.0


class BackendProcess:
    """Starts the process at once; :meth:`wait_ready` and the rest wait for its answer.

    As a context manager it ends the process: politely at the end, by force where an exception passes.

    Every call raises the NemotronError that the backend raised; ResourceError where the system killed the process
    (memory), and RuntimeError where it ended by a bug, whose traceback it left on stderr.
    """

    def __init__(self, spec: BackendSpec, threads: int) -> None:
        self.spec = spec
        self.name = spec.name
        self._peak: int | None = None
        self.device_peak_bytes: int | None = None
        cls = BACKENDS[spec.kind]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "nemotron_export.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # Ctrl-C is for the parent, which then ends every child; left to the terminal, each would print a traceback
            process_group=0 if os.name == "posix" else None,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._calls, self._answers = self._process.stdin, self._process.stdout
        backend = f"{cls.__module__}:{cls.__qualname__}"
        self._send({"path": sys.path, "backend": backend, "options": spec.options, "threads": threads})

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def wait_ready(self) -> None:
        """Waits until the backend has imported what it needs."""
        self._receive()

    def load(self) -> tuple[float, Description]:
        """Loads the backend; gives the seconds that took, and what it is."""
        answer = self._call("load")
        return answer["seconds"], Description(**answer["description"])

    def measure(self, shape: Shape) -> Times:
        """One measurement; nothing is returned before it is over."""
        return Times(**self._call("measure", **asdict(shape)))

    def close(self) -> int:
        """Ends the process; gives the peak of its resident memory in bytes, and keeps that of the GPU's."""
        if self._peak is None:
            peaks = self._call("close")
            self._peak, self.device_peak_bytes = int(peaks["peak_bytes"]), peaks["device_peak_bytes"]
            self._end(_CLOSE_SECONDS)
        return self._peak

    def kill(self) -> None:
        """Ends the process by force."""
        self._process.kill()
        self._end(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._peak is None:
            self.kill()

    def _end(self, seconds: float | None) -> None:
        with suppress(OSError):
            self._calls.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _call(self, name: str, **arguments: Any) -> dict[str, Any]:
        self._send({"call": name, **arguments})
        return self._receive()

    def _send(self, message: dict[str, Any]) -> None:
        # a process that is gone is noticed by its missing answer
        with suppress(BrokenPipeError):
            self._calls.write(json.dumps(message) + "\n")
            self._calls.flush()

    def _receive(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise self._ended(self._process.wait())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            parts = answer["error"]
            raise getattr(nemotron_errors, parts.pop("kind"))(**parts)
        return answer["ok"]  # type: ignore[no-any-return]

    def _ended(self, code: int) -> Exception:
        if os.name == "posix" and code == -signal.SIGKILL:
            return ResourceError(
                "its process was killed, as systems do where memory runs out",
                "memory for all backends at once",
                "measure fewer of them in one run",
                where=self.name,
            )
        return RuntimeError(f"{self.name}: its process ended with code {code}")
