"""The other heads, end to end: checkpoints that transformers wrote → bundles → transformers' numbers."""

from __future__ import annotations

import json
from typing import Any

import nemotron_runtime
import numpy as np
import pytest
import torch
import transformers
from nemotron_errors import CheckpointError, RequestError
from support.checkpoints import run_blocked, write_checkpoint

from nemotron_export import build, check_parity

CLASSES = {
    "sequence-classification": transformers.NemotronForSequenceClassification,
    "token-classification": transformers.NemotronForTokenClassification,
    "question-answering": transformers.NemotronForQuestionAnswering,
    "feature-extraction": transformers.NemotronModel,
}
LABELS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
TEXT = "Die Größe der Welt: 世界, and so on."
CASES = [(task, target) for task in CLASSES for target in ("onnx", "ort-cpu")]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(task, bundle, transformers' model in fp32)."""
    task, target = request.param
    folder = tmp_path_factory.mktemp("tasks")
    torch.set_num_threads(2)
    changes: dict[str, Any] = LABELS if task.endswith("-classification") else {}
    oracle = write_checkpoint(folder / "checkpoint", torch.bfloat16, cls=CLASSES[task], **changes)
    path = build(folder / "checkpoint", folder / "bundle", target=target, max_batch=2, prefill_chunk=500)
    return task, path, oracle


@torch.inference_mode()
def _oracle(oracle: Any, ids: list[int]) -> np.ndarray:
    """[C] for a sequence, [S, C] otherwise; transformers' own outputs."""
    out = oracle(torch.tensor([ids]))
    if hasattr(out, "start_logits"):
        return torch.stack((out.start_logits, out.end_logits), -1)[0].numpy()
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state)[0].numpy()


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and bool(
        np.abs(found - expected).max() <= 1e-4 * (expected.max() - expected.min())
    )


def test_the_architecture_chose_the_task_and_parity_passed(built: Any) -> None:
    task, path, _ = built
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["task"] == task
    assert manifest["parity"]["state"] == "passed"
    checks = {row["check"] for row in json.loads((path / "parity.json").read_text())["rows"]}
    assert {"prefill", "padded rows, prefill and decode", "prefill in chunks of 400"} <= checks
    assert ("decisions differing" in checks) == (task != "feature-extraction")
    assert not any("greedy" in check for check in checks)
    assert check_parity(path).passed


def test_outputs_are_those_of_transformers(built: Any) -> None:
    task, path, oracle = built
    lengths = (1100, 3, 40)
    prompts = [np.random.default_rng(n).integers(4, 320, n).tolist() for n in lengths]
    with nemotron_runtime.load(path) as model:
        if task == "sequence-classification":
            # several rows of different lengths, in turns of max_batch
            for ids, found in zip(prompts, model.classify(prompts), strict=True):
                assert _close(found.logits, _oracle(oracle, ids))
        else:
            for ids in prompts:
                assert _close(model.logits(ids), _oracle(oracle, ids))


def test_the_calls_of_the_task(built: Any) -> None:
    task, path, oracle = built
    with nemotron_runtime.load(path) as model:
        ids = model.tokenizer.encode(TEXT)
        with pytest.raises(RequestError, match=f"a bundle for {task}; expected one for causal-lm"):
            model.generate(TEXT)
        if task == "sequence-classification":
            expected = torch.softmax(torch.from_numpy(_oracle(oracle, ids)), -1).numpy()
            found = model.classify(TEXT)
            assert list(found.scores) == ["O", "B-PER", "I-PER"]
            np.testing.assert_allclose(list(found.scores.values()), expected, atol=1e-5)
            assert (found.label, found.score) == (list(found.scores)[expected.argmax()], max(found.scores.values()))
            # padding behind the text does not count, as in transformers
            assert _close(model.classify([*ids, 0, 0]).logits, _oracle(oracle, [*ids, 0, 0]))
        elif task == "token-classification":
            expected = torch.softmax(torch.from_numpy(_oracle(oracle, ids)), -1).numpy()[1:]
            tags = model.tag(TEXT)
            assert [tag.label for tag in tags] == [LABELS["id2label"][int(i)] for i in expected.argmax(-1)]
            np.testing.assert_allclose([tag.score for tag in tags], expected.max(-1), atol=1e-5)
            assert all(tag.text == TEXT[tag.begin : tag.end] for tag in tags)
            assert "".join(dict.fromkeys(f"{tag.begin}:{tag.text}" for tag in tags)).count(":") >= len(TEXT)
        elif task == "question-answering":
            _check_answer(model, oracle)
        else:
            expected = _oracle(oracle, ids)
            assert _close(model.embed(TEXT, pooling="none"), expected)
            assert _close(model.embed(TEXT), expected[-1])
            mean, normal = model.embed(TEXT, pooling="mean"), model.embed(TEXT, pooling="mean", normalize=True)
            np.testing.assert_allclose(mean, expected.mean(0), atol=1e-4)
            np.testing.assert_allclose(normal, mean / np.linalg.norm(mean), rtol=1e-5)


def _check_answer(model: Any, oracle: Any) -> None:
    question, context = "Where?", " on the hill, by the old mill "
    encoding = model.tokenizer.encode_spans(question, context)
    logits = _oracle(oracle, list(encoding.ids))
    inside = np.array([text == 1 for text in encoding.texts])
    start, end = (np.where(inside, np.exp(column) / np.exp(column[inside]).sum(), 0) for column in logits.T)
    scores = np.outer(start, end)
    allowed = np.triu(np.ones_like(scores)) - np.triu(np.ones_like(scores), 15)
    first, last = np.unravel_index((scores * allowed).argmax(), scores.shape)
    found = model.answer(question, context)
    assert found.score == pytest.approx(float(scores[first, last]), rel=1e-3)
    assert found.text == context[encoding.spans[first][0] : encoding.spans[last][1]].strip()
    assert context[found.begin : found.end] == found.text
    long = model.answer("Who?", "x" * 3000, window_overlap=64)
    assert 0 <= long.begin < long.end <= 3000


def test_the_commands_need_no_torch(built: Any) -> None:
    task, path, _ = built
    command: dict[str, tuple[str, ...]] = {
        "sequence-classification": ("classify", str(path), TEXT, "--json"),
        "token-classification": ("tag", str(path), TEXT, "--json"),
        "question-answering": ("answer", str(path), "Where?", "--context", TEXT, "--json"),
        "feature-extraction": ("embed", str(path), TEXT),
    }
    done = run_blocked(*command[task])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    with nemotron_runtime.load(path) as model:
        if task == "sequence-classification":
            assert found["label"] == model.classify(TEXT).label
        elif task == "token-classification":
            assert [tag["label"] for tag in found] == [tag.label for tag in model.tag(TEXT)]
        elif task == "question-answering":
            assert found["text"] == model.answer("Where?", TEXT).text
        else:
            assert found["shape"] == [96]
            np.testing.assert_allclose(found["values"], model.embed(TEXT), rtol=1e-6)
    wrong = run_blocked("generate", path, "Hello")
    assert wrong.returncode == 2
    assert "build with --task causal-lm" in " ".join(wrong.stderr.split())


def test_the_backbone_of_a_language_model(tmp_path: Any) -> None:
    oracle = write_checkpoint(tmp_path / "checkpoint", torch.float32)
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        build(tmp_path / "checkpoint", tmp_path / "no", task="sequence-classification")
    path = build(tmp_path / "checkpoint", tmp_path / "bundle", task="feature-extraction")
    ids = np.random.default_rng(0).integers(4, 320, 50).tolist()
    with torch.inference_mode():
        expected = oracle.model(torch.tensor([ids])).last_hidden_state[0].numpy()
    with nemotron_runtime.load(path) as model:
        assert _close(model.embed(ids, pooling="none"), expected)
