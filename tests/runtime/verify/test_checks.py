"""The list of checks, and how their parts come together in one verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from verdicts import random_scores, verdict_of

from dsconv.runtime.verify.checks import (
    Check,
    FreeTextsCheck,
    IntegrityCheck,
    SignatureCheck,
    SpeedCheck,
    TaskCheck,
    TokenizerCheck,
    WantedChecks,
    checks_of,
    with_checks,
)
from dsconv.runtime.verify.comparison import Comparison
from dsconv.runtime.verify.findings.signature import Signature
from dsconv.runtime.verify.verdict import Finding, LayerError, Speed, VerdictPart
from dsconv.runtime.verify.weights import WeightsCheck

MEASURED = verdict_of(random_scores(256), Finding("measured", "first"))
ALWAYS = [TokenizerCheck, WeightsCheck]


@dataclass(frozen=True)
class Gives:
    part: VerdictPart

    def run(self, comparison: Comparison) -> VerdictPart:
        return self.part


def kinds(wanted: WantedChecks) -> list[Any]:
    return [type(check) for check in checks_of(wanted, MEASURED, None)]


def test_what_is_wanted_is_checked_and_nothing_else() -> None:
    assert kinds(WantedChecks()) == ALWAYS
    assert kinds(WantedChecks(layers=False)) == ALWAYS  # which may still look at hashes
    everything = WantedChecks(
        integrity=True,
        free_running=2,
        tasks=(Path("task.jsonl"),),
        speed=True,
        signature=Signature(Path("a.sig"), Path("key.pub")),
    )
    assert kinds(everything) == [
        TokenizerCheck,
        SignatureCheck,
        IntegrityCheck,
        WeightsCheck,
        FreeTextsCheck,
        TaskCheck,
        SpeedCheck,
    ]


def test_parts_come_together_in_the_order_of_the_checks() -> None:
    layer, speed = LayerError(0, "layer", 30.0, 1.0), Speed("a", 1, None, 1.0, 2.0, None)
    checks: list[Check] = [
        Gives(VerdictPart((Finding("a", "second"),))),
        Gives(VerdictPart()),
        Gives(VerdictPart((Finding("b", "third"),), (layer,))),
        Gives(VerdictPart(speeds=(speed,))),
    ]
    verdict = with_checks(MEASURED, checks, cast(Comparison, None))
    assert [finding.message for finding in verdict.findings] == ["first", "second", "third"]
    assert (verdict.layers, verdict.speeds, verdict.tasks) == ((layer,), (speed,), ())
    assert verdict.free_running is None
    assert verdict.summary is MEASURED.summary
