"""manifest.json: what a bundle holds, what it was built for and whether its numbers are proven."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemotron_errors import BundleError

from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.bundle.manifest_part import WeightPart
from nemotron_runtime.bundle.manifest_tensorrt import RTXRecord, TensorRTRecord, TensorRTWeight
from nemotron_runtime.bundle.strict import read_dataclass

__all__ = [
    "FORMAT",
    "MANIFEST_FILE",
    "CandidatesRecord",
    "FileRecord",
    "HeadRecord",
    "Limits",
    "Manifest",
    "ModelRecord",
    "ParityRecord",
    "ParityState",
    "QuantizationRecord",
    "RTXRecord",
    "ScanRecord",
    "SessionRecord",
    "Task",
    "TensorRTRecord",
    "WeightPart",
    "WeightsFile",
    "WeightsRecord",
]

FORMAT = 1
MANIFEST_FILE = "manifest.json"

ParityState = Literal["passed", "pending", "waived"]
Task = Literal[
    "causal-lm", "sequence-classification", "token-classification", "question-answering", "feature-extraction"
]


@dataclass(frozen=True)
class ModelRecord:
    """The model, as far as the runtime must know it.

    Attributes:
        config: the whole config, in Hugging Face's keys.
        vocab_size: rows of the embedding.
        num_layers: decoder layers.
        num_kv_heads: key/value heads.
        head_dim: lanes of a head.
        eos_token_ids: end-of-sequence tokens.
        bos_token_id: begin-of-sequence token.
        pad_token_id: padding token.
        wide_layers: layers that compute relu² and down_proj in fp32 in a bundle of fp16.
    """

    config: dict[str, Any]
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    wide_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class HeadRecord:
    """What the graph gives for each position asked for.

    Attributes:
        output: name of the graph's output: "logits", or "last_hidden_state" without a head.
        size: its values per position: the vocabulary, classes, start and end of an answer (2), or hidden_size.
        labels: names of the classes, in order; none for the other tasks.
        problem_type: Hugging Face's, for sequence classification: "regression", "single_label_classification",
            "multi_label_classification", or None where the config does not say.
    """

    output: str
    size: int
    labels: tuple[str, ...]
    problem_type: str | None


@dataclass(frozen=True)
class CandidatesRecord:
    """The graph that finds the likeliest tokens of a decode step.

    Attributes:
        graph: its file name.
        count: how many of each row it gives.
    """

    graph: str
    count: int


@dataclass(frozen=True)
class SessionRecord:
    """What runs the graph.

    Attributes:
        kind: "onnxruntime": the row contract; "genai": ONNX Runtime GenAI's, with an attention mask and every logit;
            "tensorrt": engines, see :class:`TensorRTRecord`; "tensorrt-rtx": engines that NVIDIA's runtime for RTX
            runs, see :class:`RTXRecord`.
        provider: ONNX Runtime's execution provider, or NVIDIA's runtime.
        graph: file name of the graph; of engines, the decode step's.
        cache_dtype: numpy's name of the KV cache's dtype.
        inputs: names of the graph's inputs, in order.
        outputs: names of its outputs, in order.
        prefill_rows: "one" where the graph takes several tokens for one row at a time only, without padding;
            "all" where it takes padded rows together.
        weights_folder: what the graph puts before the name of a weights file.
        packed: weights that are put together when they are loaded, in the order of their places in the graph's file
            ``packed``: the bytes of a weight are those of its parts.
        cuda_graph: whether a decode step is captured into a CUDA graph.
        allow_cpu_nodes: whether ONNX Runtime may compute nodes on the CPU beside a GPU.
        candidates: None where every token is chosen from all logits or by the graph itself.
    """

    kind: Literal["onnxruntime", "genai", "tensorrt", "tensorrt-rtx"]
    provider: str
    graph: str
    cache_dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prefill_rows: Literal["one", "all"]
    weights_folder: str = ""
    packed: tuple[tuple[WeightPart, ...], ...] = ()
    cuda_graph: bool = False
    allow_cpu_nodes: bool = False
    candidates: CandidatesRecord | None = None


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of a small file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class WeightsFile:
    """One weights file.

    Attributes:
        name: file name in the weights folder.
        size: bytes.
        header_sha256: SHA-256 of the safetensors header, its eight length bytes included.
        chunks: a digest for each chunk of the whole file; None where the build skipped the scan.
    """

    name: str
    size: int
    header_sha256: str
    chunks: tuple[str, ...] | None


@dataclass(frozen=True)
class WeightsRecord:
    """Where the weights are and what identifies them.

    Attributes:
        mode: "reference" leaves them where they are; "link" and "copy" have them in the bundle; "embedded" in its
            engines, which need no weights file: the others tell what they were built from.
        directory: absolute path, or a folder of the bundle.
        chunk_bytes: bytes of a chunk.
        algorithm: hashlib's name of the chunks' digest.
        files: the files.
    """

    mode: Literal["reference", "link", "copy", "embedded"]
    directory: str
    chunk_bytes: int
    algorithm: str
    files: tuple[WeightsFile, ...]


@dataclass(frozen=True)
class QuantizationRecord:
    """How weights were quantized.

    Attributes:
        bits: of a code.
        group_size: input features that share a scale.
        symmetric: zero is the middle code; there are no zero points.
        method: how scales were chosen.
        accuracy_level: how the graph may treat activations: 0 leaves them, 4 makes them int8.
        tensors: the checkpoint's names of the weights that are quantized.
        kept: matrices that stay as the checkpoint stores them, and why.
        file: codes and scales, in the bundle; its chunks are as the weights' ones.
    """

    bits: Literal[4, 8]
    group_size: int
    symmetric: bool
    method: Literal["round to nearest", "scale search"]
    accuracy_level: Literal[0, 4]
    tensors: tuple[str, ...]
    kept: dict[str, str]
    file: WeightsFile


@dataclass(frozen=True)
class ScanRecord:
    """Whether the build looked for NaN and infinity and hashed the weights."""

    done: bool


@dataclass(frozen=True)
class ParityRecord:
    """Whether the bundle's numbers were held against eager PyTorch.

    Attributes:
        state: "passed"; "pending", not shown yet; "waived", given up by the user.
        reason: why it is pending or waived.
        checked: when it was judged last, ISO 8601.
    """

    state: ParityState
    reason: str | None
    checked: str | None


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
        if isinstance(found, int) and found > FORMAT:
            remedy = "update nemotron-export here, or build the bundle again with this version"
            raise BundleError(f"bundle format {found}", f"format {FORMAT} or older", remedy, where=where)
        if found != FORMAT or isinstance(found, bool):
            raise BundleError(f"bundle format {found!r}", f"format {FORMAT}", "build the bundle again", where=where)
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
        described = [kind for kind, record in records.items() if record is not None]
        _require(
            described == [kind for kind in records if kind == self.session.kind],
            f"{self.session.kind} and {len(engines)} engines",
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
        few = self.session.candidates
        if few is None:
            return (self.session.graph,)
        place, most = f"{where}.session.candidates", self.model.vocab_size
        found = f"one of kind {self.session.kind} for {self.task}"
        fits = (self.session.kind, self.task) == ("onnxruntime", "causal-lm")
        _require(fits, found, "one of kind onnxruntime for causal-lm", place)
        _require(1 <= few.count <= most, f"{few.count} tokens", f"1 to {most}, the vocabulary", f"{place}.count")
        _require(few.graph != self.session.graph, few.graph, "a file beside the session's graph", f"{place}.graph")
        return self.session.graph, few.graph


def _engines(
    tensorrt: TensorRTRecord | None, rtx: RTXRecord | None
) -> tuple[tuple[str, ...], tuple[TensorRTWeight, ...]]:
    """File names of all engines, and their weights."""
    if tensorrt is not None:
        return (tensorrt.prefill_engine, tensorrt.decode_engine), tensorrt.weights
    return ((), ()) if rtx is None else (tuple(rtx.engines.values()), rtx.weights)


def _require(condition: bool, found: str, expected: str, where: str) -> None:
    if not condition:
        raise BundleError(found, expected, "build the bundle again", where=where)
