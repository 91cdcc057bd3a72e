"""What opening a bundle checks, and that its state changes atomically."""

from __future__ import annotations

import logging
import os
import shutil

import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import Bundle, set_parity_state, write_manifest
from nemotron_runtime.bundle.manifest import Manifest
from support.bundles import make_bundle


@pytest.fixture
def path(tmp_path):
    return make_bundle(tmp_path)


def test_open_gives_manifest_and_weights(path):
    bundle = Bundle.open(str(path))
    assert bundle.manifest.target == "ort-cpu"
    assert bundle.weights_directory == path.parent / "checkpoint"
    assert bundle.file("model.onnx").is_file()


@pytest.mark.parametrize("name", ["model.onnx", "reference.safetensors"])
def test_changed_and_missing_small_files(path, name):
    file = path / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256") as caught:
        Bundle.open(path)
    assert caught.value.where == str(file)
    file.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="bytes"):
        Bundle.open(path)
    file.unlink()
    with pytest.raises(BundleError, match="no such file"):
        Bundle.open(path)


def test_weights_that_moved_are_found_by_weights_dir(path, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "checkpoint", moved)
    with pytest.raises(BundleError, match="--weights-dir"):
        Bundle.open(path)
    assert Bundle.open(path, weights_dir=moved).weights_directory == moved
    (moved / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"no such file.*--weights-dir"):
        Bundle.open(path, weights_dir=moved)


def test_weights_inside_the_bundle(path, tmp_path):
    shutil.move(tmp_path / "checkpoint", path / "weights")
    document = Manifest.read(path).to_dict()
    document["weights"] |= {"mode": "copy", "directory": "weights"}
    write_manifest(path, Manifest.from_dict(document))
    shutil.move(path, tmp_path / "shipped")
    assert Bundle.open(tmp_path / "shipped").weights_directory == tmp_path / "shipped" / "weights"


def test_weights_of_another_size_or_header(path, tmp_path):
    shard = tmp_path / "checkpoint" / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[12] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BundleError, match="a header with SHA-256"):
        Bundle.open(path)
    shard.write_bytes(data + b"x")
    with pytest.raises(BundleError, match=f"{len(data) + 1} bytes.*{len(data)} bytes"):
        Bundle.open(path)


def test_pending_is_refused_unless_asked_for(tmp_path, caplog):
    path = make_bundle(tmp_path, parity="pending")
    with pytest.raises(BundleError, match=r"not checked yet.*nemotron-export verify.*--allow-unverified"):
        Bundle.open(path)
    with caplog.at_level(logging.WARNING):
        assert Bundle.open(path, allow_unverified=True).manifest.parity.state == "pending"
    assert "not proven" in caplog.text


def test_pending_without_a_reference_names_the_command_that_makes_one(tmp_path):
    path = make_bundle(tmp_path, parity="pending")
    document = Manifest.read(path).to_dict()
    del document["files"]["reference.safetensors"]
    write_manifest(path, Manifest.from_dict(document))
    with pytest.raises(BundleError, match=r"nemotron-export parity .*\[build\].*--allow-unverified") as caught:
        Bundle.open(path)
    assert "export verify" not in caught.value.remedy


def test_waived_opens_but_says_so(tmp_path, caplog):
    path = make_bundle(tmp_path, parity="waived")
    with caplog.at_level(logging.WARNING):
        assert Bundle.open(path).manifest.parity.state == "waived"
    assert "waived" in caplog.text


def test_passed_says_nothing(path, caplog):
    with caplog.at_level(logging.DEBUG):
        Bundle.open(path)
    assert caplog.text == ""


def test_parity_state_changes_and_nothing_else(path):
    before = Manifest.read(path)
    files = set(os.listdir(path))
    after = set_parity_state(path, "pending", reason="a test")
    assert Manifest.read(path) == after
    assert (after.parity.state, after.parity.reason) == ("pending", "a test")
    assert after.parity.checked is not None
    assert {**after.to_dict(), "parity": None} == {**before.to_dict(), "parity": None}
    assert set(os.listdir(path)) == files, "no temporary file stays"


def test_an_interrupted_write_leaves_the_old_manifest(path, monkeypatch):
    before, files = (path / "manifest.json").read_bytes(), set(os.listdir(path))

    def interrupted(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(BundleError, match="No space left"):
        set_parity_state(path, "waived")
    assert (path / "manifest.json").read_bytes() == before
    assert set(os.listdir(path)) == files
