"""Downloads from a stand-in for the hub on this machine: only what is needed, at one commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Outcome, assert_refused, dsconv
from hub_server import COMMIT, OLD_COMMIT, HubServer, serving
from small_models import write_checkpoint

from dsconv.convert.hub.model_name import looks_like_hub_name

NOT_NEEDED = (
    "pytorch_model.bin",
    "model.onnx",
    "model.gguf",
    "README.md",
    "modeling_evil.py",
    "onnx/config.json",
    "original/model.safetensors",
    "consolidated.safetensors",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write_checkpoint(tmp_path / "served" / "org" / "small", shards=2)
    for name in NOT_NEEDED:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"must not be fetched")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[HubServer]:
    with serving(model.parents[1]) as server:
        yield server


def call(hub: HubServer, home: Path, *arguments: object) -> Outcome:
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf-home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }
    return dsconv(*arguments, environment=environment)


def resolved(hub: HubServer) -> list[str]:
    found = [call.path for call in hub.calls if "/resolve/" in call.path]
    assert found
    return found


def test_only_needed_files_are_fetched_and_the_commit_is_pinned(
    hub: HubServer, tmp_path: Path
) -> None:
    outcome = call(hub, tmp_path, "inspect", "org/small", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["parameters"] > 0
    assert hub.fetched() == set(hub.models["org/small"]) - set(NOT_NEEDED)
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved(hub))


def test_a_push_during_the_download_does_not_mix_commits(hub: HubServer, tmp_path: Path) -> None:
    hub.settings.main_moves = True
    outcome = call(hub, tmp_path, "inspect", "org/small", "--json")
    assert outcome.code == 0, outcome.err
    assert all(f"/resolve/{COMMIT}/" in path for path in resolved(hub))


def test_a_second_run_fetches_nothing(hub: HubServer, tmp_path: Path) -> None:
    call(hub, tmp_path, "inspect", "org/small", "--json")
    hub.calls.clear()
    again = call(hub, tmp_path, "inspect", "org/small", "--json")
    assert again.code == 0
    assert hub.fetched() == set()


def test_a_revision_is_fetched_at_its_commit(hub: HubServer, tmp_path: Path) -> None:
    outcome = call(hub, tmp_path, "inspect", "org/small@v1", "--json")
    assert outcome.code == 0, outcome.err
    assert all(f"/resolve/{OLD_COMMIT}/" in path for path in resolved(hub))


def test_a_download_can_be_quantized(hub: HubServer, model: Path, tmp_path: Path) -> None:
    rtn = ("--method", "rtn")
    remote = call(hub, tmp_path, "quantize", "org/small", *rtn, "-o", tmp_path / "remote")
    assert remote.code == 0, remote.err
    local = dsconv("quantize", model, *rtn, "-o", tmp_path / "local")
    assert local.code == 0, local.err
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("remote", "local")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", ["org/unknown", "org/small@v9"])
def test_what_the_hub_does_not_have(hub: HubServer, tmp_path: Path, name: str) -> None:
    assert_refused(call(hub, tmp_path, "inspect", name), 5, name)
    assert hub.fetched() == set()


def test_a_name_that_no_hub_allows(hub: HubServer, tmp_path: Path) -> None:
    assert_refused(call(hub, tmp_path, "inspect", "a/b--c"), 3, "a/b--c")
    assert hub.calls == []


def test_a_model_with_pickles_only_is_refused_unfetched(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "served" / "org" / "small")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serving(tmp_path / "served") as hub:
        outcome = call(hub, tmp_path, "quantize", "org/small", "-o", tmp_path / "out")
        assert_refused(outcome, 4, "safetensors")
        assert hub.fetched() == set()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", True),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", True),
        ("org/model@main", True),
        ("org/model@refs/pr/1", True),
        ("org/model@", False),
        ("model", False),
        ("a/b/c", False),
        ("./model", False),
        ("../model", False),
        ("/abs/model", False),
        ("~/model", False),
        ("org/mo del", False),
        ("org/model\n", False),
        ("org\\model", False),
        ("http://host/org/model", False),
        ("hf://org/model", True),
        ("hf://org/model@v1", True),
        ("hf://org/model/sub/q4.gguf", True),
        ("hf://org/model@v1/q4.gguf", True),
        ("modelscope://org/model", True),
        ("org/model:Q4_K_M", True),
        ("org/model@v1:Q4_K_M", True),
        ("hf://org/model:IQ4_XS", True),
        ("org/model:", False),
        ("C:/model", False),
        ("hf://org/model/model.bin", False),
        ("hf://model", False),
        ("", False),
    ],
)
def test_what_looks_like_a_hub_name(text: str, expected: bool) -> None:
    assert looks_like_hub_name(text) is expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https://huggingface.co/org/name/tree/v2", "org/name@v2"),
        ("huggingface.co/org/name/", "org/name"),
        ("https://www.modelscope.cn/models/org/name", "modelscope://org/name"),
    ],
)
def test_the_address_of_a_page_leads_to_the_name(text: str, name: str) -> None:
    assert_refused(dsconv("inspect", text), 3, "no such file", f"use the name on that page: {name}")
