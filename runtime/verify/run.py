"""What `dsconv verify` does between parsing and printing."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.inspect.describe import describe
from dsconv.errors import UsageError
from dsconv.runtime.console import progress, say
from dsconv.runtime.generate.draft import draft_for, load_draft
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.measured_text import MeasuredText, open_measured_text

from .checks import WantedChecks, checks_of, with_checks
from .circumstances import circumstances_of, method_of, narrowest_bits, weight_hashes
from .comparison import Comparison, tokenizer_of
from .judge import judge, read_baseline
from .measure import VerifyOptions, built_in_text, measure, plan_windows
from .reference import LivePredictions, Reference, Tokens, open_reference
from .reference_cache import ReferenceCache, cache_key
from .tasks.run import questions_of
from .thresholds import OF_TASKS, Threshold, choose, from_file
from .verdict import Verdict


@dataclass(frozen=True)
class VerifyRequest:
    """What to compare, how, and what must hold.

    thresholds: of the command line. recipe: of a recipe that is being built. cache: folder of the
    reference's predictions; None keeps none. settings: folder whose dsconv.toml counts. draft: a
    smaller artifact that guesses in the tasks.
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
    allow_fallback: bool = False
    dtype: str = "float32"
    threads: int = 0
    kv: str = "fp16"
    settings: Path | None = None
    checks: WantedChecks = field(default_factory=WantedChecks)
    draft: str | None = None


def run_verify(request: VerifyRequest) -> Verdict:
    """Measure and judge. What can be wrong with the request is found out before anything runs.

    Raises:
        UsageError, InputError, UnsupportedError, ProviderError, DownloadError: with the cure.
    """
    with open_measured_text(request.text) as measured:
        return _verify(request, measured)


def _verify(request: VerifyRequest, measured: MeasuredText | None) -> Verdict:
    for task in request.checks.tasks:  # before anything is loaded
        questions_of(task, request.checks.task_options, request.checks.shots_from)
    file = from_file(request.settings) if request.settings else ()
    baseline = read_baseline(request.baseline) if request.baseline else None
    small = _load_draft(request)
    artifact = load(
        request.artifact,
        request.provider,
        request.threads,
        kv=request.kv,
        allow_fallback=request.allow_fallback,
    )
    draft = draft_for(artifact, small, request.draft) if request.draft and small else None
    if artifact.placement and request.allow_fallback:
        say(artifact.placement.words())
    reference = open_reference(request.reference, request.dtype, request.threads)
    side_files = reference.side_files or artifact.side_files
    tokenizer = tokenizer_of(artifact, reference)
    most = request.options.max_tokens
    text = measured.text(side_files, tokenizer, most) if measured else built_in_text()
    windows = plan_windows(artifact, reference, text, request.options)
    hashes = FileHashes(request.cache)
    cache = ReferenceCache(request.cache, say) if request.cache else None
    key = cache_key(reference, weight_hashes(reference, hashes), windows)
    kept = cache.load(key, windows) if cache else None
    predictions = kept or _predict(reference, windows)
    comparison = Comparison(
        request.artifact,
        artifact,
        reference,
        windows,
        request.dtype,
        request.threads,
        draft,
    )
    name = request.text.name if request.text else None
    description = describe(request.artifact)
    circumstances = replace(
        circumstances_of(comparison, text, name, hashes),
        bits=narrowest_bits(request.artifact, description),
        method=method_of(request.artifact, description),
    )
    with progress("verify", sum(map(len, windows)), "tokens") as advance:
        verdict = measure(comparison, predictions, circumstances, advance)
    if cache and isinstance(predictions, LivePredictions):
        cache.store(key, predictions.kept())
    thresholds = choose(
        request.thresholds, request.recipe, file, circumstances.bits, circumstances.rounds_inputs
    )
    if not request.checks.tasks and any(each.figure.key in OF_TASKS for each in thresholds):
        raise UsageError("a limit of accuracy, and no task", "add --task FILE")
    times = any(threshold.figure.key == "min_speedup" for threshold in thresholds)
    wanted = replace(request.checks, speed=times or request.checks.speed)
    checks = checks_of(wanted, verdict, request.cache)
    return judge(with_checks(verdict, checks, comparison), thresholds, baseline)


def _load_draft(request: VerifyRequest) -> Loaded | None:
    if request.draft is None:
        return None
    if not request.checks.tasks:
        raise UsageError("--draft, and no task", "add --task FILE, or leave it out")
    return load_draft(request.draft, request.threads, request.kv)


def _predict(reference: Reference, windows: Tokens) -> LivePredictions:
    with progress("reference", reference.work(windows), "tokens") as advance:
        return reference.predict(windows, advance)
