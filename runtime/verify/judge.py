"""Judges a verdict: every figure against its threshold, and against an earlier verdict.

A threshold that somebody set holds to the letter; a default gives way to chance (`grade.py`). So
does an earlier verdict (`--baseline`): a figure counts as worse only when it is so by more than
chance and by more than matters, that is by more than both three standard errors of the difference
and a share of the earlier figure (MATERIAL). Standard errors are those of blocks of 64 tokens,
since neighbours are hard or easy together. Where both verdicts saw the same tokens, the blocks are
paired, and what makes a text hard or easy cancels; otherwise the two standard errors are added in
quadrature. An unchanged artifact on another machine passes, and so does one that differs by the
luck of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files.json_file import read_json_object
from dsconv.errors import InputError

from .grade import chance_of
from .metrics import BLOCK, Blocks, blocks_of, excess_loss, standard_error
from .thresholds import Threshold
from .verdict import Finding, LimitCheck, Verdict

FEWEST_BLOCKS = 8  # below, their spread says nothing
STANDARD_ERRORS = 3.0
MATERIAL = 0.02  # of the earlier figure
MATERIAL_LOSS = 0.002  # nats: 0.2 % of the perplexity


@dataclass(frozen=True)
class Baseline:
    """What an earlier verdict measured."""

    tokens_hash: str
    reference_hash: str
    kl: float
    disagreement: float
    loss: float  # log of the perplexity ratio
    blocks: Blocks


def read_baseline(path: Path) -> Baseline:
    """What `dsconv verify --json` printed.

    Raises:
        InputError: it is not that, or its figures are not finite.
    """
    content = read_json_object(path)
    try:
        blocks = content["blocks"]
        return Baseline(
            str(content["provenance"]["tokens_hash"]),
            str(content["provenance"]["reference_hash"]),
            float(content["kl"]["mean"]),
            1 - float(content["top1_agreement"]),
            math.log(content["perplexity"]["artifact"] / content["perplexity"]["reference"]),
            Blocks(
                *(np.asarray(blocks[key], np.float64) for key in ("kl", "disagreement", "loss"))
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not a verdict: {type(error).__name__}: {error}",
            "use the output of dsconv verify --json, of this version and of a run that measured",
        ) from error


def judge(
    verdict: Verdict, thresholds: Sequence[Threshold], baseline: Baseline | None = None
) -> Verdict:
    """Add the checks, and what makes figures meaningless, to what the verdict has already.

    Raises:
        InputError: too few tokens to hold a baseline against.
    """
    checks = [*verdict.checks, *(_against_threshold(verdict, t) for t in thresholds)]
    if baseline is not None:
        checks += _against_baseline(verdict, baseline)
    findings = [*verdict.findings]
    if not math.isfinite(verdict.summary.kl_mean):
        findings.append(
            Finding("logits", "the logits are not finite", "a weight or scale is broken")
        )
        checks = [check for check in checks if check.value is not None]
    return replace(verdict, checks=tuple(checks), findings=tuple(findings))


def _margin(verdict: Verdict, threshold: Threshold) -> float:
    """Beyond a default; what somebody asked for holds to the letter."""
    if threshold.source != "default":
        return 0.0
    chance, limit = chance_of(verdict.scores), threshold.limit
    margins = {
        "max_kl": chance.kl_margin,
        "max_ppl_ratio": chance.ppl_margin,
    }
    return margins[threshold.figure.key](limit)


def _against_threshold(verdict: Verdict, threshold: Threshold) -> LimitCheck:
    figure = threshold.figure
    value = figure.value(verdict)
    return LimitCheck(
        figure.option,
        figure.words,
        value if math.isfinite(value) else None,
        threshold.limit,
        figure.is_upper,
        _margin(verdict, threshold),
        threshold.source,
    )


def _against_baseline(verdict: Verdict, baseline: Baseline) -> list[LimitCheck]:
    s, b = verdict.summary, baseline
    disagreement = 1 - s.top1_agreement
    loss = float(excess_loss(verdict.scores).mean())
    mine, theirs = blocks_of(verdict.scores), baseline.blocks
    fewest = min(len(mine.kl), len(theirs.kl))
    if fewest < FEWEST_BLOCKS:
        raise InputError(
            f"a baseline cannot be held against {fewest * BLOCK} tokens, at least "
            f"{FEWEST_BLOCKS * BLOCK} are needed to tell change from chance",
            "verify on a longer text, or leave out --baseline",
        )
    paired = _saw_the_same(verdict, mine, baseline)
    how = "the same tokens" if paired else "other tokens"
    kl_error = _error(mine.kl, theirs.kl, paired)
    top_error = _error(mine.disagreement, theirs.disagreement, paired)
    loss_error = _error(mine.loss, theirs.loss, paired)

    def check(name: str, words: str, value: float, before: float, margin: float) -> LimitCheck:
        figure = f"{words}, against the baseline on {how}"
        found = value if math.isfinite(value) else None
        return LimitCheck(f"baseline-{name}", figure, found, before, True, margin, "baseline")

    least_kl, least_top = MATERIAL * b.kl, MATERIAL * b.disagreement
    kl_margin = max(STANDARD_ERRORS * kl_error, least_kl)
    top_margin = max(STANDARD_ERRORS * top_error, least_top)
    loss_margin = max(STANDARD_ERRORS * loss_error, MATERIAL_LOSS)
    return [
        check("kl", "mean KL, nats per token", s.kl_mean, b.kl, kl_margin),
        check("top1", "share of other top tokens", disagreement, b.disagreement, top_margin),
        check("ppl", "log of the perplexity ratio", loss, b.loss, loss_margin),
    ]


def _saw_the_same(verdict: Verdict, mine: Blocks, baseline: Baseline) -> bool:
    now = verdict.circumstances
    then = baseline.tokens_hash, baseline.reference_hash
    shapes = {values.shape for part in (mine, baseline.blocks) for values in vars(part).values()}
    return then == (now.tokens_hash, now.reference_hash) and len(shapes) == 1


def _error(mine: NDArray[np.float64], theirs: NDArray[np.float64], paired: bool) -> float:
    """Standard error of the difference of the means."""
    if paired:
        return standard_error(mine - theirs)
    return math.hypot(standard_error(mine), standard_error(theirs))


def failures(verdict: Verdict) -> list[str]:
    """One sentence per thing that is wrong."""
    return [
        *(f"{finding.place}: {finding.message}" for finding in verdict.findings),
        *(sentence(check) for check in verdict.checks if not check.passed),
    ]


def sentence(check: LimitCheck) -> str:
    """The check in words: `mean KL, nats per token 0.04, allowed 0.03`."""
    value = "not measured" if check.value is None else f"{check.value:.4g}"
    word = "allowed" if check.is_upper else "required"
    chance = f" + {check.margin:.2g}" if check.margin else ""
    default = " by default" if check.source == "default" else ""
    return f"{check.figure} {value}, {word} {check.limit:g}{chance}{default}"
