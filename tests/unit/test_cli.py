"""The command line's own behaviour: exit codes, streams, errors. What the commands do is tested with their modules."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nemotron_runtime
import pytest
import typer
from nemotron_errors import NemotronError, ParityError, RequestError, ResourceError
from typer.testing import CliRunner

from nemotron_export import __version__
from nemotron_export.cli import app
from nemotron_export.cli.console import print_error, print_table, size_text
from nemotron_export.cli.guard import EXIT_CODES, INTERRUPTED, guarded

COMMANDS = ("build", "generate", "chat", "parity", "verify", "inspect", "doctor", "demo")


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def exit_code(error: BaseException) -> int:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        guarded(command)()
    return caught.value.exit_code


def test_help_lists_the_commands_and_the_exit_codes() -> None:
    text = " ".join(run("--help").stdout.split())
    for command in COMMANDS:
        assert command in text
    for code, meaning in EXIT_CODES.items():
        assert f"{code} {meaning}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout


def test_build_passes_on_where_the_weights_go(monkeypatch: pytest.MonkeyPatch) -> None:
    import nemotron_export.building

    told: list[Any] = []

    def build(*arguments: Any, **options: Any) -> None:
        told.append(options["embed_weights"])
        raise RequestError("no build", "one", "none of this is real")

    monkeypatch.setattr(nemotron_export.building, "build", build)
    assert run("build", "checkpoint", "-o", "bundle", "--embed-weights").exit_code == RequestError.exit_code
    assert run("build", "checkpoint", "-o", "bundle").exit_code == RequestError.exit_code
    assert told == [True, False]


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"nemotron-export {__version__}\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ParityError("a", "b", "c"), 1),
        (RequestError("a", "b", "c"), 2),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 3),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime.capi"), 3),
        (ResourceError("a", "b", "c"), 4),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_exit_codes(error: BaseException, code: int) -> None:
    assert exit_code(error) == code
    assert code in EXIT_CODES


def test_a_bug_is_not_taken_for_a_users_mistake() -> None:
    def broken() -> None:
        raise ModuleNotFoundError("No module named 'nemotron_export.nothing'", name="nemotron_export.nothing")

    with pytest.raises(ModuleNotFoundError):
        guarded(broken)()


def test_errors_go_to_stderr_in_three_parts(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(NemotronError("a [red] thing", "another", "change it", where="here"))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error  here\n  found    a [red] thing\n  expected another\n  remedy   change it\n"


def test_tables_keep_their_text_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Title", ("name", "number", "ok"), [("[bold]x[/]", 3, True), ("y" * 100, 14, False)])
    out = capsys.readouterr().out
    assert "[bold]x[/]" in out
    assert "y" * 100 in out
    assert "FAILED" in out
    assert "\x1b" not in out


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 8_382_000_000, 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "8.4 GB",
        "1000.0 TB",
    ]


def test_unknown_options_are_usage_errors() -> None:
    result = run("doctor", "--nothing")
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_folder_that_is_neither_is_named(tmp_path: Path) -> None:
    for command in (("inspect",), ("verify",), ("generate", "-p", "x")):
        result = run(command[0], str(tmp_path / "missing"), *command[1:])
        assert result.exit_code == 2
        assert "missing" in result.stderr
        assert "Traceback" not in result.stderr


class FakeModel:
    """Stands for a loaded bundle; remembers what it was asked."""

    asked: dict[str, Any]

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stream(self, prompt: str, **options: Any) -> Any:
        self.asked = {"prompt": prompt, **options}
        yield from (SimpleNamespace(text=text, token_id=1) for text in ("héllo", " wor", "ld"))

    def generate(self, prompt: str, **options: Any) -> Any:
        self.asked = {"prompt": prompt, **options}
        return SimpleNamespace(text="hi", token_ids=[4, 5], finish_reason="length", prompt_token_ids=[1, 2, 3])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(nemotron_runtime, "load", lambda bundle, **options: fake, raising=False)
    return fake


def test_generate_streams_to_stdout(model: FakeModel) -> None:
    result = run("generate", "bundle", "Once", "-n", "5", "--stop", "a", "--stop", "b", "--temperature", "0.5")
    assert (result.exit_code, result.stdout) == (0, "héllo world\n")
    assert model.asked["prompt"] == "Once"
    assert model.asked["max_new_tokens"] == 5
    assert model.asked["stop"] == ("a", "b")
    assert model.asked["temperature"] == 0.5
    assert "top_k" not in model.asked


def test_generate_reads_stdin_and_prompts_with_a_dash(model: FakeModel) -> None:
    assert run("generate", "bundle", "-", stdin="from\nstdin").exit_code == 0
    assert model.asked["prompt"] == "from\nstdin"
    assert run("generate", "bundle", "--prompt", "-x").exit_code == 0
    assert model.asked["prompt"] == "-x"


@pytest.mark.parametrize("arguments", [(), ("one", "--prompt", "two")])
def test_generate_wants_one_prompt(model: FakeModel, arguments: tuple[str, ...]) -> None:
    result = run("generate", "bundle", *arguments)
    assert result.exit_code == 2
    assert "prompt" in result.stderr


def test_generate_as_json_is_one_document(model: FakeModel) -> None:
    result = run("generate", "bundle", "Once", "--json")
    assert json.loads(result.stdout) == {
        "prompt": "Once",
        "text": "hi",
        "token_ids": [4, 5],
        "finish_reason": "length",
        "prompt_tokens": 3,
    }


def test_a_report_into_a_missing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["parity", str(tmp_path), "--report", str(tmp_path / "missing" / "page.html")])
    assert result.exit_code == 2
    assert "--report" in result.stderr
    assert "make it first" in result.stderr
