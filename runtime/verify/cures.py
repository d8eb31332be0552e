"""What would help an artifact that fails, in its own situation."""

from __future__ import annotations

from collections.abc import Sequence

from dsconv.convert.quantize.options import CALIBRATED

from .grade import GRADES, expected_grade
from .verdict import LimitCheck, Verdict

LAYERS = "compare it layer by layer (verify --layers), and with the original's config and tokenizer"
MOST_QUANTIZED_BITS = 10
LOST_TOO_MUCH = "what is wrong is not a matter of bits"


def cure(verdict: Verdict) -> str:
    """Of what is wrong in itself; otherwise of what failed first: loss, speed, a baseline."""
    hint = next((finding.hint for finding in verdict.findings if finding.hint), None)
    if hint is not None:
        return hint
    failed = [check for check in verdict.checks if not check.passed]
    if all(check.name == "min-speedup" for check in failed):
        return "measure on an idle machine; see dsconv targets for what is made for this hardware"
    if all(check.source == "baseline" for check in failed):
        return (
            "compare the provenance of both --json outputs for what has changed; "
            "where it was meant, keep this one as the new baseline"
        )
    return _of_a_limit_out_of_reach(verdict, failed) or _of_loss(verdict)


def _of_a_limit_out_of_reach(verdict: Verdict, failed: Sequence[LimitCheck]) -> str | None:
    """Of questions that the reference does not answer better than the limit asks for, either."""
    if not failed or any(check.name != "min-accuracy" for check in failed):
        return None
    reached = [t.reference_accuracy for t in verdict.tasks if t.reference_accuracy is not None]
    limit = max(check.limit for check in failed)
    if not reached or min(reached) >= limit:
        return None
    return (
        f"the reference itself reaches {min(reached):.3g}, below the limit of {limit:g}: "
        "set it lower, or use --max-accuracy-drop"
    )


def _of_loss(verdict: Verdict) -> str:
    made, grade = verdict.circumstances, verdict.grade
    is_calibrated = made.method == CALIBRATED
    if not made.bits or made.bits > MOST_QUANTIZED_BITS:
        return f"it is stored in float, so {LOST_TOO_MUCH}: {LAYERS}"
    if made.rounds_inputs:
        return "int8 inputs cost this: leave out --activations int8, or allow a larger limit"
    expected = expected_grade(made.bits)
    if GRADES.index(grade) > GRADES.index(expected) + (expected != "faithful"):
        return f"{expected} is what so many bits give, so {LOST_TOO_MUCH}: {LAYERS}"
    if expected == "faithful":
        cures = "" if is_calibrated else "calibrate (quantize --method gptq), "
        return f"{cures}allow a larger limit, or keep the original's floats"
    bits = round(made.bits + 1, 1)
    more = f"use more bits where it needs them (quantize --target-bpw {bits:g}), or --bits 8"
    if is_calibrated or not made.method:
        return more
    return f"calibrate (quantize --method gptq), or {more}"
