"""Which tensors are quantized, and where their parts lie in the bundle's own weights file."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron_formats.dtypes import DTYPES, item_bytes
from nemotron_formats.tensors import EncodedWeight, TensorEntry
from nemotron_formats.weights import WeightFormat
from nemotron_runtime.bundle.records import QuantizationRecord, WeightsFile

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.expected import backbone_prefix
from nemotron_export.checkpoint.file_layout import lay_out_file

__all__ = ["QUANTIZED_FILE", "QuantizedLayout", "QuantizedTensor", "lay_out"]

# in a folder of its own, so that no shard of a checkpoint can have its name
QUANTIZED_FILE = "quantized/quantized.safetensors"


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight [O, I], and where each operand of its format lies."""

    source: TensorEntry
    operands: dict[str, TensorEntry]


@dataclass(frozen=True)
class QuantizedLayout:
    """The whole file, before anything is computed.

    Attributes:
        format: of every tensor.
        tensors: what is quantized.
        skipped: matrices that stay as the checkpoint stores them, and why.
        header: the file's first bytes.
        size: its length in bytes.
    """

    format: WeightFormat
    tensors: tuple[QuantizedTensor, ...]
    skipped: dict[str, str]
    header: bytes
    size: int

    @property
    def entries(self) -> dict[str, TensorEntry]:
        """The file's tensors by name, for binding."""
        return {entry.name: entry for tensor in self.tensors for entry in tensor.operands.values()}

    @property
    def encoded(self) -> dict[str, EncodedWeight]:
        """The checkpoint's name of each weight → its operands, for the graphs."""
        return {tensor.source.name: EncodedWeight(self.format, tensor.operands) for tensor in self.tensors}

    def record(self, file: WeightsFile) -> QuantizationRecord:
        """What the manifest says of it."""
        names = tuple(tensor.source.name for tensor in self.tensors)
        return QuantizationRecord(self.format.name, self.format.method, names, self.skipped, file)


def lay_out(checkpoint: Checkpoint, format: WeightFormat) -> QuantizedLayout:
    """Chooses the tensors and their places; nothing is read.

    Quantized are the projections of all layers and lm_head. Of a tied embedding, lm_head's codes are data of their own
    and the lookup goes on reading the stored rows. Skipped are the embedding, of which a step reads one row, and the
    few outputs of a classifier or an answer's span.
    """
    prefix = backbone_prefix(checkpoint.task)
    embedding = f"{prefix}embed_tokens.weight"
    sources: dict[str, TensorEntry] = {}
    skipped: dict[str, str] = {}
    for name, entry in checkpoint.tensors.items():
        if len(entry.shape) != 2:
            continue
        tied_head = name == embedding and checkpoint.tied and checkpoint.task == "causal-lm"
        if tied_head or name == "lm_head.weight" or name.startswith(f"{prefix}layers."):
            sources[name] = entry
        if name == embedding:
            skipped[name] = "a step reads one row of it"
        elif name not in sources:
            skipped[name] = "a head of few outputs"
    operands = {name: format.operands(*entry.shape) for name, entry in sources.items()}
    every = [(name, operand) for name, found in operands.items() for operand in found]
    # large items first keep all aligned; safetensors allows no holes
    every.sort(key=lambda each: -item_bytes(each[1].dtype))
    shapes = {f"{name}.{each.name}": (DTYPES[each.dtype].safetensors, each.shape) for name, each in every}
    header, entries, size = lay_out_file(QUANTIZED_FILE, shapes)
    tensors = tuple(
        QuantizedTensor(entry, {each.name: entries[f"{name}.{each.name}"] for each in operands[name]})
        for name, entry in sources.items()
    )
    return QuantizedLayout(format, tensors, skipped, header, size)
