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

import argparse
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import numpy as np
import onnx
import onnxruntime
import onnxruntime_genai
import torch
from genai_peer import builder_command, offline
from rich.console import Console
from rich.table import Table
from support.checkpoints import write_checkpoint

from nemotron_export import build
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.installation.versions import environment
from nemotron_export.model.load import load_model

NORMS = {"LayerNormalization", "SkipLayerNormalization"}
PROMPTS = (16, 1200)
GREEDY_TOKENS = 64


def run_builder(checkpoint: Path, output: Path, cache: Path) -> Path:
    """GenAI's builder, in a process of its own; it reads the checkpoint's folder and nothing from the network."""
    command = builder_command(checkpoint, output, "fp32", "cpu", cache)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline())
    if done.returncode:
        raise SystemExit(f"the builder failed:\n{done.stderr[-3000:]}")
    return output


def epsilons(folder: Path) -> set[float]:
    """The epsilons of a graph's norms, as written."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    found = (a.f for node in graph.node if node.op_type in NORMS for a in node.attribute if a.name == "epsilon")
    return {float(f"{value:.3g}") for value in found}


def with_epsilon(folder: Path, epsilon: float, gammas: dict[str, np.ndarray] | None = None) -> str:
    """A copy of the folder's graph next to it (its external data is found from there), with another epsilon.

    Args:
        folder: what holds model.onnx.
        epsilon: of every norm.
        gammas: initializer → what replaces it.
    """
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


def genai_tokens(folder: Path, ids: np.ndarray) -> list[int]:
    """What GenAI writes after a prompt, greedily, the end of the sequence ruled out."""
    model = onnxruntime_genai.Model(str(folder))
    params = onnxruntime_genai.GeneratorParams(model)
    length = len(ids) + GREEDY_TOKENS
    params.set_search_options(do_sample=False, max_length=length, min_length=length)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(ids.astype(np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0)[len(ids) :].tolist()


def compare(name: str, source: Path, folder: Path) -> Table:
    """One table: each artefact compared with eager PyTorch."""
    checkpoint = Checkpoint.open(source)
    eager = load_model(checkpoint, torch.float32)
    length = min(PROMPTS[-1] + GREEDY_TOKENS, checkpoint.config.max_position_embeddings)
    theirs = run_builder(source, folder / "builder", folder / "cache")
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
    table = Table(
        "what runs", "prompt", "max |Δlogit| / range", "RMSE / range", "greedy tokens of 64 differing", title=name
    )
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
            tokens = "" if genai_folder is None else str(sum(map(int.__ne__, genai_tokens(genai_folder, ids), written)))
            worst, rmse = np.abs(difference).max() / spread, np.sqrt(np.square(difference).mean()) / spread
            table.add_row(label, f"{len(ids)} tokens", f"{worst:.2e}", f"{rmse:.2e}", tokens)
    return table


def main() -> None:
    """Prints a table for each checkpoint, and the versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="*", type=Path, help="folders of checkpoints")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as made:
        named = {str(path): path for path in arguments.checkpoint}
        if not named:
            torch.manual_seed(0)
            write_checkpoint(Path(made) / "random", torch.float32)
            named = {"a random checkpoint (tests/support/checkpoints.py)": Path(made) / "random"}
            named["the embedded checkpoint"] = Path(__file__).parents[2] / "nemotron_export" / "assets" / "demo"
        for name, path in named.items():
            with tempfile.TemporaryDirectory() as folder:
                console.print(compare(name, path, Path(folder)))
    measured = environment(None)
    measured["versions"]["onnxruntime-genai"] = onnxruntime_genai.__version__
    console.print(measured)


if __name__ == "__main__":
    main()
