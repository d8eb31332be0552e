"""The same input gives the same bytes: with any number of threads, anywhere, on any day."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import CASES, Case, make_sources
from outputs import digest
from processes.forked import ForkServer

INT8 = Case("int8", ("quantize", "model", "--bits", "8", "--method", "rtn"))
KINDS = [INT8, *(case for case in CASES if not case.overwrite)]
NEXT_YEAR = {
    "DSCONV_TEST_DAYS": "400",
    "DSCONV_TEST_CORES": "1",
    "TZ": "Pacific/Kiritimati",
    "LC_ALL": "C",
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ForkServer]]:
    """Two processes whose sets have different orders."""
    one = ForkServer(tmp_path_factory.mktemp("one"), {"PYTHONHASHSEED": "1"})
    two = ForkServer(tmp_path_factory.mktemp("two"), {"PYTHONHASHSEED": "2"})
    with one, two:
        yield [one, two]


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_the_same_bytes(
    servers: list[ForkServer], case: Case, sources: dict[str, str], tmp_path: Path
) -> None:
    found = set()
    for number, server in enumerate(servers):
        place = tmp_path / f"place-{number}"
        place.mkdir()
        command = case.command(sources, place)
        if command[0] == "quantize":
            command += ["--threads", str(number + 1)]
        outcome = server.run(*command, cwd=place, environment=NEXT_YEAR if number else None)
        assert outcome.code == 0, outcome.err
        found.add(digest(place / case.output))
    assert len(found) == 1
