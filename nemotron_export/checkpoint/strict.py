"""Fits an index of tensors to a config, strictly: nothing missing, nothing left over, every shape and dtype right."""

from __future__ import annotations

import re
from pathlib import Path

from nemotron_errors import CheckpointError
from nemotron_formats.dtypes import RUN_DTYPES, SAFETENSORS_BITS
from nemotron_formats.tensors import TensorEntry

from nemotron_export.checkpoint.expected import TASKS, backbone_prefix, expected_tensors, is_matrix
from nemotron_export.config.config import NemotronConfig
from nemotron_export.files.untrusted import number, open_regular, quote, several

__all__ = ["fit"]

# Buffers that old checkpoints stored; they follow from the config.
_ROTARY_BUFFER = re.compile(r"\.rotary_emb\.inv_freq$")
_HEAD = re.compile(r"^(lm_head\.weight|score\.(weight|bias)|qa_outputs\.(weight|bias))$")
_PREFIXES = ("", "model.", "transformer.")
_EMBEDDING = "embed_tokens.weight"
_LM_HEAD = "lm_head.weight"
_CHUNK_BYTES = 4 << 20


def fit(
    directory: Path, config: NemotronConfig, task: str, stored: dict[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], str, bool]:
    """Returns the required tensors in the modules' order, the matrices' dtype, and whether lm_head is tied.

    The keys are the names of the task's state dict; an entry's own name is the one in its file. They differ where
    the backbone alone is wanted (`feature-extraction`) from a checkpoint of another class, whose head is then left
    out, and where a tied causal model comes from a checkpoint of the bare backbone.

    Tied embeddings: `lm_head.weight` may be missing only where `tie_word_embeddings` is true. Where it is there all
    the same, its bytes must equal the embedding's (it is then dropped); where they differ, the config and the
    weights contradict each other and the checkpoint is refused.

    Raises:
        CheckpointError: with all findings of one kind, the first few named.
    """
    where = str(directory)
    found = {name: entry for name, entry in stored.items() if not _ROTARY_BUFFER.search(name)}
    renamed, backbone_only = _to_task_names(config, task, found)
    if task == "feature-extraction" and backbone_only:
        renamed = {name: entry for name, entry in renamed.items() if not _HEAD.match(name)}
    _check_layers(config, task, renamed, where)
    expected = expected_tensors(config, task)
    tied = task == "causal-lm" and bool(config.tie_word_embeddings)
    if tied:
        _check_tied(directory, backbone_prefix(task) + _EMBEDDING, renamed)
        expected.pop(_LM_HEAD)
        renamed.pop(_LM_HEAD, None)
    _check_names(config, task, expected, renamed, where)
    _check_shapes(expected, renamed, where)
    dtype = _check_dtypes(renamed, where)
    return {name: renamed[name] for name in expected}, dtype, tied


def _to_task_names(
    config: NemotronConfig, task: str, stored: dict[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], bool]:
    """Moves the backbone's prefix where the task allows it; also says whether the heads may be left out."""
    wanted = backbone_prefix(task)
    if wanted + _EMBEDDING in stored:
        return dict(stored), task == "feature-extraction"
    allowed = task == "feature-extraction" or (task == "causal-lm" and config.tie_word_embeddings)
    for prefix in _PREFIXES if allowed else ():
        # A causal model takes the bare backbone alone: another class's head would be silently lost.
        if prefix + _EMBEDDING in stored and (task == "feature-extraction" or not prefix):
            moved = {}
            for name, entry in stored.items():
                bare = name.startswith(prefix) and not _HEAD.match(name)
                moved[wanted + name[len(prefix) :] if bare else name] = entry
            return moved, task == "feature-extraction"
    return dict(stored), False


def _check_layers(config: NemotronConfig, task: str, stored: dict[str, TensorEntry], where: str) -> None:
    """Compares the layers' numbers first: one clear finding instead of ten per layer, and a bound on their count."""
    pattern = re.compile(re.escape(backbone_prefix(task)) + r"layers\.(0|[1-9][0-9]{0,8})\.")
    layers = sorted({int(match[1]) for name in stored if (match := pattern.match(name))})
    count = config.num_hidden_layers
    if not layers:
        return  # other classes' names: the lists of names below say more
    gaps = sorted(set(range(min(count, layers[-1] + 1))) - set(layers))
    remedy = "use the config.json and the weights of one checkpoint, and all of its shards"
    if gaps:
        found = f"no tensors of layer {several([str(gap) for gap in gaps])}"
        raise CheckpointError(found, f"layers 0 to {count - 1} without gaps", remedy, where=where)
    if len(layers) != count:
        found = f"{number(len(layers), 'layer')} (0 to {layers[-1]})"
        raise CheckpointError(
            found, f"{number(count, 'layer')} (num_hidden_layers in config.json)", remedy, where=where
        )


def _check_tied(directory: Path, embedding: str, stored: dict[str, TensorEntry]) -> None:
    lm_head, source = stored.get(_LM_HEAD), stored.get(embedding)
    if lm_head is None or source is None or _same_bytes(directory, lm_head, source):
        return
    raise CheckpointError(
        f"tie_word_embeddings = true and a {_LM_HEAD} that differs from {embedding}",
        "equal tensors, or none for lm_head, where they are tied",
        "set tie_word_embeddings to false in config.json if the head was trained apart, else remove lm_head.weight",
        where=f"{directory / lm_head.file}: tensor {_LM_HEAD!r}",
    )


def _same_bytes(directory: Path, a: TensorEntry, b: TensorEntry) -> bool:
    """Streams both tensors once, up to the first difference; memory stays at two chunks.

    Raises:
        CheckpointError: where a file became shorter since its header was read.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    file_a, _ = open_regular(directory / a.file, "a safetensors file")
    file_b, _ = open_regular(directory / b.file, "a safetensors file")
    with file_a, file_b:
        file_a.seek(a.offset)
        file_b.seek(b.offset)
        left = a.length
        while left:
            count = min(left, _CHUNK_BYTES)
            part_a, part_b = file_a.read(count), file_b.read(count)
            if len(part_a) != count or len(part_b) != count:
                raise CheckpointError(
                    "a file that ends early", "the bytes that its header names",
                    "do not change the file while it is read", where=str(directory / a.file),
                )  # fmt: skip
            if part_a != part_b:
                return False
            left -= count
    return True


def _check_names(
    config: NemotronConfig, task: str, expected: dict[str, tuple[int, ...]], stored: dict[str, TensorEntry], where: str
) -> None:
    missing = [name for name in expected if name not in stored]
    extra = [name for name in stored if name not in expected]
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"{number(len(missing), 'tensor')} missing: {several([quote(name) for name in missing])}")
    if extra:
        parts.append(f"{len(extra)} unexpected: {several([quote(name) for name in extra])}")
    raise CheckpointError(
        "; ".join(parts),
        f"exactly the {number(len(expected), 'tensor')} of {TASKS[task][1]}",
        _names_remedy(config, task, missing, extra),
        where=where,
    )


def _names_remedy(config: NemotronConfig, task: str, missing: list[str], extra: list[str]) -> str:
    if missing == [_LM_HEAD] and not extra:
        return "if the head shares the embedding's weights, set tie_word_embeddings to true in config.json"
    if any(name.endswith("gate_proj.weight") for name in extra):
        return "this is a model with a gated MLP (Llama, Mistral, ...), not a Nemotron: convert its own architecture"
    if extra and all(name.endswith(".bias") for name in extra) and not missing:
        return "set attention_bias or mlp_bias to true in config.json if the model was trained with biases"
    if missing and all(name.endswith("_proj.bias") for name in missing) and not extra:
        return "set attention_bias or mlp_bias to false in config.json if the model has no biases"
    if any(re.search(r"(scale|zero_point|qweight|qzeros|scales|absmax|quant_state)", name) for name in extra):
        return "this checkpoint is quantized: use the one that it was made from"
    if any("lora_" in name for name in extra):
        return "merge the adapter into the model first (PEFT's merge_and_unload)"
    classes = config.architectures or []
    fitting = [other for other, (_, name) in TASKS.items() if name in classes and other != task]
    if fitting:
        return f"the config's architecture is {classes[0]}: use the task {fitting[0]}"
    return "use the config.json and the weights of one checkpoint, and all of its shards"


def _check_shapes(expected: dict[str, tuple[int, ...]], stored: dict[str, TensorEntry], where: str) -> None:
    wrong = [
        f"{quote(name)} of shape {list(stored[name].shape)} where config.json says {list(shape)}"
        for name, shape in expected.items()
        if stored[name].shape != shape
    ]
    if wrong:
        raise CheckpointError(
            f"{number(len(wrong), 'tensor')} of another shape: {several(wrong)}",
            "the shapes that follow from config.json",
            "use the config.json and the weights of one checkpoint",
            where=where,
        )


def _check_dtypes(stored: dict[str, TensorEntry], where: str) -> str:
    others = {name: entry for name, entry in stored.items() if entry.dtype_name not in RUN_DTYPES}
    if others:
        wrong = [f"{quote(name)} of {entry.dtype}" for name, entry in others.items()]
        quantized = "this checkpoint is quantized: use the one that it was made from"
        narrow = all(SAFETENSORS_BITS[entry.dtype] <= 8 for entry in others.values())
        remedy = quantized if narrow else "convert it to bfloat16, float16 or float32"
        found = f"{number(len(wrong), 'tensor')} of another dtype: {several(wrong)}"
        raise CheckpointError(found, "BF16, F16 or F32", remedy, where=where)
    matrices: dict[str, list[str]] = {}
    for name, entry in stored.items():
        if is_matrix(name):
            matrices.setdefault(entry.dtype, []).append(name)
    if len(matrices) > 1:
        kinds = "; ".join(f"{len(names)} of {dtype} ({quote(names[0])})" for dtype, names in matrices.items())
        remedy = "convert the checkpoint to one dtype (save_pretrained after .to(dtype))"
        raise CheckpointError(f"matrices of several dtypes: {kinds}", "one dtype for all matrices", remedy, where=where)
    ((dtype, names),) = matrices.items()
    # A norm or bias of a lower precision than the matrices loses nothing; of another 16-bit format it would.
    odd = [f"{quote(n)} of {e.dtype}" for n, e in stored.items() if e.dtype not in (dtype, "F32")]
    if odd:
        found = f"{len(odd)} norms or biases of another dtype: {several(odd)}"
        raise CheckpointError(found, f"{dtype} or F32", "convert the checkpoint to one dtype", where=where)
    return stored[names[0]].dtype_name
