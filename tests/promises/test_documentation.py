"""The pages say what is there: folders, paths, links, commands and their options."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from places import ROOT

from dsconv.cli import app

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PACKAGES = ("convert", "quant", "runtime", "recipes")
FOLDERS = rf"(?:{'|'.join(PACKAGES)}|tests|scripts|benchmarks|docs)"
CODE = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text(encoding="utf-8"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def package_folders() -> list[Path]:
    inits = (path for folder in PACKAGES for path in (ROOT / folder).rglob("__init__.py"))
    return sorted(path.parent for path in inits)


def picture() -> str:
    """The first section of the page: the picture and what stands above it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return text.split("\n## ")[1].partition("A test reads this")[0]


def folders_in(text: str) -> set[str]:
    return set(re.findall(rf"\b{FOLDERS}\b(?:/\w+)*", text))


# ---------------------------------------------------------------- the picture


def test_every_folder_in_the_picture_exists() -> None:
    assert {name for name in folders_in(picture()) if not (ROOT / name).is_dir()} == set()


def test_the_picture_names_every_folder_of_the_package() -> None:
    packages = set(map(name_of, package_folders()))
    shown = folders_in(picture())
    parents = {str(parent) for name in shown for parent in Path(name).parents}
    assert packages - shown - parents == set()


@pytest.mark.parametrize("folder", package_folders(), ids=name_of)
def test_every_folder_says_what_is_in_it(folder: Path) -> None:
    """A word for each file and folder; those of commands have the name of theirs."""
    text = (folder / "__init__.py").read_text(encoding="utf-8")
    said = set(re.findall(r"\w+", text))
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert folder.name == "commands" or files | folders <= said
    listed = set(re.findall(r"^(\w+)  +\S", text, re.MULTILINE))
    assert {name for name in listed - files if not (folder / name).is_dir()} == set()


# ---------------------------------------------------------------- paths and links


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [link for link in found if not link.startswith(("http:", "https:"))]


@cache
def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    """In code spans; `NAME` and `*` stand for any name."""
    for path in re.findall(rf"`({FOLDERS}/[\w./*-]+)`", prose(page)):
        assert list(ROOT.glob(path.rstrip("/").replace("NAME", "*"))), path
    for name in re.findall(r"`(\w+\.py)`", prose(page)):
        assert name in modules() or "NAME" in name, name


@cache
def modules() -> set[str]:
    """Names of all files of Python."""
    folders = [ROOT / folder for folder in (*PACKAGES, "tests", "scripts", "benchmarks")]
    below = (path for folder in folders for path in folder.rglob("*.py"))
    return {path.name for path in (*ROOT.glob("*.py"), *below)}


def test_the_index_has_a_line_for_every_page() -> None:
    listed = re.findall(r"^\| \[(\S+)\]\(\1\) \|", prose(ROOT / "docs/index.md"), re.MULTILINE)
    assert sorted(listed) == sorted(p.name for p in ROOT.glob("docs/*.md") if p.stem != "index")


# ---------------------------------------------------------------- the command line


def test_the_page_of_commands_is_what_help_says() -> None:
    made = runpy.run_path(str(ROOT / "scripts/document_cli.py"))["page"]()
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert page == made, "run python scripts/document_cli.py"


def test_the_page_of_settings_is_that_of_the_tables() -> None:
    made = runpy.run_path(str(ROOT / "scripts/document_settings.py"))["page"]()
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == made, "run python scripts/document_settings.py"


@cache
def options() -> dict[str, set[str]]:
    """Command -> its options, both ways of a switch."""
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {
        name: {"-h", "--help"}.union(*(set(p.opts) | set(p.secondary_opts) for p in command.params))
        for name, command in commands.items()
    }


def command_lines(page: Path) -> Iterator[tuple[str, str]]:
    """(command, the rest of its line) in blocks of code and in code spans."""
    text = page.read_text(encoding="utf-8")
    code = [*CODE.findall(text), *re.findall(r"`([^`]+)`", prose(page))]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        found = re.match(r"(?:dsconv )([a-z]+)\b(.*)", " ".join(line.split()))
        if found:
            yield found[1], found[2].partition(" #")[0]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_has_options_that_exist(page: Path) -> None:
    for command, rest in command_lines(page):
        assert command in options(), command
        unknown = set(re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", rest)) - options()[command]
        assert not unknown, f"dsconv {command}{rest}"
