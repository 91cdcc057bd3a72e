"""Who imports whom, and that the command line and the runtime start without the build packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Fails any import of the build packages, as an environment without them does.
BLOCKER = """
import sys
class Blocker:
    names = {"torch", "onnx", "onnxscript", "onnx_ir", "triton", "transformers", "ml_dtypes"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def run_blocked(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code], capture_output=True, text=True, timeout=120, check=False
    )


def test_import_contracts_hold() -> None:
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "nemotron_export",
        "nemotron_export.cli",
        "nemotron_export.installation.doctor",
        "nemotron_runtime",
        "nemotron_errors",
    ],
)
def test_imports_without_the_build_packages(module: str) -> None:
    result = run_blocked(f"import {module}\nprint({module}.__name__)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == module


def test_the_blocker_blocks() -> None:
    result = run_blocked("import torch")
    assert result.returncode == 1
    assert "No module named 'torch'" in result.stderr


def test_the_command_line_loads_no_build_package() -> None:
    code = "import sys, nemotron_export.cli; print(sorted({m.partition('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(eval(result.stdout))
    assert "typer" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "triton", "transformers", "numpy"}


def test_help_and_doctor_run_without_the_build_packages() -> None:
    for arguments in (["--help"], ["--version"], ["doctor", "--json"], ["build", "--help"]):
        code = f"from nemotron_export.cli import main\nsys.argv = ['nemotron-export', *{arguments!r}]\nmain()"
        result = run_blocked(code)
        assert result.returncode == 0, (arguments, result.stderr)
        assert result.stdout.strip()


def test_build_without_its_extra_says_what_to_install(tmp_path: Path) -> None:
    code = f"""
from nemotron_export.cli import main
sys.argv = ["nemotron-export", "build", {str(tmp_path)!r}, "-o", {str(tmp_path / "out")!r}]
main()"""
    result = run_blocked(code)
    assert result.returncode == 3
    assert 'pip install "nemotron-export[build]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_lazy_names_are_what_they_say() -> None:
    import nemotron_export
    from nemotron_export.config.config import NemotronConfig
    from nemotron_export.model import NemotronForCausalLM

    assert nemotron_export.NemotronConfig is NemotronConfig
    assert nemotron_export.NemotronForCausalLM is NemotronForCausalLM
    assert callable(nemotron_export.build)
    assert set(nemotron_export.__all__) == set(dir(nemotron_export))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nemotron_export.nothing


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    import nemotron_export

    assert nemotron_export.__version__ == version("nemotron-export")
