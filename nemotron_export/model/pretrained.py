"""What all model classes share: config, loading and saving, initialisation, embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from nemotron_errors import RequestError
from torch import nn

from nemotron_export.checkpoint import TASKS, Checkpoint
from nemotron_export.checkpoint.save import save_checkpoint
from nemotron_export.checkpoint.tensor_reader import TensorReader
from nemotron_export.config.config import NemotronConfig
from nemotron_export.model.dialect import DialectPath
from nemotron_export.model.layernorm import LayerNorm1P
from nemotron_export.model.placement import find_device, find_dtype

__all__ = ["NemotronPreTrainedModel"]


class NemotronPreTrainedModel(DialectPath):
    """A Nemotron of any head; ``attn_implementation`` is "sdpa", "eager" or "flash_attention".

    Attributes:
        task: the class's key in :data:`TASKS`.
        generation_config: the checkpoint's settings for ``generate``; empty where there are none.
    """

    task: ClassVar[str] = ""

    def __init__(self, config: NemotronConfig, attn_implementation: str = "sdpa") -> None:
        super().__init__()
        self.config, self.attn_implementation = config, attn_implementation
        self.generation_config: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        attn_implementation: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Loads a checkpoint into this class.

        Args:
            path_or_id: a folder or a hub id (organisation/name).
            dtype: a torch dtype or its name; "auto" is the config's, or else the weights'.
            device_map: one device, as a name, a number, a torch.device or {"": device}; "auto" is
                :func:`infer_device`'s; None is the CPU.
            attn_implementation: "eager", "sdpa" (None) or "flash_attention", PyTorch's flash kernel alone.
            revision: a branch, tag or commit of a hub id.
            token: an access token for the hub; None takes the one stored at login.
            local_files_only: ask no server.

        Returns:
            The model in eval mode, with the checkpoint's generation settings in ``generation_config``.

        Raises:
            CheckpointError, ConfigError: a checkpoint that is missing, broken or not of this class.
            RequestError: a dtype or device map that is not supported.
            MissingDependencyError: a device that this machine does not have.
        """
        device = find_device(device_map)
        find_dtype(dtype, "float32")  # a wrong one is refused before anything is downloaded
        folder = Checkpoint.resolve(path_or_id, revision=revision, token=token, offline=local_files_only)
        checkpoint = Checkpoint.open(folder, task=cls._checked_task())
        run_dtype = find_dtype(dtype, checkpoint.config.dtype or checkpoint.dtype)
        model = cls.from_checkpoint(checkpoint, run_dtype, attn_implementation or "sdpa", device)
        model.generation_config = dict(checkpoint.generation_config)
        return model

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        attn_implementation: str = "sdpa",
        device: str | torch.device = "cpu",
    ) -> Self:
        """Builds the model on the meta device and fills it, one tensor at a time.

        Args:
            checkpoint: opened for this class's task.
            dtype: what the model runs in; every tensor is cast to it, as transformers does.

        Returns:
            The model in eval mode. Memory: one copy of the weights in ``dtype``.

        Raises:
            CheckpointError: a file that is shorter than when the checkpoint was opened, or weights that ``dtype``
                cannot hold.
        """
        with torch.device("meta"):
            model = cls(checkpoint.config, attn_implementation)
        with TensorReader(checkpoint.directory) as reader:
            state = {name: reader.tensor(entry, dtype, device) for name, entry in checkpoint.tensors.items()}
        if checkpoint.tied:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, strict=True, assign=True)
        # load_state_dict made one parameter per name
        model.tie_weights()
        return model.eval()

    def save_pretrained(self, directory: str | Path, max_shard_size: int | str = "5GB") -> Path:
        """Writes config and weights, which transformers reads; arguments and errors as of :func:`save_checkpoint`."""
        return save_checkpoint(
            directory, self.config, self.state_dict(), task=self._checked_task(), max_shard_size=max_shard_size,
            generation_config=self.generation_config or None,
        )  # fmt: skip

    @classmethod
    def _checked_task(cls) -> str:
        if cls.task not in TASKS:
            classes = ", ".join(name for _, name in TASKS.values())
            raise RequestError(cls.__name__, f"one of {classes}", "use one of these classes")
        return cls.task

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        embedding: nn.Embedding = self.base_model.embed_tokens
        return embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Puts another token embedding in place; a tied lm_head follows."""
        self.base_model.embed_tokens = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The language-model head, None in models without one."""
        return None

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Puts another language-model head in place.

        Raises:
            RequestError: in models without one.
        """
        raise RequestError(f"{type(self).__name__}, which has no lm_head", "a causal model", "use NemotronForCausalLM")

    def tie_weights(self) -> None:
        """Makes tied weights one tensor; models without tied weights have nothing to do."""

    @torch.no_grad()
    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Changes the vocabulary's size in embedding, lm_head and config; rows that stay keep their values.

        Args:
            new_num_tokens: rows wanted; the present number where None.
            pad_to_multiple_of: rounds it up.
            mean_resizing: new rows are the mean of the old ones, which leaves the other tokens' probabilities nearly
                as they were; else they are drawn by ``initializer_range``.

        Returns:
            The embedding in place.

        Raises:
            RequestError: a size that is not a positive number.
            ConfigError: a special token that the smaller vocabulary would lack.
        """
        embedding = self.get_input_embeddings()
        size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        for name, value in (("new_num_tokens", size), ("pad_to_multiple_of", pad_to_multiple_of or 1)):
            if type(value) is not int or value < 1:
                raise RequestError(f"{name} = {value!r}", "a whole number of 1 or more", "correct it")
        if pad_to_multiple_of:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size == embedding.num_embeddings:
            return embedding
        config = self.config.replace(vocab_size=size)
        weight = self._resized(embedding.weight, size, mean_resizing)
        resized = nn.Embedding(size, weight.shape[1], embedding.padding_idx, _weight=weight)
        resized.weight.requires_grad_(embedding.weight.requires_grad)
        self.base_model.embed_tokens = resized
        head = self.get_output_embeddings()
        if head is not None and not self.config.tie_word_embeddings:
            head.weight = nn.Parameter(self._resized(head.weight, size, mean_resizing), head.weight.requires_grad)
        if head is not None:
            head.out_features = size
        for module in self.modules():
            if isinstance(module, NemotronPreTrainedModel):
                module.config = config
        self.tie_weights()
        return resized

    def _resized(self, old_VE: torch.Tensor, size: int, mean_resizing: bool) -> torch.Tensor:
        new_VE = old_VE.new_empty((size, old_VE.shape[1]))
        kept = min(size, len(old_VE))
        new_VE[:kept] = old_VE[:kept]
        if mean_resizing:
            new_VE[kept:] = old_VE.float().mean(dim=0).to(old_VE.dtype)
        else:
            new_VE[kept:].normal_(0.0, self.config.initializer_range)
        return new_VE

    def _initialize(self) -> None:
        """Normal(0, initializer_range) for matrices, zero biases, LayerNorm1P weights of 1 as transformers has them."""
        std = self.config.initializer_range
        for module in self.modules():
            if isinstance(module, LayerNorm1P):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, 0.0, std)
                if module.padding_idx is not None:
                    with torch.no_grad():
                        module.weight[module.padding_idx].zero_()
