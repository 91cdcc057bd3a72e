"""The config of a Nemotron: Hugging Face's parameters, read strictly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron_errors import ConfigError

from nemotron_export.config.checks import (
    HARMLESS_KEYS,
    check_architecture,
    check_fields,
    check_unknown_keys,
    count_labels,
)
from nemotron_export.config.rope import check_rotary_width, normalize_rope_parameters
from nemotron_export.files.untrusted import read_json

__all__ = ["NemotronConfig"]


@dataclass
class NemotronConfig:
    """Parameters and defaults of Hugging Face's ``NemotronConfig``.

    ``head_dim`` and ``num_key_value_heads`` are resolved to numbers after construction; ``rope_parameters`` holds at
    least ``rope_type``, ``rope_theta`` and ``partial_rotary_factor``. The constructor takes the old layout's
    ``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling`` too.

    Raises:
        ConfigError: where a value has the wrong type or range, or names something this family does not have.
    """

    vocab_size: int = 256000
    hidden_size: int = 6144
    intermediate_size: int = 24576
    num_hidden_layers: int = 32
    num_attention_heads: int = 48
    head_dim: int = None  # type: ignore[assignment]
    num_key_value_heads: int = None  # type: ignore[assignment]
    hidden_act: str = "relu2"
    max_position_embeddings: int = 4096
    initializer_range: float = 0.0134
    norm_eps: float = 1e-5
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 3
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    architectures: list[str] | None = None
    dtype: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """Keys of the file that change no number (labels, versions, …), kept for writing it back."""

    where: dataclasses.InitVar[str] = "config.json"
    rope_theta: dataclasses.InitVar[float | None] = None
    partial_rotary_factor: dataclasses.InitVar[float | None] = None
    rope_scaling: dataclasses.InitVar[dict[str, Any] | None] = None

    def __post_init__(
        self,
        where: str,
        rope_theta: float | None,
        partial_rotary_factor: float | None,
        rope_scaling: dict[str, Any] | None,
    ) -> None:
        check_fields(vars(self), where)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size}, num_attention_heads {self.num_attention_heads} and no head_dim",
                    "a head_dim, or a hidden_size that the heads divide",
                    "add head_dim to the config",
                    where=where,
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} and num_key_value_heads {self.num_key_value_heads}",
                "query heads that are a multiple of the key/value heads",
                "correct the config",
                where=where,
            )
        layouts = {
            "rope_parameters": self.rope_parameters,
            "rope_scaling": rope_scaling,
            "rope_theta": rope_theta,
            "partial_rotary_factor": partial_rotary_factor,
        }
        self.rope_parameters = normalize_rope_parameters(layouts, self.max_position_embeddings, where)
        check_rotary_width(self.rope_parameters, self.head_dim, where)

    @property
    def rotary_dim(self) -> int:
        """How many lanes of each head are rotated: ``int(head_dim * partial_rotary_factor)``."""
        return int(self.head_dim * self.rope_parameters["partial_rotary_factor"])

    @property
    def num_key_value_groups(self) -> int:
        """Query heads per key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids that end a text."""
        if self.eos_token_id is None:
            return ()
        return tuple(self.eos_token_id) if isinstance(self.eos_token_id, list) else (self.eos_token_id,)

    @property
    def num_labels(self) -> int:
        """Classes of the classification heads: those of ``id2label``, else ``num_labels``, else 2.

        Raises:
            ConfigError: one of them makes no sense.
        """
        return count_labels(self.extra, "config.json")

    def replace(self, **changes: Any) -> NemotronConfig:
        """A copy with some fields changed, checked anew."""
        # num_key_value_heads and head_dim are numbers by now, so the copy keeps what they were resolved to
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return NemotronConfig(**{**kept, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config.json") -> NemotronConfig:
        """Reads what a ``config.json`` holds, in the old or the new RoPE layout.

        Raises:
            ConfigError: another architecture, another activation, keys that change the maths and are unknown here,
                layouts that disagree, values of a wrong type or range.
        """
        check_architecture(values, where)
        fields = {f.name for f in dataclasses.fields(cls)} - {"extra"}
        check_unknown_keys(values, fields, where)
        names = fields - {"rope_parameters", "dtype", "architectures"}
        known = {key: value for key, value in values.items() if key in names}
        if known.get("head_dim") is None and values.get("kv_channels") is not None:
            known["head_dim"] = values["kv_channels"]
        elif values.get("kv_channels") not in (None, known.get("head_dim")):
            raise ConfigError(
                f"head_dim {known.get('head_dim')} and kv_channels {values['kv_channels']}",
                "one value under both names",
                "remove the wrong one",
                where=where,
            )
        dtype = values.get("dtype") if values.get("dtype") is not None else values.get("torch_dtype")
        max_positions = known.get("max_position_embeddings", cls.max_position_embeddings)
        return cls(
            **known,
            rope_parameters=normalize_rope_parameters(values, max_positions, where),
            architectures=values.get("architectures"),
            dtype=None if dtype in (None, "auto") else str(dtype).removeprefix("torch."),
            extra={key: value for key, value in values.items() if key in HARMLESS_KEYS},
            where=where,
        )

    @classmethod
    def from_json_file(cls, path: str | Path) -> NemotronConfig:
        """Reads a ``config.json``.

        Raises:
            ConfigError: where the file is missing, is no JSON object, or as :meth:`from_dict`.
        """
        return cls.from_dict(read_json(Path(path), "a model's config", ConfigError), where=str(path))

    def to_dict(self) -> dict[str, Any]:
        """What a ``config.json`` holds; transformers reads it back to the same model."""
        values = dict(self.extra)
        for each in dataclasses.fields(self):
            if each.name != "extra":
                values[each.name] = getattr(self, each.name)
        values["model_type"] = "nemotron"
        values["rope_parameters"] = dict(self.rope_parameters)
        return {key: value for key, value in values.items() if value is not None or key == "pad_token_id"}

    def to_json(self) -> str:
        """:meth:`to_dict` as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def _rope_property(key: str) -> property:
    return property(lambda self: self.rope_parameters[key], doc=f"``rope_parameters[{key!r}]``.")


def _rope_scaling(config: NemotronConfig) -> dict[str, Any] | None:
    """``rope_parameters`` where they scale, None for plain RoPE."""
    return None if config.rope_parameters["rope_type"] == "default" else config.rope_parameters


# the old layout's names stay readable; set here, since in the class they are arguments of the constructor
NemotronConfig.rope_theta = _rope_property("rope_theta")  # type: ignore[attr-defined]
NemotronConfig.partial_rotary_factor = _rope_property("partial_rotary_factor")  # type: ignore[attr-defined]
NemotronConfig.rope_scaling = property(_rope_scaling)  # type: ignore[attr-defined]
