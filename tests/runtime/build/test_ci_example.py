"""action.yml and the GitLab example: valid, and running the very script that .ci/run runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from small_models import write_checkpoint

SCRIPT = "scripts/build_and_gate.sh"
VARIABLES = {"DSCONV_RECIPE", "DSCONV_OUTPUT", "DSCONV_SETTINGS"}
needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
SMALL = """
description = "a test"
source = "{source}"
[quantize]
bits = 8
method = "rtn"
[export]
format = "native"
[verify]
max_kl = {limit}
window = 32
max_tokens = 64
"""


def action() -> dict[str, Any]:
    content = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def test_the_action_is_a_composite_action() -> None:
    found = action()
    assert {"name", "description", "inputs", "runs"} <= set(found)
    assert found["runs"]["using"] == "composite"
    for entry in found["inputs"].values():
        assert entry["description"]
        assert entry.get("required") is True or isinstance(entry["default"], str)
    for step in found["runs"]["steps"]:
        assert ("run" in step) != ("uses" in step)
        assert "run" not in step or step["shell"] == "bash"


def test_the_action_runs_the_script_that_ci_runs() -> None:
    runs = [step for step in action()["runs"]["steps"] if "run" in step]
    assert [step["run"] for step in runs] == [f'"$GITHUB_ACTION_PATH/{SCRIPT}"']
    assert set(runs[0]["env"]) == VARIABLES
    assert os.access(ROOT / SCRIPT, os.X_OK)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert SCRIPT in ci
    script = (ROOT / SCRIPT).read_text(encoding="utf-8")
    for variable in VARIABLES:
        assert f"${variable}" in script or f"${{{variable}" in script
        assert variable in ci


def test_every_input_is_used_and_none_in_a_command() -> None:
    found = action()
    steps = found["runs"]["steps"]
    used = set(re.findall(r"inputs\.([\w-]+)", yaml.safe_dump(steps)))
    assert used == set(found["inputs"])
    assert all("${{" not in step.get("run", "") for step in steps)


def test_the_upload_happens_when_the_gate_fails() -> None:
    (upload,) = (step for step in action()["runs"]["steps"] if "uses" in step)
    assert upload["uses"].startswith("actions/upload-artifact@")
    assert "always()" in upload["if"]
    names = [line.rpartition("/")[2] for line in upload["with"]["path"].split()]
    assert {"README.md", "verdict.json", "report.html"} <= set(names)


def yaml_blocks() -> list[Any]:
    text = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]


def test_the_readme_gives_the_action_inputs_that_it_has() -> None:
    (workflow,) = (block for block in yaml_blocks() if isinstance(block, list))
    (step,) = workflow
    assert set(step["with"]) <= set(action()["inputs"])
    assert step["with"]["recipe"]


def test_the_gitlab_example_runs_the_script() -> None:
    (jobs,) = (block for block in yaml_blocks() if isinstance(block, dict))
    (job,) = jobs.values()
    assert any(SCRIPT in line for line in job["script"])
    assert set(job["variables"]) <= VARIABLES
    assert job["artifacts"]["when"] == "always"
    assert all("$DSCONV_OUTPUT" in path for path in job["artifacts"]["paths"])


# ---------------------------------------------------------------- the script itself


def run_script(folder: Path, recipe: Path, settings: str = "", **more: str) -> tuple[int, str, str]:
    command = folder / "dsconv"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dsconv "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GITHUB_")},
        "DSCONV": str(command),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "DSCONV_RECIPE": str(recipe),
        "DSCONV_OUTPUT": str(folder / "out put"),
        "DSCONV_SETTINGS": settings,
        **more,
    }
    done = subprocess.run(
        [ROOT / SCRIPT], env=environment, capture_output=True, encoding="utf-8", timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@needs_bash
def test_the_script_passes_and_fails_with_the_gate(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model")
    recipe = tmp_path / "small.toml"
    recipe.write_text(SMALL.format(source=model, limit=0.05), encoding="utf-8")
    code, out, err = run_script(tmp_path, recipe)
    assert code == 0, err
    assert "verdict: passed" in out
    assert "::error" not in out
    summary = tmp_path / "summary.md"
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    settings = 'verify.max_kl=1e-9\n\ndescription=with spaces, 100 % "quoted" $(touch hacked)\r\n'
    code, out, err = run_script(tmp_path, recipe, settings, **github)
    assert code == 1
    assert "error: mean KL" in err
    assert "::error title=dsconv::mean KL" in out
    card = summary.read_text(encoding="utf-8")
    assert card.startswith("# small\n")  # without the front matter
    assert 'with spaces, 100 % "quoted" $(touch hacked)' in card
    assert not list(Path.cwd().glob("hacked"))


@needs_bash
def test_the_script_hands_on_other_exit_codes(tmp_path: Path) -> None:
    summary = tmp_path / "summary.md"
    code, out, err = run_script(
        tmp_path,
        tmp_path / "gone.toml",
        GITHUB_ACTIONS="true",
        GITHUB_STEP_SUMMARY=str(summary),
    )
    assert code == 3
    assert "gone.toml" in out
    assert "hint: " in err
    assert not summary.exists()
