"""What TensorRT says of its failures, as errors of three parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nemotron_errors import GraphError, NemotronError, ResourceError

__all__ = ["EngineError", "Messages", "node_ops", "parser_error"]

_log = logging.getLogger(__name__)

_KEPT = 4
_loggers: list[Any] = []
_NO_MEMORY = re.compile(r"out ?of ?memory|insufficient (?:device )?memory|cudaErrorMemoryAllocation", re.IGNORECASE)
_PARSE_REMEDY = (
    "install a version of it that `nemotron-export doctor` names as proven; `nemotron-export inspect --passes "
    "--dump-graphs DIR` keeps the graph"
)
_BUILD_REMEDY = "`nemotron-export doctor` names the versions that are proven; run with another, or on another GPU"


class EngineError(GraphError):
    """A graph that TensorRT does not make an engine of."""


class Messages:
    """Keeps TensorRT's errors for ours, and passes all it says to Python's logging.

    Attributes:
        logger: what TensorRT is given.
    """

    def __init__(self, trt: Any) -> None:
        self.errors: list[str] = []
        self.logger: Any = _logger_class(trt, self.errors)()
        # TensorRT keeps the first logger that it is given for what belongs to no builder
        _loggers.append(self.logger)

    def take(self) -> str:
        """The first errors since the last call, each once, as one line."""
        # the first is the cause of the others
        lines = list(dict.fromkeys(" ".join(text.split()) for text in self.errors))
        self.errors.clear()
        return "; ".join(lines[:_KEPT])

    def failure(self, what: str, nodes: Mapping[str, str], plugin: Exception | None = None) -> NemotronError:
        """The error for a call that gave nothing.

        Args:
            what: what was asked for, for example "decode.onnx".
            nodes: name of each node of the graph → its op.
            plugin: what a plugin raised meanwhile.
        """
        text = self.take()
        if isinstance(plugin, NemotronError):
            return plugin
        if plugin is not None:
            text = f"{type(plugin).__name__}: {plugin}" + (f"; {text}" if text else "")
        text = text or "no engine and no reason"
        if _NO_MEMORY.search(text):
            return ResourceError(
                text, "enough GPU memory to build", "end what else uses the GPU, or lower --max-batch, --max-seq-len "
                "or --prefill-chunk", where=what,
            )  # fmt: skip
        named = sorted((n for n in nodes if re.search(rf"(?<![\w./]){re.escape(n)}(?![\w/])", text)), key=text.index)
        culprits = ", ".join(f"{nodes[name]} '{name}'" for name in named[:_KEPT])
        found = f"{culprits}: {text}" if culprits else text
        return EngineError(found, "a graph that TensorRT builds", _BUILD_REMEDY, where=what)


def parser_error(parser: Any, version: str, what: str, plugin: Exception | None = None) -> NemotronError:
    """The error for a graph that was not parsed: names the node, its op and the parser's reason for each."""
    if isinstance(plugin, NemotronError):
        return plugin
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator, name = error.node_operator(), error.node_name()
        place = f"{operator or 'an op'} '{name}' (node {error.node()})" if name or operator else f"node {error.node()}"
        found.append(f"{place}: {' '.join(str(error.desc()).split())}")
    more = len(found) - _KEPT
    text = "; ".join(dict.fromkeys(found[:_KEPT])) or "a graph that its parser refuses without a reason"
    if more > 0:
        text += f"; and {more} more"
    if plugin is not None:
        text += f" ({type(plugin).__name__}: {plugin})"
    return EngineError(text, f"ops that the parser of version {version} takes", _PARSE_REMEDY, where=what)


def node_ops(nodes: Iterable[Any]) -> dict[str, str]:
    """Name of each node → its op."""
    return {node.name: node.op_type for node in nodes if node.name}


def _logger_class(trt: Any, errors: list[str]) -> type:
    severity = trt.ILogger.Severity
    failures = (severity.INTERNAL_ERROR, severity.ERROR)
    # its warnings are for those who write the graph: most come with every build
    levels = {severity.WARNING: logging.INFO, severity.INFO: logging.DEBUG}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in failures:
                errors.append(message)
                # raised in three parts where a call fails, and not of interest where none does
                _log.info("%s", message)
            elif severity in levels:
                _log.log(levels[severity], "%s", message)

    return Logger
