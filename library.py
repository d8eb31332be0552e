"""dsconv as a library: one function per command, with the command's options as keywords.

Results are the objects that the commands print by `--json`. `import dsconv` offers these names and
imports this file with the first of them; what a function needs, it imports when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from dsconv.runtime.option_fields import thread_count
from dsconv.runtime.quantize_request import QuantizeCommandRequest, QuantizeRequest

if TYPE_CHECKING:
    from dsconv.convert.inspect.description import Description
    from dsconv.runtime.bench.report import BenchReport
    from dsconv.runtime.build.report import BuildReport
    from dsconv.runtime.export import ExportReport
    from dsconv.runtime.generate.answer import Answer
    from dsconv.runtime.model_paths import PullReport
    from dsconv.runtime.plan import Prediction
    from dsconv.runtime.quantize import QuantizeReport
    from dsconv.runtime.sessions.load import Loaded
    from dsconv.runtime.text.thinking import Kind
    from dsconv.runtime.verify.verdict import Verdict

    StrPath = str | os.PathLike[str]

    class _HasJson(Protocol):
        def to_json(self) -> dict[str, Any]: ...


P = ParamSpec("P")
Call = TypeVar("Call")
Result = TypeVar("Result")


def _keywords_of(
    make: Callable[P, Call],
) -> Callable[
    [Callable[[StrPath, StrPath, Call], Result]],
    Callable[Concatenate[StrPath, StrPath, P], Result],
]:
    """The fields of a dataclass are the keywords of the function: none is declared twice."""

    def decorate(
        work: Callable[[StrPath, StrPath, Call], Result],
    ) -> Callable[Concatenate[StrPath, StrPath, P], Result]:
        def call(model: StrPath, output: StrPath, /, *args: P.args, **options: P.kwargs) -> Result:
            return work(model, output, make(*args, **options))

        paths = list(signature(work).parameters.values())[:2]
        options_of_call = [
            field.replace(kind=field.KEYWORD_ONLY) for field in signature(make).parameters.values()
        ]
        update_wrapper(call, work)
        vars(call)["__signature__"] = signature(work).replace(parameters=[*paths, *options_of_call])
        return call

    return decorate


def pull(
    model: str, *, local_dir: StrPath | None = None, source: str | None = None, retries: int = 6
) -> PullReport:
    """Download a model of the hub at a pinned commit; `path` of the result is where it lies."""
    from dsconv.runtime.model_paths import pull_model

    return pull_model(model, source, _path(local_dir), retries)


def inspect(model: StrPath) -> Description:
    """What is in a checkpoint, GGUF file or artifact: family, bits, sizes, tensors."""
    from dsconv.convert.inspect.describe import describe

    return describe(os.fspath(model))


@dataclass(frozen=True)
class QuantizeCall(QuantizeCommandRequest):
    """What is asked for, and how it is done."""

    threads: int = 0
    keep: bool = True
    overwrite: bool = False


@_keywords_of(QuantizeCall)
def quantize(model: StrPath, output: StrPath, call: QuantizeCall, /) -> QuantizeReport:
    """Write a checkpoint with fewer bits: calibrated where that is the default; resumes."""
    from dsconv.runtime.quantize import quantize_model

    threads = thread_count(call.threads)
    return quantize_model(os.fspath(model), call, Path(output), threads, call.overwrite, call.keep)


@dataclass(frozen=True)
class PlanCall(QuantizeRequest):
    threads: int = 0


@_keywords_of(PlanCall)
def plan(model: StrPath, output: StrPath, call: PlanCall, /) -> Prediction:
    """What `quantize` will need: memory, disk and time on this machine, from config.json alone."""
    from dsconv.runtime.plan import predict

    return predict(os.fspath(model), call, Path(output), thread_count(call.threads))


def export(
    model: StrPath,
    output: StrPath,
    *,
    format: str | None = None,
    target: str = "cpu",
    dialect: str | None = None,
    accuracy_level: int = 4,
    context_length: int | None = None,
    prefill_length: int | None = None,
    copy: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Write a checkpoint for ONNX Runtime, llama.cpp, transformers, or the native engine."""
    from dsconv.runtime.export import ExportRequest, export_model

    request = ExportRequest(
        format, target, dialect, accuracy_level, context_length, prefill_length, copy
    )
    return export_model(os.fspath(model), request, Path(output), overwrite)


def open_session(
    artifact: StrPath,
    *,
    provider: str = "cpu",
    allow_fallback: bool = False,
    dtype: str = "float32",
    threads: int = 0,
    kv: str = "fp16",
) -> Loaded:
    """Load an exported artifact, or a checkpoint (in torch), for `generate`.

    Its `session` takes tokens and gives logits.
    """
    from dsconv.runtime.sessions.load import load

    return load(os.fspath(artifact), provider, threads, dtype, kv, allow_fallback)


def generate(
    session: Loaded,
    prompt: str,
    *,
    system: str | None = None,
    raw: bool = False,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    no_repeat_ngram_size: int | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    speculate: int = 0,
    draft: StrPath | None = None,
    emit: Callable[[Kind, str], None] = lambda kind, text: None,
) -> Answer:
    """Answer a prompt, by the model's chat template and sampling settings unless told otherwise.

    Args:
        max_tokens: without it the model's max_new_tokens, or 1024.
        stop: texts that end the answer, besides the model's own.
        draft: a smaller model of the same tokens, which guesses.
        emit: told every piece of text as it comes, as "think" or "answer".
    """
    from dsconv.runtime.generate.answer import UserPrompt, answer
    from dsconv.runtime.generate.model_settings import wanted_answer

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "seed": seed,
    }
    wanted = wanted_answer(session, given, stop, speculate)
    guesser = None
    if draft is not None:
        from dsconv.runtime.generate.draft import draft_for
        from dsconv.runtime.sessions.load import load

        name = os.fspath(draft)
        guesser = draft_for(session, load(name), name)
    session.session.reset()
    return answer(session, UserPrompt(prompt, system, raw), wanted, emit, guesser)


def verify(
    artifact: StrPath,
    reference: StrPath,
    *,
    text: StrPath | None = None,
    window: int = 512,
    max_tokens: int = 8192,
    baseline: StrPath | None = None,
    reference_cache: StrPath | None = None,
    no_reference_cache: bool = False,
    layers: bool | None = None,
    integrity: bool = False,
    free_running: int = 0,
    task: StrPath | Sequence[StrPath] | None = None,
    provider: str = "cpu",
    allow_fallback: bool = False,
    dtype: str = "float32",
    threads: int = 0,
    kv: str = "fp16",
    **limits: float,
) -> Verdict:
    """Compare an artifact with the model it was made from, and judge it.

    A verdict that failed is a result, not an exception: see `passed`.

    Args:
        limits: max_kl, max_kl_p99, min_top1, max_ppl_ratio, max_probability_shift, min_accuracy,
            max_accuracy_drop, min_speedup.
            Where there is none, the command's defaults for the artifact's bits.
    """
    from dsconv.runtime.verify.checks import WantedChecks
    from dsconv.runtime.verify.measure import VerifyOptions
    from dsconv.runtime.verify.reference_cache import chosen_folder
    from dsconv.runtime.verify.run import VerifyRequest, run_verify
    from dsconv.runtime.verify.thresholds import from_options

    named = () if task is None else (task,) if isinstance(task, str | os.PathLike) else task
    tasks = tuple(Path(each) for each in named)
    request = VerifyRequest(
        os.fspath(artifact),
        os.fspath(reference),
        _path(text),
        VerifyOptions(window, max_tokens),
        from_options(limits),
        baseline=_path(baseline),
        cache=chosen_folder(_path(reference_cache), no_reference_cache),
        provider=provider,
        allow_fallback=allow_fallback,
        dtype=dtype,
        threads=threads,
        kv=kv,
        checks=WantedChecks(layers, integrity, free_running, tasks),
    )
    return run_verify(request)


def write_report(verdict: Verdict, page: StrPath) -> None:
    """Write a verdict as one page of HTML."""
    from dsconv.runtime.report import page as pages

    pages.write_report(verdict, Path(page))


def bench(
    *artifacts: StrPath,
    prefill: int = 512,
    decode: int = 64,
    context: Sequence[int] | None = None,
    batch: Sequence[int] | None = None,
    rounds: int = 5,
    max_foreign_load: float = 0.1,
    against: Sequence[str] | None = None,
    checkpoint: StrPath | None = None,
    bits: int = 4,
    peers: StrPath | None = None,
    provider: str = "cpu",
    allow_fallback: bool = False,
    threads: int = 0,
    kv: str = "fp16",
) -> BenchReport:
    """Measure speed, memory and load time of artifacts side by side, each in its own process."""
    from dsconv.runtime.bench.against import Against, BenchRequest, bench_artifacts
    from dsconv.runtime.bench.bench import options_of

    model = None if checkpoint is None else os.fspath(checkpoint)
    request = BenchRequest(
        tuple(os.fspath(artifact) for artifact in artifacts),
        thread_count(threads),
        options_of((prefill, decode), context, rounds, max_foreign_load, batch),
        Against(tuple(against or ()), model, bits, _path(peers)),
        provider=provider,
        allow_fallback=allow_fallback,
        kv=kv,
    )
    return bench_artifacts(request)


def build(
    recipe: StrPath,
    output: StrPath | None = None,
    *,
    settings: Sequence[str] | None = None,
    dry_run: bool = False,
    threads: int = 0,
) -> BuildReport:
    """Pull, quantize, export and verify as a recipe says, by name or file.

    A verdict that failed is a result, not an exception: see `passed`.

    Args:
        settings: KEY=VALUE instead of the recipe's.
    """
    from dsconv.runtime.build.report import build_recipe

    chosen = list(settings or ())
    return build_recipe(os.fspath(recipe), _path(output), chosen, dry_run, thread_count(threads))


def to_json(result: _HasJson | Verdict) -> dict[str, Any]:
    """What `--json` prints of a result, with the keys of docs/json.md."""
    from dsconv.runtime.verify import verdict, verdict_json

    if isinstance(result, verdict.Verdict):
        return verdict_json.to_json(result)
    return result.to_json()


def _path(path: StrPath | None) -> Path | None:
    return None if path is None else Path(path)
