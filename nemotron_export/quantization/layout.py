"""Which tensors are quantized, and where their parts lie in the bundle's own weights file."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_formats.tensors import EncodedWeight
from nemotron_formats.weights import FORMATS
from nemotron_runtime.bundle.manifest import QuantizationRecord, WeightsFile

from nemotron_export.checkpoint import Checkpoint, TensorEntry
from nemotron_export.checkpoint.expected import backbone_prefix
from nemotron_export.checkpoint.file_layout import lay_out_file
from nemotron_export.quantization.scheme import Scheme

__all__ = ["QUANTIZED_FILE", "QuantizedLayout", "QuantizedTensor", "lay_out"]

# in a folder of its own, so that no shard of a checkpoint can have its name
QUANTIZED_FILE = "quantized/quantized.safetensors"


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight [O, K] and its parts: `packed` uint8 [O, n, b], `scales` float32 [O, n] for n groups of b bytes."""

    source: TensorEntry
    packed: TensorEntry
    scales: TensorEntry


@dataclass(frozen=True)
class QuantizedLayout:
    """The whole file, before anything is computed.

    Attributes:
        scheme: bits and group size.
        tensors: what is quantized.
        kept: matrices that stay as the checkpoint stores them, and why.
        header: the file's first bytes.
        size: its length in bytes.
    """

    scheme: Scheme
    tensors: tuple[QuantizedTensor, ...]
    kept: dict[str, str]
    header: bytes
    size: int

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """The file's tensors by name, for binding."""
        return {entry.name: entry for tensor in self.tensors for entry in (tensor.packed, tensor.scales)}

    @property
    def weights(self) -> dict[str, EncodedWeight]:
        """The checkpoint's name of each weight → its parts, for the graph."""
        weight_format = FORMATS[f"int{self.scheme.bits}-g{self.scheme.group_size}"]
        return {
            t.source.name: EncodedWeight(weight_format, {"codes": t.packed, "scales": t.scales}) for t in self.tensors
        }

    def record(self, file: WeightsFile) -> QuantizationRecord:
        """What the manifest says of it."""
        return QuantizationRecord(
            bits=self.scheme.bits,
            group_size=self.scheme.group_size,
            symmetric=True,
            method=self.scheme.method,
            accuracy_level=self.scheme.accuracy_level,
            tensors=tuple(tensor.source.name for tensor in self.tensors),
            kept=self.kept,
            file=file,
        )


def lay_out(checkpoint: Checkpoint, scheme: Scheme) -> QuantizedLayout:
    """Chooses the tensors and their places; nothing is read.

    Quantized are the projections of all layers and lm_head. Of a tied embedding, lm_head's codes are data of their own
    and the lookup goes on reading the stored rows. Kept are the embedding, of which a step reads one row, and the few
    outputs of a classifier or an answer's span.
    """
    prefix = backbone_prefix(checkpoint.task)
    embedding = f"{prefix}embed_tokens.weight"
    sources: dict[str, TensorEntry] = {}
    kept: dict[str, str] = {}
    for name, entry in checkpoint.tensors.items():
        if len(entry.shape) != 2:
            continue
        tied_head = name == embedding and checkpoint.tied and checkpoint.task == "causal-lm"
        if tied_head or name == "lm_head.weight" or name.startswith(f"{prefix}layers."):
            sources[name] = entry
        if name == embedding:
            kept[name] = "a step reads one row of it"
        elif name not in sources:
            kept[name] = "a head of few outputs"
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    # four-byte items first keep them aligned; safetensors allows no holes
    for name, entry in sources.items():
        rows, features = entry.shape
        shapes[f"{name}.scales"] = ("F32", (rows, scheme.groups(features)))
    for name, entry in sources.items():
        rows, features = entry.shape
        shapes[f"{name}.packed"] = ("U8", (rows, scheme.groups(features), scheme.group_bytes))
    header, entries, size = lay_out_file(QUANTIZED_FILE, shapes)
    tensors = tuple(
        QuantizedTensor(entry, entries[f"{name}.packed"], entries[f"{name}.scales"]) for name, entry in sources.items()
    )
    return QuantizedLayout(scheme, tensors, kept, header, size)
