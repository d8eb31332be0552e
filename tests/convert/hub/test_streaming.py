"""Quantizing a model of the hub whose shards come and go: the same bytes, on a small disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_refused, dsconv
from foreign_models import BnbFourBits, Fp8, Gptq, write_foreign
from hub_server import COMMIT, Fault, HubServer, serving
from outputs import folder_hash
from safetensors.numpy import save_file
from small_models import (
    random_tensors,
    small_config,
    write_checkpoint,
    write_json,
    write_model,
    write_side_files,
)

MODEL, SHARDS = "org/small", 8
SEARCH = ("--method", "search")


def write_large(folder: Path) -> Path:
    """Shards as real models have them: layer after layer."""
    folder.mkdir(parents=True)
    config = small_config(
        num_hidden_layers=12, hidden_size=256, intermediate_size=512, num_attention_heads=8
    )
    write_json(folder / "config.json", config)
    write_side_files(folder)
    tensors = random_tensors(config)
    weight_map, names = {}, list(tensors)
    share = -(-len(names) // SHARDS)
    for index in range(SHARDS):
        name = f"model-{index + 1:05}-of-{SHARDS:06}.safetensors"
        part = {key: tensors[key] for key in names[index * share : (index + 1) * share]}
        save_file(part, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("served") / MODEL)


@pytest.fixture
def hub(model: Path) -> Iterator[HubServer]:
    with serving(model.parents[1]) as server:
        yield server


def environment(hub: HubServer, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "xdg"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }


@pytest.fixture(scope="module")
def expected(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the same files in a folder laid out as the hub's cache, which tells name and commit."""
    return quantized_locally(model, tmp_path_factory.mktemp("local"), *SEARCH)


def quantized_locally(model: Path, scratch: Path, *options: str) -> str:
    folder = scratch / f"models--{MODEL.replace('/', '--')}" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    for path in model.iterdir():
        os.link(path, folder / path.name)
    outcome = dsconv("quantize", folder, *options, "-o", scratch / "out")
    assert outcome.code == 0, outcome.err
    return folder_hash(scratch / "out")


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """-> bytes on the disk of all that is in a folder, looked at again and again."""
    found: list[int] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            total = 0
            for place, _, names in os.walk(folder):  # takes no notice of what goes meanwhile
                for name in names:
                    with suppress(OSError):
                        total += 512 * os.stat(os.path.join(place, name)).st_blocks
            found.append(total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def test_the_same_bytes_on_a_small_disk(
    hub: HubServer, model: Path, tmp_path: Path, expected: str
) -> None:
    output = tmp_path / "out"
    with watched(tmp_path / "out.shards") as looks:
        outcome = dsconv(
            "quantize",
            MODEL,
            *SEARCH,
            "--no-keep",
            "-o",
            output,
            environment=environment(hub, tmp_path),
        )
    assert outcome.code == 0, outcome.err
    assert folder_hash(output) == expected
    sizes = [path.stat().st_size for path in model.glob("*.safetensors")]
    assert len(sizes) == SHARDS
    assert 0 < max(looks) <= 3 * max(sizes) + (64 << 10) * SHARDS
    assert not (tmp_path / "out.shards").exists()
    assert not [path for path in (tmp_path / "hf").rglob("*.safetensors")]
    passes = [sum(hub.sent(path.name) for path in model.glob("*.safetensors")) / sum(sizes)]
    print("passes over the network:", passes)
    assert passes[0] < 3.1


@pytest.mark.parametrize("packer", [Gptq(ordered=True), BnbFourBits(nested=True), Fp8()], ids=str)
def test_a_model_that_another_tool_quantized(packer: Any, tmp_path: Path) -> None:
    """Columns of packed words, and settings that stand in a tensor, come from the hub as well."""
    model = write_foreign(tmp_path / "served" / MODEL, packer, packer.config()).folder
    expected = quantized_locally(model, tmp_path / "local", *SEARCH)
    with serving(tmp_path / "served") as hub:
        outcome = dsconv(
            "quantize",
            MODEL,
            *SEARCH,
            "--no-keep",
            "-o",
            tmp_path / "out",
            environment=environment(hub, tmp_path),
        )
    assert outcome.code == 0, outcome.err
    assert "was quantized before" in outcome.err
    assert folder_hash(tmp_path / "out") == expected


def test_shards_that_lie_in_the_cache_are_used_and_left(
    hub: HubServer, model: Path, tmp_path: Path, expected: str
) -> None:
    variables = environment(hub, tmp_path)
    assert dsconv("pull", MODEL, environment=variables).code == 0
    before = folder_hash(tmp_path / "hf")
    hub.calls.clear()
    outcome = dsconv(
        "quantize", MODEL, *SEARCH, "--no-keep", "-o", tmp_path / "out", environment=variables
    )
    assert outcome.code == 0, outcome.err
    assert folder_hash(tmp_path / "out") == expected
    assert hub.fetched() == set()
    assert folder_hash(tmp_path / "hf") == before


def test_killed_and_resumed(hub: HubServer, tmp_path: Path, expected: str) -> None:
    hub.settings.rate = 1e6
    command = ["quantize", MODEL, *SEARCH, "--no-keep", "-o", str(tmp_path / "out")]
    variables = environment(hub, tmp_path)
    for number in range(3):
        with subprocess.Popen(
            [sys.executable, "-m", "dsconv", *command],
            env={**os.environ, **variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            end = time.monotonic() + 20
            while not list((tmp_path / "out.shards").glob("*.safetensors")):
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(0.7 * number)
            assert process.poll() is None
            process.kill()
    assert (tmp_path / "out.shards").exists()
    hub.settings.rate = 0
    outcome = dsconv(*command, environment=variables)
    assert outcome.code == 0, outcome.err
    assert folder_hash(tmp_path / "out") == expected
    assert not (tmp_path / "out.shards").exists()


@pytest.mark.slow
def test_calibrated_with_every_layer_in_every_shard(tmp_path: Path) -> None:
    """The worst layout there is: right, if slow."""
    folder = write_checkpoint(tmp_path / "served" / MODEL, shards=6)
    options = ("--method", "gptq", "--calibration-tokens", "512")
    wanted = quantized_locally(folder, tmp_path, *options)
    with serving(tmp_path / "served") as hub:
        outcome = dsconv(
            "quantize",
            MODEL,
            *options,
            "--no-keep",
            "-o",
            tmp_path / "streamed",
            environment=environment(hub, tmp_path),
        )
    assert outcome.code == 0, outcome.err
    assert folder_hash(tmp_path / "streamed") == wanted


def test_a_damaged_shard_ends_it_resumably(
    hub: HubServer, model: Path, tmp_path: Path, expected: str
) -> None:
    name = sorted(path.name for path in model.glob("*.safetensors"))[5]
    hub.faults = [Fault(name, flip=model.joinpath(name).stat().st_size - 1)]
    command = ["quantize", MODEL, *SEARCH, "--no-keep", "-o", tmp_path / "out"]
    variables = environment(hub, tmp_path)
    assert_refused(dsconv(*command, environment=variables), 5, name, "sha256 is")
    assert not (tmp_path / "out").exists()
    hub.faults = []
    outcome = dsconv(*command, environment=variables)
    assert outcome.code == 0, outcome.err
    assert folder_hash(tmp_path / "out") == expected


def test_a_header_that_lies_is_found(hub: HubServer, model: Path, tmp_path: Path) -> None:
    """Read by itself, it has two tensors in each other's place; the whole file is right."""
    path = sorted(model.glob("*.safetensors"))[3]
    text = path.read_bytes()
    header = text[: 8 + int.from_bytes(text[:8], "little")]
    lie = json.loads(header[8:])
    gate = next(name for name in lie if "mlp.gate_proj" in name)
    up = gate.replace("gate", "up")
    lie[gate], lie[up] = lie[up], lie[gate]
    other = tmp_path / "other"
    encoded = json.dumps(lie, separators=(",", ":")).encode().ljust(len(header) - 8)
    other.write_bytes(header[:8] + encoded + text[len(header) :])
    assert other.stat().st_size == path.stat().st_size
    hub.faults = [Fault(path.name, 2, other=other)]
    command = ["quantize", MODEL, *SEARCH, "--no-keep", "-o", tmp_path / "out"]
    outcome = dsconv(*command, environment=environment(hub, tmp_path))
    assert_refused(outcome, 5, path.name, "header")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_streamed(hub: HubServer, model: Path, tmp_path: Path) -> None:
    variables = environment(hub, tmp_path)
    for name in (str(model), "hf://org/small/q4.gguf"):
        outcome = dsconv("quantize", name, "--no-keep", "-o", tmp_path / "o", environment=variables)
        assert_refused(outcome, 2, "--no-keep")


TIED = "org/tied"
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("kind", ["own head", "equal head", "prefix", "no index"])
def test_what_a_folder_decides_is_decided_of_a_stream_too(tmp_path: Path, kind: str) -> None:
    """Headers alone say neither whether a head differs nor what a name without a prefix is."""
    folder = tmp_path / "served" / TIED
    config = small_config(tie_word_embeddings=True)
    tensors = random_tensors(config)
    if kind != "no index":
        tensors[HEAD] = tensors[TABLE] * (2 if kind == "own head" else 1)
    if kind == "prefix":
        tensors = {f"module.{name}": array for name, array in tensors.items()}
    write_model(folder, config, tensors, shards=3)
    if kind == "no index":
        (folder / "model.safetensors.index.json").unlink()
        for path in folder.glob("*.safetensors"):
            path.rename(folder / path.name.replace("-of-0000", "-of-000"))
    here = tmp_path / "here" / "models--org--tied" / "snapshots" / COMMIT
    here.mkdir(parents=True)
    for path in folder.iterdir():
        os.link(path, here / path.name)
    with serving(tmp_path / "served") as hub:
        outcomes = [
            dsconv("quantize", here, "--method", "rtn", "-o", tmp_path / "a"),
            dsconv(
                *("quantize", TIED, "--method", "rtn", "--no-keep", "-o", tmp_path / "b"),
                environment=environment(hub, tmp_path),
            ),
        ]
    for outcome in outcomes:
        assert outcome.code == 0, outcome.err
        assert ("the stored head is used" in outcome.err) == (kind == "own head")
        assert ("DataParallel" in outcome.err) == (kind == "prefix")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
