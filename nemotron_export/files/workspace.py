"""A bundle appears whole or not at all: it is written next to its place and renamed at the end."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemotron_errors import BundleError, ResourceError

__all__ = ["check_output", "staging"]

_MANIFEST = "manifest.json"


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuses an output that exists, unless it is empty, or a bundle that may be overwritten.

    Raises:
        BundleError: naming the output and what would make it acceptable.
    """
    if not os.path.lexists(output):
        return
    where = str(output)
    if output.is_symlink() or not output.is_dir():
        raise BundleError("a file or a link there", "a new name or a folder", "choose another --output", where=where)
    if not any(output.iterdir()):
        return
    if not (output / _MANIFEST).is_file():
        raise BundleError("a folder that is no bundle", "a new name", "choose another --output", where=where)
    if not overwrite:
        raise BundleError(
            "a bundle there already", "a new name", "choose another --output, or --overwrite", where=where
        )


@contextmanager
def staging(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder next to `output`, which takes its place when the block ends well.

    However else the block ends, Ctrl-C included, the temporary folder and the parents made for it are removed and what
    stood at `output` before is untouched.

    Raises:
        BundleError: as :func:`check_output`.
        ResourceError: where the folder cannot be made.
    """
    output = Path(os.path.abspath(output))
    check_output(output, overwrite=overwrite)
    made = [parent for parent in output.parents if not parent.exists()]
    temporary = _sibling(output, "partial")
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700)
        except OSError as error:
            raise ResourceError(
                f"no way to make a folder ({error.strerror})", "a parent folder that can be written",
                "choose another --output", where=str(output.parent),
            ) from None  # fmt: skip
        yield temporary
        # it was private; a bundle has the permissions that any new folder would have
        temporary.chmod(0o777 & ~_umask())
        _swap_in(temporary, output, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break  # never made, or in use
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sibling(output: Path, what: str) -> Path:
    """A new name next to the output, chosen before it exists: whatever interrupts then knows what to remove."""
    return output.parent / f".{output.name}.{what}-{secrets.token_hex(4)}"


def _swap_in(temporary: Path, output: Path, *, overwrite: bool) -> None:
    check_output(output, overwrite=overwrite)
    if not output.exists():
        os.rename(temporary, output)
        return
    old = _sibling(output, "replaced")
    try:
        os.rename(output, old)
        os.rename(temporary, output)
    except BaseException:
        if old.exists() and not output.exists():
            os.rename(old, output)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
