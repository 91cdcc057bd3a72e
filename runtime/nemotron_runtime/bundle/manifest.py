"""manifest.json: the whole of it, read strictly."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_errors import BundleError
from nemotron_formats.tensors import WeightInput
from nemotron_formats.weights import format_named

from nemotron_runtime.bundle.engine_records import RTXRecord, TensorRTRecord
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.records import (
    FileRecord,
    HeadRecord,
    ModelRecord,
    ParityRecord,
    QuantizationRecord,
    ScanRecord,
    SessionRecord,
    Task,
    WeightsRecord,
)
from nemotron_runtime.bundle.strict import read_dataclass

__all__ = ["FORMAT", "MANIFEST_FILE", "REFERENCE_FILE", "Manifest"]

FORMAT = 2
# those that read and write it; format 1 was 0.1's
_VERSIONS = "0.2"
MANIFEST_FILE = "manifest.json"
REFERENCE_FILE = "reference.safetensors"


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; see the parts.

    Attributes:
        producer: versions of what built the bundle.
        created: when, ISO 8601.
        target: name of the target.
        task: what the head is for.
        dtype: the dtype that the graph computes in.
        files: every small file of the bundle except manifest.json and parity.json.
        quantization: None where the weights are used as stored.
        tensorrt: the engines of a bundle that has some.
        tensorrt_rtx: those for RTX.
    """

    producer: dict[str, str]
    created: str
    target: str
    task: Task
    dtype: str
    model: ModelRecord
    head: HeadRecord
    limits: Limits
    session: SessionRecord
    files: dict[str, FileRecord]
    weights: WeightsRecord
    scan: ScanRecord
    parity: ParityRecord
    quantization: QuantizationRecord | None = None
    tensorrt: TensorRTRecord | None = None
    tensorrt_rtx: RTXRecord | None = None
    format: int = FORMAT

    @classmethod
    def from_dict(cls, data: object, where: str = MANIFEST_FILE) -> Manifest:
        """Reads a parsed manifest.

        Raises:
            BundleError: another format, or a missing, unknown or mistyped key.
        """
        if not isinstance(data, dict):
            raise BundleError(type(data).__name__, "an object", "build the bundle again", where=where)
        found = data.get("format")
        if found != FORMAT or isinstance(found, bool):
            newer = isinstance(found, int) and found > FORMAT
            remedy = "update nemotron-export here, or build" if newer else "build"
            raise BundleError(
                f"bundle format {found!r}", f"format {FORMAT}, which nemotron-export {_VERSIONS} reads and writes",
                f"{remedy} the bundle again from its checkpoint with this version", where=where,
            )  # fmt: skip
        manifest = read_dataclass(cls, data, where)
        manifest._check(where)
        return manifest

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads ``directory/manifest.json``.

        Raises:
            BundleError: no such file, not JSON, or as :meth:`from_dict`.
        """
        path = directory / MANIFEST_FILE
        if not path.is_file():
            found = "no manifest.json" if directory.is_dir() else "no such folder"
            remedy = "name a folder that `nemotron-export build` wrote"
            raise BundleError(found, "a bundle", remedy, where=str(directory))
        try:
            data = json.loads(path.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise BundleError(f"no JSON ({error})", "a manifest", "build the bundle again", where=str(path)) from error
        return cls.from_dict(data, str(path))

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` reads; the format comes first."""
        data = dataclasses.asdict(self)
        return {"format": data.pop("format"), **data}

    def to_json(self) -> str:
        """The text of manifest.json."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def _check(self, where: str) -> None:
        for name, value in dataclasses.asdict(self.limits).items():
            _require(value >= 1, str(value), "at least 1", f"{where}.limits.{name}")
        _require(self.weights.chunk_bytes >= 1, str(self.weights.chunk_bytes), "at least 1", f"{where}.weights")
        weights_files = (*self.weights.files, *(() if self.quantization is None else (self.quantization.file,)))
        if self.quantization is not None:
            format_named(self.quantization.format, f"{where}.quantization.format")
        engines, inputs = _engines(self.tensorrt, self.tensorrt_rtx)
        graphs = self._graphs(where)
        for name in (*self.files, *(file.name for file in weights_files), *graphs, *engines):
            # a name that climbs out would let a bundle point at any file
            inside = name not in ("", ".", "..") and not any(sign in name for sign in ("\\", "\0")) and ".." not in name
            _require(inside and not name.startswith("/"), repr(name), "a name inside the folder", where)
        sizes = {file.name: file.size for file in weights_files}
        for what, pieces in (
            ("session.packed", self.session.packed),
            ("tensorrt.weights", tuple(weight.parts for weight in inputs)),
        ):
            for part in (part for parts in pieces for part in parts):
                inside = part.file in sizes and part.offset >= 0 and 0 < part.length <= sizes[part.file] - part.offset
                _require(inside, f"{part}", "a piece of a weights file", f"{where}.{what}")
        records = {"tensorrt": self.tensorrt, "tensorrt-rtx": self.tensorrt_rtx}
        described = [executor for executor, record in records.items() if record is not None]
        _require(
            described == [executor for executor in records if executor == self.session.executor],
            f"{self.session.executor} and {len(engines)} engines",
            "engines and their record",
            where,
        )
        held = self.tensorrt is not None and self.tensorrt.embedded
        apart = self.tensorrt is not None and not self.tensorrt.weights
        agree = (self.weights.mode == "embedded") == held == apart
        expected = "weights inside the engines, or inputs of theirs"
        _require(agree, f"weights {self.weights.mode}, {len(inputs)} of them inputs", expected, where)
        for name in (*graphs, *engines):
            _require(name in self.files, f"no record of {name}", "its hash", f"{where}.files")
        _require(self.head.size >= 1, str(self.head.size), "at least 1", f"{where}.head.size")
        named = len(self.head.labels) in (0, self.head.size)
        _require(named, f"{len(self.head.labels)} labels", f"{self.head.size}, or none", f"{where}.head.labels")
        for file in weights_files:
            count = -(-file.size // self.weights.chunk_bytes)
            if file.chunks is not None:
                what = f"{where}.weights.{file.name}"
                _require(len(file.chunks) == count, f"{len(file.chunks)} chunk digests", f"{count}", what)

    def _graphs(self, where: str) -> tuple[str, ...]:
        """File names of the session's graphs."""
        candidates = self.session.candidates
        if candidates is None:
            return (self.session.graph,)
        place, most = f"{where}.session.candidates", self.model.vocab_size
        found = f"one of {self.session.executor} for {self.task}"
        fits = self.session.executor in ("onnxruntime", "onnxruntime-cuda") and self.task == "causal-lm"
        _require(fits, found, "one of onnxruntime for causal-lm", place)
        _require(
            1 <= candidates.count <= most,
            f"{candidates.count} tokens",
            f"1 to {most}, the vocabulary",
            f"{place}.count",
        )
        _require(
            candidates.graph != self.session.graph,
            candidates.graph,
            "another file than the session's graph",
            f"{place}.graph",
        )
        return self.session.graph, candidates.graph


def _engines(tensorrt: TensorRTRecord | None, rtx: RTXRecord | None) -> tuple[tuple[str, ...], tuple[WeightInput, ...]]:
    """File names of all engines, and their weights."""
    if tensorrt is not None:
        return (tensorrt.prefill_engine, tensorrt.decode_engine), tensorrt.weights
    return ((), ()) if rtx is None else (tuple(rtx.engines.values()), rtx.weights)


def _require(condition: bool, found: str, expected: str, where: str) -> None:
    if not condition:
        raise BundleError(found, expected, "build the bundle again", where=where)
