"""Weights are mapped where they are and checked chunk by chunk."""

from __future__ import annotations

import logging

import nemotron_runtime
import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.bundle.weights import checked_chunks, map_weights
from support.bundles import make_bundle


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        value = file.read(1)[0]
        file.seek(at)
        file.write(bytes([value ^ 1]))


def test_maps_the_file_itself(tmp_path):
    bundle = Bundle.open(make_bundle(tmp_path))
    views = map_weights(bundle)
    assert views["model.safetensors"][:] == (tmp_path / "checkpoint" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("at", [4096 * 3, 4096 * 4 - 1, -1])
def test_a_changed_byte_names_file_chunk_and_range(tmp_path, at):
    path = make_bundle(tmp_path)
    shard = tmp_path / "checkpoint" / "model.safetensors"
    size = shard.stat().st_size
    position = at % size
    flip(shard, position)
    number = position // 4096
    bundle = Bundle.open(path)
    end = min(4096 * (number + 1), size)
    with pytest.raises(BundleError, match=f"chunk {number} .bytes {4096 * number} to {end}") as caught:
        map_weights(bundle)
    assert caught.value.where == str(shard)
    with pytest.raises(BundleError, match=f"chunk {number}"):
        nemotron_runtime.load(path)
    assert map_weights(bundle, verify_chunks=False)


def test_without_a_scan_only_size_and_header_are_known_and_that_is_said(tmp_path, caplog):
    path = make_bundle(tmp_path, scan=False)
    flip(tmp_path / "checkpoint" / "model.safetensors", -1 + (tmp_path / "checkpoint/model.safetensors").stat().st_size)
    with caplog.at_level(logging.WARNING):
        map_weights(Bundle.open(path))
    assert "without a scan" in caplog.text


def test_an_error_in_the_body_comes_first_and_leaves_no_thread_waiting(tmp_path):
    bundle = Bundle.open(make_bundle(tmp_path, chunk_bytes=64))
    views = map_weights(bundle, verify_chunks=False)
    with pytest.raises(KeyError), checked_chunks(bundle, views):
        raise KeyError("body")


def test_an_unknown_digest_is_refused(tmp_path):
    bundle = Bundle.open(make_bundle(tmp_path))
    object.__setattr__(bundle.manifest.weights, "algorithm", "crc0")
    with pytest.raises(BundleError, match="crc0"):
        map_weights(bundle)
