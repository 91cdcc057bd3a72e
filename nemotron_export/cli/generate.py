"""`nemotron-export generate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from nemotron_errors import RequestError

from nemotron_export.cli.console import print_json
from nemotron_export.cli.options import (
    AllowUnverified,
    BundleArgument,
    JsonOutput,
    MinP,
    RepetitionPenalty,
    Seed,
    Stop,
    Temperature,
    Threads,
    TopK,
    TopP,
    WeightsDir,
    given_params,
    open_model,
)

__all__ = ["generate"]


def generate(
    bundle: BundleArgument,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The text to go on from; - reads stdin.")
    ] = None,
    prompt_option: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The prompt, for one that begins with a dash.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("-n", "--max-new-tokens", min=1)] = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on past the end of the text.")] = False,
    special_tokens: Annotated[bool, typer.Option(help="Begin with the tokenizer's own tokens.")] = True,
    weights_dir: WeightsDir = None,
    allow_unverified: AllowUnverified = False,
    threads: Threads = None,
    json_output: JsonOutput = False,
) -> None:
    """Generate text from a bundle, without torch. The text streams to stdout."""
    text = _prompt_text(prompt, prompt_option)
    given = given_params(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    given |= {"ignore_eos": ignore_eos, "add_special_tokens": special_tokens}
    with open_model(bundle, weights_dir, allow_unverified, threads) as model:
        if json_output:
            result = model.generate(text, **given)
            print_json(
                {
                    "prompt": text,
                    "text": result.text,
                    "token_ids": [int(token) for token in result.token_ids],
                    "finish_reason": result.finish_reason,
                    "prompt_tokens": len(result.prompt_token_ids),
                }
            )
            return
        for chunk in model.stream(text, **given):
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
        sys.stdout.write("\n")


def _prompt_text(argument: str | None, option: str | None) -> str:
    if (argument is None) == (option is None):
        found = "no prompt" if argument is None else "a prompt twice"
        raise RequestError(found, "one prompt", "give it as PROMPT, as --prompt, or as - for stdin", where="prompt")
    if argument == "-":
        return sys.stdin.read()
    return argument if argument is not None else option or ""
