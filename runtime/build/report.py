"""A recipe by name or file, built or only planned, and what to tell of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .build import Built, build, plan_build
from .recipe import Recipe, load_recipe
from .verdict import REPORT


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
        cure = self.built.verdict.get("cure")
        return f"see {where}; {cure}" if cure else f"see {where}"

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


def build_recipe(
    name_or_file: str, output: Path | None, settings: list[str], dry_run: bool, threads: int
) -> BuildReport:
    """output: None is a folder with the recipe's name in the current directory."""
    recipe = load_recipe(name_or_file, tuple(settings))
    folder = Path(recipe.name) if output is None else output
    built = plan_build(recipe, folder) if dry_run else build(recipe, folder, threads)
    return BuildReport(recipe, built, dry_run)
