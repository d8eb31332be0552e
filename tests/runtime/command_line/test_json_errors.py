"""With --json an error is an object on stdout, beside its two lines on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import KINDS, Outcome, assert_refused, call_main
from small_models import write_checkpoint

from dsconv.cli import app
from dsconv.runtime.command_line import exit_codes

WITHOUT_REPORT = ("serve",)  # it answers over HTTP, in a shape of its own
COMMANDS = [
    command.callback.__name__
    for command in app.registered_commands
    if command.callback and command.callback.__name__ not in WITHOUT_REPORT
]


def refused(outcome: Outcome, code: int, word: str) -> None:
    assert_refused(outcome, code, word)
    error = outcome.json["error"]
    assert set(outcome.json) == {"error"}
    assert set(error) == {"message", "hint", "exit_code", "kind"}
    assert (error["exit_code"], error["kind"]) == (code, KINDS[code])
    assert word in error["message"] + error["hint"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    refused(call_main(monkeypatch, capsys, command, "--json", "--nope"), 2, "--nope")


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["quantise", "--json"], 2, "quantize"),
        (["inspect", "nowhere/at/all", "--json"], 3, "nowhere"),
        (["export", "MODEL", "-o", "x", "--format", "ggfu", "--json"], 4, "gguf"),
        (["quantize", "MODEL", "-o", "MODEL", "--json", "--overwrite"], 6, "did not write"),
        (["run", "MODEL", "-p", "a", "--provider", "torch:npu", "--json"], 7, "npu"),
    ],
)
def test_every_kind(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    word: str,
) -> None:
    model = str(write_checkpoint(tmp_path / "model"))
    given = [model if argument == "MODEL" else argument for argument in arguments]
    refused(call_main(monkeypatch, capsys, *given), code, word)


def test_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(model: str) -> None:
        raise ZeroDivisionError("unexpected")

    monkeypatch.setattr("dsconv.convert.inspect.describe.survey", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    refused(call_main(monkeypatch, capsys, "inspect", "x", "--json"), 70, "ZeroDivisionError")


def test_json_is_asked_for_by_an_option_and_not_by_an_argument(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = call_main(monkeypatch, capsys, "inspect", "--nope", "--", "--json")
    assert outcome.out == ""
    assert outcome.code == 2
    assert exit_codes.exit_code_of(lambda: 0) == 0


def test_quiet_and_verbose_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(call_main(monkeypatch, capsys, "targets", "-q", "-v"), 2, "--quiet")
