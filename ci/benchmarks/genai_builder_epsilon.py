"""What ONNX Runtime GenAI's own model builder computes of a Nemotron checkpoint, and what a genai-cpu bundle does.

    python ci/benchmarks/genai_builder_epsilon.py                  # a random checkpoint and the embedded one
    python ci/benchmarks/genai_builder_epsilon.py ./Minitron-4B-Base

Both are built in fp32 for the CPU and hold one graph contract, so the same feeds go to either. Their logits are
compared with eager PyTorch's, fp32, as max |Δlogit| and RMSE over the range of the logits, and the 64 greedy tokens
that GenAI writes with those that eager PyTorch writes. Further lines say where a difference comes from: the
builder's graph with nothing changed but the epsilon of its norms, set to the config's norm_eps; that with gammas of
float32(weight) + 1 too, where the builder adds the 1 in the checkpoint's dtype; and ours with the builder's epsilon.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from genai_peer import GenaiBackend, add_versions, greedy, peer_spec, run_builder
from support.checkpoints import write_checkpoint
from typer import Argument

from nemotron_export import build
from nemotron_export.bench.options import default_threads
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.cli.console import print_json, print_table
from nemotron_export.config.config import NemotronConfig
from nemotron_export.installation.versions import environment
from nemotron_export.model.load import load_model

NORMS = {"LayerNormalization", "SkipLayerNormalization"}
PROMPTS = (16, 1200)
GREEDY_TOKENS = 64


def epsilons(folder: Path) -> set[float]:
    """The epsilons of a graph's norms, as written."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = (a.f for node in graph.node if node.op_type in NORMS for a in node.attribute if a.name == "epsilon")
    return {float(f"{value:.3g}") for value in found}


def with_epsilon(folder: Path, epsilon: float, gammas: dict[str, np.ndarray] | None = None) -> str:
    """A copy of the folder's model.onnx next to it (its external data is found from there): another epsilon of every
    norm, and other gammas, by initializer."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type in NORMS and attribute.name == "epsilon":
                attribute.f = epsilon
    for tensor in model.graph.initializer:
        if gammas and tensor.name in gammas:
            tensor.CopyFrom(onnx.numpy_helper.from_array(gammas[tensor.name], tensor.name))
    path = folder / f"epsilon_{epsilon:.0e}{'_gammas' if gammas else ''}.onnx"
    path.write_bytes(model.SerializeToString())
    return str(path)


def exact_gammas(model: torch.nn.Module, layers: int) -> dict[str, np.ndarray]:
    """float32(weight) + 1 by the builder's names: it adds the 1 in the checkpoint's dtype."""
    norms = {name: p for name, p in model.named_parameters() if name.endswith("norm.weight")}
    names = {"model.norm.weight": f"model.layers.{layers}.final_norm_layernorm.weight"}
    return {names.get(name, name): (p.detach().float() + 1).numpy() for name, p in norms.items()}


def prompt_logits(graph: str, ids: np.ndarray, head_dim: int) -> np.ndarray:
    """Logits [S, V] of one prompt by a graph with GenAI's contract."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, len(ids)), np.int64)}
    for value in session.get_inputs()[2:]:
        feeds[value.name] = np.zeros((1, value.shape[1], 0, head_dim), np.float32)
    return session.run(["logits"], feeds)[0][0]


def genai_tokens(folder: Path, ids: np.ndarray, config: NemotronConfig) -> list[int]:
    """What GenAI writes after a prompt, greedily, the end of the sequence ruled out."""
    spec = peer_spec("genai", "", folder, config, "float32", 32, "float32")
    backend = GenaiBackend(spec.options, default_threads())
    backend.load()
    return greedy(backend, ids, GREEDY_TOKENS)


def compare(name: str, source: Path, folder: Path) -> None:
    """Prints one table: each artefact compared with eager PyTorch."""
    checkpoint = Checkpoint.open(source)
    eager = load_model(checkpoint, torch.float32)
    length = min(PROMPTS[-1] + GREEDY_TOKENS, checkpoint.config.max_position_embeddings)
    theirs = folder / "builder"
    run_builder(source, theirs, "fp32")
    ours = build(source, folder / "bundle", target="genai-cpu", max_seq_len=length, weights="copy", parity=False)
    own = checkpoint.config.norm_eps
    (wrong,) = epsilons(theirs)
    gammas = exact_gammas(eager, checkpoint.config.num_hidden_layers)
    graphs = {
        f"GenAI's builder: epsilon {wrong:g}": (str(theirs / "model.onnx"), theirs),
        f"  its graph, epsilon set to {own:g}": (with_epsilon(theirs, own), None),
        f"  its graph, epsilon {own:g}, gammas of fp32": (with_epsilon(theirs, own, gammas), None),
        f"this project's genai-cpu: epsilon {own:g}": (str(ours / "model.onnx"), ours),
        f"  its graph, epsilon set to {wrong:g}": (with_epsilon(ours, wrong), None),
    }
    rows = []
    rng = np.random.default_rng(0)
    for count in PROMPTS:
        ids = rng.integers(4, checkpoint.config.vocab_size, min(count, length - GREEDY_TOKENS))
        with torch.no_grad():
            expected = eager(torch.from_numpy(ids)[None]).logits[0].numpy()
        written = eager.generate(
            torch.from_numpy(ids)[None], max_new_tokens=GREEDY_TOKENS, min_new_tokens=GREEDY_TOKENS, do_sample=False
        )[0, len(ids) :].tolist()
        spread = float(expected.max() - expected.min())
        for label, (graph, genai_folder) in graphs.items():
            difference = prompt_logits(graph, ids, checkpoint.config.head_dim) - expected
            tokens = ""
            if genai_folder is not None:
                found = genai_tokens(genai_folder, ids, checkpoint.config)
                tokens = str(sum(map(int.__ne__, found, written)))
            worst, rmse = np.abs(difference).max() / spread, np.sqrt(np.square(difference).mean()) / spread
            rows.append([label, f"{len(ids)} tokens", f"{worst:.2e}", f"{rmse:.2e}", tokens])
    heads = ["what runs", "prompt", "max |Δlogit| / range", "RMSE / range", "greedy tokens of 64 differing"]
    print_table(name, heads, rows)


def main(checkpoints: Annotated[list[Path] | None, Argument(help="folders of checkpoints")] = None) -> None:
    """Prints a table for each checkpoint, and the versions."""
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as made:
        named = {str(path): path for path in checkpoints or ()}
        if not named:
            torch.manual_seed(0)
            write_checkpoint(Path(made) / "random", torch.float32)
            named = {"a random checkpoint (tests/support/checkpoints.py)": Path(made) / "random"}
            named["the embedded checkpoint"] = Path(__file__).parents[2] / "nemotron_export" / "assets" / "demo"
        for name, path in named.items():
            with tempfile.TemporaryDirectory() as folder:
                compare(name, path, Path(folder))
    measured = environment(None)
    add_versions(measured["versions"], ["onnxruntime-genai"])
    print_json(measured)


if __name__ == "__main__":
    typer.run(main)
