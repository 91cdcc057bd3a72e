"""The workflow that users copy parses, and every command in it exists with its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from nemotron_export.cli.app import app

FOLDER = Path(__file__).parents[2] / "ci" / "parity-workflow"


def _workflow() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "parity.yml").read_text(encoding="utf-8"))


def _commands() -> list[list[str]]:
    """The arguments of every `nemotron-export` call in the workflow's steps."""
    steps = _workflow()["jobs"]["parity"]["steps"]
    scripts = "\n".join(step.get("run", "") for step in steps).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in scripts.splitlines() if line.startswith("nemotron-export ")]


@pytest.mark.parametrize("arguments", _commands(), ids=lambda arguments: " ".join(arguments[:1]))
def test_every_command_line_is_accepted(arguments: list[str]) -> None:
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(typer.Context(group), arguments)  # type: ignore[attr-defined]
    context = command.make_context(name, rest)
    assert context.params["json_output"] is False
    with pytest.raises(Exception, match=r"[Nn]o such option"):
        command.make_context(name, [*rest, "--no-such-option"])


def test_it_builds_judges_with_reports_and_uploads() -> None:
    workflow = _workflow()
    # YAML 1.1 reads the key `on` as true
    assert {"pull_request", "workflow_dispatch", "schedule"} <= set(workflow[True])
    assert [arguments[0] for arguments in _commands()] == ["doctor", "build", "parity", "parity", "verify"]
    judged = [arguments for arguments in _commands() if arguments[0] in ("parity", "verify")]
    assert all("--junit" in arguments for arguments in judged)
    assert sum("--baseline" in arguments for arguments in judged) == 1
    steps = workflow["jobs"]["parity"]["steps"]
    upload = next(step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    # what the commands write lies in what is kept
    written = {
        arguments[i + 1] for arguments in _commands() for i, a in enumerate(arguments) if a in ("--junit", "--output")
    }
    assert all(path.startswith(f"{upload['with']['path']}/") for path in written)


def test_the_readme_names_options_that_exist() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    known = {
        option
        for command in group.commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= known
