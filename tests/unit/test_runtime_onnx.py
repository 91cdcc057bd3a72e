"""The ONNX Runtime session against the same model in numpy; the cache is written in place."""

from __future__ import annotations

import nemotron_runtime
import numpy as np
import psutil
import pytest
from nemotron_errors import BundleError, LimitError, MissingDependencyError, RequestError
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.onnxruntime import cpu as module
from nemotron_runtime.executors.onnxruntime.cpu import OnnxRuntimeExecutor
from support.bundles import TinyModel, make_bundle

TINY = TinyModel(positions=256)


@pytest.fixture(scope="module", params=["fused", "portable"])
def session(request, tmp_path_factory):
    bundle = nemotron_runtime.Bundle.open(make_bundle(tmp_path_factory.mktemp(request.param), kind=request.param))
    with Engine(OnnxRuntimeExecutor(bundle, threads=1)) as session:
        yield session


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.ptp(expected), rtol=0)


def random_ids(seed, n):
    return np.random.default_rng(seed).integers(0, TINY.V, n)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 100])
def test_logits_of_every_position_also_in_chunks(session, n):
    ids = random_ids(n, n)
    logits = session.logits(ids)
    assert logits.dtype == np.float32
    assert logits.shape == (n, TINY.V)
    close(logits, TINY.logits(ids))


def test_ragged_rows_prefill_and_decode_with_a_frozen_one(session):
    prompts = [random_ids(10, 40), random_ids(11, 1), random_ids(12, 17)]
    session.reset(3, 60)
    close(session.prefill(prompts), [TINY.logits(p)[-1] for p in prompts])
    histories = [list(p) for p in prompts]
    for step in range(12):
        advance = np.array([True, step < 4, True])
        tokens = random_ids(100 + step, 3)
        for history, token, go in zip(histories, tokens, advance, strict=True):
            history += [token] * bool(go)
        logits = session.decode(tokens, advance).logits
        for logits_V, b in zip(logits, np.flatnonzero(advance), strict=True):
            close(logits_V, TINY.logits(histories[b])[-1])
    assert session.lengths_B.tolist() == [52, 5, 29]
    # the frozen row goes on as if nothing had been written behind its end
    close(session.decode([5, 6, 7]).logits[1], TINY.logits([*histories[1], 6])[-1])


def test_prefill_behind_a_past(session):
    first, second = [random_ids(1, 5), random_ids(2, 20)], [random_ids(3, 30), random_ids(4, 2)]
    session.reset(2, 60)
    session.prefill(first)
    close(session.prefill(second), [TINY.logits(np.concatenate(pair))[-1] for pair in zip(first, second, strict=True)])


def test_a_full_cache_refuses_and_the_last_slot_is_usable(session):
    ids = random_ids(5, 255)
    session.reset(1, 256)
    session.prefill([ids])
    close(session.decode([9]).logits[0], TINY.logits([*ids, 9])[-1])
    with pytest.raises(LimitError, match="full sequence of 256"):
        session.decode([1])
    with pytest.raises(LimitError, match=r"257 tokens.*256"):
        session.reset(1, 257)


def test_caches_are_outputs_and_inputs_at_once_and_stay_where_they_are(session):
    session.reset(2, 50)
    addresses = {name: cache.ctypes.data for name, cache in session.executor._buffers.items()}
    session.prefill([random_ids(1, 20), random_ids(2, 9)])
    session.decode([1, 2])
    session.decode([3, 4])
    outputs = session.executor._step.binding.get_outputs()
    bound = {output.data_ptr() for output in outputs}
    assert set(addresses.values()) <= bound
    assert {name: cache.ctypes.data for name, cache in session.executor._buffers.items()} == addresses
    for cache_BGTD in session.executor._buffers.values():
        # 22 and 11 tokens are there, and nothing behind them but zeros or padding
        assert (np.abs(cache_BGTD[0, :, :22]).sum(-1) > 0).all()
        assert (cache_BGTD[0, :, 22:] == 0).all()


def test_no_copy_of_a_cache_per_step(tmp_path):
    # Caches that count as nearly full but whose pages nobody touched: a copy would make them resident.
    slots = 1 << 18
    path = make_bundle(tmp_path, max_seq_len=slots, model=TinyModel(positions=slots))

    def resident_growth(steps):
        session._lengths_B[:] = slots - 100
        before = psutil.Process().memory_info().rss
        for step in range(steps):
            session.decode([step, step + 1])
        return psutil.Process().memory_info().rss - before

    with Engine(OnnxRuntimeExecutor(nemotron_runtime.Bundle.open(path), threads=1)) as session:
        session.reset(2, slots)
        (cache_BGTD, _) = session.executor._buffers.values()
        assert cache_BGTD.nbytes == 128 << 20
        assert resident_growth(4) < 64 << 20
        # the same with outputs elsewhere, to show that a copy would be seen
        elsewhere = {name: np.zeros(cache.shape, cache.dtype) for name, cache in session.executor._buffers.items()}
        for name, cache in elsewhere.items():
            where = ("cpu", 0, np.float32, cache.shape, cache.ctypes.data)
            session.executor._step.binding.bind_output(name.replace("_cache.", "_cache_out."), *where)
        assert resident_growth(1) > 200 << 20


def test_step_reuses_its_binding_and_buffers(session):
    session.reset(1, 20)
    session.prefill([[1, 2]])
    first = session.decode([3]).logits
    step = session.executor._step
    second = session.decode([4]).logits
    assert session.executor._step is step
    assert np.shares_memory(first, second)
    session.reset(1, 20)
    assert session.executor._step is None


def test_reset_starts_with_clean_rows(session):
    session.reset(1, 30)
    session.prefill([random_ids(1, 30)])
    session.reset(1, 30)
    assert session.lengths_B.tolist() == [0]
    close(session.prefill([[7, 8]])[0], TINY.logits([7, 8])[-1])


@pytest.mark.parametrize("ids", [[], [TINY.V], [-1], [[1]], [0.5]])
def test_bad_ids_are_refused(session, ids):
    with pytest.raises(RequestError):
        session.logits(ids)


def test_missing_onnxruntime_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    bundle = nemotron_runtime.Bundle.open(make_bundle(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"pip install nemotron-export\[ort\]"):
        OnnxRuntimeExecutor(bundle)


def test_a_provider_that_is_not_there_is_not_replaced(tmp_path):
    bundle = nemotron_runtime.Bundle.open(make_bundle(tmp_path))
    object.__setattr__(bundle.manifest.session, "provider", "NoSuchExecutionProvider")
    with pytest.raises(MissingDependencyError, match="NoSuchExecutionProvider"):
        OnnxRuntimeExecutor(bundle)


@pytest.mark.parametrize(
    ("key", "value"), [("inputs", ("input_ids",)), ("outputs", ("logits",)), ("cache_dtype", "int8")]
)
def test_a_graph_that_is_not_what_the_manifest_says(tmp_path, key, value):
    bundle = nemotron_runtime.Bundle.open(make_bundle(tmp_path))
    object.__setattr__(bundle.manifest.session, key, value)
    with pytest.raises(BundleError):
        OnnxRuntimeExecutor(bundle)


def test_a_broken_graph_is_a_bundle_error(tmp_path):
    bundle = nemotron_runtime.Bundle.open(make_bundle(tmp_path))
    bundle.file("model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="fails to load"):
        OnnxRuntimeExecutor(bundle)


def test_close_twice(tmp_path):
    session = module.OnnxRuntimeExecutor(nemotron_runtime.Bundle.open(make_bundle(tmp_path)))
    session.close()
    session.close()
