"""What is installed: every module and data file, and nothing that runs foreign code."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT, library_files

import dsconv

# An argument of that name comes from a harness's command line, and is refused.
REFUSES_CODE = ("runtime/harness/options.py",)
# Of the name of the package that it imports, which Python would look for here.
NEEDS_ANOTHER_FOLDER = {"lm_eval"}
FORBIDDEN_MODULES = {"transformers", "pickle", "cPickle", "dill", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("torch", "load"), ("os", "system"), ("np", "load"), ("numpy", "load")}


def listed_packages() -> list[str]:
    """pyproject's list, read without tomllib, which Python 3.10 lacks."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r"^packages = (\[.*?\])", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return list(ast.literal_eval(found[1]))


def imported(tree: ast.AST) -> Iterator[str]:
    """Top-level names of everything a file imports by absolute name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def called(tree: ast.AST) -> Iterator[str | tuple[str, str]]:
    """`name` of name(...), `(a, b)` of a.b(...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Name):
                yield function.id
            elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
                yield function.value.id, function.attr


def test_pyproject_lists_the_folders_that_are_packages() -> None:
    folders = {path.parent.relative_to(ROOT) for path in library_files()}
    with_init = {folder for folder in folders if (ROOT / folder / "__init__.py").exists()}
    assert folders == with_init
    assert sorted(listed_packages()) == sorted(
        ".".join(("dsconv", *folder.parts)) for folder in with_init
    )


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_runs_foreign_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not FORBIDDEN_MODULES & set(imported(tree))
    assert not (FORBIDDEN_CALLS | FORBIDDEN_METHODS) & set(called(tree))
    if path.relative_to(ROOT).as_posix() not in REFUSES_CODE:
        assert "trust_remote_code" not in path.read_text(encoding="utf-8")


def test_the_scan_sees_what_it_looks_for() -> None:
    tree = ast.parse("import pickle.x\nfrom transformers.a import b\neval('1')\ntorch.load(f)")
    assert set(imported(tree)) == {"pickle", "transformers"}
    assert set(called(tree)) == {"eval", ("torch", "load")}


def test_layers_depend_one_way() -> None:
    """quant knows neither convert nor runtime; convert does not know runtime."""
    lower = {"quant": ("convert", "runtime", "cli"), "convert": ("runtime", "cli")}
    for path in library_files():
        package = path.relative_to(ROOT).parts[0]
        text = path.read_text(encoding="utf-8")
        for name in lower.get(package, ()):
            assert not re.search(rf"from (\.\.+|dsconv\.){name}\b", text), path


def test_every_module_can_be_imported() -> None:
    listed = listed_modules()
    for module in pkgutil.walk_packages(dsconv.__path__, "dsconv."):
        if module.name.split(".")[1] in listed - NEEDS_ANOTHER_FOLDER:
            importlib.import_module(module.name)


def listed_modules() -> set[str]:
    """First parts below dsconv, without `__main__`, which would run the command."""
    return {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in library_files()} - {
        "__main__"
    }


def test_the_tests_behind_each_promise_exist() -> None:
    named = set(re.findall(r"\btest_\w+\.py", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    assert len(named) > 20
    assert named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}


def build_wheel(folder: Path) -> Path:
    """Of a copy of the sources in `folder`, so that no build folder is left in the checkout."""
    source = folder / "source"
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "*.so")
    shutil.copytree(ROOT, source, ignore=left_out, symlinks=True)
    shutil.rmtree(source / "build", ignore_errors=True)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", str(source), *options]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600", "DSCONV_NATIVE_FLAGS": "-O0"}
    subprocess.run(command, check=True, timeout=600, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    data = [ROOT / "py.typed", *(ROOT / "recipes").glob("*.toml")]
    for suffix in ("txt", "jsonl", "html", "css"):
        data += (ROOT / "runtime").rglob(f"*.{suffix}")
    expected = {f"dsconv/{path.relative_to(ROOT).as_posix()}" for path in (*library_files(), *data)}
    # setuptools takes every module beside the root's __init__.py, the developers' script too.
    assert names == expected | {"dsconv/runtime/_native.abi3.so"}
    assert {"dsconv/py.typed", "dsconv/runtime/verify/verify_text.txt"} <= names


@pytest.mark.slow
def test_the_same_wheel_again(tmp_path: Path) -> None:
    """From another folder, at another time."""
    pytest.importorskip("setuptools")
    for name in ("a", "another"):
        (tmp_path / name).mkdir()
    one, other = (build_wheel(tmp_path / name) for name in ("a", "another"))
    assert one.name == other.name
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        differing = [n for n in first.namelist() if first.read(n) != second.read(n)]
    assert differing == []
    assert one.read_bytes() == other.read_bytes()
