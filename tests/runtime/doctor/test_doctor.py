"""Doctor: what is there, what works, what would fix the rest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from command_line import assert_refused, dsconv

from dsconv.runtime.commands import doctor
from dsconv.runtime.doctor.diagnose import (
    Diagnosis,
    GraphResult,
    TargetState,
    diagnose,
    package_problems,
    read_answer,
)
from dsconv.runtime.sessions.providers import PROVIDERS


def test_the_cpu_works_and_others_are_missing_with_a_cure() -> None:
    outcome = dsconv("doctor", "cpu", "cann", "torch:npu", "--json")
    assert outcome.code == 0, outcome.err
    targets = {target["name"]: target for target in outcome.json["targets"]}
    cpu = targets["cpu"]
    assert cpu["state"] == "works"
    assert cpu["version"]
    assert cpu["graphs"]["int4"]["error"] < 1e-2
    assert cpu["graphs"]["fp16"]["error"] < 1e-2
    assert targets["cann"]["state"] == "missing"
    assert "onnxruntime-cann" in targets["cann"]["cure"]
    assert targets["torch:npu"]["state"] == "missing"
    assert "torch-npu" in targets["torch:npu"]["cure"]


def test_the_table_names_every_target() -> None:
    outcome = dsconv("doctor", environment={"COLUMNS": "200"})
    assert outcome.code == 0, outcome.err
    for name in ("native", *PROVIDERS, "torch:cpu", "torch:cuda", "torch:musa"):
        assert any(line.startswith(name) for line in outcome.out.splitlines()), name


def test_brackets_of_a_command_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cure = PROVIDERS["cuda"].prepare
    assert "[cuda,cudnn]" in cure
    state = TargetState("cuda", "broken", "1.31.1", detail="libcublasLt.so.13", cure=cure)
    doctor.show(Diagnosis((state,), ()))
    assert "[cuda,cudnn]" in "".join(capsys.readouterr().out.split())


def test_an_unknown_target_is_a_usage_error() -> None:
    assert_refused(dsconv("doctor", "abacus"), 2, "abacus")


def test_wheels_that_overwrite_each_other() -> None:
    versions = {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1", "numpy": "2.4.0"}
    (problem,) = package_problems(versions)
    assert "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1" in problem.what
    assert problem.cure == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


@pytest.mark.parametrize(("numpy", "count"), [("2.4.6", 1), ("1.26.4", 0)])
def test_the_cann_wheel_wants_numpy_1(numpy: str, count: int) -> None:
    problems = package_problems({"onnxruntime-cann": "1.24.4", "numpy": numpy})
    assert len(problems) == count


def test_a_crash_and_a_hang_do_not_take_doctor_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ncase $3 in cuda) kill -SEGV $$;; *) sleep 30;; esac\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    crashed, hung = diagnose(["cuda", "qnn"], time_limit=0.5).targets
    assert (crashed.state, hung.state) == ("broken", "broken")
    assert "ended with code -11" in crashed.detail
    assert "no answer in 0.5 s" in hung.detail
    assert crashed.cure
    assert hung.cure


@pytest.mark.parametrize(
    ("int4", "fp16", "state", "detail"),
    [
        ({"error": 1e-3, "message": ""}, {"error": 1e-4, "message": ""}, "works", ""),
        (
            {"error": 3.0, "message": "off by 3"},
            {"error": 0.0, "message": ""},
            "works",
            "int4: off by 3",
        ),
        (
            {"error": None, "message": "x"},
            {"error": None, "message": "y"},
            "broken",
            "int4: x; fp16: y",
        ),
        (
            {"error": None, "message": "not taken by this provider"},
            {"error": 0.0, "message": ""},
            "works",
            "",
        ),
    ],
)
def test_what_the_graphs_say(int4: dict, fp16: dict, state: str, detail: str) -> None:
    answer = {"found": True, "graphs": {"int4": int4, "fp16": fp16}}
    found = read_answer("cuda", "1.31", answer, "")
    assert (found.state, found.detail) == (state, detail)
    assert bool(found.cure) is bool(detail)


def test_a_wheel_without_its_libraries_is_broken_not_missing() -> None:
    answer = {"found": False, "error": "libcublasLt.so.13", "hint": "install CUDA"}
    assert read_answer("cuda", "1.31.1", answer, "").state == "broken"
    assert read_answer("cuda", "", answer, "").state == "missing"


def test_nan_is_no_match() -> None:
    assert not GraphResult(float("nan"), "off by nan of the largest value").passed
