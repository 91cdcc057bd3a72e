"""The module ``tensorrt`` and this project's plugins, with a logger that keeps the last errors for ours."""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType
from typing import Any

from nemotron_errors import MissingDependencyError, NemotronError, ResourceError

__all__ = ["TensorRT", "load_tensorrt"]

_log = logging.getLogger(__name__)

_INSTALL = 'pip install "nemotron-export[tensorrt]"'
_LAST_MESSAGES = 3
_REBUILD = "build the bundle again on this machine; `nemotron-export doctor` tells what is installed"


class TensorRT:
    """TensorRT and the plugins of this project, with a logger that keeps the last errors for ours.

    Attributes:
        trt: the module ``tensorrt``.
        runtime: what loads engines.
    """

    def __init__(self, trt: ModuleType, plugins: ModuleType) -> None:
        self.trt: Any = trt
        self._plugins: Any = plugins
        self._messages: list[str] = []
        self._logger = _logger(trt, self._messages)
        self.runtime: Any = trt.Runtime(self._logger)

    def register_plugins(self) -> None:
        """Makes the plugins known, which engines of native layers need none of.

        Raises:
            MissingDependencyError: bindings or a registry that cannot take them.
        """
        self._plugins.register()

    def fail(self, what: str) -> NemotronError:
        """The error for a call that said it failed: a plugin's own, or TensorRT's last words."""
        error, words = self._plugins.take_error(), "; ".join(self._messages)
        self.forget()
        if isinstance(error, NemotronError):
            return error
        reason = words if error is None else str(error)
        failed = ResourceError(
            f"{what}: {reason or 'no reason given'}", "an engine that runs", _REBUILD, where="TensorRT"
        )
        failed.__cause__ = error
        return failed

    def check(self, what: str) -> None:
        """Raises what a plugin raised meanwhile, though the call said that all is well."""
        error = self._plugins.take_error()
        if isinstance(error, NemotronError):
            raise error
        if error is not None:
            raise ResourceError(f"{what}: {error}", "plugins that run", _REBUILD, where="TensorRT") from error

    def forget(self) -> None:
        """Discards stale errors."""
        self._plugins.take_error()
        self._messages.clear()


@cache
def load_tensorrt() -> TensorRT:
    """Imports TensorRT, once per process.

    Raises:
        MissingDependencyError: no TensorRT.
    """
    try:
        trt = importlib.import_module("tensorrt")
        plugins = importlib.import_module("nemotron_plugins.tensorrt")
    except ImportError as error:
        raise MissingDependencyError(
            f"no tensorrt ({error})", "TensorRT, which runs this bundle", _INSTALL, where="tensorrt"
        ) from error
    return TensorRT(trt, plugins)


def _logger(trt: Any, messages: list[str]) -> Any:
    levels = {
        trt.Logger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.Logger.Severity.ERROR: logging.ERROR,
        trt.Logger.Severity.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                messages.append(message.strip())
                del messages[:-_LAST_MESSAGES]
                # whoever called raises it
                level = logging.DEBUG
            _log.log(level, "TensorRT: %s", message)

    return Logger()
