"""Folders and hub ids: what is asked of huggingface_hub, and what its failures become."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub import errors
from nemotron_errors import CheckpointError, MissingDependencyError, NemotronError
from support.raw_checkpoints import write_checkpoint

from nemotron_export.checkpoint import Checkpoint

ID = "organisation/a-nemotron"


class ConnectFailedError(Exception):
    """As an HTTP client's own error, which is no OSError."""


ConnectFailedError.__module__ = "httpx"


def hub_error(kind: type[Exception]) -> Exception:
    return kind("403 Client\nError", response=mock.Mock(headers={}))  # type: ignore[call-arg]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        calls.append({"repo_id": repo_id, **options})
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return calls


def test_an_id_is_downloaded(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "snapshot")
    folder = Checkpoint.resolve(ID, revision="v1", token="secret", offline=True)
    assert Checkpoint.open(folder).dtype == "bfloat16"
    (call,) = asked
    assert (call["repo_id"], call["revision"], call["token"], call["local_files_only"]) == (ID, "v1", "secret", True)


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        ("config.json", True), ("generation_config.json", True), ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True), ("model.safetensors.index.json", True), ("tokenizer.model", True),
        ("tokenizer_config.json", True), ("special_tokens_map.json", True), ("LICENSE.md", True),
        ("pytorch_model.bin", False), ("model.nemo", False), ("original/model.safetensors", False), ("a.py", False),
    ],
)  # fmt: skip
def test_what_a_checkpoint_needs_is_downloaded(asked: list[dict[str, Any]], file: str, wanted: bool) -> None:
    Checkpoint.resolve(ID)

    def matches(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)

    assert (matches(asked[0]["allow_patterns"]) and not matches(asked[0]["ignore_patterns"])) is wanted


def test_a_folder_that_exists_is_never_an_id(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / ID).mkdir(parents=True)
    assert Checkpoint.resolve(ID) == Path(ID)
    assert Checkpoint.resolve(tmp_path / ID) == tmp_path / ID
    assert asked == []


@pytest.mark.parametrize(
    "path", ["name", "./organisation/name", "/organisation/name", "a/b/c", "../name", "a/", "a/b c", "x" * 300, "a\0b"]
)
def test_what_is_neither_is_refused(asked: list[dict[str, Any]], path: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.resolve(path)
    assert asked == []


def test_a_path_object_is_never_an_id(asked: list[dict[str, Any]]) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.resolve(Path(ID))
    assert asked == []


def test_a_revision_of_a_folder_is_refused(asked: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="revision 'v1' of a local folder"):
        Checkpoint.resolve(tmp_path, revision="v1")


@pytest.mark.parametrize(
    ("raised", "offline", "found", "remedy"),
    [
        (hub_error(errors.GatedRepoError), False, "gated", "accept its terms"),
        (hub_error(errors.RepositoryNotFoundError), False, "neither a folder", "spelling"),
        (hub_error(errors.RevisionNotFoundError), False, "no revision 'v1'", "branches"),
        (hub_error(errors.HfHubHTTPError), False, "403 Client Error", "later"),
        (errors.HFValidationError("bad"), False, "no valid hub id", "spelling"),
        (errors.LocalEntryNotFoundError("x"), True, "no complete copy", "download it once"),
        (errors.LocalEntryNotFoundError("x"), False, "no answer", "network"),
        (errors.OfflineModeIsEnabled("x"), False, "no complete copy", "download it once"),
        (ConnectionError("refused"), False, "refused", "network"),
        (OSError(28, "No space left on device"), False, "No space left", "disk"),
        (ConnectFailedError("proxy"), False, "proxy", "network"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_failures_have_a_remedy(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, offline: bool, found: str, remedy: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=raised))
    with pytest.raises(NemotronError) as caught:
        Checkpoint.resolve(ID, revision="v1", offline=offline)
    assert type(caught.value) is CheckpointError
    assert caught.value.where == ID
    assert found in caught.value.found
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_bug_is_not_told_as_a_failed_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=TypeError("a bug")))
    with pytest.raises(TypeError, match="a bug"):
        Checkpoint.resolve(ID)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"nemotron-export\[build\]"):
        Checkpoint.resolve(ID)
