"""Help has its options in groups; every name in the table of groups is an option."""

from __future__ import annotations

import pytest
import typer
from command_line import fresh_dsconv

from dsconv.cli import app
from dsconv.convert.targets.onnx_targets import ONNX_TARGETS
from dsconv.runtime.command_line import help
from dsconv.runtime.sessions.providers import PROVIDERS

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def test_every_command_is_in_a_group() -> None:
    grouped = [name for names in help.OF_COMMANDS.values() for name in names]
    assert sorted(grouped) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_groups_name_options_of_the_command(name: str) -> None:
    there = {parameter.name for parameter in COMMANDS[name].params}
    for heading, names in help.COMMANDS.get(name, {}).items():
        assert there & set(names), heading
        if name not in ("plan", "run", "verify", "bench"):  # they share groups, or grow
            assert set(names) <= there, heading


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_and_verbose_are_everywhere(name: str) -> None:
    assert {"quiet", "verbose"} <= {parameter.name for parameter in COMMANDS[name].params}


def test_the_help_of_quantize_shows_groups_and_choices() -> None:
    text = fresh_dsconv("quantize", "--help").out
    for words in ("Calibration:", "What is shown:", "gptq|search|rtn", "integer|scale-min"):
        assert words in text


def test_choices_are_in_the_help_of_target_and_provider() -> None:
    target = next(p.help for p in COMMANDS["export"].params if p.name == "target")
    assert all(row.name in target for row in ONNX_TARGETS)
    provider = next(p.help for p in COMMANDS["run"].params if p.name == "provider")
    assert all(name in provider for name in PROVIDERS)
