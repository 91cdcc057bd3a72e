"""Where a bundle's weights are: referred to, hard-linked or copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nemotron_errors import BundleError, RequestError, ResourceError
from nemotron_graphs.targets import Target

__all__ = ["EMBEDDED", "WEIGHTS_FOLDER", "WEIGHT_MODES", "choose_weight_mode", "place_weights"]

# the engines hold them
EMBEDDED = "embedded"
# where a bundle that holds its weights has them
WEIGHTS_FOLDER = "weights"
WEIGHT_MODES = ("reference", "link", "copy")
_COPY_CHUNK = 16 << 20
_COMPANIONS = ("config.json", "model.safetensors.index.json")


def choose_weight_mode(mode: str | None, target: Target, embed_weights: bool = False) -> str:
    """What `--weights` says, or the target's default; :data:`EMBEDDED` where the engines hold them.

    Raises:
        RequestError: for a mode that does not exist, or one that the target cannot take.
    """
    if embed_weights:
        if mode is not None:
            expected = "one of the two: with --embed-weights the bundle needs no weights file"
            raise RequestError(
                f"--weights {mode} and --embed-weights", expected, "leave one of them out", where="--weights"
            )
        return EMBEDDED
    if mode is None:
        return target.weight_modes[0]
    if mode not in WEIGHT_MODES:
        raise RequestError(f"'{mode}'", f"one of {', '.join(WEIGHT_MODES)}", "choose one of them", where="--weights")
    if mode not in target.weight_modes:
        raise RequestError(
            f"{mode}", f"{' or '.join(target.weight_modes)} for target {target.name}, whose folder is opened by path",
            f"use --weights {target.weight_modes[0]} (hard links: no second copy), or leave the option out",
            where="--weights",
        )  # fmt: skip
    return mode


def place_weights(
    shards: Sequence[Path], bundle: Path, mode: str, on_bytes: Callable[[int, int], None] = lambda done, total: None
) -> str:
    """Puts the shards where `mode` says.

    Args:
        shards: the checkpoint's weight files.
        bundle: the bundle's folder; link and copy fill its folder `weights`.
        mode: one of :data:`WEIGHT_MODES`, or :data:`EMBEDDED`, which leaves them where they are.
        on_bytes: told (bytes copied, bytes to copy).

    Returns:
        What the manifest's weights.directory holds: an absolute path, or "weights".

    Raises:
        BundleError: for a link that cannot be made.
        ResourceError: where the disk fills up while copying.
    """
    assert mode in (*WEIGHT_MODES, EMBEDDED)
    if mode in ("reference", EMBEDDED):
        return str(shards[0].parent.absolute())
    folder = bundle / WEIGHTS_FOLDER
    folder.mkdir()
    # with these the folder is a checkpoint of its own, which `parity` opens
    for name in _COMPANIONS:
        if (shards[0].parent / name).is_file():
            shutil.copyfile(shards[0].parent / name, folder / name)
    total, done = sum(shard.stat().st_size for shard in shards), 0
    for shard in shards:
        target = folder / shard.name
        if mode == "link":
            _link(shard, target)
        else:
            for count in _copy(shard, target):
                done += count
                on_bytes(done, total)
    return folder.name


def _link(shard: Path, target: Path) -> None:
    try:
        # a hub's cache holds symbolic links; the file itself is what must stay
        os.link(os.path.realpath(shard), target)
    except OSError as error:
        raise BundleError(
            f"a hard link that cannot be made ({error.strerror})",
            "the bundle on the weights' own file system",
            "use --weights copy, or an --output on that file system",
            where=str(shard),
        ) from None


def _copy(shard: Path, target: Path) -> Iterator[int]:
    """Yields the size of each part once it is written."""
    try:
        with open(shard, "rb") as source, open(target, "wb") as sink:
            while part := source.read(_COPY_CHUNK):
                sink.write(part)
                yield len(part)
    except OSError as error:
        raise ResourceError(
            f"copying stopped ({error.strerror})", "room for a copy of the weights",
            "free some space, or use --weights reference or link", where=str(target),
        ) from None  # fmt: skip
