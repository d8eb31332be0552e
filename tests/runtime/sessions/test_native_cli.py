"""The commands with a native file: export, inspect, run, verify, and without the extension."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call_main, dsconv
from small_models import write_checkpoint

from dsconv.errors import ProviderError
from dsconv.runtime.sessions.load import load

EXPORT = {"output", "bytes_written", "bits_per_weight", "seconds", "peak_rss_bytes"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture(scope="module")
def native(model: Path) -> Path:
    output = model.parent / "model.dsq"
    outcome = dsconv("export", model, "--format", "native", "-o", output, "--json")
    assert outcome.code == 0, outcome.err
    assert set(json.loads(outcome.out)) == EXPORT
    return output


def test_run_takes_tokenizer_and_template_from_the_file(native: Path, tmp_path: Path) -> None:
    alone = tmp_path / "moved.dsq"
    alone.write_bytes(native.read_bytes())
    arguments = ("-p", "hello", "--max-tokens", 5, "--temperature", 0, "--json")
    outcome = dsconv("run", alone, *arguments, "--threads", 2)
    assert outcome.code == 0, outcome.err
    answer = json.loads(outcome.out)
    assert (answer["runtime"], answer["provider"]) == ("native", "cpu")
    assert answer["generated_tokens"] == len(answer["tokens"]) > 0


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_verify(model: Path, native: Path, kv: str) -> None:
    short = ("--window", 64, "--max-tokens", 128, "--threads", 2)
    outcome = dsconv(
        "verify", native, "--reference", model, *short, "--kv", kv, "--max-kl", 1e-3, "--json"
    )
    assert outcome.code == 0, outcome.err
    verdict = json.loads(outcome.out)
    assert (verdict["passed"], verdict["runtime"]) == (True, "native")
    assert 0 <= verdict["kl"]["mean"] < 1e-3


def test_inspect(native: Path) -> None:
    described = json.loads(dsconv("inspect", native, "--json").out)
    assert (described["kind"], described["family"]) == ("native", "qwen2")


def test_the_session_imports_no_more_than_it_needs(native: Path) -> None:
    """Imports are most of the time that a native file takes to load."""
    code = (
        "import sys; from dsconv.runtime.sessions.load import load;"
        f"load({str(native)!r}).session.prefill([1, 2, 3]);"
        "heavy = {'torch', 'onnxruntime', 'transformers', 'dsconv.convert.checkpoint.checkpoint'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "NATIVE", "-p", "x", "--provider", "cuda"], "cuda"),
        (["run", "NATIVE", "-p", "x", "--kv", "int4"], "int4"),
        (["run", "MODEL", "-p", "x", "--kv", "int8"], "no native file"),
        (["export", "MODEL", "--format", "native", "-o", "OUT"], ".dsq"),
        (["export", "MODEL", "--format", "native", "-o", "NATIVE"], "exists"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_refused(
    model: Path,
    native: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    places = {"NATIVE": str(native), "MODEL": str(model), "OUT": str(tmp_path / "out")}
    outcome = call_main(monkeypatch, capsys, *(places.get(word, word) for word in arguments))
    assert outcome.code in (2, 4, 6)
    assert words in outcome.err
    assert "hint: " in outcome.err


def test_without_the_extension(native: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dsconv.runtime._native", None)
    with pytest.raises(ProviderError, match="not installed"):
        load(str(native))
