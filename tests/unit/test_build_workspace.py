"""A bundle appears whole or not at all; what stood there before survives a failure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from nemotron_errors import BundleError, ResourceError

from nemotron_export.building.weight_files import place_weights
from nemotron_export.files.workspace import staging


def _bundle(path: Path, text: str = "old") -> Path:
    path.mkdir()
    (path / "manifest.json").write_text(text)
    return path


def test_a_finished_block_makes_the_output_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "deep" / "bundle"
    with staging(output) as folder:
        assert folder.parent == output.parent
        assert not output.exists()
        (folder / "manifest.json").write_text("new")
    assert (output / "manifest.json").read_text() == "new"
    assert os.listdir(output.parent) == ["bundle"]
    other = tmp_path / "ordinary"
    other.mkdir()
    assert output.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def write_half() -> None:
        with staging(tmp_path / "a" / "b" / "bundle") as folder:
            (folder / "half").write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == []


def test_an_existing_bundle_is_refused_without_overwrite(tmp_path: Path) -> None:
    output = _bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="--overwrite"), staging(output):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["bundle"]


def test_overwrite_replaces_a_bundle_only_at_the_end(tmp_path: Path) -> None:
    output = _bundle(tmp_path / "bundle")
    with staging(output, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
        assert (output / "manifest.json").read_text() == "old"
    assert (output / "manifest.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_failed_overwrite_keeps_the_old_bundle(tmp_path: Path) -> None:
    output = _bundle(tmp_path / "bundle")
    with pytest.raises(KeyboardInterrupt), staging(output, overwrite=True):
        raise KeyboardInterrupt
    assert (output / "manifest.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_failing_rename_puts_the_old_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _bundle(tmp_path / "bundle")
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if ".partial-" in str(source):
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="no"), staging(output, overwrite=True):
        pass
    assert (output / "manifest.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize(("moved", "text"), [(1, "old"), (2, "new")])
def test_an_interrupt_between_the_renames_leaves_one_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int, text: str
) -> None:
    output = _bundle(tmp_path / "bundle")
    real, calls = os.rename, []

    def rename(source: Path, target: Path) -> None:
        real(source, target)
        calls.append(target)
        if len(calls) == moved:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt), staging(output, overwrite=True) as folder:
        (folder / "manifest.json").write_text("new")
    assert (output / "manifest.json").read_text() == text
    assert os.listdir(tmp_path) == ["bundle"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.png").write_text("cat")
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(_bundle(tmp_path / "bundle"))
    for output in (folder, file, link):
        with pytest.raises(BundleError, match="choose another --output"), staging(output, overwrite=overwrite):
            pytest.fail("the block must not run")
    assert (folder / "cat.png").read_text() == "cat"
    assert file.read_text() == "text"


def test_an_empty_folder_may_become_the_bundle(tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    output.mkdir()
    with staging(output) as folder:
        (folder / "manifest.json").write_text("new")
    assert (output / "manifest.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_parent_that_is_a_file_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ResourceError, match="choose another --output"), staging(tmp_path / "file" / "bundle"):
        pytest.fail("the block must not run")


def test_weights_stay_are_linked_or_copied(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint"
    source.mkdir()
    shard = source / "model.safetensors"
    shard.write_bytes(bytes(range(256)) * 1000)
    seen: list[tuple[int, int]] = []
    for mode in ("reference", "link", "copy"):
        bundle = tmp_path / mode
        bundle.mkdir()
        directory = place_weights([shard], bundle, mode, lambda done, total: seen.append((done, total)))
        if mode == "reference":
            assert directory == str(source)
            assert os.listdir(bundle) == []
        else:
            assert directory == "weights"
            assert (bundle / "weights" / shard.name).read_bytes() == shard.read_bytes()
            assert (bundle / "weights" / shard.name).samefile(shard) == (mode == "link")
    assert seen[-1] == (256_000, 256_000)


def test_a_symbolic_link_is_hard_linked_as_the_file_it_stands_for(tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b"weights")
    shard = tmp_path / "model.safetensors"
    shard.symlink_to(blob)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    place_weights([shard], bundle, "link")
    assert not (bundle / "weights" / shard.name).is_symlink()
    assert (bundle / "weights" / shard.name).samefile(blob)


def test_a_link_that_cannot_be_made_names_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: str, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    shard = tmp_path / "model.safetensors"
    shard.write_bytes(b"weights")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    with pytest.raises(BundleError, match="--weights copy"):
        place_weights([shard], bundle, "link")
