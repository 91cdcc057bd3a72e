"""From documentation markup to plain paragraphs: what the demo's model reads."""

from __future__ import annotations

import inspect
import re

__all__ = ["clean"]

_UNICODE = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-", "\u2026": "...",
    "\xa0": " ",
})  # fmt: skip
_ROLE = re.compile(r":[a-zA-Z][\w.-]*(?::[\w-]+)?:`([^`]*)`")
_LINK = re.compile(r"`+([^`<>]+?)\s*<[^>]*>`+_{0,2}")
_RULE = re.compile(r"^\s*([-=~*^#\"+.])\1{2,}\s*$")
_ITEM = re.compile(r"^(?:[-*+\u2022]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+(?=\S)")
_DIRECTIVE = re.compile(r"^\.\.\s+([\w:-]+?)::\s*(.*)$")
_SPOKEN_DIRECTIVES = {
    "note": "Note: ", "tip": "Note: ", "important": "Note: ", "warning": "Warning: ", "caution": "Warning: ",
}  # fmt: skip
# Numpy's and Google's section names: a heading without content of its own.
_SECTIONS = re.compile(
    r"^(parameters|returns?|yields?|raises|args|arguments|keyword args|keyword arguments|attributes|methods|notes?|"
    r"examples?|see also|references|warns|warnings?|other parameters|shape|explanation|inputs?|outputs?|usage):{0,2}$",
    re.IGNORECASE,
)
_DROPPED_SECTIONS = {"references", "see also"}
# A paragraph without any of these is a table, a signature or a list of names, not prose.
_FUNCTION_WORDS = frozenset(
    "the a an is are be was were of to in and or if for that this with as by on from it not when which can will".split()
)
_UNWANTED = re.compile(
    r"copyright|licen[cs]|https?:|ftp:|www\.|@\w+\.|\bTODO\b|\bXXX\b|\bFIXME\b|[{}]{2}|___|\$[^ ]+\$|%\(|_\{|\^\{|\\",
    re.IGNORECASE,
)


def _inline(text: str) -> str:
    """Markup inside a line: roles, literals, footnote marks, emphasis."""

    def role(match: re.Match[str]) -> str:
        target = match.group(1)
        if "<" in target:
            return target.split("<")[0].strip()
        return "`" + (target[1:].rsplit(".", 1)[-1] if target.startswith("~") else target.lstrip("!.")) + "`"

    text = _ROLE.sub(role, text)
    text = _LINK.sub(r"\1", text).replace("\\ ", "")
    text = re.sub(r"\s*\[[\w#*]+\]_", "", text)
    text = text.replace("``", "`")
    text = re.sub(r"(?<![\w*])\*{1,2}([A-Za-z_][\w -]*)\*{1,2}(?![\w*])", r"\1", text)
    text = re.sub(r"\|(\w+)\|", r"\1", text)
    text = re.sub(r"`_{1,2}(?=\W|$)", "`", text)
    return re.sub(r"\s+", " ", text).strip()


def _is_prose(text: str) -> bool:
    """Enough words, mostly letters, ASCII, and nothing that only a machine or a lawyer reads."""
    dense = text.replace(" ", "")
    words = re.findall(r"[a-z]+", text.lower())
    return (
        len(text) >= 25
        and len(words) >= 5
        and text.isascii()
        and sum(c.isalpha() for c in dense) >= 0.78 * len(dense)
        and len(_FUNCTION_WORDS.intersection(words)) >= (1 if len(words) < 12 else 2)
        and max(map(len, text.split())) <= 45
        and not _UNWANTED.search(text)
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _split_entries(block: list[str]) -> list[str]:
    """One block (lines without a blank one between) to paragraphs: list items, definitions, or the whole joined."""
    base = min(_indent(line) for line in block)
    lines = [line[base:] for line in block]
    entries: list[list[str]] = []
    for line in lines:
        starts_entry = _ITEM.match(line) or (_indent(line) == 0 and entries and any(_indent(x) for x in entries[-1]))
        if starts_entry or not entries:
            entries.append([line])
        else:
            entries[-1].append(line)
    paragraphs = []
    for entry in entries:
        head, body = entry[0], [line.strip() for line in entry[1:]]
        if _ITEM.match(head):
            paragraphs.append("- " + " ".join([_ITEM.sub("", head), *body]))
        elif body and _indent(entry[1]) and not re.search(r"[.,;]$|\b(the|a|of|to)$", head.strip()) and len(head) < 60:
            name, _, kind = head.strip().rstrip(":").partition(" : ")
            paragraphs.append(f"{name} ({kind}): {' '.join(body)}" if kind else f"{name}: {' '.join(body)}")
        else:
            paragraphs.append(" ".join([head.strip(), *body]))
    return paragraphs


def _blocks(text: str) -> list[list[str]]:
    """Blocks of prose lines: doctests, literal blocks, directives' bodies, rules and dropped sections are gone."""
    lines = text.splitlines()
    blocks: list[list[str]] = [[]]
    skip_deeper_than: int | None = None
    in_dropped_section = in_doctest = False
    prefix = ""
    for position, raw in enumerate(lines):
        line = raw.rstrip()
        if not line:
            in_doctest = False
            blocks.append([])
            continue
        following = lines[position + 1] if position + 1 < len(lines) else ""
        if skip_deeper_than is not None:
            if _indent(line) > skip_deeper_than:
                continue
            skip_deeper_than = None
        if _RULE.match(line):
            continue
        if _SECTIONS.match(line.strip()) or _RULE.match(following):
            in_dropped_section = line.strip().rstrip(":").lower() in _DROPPED_SECTIONS
            blocks.append([])
            continue
        if in_doctest or line.lstrip().startswith(">>>"):
            in_doctest = True
            continue
        directive = _DIRECTIVE.match(line.strip())
        if directive:
            blocks.append([])
            prefix = _SPOKEN_DIRECTIVES.get(directive.group(1).lower(), "")
            if not prefix:
                skip_deeper_than = _indent(line)
            elif directive.group(2):
                blocks[-1].append(" " * (_indent(line) + 3) + prefix + directive.group(2))
                prefix = ""
            continue
        if in_dropped_section or line.lstrip().startswith((".. ", ":param", ":type", ":rtype", ":return")):
            continue
        if line.endswith("::"):
            skip_deeper_than = _indent(line)
            line = line[:-1]
        if prefix:
            line = " " * _indent(line) + prefix + line.lstrip()
            prefix = ""
        blocks[-1].append(line)
    return [block for block in blocks if block]


def clean(text: str) -> list[str]:
    """Plain paragraphs of one docstring or documentation topic, in order; code and markup are dropped."""
    text = inspect.cleandoc(text.translate(_UNICODE).expandtabs())
    paragraphs = (_inline(entry) for block in _blocks(text) for entry in _split_entries(block))
    return [paragraph for paragraph in paragraphs if _is_prose(paragraph)]
