"""What a bundle's manifest says of its head."""

from __future__ import annotations

from typing import Any

from nemotron_errors import ConfigError

from nemotron_export.config.config import NemotronConfig
from nemotron_export.tracing.trace import output_name

__all__ = ["head_record"]


def head_record(config: NemotronConfig, task: str) -> dict[str, Any]:
    """The manifest's ``head``: the output's name and size, and what its values are called."""
    classes = _labels(config) if task in ("sequence-classification", "token-classification") else []
    sizes = {
        "causal-lm": config.vocab_size,
        "feature-extraction": config.hidden_size,
        "question-answering": 2,
    }
    return {
        "output": output_name(task),
        "size": sizes.get(task, len(classes)),
        "labels": classes,
        "problem_type": config.extra.get("problem_type") if task == "sequence-classification" else None,
    }


def _labels(config: NemotronConfig) -> list[str]:
    named = config.extra.get("id2label")
    if named is None:
        return [f"LABEL_{index}" for index in range(config.num_labels)]
    try:
        by_class = {int(key): str(label) for key, label in named.items()}
    except ValueError:
        by_class = {}
    if sorted(by_class) != list(range(len(named))):
        found, expected = f"classes {', '.join(map(str, named))}", f"0 to {len(named) - 1}, each once"
        raise ConfigError(found, expected, "correct id2label in config.json", where="id2label")
    return [by_class[index] for index in range(len(named))]
