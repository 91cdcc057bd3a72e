"""Time and peak memory of builds without a weight read, for a checkpoint of each published model's shape.

    python ci/benchmarks/published_sizes.py [--rounds 3] [--json FILE]

The checkpoints are sparse: headers alone take disk. Each build is the command line in a process of its own, so that its
time holds every import and its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

import typer
from document import JsonFile, write_json
from steps import Step, run
from support.raw_checkpoints import PUBLISHED, write_sparse
from typer import Option

from nemotron_export.cli.console import print_table, size_text
from nemotron_export.installation.versions import environment

_SHARD_BYTES = 10 << 30


def main(
    rounds: int = 3,
    models: Annotated[list[str], Option(help="of them, once for each")] = list(PUBLISHED),  # noqa: B006
    json_file: JsonFile = None,
) -> None:
    """Prints a table, and writes it as JSON where asked for."""
    machine = environment(None)
    print(json.dumps(machine))
    records, rows = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for model in models:
            stored = write_sparse(work / model, PUBLISHED[model], shard_bytes=_SHARD_BYTES)
            layers = PUBLISHED[model]["num_hidden_layers"]
            for target in ("onnx", "ort-cpu"):
                measured = []
                for number in range(rounds):
                    bundle = work / f"{model}-{target}-{number}"
                    command = [sys.executable, "-m", "nemotron_export", "build", str(work / model), "-o", str(bundle)]
                    command += ["--target", target, "--no-parity", "--no-scan"]
                    measured.append(run(Step(bundle.name, command), work))
                    if measured[-1].code:
                        raise typer.Exit(1)
                graph, seconds = (bundle / "model.onnx").stat().st_size, [build.seconds for build in measured]
                peak = max(build.peak_bytes for build in measured)
                records.append({
                    "model": model, "target": target, "layers": layers, "stored_bytes": stored, "graph_bytes": graph,
                    "seconds": seconds, "peak_rss_gb": peak / 1e9,
                })  # fmt: skip
                times = f"{min(seconds):.1f} / {statistics.median(seconds):.1f}"
                rows.append([model, target, layers, size_text(stored), size_text(graph), times, f"{peak / 1e9:.2f} GB"])
    print_table("", ["model", "target", "layers", "stored", "graph", "seconds (min / median)", "peak RSS"], rows)
    # a process begins as a fork of this one, whose memory then counts
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_json(json_file, {"environment": machine, "rows": records, "harness_rss_kb": own})


if __name__ == "__main__":
    typer.run(main)
