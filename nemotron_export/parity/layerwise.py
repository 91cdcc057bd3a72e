"""Eager PyTorch with one decoder layer in memory at a time, for checkpoints that memory does not hold.

All sequences go through a layer before the next one is read, by the modules of the whole model, each alone and in its
own shapes: results are the whole model's bit for bit, but for the last bit of what a head in slices gives on a CPU
whose matrix kernels round by the shape. Where several tokens of a sequence are known beforehand (a run fed with the
reference's own tokens), they go through a layer one after the other, so that one pass over the file is enough.

Shapes: S new tokens, k positions with outputs, E hidden_size, V outputs of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from nemotron_formats.tensors import TensorEntry
from torch import nn

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.checkpoint.expected import backbone_prefix
from nemotron_export.checkpoint.tensor_reader import TensorReader
from nemotron_export.model.cache import DynamicCache
from nemotron_export.model.decoder import NemotronDecoderLayer
from nemotron_export.model.layernorm import LayerNorm1P
from nemotron_export.model.load import MODEL_CLASSES
from nemotron_export.model.masks import causal_mask
from nemotron_export.model.rotary import RotaryEmbedding

__all__ = ["Feed", "LayerwiseModel", "OnStep"]

_IMPLEMENTATION = "sdpa"

# Rows of lm_head that are multiplied at once: about so many bytes, and a multiple of 64. Slices of such a size gave
# the whole product's bits for every shape tried (fp32 and bf16, odd widths and vocabularies, 1 and 2 threads); with
# odd sizes, a matrix product's remainder rounds in another order (up to 4e-7 of the largest logit).
_HEAD_SLICE_BYTES = 128 << 20
_HEAD_SLICE_ROWS = 64

# told (steps done, steps in all)
OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class Feed:
    """Tokens that a sequence is fed at once, and where outputs are wanted among them: int64 [S] and [k]."""

    ids: np.ndarray
    positions: np.ndarray

    @classmethod
    def token(cls, token: int, *, output: bool = True) -> Feed:
        """One token."""
        return cls(np.array([token]), np.zeros(int(output), np.int64))


@dataclass
class _Sequence:
    rotary: RotaryEmbedding
    cache: DynamicCache = field(default_factory=DynamicCache)
    length: int = 0


@dataclass
class _Piece:
    """A feed on its way through the layers: hidden [1, S, E], position_ids [1, S]."""

    sequence: _Sequence
    feed: Feed
    hidden: torch.Tensor
    position_ids: torch.Tensor
    rotary: tuple[torch.Tensor, torch.Tensor]
    mask: torch.Tensor | None = None


class LayerwiseModel:
    """Sequences after dynamic caches, through a model of any task that is read layer by layer. A context manager.

    Memory: one decoder layer and a slice of lm_head in `dtype`, the sequences' hidden states, keys and values, and the
    embedding's rows that are looked up.

    Args:
        head_slice_rows: rows of lm_head that are multiplied at once, a multiple of 64; by their size where None.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, sequences: int, *, head_slice_rows: int | None = None
    ) -> None:
        self._checkpoint, self._dtype = checkpoint, dtype
        self._config = config = checkpoint.config
        self._prefix = backbone_prefix(checkpoint.task)
        self._reader = TensorReader(checkpoint.directory)
        self._sequences = [_Sequence(RotaryEmbedding(config)) for _ in range(sequences)]
        row_bytes = config.hidden_size * dtype.itemsize
        by_size = max(1, _HEAD_SLICE_BYTES // row_bytes // _HEAD_SLICE_ROWS) * _HEAD_SLICE_ROWS
        self._head_rows = by_size if head_slice_rows is None else head_slice_rows
        assert self._head_rows % _HEAD_SLICE_ROWS == 0
        with torch.device("meta"):
            layer = NemotronDecoderLayer(config, 0, _IMPLEMENTATION)
            norm = LayerNorm1P(config.hidden_size, eps=config.norm_eps)
            # its backbone stays empty: the head alone is used
            self._model = MODEL_CLASSES[checkpoint.task](config, _IMPLEMENTATION).eval()
        self._layer, self._norm = (
            module.to(dtype).to_empty(device="cpu").requires_grad_(False).eval() for module in (layer, norm)
        )

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    @torch.inference_mode()
    def feed(
        self, feeds: Sequence[Sequence[Feed]], on_step: OnStep = lambda done, total: None
    ) -> list[list[torch.Tensor]]:
        """Feeds every sequence its tokens, in one pass over the file.

        Args:
            feeds: for each sequence, what it is fed, one after the other.

        Returns:
            Outputs [k, V] of each feed.

        Raises:
            CheckpointError: files that changed, or weights that the dtype cannot hold.
        """
        pieces_by_sequence = [
            [self._piece(sequence, feed) for feed in own] for sequence, own in zip(self._sequences, feeds, strict=True)
        ]
        pieces = [piece for own in pieces_by_sequence for piece in own]
        layers = self._config.num_hidden_layers
        for index in range(layers):
            on_step(index, layers)
            self._fill(self._layer, f"{self._prefix}layers.{index}.")
            self._layer.self_attn.layer_idx = index  # type: ignore[union-attr, assignment]
            for piece in pieces:
                if index == 0:
                    piece.mask = causal_mask(
                        piece.hidden, None, piece.sequence.cache, piece.position_ids, _IMPLEMENTATION
                    )
                piece.hidden, _ = self._layer(piece.hidden, piece.rotary, piece.mask, piece.sequence.cache)
        self._fill(self._norm, f"{self._prefix}norm.")
        normed = {id(p): self._norm(p.hidden)[:, torch.from_numpy(p.feed.positions)] for p in pieces}
        on_step(layers, layers)
        outputs = dict(zip(normed, self._head(list(normed.values())), strict=True))
        return [[outputs[id(piece)][0] for piece in own] for own in pieces_by_sequence]

    def _piece(self, sequence: _Sequence, feed: Feed) -> _Piece:
        entry = self._checkpoint.tensors[f"{self._prefix}embed_tokens.weight"]
        hidden = self._reader.rows(entry, torch.from_numpy(feed.ids), self._dtype)[None]
        position_ids = (torch.arange(len(feed.ids)) + sequence.length)[None]
        sequence.length += len(feed.ids)
        return _Piece(sequence, feed, hidden, position_ids, sequence.rotary(hidden, position_ids))

    def _fill(self, module: nn.Module, prefix: str) -> None:
        for name, parameter in module.named_parameters():
            self._reader.into(self._checkpoint.tensors[prefix + name], parameter.data)

    def _head(self, normed_1kE: list[torch.Tensor]) -> list[torch.Tensor]:
        """Outputs [1, k, V] of the normed hidden states."""
        tensors = self._checkpoint.tensors
        if self._checkpoint.task == "causal-lm":
            tied = self._checkpoint.tied
            return self._lm_head(tensors["model.embed_tokens.weight" if tied else "lm_head.weight"], normed_1kE)
        own = {name for name, _ in self._model.named_parameters()} - {
            f"{self._prefix}{name}" for name, _ in self._model.base_model.named_parameters()
        }
        state = {name: self._reader.tensor(tensors[name], self._dtype) for name in own}
        self._model.load_state_dict(state, strict=False, assign=True)
        return [self._model.head(h) for h in normed_1kE]

    def _lm_head(self, entry: TensorEntry, normed_1kE: list[torch.Tensor]) -> list[torch.Tensor]:
        size = entry.shape[0]
        outputs = [h.new_empty((*h.shape[:2], size)) for h in normed_1kE]
        slice_rE = torch.empty((min(self._head_rows, size), *entry.shape[1:]), dtype=self._dtype)
        for start in range(0, size, len(slice_rE)):
            part_rE = slice_rE[: size - start]
            self._reader.into(entry, part_rE, start)
            for h, output in zip(normed_1kE, outputs, strict=True):
                if h.shape[1]:
                    output[..., start : start + len(part_rE)] = F.linear(h, part_rE)
        return outputs
