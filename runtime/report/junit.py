"""A verdict as JUnit XML, which CI systems show: a test case per check and per finding."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as Xml

from dsconv.atomic import output_file
from dsconv.runtime.verify.judge import sentence
from dsconv.runtime.verify.verdict import Finding, LimitCheck, Verdict

SUITE = "dsconv verify"
# What XML 1.0 cannot hold, escaped or not: control characters, halves of surrogate pairs.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(verdict: Verdict) -> bytes:
    """The document, in UTF-8."""
    cases = [*map(_check_case, verdict.checks), *map(_finding_case, verdict.findings)]
    failed = sum(case.find("failure") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failed), "errors": "0"}
    root = Xml.Element("testsuites", {"name": SUITE, **counts})
    suite = Xml.SubElement(
        root,
        "testsuite",
        {"name": SUITE, **counts, "skipped": "0", "timestamp": verdict.circumstances.date},
    )
    properties = Xml.SubElement(suite, "properties")
    for name, value in _properties(verdict).items():
        Xml.SubElement(properties, "property", {"name": name, "value": _clean(value)})
    suite.extend(cases)
    Xml.indent(root)
    document: bytes = Xml.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def write_junit(path: Path, verdict: Verdict) -> None:
    """Raises OutputError: the file cannot be written."""
    document = junit_xml(verdict)
    with output_file(path, overwrite=True) as partial:
        partial.write_bytes(document)


def _properties(verdict: Verdict) -> dict[str, str]:
    p = verdict.circumstances
    return {
        "artifact": p.artifact,
        "reference": p.reference,
        "runtime": f"{p.runtime} on {p.provider}",
        "machine": p.machine,
        "tokens": str(verdict.summary.tokens),
        "grade": verdict.grade,
    }


def _check_case(check: LimitCheck) -> Xml.Element:
    case = Xml.Element("testcase", {"classname": SUITE, "name": check.name})
    if check.passed:
        Xml.SubElement(case, "system-out").text = _clean(sentence(check))
    else:
        failure = Xml.SubElement(case, "failure", {"type": check.source})
        failure.set("message", _clean(sentence(check)))
    return case


def _finding_case(finding: Finding) -> Xml.Element:
    case = Xml.Element("testcase", {"classname": SUITE, "name": _clean(finding.place)})
    failure = Xml.SubElement(case, "failure", {"type": "finding"})
    failure.set("message", _clean(finding.message))
    failure.text = _clean(finding.hint)
    return case


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
