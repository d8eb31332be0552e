"""`dsconv verify` as a CI job uses it: cache, settings, baseline, JUnit, GitHub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import pytest
from command_line import Outcome, assert_refused, call_main, dsconv, fresh_dsconv
from outputs import quantized
from small_models import write_checkpoint

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint

SHORT = ("--window", 64, "--max-tokens", 600, "--threads", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("command") / "m")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    return exported(model, "int8", 8)


@pytest.fixture(scope="module")
def worse(model: Path) -> Path:
    return exported(model, "int4", 4)


def exported(model: Path, name: str, bits: int) -> Path:
    checkpoint = quantized(model, model.parent / f"{name}-q", bits=bits, method="rtn")
    export_onnx(open_checkpoint(str(checkpoint.origin)), ExportOptions(), model.parent / name)
    return model.parent / name


class Verify:
    """Calls the command in this process, in a folder of its own."""

    def __init__(self, monkeypatch: Any, capsys: Any, model: Path, folder: Path) -> None:
        self._call = monkeypatch, capsys
        self._model = model
        self.folder = folder
        monkeypatch.chdir(folder)

    def __call__(self, artifact: Path, *options: object) -> Outcome:
        cache = () if "--no-reference-cache" in options else ("--reference-cache", "cache")
        arguments = ("verify", artifact, "--reference", self._model, *SHORT, *cache, *options)
        return call_main(*self._call, *arguments)


@pytest.fixture
def verify(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
) -> Verify:
    return Verify(monkeypatch, capsys, model, tmp_path)


def test_a_second_verify_runs_without_torch(tmp_path: Path, model: Path, artifact: Path) -> None:
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "torch.py").write_text("raise RuntimeError('imported')\n")
    paths = [str(tmp_path / "poison"), *filter(None, [os.environ.get("PYTHONPATH")])]
    poisoned = {"PYTHONPATH": os.pathsep.join(paths)}
    options = ("--reference", model, *SHORT, "--json", "--reference-cache", tmp_path / "cache")
    assert fresh_dsconv("verify", artifact, *options, environment=poisoned).code == 70
    first = dsconv("verify", artifact, *options)
    second = fresh_dsconv("verify", artifact, *options, environment=poisoned)
    assert (first.code, second.code) == (0, 0), second.err
    assert second.json["kl"]["mean"] == pytest.approx(first.json["kl"]["mean"], rel=1e-9)
    assert second.json["noise_floor"] == first.json["noise_floor"]


def test_where_torch_is_not_installed(
    tmp_path: Path, model: Path, artifact: Path, worse: Path
) -> None:
    """As in the environment of a provider's wheel, beside one with torch that shares its cache."""
    error = "raise ModuleNotFoundError('No module named torch', name='torch')\n"
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "torch.py").write_text(error)
    paths = [str(tmp_path / "without"), *filter(None, [os.environ.get("PYTHONPATH")])]
    without = {"PYTHONPATH": os.pathsep.join(paths)}
    options = ("--reference", model, *SHORT, "--json", "--reference-cache", tmp_path / "cache")
    unknown = fresh_dsconv("verify", artifact, *options, environment=without)
    assert_refused(unknown, 7, "has not been run before", "--reference-cache")
    assert dsconv("verify", artifact, *options).code == 0
    loose = (*options, "--max-kl", "1")
    here = fresh_dsconv("verify", worse, *loose, environment=without)
    assert here.code == 0, here.err
    assert here.json["layers"] == []
    assert "layers are not compared: package 'torch' is not installed" in here.err
    wanted = fresh_dsconv("verify", worse, *options, "--layers", environment=without)
    assert_refused(wanted, 7, "torch")
    assert dsconv("verify", worse, *options).json["layers"]  # nothing was kept that stands for it


def test_without_a_cache_nothing_is_left(verify: Verify, artifact: Path) -> None:
    assert verify(artifact, "--no-reference-cache").code == 0
    assert list(verify.folder.iterdir()) == []
    both = verify(artifact, "--no-reference-cache", "--reference-cache", "x")
    assert (both.code, "contradict" in both.err) == (2, True)


def test_a_damaged_cache_costs_time_only(verify: Verify, artifact: Path) -> None:
    first = verify(artifact, "--json")
    (entry,) = (verify.folder / "cache" / "reference").iterdir()
    entry.write_bytes(entry.read_bytes()[:-100])
    again = verify(artifact, "--json")
    assert again.code == 0
    assert "the reference runs again" in again.err
    assert again.json["kl"] == first.json["kl"]
    assert "runs again" not in verify(artifact, "--json").err


def test_limits_of_the_working_folder(verify: Verify, artifact: Path) -> None:
    (verify.folder / "dsconv.toml").write_text("[verify]\nmax_kl = 0.0\nmin_top1 = 0.0\n")
    failed = verify(artifact, "--json")
    assert failed.code == 1
    assert failed.json["thresholds"] == {"max_kl": 0, "min_top1": 0}
    assert {check["source"] for check in failed.json["checks"]} == {"file"}
    assert verify(artifact, "--max-kl", 10).code == 0
    (verify.folder / "dsconv.toml").write_text("[verify]\nmaxkl = 0.0\n")
    wrong = verify(artifact)
    assert wrong.code == 3
    assert "dsconv.toml: [verify]: maxkl: unknown key" in wrong.err


def test_a_baseline(verify: Verify, artifact: Path, worse: Path) -> None:
    (verify.folder / "last.json").write_text(verify(artifact, "--json").out)
    assert verify(artifact, "--baseline", "last.json").code == 0
    failed = verify(worse, "--baseline", "last.json", "--json")
    assert failed.code == 1
    assert {c["name"] for c in failed.json["checks"] if not c["passed"]} >= {"baseline-kl"}
    assert "against the baseline on the same tokens" in failed.err
    assert failed.json["thresholds"] == {"max_kl": None, "min_top1": None}
    assert verify(artifact, "--baseline", "nowhere.json").code == 3


def test_what_failed_and_by_how_much(verify: Verify, artifact: Path) -> None:
    value = verify(artifact, "--json").json["kl"]["mean"]
    shown = verify(artifact, "--max-kl", value / 2, "--min-top1", 0)
    assert shown.out.startswith("Failed: ")
    assert shown.out.rstrip().endswith("verdict: failed")
    words = " ".join(shown.out.replace("│", " ").replace("|", " ").split())
    assert f"{value / 2:.4g} above" in words  # the limit is half of the value
    assert words.count("failed:") == 1
    assert words.count("passed:") == 1


def test_files_for_ci(verify: Verify, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(verify.folder / "summary.md"))
    failed = verify(artifact, "--max-kl", 0, "--junit", "junit.xml", "--github", "--json")
    assert failed.code == 1
    assert failed.json["passed"] is False
    root = Xml.parse(verify.folder / "junit.xml").getroot()
    assert (root.get("tests"), root.get("failures")) == ("1", "1")
    annotations = [line for line in failed.err.splitlines() if line.startswith("::error ")]
    assert len(annotations) == 1
    assert "## ❌ dsconv verify" in (verify.folder / "summary.md").read_text(encoding="utf-8")
    passed = verify(artifact, "--junit", "junit.xml", "--github")
    assert (passed.code, "::error" in passed.err) == (0, False)
    assert Xml.parse(verify.folder / "junit.xml").getroot().get("failures") == "0"


def test_the_request_is_checked_before_anything_runs(verify: Verify, artifact: Path) -> None:
    (verify.folder / "last.json").write_text("{}")
    assert verify(artifact, "--baseline", "last.json").code == 3
    assert verify(artifact, "--max-ppl-ratio", "nan").code == 2
    assert verify(artifact, "--dtype", "float8").code == 2
    assert not (verify.folder / "cache").exists()


def test_json_is_strict(verify: Verify, artifact: Path) -> None:
    text = verify(artifact, "--json").out
    content = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert content["provenance"]["artifact"] == str(artifact)
    assert len(content["worst_tokens"]) == 10
    assert sum(b["tokens"] for b in content["buckets"] if b["of"] == "position") == 600


def test_what_cannot_be_written_or_read_is_told_before_anything_is_measured(
    verify: Verify, artifact: Path
) -> None:
    for option in ("--report", "--junit"):
        refused = verify(artifact, option, "nowhere/out.file")
        assert refused.code == 6
        assert refused.err.splitlines()[0] == (
            "error: nowhere/out.file: there is no folder 'nowhere'"
        )
    missing = verify(artifact, "--task", "nowhere.jsonl")
    assert missing.code == 3
    assert "reference" not in missing.err  # nothing ran: no progress, no cache
