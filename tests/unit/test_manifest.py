"""The manifest is read strictly."""

from __future__ import annotations

import copy
import json

import pytest
from nemotron_errors import BundleError
from nemotron_runtime.bundle.manifest import FORMAT, Manifest
from support.bundles import make_bundle


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    return json.loads((make_bundle(tmp_path_factory.mktemp("manifest")) / "manifest.json").read_text())


def changed(document, path, value):
    result = copy.deepcopy(document)
    *parents, last = path.split(".")
    place = result
    for name in parents:
        place = place[int(name) if name.isdigit() else name]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return result


def test_round_trip(document):
    manifest = Manifest.from_dict(document)
    assert json.loads(manifest.to_json()) == document
    assert next(iter(manifest.to_dict())) == "format"
    assert manifest.model.eos_token_ids == (3,)
    assert manifest.limits.max_seq_len == 256


def test_a_newer_format_is_refused_with_what_to_do(document):
    with pytest.raises(BundleError, match="update nemotron-export"):
        Manifest.from_dict({**document, "format": FORMAT + 1, "something": "new"})


def test_an_older_format_is_refused_with_the_version_and_what_to_do(document):
    found = r"bundle format 1; expected format 2, which nemotron-export 0\.2 reads.*build the bundle again"
    with pytest.raises(BundleError, match=found):
        Manifest.from_dict({**document, "format": 1})


@pytest.mark.parametrize("value", [0, "2", None, True, [2]])
def test_no_other_format(document, value):
    with pytest.raises(BundleError, match="format"):
        Manifest.from_dict({**document, "format": value})


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("extra", 1, "unknown keys extra"),
        ("limits.max_tokens", 1, r"limits.*unknown keys max_tokens"),
        ("target", KeyError, "no target"),
        ("limits.max_batch", KeyError, r"limits.*no max_batch"),
        ("limits.max_batch", "8", r"limits\.max_batch.*str '8'"),
        ("limits.max_batch", True, "bool True"),
        ("limits.max_batch", 0, "max_batch.*at least 1"),
        ("limits.prefill_chunk", 1.5, "float"),
        ("session.executor", "magic", "onnxruntime"),
        ("session.prefill_rows", "some", "'all'"),
        ("session.inputs", "input_ids", "str"),
        ("session.graph", "other.onnx", "no record of other.onnx"),
        ("parity.state", "fine", "passed"),
        ("parity", None, "an object"),
        ("weights.mode", "nowhere", "reference"),
        ("weights.chunk_bytes", 0, "at least 1"),
        ("weights.files.0.chunks", [], "0 chunk digests"),
        ("weights.files.0.name", "../secret", "inside the folder"),
        ("weights.files.0.name", "/etc/passwd", "inside the folder"),
        ("model.eos_token_ids", [3, "4"], r"eos_token_ids\[1\]"),
        ("model.bos_token_id", "2", "bos_token_id"),
        ("scan.done", 1, "bool"),
    ],
)
def test_a_wrong_key_is_named(document, path, value, says):
    with pytest.raises(BundleError, match=says):
        Manifest.from_dict(changed(document, path, value))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_no_manifest_at_all(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Manifest.read(tmp_path)


def test_missing_folder_and_missing_manifest(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Manifest.read(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        Manifest.read(tmp_path)
