"""What must not go well: interrupted builds, changed files, numbers that differ."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nemotron_runtime
import numpy as np
import pytest
import torch
from nemotron_errors import BundleError, NemotronError, RequestError, TokenizerError
from nemotron_runtime.bundle.folder import file_record, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from nemotron_runtime.checks.reference import Reference
from safetensors import safe_open
from safetensors.numpy import save_file
from support.checkpoints import run_blocked, write_checkpoint
from typer.testing import CliRunner

from nemotron_export import build, check_parity
from nemotron_export.cli import app
from nemotron_export.parity.reference import reference_for
from nemotron_export.parity.verdict import ParityFailedError

SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 128}
LIMITS = {"max_seq_len": 64, "max_batch": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("failures") / "checkpoint"
    torch.set_num_threads(2)
    write_checkpoint(path, torch.bfloat16, **SMALL)
    return path


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> Path:
    return build(checkpoint, checkpoint.parent / "bundle", weights="copy", **LIMITS)


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A bundle of one's own, with its weights in it."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def flip_byte(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_a_copied_bundle_ships(bundle: Path, original: Path) -> None:
    with nemotron_runtime.load(bundle) as model:
        result = model.generate([5, 6, 7], max_new_tokens=8, ignore_eos=True)
    with nemotron_runtime.load(original) as model:
        assert result.token_ids == model.generate([5, 6, 7], max_new_tokens=8, ignore_eos=True).token_ids
    assert check_parity(bundle).passed


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("model.onnx", 0.5),
        ("tokenizer.json", 0.5),
        ("reference.safetensors", 0.9),
        ("config.json", 0.5),
        ("weights/model.safetensors", 0.001),
        ("weights/model.safetensors", 0.7),
    ],
)
def test_one_changed_byte_is_refused(bundle: Path, name: str, at: float) -> None:
    flip_byte(bundle / name, at)
    with pytest.raises(BundleError, match=Path(name).name):
        nemotron_runtime.load(bundle)
    for command in (("verify", bundle), ("generate", bundle, "x")):
        result = run(*command)
        assert result.exit_code == 2
        assert Path(name).name in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "weights/model.safetensors", "manifest.json"])
def test_a_missing_or_cut_file_is_refused(bundle: Path, name: str) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(BundleError, match=path.name):
        nemotron_runtime.load(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=path.name):
        nemotron_runtime.load(bundle)


def test_a_changed_weight_is_named_by_its_chunk(bundle: Path) -> None:
    flip_byte(bundle / "weights" / "model.safetensors", 0.7)
    with pytest.raises(BundleError, match=r"chunk 0 \(bytes 0 to"):
        nemotron_runtime.load(bundle)


def _tamper(bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Changes the reference as somebody would who also mends its hash."""
    path = bundle / "reference.safetensors"
    with safe_open(path, "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, path, metadata)
    manifest = Manifest.read(bundle)
    write_manifest(bundle, replace(manifest, files={**manifest.files, path.name: file_record(path)}))


def _shift_one_logit(tensors: dict[str, np.ndarray]) -> None:
    tensors["001/logits"][0, 7] += 0.05 * np.ptp(tensors["001/logits"])


def _change_a_greedy_token(tensors: dict[str, np.ndarray]) -> None:
    tensors["002/greedy"][-1] = (tensors["002/greedy"][-1] + 1) % 320


def _shift_a_step(tensors: dict[str, np.ndarray]) -> None:
    tensors["000/step_logits"][1] *= 1.01


@pytest.mark.parametrize("change", [_shift_one_logit, _change_a_greedy_token, _shift_a_step])
def test_numbers_that_differ_fail_with_a_table(bundle: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    _tamper(bundle, change)
    result = run_blocked("verify", bundle)
    assert result.returncode == 1
    assert "FAILED" in result.stdout
    assert "Traceback" not in result.stderr
    report = json.loads((bundle / "parity.json").read_text())
    assert report["passed"] is False
    assert sum(not row["passed"] for row in report["rows"]) >= 1
    with pytest.raises(BundleError, match="pending"):
        nemotron_runtime.load(bundle)
    nemotron_runtime.load(bundle, allow_unverified=True).close()
    # PyTorch is asked again, so a reference that was changed is found out
    repeated = run("parity", bundle, "--json")
    assert repeated.exit_code == 1
    failed = [row["check"] for row in json.loads(repeated.stdout)["rows"] if not row["passed"]]
    assert any("reference" in check for check in failed)


@pytest.fixture
def wrong_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a target that computes something else."""

    def wrong(*arguments: Any, **options: Any) -> Reference:
        made = reference_for(*arguments, **options)
        return replace(made, prompts=tuple(replace(prompt, logits=prompt.logits * 1.01) for prompt in made.prompts))

    monkeypatch.setattr("nemotron_export.building.pipeline.reference_for", wrong)


@pytest.mark.usefixtures("wrong_reference")
def test_a_build_whose_numbers_differ_keeps_nothing(checkpoint: Path, tmp_path: Path) -> None:
    result = run("build", checkpoint, "-o", tmp_path / "bundle", "--max-seq-len", "64")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "checks failed" in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("wrong_reference")
def test_a_build_whose_numbers_differ_is_kept_as_pending_when_asked(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityFailedError) as caught:
        build(checkpoint, tmp_path / "bundle", keep_failed=True, **LIMITS)
    assert not caught.value.report.passed
    assert "checks failed" in str(Manifest.read(tmp_path / "bundle").parity.reason)
    with pytest.raises(BundleError, match="pending"):
        nemotron_runtime.load(tmp_path / "bundle")


def test_a_bundle_without_parity_is_pending_until_parity_ran(checkpoint: Path, tmp_path: Path) -> None:
    path = build(checkpoint, tmp_path / "bundle", parity=False, scan=False, **LIMITS)
    manifest = Manifest.read(path)
    assert manifest.parity.state == "pending"
    assert "--no-parity" in str(manifest.parity.reason)
    assert manifest.scan.done is False
    generated, verified = run("generate", path, "x"), run("verify", path)
    assert run("generate", path, "x", "-n", "2", "--allow-unverified").exit_code == 0
    for refused in (generated, verified):
        assert refused.exit_code == 2
        assert f"nemotron-export parity {path}" in " ".join(refused.stderr.split())
    assert "reference.safetensors" in verified.stderr
    assert run("parity", path).exit_code == 0
    assert run("generate", path, "x", "-n", "2").exit_code == 0
    assert run("verify", path).exit_code == 0


def test_parity_with_another_checkpoint_is_refused(bundle: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "other", torch.float32, **SMALL)
    with pytest.raises(BundleError, match="another checkpoint"):
        check_parity(bundle, checkpoint=tmp_path / "other")


def test_overwriting(checkpoint: Path, bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="--overwrite"):
        build(checkpoint, bundle, **LIMITS)
    broken = checkpoint.parent / "broken"
    shutil.copytree(checkpoint, broken, dirs_exist_ok=True)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError):
        build(broken, bundle, overwrite=True, **LIMITS)
    assert (bundle / "manifest.json").read_bytes() == before
    build(checkpoint, bundle, overwrite=True, **LIMITS)
    assert Manifest.read(bundle).weights.mode == "reference"
    assert not (bundle / "weights").exists()
    assert os.listdir(bundle.parent) == ["bundle"]


def test_a_checkpoint_inside_the_output_is_refused(bundle: Path) -> None:
    with pytest.raises(BundleError, match="inside the output"):
        build(bundle / "weights", bundle, overwrite=True)
    assert (bundle / "weights" / "model.safetensors").exists()


def test_linked_weights_are_a_checkpoint_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    path = build(checkpoint, tmp_path / "bundle", weights="link", **LIMITS)
    assert (path / "weights" / "model.safetensors").samefile(checkpoint / "model.safetensors")
    assert run("inspect", path / "weights").exit_code == 0
    assert check_parity(path).passed


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--target", "tpu"], "tpu"),
        (["--dtype", "bfloat16"], "bfloat16"),
        (["--weights", "moved"], "moved"),
        (["--max-seq-len", "99999"], "max_position_embeddings"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    checkpoint: Path, tmp_path: Path, arguments: list[str], match: str
) -> None:
    result = run("build", checkpoint, "-o", tmp_path / "bundle", *arguments)
    assert result.exit_code == 2
    assert match in result.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_nothing(checkpoint: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [
        sys.executable,
        "-m",
        "nemotron_export",
        "build",
        str(checkpoint),
        "-o",
        str(tmp_path / "out" / "bundle"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [name for name in os.listdir(tmp_path / "out") if ".partial-" in name]
    child.send_signal(number)
    _, err = child.communicate(timeout=120)
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_errors_of_a_build_leave_nothing(checkpoint: Path, tmp_path: Path) -> None:
    def cancel(stage: str, done: int, total: int) -> None:
        if stage == "trace and lower":
            raise RequestError("a cancel", "patience", "try again")

    with pytest.raises(NemotronError, match="patience"):
        build(checkpoint, tmp_path / "bundle", progress=cancel, **LIMITS)
    assert os.listdir(tmp_path) == []


def test_inspect_tells_what_is_there(checkpoint: Path, bundle: Path) -> None:
    found = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert found["Tensors"]["count"] == 2 * 10 + 4
    assert found["Tensors"]["bytes by dtype"] == {"BF16": found["Checkpoint"]["weight bytes"]}
    assert found["Config"]["head_dim"] == 32
    found = json.loads(run("inspect", bundle, "--json").stdout)
    assert found["Limits"]["max_seq_len"] == 64
    assert found["Graph"]["ops"]["com.microsoft.GroupQueryAttention"] == 2
    assert found["Parity"]["state"] == "passed"
    assert "head_dim" in run("inspect", bundle).stdout
    assert "not shown" in run_blocked("inspect", bundle).stdout


def test_the_generation_configs_eos_goes_before_the_configs(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, source)
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    path = build(source, tmp_path / "bundle", parity=False, scan=False, **LIMITS)
    assert Manifest.read(path).model.eos_token_ids == (3, 7)


def test_a_hub_id_is_resolved(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def resolve(path_or_id: str, revision: str | None = None) -> Path:
        asked.append((path_or_id, revision))
        return checkpoint

    monkeypatch.setattr("nemotron_export.checkpoint.Checkpoint.resolve", resolve)
    result = run("build", "somebody/nemotron", "--revision", "v1", "-o", tmp_path / "bundle", "--no-parity")
    assert result.exit_code == 0, result.output
    assert asked == [("somebody/nemotron", "v1")]
    assert Manifest.read(tmp_path / "bundle").weights.directory == str(checkpoint)


def test_parity_without_a_session_is_refused_before_any_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        result = run("build", checkpoint, "-o", tmp_path / "bundle")
    assert result.exit_code == 3
    assert 'pip install "nemotron-export[ort]"' in result.stderr
    assert os.listdir(tmp_path) == []
