"""Chat templates in a Jinja sandbox, with what transformers gives them, and with bounds on work and output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from nemotron_errors import TokenizerError

__all__ = ["render", "template_text"]

_MAX_CHARACTERS = 1 << 24
_MAX_STEPS = 1_000_000
_MAX_BITS = 1 << 16
_WIDE_FORMAT = re.compile(r"[%{][^a-zA-Z%{}]*(\d{6}|\*)")
_REMEDY = "correct the template, or give another one (--chat-template FILE, chat_template=)"


class _TooMuchError(jinja2.TemplateError):
    """A template that does more than a prompt can need."""


class _RefusedError(jinja2.TemplateError):
    """What a template's raise_exception says."""


class _Support(Extension):
    """The `generation` block, which marks what the assistant said, and the bounds' counters."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)
    steps = 0

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body as it stands: nothing here needs to know where the assistant speaks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)

    def step(self) -> None:
        """Counts a pass of a loop or a call of a macro."""
        self.steps += 1
        if self.steps > _MAX_STEPS:
            raise _TooMuchError(f"more than {_MAX_STEPS} passes of its loops")

    def join(self, *parts: object) -> str:
        """Jinja's ~, bounded."""
        return _bounded("".join(map(str, parts)))


class _Bounds(NodeTransformer):
    """Counts every loop and macro, and bounds every ~; jinja2 finds the methods by the nodes' names."""

    def __init__(self, support: _Support) -> None:
        self._support = support

    def visit_For(self, node: nodes.For | nodes.Macro) -> nodes.Node:  # noqa: N802
        step = self._support.call_method("step", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        self.generic_visit(node)
        return node

    visit_Macro = visit_For  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:  # noqa: N802
        self.generic_visit(node)
        return self._support.call_method("join", node.nodes, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Support, loopcontrols])
        self.filters["tojson"] = _to_json
        self.filters["center"] = lambda value, width=80: str(value).center(len(_bounded(range(width))))
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda text: datetime.now().strftime(text)

    @property
    def support(self) -> _Support:
        return next(e for e in self.extensions.values() if isinstance(e, _Support))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Bounds(self.support).visit(tree)
        return tree

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    _bounded(range(len(sequence) * max(count, 0)))
        if operator == "**" and isinstance(right, int) and right > 64:
            raise _TooMuchError("a power above 64")
        if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
            raise _TooMuchError("a format of that width")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        # what takes a width: str.center, str.ljust, str.format …
        for value in (*args, *kwargs.values()):
            if isinstance(value, int):
                _bounded(range(max(value, 0)))
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str) and name in ("format", "format_map") and _WIDE_FORMAT.search(owner):
            raise _TooMuchError("a format of that width")
        return _bounded(super().call(context, function, *args, **kwargs))


def render(template: str, variables: dict[str, Any]) -> str:
    """The text of a template.

    Raises:
        TokenizerError: bad syntax, a violation of the sandbox, an error while rendering, the template's own refusal,
            or more than 16 Mi characters or a million passes of loops.
    """
    try:
        compiled, environment = _compile(template)
        environment.support.steps = 0
        pieces, total = [], 0
        for piece in compiled.generate(**variables):
            total += len(piece)
            if total > _MAX_CHARACTERS:
                raise _TooMuchError(f"more than {_MAX_CHARACTERS} characters")
            pieces.append(piece)
    except _RefusedError as error:
        expected = "messages that the template takes"
        raise TokenizerError(f"a refusal: {error}", expected, "change the messages", where="chat template") from error
    except jinja2.TemplateSyntaxError as error:
        found = f"{error.message} (line {error.lineno})"
        raise TokenizerError(found, "a Jinja template", _REMEDY, where="chat template") from error
    except jinja2.TemplateError as error:
        kind = "too much work: " if isinstance(error, _TooMuchError) else ""
        expected = "a template that renders within its sandbox"
        raise TokenizerError(f"{kind}{error}", expected, _REMEDY, where="chat template") from error
    # a template is a program: whatever its expressions raise is a mistake in it, or in the messages that it was given
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise TokenizerError(found, "a template that takes these messages", _REMEDY, where="chat template") from error
    return "".join(pieces)


@lru_cache(maxsize=16)
def template_text(template: str) -> str:
    """What a template writes itself: its raw text and string constants, with NUL between them.

    Raises:
        TokenizerError: bad syntax.
    """
    try:
        tree = _compile(template)[1].parse(template)
    except jinja2.TemplateSyntaxError:
        render(template, {})
        raise
    raw = [node.data for node in tree.find_all(nodes.TemplateData)]
    constants = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return "\0".join(raw + constants)


@lru_cache(maxsize=16)
def _compile(template: str) -> tuple[jinja2.Template, _Environment]:
    environment = _Environment()
    return environment.from_string(template), environment


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, range)) and len(value) > _MAX_CHARACTERS:
        raise _TooMuchError(f"a value of more than {_MAX_CHARACTERS} characters")
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise _TooMuchError(f"a number of more than {_MAX_BITS} bits")
    return value


def _raise_exception(message: object) -> None:
    raise _RefusedError(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML
    dumps: Callable[..., str] = json.dumps
    return dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
