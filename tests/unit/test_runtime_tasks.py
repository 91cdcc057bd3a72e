"""Classification, tagging, answers and hidden states over an executor that returns what the test says."""

from __future__ import annotations

import numpy as np
import pytest
from nemotron_errors import LimitError, RequestError
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest import HeadRecord
from nemotron_runtime.checks.decisions import decision_flips
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.padded import PaddedExecutor
from nemotron_runtime.tasks import Tag
from nemotron_runtime.tasks.answering import answer
from nemotron_runtime.tasks.classification import classify, pooled_position
from nemotron_runtime.tasks.tagging import merge_tags, tag
from nemotron_runtime.text.encoding import Encoding


class TableExecutor(PaddedExecutor):
    """The outputs of a token are the table's row of its id."""

    def __init__(self, table: np.ndarray, max_seq_len: int = 64, max_batch: int = 2) -> None:
        super().__init__(len(table), Limits(max_seq_len, max_batch, 5), table.shape[1])
        self.table, self.resets = table.astype(np.float32), 0
        self._history = np.zeros((0, 0), np.int64)

    def make_caches(self, sequences, capacity):  # type: ignore[no-untyped-def]
        self.resets += 1

    def forward(self, input_ids_BS, query_start_B, query_length_B, logits_index_BK):  # type: ignore[no-untyped-def]
        return self.table[np.take_along_axis(input_ids_BS, logits_index_BK, 1)]

    def close(self) -> None:
        pass


def _head(*labels: str, problem_type: str | None = None) -> HeadRecord:
    return HeadRecord("logits", len(labels), labels, problem_type)


TABLE = np.array([[0.0, 0.0], [2.0, -1.0], [-1.0, 3.0], [0.5, 0.25]])


def test_scores_by_problem_type() -> None:
    session = Engine(TableExecutor(TABLE))
    single, multi, plain = (
        classify(session, _head("a", "b", problem_type=kind), [[3, 2]], None)[0]
        for kind in (None, "multi_label_classification", "regression")
    )
    assert single.label == multi.label == plain.label == "b"
    assert single.scores == pytest.approx({"a": 1 / (1 + np.exp(4)), "b": 1 / (1 + np.exp(-4))})
    assert multi.scores == pytest.approx({"a": 1 / (1 + np.e), "b": 1 / (1 + np.exp(-3))})
    assert plain.scores == {"a": -1.0, "b": 3.0}
    one = Engine(TableExecutor(np.array([[0.0], [-800.0]])))
    assert classify(one, _head("only"), [[0]], None)[0].score == 0.5
    assert classify(one, _head("only"), [[1]], None)[0].score == 0.0


def test_more_texts_than_rows_run_in_micro_batches() -> None:
    session = Engine(TableExecutor(TABLE))
    found = classify(session, _head("a", "b"), [[1], [2, 2, 2, 2, 2, 2, 1], [2]], None)
    assert [each.label for each in found] == ["a", "a", "b"]
    assert session.executor.resets == 2
    with pytest.raises(LimitError, match="65 tokens"):
        classify(session, _head("a", "b"), [[1] * 65], None)
    with pytest.raises(RequestError, match="no tokens"):
        classify(session, _head("a", "b"), [[]], None)


@pytest.mark.parametrize(
    ("ids", "pad", "expected"), [([5, 6, 0, 0], 0, 1), ([5, 0, 6], 0, 2), ([5, 0], None, 1), ([0], 0, 0)]
)
def test_the_pooled_position(ids: list[int], pad: int | None, expected: int) -> None:
    assert pooled_position(np.array(ids), pad) == expected


def test_tags_and_their_runs() -> None:
    table = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]])
    encoding = Encoding((0, 2, 3, 1, 2, 2), ((0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)), (None, 0, 0, 0, 0, 0))
    head = _head("O", "B-X", "I-X")
    (tags,) = tag(Engine(TableExecutor(table)), head, ["abcde"], [encoding], merge=False)
    assert [each.label for each in tags] == ["B-X", "I-X", "O", "B-X", "B-X"]
    assert [each.text for each in tags] == list("abcde")
    (runs,) = tag(Engine(TableExecutor(table)), head, ["abcde"], [encoding], merge=True)
    assert [(run.label, run.text, run.token_ids) for run in runs] == [
        ("X", "ab", (2, 3)), ("X", "d", (2,)), ("X", "e", (2,)),
    ]  # fmt: skip
    assert merge_tags([], "") == []
    plain = [Tag("N", 1.0, "a", 0, 1, (1,)), Tag("N", 0.5, "b", 1, 2, (2,))]
    assert merge_tags(plain, "ab") == [Tag("N", 0.75, "ab", 0, 2, (1, 2))]


def _encode(question: str, context: str) -> Encoding:
    """A letter is its own token: a to d of the table."""
    texts = (None, *(0 for _ in question), *(1 for _ in context))
    spans = ((0, 0), *((i, i + 1) for i in range(len(question))), *((i, i + 1) for i in range(len(context))))
    return Encoding((0, *("abcd".index(sign) for sign in question + context)), spans, texts)


def test_the_answer_is_the_likeliest_span_of_the_context() -> None:
    # b starts an answer, c ends one; both in the question too, which must not be chosen
    session = Engine(TableExecutor(np.array([[0, 0], [8, 0], [0, 8], [0, 0]])))
    found = answer(session, _encode, "bc", "aabdca", max_answer_tokens=3, window_overlap=2)
    assert (found.text, found.begin, found.end) == ("bdc", 2, 5)
    assert found.score == pytest.approx((np.exp(8) / (np.exp(8) + 5)) ** 2)
    short = answer(session, _encode, "bc", "aabdca", max_answer_tokens=2, window_overlap=2)
    assert short.text in ("bd", "dc", "b", "c")


def test_a_long_context_is_read_in_windows() -> None:
    session = Engine(TableExecutor(np.array([[0, 0], [8, 0], [0, 8], [0, 0]]), max_seq_len=10))
    context = "a" * 20 + "bdc" + "a" * 20
    found = answer(session, _encode, "d", context, max_answer_tokens=5, window_overlap=4)
    assert (found.text, found.begin) == ("bdc", 20)
    with pytest.raises(LimitError, match="a question that leaves 2 of 10 tokens"):
        answer(session, _encode, "d" * 7, context, max_answer_tokens=5, window_overlap=4)


@pytest.mark.parametrize(
    ("question", "context", "limits"), [("", "a", (5, 1)), ("a", " ", (5, 1)), ("a", "b", (0, 1)), ("a", "b", (5, -1))]
)
def test_refused_questions(question: str, context: str, limits: tuple[int, int]) -> None:
    with pytest.raises(RequestError):
        answer(
            Engine(TableExecutor(TABLE)), _encode, question, context,
            max_answer_tokens=limits[0], window_overlap=limits[1],
        )  # fmt: skip


def test_decisions_that_flip() -> None:
    expected = np.array([[1.0, 2.0], [3.0, 0.0]], np.float32)
    found = np.array([[2.5, 2.0], [3.0, 0.0]], np.float32)
    for task in ("sequence-classification", "token-classification"):
        assert decision_flips(task, found, expected).tolist() == [1.0]  # type: ignore[union-attr]
        assert decision_flips(task, expected, expected).size == 0  # type: ignore[union-attr]
    # answers: the start's position stays, the end's is the same
    assert decision_flips("question-answering", found, expected).size == 0  # type: ignore[union-attr]
    assert decision_flips("question-answering", found[::-1], expected).tolist() == [2.0, 2.0]  # type: ignore[union-attr]
    assert decision_flips("feature-extraction", found, expected) is None
    assert decision_flips("sequence-classification", found[:, :1], expected[:, :1]) is None
