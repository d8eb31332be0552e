"""What a release is allowed to cost: limits from options, a recipe, dsconv.toml, or the defaults.

Each limit is taken from the first that names it: the option, then the recipe, then `[verify]` in
the dsconv.toml of the working folder. Only where nobody names any, the defaults count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dsconv.convert.files.limits import RECIPE_BYTES
from dsconv.convert.files.local_files import read_limited
from dsconv.convert.files.toml_file import parse_toml
from dsconv.errors import InputError, UsageError

from .grade import expected_grade, limits_of
from .verdict import Verdict

CONFIG_FILE = "dsconv.toml"
SECTION = "verify"

Source = Literal["option", "recipe", "file", "default"]


@dataclass(frozen=True)
class Figure:
    """A figure that can have a limit. `words` say what it is; `low`, `high`: possible limits."""

    key: str  # "max_kl": in files and JSON
    words: str
    value: Callable[[Verdict], float]
    is_upper: bool
    low: float = 0.0
    high: float = float("inf")
    example: str = "0.03"

    @property
    def option(self) -> str:
        return self.key.replace("_", "-")

    def complaint(self, value: object) -> str | None:
        """Why this cannot be a limit; None when it can."""
        words = self.option.replace("-", " ")
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"{words} {value!r} is not a number"
        if not self.low <= value <= self.high:  # NaN lies nowhere
            top = "" if self.high == float("inf") else f" and at most {self.high:g}"
            return f"{words} {value:g} is out of range, at least {self.low:g}{top}"
        return None


def speedup(verdict: Verdict) -> float:
    """Decoding of the artifact over that of the reference; NaN where it was not timed."""
    rates = [speed.decode_tokens_per_second for speed in verdict.speeds[:2]]
    if len(rates) < 2 or not rates[0] or not rates[1]:
        return float("nan")
    return rates[0] / rates[1]


def accuracy(verdict: Verdict) -> float:
    """The least of all tasks; NaN without any."""
    return min((task.artifact_accuracy for task in verdict.tasks), default=float("nan"))


def accuracy_drop(verdict: Verdict) -> float:
    """The largest of all tasks; NaN where nothing was compared."""
    drops = (-task.paired.difference for task in verdict.tasks if task.paired is not None)
    return max(drops, default=float("nan"))


OF_TASKS = ("min_accuracy", "max_accuracy_drop")
FIGURES = (
    Figure("max_kl", "mean KL, nats per token", lambda v: v.summary.kl_mean, True),
    Figure("max_kl_p99", "p99 of the KL, nats", lambda v: v.summary.kl_p99, True, example="0.5"),
    Figure("min_top1", "top-1 agreement", lambda v: v.summary.top1_agreement, False, 0, 1, "0.93"),
    Figure(
        "max_ppl_ratio",
        "perplexity ratio",
        lambda v: v.summary.perplexity_ratio,
        True,
        example="1.05",
    ),
    Figure(
        "max_probability_shift",
        "share of tokens whose probability changes by more than 0.1",
        lambda v: v.summary.probability_shift,
        True,
        0,
        1,
        "0.05",
    ),
    Figure("min_accuracy", "accuracy of a task", accuracy, False, 0, 1, "0.6"),
    Figure(
        "max_accuracy_drop",
        "accuracy of a task below the reference's",
        accuracy_drop,
        True,
        0,
        1,
        "0.01",
    ),
    Figure("min_speedup", "decoding speed over the reference's", speedup, False, example="2"),
)
BY_KEY = {figure.key: figure for figure in FIGURES}


@dataclass(frozen=True)
class Threshold:
    figure: Figure
    limit: float
    source: Source


def from_options(values: Mapping[str, float | None]) -> tuple[Threshold, ...]:
    """Those options that were given.

    Raises:
        UsageError: no limit of that name, or a value that no figure can have.
    """
    found = []
    for key, value in values.items():
        if key not in BY_KEY:
            raise UsageError(f"{key}: unknown limit", f"known limits: {', '.join(BY_KEY)}")
        if value is None:
            continue
        figure = BY_KEY[key]
        complaint = figure.complaint(value)
        if complaint:
            raise UsageError(complaint, f"use --{figure.option} {figure.example}, for example")
        found.append(Threshold(figure, value, "option"))
    return tuple(found)


def from_table(table: Mapping[str, object], where: str, source: Source) -> tuple[Threshold, ...]:
    """A table of a TOML file. Raises InputError: an unknown key or an impossible value."""
    found = []
    for key, value in table.items():
        if key not in BY_KEY:
            raise InputError(f"{where}: {key}: unknown key", f"known keys: {', '.join(BY_KEY)}")
        complaint = BY_KEY[key].complaint(value)
        if complaint:
            raise InputError(
                f"{where}: {key}: {complaint}", f"write {key} = {BY_KEY[key].example}, for example"
            )
        found.append(Threshold(BY_KEY[key], float(value), source))  # type: ignore[arg-type]
    return tuple(found)


def from_file(folder: Path) -> tuple[Threshold, ...]:
    """`[verify]` of the folder's dsconv.toml; nothing where there is no such file.

    Raises:
        InputError: not TOML, an unknown key or an impossible value.
    """
    path = folder / CONFIG_FILE
    if not os.path.lexists(path):
        return ()
    text = read_limited(path, RECIPE_BYTES)
    content = parse_toml(text, f"{path}: not TOML", "fix the line that it names")
    table = content.get(SECTION, {})
    if not isinstance(table, dict):
        raise InputError(f"{path}: {SECTION}: not a table", f"write it as [{SECTION}]")
    return from_table(table, f"{path}: [{SECTION}]", "file")


def choose(
    options: tuple[Threshold, ...],
    recipe: tuple[Threshold, ...],
    file: tuple[Threshold, ...],
    bits: float,
    rounds_inputs: bool = False,
) -> tuple[Threshold, ...]:
    """The first that names a figure wins; without any, the defaults for how it was made."""
    chosen: dict[str, Threshold] = {}
    for threshold in (*options, *recipe, *file):
        chosen.setdefault(threshold.figure.key, threshold)
    return tuple(chosen.values()) or defaults(bits, rounds_inputs)


def defaults(bits: float, rounds_inputs: bool = False) -> tuple[Threshold, ...]:
    """Those of the grade that an honest conversion reaches (see `expected_grade`)."""
    kept = limits_of(expected_grade(bits, rounds_inputs))
    limits = {"max_kl": kept.max_kl, "max_ppl_ratio": kept.max_ppl_ratio}
    return tuple(Threshold(BY_KEY[key], limit, "default") for key, limit in limits.items())
