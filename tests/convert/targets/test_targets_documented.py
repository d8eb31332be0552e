"""docs say of every target what its row says."""

from __future__ import annotations

import re

import pytest
from places import ROOT

from dsconv.convert.targets.table import TARGETS
from dsconv.convert.targets.target import Target
from dsconv.runtime.sessions.providers import PROVIDERS


def rows_of_the_page() -> dict[str, list[str]]:
    """Target -> the other cells of its row in docs/targets.md."""
    text = (ROOT / "docs/targets.md").read_text(encoding="utf-8")
    table = text.partition("| target | writes |")[2].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = cells
    return found


PAGE = rows_of_the_page()


def test_every_target_is_on_the_page() -> None:
    assert set(PAGE) == set(TARGETS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_the_page_says_what_the_row_says(target: Target) -> None:
    writes, _, sure = PAGE[target.name]
    assert sure.split()[0] == target.evidence
    if not target.artifacts:
        assert writes.startswith("nothing")
    elif target.recipe is None:
        assert f"`{target.artifacts[0]}`" in writes
    else:
        assert writes.startswith(f"`{target.recipe.dialect}`")
        assert ("float16" in writes) == (target.recipe.precision == "float16")
        assert ("fixed shapes" in writes) == (target.recipe.prefill_length is not None)
        assert ("symmetric" in writes) == target.recipe.symmetric


def test_what_was_never_run_is_said_so() -> None:
    text = " ".join((ROOT / "docs/providers.md").read_text(encoding="utf-8").split())
    words = text.partition("Not run so far, for want of the hardware: ")[2].partition(". ")[0]
    said = set(re.split(r"[ ,]+", words.partition("the providers ")[2]))
    measured = {row.provider for row in TARGETS.values() if row.evidence == "measured"}
    assert said == set(PROVIDERS) - measured


def test_the_readme_names_targets_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for names in re.findall(r"--target ([\w|-]+)", text):
        assert set(filter(None, names.split("|"))) <= set(TARGETS)
