"""RoPE parameters of a config: the old keys and the new dict, brought to one checked form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nemotron_errors import ConfigError

__all__ = ["ROPE_TYPES", "check_rotary_width", "normalize_rope_parameters"]

DEFAULT_THETA = 10000.0
DEFAULT_PARTIAL_ROTARY_FACTOR = 0.5

_COMMON = {"rope_type", "rope_theta", "partial_rotary_factor"}

# rope type → (required, optional) besides the common keys
ROPE_TYPES: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    name: (frozenset(required.split()), frozenset(optional.split()))
    for name, required, optional in (
        ("default", "", ""),
        ("linear", "factor", ""),
        ("dynamic", "factor", "original_max_position_embeddings"),
        (
            "yarn",
            "factor",
            "original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim truncate",
        ),
        ("longrope", "short_factor long_factor", "original_max_position_embeddings attention_factor factor"),
        ("llama3", "factor low_freq_factor high_freq_factor", "original_max_position_embeddings"),
    )
}

_PARTIAL_ALIASES = ("partial_rotary_factor", "rope_percent", "rope_percentage")


def normalize_rope_parameters(values: Mapping[str, Any], max_positions: int, where: str) -> dict[str, Any]:
    """Merges ``rope_parameters``, ``rope_scaling`` and the top-level keys.

    Args:
        values: a config's keys.
        max_positions: what ``original_max_position_embeddings`` is where a scaled type does not say it.
        where: names the config in errors.

    Returns:
        A dict with ``rope_type``, ``rope_theta``, ``partial_rotary_factor`` and what the type needs besides them.

    Raises:
        ConfigError: layouts that disagree, an unknown type, missing, unknown or senseless parameters.
    """
    merged: dict[str, Any] = {}
    source: dict[str, str] = {}

    def put(key: str, value: Any, origin: str) -> None:
        if value is None:
            return
        if key in merged and merged[key] != value:
            found = f"{key} = {merged[key]!r} in {source[key]} and {value!r} in {origin}"
            raise ConfigError(found, "one value wherever it stands", "remove the wrong one", where=where)
        merged[key] = value
        source.setdefault(key, origin)

    for origin in ("rope_parameters", "rope_scaling"):
        nested = values.get(origin)
        if nested is None:
            continue
        if not isinstance(nested, Mapping):
            raise ConfigError(f"{origin} = {nested!r}", "an object or null", "correct the config", where=where)
        for key, value in nested.items():
            put("rope_type" if key == "type" else key, value, origin)
    put("rope_theta", values.get("rope_theta"), "the top level")
    for alias in _PARTIAL_ALIASES:
        put("partial_rotary_factor", values.get(alias), f"the top level ({alias})")
    put("original_max_position_embeddings", values.get("original_max_position_embeddings"), "the top level")

    merged.setdefault("rope_type", "default")
    merged.setdefault("rope_theta", DEFAULT_THETA)
    merged.setdefault("partial_rotary_factor", DEFAULT_PARTIAL_ROTARY_FACTOR)
    _check(merged, where)
    if merged["rope_type"] in ("yarn", "longrope", "llama3"):
        merged.setdefault("original_max_position_embeddings", max_positions)
    return merged


def _check(rope: dict[str, Any], where: str) -> None:
    def refuse(key: str, expected: str) -> None:
        raise ConfigError(f"RoPE {key} = {rope[key]!r}", expected, "correct the config", where=where)

    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        refuse("rope_type", f"one of {', '.join(ROPE_TYPES)}")
    required, optional = ROPE_TYPES[kind]
    if missing := sorted(required - rope.keys()):
        found, expected = f"rope_type {kind} without {', '.join(missing)}", ", ".join(sorted(required))
        raise ConfigError(found, expected, "add them to rope_parameters", where=where)
    if unknown := sorted(rope.keys() - required - optional - _COMMON):
        found, known = f"{', '.join(unknown)} for rope_type {kind}", required | optional | _COMMON
        raise ConfigError(found, f"only {', '.join(sorted(known))}", "correct rope_type or remove them", where=where)
    for key, value in rope.items():
        if key == "rope_type":
            continue
        if key in ("short_factor", "long_factor"):
            if not isinstance(value, list) or not value or not all(_is_positive(v) for v in value):
                refuse(key, "a list of numbers above 0")
        elif key == "truncate":
            if type(value) is not bool:
                refuse(key, "true or false")
        elif key == "original_max_position_embeddings":
            if type(value) is not int or value < 2:
                refuse(key, "a whole number of 2 or more")
        elif not _is_positive(value):
            refuse(key, "a finite number above 0")
    if rope["rope_theta"] <= 1:
        refuse("rope_theta", "a number above 1")
    if rope["partial_rotary_factor"] > 1:
        refuse("partial_rotary_factor", "a share above 0 and up to 1")
    if "factor" in rope and rope["factor"] < 1:
        refuse("factor", "a number of 1 or more")
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        refuse("low_freq_factor", f"less than high_freq_factor {rope['high_freq_factor']}")


def check_rotary_width(rope: Mapping[str, Any], head_dim: int, where: str) -> None:
    """Checks normalized parameters against the width that they rotate.

    Raises:
        ConfigError: an odd or empty width, a width that the type cannot take, or lists of another length.
    """
    width = int(head_dim * rope["partial_rotary_factor"])
    if not 0 < width <= head_dim or width % 2:
        raise ConfigError(
            f"partial_rotary_factor {rope['partial_rotary_factor']} of head_dim {head_dim}: a rotary width of {width}",
            f"an even width from 2 to {head_dim}",
            "correct partial_rotary_factor or head_dim",
            where=where,
        )
    if rope["rope_type"] == "dynamic" and width == 2:
        raise ConfigError(
            "rope_type dynamic with a rotary width of 2", "4 or more", "correct partial_rotary_factor", where=where
        )
    for key in ("short_factor", "long_factor"):
        if key in rope and len(rope[key]) != width // 2:
            raise ConfigError(
                f"{len(rope[key])} numbers in {key}",
                f"{width // 2}, one per pair of the {width} rotated lanes",
                "correct rope_parameters",
                where=where,
            )


def _is_positive(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value > 0
