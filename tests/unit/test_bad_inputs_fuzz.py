"""Fuzzing of headers, indexes and configs: whatever the bytes, it opens or it is refused; nothing is written."""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from nemotron_errors import NemotronError
from support.raw_checkpoints import TINY, raw_file, write_checkpoint, write_config

from nemotron_export.checkpoint import TASKS, Checkpoint, CheckpointError, read_header

FUZZ = settings(max_examples=150, deadline=None)

numbers = st.one_of(
    st.integers(-2, 50), st.integers(), st.sampled_from([0, 1, 2**31, 2**53 + 1, 2**63, 2**64 - 1, 10**30])
)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@contextmanager
def checkpoint_folder(shards: int = 1) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), shards=shards)
        yield Path(folder)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def opens_or_is_refused(folder: Path, task: str = "causal-lm") -> Checkpoint | None:
    """Opens; any error but the project's own fails the test, and so does a change in the folder."""
    before = snapshot(folder)
    opened, refused = None, None
    try:
        opened = Checkpoint.open(folder, task=task)
    except NemotronError as error:
        refused = error
    assert snapshot(folder) == before
    assert refused is None or (refused.where and len(str(refused)) < 4000)
    return opened


entries = st.one_of(
    values,
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "BOOL", "F4", "F8_E4M3"]) | values,
            "shape": st.lists(st.integers(0, 5), max_size=3) | values,
            "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | values,
        },
        optional={"extra": values},
    ),
)


@FUZZ
@given(st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), entries, max_size=4), st.integers(0, 64))
def test_headers(header: dict[str, Any], data: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        raw_file(path, header, bytes(data))
        try:
            found = read_header(path)
        except CheckpointError:
            return
        # What is accepted here, the safetensors library accepts too, with the same names.
        with safetensors.safe_open(path, "np") as theirs:
            assert set(theirs.keys()) == set(found.tensors)


@FUZZ
@given(st.data())
def test_tiled_headers_are_accepted_as_the_library_does(data: st.DataObject) -> None:
    shapes = data.draw(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5))
    shift = data.draw(st.sampled_from([0, 0, 0, -4, 4]))
    header, at = {}, 0
    for number, shape in enumerate(shapes):
        count = 4
        for size in shape:
            count *= size
        header[f"t{number}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + count]}
        at += count
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        raw_file(path, header, bytes(max(0, at + shift)))
        try:
            accepted = set(read_header(path).tensors) == set(header)
        except CheckpointError:
            accepted = False
        try:
            with safetensors.safe_open(path, "np"):
                theirs = True
        except safetensors.SafetensorError:
            theirs = False
        assert accepted is theirs


@FUZZ
@given(st.binary(max_size=80), st.integers(0, 2**64 - 1) | st.integers(0, 90))
def test_any_bytes_as_weights(content: bytes, length: int) -> None:
    with checkpoint_folder() as folder:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + content)
        assert opens_or_is_refused(folder) is None


@FUZZ
@given(st.data())
def test_flipped_bytes_of_a_good_file(data: st.DataObject) -> None:
    with checkpoint_folder() as folder:
        path = folder / data.draw(st.sampled_from(["model.safetensors", "config.json"]))
        content = bytearray(path.read_bytes())
        limit = min(len(content), 3000) - 1  # the header, mostly
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, limit))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
        opens_or_is_refused(folder)


KEYS = [*TINY, "rope_scaling", "rope_parameters", "rope_theta", "tie_word_embeddings", "eos_token_id", "pad_token_id",
        "norm_eps", "mlp_bias", "kv_channels", "torch_dtype", "quantization_config"]  # fmt: skip


@FUZZ
@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), values, max_size=4)
    | st.dictionaries(st.sampled_from(["id2label", "num_labels"]), values),
    st.sampled_from(list(TASKS)),
)
def test_configs(changes: dict[str, Any], task: str) -> None:
    with checkpoint_folder() as folder:
        write_config(folder, {**TINY, **changes})
        opens_or_is_refused(folder, task)


@FUZZ
@given(values, st.booleans())
def test_any_json_as_index_or_config(document: Any, index: bool) -> None:
    with checkpoint_folder() as folder:
        if index:
            (folder / "model.safetensors").unlink()
        name = "model.safetensors.index.json" if index else "config.json"
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
        assert opens_or_is_refused(folder) is None


@FUZZ
@given(st.data())
def test_indexes(data: st.DataObject) -> None:
    with checkpoint_folder(shards=2) as folder:
        path = folder / "model.safetensors.index.json"
        weight_map = json.loads(path.read_text())["weight_map"]
        good = dict(weight_map)
        files = st.sampled_from([*set(good.values()), "config.json", "gone.safetensors", "../x", "", "."]) | values
        names = st.sampled_from(list(good)) | st.text(max_size=5)
        weight_map.update(data.draw(st.dictionaries(names, files, max_size=3)))
        path.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
        # A map that tells another story than the shards is never accepted.
        assert (opens_or_is_refused(folder) is not None) is (weight_map == good)
