"""Run a recipe: pull, quantize, export, verify, and one folder with all that is worth keeping.

Steps work in OUTPUT.work, each on what the step before it wrote; what is done already is left as
it is (state.py). OUTPUT appears at the end, whole, whatever the verdict: a folder that failed
keeps the report that says why.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.atomic import MANIFEST, link_or_copy, lock_path, output_error, output_folder
from dsconv.convert.checkpoint.manifest import Provenance, input_files, write_manifest
from dsconv.convert.files.hashes import FileHashes
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.inspect import describe
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, OutputError
from dsconv.runtime.console import say
from dsconv.runtime.model_paths import check_output

from .model_card import Card
from .recipe import Recipe
from .source import (
    Pulled,
    download,
    find_local,
    hub_name,
    is_pinned,
    licence_of,
    pulled_snapshot,
)
from .state import BuildState
from .verdict import VERDICT, judge, purpose_of, result_files

KIND = "build"
PULL, QUANTIZE, EXPORT, VERIFY, FOLDER = STEPS = ("pull", "quantize", "export", "verify", "folder")
CARD = "README.md"

Run = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Step:
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
    steps: tuple[Step, ...]
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
        return _Builder(recipe, output.absolute(), threads).run()


def plan_build(recipe: Recipe, output: Path) -> Built:
    """What `build` would do, without network and without writing anything."""
    recipe.check()
    refuse_other_folder(output)
    return _Builder(recipe, output.absolute(), 1, dry=True).run()


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


class _Builder:
    """One run over the steps. `dry`: nothing is done, downloaded or written."""

    def __init__(self, recipe: Recipe, output: Path, threads: int, dry: bool = False) -> None:
        self._recipe, self._output, self._threads, self._dry = recipe, output, threads, dry
        self._work = work_folder(output)
        self._quantized = self._work / "quantized"
        self._artifact = self._work / recipe.output_name
        self._verdict = self._work / "verdict"
        self._hashes = FileHashes()
        self._state = BuildState(self._work, self._hashes)
        self._steps: list[Step] = []
        self._source: Pulled | None = None
        self._source_hashes: dict[str, str] = {}
        self._licence: str | None = None

    def run(self) -> Built:
        self._pull()
        if self._recipe.quantize is not None:
            self._step(QUANTIZE, self._quantize_purpose, self._quantized, self._quantize)
        self._step(EXPORT, self._export_purpose, self._artifact, self._export)
        self._step(VERIFY, self._verify_purpose, self._verdict, self._verify)
        self._step(FOLDER, self._folder_purpose, self._output, self._assemble)
        verdict = {}
        if not self._pending:
            verdict = read_json_object(self._verdict / VERDICT)
        name = hub_name(self._recipe) if self._source is None else self._source.name
        commit = None if self._source is None else self._source.commit
        facts = {} if self._pending else self._state.facts(EXPORT)
        return Built(self._output, name, commit, tuple(self._steps), facts, verdict)

    @property
    def _pending(self) -> str | None:
        """In a dry run, the first step that is not done: what follows it cannot be known."""
        if not self._dry:
            return None
        return next((step.name for step in self._steps if step.reason is not None), None)

    def _step(
        self, name: str, purpose: Callable[[], Mapping[str, Any]], output: Path, run: Run
    ) -> None:
        if self._pending is not None:
            self._steps.append(Step(name, f"after {self._pending}"))
            return
        wanted = purpose()
        reason = self._state.why_not_done(name, wanted, output)
        if reason is None or self._dry:
            self._steps.append(Step(name, reason))
            return
        if name in (QUANTIZE, EXPORT):
            self._require_judge()
        say(f"{name}: {reason}")
        start = time.perf_counter()
        if name != FOLDER:  # which is replaced in one move
            self._state.forget(name, output)
        facts = run()
        self._state.done(name, wanted, output, facts)
        self._steps.append(Step(name, reason, time.perf_counter() - start))

    # ---------------------------------------------------------------- pull

    def _pull(self) -> None:
        start = time.perf_counter()
        pulled, reason = find_local(self._recipe.source), None
        if pulled is None:
            pulled, reason = self._pull_from_hub(hub_name(self._recipe))
        self._steps.append(Step(PULL, reason, time.perf_counter() - start))
        if pulled is None:
            return
        check_output(str(pulled.path), self._output, overwrite=True)
        checkpoint = open_checkpoint(str(pulled.path))
        self._source = pulled
        self._source_hashes = self._hashes.by_name(input_files(checkpoint))
        self._licence = licence_of(pulled.path, checkpoint.side_files)

    def _pull_from_hub(self, name: str) -> tuple[Pulled | None, str | None]:
        """-> what lies here, and why it has to be asked for; None where only the hub can tell."""
        record = self._state.record(PULL)
        before = None
        if record is not None and record.facts.get("name") == name:
            folder = Path(str(record.facts.get("folder")))
            before = pulled_snapshot(name, folder) if folder.exists() else None
        if before is not None and is_pinned(name):
            return before, None
        if self._dry:
            return None, f"asks the hub for {name}"
        say(f"{PULL}: {name}")
        pulled = download(name)
        facts = {"name": name, "folder": str(pulled.path)}
        self._state.done(PULL, {"source": name}, self._work / PULL, facts)
        unchanged = before is not None and before.path == pulled.path
        return pulled, None if unchanged else f"downloaded {name}"

    def _require_judge(self) -> None:
        """Not after hours of quantization: the provider that is to judge must be there."""
        from dsconv.runtime.sessions.onnx_provider import require_provider
        from dsconv.runtime.sessions.providers import choose_provider

        choice = choose_provider(self._recipe.verify.provider)
        if self._recipe.export.format == "onnx" and not choice.is_cpu:
            require_provider(choice)

    # ---------------------------------------------------------------- quantize

    def _quantize_purpose(self) -> Mapping[str, Any]:
        part = self._recipe.quantize
        assert part is not None
        texts = part.texts().purpose()
        return {
            "quantize": {**asdict(part), "calibration": texts},
            "inputs": self._source_hashes,
        }

    def _quantize(self) -> Mapping[str, Any]:
        from dsconv.runtime.quantize import quantize_command

        part = self._recipe.quantize
        assert part is not None
        report = quantize_command(
            str(self._pulled.path),
            lambda can_write, tied: part.options(self._threads, can_write, tied),
            self._quantized,
            overwrite=True,  # of an unfinished run with other options
            calibration=part.texts(),
            target=part.target(),
        )
        report.show()
        return {"calibration_kl": report.result.calibration_kl}

    # ---------------------------------------------------------------- export

    def _export_purpose(self) -> Mapping[str, Any]:
        return {"export": asdict(self._recipe.export), "inputs": self._made(QUANTIZE)}

    def _export(self) -> Mapping[str, Any]:
        from dsconv.runtime.export import export_model

        quantized = self._recipe.quantize is not None
        model = str(self._quantized if quantized else self._pulled.path)
        request = self._recipe.export.request()
        say(export_model(model, request, self._artifact, overwrite=False).words())
        found = describe(str(self._artifact))
        files = [self._artifact, *self._artifact.rglob("*")]
        return {
            "parameters": found.parameters,
            "bits_per_weight": found.bits_per_weight,
            "size_bytes": sum(path.stat().st_size for path in files if path.is_file()),
        }

    # ---------------------------------------------------------------- verify

    def _verify_purpose(self) -> Mapping[str, Any]:
        inputs = {"artifact": self._made(EXPORT), "reference": self._source_hashes}
        return {"verify": purpose_of(self._recipe.verify), "inputs": inputs}

    def _verify(self) -> Mapping[str, Any]:
        part = self._recipe.verify
        where = self._recipe.file
        found = judge(self._artifact, self._pulled.path, part, where, self._threads)
        with output_folder(self._verdict) as folder:
            found.write(folder)
        return {"passed": found.passed}

    # ---------------------------------------------------------------- folder

    def _folder_purpose(self) -> Mapping[str, Any]:
        return {"recipe": self._recipe_facts(), "inputs": [self._made(EXPORT), self._made(VERIFY)]}

    def _recipe_facts(self) -> dict[str, Any]:
        """The recipe as it was used; a source on this disk by its name, not its place."""
        facts = asdict(self._recipe)
        return {**facts, "source": self._pulled.name, "file": Path(self._recipe.file).name}

    def _assemble(self) -> Mapping[str, Any]:
        with output_folder(self._output, overwrite=True) as folder:
            _link(self._artifact, folder / self._recipe.output_name)
            for path in result_files(self._verdict):
                shutil.copyfile(path, folder / path.name)
            (folder / CARD).write_text(self._card().text(), "utf-8")
            source = Provenance(self._pulled.name, self._source_hashes, self._pulled.commit)
            facts = {**self._state.facts(EXPORT), "commit": self._pulled.commit}
            write_manifest(folder, KIND, source, self._recipe_facts(), facts)
        return {}

    def _card(self) -> Card:
        recipe, source, artifact = self._recipe, self._pulled, self._state.facts(EXPORT)
        part = recipe.quantize
        settings = None
        if part is not None:
            content = read_json_object(self._quantized / MANIFEST).get("recipe")
            wanted = ("bits", "scheme_name", "group_size", "head_bits", "embedding_bits", "method")
            assert isinstance(content, dict)
            settings = {key.removesuffix("_name"): content.get(key) for key in wanted}
        return Card(
            name=recipe.name,
            description=recipe.description,
            source=source.name,
            hub_name=source.hub_name,
            commit=source.commit,
            licence=self._licence,
            artifact=recipe.output_name,
            format=recipe.export.format,
            parameters=artifact["parameters"],
            bits_per_weight=artifact["bits_per_weight"],
            size_bytes=artifact["size_bytes"],
            quantization=settings,
            verdict=read_json_object(self._verdict / VERDICT),
            version=__version__,
        )

    # ---------------------------------------------------------------- shared

    @property
    def _pulled(self) -> Pulled:
        assert self._source is not None
        return self._source

    def _made(self, step: str) -> Mapping[str, str]:
        """Hashes of what a step wrote; of the source for a step that the recipe leaves out."""
        record = self._state.record(step)
        if record is None or (step == QUANTIZE and self._recipe.quantize is None):
            return self._source_hashes
        return record.sha256


def _link(source: Path, target: Path) -> None:
    """A file, or a folder with all that is in it."""
    if source.is_file():
        link_or_copy(source, target)
        return
    target.mkdir()
    for path in sorted(source.iterdir()):
        _link(path, target / path.name)
