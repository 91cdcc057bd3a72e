"""A checkpoint's folder, opened strictly: its config and an index of its tensors, nothing loaded."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron_errors import CheckpointError
from nemotron_formats.tensors import TensorEntry

from nemotron_export.checkpoint.expected import backbone_prefix, task_of_architecture
from nemotron_export.checkpoint.hub import resolve
from nemotron_export.checkpoint.index import read_index
from nemotron_export.checkpoint.safetensors_header import Shard
from nemotron_export.checkpoint.strict import fit
from nemotron_export.config.config import NemotronConfig
from nemotron_export.files.untrusted import list_folder, quote, read_json

__all__ = ["Checkpoint"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_LICENSE_FILE = re.compile(r"^(licen[cs]e|notice|copying|use_policy)", re.IGNORECASE)


@dataclass(frozen=True)
class Checkpoint:
    """What :meth:`open` found: the config, the required tensors in the modules' order, and the other files.

    `tensors` is keyed by the names of the task's state dict. `dtype` is the matrices' dtype ("bfloat16", "float16",
    "float32"). `tied` says that `lm_head.weight` is the embedding (it is then not in `tensors`).
    """

    directory: Path
    task: str
    config: NemotronConfig
    tensors: dict[str, TensorEntry]
    shards: list[Shard]
    dtype: str
    tied: bool
    tokenizer_files: list[Path]
    license_files: list[Path]
    generation_config: dict[str, Any]

    @property
    def num_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(entry.num_elements for entry in self.tensors.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the required tensors."""
        return sum(entry.length for entry in self.tensors.values())

    resolve = staticmethod(resolve)

    @classmethod
    def open(cls, path: str | Path, *, task: str | None = "causal-lm") -> Checkpoint:
        """Opens a local folder: reads config.json and the headers of its safetensors files, and no tensor.

        Args:
            task: whose state dict is wanted; None: that of the config's architecture, "causal-lm" where it names none.

        Raises:
            CheckpointError: for a folder or a weight file that is missing, broken, or does not fit the config.
            ConfigError: for a config.json that is not a Nemotron this project reproduces.
        """
        if task is not None:
            backbone_prefix(task)
        directory = Path(path)
        expected = "a checkpoint's folder (config.json and safetensors files)"
        if os.path.isfile(directory):  # unlike pathlib's it never raises
            remedy = "give the folder that holds it"
            raise CheckpointError("a file", expected, remedy, where=str(directory))
        names = list_folder(directory, expected)
        if "config.json" not in names:
            raise _no_config(directory, names)
        config_path = directory / "config.json"
        config = NemotronConfig.from_dict(read_json(config_path, "a model's config"), where=str(config_path))
        shards, stored = read_index(directory, names)
        if task is None:
            task = task_of_architecture(config)
        tensors, dtype, tied = fit(directory, config, task, stored)
        return cls(
            directory=directory.absolute(),
            task=task,
            config=config,
            tensors=tensors,
            shards=shards,
            dtype=dtype,
            tied=tied,
            tokenizer_files=_files(directory, [name for name in _TOKENIZER_FILES if name in names]),
            license_files=_files(directory, [name for name in names if _LICENSE_FILE.match(name)]),
            generation_config=_generation_config(directory, names),
        )


def _files(directory: Path, names: list[str]) -> list[Path]:
    """The regular files among names, as absolute paths."""
    paths = [directory.absolute() / name for name in names]
    return [path for path in paths if os.path.isfile(path)]


def _no_config(directory: Path, names: list[str]) -> CheckpointError:
    expected = "config.json beside the weights"
    if any(name.endswith(".nemo") for name in names) or "model_config.yaml" in names:
        return CheckpointError(
            "a NeMo archive", expected, "convert it with transformers' convert_nemotron_nemo_to_hf.py",
            where=str(directory),
        )  # fmt: skip
    if "manifest.json" in names:
        remedy = "give the checkpoint that this bundle was built from"
        return CheckpointError("a bundle (manifest.json)", expected, remedy, where=str(directory))
    found = "no config.json" if names else "an empty folder"
    return CheckpointError(found, expected, "check that the download was complete", where=str(directory))


def _generation_config(directory: Path, names: list[str]) -> dict[str, Any]:
    if "generation_config.json" not in names:
        return {}
    path = directory / "generation_config.json"
    values = read_json(path, "generation settings")
    eos = values.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        found, remedy = f"eos_token_id = {quote(eos)}", "write the ids that the tokenizer gives, or remove the key"
        raise CheckpointError(found, "a token id or a list of them", remedy, where=str(path))
    return values
