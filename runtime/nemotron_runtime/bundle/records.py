"""The parts of a manifest: what a bundle holds, what it was built for and whether its numbers are proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from nemotron_formats.tensors import FileSpan

__all__ = [
    "CandidatesRecord",
    "FileRecord",
    "HeadRecord",
    "ModelRecord",
    "ParityRecord",
    "ParityState",
    "QuantizationRecord",
    "ScanRecord",
    "SessionRecord",
    "Task",
    "WeightsFile",
    "WeightsRecord",
]

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
        fp32_mlp_layers: layers that compute relu² and down_proj in fp32 in a bundle of fp16.
    """

    config: dict[str, Any]
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    pad_token_id: int | None
    fp32_mlp_layers: tuple[int, ...] = ()


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
    """The graph that finds the top-k candidates of a decode step.

    Attributes:
        graph: its file name.
        count: how many of each sequence it gives.
    """

    graph: str
    count: int


@dataclass(frozen=True)
class SessionRecord:
    """What runs the graph.

    Attributes:
        executor: "onnxruntime" or "onnxruntime-cuda": a graph of this project's own inputs; "genai": of ONNX Runtime
            GenAI's, with an attention mask and every logit; "tensorrt": engines, see ``TensorRTRecord``;
            "tensorrt-rtx": engines that NVIDIA's runtime for RTX runs, see ``RTXRecord``.
        provider: ONNX Runtime's execution provider, or NVIDIA's runtime.
        device: where it computes.
        graph: file name of the graph; of engines, the decode step's.
        cache_dtype: numpy's name of the KV cache's dtype.
        inputs: names of the graph's inputs, in order.
        outputs: names of its outputs, in order.
        prefill_rows: "one" where the graph takes several tokens for one sequence at a time only, without padding;
            "all" where it takes padded sequences together.
        weights_folder: what the graph puts before the name of a weights file.
        packed: weights that are put together when they are loaded, in the order of their places in the graph's file
            ``packed``: the bytes of a weight are those of its parts.
        cuda_graph: whether a decode step is captured into a CUDA graph.
        allow_cpu_nodes: whether ONNX Runtime may compute nodes on the CPU beside a GPU.
        candidates: None where every token is chosen from all logits or by the graph itself.
    """

    executor: Literal["onnxruntime", "onnxruntime-cuda", "genai", "tensorrt", "tensorrt-rtx"]
    provider: str
    device: Literal["cpu", "cuda"]
    graph: str
    cache_dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prefill_rows: Literal["one", "all"]
    weights_folder: str = ""
    packed: tuple[tuple[FileSpan, ...], ...] = ()
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
        format: name of the weight format, see :mod:`nemotron_formats.weights`.
        method: how codes and scales were chosen.
        tensors: the checkpoint's names of the weights that are quantized.
        skipped: matrices that stay as the checkpoint stores them, and why.
        file: codes and scales, in the bundle; its chunks are as the weights' ones.
    """

    format: str
    method: str
    tensors: tuple[str, ...]
    skipped: dict[str, str]
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
