"""What identifies a small file of a bundle."""

from __future__ import annotations

import hashlib
from pathlib import Path

from nemotron_runtime.bundle.manifest import FileRecord

__all__ = ["file_record"]


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)
