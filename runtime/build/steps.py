"""The steps after the pull: what each is done for, what it writes, and how.

A step reads what those before it wrote, at the place that `Site` names.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from dsconv import __version__
from dsconv.atomic import MANIFEST, link_or_copy, output_folder
from dsconv.convert.checkpoint.manifest import Provenance, write_manifest
from dsconv.convert.files.json_file import read_json_object
from dsconv.convert.inspect.describe import describe
from dsconv.runtime.console import say
from dsconv.runtime.quantize import quantize_model

from .model_card import Card
from .recipe import Recipe
from .source import SourceModel
from .state import BuildState
from .verdict import VERDICT, judge, purpose_of, result_files

KIND = "build"
QUANTIZE, EXPORT, VERIFY, FOLDER = "quantize", "export", "verify", "folder"
CARD = "README.md"


@dataclass(frozen=True)
class Site:
    """What the steps of one build share. source_files: name -> sha256."""

    recipe: Recipe
    source: SourceModel
    source_files: Mapping[str, str]
    licence: str | None
    output: Path
    work: Path
    state: BuildState
    threads: int

    @property
    def quantized(self) -> Path:
        return self.work / "quantized"

    @property
    def artifact(self) -> Path:
        return self.work / self.recipe.output_name

    @property
    def verdict(self) -> Path:
        return self.work / "verdict"

    @property
    def recipe_facts(self) -> dict[str, Any]:
        """The recipe as it was used; a source on this disk by its name, not its place."""
        facts = asdict(self.recipe)
        return {**facts, "source": self.source.name, "file": Path(self.recipe.file).name}

    def hashes_of(self, step: str) -> Mapping[str, str]:
        """Of what a step wrote; of the source for a step that the recipe leaves out."""
        record = self.state.record(step)
        if record is None or (step == QUANTIZE and self.recipe.quantize is None):
            return self.source_files
        return record.sha256


@dataclass(frozen=True)
class Step(ABC):
    """costs_hours: what could refuse a later step is asked first. replaces_at_once: its output
    stays until the new one takes its place."""

    name: ClassVar[str]
    costs_hours: ClassVar[bool] = False
    replaces_at_once: ClassVar[bool] = False
    site: Site

    @property
    @abstractmethod
    def output(self) -> Path: ...

    @abstractmethod
    def purpose(self) -> Mapping[str, Any]:
        """What decides over the output."""

    @abstractmethod
    def run(self) -> Mapping[str, Any]:
        """Write the output -> facts that later runs want to know of it."""


def step_names(recipe: Recipe) -> list[str]:
    return [step.name for step in _kinds(recipe)]


def steps_of(site: Site) -> list[Step]:
    return [step(site) for step in _kinds(site.recipe)]


def _kinds(recipe: Recipe) -> list[type[Step]]:
    always: list[type[Step]] = [ExportStep, VerifyStep, FolderStep]
    return always if recipe.quantize is None else [QuantizeStep, *always]


class QuantizeStep(Step):
    name = QUANTIZE
    costs_hours = True

    @property
    def output(self) -> Path:
        return self.site.quantized

    def purpose(self) -> Mapping[str, Any]:
        part = self.site.recipe.quantize
        assert part is not None
        texts = part.texts().purpose()
        return {
            "quantize": {**asdict(part), "calibration": texts},
            "inputs": self.site.source_files,
        }

    def run(self) -> Mapping[str, Any]:
        part, threads = self.site.recipe.quantize, self.site.threads
        assert part is not None
        report = quantize_model(
            str(self.site.source.path),
            part,
            self.output,
            threads,
            overwrite=True,  # of an unfinished run with other options
        )
        say(report.words())
        return {"calibration_kl": report.result.calibration_kl}


class ExportStep(Step):
    name = EXPORT
    costs_hours = True

    @property
    def output(self) -> Path:
        return self.site.artifact

    def purpose(self) -> Mapping[str, Any]:
        inputs = self.site.hashes_of(QUANTIZE)
        return {"export": asdict(self.site.recipe.export), "inputs": inputs}

    def run(self) -> Mapping[str, Any]:
        from dsconv.runtime.export import export_model  # loads onnx

        recipe = self.site.recipe
        model = self.site.source.path if recipe.quantize is None else self.site.quantized
        request = recipe.export.request()
        say(export_model(str(model), request, self.output, overwrite=False).words())
        found = describe(str(self.output))
        files = [self.output, *self.output.rglob("*")]
        return {
            "parameters": found.parameters,
            "bits_per_weight": found.bits_per_weight,
            "size_bytes": sum(path.stat().st_size for path in files if path.is_file()),
        }


class VerifyStep(Step):
    name = VERIFY

    @property
    def output(self) -> Path:
        return self.site.verdict

    def purpose(self) -> Mapping[str, Any]:
        inputs = {"artifact": self.site.hashes_of(EXPORT), "reference": self.site.source_files}
        return {"verify": purpose_of(self.site.recipe.verify), "inputs": inputs}

    def run(self) -> Mapping[str, Any]:
        site = self.site
        found = judge(site.artifact, site.source.path, site.recipe, site.threads)
        with output_folder(self.output) as folder:
            found.write(folder)
        return {"passed": found.passed}


class FolderStep(Step):
    """All that is worth keeping, in one folder."""

    name = FOLDER
    replaces_at_once = True

    @property
    def output(self) -> Path:
        return self.site.output

    def purpose(self) -> Mapping[str, Any]:
        inputs = [self.site.hashes_of(EXPORT), self.site.hashes_of(VERIFY)]
        return {"recipe": self.site.recipe_facts, "inputs": inputs}

    def run(self) -> Mapping[str, Any]:
        site, source = self.site, self.site.source
        with output_folder(self.output, overwrite=True) as folder:
            _link(site.artifact, folder / site.recipe.output_name)
            for path in result_files(site.verdict):
                shutil.copyfile(path, folder / path.name)
            (folder / CARD).write_text(self._card().text(), "utf-8")
            origin = Provenance(source.name, site.source_files, source.commit)
            facts = {**site.state.facts(EXPORT), "commit": source.commit}
            write_manifest(folder, KIND, origin, site.recipe_facts, facts)
        return {}

    def _card(self) -> Card:
        recipe, source = self.site.recipe, self.site.source
        artifact = self.site.state.facts(EXPORT)
        return Card(
            name=recipe.name,
            description=recipe.description,
            source=source.name,
            hub_name=source.hub_name,
            commit=source.commit,
            licence=self.site.licence,
            artifact=recipe.output_name,
            format=recipe.export.format,
            parameters=artifact["parameters"],
            bits_per_weight=artifact["bits_per_weight"],
            size_bytes=artifact["size_bytes"],
            quantization=self._quantization(),
            verdict=read_json_object(self.site.verdict / VERDICT),
            version=__version__,
        )

    def _quantization(self) -> dict[str, Any] | None:
        """How the weights were quantized, as the manifest tells; None where they were not."""
        if self.site.recipe.quantize is None:
            return None
        content = read_json_object(self.site.quantized / MANIFEST).get("recipe")
        wanted = ("bits", "scheme_name", "group_size", "head_bits", "embedding_bits", "method")
        assert isinstance(content, dict)
        return {key.removesuffix("_name"): content.get(key) for key in wanted}


def _link(source: Path, target: Path) -> None:
    """A file, or a folder with all that is in it."""
    if source.is_file():
        link_or_copy(source, target)
        return
    target.mkdir()
    for path in sorted(source.iterdir()):
        _link(path, target / path.name)
