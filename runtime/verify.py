"""The verdict: an artifact in its own runtime against the model it was made from.

Both read the same text with the right answer given at every step (teacher forcing), window by
window, so memory is bounded by one window of logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from .load import Loaded
from .metrics import Summary, TokenScores, compare, join, summarize
from .text_file import read_text_file
from .tokenizer import TextTokenizer

Advance = Callable[[int], None]
NOISE_WINDOWS = 2  # enough to tell the order of magnitude of the noise


@dataclass(frozen=True)
class VerifyOptions:
    """Thresholds are optional; `max_tokens` bounds the work, whole windows are not cut."""

    window: int = 512
    max_tokens: int = 8192
    max_kl: float | None = None
    min_top1: float | None = None

    def __post_init__(self) -> None:
        if self.window < 2 or self.max_tokens < 2:
            raise UsageError("window and token limit must be at least 2", "give larger numbers")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise UsageError(f"max kl {self.max_kl} is negative", "give nats per token, e.g. 0.03")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise UsageError(f"min top1 {self.min_top1} is outside 0..1", "give a share, e.g. 0.93")


@dataclass(frozen=True)
class Verdict:
    """What was measured, against what was asked for."""

    summary: Summary
    noise_kl: float | None
    options: VerifyOptions
    runtime: str
    provider: str
    nodes_on_provider: float

    @property
    def failures(self) -> list[str]:
        """One sentence per threshold that was not met."""
        found = []
        s, o = self.summary, self.options
        if not math.isfinite(s.kl_mean):
            found.append("the logits are not finite")
        elif o.max_kl is not None and not s.kl_mean <= o.max_kl:
            found.append(f"mean KL {s.kl_mean:.4g} nats per token, allowed {o.max_kl:g}")
        if o.min_top1 is not None and not s.top1_agreement >= o.min_top1:
            found.append(f"top-1 agreement {s.top1_agreement:.4f}, required {o.min_top1:g}")
        return found

    @property
    def passed(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        s = self.summary
        return {
            "passed": self.passed,
            "tokens": s.tokens,
            "kl": {
                "mean": _finite(s.kl_mean),
                "stderr": _finite(s.kl_stderr),
                "median": _finite(s.kl_median),
                "p99": _finite(s.kl_p99),
                "max": _finite(s.kl_max),
            },
            "top1_agreement": s.top1_agreement,
            "perplexity": {
                "reference": _finite(s.reference_perplexity),
                "artifact": _finite(s.artifact_perplexity),
            },
            "noise_floor": {"kl_mean": self.noise_kl},
            "runtime": self.runtime,
            "provider": self.provider,
            "nodes_on_provider": self.nodes_on_provider,
            "thresholds": {"max_kl": self.options.max_kl, "min_top1": self.options.min_top1},
            "failures": self.failures,
        }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def read_text(path: Path | None) -> str:
    """The user's text, or the built-in set: English, Chinese, maths, code, dialogue.

    Raises:
        InputError: the file cannot be read, or is empty.
    """
    if path is None:
        return resources.files("dsconv.runtime").joinpath("verify_text.txt").read_text("utf-8")
    return read_text_file(path)


def windows(tokens: Sequence[int], bos: Sequence[int], size: int) -> Iterator[list[int]]:
    """Consecutive pieces of `size` tokens, BOS counted, each with at least one prediction."""
    step = size - len(bos)
    for start in range(0, len(tokens), step):
        window = [*bos, *tokens[start : start + step]]
        if len(window) > 1:
            yield window


def verify(
    artifact: Loaded,
    reference: Loaded,
    text: str,
    options: VerifyOptions,
    advance: Advance = lambda tokens: None,
) -> Verdict:
    """Score `text` with both and compare.

    Raises:
        InputError: the two do not share a vocabulary, or the text is too short.
    """
    pieces = plan_windows(artifact, reference, text, options)
    parts: list[TokenScores] = []
    noise: list[TokenScores] = []
    for index, window in enumerate(pieces):
        targets = window[1:]
        expected = reference.session.score(window)[:-1]
        parts.append(compare(expected, artifact.session.score(window)[:-1], targets))
        if index < NOISE_WINDOWS and reference.runtime == "torch":
            noise.append(compare(expected, _other_precision(reference, window)[:-1], targets))
        advance(len(window))
    return Verdict(
        summarize(join(parts)),
        summarize(join(noise)).kl_mean if noise else None,
        options,
        artifact.runtime,
        artifact.provider,
        artifact.nodes_on_provider,
    )


def plan_windows(
    artifact: Loaded, reference: Loaded, text: str, options: VerifyOptions
) -> list[list[int]]:
    """Tokenize and cut the text, after checking that the two models can be compared."""
    mine, theirs = artifact.session.vocabulary, reference.session.vocabulary
    if mine != theirs:
        raise InputError(
            f"the artifact has {mine} logits per token, the reference {theirs}",
            "give the checkpoint that the artifact was made from as --reference",
        )
    tokenizer = TextTokenizer(reference.side_files or artifact.side_files, reference.config)
    tokens = tokenizer.encode_prompt(text)
    bos = tokens[:1] if tokens[:1] == [tokenizer.bos_id] else []
    tokens = tokens[len(bos) :][: options.max_tokens]
    size = min(options.window, artifact.session.context_length, reference.session.context_length)
    if size <= len(bos) or size < 2:
        raise InputError(
            f"a context of {size} tokens holds no prediction", "export with a longer context"
        )
    pieces = list(windows(tokens, bos, size))
    if not pieces:
        raise InputError(
            f"the text has {len(tokens)} tokens, at least 2 are needed", "give a longer text"
        )
    unknown = max(max(piece) for piece in pieces)
    if unknown >= mine:
        raise InputError(
            f"the tokenizer gives token {unknown}, the model has {mine}",
            "tokenizer.json belongs to another model",
        )
    return pieces


def _other_precision(reference: Loaded, window: Sequence[int]) -> Any:
    """The reference's own weights computed in bfloat16 (or float32, when it is bfloat16)."""
    from .torch_session import TorchSession

    session = reference.session
    if not isinstance(session, TorchSession):
        raise TypeError("only the torch reference has another precision")
    return session.score_in_other_precision(window)
