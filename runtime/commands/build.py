"""`dsconv build` and `dsconv recipes` between parsing and printing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv.runtime.build.build import PULL, Built, Step, build, plan_build, work_folder
from dsconv.runtime.build.model_card import quality_rows
from dsconv.runtime.build.recipe import Recipe, all_recipes, load_recipe
from dsconv.runtime.build.verdict import REPORT
from dsconv.runtime.console import say, size_text, time_text


@dataclass(frozen=True)
class BuildReport:
    recipe: Recipe
    built: Built
    is_plan: bool

    @property
    def failures(self) -> list[str]:
        """Of the verdict; nothing after a dry run."""
        return [] if self.is_plan else list(self.built.verdict.get("failures", ()))

    @property
    def passed(self) -> bool | None:
        return self.built.verdict.get("passed")

    @property
    def hint(self) -> str:
        report = self.built.output / REPORT
        where = report if report.is_file() else self.built.output / "README.md"
        return f"see {where}; calibrate, use smaller groups or more bits (--set quantize.bits=8)"

    def to_json(self) -> dict[str, Any]:
        built = self.built
        return {
            "recipe": self.recipe.name,
            "output": str(built.output),
            "source": {"name": built.source, "commit": built.commit},
            "dry_run": self.is_plan,
            "steps": [{**asdict(step), "skipped": step.reason is None} for step in built.steps],
            "artifact": str(built.output / self.recipe.output_name),
            "bits_per_weight": built.facts.get("bits_per_weight"),
            "size_bytes": built.facts.get("size_bytes"),
            "passed": self.passed,
            "verdict": dict(built.verdict) or None,
        }

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        built = self.built
        what = "would build" if self.is_plan else "built"
        print(f"{self.recipe.name}: {what} {built.output} from {built.source}")
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for step in built.steps:
            done = "to do" if self.is_plan else time_text(step.seconds)
            table.add_row(step.name, "skipped" if step.reason is None else done, _why(step))
        Console().print(table)
        if self.is_plan:
            return
        say(
            f"{built.output / self.recipe.output_name}: {size_text(built.facts['size_bytes'])}, "
            f"{built.facts['bits_per_weight']:.2f} bits per weight\n"
            f"{work_folder(built.output)}: for the next build, may be removed"
        )
        quality = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for row in quality_rows(built.verdict):
            quality.add_row(*row)
        Console().print(quality)
        print("verdict: passed" if self.passed else "verdict: failed")


def _why(step: Step) -> str:
    if step.reason is not None:
        return step.reason
    return "on this disk" if step.name == PULL else "done before"


def build_command(
    name_or_file: str, output: Path | None, settings: list[str], dry_run: bool, threads: int
) -> BuildReport:
    """output: None is a folder with the recipe's name in the current directory."""
    recipe = load_recipe(name_or_file, tuple(settings))
    folder = Path(recipe.name) if output is None else output
    built = plan_build(recipe, folder) if dry_run else build(recipe, folder, threads)
    return BuildReport(recipe, built, dry_run)


@dataclass(frozen=True)
class RecipeList:
    recipes: tuple[Recipe, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "recipes": [
                {key: value for key, value in asdict(recipe).items() if key != "file"}
                for recipe in self.recipes
            ]
        }

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, padding=(0, 1, 0, 0))
        for column in ("recipe", "weights", "format", "KL ≤", "top-1 ≥"):
            table.add_column(column, no_wrap=True)
        for recipe in self.recipes:
            limits = (recipe.verify.max_kl, recipe.verify.min_top1)
            shown = ("" if limit is None else f"{limit:g}" for limit in limits)
            table.add_row(recipe.name, _weights(recipe), recipe.export.format, *shown)
        Console().print(table)


def _weights(recipe: Recipe) -> str:
    """`int4 g32`, `scale-min 4`, `w8a8` (int8 weights and inputs)."""
    part = recipe.quantize
    if part is None:
        return "as they are"
    if part.scheme == "scale-min":
        label = f"scale-min {part.bits}"
    elif part.activations == "int8":
        label = "w8a8"
    else:
        label = f"int{part.bits} g{part.group_size}"
    return label if part.target_bpw is None else f"{label}, {part.target_bpw:g} bits in all"


def recipes_command() -> RecipeList:
    return RecipeList(tuple(all_recipes()))
