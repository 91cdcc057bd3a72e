"""Bad folders, safetensors headers and indexes: each has one error that says where, what, and what to do."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.bad_inputs import Case, check, parametrize
from support.raw_checkpoints import TINY, raw_file, tensors_of, write_checkpoint, write_config, write_index, write_shard

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
OTHER = "model-00002-of-00002.safetensors"


def header(**entries: Any) -> Any:
    """Replaces model.safetensors by a header with these entries; `_data` counts the bytes behind it."""
    data = entries.pop("_data", 0)
    return lambda folder: raw_file(folder / SINGLE, entries, data)


def raw(content: bytes, data: int = 0, length: int | None = None) -> Any:
    return lambda folder: raw_file(folder / SINGLE, content, data, length=length)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def only(*names: str) -> Any:
    """A folder with config.json and these empty files."""

    def break_it(folder: Path) -> None:
        write_config(folder, TINY)
        for name in names:
            (folder / name).write_bytes(b"")

    return break_it


def with_file(name: str, text: str | bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def sharded(change: Any) -> Any:
    """A good checkpoint of two shards, then `change(folder, weight_map)`; the changed map is written."""

    def break_it(folder: Path) -> None:
        (folder / SINGLE).unlink()
        write_checkpoint(folder, shards=2)
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
        change(folder, weight_map)
        write_index(folder, weight_map)

    return break_it


def index_text(text: str | bytes) -> Any:
    def break_it(folder: Path) -> None:
        (folder / SINGLE).unlink()
        with_file(INDEX, text)(folder)

    return break_it


def truncate(name: str, by: int) -> Any:
    return lambda folder: os.truncate(folder / name, os.path.getsize(folder / name) - by)


def link_loop(name: str) -> Any:
    def break_it(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("loop")
        (folder / "loop").symlink_to(name)

    return break_it


def dangling(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to(folder / "gone")


def pipe(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)


def folder_loop(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


def folder_as_weights(folder: Path) -> None:
    (folder / SINGLE).unlink()
    (folder / SINGLE).mkdir()


def two_kinds(folder: Path) -> None:
    write_checkpoint(folder, shards=2)
    write_shard(folder / SINGLE, tensors_of(TINY))


def in_two_shards(folder: Path, weight_map: dict[str, str]) -> None:
    tensors = tensors_of(TINY)
    own = {name for name, file in weight_map.items() if file == SHARD}
    write_shard(folder / SHARD, {n: tensors[n] for n in [*sorted(own), "model.norm.weight"]})


def moved(folder: Path, weight_map: dict[str, str]) -> None:
    weight_map["model.norm.weight"] = SHARD


def invented(folder: Path, weight_map: dict[str, str]) -> None:
    weight_map["model.layers.7.mlp.up_proj.weight"] = OTHER


def unlisted(folder: Path, weight_map: dict[str, str]) -> None:
    del weight_map["model.norm.weight"]


def lost_shard(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / OTHER).unlink()


def escaping(name: Any) -> Any:
    def change(folder: Path, weight_map: dict[str, Any]) -> None:
        weight_map["model.norm.weight"] = name

    return change


DUPLICATE = b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": 1}'

FOLDERS = [
    Case("missing folder", lambda f: f / "gone", "gone", "no such file or folder", "folder", "check the path"),
    Case("a file", lambda f: f / SINGLE, SINGLE, "a file", "folder (config.json", "folder that holds it"),
    Case("null byte", lambda f: Path(f"{f}\0x"), "x", "null byte", "folder", "check the path"),
    Case("name too long", lambda f: f / ("x" * 300), "xxx", "too long", "folder", "check the path"),
    Case("folder link loop", folder_loop, "a", "loop of symbolic links", "folder", "replace the link"),
    Case("under a file", lambda f: f / SINGLE / "x", SINGLE, "a file where a folder", "folder", "check the path"),
    Case("empty folder", lambda f: None, "", "an empty folder", "config.json", "download", empty=True),
    Case("no config", lambda f: (f / "config.json").unlink(), "", "no config.json", "config.json", "download"),
    Case("config alone", only(), "", "no weights", SINGLE, "download", empty=True),
    Case(".bin", only("pytorch_model.bin"), "", ".bin", SINGLE, "safe_serialization=True", empty=True),
    Case(".pt", only("consolidated.pt"), "", ".pt", SINGLE, "save_pretrained", empty=True),
    Case(".nemo", only("model.nemo"), "", ".nemo", SINGLE, "convert_nemotron_nemo_to_hf", empty=True),
    Case(".nemo without config", with_file("model.nemo", b""), "", "NeMo", "config.json", "convert", empty=True),
    Case(".gguf", only("model.Q4.gguf"), "", "GGUF", SINGLE, "made from", empty=True),
    Case("adapter", only("adapter_config.json"), "", "adapter", SINGLE, "merge", empty=True),
    Case("shards without index", only(SHARD), "", SHARD, INDEX, "download the index", empty=True),
    Case("a bundle", with_file("manifest.json", "{}"), "", "a bundle", "config.json", "built from", empty=True),
    Case("weights link loop", link_loop(SINGLE), SINGLE, "loop of symbolic links", "safetensors", "replace the link"),
    Case("config link loop", link_loop("config.json"), "config.json", "loop of symbolic links", "", "replace the link"),
    Case("dangling link", dangling, SINGLE, "target is missing", "safetensors", "download"),
    Case("a pipe", pipe, SINGLE, "pipe", "safetensors", "file itself"),
    Case("a folder as weights", folder_as_weights, SINGLE, "a folder", "safetensors", "file itself"),
    Case("generation eos", with_file("generation_config.json", '{"eos_token_id": "3"}'), "generation_config.json",
         "eos_token_id = '3'", "token id", "tokenizer gives"),
    Case("generation json", with_file("generation_config.json", "{"), "generation_config.json", "broken JSON",
         "JSON object", "again"),
]  # fmt: skip

HEADERS = [
    Case("empty file", with_file(SINGLE, b""), SINGLE, "0 bytes", "8 length bytes", "again"),
    Case("four bytes", with_file(SINGLE, b"abcd"), SINGLE, "4 bytes", "8 length bytes", "again"),
    Case("header of 0", raw(b"{}", length=0), "header", "0 bytes", "at least", "again"),
    Case("header of 2^60", raw(b"{}", length=1 << 60), "header", str(1 << 60), "at most 100000000", "again"),
    Case("header of 2^64-1", raw(b"{}", length=(1 << 64) - 1), "header", str((1 << 64) - 1), "at most", "again"),
    Case("header past the end", raw(b"{}", length=3), "header", "truncated", "at most 2 bytes", "again"),
    Case("a pickle", with_file(SINGLE, b"PK\x03\x04" + bytes(60)), "header", "header of", "at most", "again"),
    Case("not an object", raw(b"[1, 2]"), "header", "b'['", "{", "again"),
    Case("broken json", raw(b'{"a": '), "header", "broken JSON", "JSON object", "again"),
    Case("not utf-8", raw(b'{"\xff": 1}'), "header", "not UTF-8", "JSON object", "again"),
    Case("nested deeply", raw(b'{"a":' + b"[" * 200_000), "header", "nested too deeply", "JSON object", "again"),
    Case("huge integer", raw(b'{"a":' + b"1" * 9999 + b"}"), "header", "broken JSON", "JSON object", "again"),
    Case("nan", raw(b'{"a": NaN}'), "header", "NaN", "JSON object", "again"),
    Case("duplicate tensor", raw(DUPLICATE), "header", "'a' twice", "JSON object", "again"),
    Case("entry is a number", header(a=1), "tensor 'a'", "entry 1", "dtype, shape", "again"),
    Case("no dtype", header(a={"shape": [], "data_offsets": [0, 0]}), "tensor 'a'", "no dtype", "dtype", "again"),
    Case("unknown key", header(a={**entry(), "x": 1}), "tensor 'a'", "'x'", "data_offsets", "again"),
    Case("unknown dtype", header(a=entry("F128")), "tensor 'a'", "'F128'", "BF16", "again"),
    Case("dtype a list", header(a=entry(["F32"])), "tensor 'a'", "['F32']", "BF16", "again"),
    Case("shape a number", header(a=entry(shape=2)), "tensor 'a'", "shape 2", "non-negative", "again"),
    Case("shape negative", header(a=entry(shape=[-2])), "tensor 'a'", "[-2]", "non-negative", "again"),
    Case("shape a bool", header(a=entry(shape=[True])), "tensor 'a'", "[True]", "integers", "again"),
    Case("shape a float", header(a=entry(shape=[2.0])), "tensor 'a'", "[2.0]", "integers", "again"),
    Case("shape of many sizes", header(a=entry(shape=[9] * 1000)), "tensor 'a'", "shape [9,", "integers", "again"),
    Case("shape past 2^63", header(a=entry(shape=[1 << 63])), "tensor 'a'", str(1 << 63), "integers", "again"),
    Case("one offset", header(a=entry(offsets=[0])), "tensor 'a'", "[0]", "two", "again"),
    Case("offsets strings", header(a=entry(offsets=["0", "8"])), "tensor 'a'", "['0', '8']", "two", "again"),
    Case("offset negative", header(a=entry(offsets=[-8, 0])), "tensor 'a'", "[-8, 0]", "non-negative", "again"),
    Case("begin past end", header(a=entry(offsets=[8, 0])), "tensor 'a'", "[8, 0]", "begin <= end", "again"),
    Case("wrong length", header(a=entry(offsets=[0, 9]), _data=9), "tensor 'a'", "9 bytes", "8 bytes for F32", "again"),
    Case("overlap", header(a=entry(), b=entry(offsets=[4, 12]), _data=12), "tensor 'b'", "inside 'a'", "overlap",
         "again"),
    Case("the same bytes twice", header(a=entry(), b=entry(), _data=8), "tensor 'b'", "inside 'a'", "overlap", "again"),
    Case("hole", header(a=entry(), b=entry(offsets=[12, 20]), _data=20), "tensor 'b'", "hole of 4", "holes", "again"),
    Case("hole at the start", header(a=entry(offsets=[4, 12]), _data=12), "tensor 'a'", "hole of 4", "holes", "again"),
    Case("truncated", truncate(SINGLE, 1), SINGLE, "truncated", "bytes", "download"),
    Case("truncated to the header", header(a=entry()), SINGLE, "truncated: 'a'", "bytes", "download"),
    Case("trailing bytes", header(a=entry(), _data=11), SINGLE, "3 bytes after", "a file of", "again"),
    Case("metadata a list", header(__metadata__=[]), "header", "__metadata__ = []", "strings", "again"),
    Case("metadata of numbers", header(__metadata__={"a": 1}), "header", "__metadata__", "strings", "again"),
]  # fmt: skip

INDEXES = [
    Case("index and single file", two_kinds, "", "both", "one of the two", "move the other"),
    Case("missing shard", sharded(lost_shard), INDEX, OTHER, "every shard", "download the missing"),
    Case("moved tensor", sharded(moved), INDEX, "'model.norm.weight' (in", "in its shard", "one revision"),
    Case("invented tensor", sharded(invented), INDEX, "layers.7", "in its shard", "one revision"),
    Case("unlisted tensor", sharded(unlisted), INDEX, "does not list", "in the index", "one revision"),
    Case("in two shards", sharded(in_two_shards), "", "two shards: 'model.norm.weight'", "one shard", "left over"),
    Case("path traversal", sharded(escaping("../x.safetensors")), "norm.weight", "'../x.safe", "without folders",
         "again"),
    Case("absolute path", sharded(escaping("/etc/x.safetensors")), "norm.weight", "/etc", "without folders", "again"),
    Case("backslash", sharded(escaping("..\\x.safetensors")), "norm.weight", "..", "without folders", "again"),
    Case("another suffix", sharded(escaping("x.bin")), "norm.weight", "x.bin", ".safetensors", "again"),
    Case("file a number", sharded(escaping(3)), "norm.weight", "3", "a file name", "again"),
    Case("weight_map a list", index_text('{"weight_map": []}'), INDEX, "weight_map = []", "object", "again"),
    Case("weight_map empty", index_text('{"weight_map": {}}'), INDEX, "empty", "object", "again"),
    Case("no weight_map", index_text("{}"), INDEX, "no weight_map", "weight_map", "again"),
    Case("index broken", index_text("{"), INDEX, "broken JSON", "JSON object", "again"),
    Case("index a list", index_text("[]"), INDEX, "list", "JSON object", "again"),
    Case("index twice", index_text('{"weight_map": {"a": "x", "a": "y"}}'), INDEX, "'a' twice", "JSON object", "again"),
    Case("index not utf-8", index_text(b"\xff\xfe"), INDEX, "not UTF-8", "JSON object", "again"),
]  # fmt: skip


@parametrize([*FOLDERS, *HEADERS, *INDEXES])
def test_refused_with_where_found_expected_remedy(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path / "checkpoint")


@pytest.mark.parametrize("closed", ["", SINGLE, "config.json"])
def test_without_permission(closed: str) -> None:
    user = os.geteuid()

    def break_it(folder: Path) -> None:
        (folder / closed).chmod(0)
        if user == 0:
            os.seteuid(65534)  # root may read anything: open as nobody

    # Not in tmp_path, whose parents are closed to others.
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        folder = Path(parent) / "checkpoint"
        try:
            check(Case("", break_it, closed or "checkpoint", "no permission", "", "chmod"), folder)
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_a_length_field_is_little_endian(tmp_path: Path) -> None:
    from nemotron_export.checkpoint import read_header

    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    assert read_header(tmp_path / "x.safetensors").tensors == {}
