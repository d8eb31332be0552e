"""An endpoint in the environment that is no address is refused at once."""

from __future__ import annotations

import time

import pytest
from command_line import assert_refused, dsconv

from dsconv.convert.hub.endpoint import checked_endpoint
from dsconv.convert.hub.modelscope import ModelScope
from dsconv.errors import DownloadError


@pytest.mark.parametrize(
    ("value", "problem", "cure"),
    [
        ("hf-mirror.example", "lacks https://", "=https://hf-mirror.example"),
        ("hf-mirror.example:8080/hf", "lacks https://", "=https://hf-mirror.example:8080/hf"),
        ("//hf-mirror.example", "lacks https://", "=https://hf-mirror.example"),
        ("https:/hf-mirror.example", "lacks https://", "=https://hf-mirror.example"),
        ("htps://hf-mirror.example", "scheme 'htps'", "=https://hf-mirror.example"),
        ("ftp://hf-mirror.example", "scheme 'ftp'", "=https://hf-mirror.example"),
        ('"https://hf-mirror.example"', "the character '\"'", "=https://hf-mirror.example"),
        ("https://hf mirror.example", "the character ' '", "=https://hfmirror.example"),
        ("https://", "lacks https://", "HF_ENDPOINT=https://"),
        ("https:///models", "no host", "HF_ENDPOINT=https://"),
        ("https://mirror.example:port", "no address", "HF_ENDPOINT=https://"),
        ("https://mirror.example?x=1", "after ? or #", "=https://mirror.example"),
        ("  ", "empty", "HF_ENDPOINT=https://"),
    ],
)
def test_what_is_no_address(value: str, problem: str, cure: str) -> None:
    with pytest.raises(DownloadError) as caught:
        checked_endpoint("HF_ENDPOINT", value)
    assert problem in caught.value.message
    assert cure in caught.value.hint


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://hf-mirror.example", "https://hf-mirror.example"),
        ("https://hf-mirror.example/", "https://hf-mirror.example"),
        (" https://hf-mirror.example// ", "https://hf-mirror.example"),
        ("https://proxy.example/hf/", "https://proxy.example/hf"),
        ("HTTP://localhost:8080", "HTTP://localhost:8080"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_what_is_one(value: str, expected: str) -> None:
    assert checked_endpoint("HF_ENDPOINT", value) == expected


def test_the_command_says_so_at_once() -> None:
    start = time.monotonic()
    environment = {"HF_ENDPOINT": "hf-mirror.example", "HF_HUB_OFFLINE": "0"}
    outcome = dsconv("pull", "org/x", environment=environment)
    assert_refused(outcome, 5, "HF_ENDPOINT", "https://")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("domain", ["scope.example", "https://scope.example"])
def test_modelscopes_own_variable(domain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    monkeypatch.setenv("MODELSCOPE_DOMAIN", domain)
    assert ModelScope().endpoint == "https://scope.example"
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "scope.example")
    with pytest.raises(DownloadError, match="MODELSCOPE_ENDPOINT"):
        ModelScope()
