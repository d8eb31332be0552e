"""JUnit XML and GitHub's files, read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from verdicts import random_scores, verdict_of

from dsconv.errors import OutputError
from dsconv.runtime.report.github_annotations import (
    append_step_summary,
    error_annotations,
    step_summary,
)
from dsconv.runtime.report.junit import junit_xml, write_junit
from dsconv.runtime.verify.judge import judge
from dsconv.runtime.verify.thresholds import from_options
from dsconv.runtime.verify.verdict import Finding, LimitCheck, Verdict

AWKWARD = "a <\"'&>\n\x00\x1b\ufffe\ud800 ｜ 100 %: b, c | d"


@pytest.fixture(scope="module")
def failed() -> Verdict:
    verdict = verdict_of(random_scores(), Finding(AWKWARD, AWKWARD, "mend it"))
    return judge(verdict, from_options({"max_kl": 1e-9, "min_top1": 0.1}))


def test_a_case_per_check_and_finding(failed: Verdict) -> None:
    root = Xml.fromstring(junit_xml(failed))
    suite = root.find("testsuite")
    assert root.tag == "testsuites"
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "2", "0")
    kl, top1, finding = suite.findall("testcase")
    assert (kl.get("name"), top1.get("name")) == ("max-kl", "min-top1")
    assert top1.find("failure") is None
    failure = kl.find("failure")
    assert failure is not None
    assert (failure.get("message") or "").startswith("mean KL, nats per token 0.0")
    assert "allowed 1e-09" in (failure.get("message") or "")
    words = finding.find("failure")
    assert words is not None
    assert words.text == "mend it"
    assert "100 %: b, c | d" in (words.get("message") or "")


def test_it_is_utf8_without_what_xml_forbids(failed: Verdict) -> None:
    text = junit_xml(failed).decode("utf-8")
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>")
    assert "｜" in text
    assert not {"\x00", "\x1b", "\ufffe"} & set(text)


def test_a_passed_verdict_has_no_failure() -> None:
    root = Xml.fromstring(
        junit_xml(judge(verdict_of(random_scores()), from_options({"max_kl": 9})))
    )
    assert root.get("failures") == "0"
    assert not list(root.iter("failure"))


def test_the_file(tmp_path: Path, failed: Verdict) -> None:
    for _ in range(2):  # the next run replaces it
        write_junit(tmp_path / "sub" / "junit.xml", failed)
    assert (tmp_path / "sub" / "junit.xml").read_bytes() == junit_xml(failed)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_junit(tmp_path / "file" / "junit.xml", failed)


def test_annotations_are_one_line_per_failure(failed: Verdict) -> None:
    finding, kl = error_annotations(failed)
    assert kl.startswith("::error title=dsconv verify%3A max-kl::mean KL, nats per token 0.0")
    assert "\n" not in finding
    title, words = finding.removeprefix("::error title=").split("::")
    assert "%3A" in title
    assert "," not in title
    assert "%0A" in words
    assert "100 %25: b, c | d" in words
    assert words.endswith("; mend it")


def test_a_passed_verdict_is_not_annotated() -> None:
    assert not list(error_annotations(verdict_of(random_scores())))


def test_the_summary_is_appended(tmp_path: Path, failed: Verdict) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    append_step_summary(failed, {"GITHUB_STEP_SUMMARY": str(path)})
    text = path.read_text(encoding="utf-8")
    assert text == "before\n" + step_summary(failed).replace("\ud800", "?")
    rows = [line for line in text.splitlines() if line.startswith(("| ✅", "| ❌"))]
    assert [row.count("|") - row.count("\\|") for row in rows] == [6, 6, 4]
    append_step_summary(failed, {})  # not in GitHub Actions


def test_a_figure_that_was_not_measured_is_said(failed: Verdict) -> None:
    check = LimitCheck("min-speedup", "speedup", None, 2.0, False)
    verdict = replace(failed, checks=(check,))
    assert "not measured" in step_summary(verdict)
    assert "speedup not measured, required 2" in junit_xml(verdict).decode()
