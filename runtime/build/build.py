"""Run a recipe: pull, quantize, export, verify, and one folder with all that is worth keeping.

Steps work in OUTPUT.work, each on what the step before it wrote; what is done already is left as
it is (state.py). OUTPUT appears at the end, whole, whatever the verdict: a folder that failed
keeps the report that says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsconv.atomic import MANIFEST, lock_path, output_error
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.manifest import input_files
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.target_range import refuse_impossible
from dsconv.errors import InputError, OutputError, UsageError
from dsconv.runtime.console import say
from dsconv.runtime.model_paths import check_output
from dsconv.runtime.sessions.onnx_provider import require_provider
from dsconv.runtime.sessions.providers import choose_provider

from .recipe import Recipe
from .source import PULL, find_source, hub_name, licence_of
from .state import BuildState
from .steps import EXPORT, KIND, Site, Step, step_names, steps_of
from .verdict import VERDICT


@dataclass(frozen=True)
class StepResult:
    """`reason` says why it was or would be done; None: it was done before and is left as it is."""

    name: str
    reason: str | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Built:
    """Facts of the artifact, and verdict.json; both empty after a dry run that had none."""

    output: Path
    source: str
    commit: str | None
    steps: tuple[StepResult, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)


def build(recipe: Recipe, output: Path, threads: int) -> Built:
    """Do what is not done yet.

    Raises:
        OutputError: something else stands at `output`, or the disk refuses.
        DsconvError: what the steps raise; those before stay done.
    """
    recipe.check()
    refuse_other_folder(output)
    work = work_folder(output)
    with _locked(work):
        return _build(recipe, output.absolute(), threads)


def plan_build(recipe: Recipe, output: Path) -> Built:
    """What `build` would do, without network and without writing anything."""
    recipe.check()
    refuse_other_folder(output)
    return _build(recipe, output.absolute(), 1, dry=True)


def work_folder(output: Path) -> Path:
    output = output.absolute()
    return output.with_name(output.name + ".work")


def refuse_other_folder(output: Path) -> None:
    """Raises OutputError: there is something that no build has written."""
    if not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        is_build = read_json_object(output / MANIFEST).get("kind") == KIND
    except InputError:
        is_build = False
    if not is_build or output.is_symlink():
        raise OutputError(
            f"{output}: already exists, and no build has written it",
            "choose another folder with -o",
        )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    try:
        BuildState(work, FileHashes())  # refuses a folder of somebody else
        work.mkdir(parents=True, exist_ok=True)
        lock = lock_path(work)
    except OSError as error:
        raise output_error(error, work) from error
    try:
        yield
    finally:
        with suppress(OSError):
            work.rmdir()  # nothing was done
        os.close(lock)


def _build(recipe: Recipe, output: Path, threads: int, dry: bool = False) -> Built:
    """Walk the steps. `dry`: nothing is done, downloaded or written."""
    start = time.perf_counter()
    work, hashes = work_folder(output), FileHashes()
    state = BuildState(work, hashes)
    source, reason = find_source(recipe, state, work, dry)
    pull = StepResult(PULL, reason, time.perf_counter() - start)
    if source is None:
        later = (StepResult(name, f"after {PULL}") for name in step_names(recipe))
        return Built(output, hub_name(recipe), None, (pull, *later))
    check_output(str(source.path), output, overwrite=True)
    checkpoint = open_checkpoint(str(source.path))
    _refuse_impossible_target(checkpoint, recipe)
    files = hashes.by_name(input_files(checkpoint))
    licence = licence_of(source.path, checkpoint.side_files)
    site = Site(recipe, source, files, licence, output, work, state, threads)
    results = _plan(steps_of(site), state) if dry else [_do(step) for step in steps_of(site)]
    built = Built(output, source.name, source.commit, (pull, *results))
    if dry and any(result.reason for result in results):
        return built
    verdict = read_json_object(site.verdict / VERDICT)
    return replace(built, facts=state.facts(EXPORT), verdict=verdict)


def _refuse_impossible_target(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Before every byte of the source is hashed. Raises InputError."""
    part = recipe.quantize
    target = None if part is None else part.target()
    if part is None or target is None:
        return
    options = part.resolve(1, True, checkpoint.decoder.config.tie_word_embeddings)
    try:
        refuse_impossible(checkpoint, options, target)
    except UsageError as error:
        raise InputError(f"{recipe.file}: [quantize]: {error.message}", error.hint) from error


def _plan(steps: Sequence[Step], state: BuildState) -> list[StepResult]:
    """What follows the first step that is not done cannot be known."""
    results: list[StepResult] = []
    first: str | None = None
    for step in steps:
        if first is None:
            reason = state.why_not_done(step.name, step.purpose(), step.output)
            first = step.name if reason else None
        else:
            reason = f"after {first}"
        results.append(StepResult(step.name, reason))
    return results


def _do(step: Step) -> StepResult:
    """Unless it was done before, for the same purpose."""
    state, wanted = step.site.state, step.purpose()
    reason = state.why_not_done(step.name, wanted, step.output)
    if reason is None:
        return StepResult(step.name, None)
    if step.costs_hours:
        _require_provider(step.site.recipe)
    say(f"{step.name}: {reason}")
    start = time.perf_counter()
    if not step.replaces_at_once:
        state.forget(step.name, step.output)
    state.done(step.name, wanted, step.output, step.run())
    return StepResult(step.name, reason, time.perf_counter() - start)


def _require_provider(recipe: Recipe) -> None:
    """Not after hours of quantization: the provider that is to judge must be there."""
    choice = choose_provider(recipe.verify.provider)
    if recipe.export.format == "onnx" and not choice.is_cpu:
        require_provider(choice)
