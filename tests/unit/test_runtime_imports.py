"""The runtime works where torch, onnx and triton cannot be imported."""

from __future__ import annotations

import subprocess
import sys

from support.bundles import make_bundle

BLOCKED = ("torch", "onnx", "onnx_ir", "onnxscript", "triton", "transformers")

SCRIPT = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
import nemotron_runtime
import nemotron_runtime.checks.verification

assert "onnxruntime" not in sys.modules and "tokenizers" not in sys.modules, "imported where needed"
report = nemotron_runtime.checks.verification.verify(sys.argv[1], threads=1)
assert report.passed
with nemotron_runtime.load(sys.argv[1], threads=1) as model:
    result = model.generate([1, 2, 3], max_new_tokens=4, ignore_eos=True)
print(len(result.token_ids), sorted(set({BLOCKED!r}) & {{name.split(".")[0] for name in sys.modules}}))
"""


def test_verify_and_generate_without_torch_onnx_and_triton(tmp_path):
    path = make_bundle(tmp_path, parity="pending")
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "[]"]
