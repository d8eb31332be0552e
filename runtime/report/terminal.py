"""The verdict on a terminal: the same figures as the page, with sparklines, 80 columns wide.

Words mark what failed, so nothing is lost without colour. Text from models and files is made
visible first: it could hold commands for the terminal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsconv.runtime.console import BARS, size_text, sparkline
from dsconv.runtime.verify.tasks.statistics import Shares
from dsconv.runtime.verify.verdict import TaskScore, Verdict, WorstToken

from .axis import linear_axis
from .figures import (
    FIGURES,
    by_how_much,
    check_number,
    count_text,
    end,
    error,
    figure_of,
    floor_of,
    floor_text,
    how_good,
    is_exact,
    last_part,
    limit_text,
    number,
    rate_text,
    short,
    size_or_dash,
    start,
    state,
    visible,
    visible_token,
    why,
)

PLAIN_BARS = " .:-=+*#"  # where the terminal's encoding has no blocks
STYLES = {"Passed": "bold green", "Failed": "bold red", "Not judged": "bold"}
SHOWN_WORST, SHOWN_FINDINGS, SHOWN_SPEEDS = 3, 10, 12


def show_verdict(verdict: Verdict, console: Console) -> None:
    """Print checks, findings, figures beside the noise floor, where the difference is, and the
    worst tokens."""
    word = state(verdict)
    name = short(last_part(verdict.circumstances.artifact), 60)
    heading = _text(console, f"{word}: {name}")
    heading.stylize(STYLES[word], 0, len(word))
    console.print(heading)
    console.print(_text(console, how_good(verdict)))
    console.print(_text(console, why(verdict)))
    if verdict.checks:
        console.print(_checks(verdict, console))
    for finding in verdict.findings[:SHOWN_FINDINGS]:
        console.print(_text(console, f"wrong: {short(finding.place)}: {short(finding.message)}"))
        if finding.hint:
            console.print(_text(console, f"       cure: {short(finding.hint)}"))
    if len(verdict.findings) > SHOWN_FINDINGS:
        console.print(_text(console, f"{len(verdict.findings) - SHOWN_FINDINGS} more"))
    console.print(_figures(verdict, console))
    for line in (*_sparklines(verdict, console), *_behaviour(verdict)):
        console.print(_text(console, line))
    if verdict.speeds:
        console.print(_speeds(verdict, console))
    for rank, token in enumerate(verdict.worst_tokens[:SHOWN_WORST], start=1):
        for line in _worst(rank, token):
            console.print(_text(console, line))
    if verdict.report is not None:
        console.print(_text(console, f"report: {verdict.report}"))


def _text(console: Console, text: str) -> Text:
    """Visible characters in the terminal's encoding; never markup."""
    encoded = visible(text).encode(console.encoding, "replace")
    return Text(encoded.decode(console.encoding))


def _table(console: Console, title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        justify = "right" if index and column != "result" else "left"
        table.add_column(_text(console, column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _checks(verdict: Verdict, console: Console) -> Table:
    table = _table(console, "checks", ("figure", "measured", "limit", "noise floor", "result"))
    for check in sorted(verdict.checks, key=lambda check: check.passed):
        word = "passed" if check.passed else "FAILED"
        result = _text(console, f"{word}: {by_how_much(check)}")
        result.stylize("green" if check.passed else "bold red", 0, len(word))
        cells = (
            f"{short(check.figure, 60)} ({short(check.name, 40)})",
            check_number(check, check.value),
            limit_text(check),
            floor_text(verdict, figure_of(check)),
        )
        table.add_row(*(_text(console, cell) for cell in cells), result)
    return table


def _figures(verdict: Verdict, console: Console) -> Table:
    title = count_text(verdict.summary.tokens, "token")
    if verdict.noise_floor is not None:
        title += f"; noise floor: {visible(short(verdict.noise_floor.what, 60))}"
    table = _table(console, title, ("figure", "artifact", "noise floor", "above it"))
    for figure in FIGURES:
        value, floor = figure.take(verdict.summary), floor_of(verdict, figure)
        text = figure.text(value)
        if figure is FIGURES[0]:
            text += f" {error(verdict.summary.kl_stderr)}"
        above = f"{number(value / floor)} ×" if figure.is_kl and floor else "–"
        cells = (figure.label, text, floor_text(verdict, figure), above)
        table.add_row(*(_text(console, cell) for cell in cells))
    return table


def _sparklines(verdict: Verdict, console: Console) -> Iterator[str]:
    bars = BARS if _can_encode(console, BARS) else PLAIN_BARS
    for of in ("position", "confidence"):
        buckets = [bucket for bucket in verdict.buckets if bucket.of == of]
        if not buckets:
            continue
        means = [bucket.summary.kl_mean for bucket in buckets]
        axis = linear_axis(means, from_zero=True)
        shares = [axis.share(mean) if math.isfinite(mean) else math.nan for mean in means]
        named = ", ".join(
            f"{short(bucket.name, 20)}: {number(mean)}"
            for bucket, mean in zip(buckets, means, strict=True)
        )
        yield f"KL by {of:10} {sparkline(shares, bars)}  {named}"
    if verdict.layers:
        known = [layer.sqnr_db for layer in verdict.layers]
        axis = linear_axis([-value for value in known if not is_exact(value)])
        shares = [
            0.0 if is_exact(v) else math.nan if math.isnan(v) else axis.share(-v) for v in known
        ]
        worst = min(verdict.layers, key=lambda x: -math.inf if math.isnan(x.sqnr_db) else x.sqnr_db)
        exact = sum(map(is_exact, known))
        where = f"largest: {short(worst.name, 60)}, SQNR {number(worst.sqnr_db)} dB"
        if exact:
            where = f"{where}; {exact} exact" if exact < len(known) else "every layer is exact"
        yield f"error by layer   {sparkline(shares, bars)}  {where}"


def _can_encode(console: Console, text: str) -> bool:
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _behaviour(verdict: Verdict) -> Iterator[str]:
    """A line for the free texts, and one per task."""
    free = verdict.free_running
    if free is not None:
        parts = sorted(free.first_divergence)
        parting = f"part after {parts[(len(parts) - 1) // 2]} tokens (median), " if parts else ""
        yield (
            f"free texts: {parting}length {number(free.length_ratio, True)} of the reference's, "
            f"loops {number(free.artifact_loop_rate, True)} "
            f"(reference {number(free.reference_loop_rate, True)})"
        )
        if free.artifact_closed_rate is not None:
            yield (
                f"thoughts closed: {number(free.artifact_closed_rate, True)} "
                f"(reference {number(free.reference_closed_rate, True)})"
            )
    for task in verdict.tasks:
        yield from _task(task)


def _task(task: TaskScore) -> Iterator[str]:
    theirs = task.reference_accuracy
    other = "" if theirs is None else f" (reference {number(theirs, True)})"
    yield (
        f"{short(last_part(task.file), 60)}: {number(task.artifact_accuracy, True)} "
        f"{error(task.artifact_stderr, True)} right{other}"
    )
    if task.macro is not None:
        yield f"  mean of {len(task.subjects)} subjects: {_shares(task.macro)}"
    if task.majority is not None:
        yield f"  answer of most of {task.seeds} samples: {_shares(task.majority)}"
    if task.artifact_cut or task.reference_cut:
        others = task.reference_cut
        other = "" if others is None else f" (reference {number(others, True)})"
        yield (
            f"  {number(task.artifact_cut, True)} of the answers were cut at the limit of "
            f"tokens{other}: --task-tokens"
        )
    if task.paired is not None:
        low, high = (number(100 * value) for value in task.paired.interval)
        yield (
            f"  difference {number(100 * task.paired.difference)} points ({low} to {high}), "
            f"{task.paired.worse} questions worse, {task.paired.better} better, "
            f"p = {task.paired.p_value:.2g}; so many questions show a drop of "
            f"{number(100 * task.paired.visible_drop)} points, a drop of 1 point takes "
            f"{task.paired.questions_for_one_point:,}"
        )


def _shares(shares: Shares) -> str:
    theirs, wide = shares.reference_accuracy, shares.reference_stderr
    other = (
        ""
        if theirs is None or wide is None
        else f" (reference {number(theirs, True)} {error(wide, True)})"
    )
    return f"{number(shares.artifact_accuracy, True)} {error(shares.artifact_stderr, True)}{other}"


def _speeds(verdict: Verdict, console: Console) -> Table:
    columns = ("artifact", "size", "mean KL", "prefill/s", "decode/s", "peak memory")
    table = _table(console, "size, speed and quality", columns)
    for speed in verdict.speeds[:SHOWN_SPEEDS]:
        cells = (
            short(last_part(speed.name), 60),
            size_text(speed.size_bytes),
            "–" if speed.kl_mean is None else number(speed.kl_mean),
            rate_text(speed.prefill_tokens_per_second),
            rate_text(speed.decode_tokens_per_second),
            size_or_dash(speed.peak_rss_bytes),
        )
        table.add_row(*(_text(console, cell) for cell in cells))
    return table


def _worst(rank: int, token: WorstToken) -> Iterator[str]:
    tops = (token.reference_top, token.artifact_top)
    theirs, ours = (visible_token(short(top, 30)) for top in tops)
    yield (
        f"{rank}. KL {number(token.kl)}, window {token.window}, position {token.position}: "
        f"reference {theirs} {number(token.reference_probability, True)}, "
        f"artifact {ours} {number(token.artifact_probability, True)}"
    )
    yield f"   {end(token.before, 50)}[{short(token.token, 30)}]{start(token.after, 20)}"
