"""A verdict for GitHub Actions: an error annotation per failure, and a summary of the step.

Annotations are lines that the runner finds on either output of the step; they go to stderr, since
stdout may be the JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from dsconv.atomic import output_error
from dsconv.runtime.verify.judge import sentence
from dsconv.runtime.verify.verdict import LimitCheck, Verdict

from .figures import how_good

SUMMARY_FILE = "GITHUB_STEP_SUMMARY"  # the environment variable that names it


def error_annotations(verdict: Verdict) -> Iterator[str]:
    """One `::error` command per failure; its title names the place."""
    for finding in verdict.findings:
        words = f"{finding.message}; {finding.hint}" if finding.hint else finding.message
        yield _error(finding.place, words)
    for check in verdict.checks:
        if not check.passed:
            yield _error(check.name, sentence(check))


def _error(place: str, words: str) -> str:
    title = _escape(f"dsconv verify: {place}").replace(":", "%3A").replace(",", "%2C")
    return f"::error title={title}::{_escape(words)}"


def _escape(text: str) -> str:
    """As the runner unescapes the data of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def step_summary(verdict: Verdict) -> str:
    """Markdown: the verdict, every check, every finding."""
    s, p = verdict.summary, verdict.circumstances
    noise = verdict.noise_floor
    mark = "✅" if verdict.passed else "❌"
    lines = [
        f"## {mark} dsconv verify: {_cell(p.artifact)}: {verdict.grade}",
        "",
        _cell(how_good(verdict)),
        "",
        f"Against {_cell(p.reference)} on {s.tokens} tokens, {p.runtime} on {p.provider}: mean KL "
        f"{s.kl_mean:.5f} ± {s.kl_stderr:.5f} nats per token, top-1 agreement "
        f"{s.top1_agreement:.4f}, perplexity {s.reference_perplexity:.4f} → "
        f"{s.artifact_perplexity:.4f}."
        + (f" Noise floor {noise.summary.kl_mean:.2g} ({noise.what})." if noise else ""),
        "",
        "| | check | value | limit | from |",
        "|---|---|---:|---:|---|",
        *map(_row, verdict.checks),
    ]
    if verdict.findings:
        lines += ["", "| | place | finding |", "|---|---|---|"]
        lines += [f"| ❌ | {_cell(f.place)} | {_cell(f.message)} |" for f in verdict.findings]
    return "\n".join(lines) + "\n\n"


def _row(check: LimitCheck) -> str:
    value = "not measured" if check.value is None else f"{check.value:.5g}"
    margin = f" + {check.margin:.2g}" if check.margin else ""
    limit = f"{'≤' if check.is_upper else '≥'} {check.limit:.5g}{margin}"
    mark = "✅" if check.passed else "❌"
    return f"| {mark} | {_cell(check.figure)} | {value} | {limit} | {check.source} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def append_step_summary(verdict: Verdict, environment: Mapping[str, str]) -> None:
    """Do nothing outside of GitHub Actions.

    Raises:
        OutputError: the file that the runner names cannot be written.
    """
    name = environment.get(SUMMARY_FILE)
    if not name:
        return
    try:
        with Path(name).open("a", encoding="utf-8", errors="replace") as file:
            file.write(step_summary(verdict))
    except OSError as error:
        raise output_error(error, Path(name)) from error
