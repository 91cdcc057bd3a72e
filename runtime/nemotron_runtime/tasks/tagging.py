"""Token classification: a class for every token, or for every run of tokens.

Shapes: n tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemotron_runtime.bundle.records import HeadRecord
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.tasks.outputs import outputs_at, softmax
from nemotron_runtime.text.encoding import Encoding

__all__ = ["Tag", "merge_tags", "tag"]


@dataclass(frozen=True)
class Tag:
    """A token, or a run of tokens, and its class.

    Attributes:
        label: the class; without its B- or I- where runs are merged.
        score: its probability; the mean over a run.
        text: the characters that it stands for.
        begin: first character.
        end: the character after the last.
        token_ids: the tokens.
    """

    label: str
    score: float
    text: str
    begin: int
    end: int
    token_ids: tuple[int, ...]


def tag(
    engine: Engine, head: HeadRecord, texts: Sequence[str], encodings: Sequence[Encoding], *, merge: bool
) -> list[list[Tag]]:
    """The tags of each text; tokens that the tokenizer adds have none.

    Raises:
        RequestError, LimitError: see :func:`outputs_at`.
    """
    owned = [np.array([i for i, owner in enumerate(each.texts) if owner is not None], np.int64) for each in encodings]
    outputs = outputs_at(engine, [each.ids for each in encodings], owned)
    tagged = []
    for text, encoding, positions, logits_nC in zip(texts, encodings, owned, outputs, strict=True):
        scores_nC = softmax(logits_nC) if len(logits_nC) else logits_nC
        tags = []
        for position, scores_C in zip(positions, scores_nC, strict=True):
            best = int(scores_C.argmax())
            begin, end = encoding.spans[position]
            ids = (encoding.ids[position],)
            tags.append(Tag(head.labels[best], float(scores_C[best]), text[begin:end], begin, end, ids))
        tagged.append(merge_tags(tags, text) if merge else tags)
    return tagged


def merge_tags(tags: Sequence[Tag], text: str) -> list[Tag]:
    """Joins neighbouring tokens of one class; ``B-`` begins a new run, ``O`` tokens are left out."""
    runs: list[list[Tag]] = []
    for each in tags:
        kind, starts = _kind(each.label), each.label.startswith("B-")
        if runs and not starts and _kind(runs[-1][-1].label) == kind:
            runs[-1].append(each)
        else:
            runs.append([each])
    return [_run(run, text) for run in runs if _kind(run[0].label) != "O"]


def _kind(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _run(run: Sequence[Tag], text: str) -> Tag:
    begin, end = run[0].begin, run[-1].end
    score = float(np.mean([each.score for each in run]))
    ids = tuple(token for each in run for token in each.token_ids)
    return Tag(_kind(run[0].label), score, text[begin:end], begin, end, ids)
