"""The command line starts itself once more with huge pages, and nothing else does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dsconv.runtime.sessions import huge_pages


class Restarted(Exception):
    """Raised in the place of execve, with its arguments."""


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which huge pages are to be asked for."""

    def refuse(*arguments: object) -> None:
        raise Restarted(*arguments)

    monkeypatch.setattr(huge_pages, "environment", lambda: {"GLIBC_TUNABLES": huge_pages.TUNABLE})
    monkeypatch.setattr(os, "execve", refuse)
    return monkeypatch


def start_as(monkeypatch: pytest.MonkeyPatch, original: list[str], argv: list[str]) -> None:
    monkeypatch.setattr(sys, "orig_argv", original)
    monkeypatch.setattr(sys, "argv", argv)
    huge_pages.restart_with_huge_pages()


@pytest.mark.parametrize(
    "prefix", [["/bin/dsconv"], ["-m", "dsconv"], ["-I", "-m", "dsconv"], ["cli.py"]]
)
def test_our_own_process_restarts_as_it_was_started(
    prefix: list[str], restart: pytest.MonkeyPatch
) -> None:
    original = ["python", *prefix, "run", "folder", "-p", "hi"]
    with pytest.raises(Restarted) as caught:
        start_as(restart, original, ["dsconv", "run", "folder", "-p", "hi"])
    program, arguments, changed = caught.value.args
    assert program == sys.executable
    assert arguments == [sys.executable, *original[1:]]
    assert changed == {"GLIBC_TUNABLES": huge_pages.TUNABLE}


@pytest.mark.parametrize(
    ("original", "argv"),
    [
        (["python", "-m", "pytest"], ["dsconv", "run", "folder"]),  # main() called by a program
        (["python", "other.py", "run", "folder"], ["other.py", "run", "folder"]),
        (["python", "dsconv", "inspect", "folder"], ["dsconv", "inspect", "folder"]),
        (["python", "dsconv"], ["dsconv"]),
    ],
)
def test_others_are_left_alone(
    original: list[str], argv: list[str], restart: pytest.MonkeyPatch
) -> None:
    start_as(restart, original, argv)


def test_a_process_that_has_them_does_not_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", huge_pages.TUNABLE)
    assert huge_pages.environment() is None


@pytest.mark.parametrize("policy", ["[always] madvise never", "always madvise [never]", None])
def test_only_where_the_kernel_grants_them_on_request(
    policy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "enabled"
    if policy is not None:
        file.write_text(policy, encoding="ascii")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages, "POLICY", file)
    assert huge_pages.environment() is None


def test_other_tunables_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never", encoding="ascii")
    monkeypatch.setattr(huge_pages, "POLICY", file)
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    changed = huge_pages.environment()
    assert changed is not None
    assert changed["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{huge_pages.TUNABLE}"
