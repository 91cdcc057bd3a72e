"""What TensorRT measured in earlier builds, kept between them."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from nemotron_errors import BundleError
from nemotron_runtime.bundle.folder import write_atomically

__all__ = ["TimingCacheFile", "default_cache_folder"]

_log = logging.getLogger(__name__)

_DIGEST_BYTES = hashlib.sha256().digest_size


def default_cache_folder() -> Path:
    """Where this project's caches are in the user's home."""
    return Path.home() / ".cache" / "nemotron-export"


class TimingCacheFile:
    """One file: a SHA-256, then the cache. Nothing that goes wrong with it stops a build.

    Args:
        folder: made where it does not exist.

    Attributes:
        path: the file; its name holds all that a measurement depends on.
    """

    def __init__(self, folder: Path, version: str, gpu: str, driver: str) -> None:
        parts = (re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-.") for part in (version, gpu, driver))
        self.path = folder / f"timing_{'_'.join(parts)}.cache"

    def read(self) -> bytes:
        """The cache; empty where there is none, or where it is broken, which is logged and removed."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            _log.warning("%s: the timing cache cannot be read (%s): kernels are measured anew", self.path, error)
            return b""
        digest, data = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(data).digest() == digest:
            return data
        self.discard("it is not what was written")
        return b""

    def discard(self, reason: str) -> None:
        """Removes a cache that is of no use."""
        _log.warning("%s: the timing cache is discarded (%s): kernels are measured anew", self.path, reason)
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("%s: cannot be removed (%s)", self.path, error)

    def write(self, data: bytes) -> None:
        """Replaces the cache; a reader sees the old one or the new one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, hashlib.sha256(data).digest() + data)
        except (OSError, BundleError) as error:
            _log.warning("%s: the timing cache cannot be written (%s)", self.path, error)
