"""Real execution providers other than the CPU's, each in its own environment.

    python scripts/provider_environment.py openvino test

The reference's scores come from this environment (torch), the artifact's from the provider's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import mean_divergence, quantized, random_tokens, tiny_checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from provider_environment import WHEELS, is_complete, python_of, with_dsconv  # noqa: E402

from dsconv.convert.checkpoint import open_checkpoint  # noqa: E402
from dsconv.convert.onnx.export import export_onnx  # noqa: E402
from dsconv.convert.targets.choice import choose_options  # noqa: E402
from dsconv.convert.targets.table import find_target  # noqa: E402
from dsconv.runtime.onnx_session import OnnxSession  # noqa: E402
from dsconv.runtime.torch_session import TorchSession  # noqa: E402

pytestmark = pytest.mark.provider
# Looked up before conftest.py puts an empty cache in place of the user's.
ENVIRONMENTS = {name: python_of(name) for name in WHEELS if is_complete(name)}

SCORE = """
import json, sys
import numpy as np
from dsconv.runtime.load import load
path, provider, tokens, output = sys.argv[1:]
loaded = load(path, provider, threads=1, allow_fallback=False)
tokens = json.loads(tokens)
scores = loaded.session.score(tokens[:-4])
steps = [loaded.session.decode(token).copy() for token in tokens[-4:]]
np.save(output, np.concatenate([scores, np.stack(steps)]))
print(json.dumps({"share": loaded.nodes_on_provider, "nodes": loaded.placement.to_json()}))
"""
TOKENS = random_tokens(60, 160)


def environment(name: str) -> Path:
    if name not in ENVIRONMENTS:
        pytest.skip(f"no environment: python scripts/provider_environment.py {name}")
    return ENVIRONMENTS[name]


def dsconv(python: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), "-m", "dsconv", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        env={**with_dsconv(), "PYTHONWARNINGS": "ignore"},
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("providers")
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    quantized(tiny_checkpoint(folder / "m", "llama", **sizes), folder / "q", bits=4)
    return folder / "q"


def scores_on(
    python: Path, provider: str, artifact: Path, output: Path
) -> tuple[np.ndarray, dict[str, Any]]:
    command = [str(python), "-c", SCORE, str(artifact), provider, json.dumps(TOKENS), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=with_dsconv())
    assert done.returncode == 0, done.stderr
    return np.load(output), json.loads(done.stdout)


@pytest.mark.parametrize(("name", "limit"), [("openvino", 1.2), ("qnn", 2.0)])
def test_an_export_runs_on_the_provider_alone_and_is_the_same_model(
    name: str, limit: float, checkpoint: Path, tmp_path: Path
) -> None:
    python = environment(name)
    source = open_checkpoint(str(checkpoint))
    options = choose_options(find_target(name), source, context_length=96)
    export_onnx(source, options, tmp_path / "x")
    found, placed = scores_on(python, name, tmp_path / "x", tmp_path / "scores.npy")
    assert placed["share"] == 1.0
    expected = TorchSession(source).score(TOKENS)
    cpu_options = choose_options(find_target("cpu"), source, context_length=96)
    export_onnx(source, cpu_options, tmp_path / "cpu")
    cpu = mean_divergence(expected, OnnxSession(tmp_path / "cpu", threads=1).score(TOKENS))
    # The floor is the rounding of activations, which a tiny random model is sensitive to.
    assert mean_divergence(expected, found) <= max(limit * cpu, 2e-3)


def test_what_openvino_does_not_take_is_refused_or_reported(
    checkpoint: Path, tmp_path: Path
) -> None:
    python = environment("openvino")
    source = open_checkpoint(str(checkpoint))
    export_onnx(source, choose_options(find_target("cpu"), source), tmp_path / "x")
    refused = dsconv(python, "run", tmp_path / "x", "-p", "t7", "--provider", "openvino")
    assert refused.returncode == 7
    assert len(refused.stderr.splitlines()) == 2, refused.stderr
    arguments = ("run", tmp_path / "x", "-p", "t7", "--max-tokens", 4, "--json")
    allowed = dsconv(python, *arguments, "--provider", "openvino", "--allow-fallback")
    assert allowed.returncode == 0, allowed.stderr
    placement = {share["provider"]: share for share in json.loads(allowed.stdout)["placement"]}
    left = placement["CPUExecutionProvider"]
    assert left["operators"]["GroupQueryAttention"] == 2
    assert 0 < left["node_share"] < 1
    assert sum(share["time_share"] for share in placement.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("name", "provider", "words"),
    [
        ("openvino", "openvino:GPU", "openvino:GPU"),
        ("cuda", "cuda", ".so"),
        ("cuda", "tensorrt", ".so"),
        ("cann", "cann", "libascendcl.so"),
    ],
)
def test_a_wheel_without_its_driver_fails_at_once(
    name: str, provider: str, words: str, checkpoint: Path, tmp_path: Path
) -> None:
    python = environment(name)
    source = open_checkpoint(str(checkpoint))
    export_onnx(source, choose_options(find_target("cpu"), source), tmp_path / "x")
    start = time.perf_counter()
    done = dsconv(python, "run", tmp_path / "x", "-p", "t7", "--provider", provider)
    seconds = time.perf_counter() - start
    assert done.returncode == 7, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert words in lines[0]
    print(f"{provider}: {seconds:.2f} s")


@pytest.mark.parametrize("name", ["openvino", "qnn", "cuda", "cann"])
def test_doctor_says_what_works(name: str) -> None:
    done = dsconv(environment(name), "doctor", name, "--json")
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    if name in ("openvino", "qnn"):
        assert target["state"] == "works"
        assert all(graph["error"] < 2e-2 for graph in target["graphs"].values())
    else:
        assert target["state"] == "broken"
        assert target["cure"]
