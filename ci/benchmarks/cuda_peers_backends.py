"""The backends of cuda_peers.py: they note the tokens that they wrote, so that what is timed is what is compared."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from genai_peer import GenaiBackend, peer_spec

from nemotron_export.bench.backends import BACKENDS, BackendSpec
from nemotron_export.bench.backends.base import Ids
from nemotron_export.bench.backends.bundle import BundleBackend
from nemotron_export.checkpoint import Checkpoint

__all__ = ["Entry", "GenaiPeer", "OurBundle", "entries"]


class _Noted:
    """Keeps the tokens of the last request after each prompt length.

    Options: tokens, the file that :meth:`close` writes them to; environment, variables that are set before anything
    is imported.
    """

    options: dict[str, Any]
    _written: dict[int, list[int]]
    _latest: list[int]

    def prepare(self) -> None:
        os.environ.update(self.options["environment"])
        self._written = {}
        super().prepare()  # type: ignore[misc]

    def prefill(self, ids_BS: Ids) -> Ids:
        tokens_B: Ids = super().prefill(ids_BS)  # type: ignore[misc]
        self._latest = self._written[ids_BS.shape[1]] = [int(tokens_B[0])]
        return tokens_B

    def decode(self, tokens_B: Ids) -> Ids:
        chosen_B: Ids = super().decode(tokens_B)  # type: ignore[misc]
        self._latest.append(int(chosen_B[0]))
        return chosen_B

    def close(self) -> None:
        Path(self.options["tokens"]).write_text(json.dumps(self._written), encoding="utf-8")
        super().close()  # type: ignore[misc]


class OurBundle(_Noted, BundleBackend):
    """A bundle of ours on our runtime."""

    kind: ClassVar[str] = "ours"


class GenaiPeer(_Noted, GenaiBackend):
    """A folder on ONNX Runtime GenAI."""

    kind: ClassVar[str] = "genai-noted"


# what ONNX Runtime would choose if it were told to: label, environment, groups
_OTHER_KERNELS = (
    ("flash attention", {"ORT_ENABLE_CUDNN_FLASH_ATTENTION": "0"}, ("bf16", "int4", "int4-fp16")),
    ("fpA_intB", {"ORT_FPA_INTB_GEMM": "1"}, ("int4-fp16",)),
)

BACKENDS.update({cls.kind: cls for cls in (OurBundle, GenaiPeer)})


@dataclass(frozen=True)
class Entry:
    """A backend and the folder of `work` that it runs; those of one group are loaded at once and measured in rounds."""

    spec: BackendSpec
    folder: str
    group: str


def entries(checkpoint: Path, work: Path, provider: str) -> list[Entry]:
    """All backends, ours first in each group; those whose folders were not built are left out."""
    config = Checkpoint.open(checkpoint).config
    cuda = provider == "cuda"
    dtype, bits = ("bfloat16", 16) if cuda else ("float32", 32)
    precision = "bf16" if cuda else "fp32"
    found: list[Entry] = []

    def add(runner: str, name: str, folder: str, group: str, **options: Any) -> None:
        if not (work / folder / "model.onnx").is_file():
            return
        # int4: codes, and a scale for every 32 of them
        stored = 4 + bits / 32 if group.startswith("int4") else bits
        options = {"environment": {}, "tokens": str(work / f"tokens-{len(found)}.json"), **options}
        spec = peer_spec(
            runner, name, work / folder, config, dtype, stored, dtype, table_bits=bits, device=provider, **options
        )
        found.append(Entry(spec, folder, group))

    ours = {"weights_dir": None, "allow_unverified": True, "executor": "onnxruntime"}
    graph = {"provider_options": {"enable_cuda_graph": "1"} if cuda else {}}
    groups = (precision, "int4", "int4-fp16") if cuda else (precision, "int4")
    for group in groups:
        name, folder = group.replace("-", ", "), f"ort-{provider}-{group}"
        add("ours", f"ours, {name}", folder, group, **ours)
        for label, environment, those in _OTHER_KERNELS if cuda else ():
            if group in those:
                add("ours", f"ours, {name}, {label}", folder, group, **{**ours, "environment": environment})
        if group == precision:
            add("genai-noted", f"GenAI, our folder, {name}", f"genai-{provider}-{group}", group, **graph)
        add("genai-noted", f"GenAI, its builder, {name}", f"builder-{group}", group, **graph)
    return found
