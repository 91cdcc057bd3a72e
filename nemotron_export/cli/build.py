"""`nemotron-export build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nemotron_export.cli.console import print_json, show_progress, size_text
from nemotron_export.cli.options import JsonOutput, Reference, ReferenceSteps

__all__ = ["build"]


def build(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A folder with config.json and .safetensors files, or a hub id.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder; must not exist.")],
    target: Annotated[str, typer.Option(help="Where the bundle runs; `doctor` lists the targets.")] = "ort-cpu",
    task: Annotated[
        str | None,
        typer.Option(
            help="causal-lm, sequence-classification, token-classification, question-answering or "
            "feature-extraction; by default what the config's architecture says."
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Run dtype; by default the target's first.")] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(min=2, help="Prompt and new tokens together; at most 4096 by default.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Rows at once.")] = None,
    prefill_chunk: Annotated[int | None, typer.Option(min=1, help="Prompt tokens computed at once.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="reference: leave the weights where they are; link or copy: make a folder that ships. By default "
            "reference, and link for the genai targets."
        ),
    ] = None,
    parity: Annotated[bool, typer.Option(help="Prove the numbers; without it the bundle is pending.")] = True,
    reference: Reference = "auto",
    reference_steps: ReferenceSteps = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8 or int4: quantize the projections' weights; checked by perplexity.")
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale: 32, 64 or 128; by default 128 for int8 and 32 for int4."),
    ] = None,
    eval_text: Annotated[
        Path | None, typer.Option(help="Text to measure a quantized bundle's perplexity on; a fixed one by default.")
    ] = None,
    architectures: Annotated[
        str | None,
        typer.Option(
            help="GPU architectures, as sm_80,sm_89: besides this GPU's, what a tensorrt bundle has kernels for; what "
            "a tensorrt-rtx bundle has engines for (sm_86, sm_89 and sm_120 by default)."
        ),
    ] = None,
    plugins: Annotated[
        bool, typer.Option(help="Our own kernels in a tensorrt bundle; without, layers that TensorRT 10.15 has.")
    ] = True,
    embed_weights: Annotated[
        bool,
        typer.Option(
            "--embed-weights",
            help="Put the weights into a tensorrt bundle's two engines, which need no weights file then: twice their "
            "size on disk and on the GPU.",
        ),
    ] = False,
    allow_cpu_nodes: Annotated[
        bool, typer.Option("--allow-cpu-nodes", help="Let an ort-cuda bundle compute nodes on the CPU; slower.")
    ] = False,
    scan: Annotated[bool, typer.Option(help="Read every weight: NaN, Inf, chunk hashes.")] = True,
    overwrite: Annotated[bool, typer.Option(help="Replace a bundle that is there.")] = False,
    keep_failed: Annotated[bool, typer.Option(help="Keep, as pending, a bundle whose parity failed.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Trace a checkpoint, lower it to a target, write a bundle and prove its numbers against eager PyTorch."""
    from nemotron_export.building import build as run_build
    from nemotron_export.cli.check import print_report
    from nemotron_export.inspection.summary import inspect_bundle
    from nemotron_export.parity.verdict import ParityFailedError

    try:
        with show_progress() as progress:
            path = run_build(
                checkpoint, output, target=target, task=task, dtype=dtype, max_seq_len=max_seq_len, max_batch=max_batch,
                prefill_chunk=prefill_chunk, weights=weights, parity=parity, reference=reference,
                reference_steps=reference_steps, quantize=quantize, group_size=group_size, eval_text=eval_text,
                architectures=architectures.split(",") if architectures else (), plugins=plugins,
                embed_weights=embed_weights, allow_cpu_nodes=allow_cpu_nodes, scan=scan, overwrite=overwrite,
                keep_failed=keep_failed, revision=revision, progress=progress,
            )  # fmt: skip
    except ParityFailedError as error:
        if json_output:
            print_json(error.report.to_dict())
        else:
            print_report(error.report)
        raise
    if json_output:
        print_json(inspect_bundle(path))
    else:
        _print_built(path, target)


def _print_built(path: Path, target: str) -> None:
    from nemotron_runtime.bundle.manifest import Manifest

    from nemotron_export.cli.check import print_report
    from nemotron_export.inspection.summary import bundle_size
    from nemotron_export.parity.verdict import read_report

    report = read_report(path)
    if report is not None:
        print_report(report)
        typer.echo()
    state = "parity passed" if report is not None else "parity pending: run `nemotron-export parity` on it"
    mode = Manifest.read(path).weights.mode
    weights_are = "weights in the engines" if mode == "embedded" else f"weights by {mode}"
    typer.echo(f"{path}: {target}, {size_text(bundle_size(path))}, {weights_are}, {state}")
