"""Opens a bundle, checking what can be checked without reading the weights, and changes its manifest atomically."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from nemotron_errors import BundleError

from nemotron_runtime.bundle.manifest import MANIFEST_FILE, REFERENCE_FILE, Manifest
from nemotron_runtime.bundle.records import FileRecord, ParityRecord, ParityState, WeightsFile

__all__ = [
    "Bundle",
    "PlacedWeights",
    "file_record",
    "missing_reference_remedy",
    "set_parity_state",
    "write_atomically",
    "write_manifest",
]

_log = logging.getLogger(__name__)

# the longest header that safetensors itself accepts
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class PlacedWeights:
    """A weights file: where it is and what identifies it."""

    path: Path
    record: WeightsFile


@dataclass(frozen=True)
class Bundle:
    """A bundle whose small files are intact and whose weights are the ones it was built from, by size and header.

    Attributes:
        weights_directory: where the weights are now.
    """

    directory: Path
    manifest: Manifest
    weights_directory: Path

    @classmethod
    def open(cls, path: str | Path, *, weights_dir: str | Path | None = None, allow_unverified: bool = False) -> Bundle:
        """Opens and checks a bundle: manifest, hash of every small file, size and header hash of every weights file.

        Args:
            weights_dir: where the weights are, if they are no longer where the manifest says.
            allow_unverified: open a bundle whose parity is pending.

        Raises:
            BundleError: naming the file, what is wrong with it and what to do.
        """
        directory = Path(path)
        manifest = Manifest.read(directory)
        _check_parity(manifest, directory, allow_unverified)
        for name, record in manifest.files.items():
            _check_small_file(directory / name, record.size, record.sha256)
        weights = Path(weights_dir) if weights_dir is not None else directory / manifest.weights.directory
        if manifest.weights.mode != "embedded" and not weights.is_dir():
            remedy = "name the folder that holds them with --weights-dir"
            raise BundleError("no such folder", "the folder of the weights", remedy, where=str(weights))
        opened = cls(directory, manifest, weights)
        for placed in opened.placed_weights():
            _check_weights_file(placed.path, placed.record)
        return opened

    def placed_weights(self) -> list[PlacedWeights]:
        """The weights files that a session reads: the checkpoint's, and the bundle's own quantized one."""
        weights = self.manifest.weights
        files = () if weights.mode == "embedded" else weights.files
        placed = [PlacedWeights(self.weights_directory / file.name, file) for file in files]
        if self.manifest.quantization is not None:
            own = self.manifest.quantization.file
            placed.append(PlacedWeights(self.directory / own.name, own))
        return placed

    def file(self, name: str) -> Path:
        """Path of a file of the bundle."""
        return self.directory / name


def write_manifest(directory: str | Path, manifest: Manifest) -> None:
    """Writes manifest.json; a reader sees the old file or the new one, never a part."""
    write_atomically(Path(directory) / MANIFEST_FILE, manifest.to_json())


def set_parity_state(directory: str | Path, state: ParityState, *, reason: str | None = None) -> Manifest:
    """Records a new parity state, and now as the time of the check.

    Returns:
        The manifest as it is now.
    """
    checked = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = replace(Manifest.read(Path(directory)), parity=ParityRecord(state, reason, checked))
    write_manifest(directory, manifest)
    return manifest


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a temporary file beside ``path``, flushes it to disk and renames it.

    Raises:
        BundleError: the folder cannot be written to.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a bundle is to be read by whom its folder allows
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        found = f"{error.strerror or error} while writing"
        raise BundleError(found, "a folder that can be written to", "check its permissions", where=str(path)) from error


def missing_reference_remedy(bundle: Path) -> str:
    """What a user does about a bundle that was built without a reference."""
    return (
        f"run `nemotron-export parity {bundle}`, which makes the reference from the checkpoint and checks the bundle "
        'against it (pip install "nemotron-export[build]")'
    )


def file_record(path: Path) -> FileRecord:
    """Size and SHA-256 of a file."""
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return FileRecord(size=path.stat().st_size, sha256=digest)


def _check_parity(manifest: Manifest, directory: Path, allow_unverified: bool) -> None:
    parity = manifest.parity
    reason = f" ({parity.reason})" if parity.reason else ""
    if parity.state == "pending" and not allow_unverified:
        judged = REFERENCE_FILE in manifest.files
        prove = f"run `nemotron-export verify {directory}`" if judged else missing_reference_remedy(directory)
        raise BundleError(
            f"parity pending{reason}",
            "a bundle whose numbers were held against PyTorch",
            f"{prove}, or pass --allow-unverified (allow_unverified=True)",
            where=str(directory),
        )
    if parity.state != "passed":
        _log.warning("%s: parity %s%s: the numbers of this bundle are not proven", directory, parity.state, reason)


def _check_small_file(path: Path, size: int, sha256: str) -> None:
    remedy = "copy the bundle again, or build it again"
    try:
        found_size = path.stat().st_size
        if found_size != size:
            raise BundleError(f"{found_size} bytes", f"{size} bytes", remedy, where=str(path))
        found = file_record(path).sha256
    except OSError as error:
        raise BundleError(_problem(error), "a file of the bundle", remedy, where=str(path)) from error
    if found != sha256:
        raise BundleError(f"SHA-256 {found}", sha256, remedy, where=str(path))


def _check_weights_file(path: Path, expected: WeightsFile) -> None:
    remedy = "restore the file, name the right folder with --weights-dir, or build the bundle again"
    try:
        size = path.stat().st_size
        if size != expected.size:
            raise BundleError(f"{size} bytes", f"{expected.size} bytes", remedy, where=str(path))
        with path.open("rb") as file:
            prefix = file.read(8)
            length = min(int.from_bytes(prefix, "little"), _MAX_HEADER_BYTES)
            found = hashlib.sha256(prefix + file.read(length)).hexdigest()
    except OSError as error:
        raise BundleError(_problem(error), "the weights of this bundle", remedy, where=str(path)) from error
    if found != expected.header_sha256:
        raise BundleError(f"a header with SHA-256 {found}", expected.header_sha256, remedy, where=str(path))


def _problem(error: OSError) -> str:
    return "no such file" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
