"""What the plugins of projections have in common: a kernel for each bucket of rows.

Shapes: B sequences, S tokens; a row is a token of a sequence.
"""

from __future__ import annotations

from nemotron_plugins.launches.linear import ROW_BUCKETS, row_bucket, row_buckets
from nemotron_plugins.requests import KernelRequest
from nemotron_plugins.tensorrt.operator import PluginOp

__all__ = ["ProjectionOp"]


class ProjectionOp(PluginOp):
    """The kernel ``rR`` takes up to R rows, the largest any number: see :func:`row_bucket`."""

    @classmethod
    def _buckets(cls, request: KernelRequest) -> tuple[int, ...]:
        """Of every number of rows that a pass may have; a number of tokens that varies has no bound."""
        tokens = request.shapes[0][1]
        return ROW_BUCKETS if tokens is None else row_buckets(request.sequences * tokens)

    def _variant(self, rows: int) -> str:
        """Of the kernel that so many rows take."""
        return f"r{min(row_bucket(rows), self._buckets(self.request)[-1])}"
