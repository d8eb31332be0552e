"""A verdict as JSON: the keys are an interface, see docs/json.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from .cures import cure
from .judge import failures
from .metrics import Summary, blocks_of
from .thresholds import BY_KEY
from .verdict import LimitCheck, Verdict

# Always there, so that a reader need not ask; others appear when somebody gave them.
ALWAYS_SHOWN = ("max_kl", "min_top1")


def to_json(verdict: Verdict) -> dict[str, Any]:
    """Figures that are not finite become null."""
    s, p = verdict.summary, verdict.circumstances
    content = {
        "passed": verdict.passed,
        "grade": verdict.grade,
        "tokens": s.tokens,
        "kl": {
            "mean": s.kl_mean,
            "stderr": s.kl_stderr,
            "median": s.kl_median,
            "p90": s.kl_p90,
            "p99": s.kl_p99,
            "p999": s.kl_p999,
            "max": s.kl_max,
        },
        "top1_agreement": s.top1_agreement,
        "probability_shift": s.probability_shift,
        "perplexity": {
            "reference": s.reference_perplexity,
            "artifact": s.artifact_perplexity,
            "ratio": s.perplexity_ratio,
        },
        "noise_floor": _noise(verdict),
        "runtime": p.runtime,
        "provider": p.provider,
        "nodes_on_provider": verdict.nodes_on_provider,
        "thresholds": _thresholds(verdict),
        "failures": failures(verdict),
        "cure": None if verdict.passed else cure(verdict),
        "checks": [_check(check) for check in verdict.checks],
        "findings": verdict.findings,
        "buckets": [
            {"of": bucket.of, "name": bucket.name, **_figures(bucket.summary)}
            for bucket in verdict.buckets
        ],
        "worst_tokens": verdict.worst_tokens,
        "layers": verdict.layers,
        "free_running": verdict.free_running,
        "tasks": verdict.tasks,
        "speeds": verdict.speeds,
        "report": verdict.report,
        "provenance": p,
        "blocks": blocks_of(verdict.scores),
    }
    plain: dict[str, Any] = _plain(content)
    return plain


def _noise(verdict: Verdict) -> dict[str, Any]:
    noise = verdict.noise_floor
    if noise is None:
        return {"kl_mean": None}
    return {"what": noise.what, **_figures(noise.summary)}


def _figures(s: Summary) -> dict[str, Any]:
    return {
        "tokens": s.tokens,
        "kl_mean": s.kl_mean,
        "kl_stderr": s.kl_stderr,
        "kl_p99": s.kl_p99,
        "top1_agreement": s.top1_agreement,
        "probability_shift": s.probability_shift,
        "perplexity_ratio": s.perplexity_ratio,
    }


def _thresholds(verdict: Verdict) -> dict[str, float | None]:
    """What somebody asked for; defaults stand among the checks only."""
    asked = {
        check.name.replace("-", "_"): check.limit
        for check in verdict.checks
        if check.source in ("option", "recipe", "file")
    }
    limits: dict[str, float | None] = dict.fromkeys(ALWAYS_SHOWN)
    return limits | {key: limit for key, limit in asked.items() if key in BY_KEY}


def _check(check: LimitCheck) -> dict[str, Any]:
    return {**asdict(check), "passed": check.passed}


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and paths as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(part) for key, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
