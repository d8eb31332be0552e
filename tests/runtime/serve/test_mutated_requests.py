"""Whatever is sent: no crash, no error of the server's own, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from request_campaign import campaign, settled
from served import serving
from served_models import WITH_TOOLS, served_model

OPTIONS = ("--name", "tiny", "--threads", 1, "--max-tokens", 16, "--slow-timeout", 2)
OPTIONS += ("--idle-timeout", 2, "--max-body", "64KiB", "--cache-memory", "16MiB")


@pytest.mark.parametrize("count", [400, pytest.param(50_000, marks=pytest.mark.slow)])
def test_mutated_requests(count: int, tmp_path: Path) -> None:
    with serving(served_model(tmp_path, WITH_TOOLS), *OPTIONS) as server:
        campaign(server, 0, count // 10)  # what is made once is there
        before = settled(server)
        found = campaign(server, 1, count)
        after = settled(server)
        print(f"{count} requests: {found.statuses}; {before} -> {after}")
        assert found.wrong == []
        assert after.texts == 0
        assert after.files <= before.files
        assert after.threads <= before.threads + 6  # the pool that reads requests grows to its size
        assert after.resident < before.resident + (24 << 20)
        assert found.statuses[200] > count // 50
        assert server.end() == 0
        assert server.process.stderr is not None
        assert "error" not in server.process.stderr.read()
