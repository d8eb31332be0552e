"""What `dsconv verify` does between parsing and printing, and its table."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .console import progress, say
from .file_hashes import FileHashes
from .gate import failures, judge, read_baseline
from .github_annotations import append_step_summary, error_annotations
from .junit import write_junit
from .load import load
from .provenance import trace, weight_hashes
from .reference import LivePredictions, Reference, Tokens, open_reference
from .reference_cache import ReferenceCache, cache_key
from .thresholds import Threshold, choose, from_file, narrowest_bits
from .verdict import Check, Verdict
from .verdict_json import to_json
from .verify import VerifyOptions, plan_windows, read_text, verify


@dataclass(frozen=True)
class VerifyRequest:
    """What to compare, how, and what must hold.

    thresholds: of the command line. recipe: of a recipe that is being built. cache: folder of the
    reference's predictions; None keeps none. settings: folder whose dsconv.toml counts.
    """

    artifact: str
    reference: str
    text: Path | None = None
    options: VerifyOptions = field(default_factory=VerifyOptions)
    thresholds: tuple[Threshold, ...] = ()
    recipe: tuple[Threshold, ...] = ()
    baseline: Path | None = None
    cache: Path | None = None
    provider: str = "cpu"
    dtype: str = "float32"
    threads: int = 0
    kv: str = "fp16"
    settings: Path | None = None


def run_verify(request: VerifyRequest) -> Verdict:
    """Measure and judge. What can be wrong with the request is found out before anything runs.

    Raises:
        UsageError, InputError, UnsupportedError, ProviderError, DownloadError: with the cure.
    """
    text = read_text(request.text)
    file = from_file(request.settings) if request.settings else ()
    baseline = read_baseline(request.baseline) if request.baseline else None
    artifact = load(request.artifact, request.provider, request.threads, kv=request.kv)
    reference = open_reference(request.reference, request.dtype, request.threads)
    windows = plan_windows(artifact, reference, text, request.options)
    hashes = FileHashes(request.cache)
    cache = ReferenceCache(request.cache, say) if request.cache else None
    key = cache_key(reference, weight_hashes(reference, hashes), windows)
    kept = cache.load(key, windows) if cache else None
    predictions = kept or _predict(reference, windows)
    name = request.text.name if request.text else None
    provenance = trace(
        request.artifact, artifact, reference, text, name, windows, request.threads, hashes
    )
    with progress("verify", sum(map(len, windows)), "tokens") as advance:
        verdict = verify(artifact, reference, windows, predictions, provenance, advance)
    if cache and isinstance(predictions, LivePredictions):
        cache.store(key, predictions.kept())
    bits = narrowest_bits(request.artifact)
    thresholds = choose(request.thresholds, request.recipe, file, bits)
    return judge(verdict, thresholds, baseline)


def _predict(reference: Reference, windows: Tokens) -> LivePredictions:
    with progress("reference", reference.work(windows), "tokens") as advance:
        return reference.predict(windows, advance)


@dataclass(frozen=True)
class VerifyReport:
    verdict: Verdict

    hint = "calibrate, use smaller groups or more bits (--head-bits 8, --bits 8)"

    @property
    def failures(self) -> list[str]:
        return failures(self.verdict)

    def to_json(self) -> dict[str, Any]:
        return to_json(self.verdict)

    def publish(self, junit: Path | None, github: bool) -> None:
        """Write what CI systems read. Raises OutputError: a file cannot be written."""
        if junit is not None:
            write_junit(junit, self.verdict)
        if github:
            for line in error_annotations(self.verdict):
                say(line)
            append_step_summary(self.verdict, os.environ)

    def show(self) -> None:
        """A plain table: figures, then every check with what it misses by."""
        from rich.console import Console
        from rich.table import Table

        s, p = self.verdict.summary, self.verdict.provenance
        noise = self.verdict.noise_floor
        table = Table(title=f"{p.artifact} against {p.reference}", title_justify="left")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_row("mean KL, nats per token", f"{s.kl_mean:.5f} ± {s.kl_stderr:.5f}")
        table.add_row("median, p90, p99", f"{s.kl_median:.5f}, {s.kl_p90:.4f}, {s.kl_p99:.4f}")
        table.add_row("p99.9, max", f"{s.kl_p999:.3f}, {s.kl_max:.3f}")
        if noise is not None:
            table.add_row(f"noise floor ({noise.what})", f"{noise.summary.kl_mean:.6f}")
        table.add_row("top-1 agreement", f"{s.top1_agreement:.4f}")
        table.add_row("probability off by more than 0.1", f"{s.probability_shift:.4f}")
        table.add_row("perplexity of the reference", f"{s.reference_perplexity:.4f}")
        ratio = s.artifact_perplexity / s.reference_perplexity
        table.add_row("perplexity of the artifact", f"{s.artifact_perplexity:.4f} (× {ratio:.4f})")
        table.add_row("tokens", str(s.tokens))
        table.add_row("runtime", f"{p.runtime} on {p.provider}")
        console = Console()
        console.print(table)
        self._show_checks(console)
        print("verdict: passed" if self.verdict.passed else "verdict: failed")

    def _show_checks(self, console: Any) -> None:
        from rich.table import Table

        table = Table()
        for column in ("", "check", "value", "limit", "missed by", "from"):
            table.add_column(column, justify="left" if column in ("", "check") else "right")
        for check in self.verdict.checks:
            table.add_row(*_cells(check), style=None if check.passed else "bold red")
        for finding in self.verdict.findings:
            table.add_row("✗", finding.place, finding.message, "", "", "", style="bold red")
        console.print(table)


def _cells(check: Check) -> tuple[str, ...]:
    mark, sign = "✓" if check.passed else "✗", "≤" if check.is_upper else "≥"
    margin = f" + {check.margin:.2g}" if check.margin else ""
    limit = f"{sign} {check.limit:.5g}{margin}"
    value = "not measured" if check.value is None else f"{check.value:.5g}"
    return mark, check.figure, value, limit, _missed_by(check), check.source


def _missed_by(check: Check) -> str:
    """How far a failed check is beyond its limit, and that in shares of the limit."""
    if check.passed or check.value is None:
        return ""
    beyond = abs(check.value - check.limit) - check.margin
    return f"{beyond:.3g} ({beyond / abs(check.limit):.0%})" if check.limit else f"{beyond:.3g}"
