"""`nemotron-export classify`, `tag`, `answer` and `embed`: bundles of the other heads, without torch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nemotron_export.cli.console import print_json, print_table
from nemotron_export.cli.options import AllowUnverified, BundleArgument, JsonOutput, Threads, WeightsDir, open_model

__all__ = ["answer", "classify", "embed", "tag"]

_Text = Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads stdin.")]


def classify(
    bundle: BundleArgument,
    text: _Text,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
    json_output: JsonOutput = False,
) -> None:
    """Score a text by a sequence-classification bundle: class and probability, the likeliest first."""
    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        found = model.classify(_read(text))
    if json_output:
        print_json({**asdict(found), "logits": [float(value) for value in found.logits]})
        return
    for label, score in sorted(found.scores.items(), key=lambda item: -item[1]):
        typer.echo(f"{score:.4f}  {label}")


def tag(
    bundle: BundleArgument,
    text: _Text,
    merge: Annotated[
        bool, typer.Option("--merge", help="Join neighbouring tokens of one class, and leave out class O.")
    ] = False,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
    json_output: JsonOutput = False,
) -> None:
    """Give each token of a text a class by a token-classification bundle."""
    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        tags = model.tag(_read(text), merge=merge)
    if json_output:
        print_json([asdict(each) for each in tags])
        return
    rows = [(f"{each.begin}-{each.end}", each.text, each.label, f"{each.score:.4f}") for each in tags]
    print_table(f"{len(tags)} {'runs' if merge else 'tokens'}", ("characters", "text", "class", "score"), rows)


def answer(
    bundle: BundleArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question.")],
    context: Annotated[str, typer.Option("-c", "--context", help="The text with the answer; - reads stdin.")],
    max_answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer at most.")] = 15,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
    json_output: JsonOutput = False,
) -> None:
    """Find the answer to a question in a text by a question-answering bundle."""
    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        found = model.answer(question, _read(context), max_answer_tokens=max_answer_tokens)
    if json_output:
        print_json(asdict(found))
        return
    typer.echo(f"{found.text}\n(characters {found.begin} to {found.end}, score {found.score:.4f})")


def embed(
    bundle: BundleArgument,
    text: _Text,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .npy file to write; without, JSON goes to stdout.")
    ] = None,
    pooling: Annotated[str, typer.Option(help="last token, mean over all, or none (every token's).")] = "last",
    normalize: Annotated[bool, typer.Option("--normalize", help="Divide by the Euclidean length.")] = False,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
) -> None:
    """Write a text's hidden states by a feature-extraction bundle."""
    import numpy as np

    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        found = model.embed(_read(text), pooling=pooling, normalize=normalize)
    if output is None:
        print_json({"shape": list(found.shape), "values": found.tolist()})
        return
    with open(output, "wb") as file:
        np.save(file, found)
    typer.echo(f"{output}: float32 {list(found.shape)}")


def _read(text: str) -> str:
    return sys.stdin.read() if text == "-" else text
