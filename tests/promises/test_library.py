"""dsconv as a library: light to import, the commands' options, and the README's very lines."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import serving
from places import ROOT
from small_models import write_checkpoint

import dsconv
from dsconv.errors import UsageError
from dsconv.runtime.commands import bench, build, export, plan, pull, quantize, run, verify

HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "tokenizers", "rich", "typer", "dsconv.library"}
COMMANDS: dict[str, Callable[..., None]] = {
    "bench": bench.bench,
    "build": build.build,
    "export": export.export,
    "generate": run.run,
    "open_session": run.run,
    "plan": plan.plan,
    "pull": pull.pull,
    "quantize": quantize.quantize,
    "verify": verify.verify,
}
OWN = {"emit", "damping"}  # for what a terminal does; what `dsconv plan` leaves out


def snippet() -> str:
    """The block of Python in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(found)


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, dsconv; dir(dsconv); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_names() -> None:
    assert dsconv.__all__ == sorted(dsconv.__all__)
    assert set(dsconv.__all__) <= set(dir(dsconv))
    page = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    for name in dsconv.__all__:
        assert inspect.getdoc(getattr(dsconv, name))
        assert f"| `{name}` |" in page
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        dsconv.nonsense  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", [name for name in dsconv.__all__ if name in COMMANDS])
def test_keywords_are_the_commands_options(name: str) -> None:
    options = inspect.signature(COMMANDS[name]).parameters
    for keyword in inspect.signature(getattr(dsconv, name)).parameters.values():
        if keyword.kind is keyword.KEYWORD_ONLY and keyword.name not in OWN:
            default = None if keyword.default == () else keyword.default  # of a list
            assert default == options[keyword.name].default, keyword.name


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has a tiny model under the name that the README pulls."""
    from huggingface_hub import constants

    (name,) = re.findall(r'dsconv\.pull\("(\S+)"\)', snippet())
    (tmp_path / "served" / name).parent.mkdir(parents=True)
    write_checkpoint(tmp_path / "served" / name)
    with serving(tmp_path / "served") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield


def test_a_limit_that_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="max_kll: unknown limit"):
        dsconv.verify("any.dsq", "any", max_kll=1.0)


@pytest.mark.usefixtures("hub")
def test_the_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet(), "README.md", "exec"), names)
    assert len(snippet().splitlines()) <= 10
    assert names["verdict"].passed
    assert capsys.readouterr().out
    assert dsconv.to_json(names["verdict"])["passed"]
    assert dsconv.plan(names["model"], "out", bits=8).parameters > 0
    assert dsconv.to_json(dsconv.inspect("smollm2-int8"))["family"] == "qwen2"
    dsconv.write_report(names["verdict"], "page.html")
    assert "Passed" in (tmp_path / "page.html").read_text(encoding="utf-8")
