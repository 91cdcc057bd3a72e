"""Peak memory of the streamed quantization, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.raw_checkpoints import write_sparse

_SCRIPT = """
import json, sys
from pathlib import Path
from nemotron_export.checkpoint import Checkpoint
from nemotron_export.quantization import lay_out, write_quantized
from nemotron_formats.weights import FORMATS

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

checkpoint = Checkpoint.open(sys.argv[1])
layout = lay_out(checkpoint, FORMATS[sys.argv[2]])
before = peak()
write_quantized(checkpoint, layout, Path(sys.argv[3]))
largest = max(tensor.source.length for tensor in layout.tensors)
print(json.dumps({"grown": peak() - before, "largest": largest}))
"""
# one large lm_head: 131 MB in bf16, 262 MB in float32
_CONFIG = {
    "model_type": "nemotron", "architectures": ["NemotronForCausalLM"], "vocab_size": 64000, "hidden_size": 1024,
    "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "partial_rotary_factor": 0.5, "max_position_embeddings": 64, "norm_eps": 1e-5,
    "tie_word_embeddings": False,
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", ["int8-g32", "int4-g32"])
def test_memory_does_not_grow_with_the_tensor(name: str, tmp_path: Path) -> None:
    write_sparse(tmp_path, _CONFIG, shard_bytes=1 << 30)
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path), name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["largest"] == 64000 * 1024 * 2
    # blocks, read buffers and hashed chunks of up to four threads, whatever the tensor's size
    assert 0 < found["grown"] < 100_000_000 < found["largest"]
