"""Recipes: one TOML file says what is built from which model, how, and what it must reach.

The schema are the dataclasses below; docs/recipes.md explains every key. What a recipe leaves out
has the default of the command that does the step.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from dsconv.convert.files import limits
from dsconv.convert.files.local_files import read_limited
from dsconv.convert.files.toml_file import parse_toml
from dsconv.convert.formats.onnx.names import DIALECT_NAMES
from dsconv.convert.targets.table import TARGETS, cure
from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.runtime.option_fields import limited
from dsconv.runtime.quantize_request import QuantizeRequest
from dsconv.runtime.sessions.providers import PROVIDERS

from .toml_schema import Settings, TableReader

if TYPE_CHECKING:  # a list of recipes needs none of these
    from dsconv.runtime.export import ExportRequest
    from dsconv.runtime.verify.measure import VerifyOptions

SUFFIX = ".toml"
LIMITS = (
    "max_kl",
    "max_kl_p99",
    "min_top1",
    "max_ppl_ratio",
    "max_probability_shift",
    "min_speedup",
)
OUTPUT_NAMES = {
    "onnx": "model",
    "native": "model.dsq",
    "gguf": "model.gguf",
    "compressed-tensors": "model",
    "ascend": "model",
}


@dataclass(frozen=True)
class ExportPart:
    """As the options of `dsconv export`; the last four matter to `onnx` only."""

    format: str = limited("onnx", choices=tuple(OUTPUT_NAMES))
    target: str = limited("cpu", choices=tuple(TARGETS), cure=cure)
    dialect: str | None = limited(None, choices=tuple(DIALECT_NAMES))
    accuracy_level: int = limited(4, choices=(0, 1, 2, 3, 4))
    context_length: int | None = limited(None, low=1)
    prefill_length: int | None = limited(None, low=1)

    def request(self) -> ExportRequest:
        from dsconv.runtime.export import ExportRequest

        return ExportRequest(
            self.format,
            self.target,
            self.dialect,
            self.accuracy_level,
            self.context_length,
            self.prefill_length,
        )


@dataclass(frozen=True)
class VerifyPart:
    """As the options of `dsconv verify`; without any limit its defaults count."""

    max_kl: float | None = limited(None, low=0)
    max_kl_p99: float | None = limited(None, low=0)
    min_top1: float | None = limited(None, low=0, high=1)
    max_ppl_ratio: float | None = limited(None, low=0)
    max_probability_shift: float | None = limited(None, low=0, high=1)
    min_speedup: float | None = limited(None, low=0)
    baseline: str | None = None
    text: str | None = None
    window: int = limited(512, low=2)
    max_tokens: int = limited(8192, low=2)
    provider: str = limited("cpu", choices=tuple(PROVIDERS))
    dtype: str = limited("float32", choices=("float32", "bfloat16"))
    kv: str = limited("fp16", choices=("fp16", "int8", "fp32"))

    def options(self) -> VerifyOptions:
        from dsconv.runtime.verify.measure import VerifyOptions

        return VerifyOptions(self.window, self.max_tokens)

    def limits(self) -> dict[str, float]:
        """Those that the recipe gives."""
        found = {name: getattr(self, name) for name in LIMITS}
        return {name: limit for name, limit in found.items() if limit is not None}


@dataclass(frozen=True)
class Parts:
    """The top level of the file. Without [quantize] the weights stay as they are."""

    description: str
    source: str
    revision: str = "main"
    quantize: QuantizeRequest | None = None
    export: ExportPart = ExportPart()
    verify: VerifyPart = VerifyPart()


@dataclass(frozen=True)
class Recipe(Parts):
    """A recipe that has been read; `file` is for messages."""

    name: str = ""
    file: str = ""

    @property
    def output_name(self) -> str:
        """What the artifact is called inside the folder that is built."""
        return OUTPUT_NAMES[self.export.format]

    def check(self) -> None:
        """What no single key can tell: do they go together, and can dsconv do it today?

        Raises:
            InputError: keys contradict each other.
            UnsupportedError: a target that does not read such an artifact.
        """
        part = self.quantize
        if self.export.format == "ascend" and (part is None or part.activations != "int8"):
            raise InputError(
                f"{self.file}: export.format: 'ascend' takes int8 weights and activations",
                'write bits = 8 and activations = "int8" under [quantize]',
            )
        if part is not None:
            if part.scheme == "scale-min" and self.export.format not in ("native", "gguf"):
                raise InputError(
                    f"{self.file}: quantize.scheme: 'scale-min' cannot be exported as "
                    f"{self.export.format!r}",
                    'allowed with scale-min: format = "native", "gguf"',
                )
            self._in_section("quantize", partial(part.resolve, 1, True, False))
            self._in_section("quantize", part.texts)
        self._in_section("export", self.export.request().resolved)
        self._in_section("verify", self.verify.options)

    def _in_section(self, section: str, make: Callable[[], object]) -> None:
        try:
            make()
        except UsageError as error:
            raise InputError(f"{self.file}: [{section}]: {error.message}", error.hint) from error
        except UnsupportedError as error:
            words = f"{self.file}: [{section}]: {error.message}"
            raise UnsupportedError(words, error.hint) from error


def recipe_names() -> list[str]:
    """The recipes that come with dsconv."""
    names = (entry.name for entry in resources.files("dsconv.recipes").iterdir())
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def load_recipe(name_or_file: str, settings: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe that comes with dsconv by its name, or a file.

    Args:
        settings: `KEY=VALUE`, dotted keys; they replace what the file says.

    Raises:
        UsageError: no such recipe; a setting that the schema refuses.
        InputError: the file cannot be read, is no TOML, or the schema refuses it.
    """
    text, file, name = _text_of(name_or_file)
    chosen = Settings.parse(settings)
    content = parse_toml(text, f"{file}: not valid TOML", "see docs/recipes.md")
    table = chosen.applied_to(content)
    parts = TableReader(file, chosen).read(Parts, table)
    return Recipe(**vars(parts), name=name, file=file)


def _text_of(name_or_file: str) -> tuple[str, str, str]:
    """-> text, what to call the file in messages, name."""
    path = Path(name_or_file).expanduser()
    if os.path.isfile(path):
        return _read(path), str(path), path.name.removesuffix(SUFFIX)
    if name_or_file.endswith(SUFFIX) or "/" in name_or_file:
        raise InputError(
            f"{name_or_file}: no such file", "use a recipe's file, or a name of: dsconv recipes"
        )
    names = recipe_names()
    if name_or_file not in names:
        near = get_close_matches(name_or_file, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"recipe: {name_or_file!r} is not known", f"{hint}see dsconv recipes")
    entry = resources.files("dsconv.recipes").joinpath(name_or_file + SUFFIX)
    return entry.read_text("utf-8"), f"recipes/{name_or_file}{SUFFIX}", name_or_file


def _read(path: Path) -> str:
    try:
        return read_limited(path, limits.RECIPE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason}", "convert it first") from error


def all_recipes() -> list[Recipe]:
    """Every recipe that comes with dsconv, by name."""
    return [load_recipe(name) for name in recipe_names()]
