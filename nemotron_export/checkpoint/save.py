"""Writes a checkpoint that transformers and :meth:`Checkpoint.open` read: config.json and safetensors files."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron_errors import CheckpointError, RequestError, ResourceError
from nemotron_formats.dtypes import RUN_DTYPES

from nemotron_export.checkpoint.expected import TASKS, backbone_prefix, expected_tensors, is_matrix
from nemotron_export.checkpoint.index import INDEX_FILE, SINGLE_FILE
from nemotron_export.config.config import NemotronConfig
from nemotron_export.files.untrusted import quote, several
from nemotron_export.installation.extras import require

if TYPE_CHECKING:
    import torch

__all__ = ["save_checkpoint"]

_WEIGHT_FILE = re.compile(r"^model(-\d+-of-\d+)?\.safetensors$")


def save_checkpoint(
    directory: str | Path,
    config: NemotronConfig,
    tensors: Mapping[str, torch.Tensor],
    *,
    task: str = "causal-lm",
    max_shard_size: int | str = "5GB",
    generation_config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a task's state dict and its config; weights of an earlier save in the folder are replaced.

    Everything is first written to a temporary folder and config.json is moved last, so that an interrupted save leaves
    the old checkpoint, or a folder without config.json, and never a mixture.

    Args:
        directory: made where it is missing.
        config: written with the tensors' dtype and the task's class.
        tensors: all names and shapes of :func:`expected_tensors`; with tied embeddings `lm_head.weight` may be
            missing or must equal the embedding, and is not written.
        max_shard_size: bytes of a file, or a text such as "5GB"; one tensor is never split.

    Raises:
        CheckpointError: names, shapes or dtypes that do not fit the config.
        RequestError: a max_shard_size that makes no sense.
        ResourceError: no space left.
    """
    require("torch", "to write its tensors")
    require("huggingface_hub", "to split weights into files")
    from huggingface_hub import split_torch_state_dict_into_shards

    place = Path(directory)
    state, dtype = _check(config, task, dict(tensors), str(place))
    try:
        split = split_torch_state_dict_into_shards(
            state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
        )
    except ValueError as error:
        raise RequestError(
            f"{max_shard_size!r} ({error})", "bytes, or a text such as 5GB", "correct it", where="max_shard_size"
        ) from None
    documents: dict[str, Any] = {}
    if split.is_sharded:
        documents[INDEX_FILE] = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    if generation_config is not None:
        documents["generation_config.json"] = dict(generation_config)
    documents["config.json"] = config.replace(architectures=[TASKS[task][1]], dtype=dtype).to_dict()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".save-", dir=place) as staged:
            for file, names in split.filename_to_tensors.items():
                _write_shard(Path(staged) / file, {name: state[name] for name in names})
            for file, document in documents.items():
                (Path(staged) / file).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            _replace(place, Path(staged), [*split.filename_to_tensors, *documents])
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise CheckpointError(f"an error of the operating system ({error})", "a folder to write to",
                                  "check the path and its permissions", where=str(place)) from None  # fmt: skip
        needed = sum(tensor.nbytes for tensor in state.values())
        free = f"{shutil.disk_usage(place).free} bytes free"
        raise ResourceError(
            free, f"{needed} bytes", "free disk space or choose another folder", where=str(place)
        ) from None
    return place


def _check(
    config: NemotronConfig, task: str, state: dict[str, torch.Tensor], where: str
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors to write, in the modules' order, and the matrices' dtype."""
    import torch

    expected = expected_tensors(config, task)
    if task == "causal-lm" and config.tie_word_embeddings:
        expected.pop("lm_head.weight")
        head, embedding = state.pop("lm_head.weight", None), state.get(f"{backbone_prefix(task)}embed_tokens.weight")
        if head is not None and embedding is not None and not (head is embedding or torch.equal(head, embedding)):
            raise CheckpointError(
                "an lm_head.weight that differs from the embedding", "equal tensors, since tie_word_embeddings is true",
                "tie the weights, or set tie_word_embeddings to false", where=where,
            )  # fmt: skip
    wrong = [f"no {name}" for name in expected if name not in state]
    wrong += [f"the unexpected {quote(name)}" for name in state if name not in expected]
    wrong += [
        f"{name} of shape {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    if wrong:
        raise CheckpointError(several(wrong), f"the tensors of {TASKS[task][1]} for this config",
                              "save the model's own state_dict() and config", where=where)  # fmt: skip
    dtypes = {str(state[name].dtype).removeprefix("torch.") for name in expected if is_matrix(name)}
    if len(dtypes) != 1 or not dtypes <= set(RUN_DTYPES):
        raise CheckpointError(f"matrices of {', '.join(sorted(dtypes))}", "one of bfloat16, float16, float32 for all",
                              "convert the model by .to(dtype)", where=where)  # fmt: skip
    return {name: state[name] for name in expected}, dtypes.pop()


def _write_shard(path: Path, state: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    def alone(tensor: torch.Tensor) -> torch.Tensor:
        host = tensor.detach().cpu().contiguous()
        # A view into a larger buffer would be refused as shared memory.
        return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()

    # The same metadata as transformers writes: its loader asks for it.
    save_file({name: alone(tensor) for name, tensor in state.items()}, path, metadata={"format": "pt"})


def _replace(place: Path, staged: Path, files: list[str]) -> None:
    """Takes the old checkpoint out of sight first, then moves the new files, config.json last."""
    for old in ("config.json", INDEX_FILE, SINGLE_FILE):
        (place / old).unlink(missing_ok=True)
    for path in sorted(place.iterdir()):
        if _WEIGHT_FILE.match(path.name):
            path.unlink()
    for file in files:
        (staged / file).replace(place / file)
