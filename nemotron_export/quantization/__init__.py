"""Weight-only quantization: one tensor at a time, from the checkpoint's files into the bundle's own."""

from __future__ import annotations

from nemotron_export.quantization.layout import QUANTIZED_FILE, QuantizedLayout, lay_out
from nemotron_export.quantization.writer import write_quantized

__all__ = ["QUANTIZED_FILE", "QuantizedLayout", "lay_out", "write_quantized"]
