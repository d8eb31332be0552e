"""Where a recipe's model lies: a folder, a GGUF file, a package, or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dsconv.convert.checkpoint.manifest import COMMIT
from dsconv.convert.formats.gguf.container import read_header
from dsconv.convert.hub.model_name import looks_like_hub_name, parse_reference
from dsconv.errors import InputError
from dsconv.runtime.console import say
from dsconv.runtime.demo import model as demo_model
from dsconv.runtime.model_paths import local_path

from .recipe import Recipe
from .state import BuildState

PULL = "pull"
PACKAGE = "package:"  # the one .gguf file of an installed Python package
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---", re.DOTALL)
LICENCE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)
# What hubs ask for beside `license: other`.
LICENCE_DETAIL = re.compile(r"^license_(name|link):[ \t]*[\"']?([^\n\"']+)", re.MULTILINE)


@dataclass(frozen=True)
class SourceModel:
    """A recipe's model on this disk. commit: of the hub; hub_name: None for what is no hub's."""

    path: Path
    name: str
    hub_name: str | None = None
    commit: str | None = None


def hub_name(recipe: Recipe) -> str:
    """`org/model@revision`; a revision in `source` itself, or a scheme, wins."""
    if "@" in recipe.source or "://" in recipe.source:
        return recipe.source
    return f"{recipe.source}@{recipe.revision}"


def find_source(
    recipe: Recipe, state: BuildState, work: Path, dry: bool
) -> tuple[SourceModel | None, str | None]:
    """-> the model, and why it had or has to be asked for; None where only the hub can tell."""
    local = find_local(recipe.source)
    if local is not None:
        return local, None
    name, record = hub_name(recipe), state.record(PULL)
    before = None
    if record is not None and record.facts.get("name") == name:
        folder = Path(str(record.facts.get("folder")))
        before = pulled_snapshot(name, folder) if folder.exists() else None
    if before is not None and is_pinned(name):
        return before, None
    if dry:
        return None, f"asks the hub for {name}"
    say(f"{PULL}: {name}")
    pulled = download(name)
    facts = {"name": name, "folder": str(pulled.path)}
    state.done(PULL, {"source": name}, work / PULL, facts)
    unchanged = before is not None and before.path == pulled.path
    return pulled, None if unchanged else f"downloaded {name}"


def find_local(source: str) -> SourceModel | None:
    """What needs no download; None for a hub name.

    Raises:
        InputError: neither there nor a hub name.
    """
    if source.startswith(PACKAGE):
        return _in_package(source)
    path = Path(source).expanduser()
    if os.path.exists(path):
        return SourceModel(path, path.resolve().name)
    if looks_like_hub_name(source):
        return None
    raise InputError(
        f"source: {source}: no such file or folder",
        f"use a folder, a .gguf file, a hub name (org/model), or {PACKAGE}NAME",
    )


def _in_package(source: str) -> SourceModel:
    if source != PACKAGE + demo_model.PACKAGE:
        raise InputError(
            f"source: {source!r} is not known; allowed: {PACKAGE}{demo_model.PACKAGE}",
            "use a folder, a .gguf file, or a hub name (org/model)",
        )
    path = demo_model.find_model()
    return SourceModel(path, f"{path.name} of {demo_model.PACKAGE} {demo_model.PACKAGE_VERSION}")


def pulled_snapshot(name: str, path: Path) -> SourceModel:
    """A hub model that was downloaded: the hub's cache names the folder by the commit."""
    commits = [part for part in path.parts if COMMIT.fullmatch(part)]
    return SourceModel(path, name, parse_reference(name).name, commits[-1] if commits else None)


def download(name: str) -> SourceModel:
    """Raises DownloadError, UnsupportedError."""
    return pulled_snapshot(name, Path(local_path(name)))


def is_pinned(name: str) -> bool:
    """A commit never changes, so what was downloaded once need not be asked for again."""
    return parse_reference(name).commit is not None


def licence_of(path: Path, side_files: Mapping[str, bytes]) -> str | None:
    """As the model's card, GGUF metadata or LICENSE file has it; None where nothing tells."""
    if path.is_file():
        value = read_header(path)[0].get("general.license")
        return value if isinstance(value, str) and value else None
    card = path / "README.md"
    if card.is_file():
        matter = FRONT_MATTER.search(card.read_text("utf-8", errors="replace"))
        found = LICENCE.search(matter[1]) if matter else None
        if found and matter:
            details = dict(LICENCE_DETAIL.findall(matter[1]))
            named = [details[key].strip() for key in ("name", "link") if key in details]
            return " ".join([found[1], *named])
    text = side_files.get("LICENSE", b"").decode("utf-8", errors="replace")
    return next((" ".join(line.split())[:80] for line in text.splitlines() if line.strip()), None)
