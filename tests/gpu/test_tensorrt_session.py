"""TensorRT bundles of odd shapes on a GPU: no further from fp32 than eager PyTorch in the same dtype on the same GPU.

Shapes: B rows, S tokens, K positions, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.checks.reference import REFERENCE_FILE, read_reference
from nemotron_runtime.checks.rules import RMSE_RATIO, SHAPE_RATIO
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.executors.tensorrt.executor import TensorRTExecutor
from nemotron_runtime.sampling.device import GREEDY
from support.gpu_memory import memory_of_this_process
from support.gpu_models import COMMON, eager_logits, eager_pair, write_random

from nemotron_export.building import build
from nemotron_export.model import NemotronForCausalLM
from nemotron_export.parity.check import check_parity
from nemotron_export.tensorrt import shapes

pytest.importorskip("tensorrt")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="engines run on an NVIDIA GPU")

V, ROWS, CHUNK, SLOTS = COMMON["vocab_size"], 3, 512, 4096


@dataclass(frozen=True)
class Case:
    """A model: query heads, key/value heads, head_dim, share of it that is rotated."""

    heads: tuple[int, int, int, float]
    dtype: str
    hidden: int
    intermediate: int
    biases: bool


CASES = {
    "grouped-64-quarter-biases-bf16": Case((4, 2, 64, 0.25), "bfloat16", 192, 416, True),
    "multi-head-128-half-fp16": Case((3, 3, 128, 0.5), "float16", 256, 640, False),
    "grouped-192-whole-bf16": Case((6, 1, 192, 1.0), "bfloat16", 320, 1056, False),
}


@dataclass(frozen=True)
class Built:
    """A bundle, and PyTorch on the same GPU in fp32 and in the bundle's dtype."""

    bundle: Path
    checkpoint: Path
    session: Any
    models: tuple[NemotronForCausalLM, NemotronForCausalLM]


def write_checkpoint(folder: Path, case: Case) -> Path:
    query_heads, kv_heads, head_dim, rotated = case.heads
    return write_random(
        folder, case.dtype, max_position_embeddings=SLOTS, hidden_size=case.hidden, intermediate_size=case.intermediate,
        num_attention_heads=query_heads, num_key_value_heads=kv_heads, head_dim=head_dim,
        partial_rotary_factor=rotated, attention_bias=case.biases, mlp_bias=case.biases,
    )  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    case, folder = CASES[request.param], tmp_path_factory.mktemp("tensorrt")
    checkpoint = write_checkpoint(folder / "checkpoint", case)
    with pytest.MonkeyPatch.context() as patch:
        # a pass takes two of the three rows
        patch.setattr(shapes, "_PASS_TOKENS", 2 * CHUNK)
        bundle = build(
            checkpoint, folder / "bundle", target="tensorrt", dtype=case.dtype, max_seq_len=SLOTS, max_batch=ROWS,
            prefill_chunk=CHUNK, parity=False,
        )  # fmt: skip
    opened = Bundle.open(bundle, allow_unverified=True)
    with eager_pair(checkpoint, case.dtype) as models, Engine(open_executor(opened)) as session:
        yield Built(bundle, checkpoint, session, models)


def ids(count: int, seed: int = 1) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, V, count)


def rmse(pairs: Sequence[tuple[Any, Any]]) -> float:
    return float(np.sqrt(np.concatenate([np.square(np.subtract(a, b)).ravel() for a, b in pairs]).mean()))


def test_prefill_past_position_3000_whole_and_in_chunks(built: Built) -> None:
    prompt = ids(3300)
    exact, low = (eager_logits(model, prompt) for model in built.models)
    positions = np.unique(np.concatenate([np.arange(0, 300, 3), np.arange(1000, 3000, 29), np.arange(3000, 3300)]))
    own = rmse([(low[positions], exact[positions])])
    assert own > 0
    for chunk, bound in ((CHUNK, RMSE_RATIO), (131, SHAPE_RATIO)):
        built.session.reset(1, len(prompt))
        found = built.session.prefill_at([prompt], [positions], chunk=chunk)[0]
        assert rmse([(found, exact[positions])]) <= bound * own
        far = positions >= 3000
        assert rmse([(found[far], exact[positions][far])]) <= SHAPE_RATIO * own


def test_decode_of_rows_of_different_lengths(built: Built) -> None:
    lengths, steps = (700, 3100, 1), 24
    rows = [ids(n + steps, seed=n) for n in lengths]
    exact, low = ([eager_logits(model, row) for row in rows] for model in built.models)
    built.session.reset(ROWS, max(lengths) + steps)
    prefilled = built.session.prefill([row[:n] for row, n in zip(rows, lengths, strict=True)]).copy()
    found = [[logits_V] for logits_V in prefilled]
    for step in range(steps):
        tokens = [row[n + step] for row, n in zip(rows, lengths, strict=True)]
        for b, logits_V in enumerate(built.session.decode(tokens).logits):
            found[b].append(logits_V.copy())
    kept = [np.arange(n - 1, n + steps) for n in lengths]
    own = rmse([(w[k], a[k]) for w, a, k in zip(low, exact, kept, strict=True)])
    pairs = [(np.stack(f), a[k]) for f, a, k in zip(found, exact, kept, strict=True)]
    # few positions: their ratio varies more than that of a whole prompt
    assert rmse(pairs) <= SHAPE_RATIO * own
    for pair in pairs:
        assert rmse([pair]) <= SHAPE_RATIO * own


def test_prompts_around_padded_lengths_three_times_each(built: Built) -> None:
    lengths = (2, 15, 16, 17, 32, 33, 64, 65, 96, 97, 256, 257, 449, 511, 512, 513, 600)
    before = built.session.logits(ids(40))
    prompts = [ids(n, seed=n) for n in lengths]
    exact, low = ([eager_logits(model, prompt)[-1] for prompt in prompts] for model in built.models)
    own = rmse(list(zip(low, exact, strict=True)))
    # run, recorded, replayed; with other lengths between, and again in a cache that moved
    for slots in (1024, 2048):
        first: list[Any] = []
        for use in range(3):
            for n, prompt in enumerate(prompts):
                built.session.reset(1, slots)
                found = built.session.prefill([prompt])[0]
                if use == 0:
                    first.append(found)
                np.testing.assert_array_equal(found, first[n])
        assert rmse(list(zip(first, exact, strict=True))) <= SHAPE_RATIO * own
    # padding wrote behind the prompts; another request finds nothing of it
    np.testing.assert_array_equal(built.session.logits(ids(40)), before)


def test_steps_overwrite_padding_and_the_end_of_the_cache_takes_none(built: Built) -> None:
    # 65 tokens take a pass of 96, whose slots the steps fill; the last 36 have no room for 48
    first, stepped, last = 65, 140, SLOTS - 36
    whole = ids(SLOTS)
    exact, low = (eager_logits(model, whole) for model in built.models)
    positions = [first - 1, *range(first, stepped), last - 1, SLOTS - 1]
    for _ in range(2):
        built.session.reset(1, SLOTS)
        found = [built.session.prefill([whole[:first]])[0]]
        found += [built.session.decode(whole[at : at + 1]).logits[0].copy() for at in range(first, stepped)]
        found += [built.session.prefill([whole[stepped:last]])[0], built.session.prefill([whole[last:]])[0]]
        assert rmse([(np.stack(found), exact[positions])]) <= SHAPE_RATIO * rmse([(low[positions], exact[positions])])


def test_more_rows_than_a_pass_takes(built: Built) -> None:
    lengths, more = (500, 170, 3), (7, 400, 161)
    rows = [ids(n + m, seed=n) for n, m in zip(lengths, more, strict=True)]
    exact, low = ([eager_logits(model, row) for row in rows] for model in built.models)
    kept = [np.array([n - 1, n + m - 1]) for n, m in zip(lengths, more, strict=True)]
    own = rmse([(w[k], a[k]) for w, a, k in zip(low, exact, kept, strict=True)])
    for _ in range(3):
        built.session.reset(ROWS, 1000)
        first = built.session.prefill([row[:n] for row, n in zip(rows, lengths, strict=True)]).copy()
        second = built.session.prefill([row[n:] for row, n in zip(rows, lengths, strict=True)])
        pairs = [(np.stack(found), a[k]) for *found, a, k in zip(first, second, exact, kept, strict=True)]
        assert rmse(pairs) <= SHAPE_RATIO * own
    # one position per row, and many of them
    built.session.reset(ROWS, 1000)
    positions = [np.arange(0, len(row), 5) for row in rows]
    found = built.session.prefill_at(rows, positions)
    assert rmse([(f, a[p]) for f, a, p in zip(found, exact, positions, strict=True)]) <= SHAPE_RATIO * rmse(
        [(w[p], a[p]) for w, a, p in zip(low, exact, positions, strict=True)]
    )


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_chosen_on_the_gpu_are_the_argmax(built: Built, rows: int) -> None:
    prompts = [ids(50 + 7 * b, seed=b) for b in range(rows)]
    session = built.session
    session.reset(rows, 200)
    tokens = session.prefill(prompts).argmax(-1)
    fed, chosen = [tokens], []
    for _ in range(60):
        chosen.append(session.decode(fed[-1], sampling=GREEDY).tokens)
        fed.append(chosen[-1])
    session.reset(rows, 200)
    assert session.prefill(prompts).argmax(-1).tolist() == tokens.tolist()
    for given, expected in zip(fed, chosen, strict=False):
        assert session.decode(given).logits.argmax(-1).tolist() == expected.tolist()


def test_generation_is_the_same_with_and_without_logits(built: Built) -> None:
    prompts = [ids(30), ids(11)]
    greedy = generate(built.session, prompts, GenerationParams(max_new_tokens=48))
    # a token that never comes may not end the answer: the loop looks at every logit
    unused = next(token for token in range(V) if all(token not in g.token_ids for g in greedy))
    looked = GenerationParams(max_new_tokens=48, min_new_tokens=1, eos_token_ids=(unused,))
    assert not looked.is_argmax
    again = generate(built.session, prompts, looked)
    assert [g.token_ids for g in greedy] == [g.token_ids for g in again]
    ended = greedy[0].token_ids[20]
    cut = generate(built.session, prompts, GenerationParams(max_new_tokens=48, eos_token_ids=(ended,)))
    for whole, part in zip(greedy, cut, strict=True):
        assert whole.token_ids[: len(part.token_ids)] == part.token_ids
        assert len(part.token_ids) == (whole.token_ids.index(ended) + 1 if ended in whole.token_ids else 48)


def test_a_request_leaves_nothing_to_the_next(built: Built) -> None:
    first = built.session.logits(ids(40))
    # more rows and slots: caches move, graphs are made anew
    built.session.reset(ROWS, 2000)
    built.session.prefill([ids(1500), ids(3), ids(77)])
    for _ in range(3):
        built.session.decode(ids(ROWS), sampling=GREEDY)
    np.testing.assert_array_equal(built.session.logits(ids(40)), first)


def test_closing_frees_the_memory(built: Built) -> None:
    bundle = Bundle.open(built.bundle, allow_unverified=True)
    used = []
    for _ in range(20):
        with Engine(open_executor(bundle)) as session:
            assert isinstance(session, TensorRTExecutor)
            session.reset(2, 300)
            session.prefill([ids(20), ids(30)])
            session.decode(ids(2), sampling=GREEDY)
            assert session.executor.device_memory_peak > session.executor.weights.uploaded > 0
        gc.collect()
        used.append(memory_of_this_process())
    # what libraries load at their first use stays
    assert max(used[2:]) - min(used[2:]) <= 16 << 20, used


def test_the_judge_holds_it_against_a_reference_of_this_gpu(built: Built) -> None:
    report = check_parity(built.bundle)
    assert len(report.rows) > 8
    for row in report.rows:
        # a model this small is sampled at few positions: its ratios vary more than those of a real one
        assert row.passed or ("RMSE ratio" in row.check and row.measured <= SHAPE_RATIO), row
    judge = read_reference(built.bundle / REFERENCE_FILE).judge
    assert judge["model"].endswith(f", on {torch.cuda.get_device_name()}")
