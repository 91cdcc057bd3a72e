"""Time and peak memory of builds without a weight read, for a checkpoint of each published model's shape.

    python ci/benchmarks/published_sizes.py [--rounds 3] [--json FILE]

The checkpoints are sparse: headers alone take disk. Each build is the command line in a process of its own, so that its
time holds every import and its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.raw_checkpoints import PUBLISHED, write_sparse

from nemotron_export.installation.versions import environment

_SHARD_BYTES = 10 << 30
# runs a command and says its peak memory: only a parent of its own sees that of one child
_MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def build(checkpoint: Path, bundle: Path, target: str) -> tuple[float, float]:
    """(seconds, peak RSS in GB) of one build."""
    command = [
        sys.executable, "-m", "nemotron_export", "build", checkpoint, "-o", bundle, "--target", target, "--no-parity",
        "--no-scan",
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, command)], stdout=subprocess.PIPE, check=True, text=True
    )
    return time.perf_counter() - start, int(done.stdout) * 1024 / 1e9


def main() -> None:
    """Prints a table, and writes it as JSON where asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED), choices=list(PUBLISHED))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    machine = environment(None)
    print(json.dumps(machine))
    rows = []
    columns = (
        ("model", 16),
        ("target", 8),
        ("layers", -6),
        ("stored", -9),
        ("graph", -8),
        ("seconds (min / median)", -24),
    )
    print(*(f"{name:{'>' if width < 0 else '<'}{abs(width)}}" for name, width in columns), " peak RSS")
    with tempfile.TemporaryDirectory() as temporary:
        for model in options.models:
            folder = Path(temporary) / model
            stored = write_sparse(folder, PUBLISHED[model], shard_bytes=_SHARD_BYTES)
            for target in ("onnx", "ort-cpu"):
                measured = []
                for number in range(options.rounds):
                    bundle = Path(temporary) / f"{model}-{target}-{number}"
                    measured.append(build(folder, bundle, target))
                    graph = (bundle / "model.onnx").stat().st_size
                seconds, memory = [m[0] for m in measured], max(m[1] for m in measured)
                rows.append(
                    {
                        "model": model, "target": target, "layers": PUBLISHED[model]["num_hidden_layers"],
                        "stored_bytes": stored, "graph_bytes": graph, "seconds": seconds, "peak_rss_gb": memory,
                    }
                )  # fmt: skip
                times = f"{min(seconds):.1f} / {statistics.median(seconds):.1f}"
                print(
                    f"{model:16} {target:8} {PUBLISHED[model]['num_hidden_layers']:6} {stored / 1e9:6.1f} GB "
                    f"{graph / 1e6:5.1f} MB {times:>24} {memory:6.2f} GB",
                    flush=True,
                )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if options.json:
        options.json.write_text(
            json.dumps({"environment": machine, "rows": rows, "harness_rss_kb": own}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
