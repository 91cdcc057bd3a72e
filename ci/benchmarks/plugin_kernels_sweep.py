"""Launches of kernels with other blocks than their rules choose, for ``plugin_kernels.py``."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from nemotron_plugins.launches.launch import GridAxis, Launch

__all__ = ["ATTENTION", "variants"]

ATTENTION = "fused"
_LINEAR_SWEEP = {
    "BLOCK_OUT": (2, 4, 8, 16, 32, 64),
    "BLOCK_IN": (64, 128, 256, 512, 1024),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 3, 4, 5),
}
_ATTENTION_SWEEP = {
    "SPLITS": (8, 16, 32, 64),
    "BLOCK_N": (16, 32, 64, 128),
    "num_warps": (2, 4, 8),
    "num_stages": (2, 3, 4),
}


def variants(key: str, launch: Launch, chosen: Sequence[Sequence[int]]) -> Iterator[tuple[str, Launch]]:
    """A kernel's launch with other blocks, and their names: the chosen ones, or all that make sense.

    Args:
        key: a projection's, or decode attention's: ``name.variant``.
        launch: the rule's.
        chosen: of a projection outputs, inputs, warps and stages; of attention splits, tokens, warps and stages.
    """
    yield from (_attention if key.startswith(ATTENTION) else _linear)(launch, chosen)


def _linear(launch: Launch, chosen: Sequence[Sequence[int]]) -> Iterator[tuple[str, Launch]]:
    several = int(launch.constexprs["BLOCK_ROWS"]) > 1
    inputs, outputs = int(launch.constexprs["INPUTS"]), int(launch.constexprs["OUTPUTS"])
    for out, tile, warps, stages in chosen or itertools.product(*_LINEAR_SWEEP.values()):
        fits = (512 if several else 1024) <= out * tile <= 16384 and (out >= 16 or not several)
        if inputs % tile or not (chosen or fits):
            continue
        yield (
            f"{out}x{tile}, {warps} warps, {stages} stages",
            dataclasses.replace(
                launch,
                constexprs={
                    **launch.constexprs,
                    "BLOCK_OUT": out,
                    "BLOCK_IN": tile,
                    # what it asks the cache for ends with the row
                    "PREFETCH": max(0, min(int(launch.constexprs["PREFETCH"]), inputs - tile)),
                },
                grid=(GridAxis(outputs, (), out), launch.grid[1]),
                num_warps=warps,
                num_stages=stages,
            ),
        )


def _attention(launch: Launch, chosen: Sequence[Sequence[int]]) -> Iterator[tuple[str, Launch]]:
    for splits, tokens, warps, stages in chosen or itertools.product(*_ATTENTION_SWEEP.values()):
        yield (
            f"{splits} splits of {tokens}, {warps} warps, {stages} stages",
            dataclasses.replace(
                launch,
                constexprs={**launch.constexprs, "SPLITS": splits, "BLOCK_N": tokens},
                grid=(launch.grid[0], GridAxis(splits)),
                num_warps=warps,
                num_stages=stages,
            ),
        )
