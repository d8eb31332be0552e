"""The demo shows the commands that it runs: pasted, they give the same bytes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from command_line import dsconv
from small_models import write_checkpoint

from dsconv.runtime.demo import run as demo
from dsconv.runtime.quantize_request import QuantizeRequest


def test_the_commands_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small model: what the demo writes, and what its lines write when they are pasted."""
    model = write_checkpoint(tmp_path / "a model")
    monkeypatch.setattr(demo, "find_model", lambda: model)
    said: list[str] = []
    kept = tmp_path / "kept here"
    result = demo.run_demo(said.append, kept, 2)
    assert [row.name.split(",")[0] for row in result.rows] == ["original", "int4+int8", "int8"]
    commands = [shlex.split(line[2:]) for line in said if line.startswith("$ ")]
    assert [words[1] for words in commands] == ["quantize", "export", "run", "verify"] * 2
    before = contents(kept)
    assert {name.split("/")[0] for name in before} == {"int4", "int4-onnx", "int8", "int8-onnx"}
    kept.rename(tmp_path / "before")
    kept.mkdir()
    for words in commands:
        assert words[0] == "dsconv"
        outcome = dsconv(*words[1:])
        assert outcome.code in ((0, 1) if words[1] == "verify" else (0,)), outcome.err
    assert contents(kept) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("recipe", demo.recipes(), ids=lambda recipe: str(recipe.name))
def test_the_options_are_the_request(recipe: demo.Recipe) -> None:
    """And nothing beside them differs from what the command line leaves open."""
    words = dict(zip(recipe.options[::2], recipe.options[1::2], strict=True))
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in words.items()}
    defaults = vars(QuantizeRequest())
    changed = {k: v for k, v in vars(recipe.request).items() if v != defaults[k] or k in given}
    assert changed.pop("calibration", ()) == tuple(filter(None, [given.pop("calibration", "")]))
    assert changed == {name: float(value) for name, value in given.items()}
