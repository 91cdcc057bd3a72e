"""build --target tensorrt on a GPU: a tiny bundle passes, engines come and go, broken ones are refused."""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import Bundle, file_record, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.cuda import Device
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.engine.generation import GenerationParams, generate
from nemotron_runtime.executors.open import open_executor
from support.gpu_memory import memory_of_this_process
from support.gpu_models import write_random

from nemotron_export.building import build
from nemotron_export.building import tensorrt as building
from nemotron_export.parity.verdict import verify_bundle
from nemotron_export.tensorrt.timing_cache import TimingCacheFile

pytest.importorskip("tensorrt")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="engines are built on an NVIDIA GPU")

# what one load may leave in CUDA's own pools; a leak of twenty loads is above it
SLACK = 64 << 20
LIMITS = {"max_seq_len": 1536, "max_batch": 7, "prefill_chunk": 512}


CONFIG = {
    "hidden_size": 96, "intermediate_size": 208, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "partial_rotary_factor": 0.5, "max_position_embeddings": 2048,
}  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("build")
    write_random(folder / "checkpoint", "bfloat16", projections=0.25, **CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "default_cache_folder", lambda: cache)
        return build(folder / "checkpoint", folder / "bundle", target="tensorrt", **LIMITS)


def copied(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "bundle"))


def test_the_bundle_passes_its_own_check_and_the_next(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.parity.state == "passed"
    record = manifest.tensorrt
    assert record is not None
    with Device() as device:
        assert (record.architecture, record.gpu) == (device.architecture, device.name)
    report = verify_bundle(bundle)
    assert report.passed, report.to_dict()


def test_weights_inside_the_engines_give_the_same_tokens_without_a_weights_file(
    bundle: Path, cache: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(Manifest.read(bundle).weights.directory, tmp_path / "checkpoint"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "default_cache_folder", lambda: cache)
        embedded = build(checkpoint, tmp_path / "bundle", target="tensorrt", embed_weights=True, **LIMITS)
    manifest, apart = Manifest.read(embedded), Manifest.read(bundle)
    assert manifest.parity.state == "passed"
    assert manifest.tensorrt is not None
    assert apart.tensorrt is not None
    assert (manifest.tensorrt.embedded, manifest.tensorrt.weights) == (True, ())
    for name in (manifest.tensorrt.prefill_engine, manifest.tensorrt.decode_engine):
        # by less than the weights: their inputs take room in the other, and TensorRT may choose smaller kernels here
        assert manifest.files[name].size > apart.files[name].size
    # the proof that they are inside
    shutil.rmtree(checkpoint)
    assert verify_bundle(embedded).passed
    params = GenerationParams(max_new_tokens=64, min_new_tokens=64)
    prompts = [[2, *range(9, 40)], [2, 7], [2, *range(100, 300)]]
    tokens, logits = [], []
    for path in (bundle, embedded):
        with Engine(open_executor(Bundle.open(path))) as session:
            # one token is a decode step: the same kernels of ours in both bundles, so the same bits
            found = generate(session, [[2], [7], [9]], params)
            tokens.append([each.token_ids for each in found])
            session.reset(len(prompts), 300)
            logits.append(session.prefill(prompts))
    assert tokens[0] == tokens[1]
    # TensorRT may multiply by a constant in another order than by an input
    assert np.abs(logits[0] - logits[1]).max() < 0.02 * np.ptp(logits[0])


def test_measurements_are_kept_for_the_next_build(bundle: Path, cache: Path, tmp_path: Path) -> None:
    (file,) = cache.iterdir()
    record = Manifest.read(bundle).tensorrt
    assert record is not None
    timing = TimingCacheFile(cache, record.version, record.gpu, record.driver)
    assert timing.path == file
    assert timing.read()
    file.write_bytes(b"\0" * 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "default_cache_folder", lambda: cache)
        checkpoint = Manifest.read(bundle).weights.directory
        again = build(checkpoint, tmp_path / "again", target="tensorrt", parity=False, **LIMITS)
    assert Manifest.read(again).tensorrt is not None
    assert timing.read()


def test_an_engine_is_loaded_and_dropped_twenty_times_without_a_leak(bundle: Path) -> None:
    used: list[int] = []
    # so that the driver keeps the process's context between sessions
    with Device():
        for _ in range(20):
            with Engine(open_executor(Bundle.open(bundle))) as session:
                session.reset(2, 600)
                session.prefill([[2, 9, 11], [2, 7]])
                session.decode([5, 6])
                assert memory_of_this_process() > session.executor.weights.uploaded > 0
            gc.collect()
            used.append(memory_of_this_process())
    # the first loads fill CUDA's pools
    assert max(used[3:]) - used[2] <= SLACK, used


def test_an_engine_that_changed_is_refused(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path)
    manifest = Manifest.read(broken)
    assert manifest.tensorrt is not None
    name = manifest.tensorrt.decode_engine
    engine = broken / name
    data = bytearray(engine.read_bytes())
    data[: len(data) // 2] = bytes(len(data) // 2)
    engine.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        Bundle.open(broken)
    files = {**manifest.files, name: file_record(engine)}
    write_manifest(broken, replace(manifest, files=files))
    # a file that is what its record says, and no engine
    with pytest.raises(BundleError, match="refuses"):
        open_executor(Bundle.open(broken))


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"version": "10.5.0"}, r"expected TensorRT 10\.5\.0"), ({"architecture": "sm_75"}, "a GPU of sm_75")],
)
def test_another_version_or_gpu_than_the_manifests_is_refused(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    other = copied(bundle, tmp_path)
    manifest = Manifest.read(other)
    assert manifest.tensorrt is not None
    write_manifest(other, replace(manifest, tensorrt=replace(manifest.tensorrt, **changes)))
    with pytest.raises(BundleError, match=match) as caught:
        open_executor(Bundle.open(other))
    assert all((caught.value.found, caught.value.expected, caught.value.remedy))
