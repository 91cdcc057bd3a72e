"""Weight formats, one file each. A checkpoint's own numbers (dense) are no format: a graph takes them as they are."""

from __future__ import annotations

from nemotron_errors import BundleError, RequestError

from nemotron_formats.weights.int4 import Int4
from nemotron_formats.weights.int8 import Int8
from nemotron_formats.weights.integers import GroupedIntegers
from nemotron_formats.weights.weight_format import Arrays, Budget, Operand, WeightFormat

__all__ = [
    "FORMATS",
    "Arrays",
    "Budget",
    "GroupedIntegers",
    "Int4",
    "Int8",
    "Operand",
    "WeightFormat",
    "choose_format",
    "format_named",
]

# the first member of a family is what `--quantize FAMILY` gives without `--group-size`
_MEMBERS: tuple[WeightFormat, ...] = (
    *map(Int8, (128, 32, 64)),
    *map(Int4, (32, 64, 128)),
)
FORMATS: dict[str, WeightFormat] = {each.name: each for each in _MEMBERS}


def choose_format(family: str, group_size: int | None, offered: tuple[str, ...]) -> WeightFormat:
    """The format that options ask for.

    Args:
        family: of ``--quantize``.
        group_size: of ``--group-size``; the family's default where None.
        offered: families that the target takes.

    Raises:
        RequestError: a family or group size that does not exist, or that is not offered.
    """
    families = tuple(dict.fromkeys(each.family for each in FORMATS.values()))
    if family not in families:
        expected = f"one of {', '.join(families)}"
        raise RequestError(f"'{family}'", expected, "choose one of them", where="--quantize")
    if family not in offered:
        raise RequestError(
            f"{family}, which the target has no projections for", f"one of {', '.join(offered) or 'none'}",
            "choose another --target (`nemotron-export build --help` lists them), or leave --quantize out",
            where="--quantize",
        )  # fmt: skip
    members = [each for each in FORMATS.values() if each.family == family]
    if group_size is None:
        return members[0]
    for each in members:
        if each.group_size == group_size:
            return each
    sizes = ", ".join(str(size) for size in sorted(each.group_size or 0 for each in members) if size)
    expected = f"one of {sizes}" if sizes else f"no group size for {family}"
    raise RequestError(str(group_size), expected, "choose one of them, or leave it out", where="--group-size")


def format_named(name: str, where: str) -> WeightFormat:
    """The format of that name in a manifest.

    Raises:
        BundleError: there is none.
    """
    if name not in FORMATS:
        remedy = "update nemotron-export here, or build the bundle again with this version"
        raise BundleError(f"weight format '{name}'", f"one of {', '.join(FORMATS)}", remedy, where=where)
    return FORMATS[name]
