"""What `verify` found, as plain data: measured by measure.py and its neighbours, judged by
judge.py, shown by the report's page and terminal.

Every part beside the teacher-forced figures is optional: None or empty where it was not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .grade import Grade, grade_of
from .metrics import Summary, TokenScores
from .tasks.statistics import Paired, Shares

INT8_INPUTS = "int8 activations"


@dataclass(frozen=True)
class Bucket:
    """Tokens that have something in common; `of` says what was divided."""

    of: Literal["position", "confidence"]
    name: str  # "0-256", "1024+"; "0.0-0.5", "0.99-1.0": the reference's largest probability
    summary: Summary


@dataclass(frozen=True)
class NoiseFloor:
    """The reference against itself in another precision, on a part of the same text.

    What is below it cannot be told from rounding of the arithmetic.
    """

    what: str  # "bfloat16 against float32"
    summary: Summary


@dataclass(frozen=True)
class WorstToken:
    """A token where the two models part most."""

    kl: float
    window: int
    position: int
    before: str  # text that leads to it
    token: str  # what the text has
    after: str
    reference_top: str  # the likeliest token of each
    reference_probability: float
    artifact_top: str
    artifact_probability: float


@dataclass(frozen=True)
class LayerError:
    """Output of one layer of the artifact's weights against the original's, same inputs upstream.

    `matrices` holds the same per matrix: SQNR of the weights, None where it is exact.
    """

    layer: int
    name: str  # of the module
    sqnr_db: float
    cosine: float
    matrices: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class FreeRunning:
    """Greedy texts of both from the same prompts."""

    prompts: int
    tokens_per_prompt: int
    first_divergence: tuple[int, ...]  # per prompt; tokens_per_prompt where they never part
    length_ratio: float
    reference_loop_rate: float  # share of texts that end in repeated n-grams
    artifact_loop_rate: float
    reference_closed_rate: float | None  # share of texts that leave their thoughts by </think>
    artifact_closed_rate: float | None


@dataclass(frozen=True)
class TaskScore:
    """Questions with one right answer: shares of right ones, and the standard error of each.

    seeds: answers per question. paired: both models on the same questions. subjects: accuracy of
    the artifact by subject, where there are several; reference_subjects: of the reference. macro:
    the mean over subjects, each of which counts alike. majority: of the answer that most samples
    of a question give. cut: share of written answers that the limit of tokens ended.
    """

    file: str
    questions: int
    seeds: int
    artifact_accuracy: float
    artifact_stderr: float
    reference_accuracy: float | None
    reference_stderr: float | None
    paired: Paired | None = None
    subjects: Mapping[str, float] = field(default_factory=dict)
    reference_subjects: Mapping[str, float] = field(default_factory=dict)
    macro: Shares | None = None
    majority: Shares | None = None
    artifact_cut: float | None = None
    reference_cut: float | None = None


@dataclass(frozen=True)
class Speed:
    """Of an artifact, as `bench` measures it; None where it was not measured."""

    name: str
    size_bytes: int
    kl_mean: float | None
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    peak_rss_bytes: int | None


@dataclass(frozen=True)
class Finding:
    """Something that is wrong apart from the figures: a file, a tensor, a provider."""

    place: str  # a file, a tensor, a module, "provider"
    message: str
    hint: str = ""


@dataclass(frozen=True)
class LimitCheck:
    """One figure against one limit."""

    name: str  # the option: "max-kl"
    figure: str  # in words: "mean KL, nats per token"
    value: float | None
    limit: float
    is_upper: bool  # the value may not be above the limit; otherwise not below
    margin: float = 0.0  # allowed beyond the limit for chance, from the standard error
    source: Literal["option", "recipe", "file", "baseline", "default"] = "option"

    @property
    def passed(self) -> bool:
        if self.value is None or not math.isfinite(self.value):
            return False
        if self.is_upper:
            return self.value <= self.limit + self.margin
        return self.value >= self.limit - self.margin


@dataclass(frozen=True)
class Circumstances:
    """Where the figures come from, for whoever signs them."""

    artifact: str
    artifact_files: Mapping[str, str]  # name -> sha256
    reference: str
    reference_hash: str
    text: str  # "built-in" or the name of the file
    text_hash: str
    runtime: str
    provider: str
    machine: str
    threads: int
    versions: Mapping[str, str]  # package -> version
    date: str  # ISO 8601, UTC
    tokens_hash: str = ""  # of the token ids, window by window: the same tokens, the same hash
    window: int = 0  # tokens of the longest
    bits: float = 0.0  # per weight of the artifact's narrowest matrix; 0: not known
    method: str = ""  # "gptq", "search", "rtn", INT8_INPUTS; empty where nobody says

    @property
    def rounds_inputs(self) -> bool:
        """Are activations rounded to int8, too?"""
        return self.method == INT8_INPUTS


@dataclass(frozen=True)
class VerdictPart:
    """What a check of `checks.py` adds to a verdict."""

    findings: tuple[Finding, ...] = ()
    layers: tuple[LayerError, ...] = ()
    free_running: FreeRunning | None = None
    tasks: tuple[TaskScore, ...] = ()
    speeds: tuple[Speed, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Everything `verify` has to say about one artifact."""

    summary: Summary
    scores: TokenScores  # per token, for plots
    buckets: tuple[Bucket, ...]
    noise_floor: NoiseFloor | None
    worst_tokens: tuple[WorstToken, ...]
    nodes_on_provider: float
    checks: tuple[LimitCheck, ...]
    findings: tuple[Finding, ...]
    circumstances: Circumstances
    layers: tuple[LayerError, ...] = ()
    free_running: FreeRunning | None = None
    tasks: tuple[TaskScore, ...] = ()
    speeds: tuple[Speed, ...] = ()
    report: Path | None = None

    @property
    def grade(self) -> Grade:
        """How good it is by its figures alone."""
        return grade_of(self.summary, self.scores)

    @property
    def passed(self) -> bool:
        return not self.findings and all(check.passed for check in self.checks)
