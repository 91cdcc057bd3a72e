"""A backend: what it is asked in the parent process, and what it does in its own.

Shapes: B sequences, S prompt tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from nemotron_runtime.bundle.folder import Bundle

from nemotron_export.bench.options import BenchOptions

__all__ = ["Backend", "BackendSpec", "BenchRequest", "Description", "Ids"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BenchRequest:
    """What the user asked for.

    Attributes:
        bundles: opened bundles.
        checkpoint: the checkpoint; the folder of the first bundle's weights where None.
        weights_dir: where the bundles' weights are, if they were moved.
        allow_unverified: bundles may be pending.
        options: what is measured, and how.
    """

    bundles: tuple[Bundle, ...]
    checkpoint: Path | None
    weights_dir: Path | None
    allow_unverified: bool
    options: BenchOptions


@dataclass(frozen=True)
class BackendSpec:
    """One backend before its process exists.

    Attributes:
        kind: its key in `BACKENDS`.
        name: what tables call it.
        options: for its constructor; plain JSON.
        weight_bytes: of all its weights, which must fit into memory with all the others'.
        device: where it computes and has its weights: "cpu" or "cuda".
    """

    kind: str
    name: str
    options: dict[str, Any]
    weight_bytes: int
    device: str = "cpu"


@dataclass(frozen=True)
class Description:
    """What a loaded backend is.

    Attributes:
        dtype: what it computes in.
        vocab_size: token ids are below it.
        weight_bytes: of the weights that each decode step reads, see `bench.traffic`.
        kv_bytes_per_token: keys and values of one token of one sequence, all layers.
    """

    dtype: str
    vocab_size: int
    weight_bytes: int
    kv_bytes_per_token: int


class Backend(ABC):
    """Generates greedily in a process of its own, one request at a time.

    :meth:`specs` runs in the parent and imports no heavy package; so modules of backends import theirs inside the
    methods. The rest runs in the child: :meth:`prepare`, :meth:`load`, then for each measurement :meth:`reset`,
    :meth:`prefill` and :meth:`decode`, and :meth:`close`. Every call returns when its result is on the host.

    Args:
        options: those of its spec.
        threads: CPU threads to use.
    """

    def __init__(self, options: dict[str, Any], threads: int) -> None:
        self.options = options
        self.threads = threads

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def specs(cls, request: BenchRequest) -> list[BackendSpec]:
        """The backends of this kind that a request asks for.

        Raises:
            MissingDependencyError: a package that it needs is not installed.
            NemotronError: a request that it cannot take.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Imports what it needs; not part of the load time."""

    @abstractmethod
    def load(self) -> Description:
        """Opens files and makes ready for :meth:`reset`; this is the load time."""

    @abstractmethod
    def reset(self, sequences: int, capacity: int) -> None:
        """Starts over with a fresh KV cache of so many sequences of `capacity` tokens each."""

    @abstractmethod
    def prefill(self, ids_BS: Ids) -> Ids:
        """Feeds the prompts; gives the first new token of each sequence [B]."""

    @abstractmethod
    def decode(self, tokens_B: Ids) -> Ids:
        """Feeds one token per sequence; gives the next ones [B]."""

    def device_peak_bytes(self) -> int | None:
        """The most that it allocated of the GPU's memory, CUDA's own context not counted; None without one."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Frees what it holds."""
