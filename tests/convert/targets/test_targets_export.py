"""What `export --target` writes, run by ONNX Runtime on the CPU, against the torch reference.

Differences are relative to the largest logit: ≤ 1e-3, and ≤ 2e-2 where a target is float16.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import assert_refused, call_main
from logits import largest_difference, random_tokens
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from outputs import quantized
from small_models import VOCABULARY, write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.formats.onnx.graph_check import check_graph
from dsconv.convert.formats.onnx.names import FIXED_SHAPES, GRAPH_FILE, PREFILL_FILE
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint, open_folder
from dsconv.convert.targets.choice import checker, choose_options
from dsconv.convert.targets.lint import lint
from dsconv.convert.targets.table import TARGETS
from dsconv.errors import InputError, UnsupportedError
from dsconv.runtime.sessions.load import load
from dsconv.runtime.sessions.onnx_fixed import FixedOnnxSession, score_mask

TOKENS = random_tokens(40, VOCABULARY)
CONTEXT = 48
# What is quantized how, and the targets that refuse it with a reason.
WEIGHTS: dict[str, tuple[dict[str, Any] | None, tuple[str, ...]]] = {
    "float": (None, ()),
    "4 bits": ({}, ("openvino-npu",)),
    "4 bits asymmetric, tied, embedding 4": (
        {"symmetric": False, "embedding_bits": 4},
        ("openvino-npu", "tensorrt"),
    ),
    "8 bits per row": ({"bits": 8, "group_size": -1}, ("qnn",)),
}
STANDARD = ("std17", "std21", "std24")  # dialects that the ONNX project's own checker knows whole
GRAPH_TARGETS = [name for name, target in TARGETS.items() if target.recipe is not None]


@pytest.fixture(scope="module", params=WEIGHTS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, tuple[str, ...], NDArray[np.float32]]:
    """A checkpoint, the targets that refuse it, and the reference's logits."""
    options, refusing = WEIGHTS[request.param]
    folder = tmp_path_factory.mktemp("model")
    source = write_checkpoint(folder / "m", tie_word_embeddings="tied" in request.param)
    checkpoint = open_checkpoint(str(source))
    if options is not None:
        checkpoint = quantized(source, folder / "q", **options)
    return checkpoint, refusing, TorchModel.load(checkpoint).forward(TOKENS).numpy()


def run(folder: Path) -> NDArray[np.float32]:
    """A prompt, a second one cut off again, then single tokens -> logits of all positions."""
    session = load(str(folder), threads=1).session
    first = np.array(session.extend(TOKENS[:21]))
    session.extend(TOKENS[:9])
    session.truncate(21)
    steps = [np.array(session.decode(token)) for token in TOKENS[21:]]
    assert session.position == len(TOKENS)
    return np.concatenate([first, np.array(steps)])


@pytest.mark.parametrize("name", GRAPH_TARGETS)
def test_every_target_computes_the_reference(
    model: tuple[Checkpoint, tuple[str, ...], NDArray[np.float32]], name: str, tmp_path: Path
) -> None:
    checkpoint, refusing, wanted = model
    target = TARGETS[name]
    if name in refusing:
        with pytest.raises(UnsupportedError, match=f"target {name} (takes|multiplies)"):
            choose_options(target, checkpoint)
        return
    options = choose_options(target, checkpoint, 0, CONTEXT, copy=True)
    export_onnx(checkpoint, options, tmp_path / "x", check=checker(target))
    assert lint(tmp_path / "x", target).findings == ()
    assert check_graph(tmp_path / "x", open_folder(tmp_path / "x")) == []
    for path in (tmp_path / "x").glob("*.onnx"):
        if options.dialect in STANDARD:
            onnx.checker.check_model(str(path), full_check=True)
    limit = 2e-2 if options.precision == "float16" else 1e-3
    scale = float(np.abs(wanted).max())
    assert largest_difference(run(tmp_path / "x"), wanted) <= limit * scale


def test_standard_graphs_agree_in_the_reference_evaluator(tmp_path: Path) -> None:
    """Independent of ONNX Runtime: std17 in float16 with fixed shapes, on padded input."""
    source = write_checkpoint(tmp_path / "m")
    checkpoint = quantized(source, tmp_path / "q")
    options = choose_options(TARGETS["cann"], checkpoint, 0, 24, 8, copy=True)
    export_onnx(checkpoint, options, tmp_path / "x")
    graph = ReferenceEvaluator(str(tmp_path / "x" / PREFILL_FILE))
    feeds: dict[str, NDArray[Any]] = {
        "input_ids": np.array([[*TOKENS[:5], 0, 0, 0]], np.int32),
        "position_ids": np.arange(8, dtype=np.int32)[None],
        "attention_mask": score_mask(8, 24, 0),
    }
    cache = (1, 2, 24, 16)
    for layer in range(2):
        for part in ("key", "value"):
            feeds[f"past_key_values.{layer}.{part}"] = np.full(cache, 7, np.float16)
    logits = graph.run(["logits"], feeds)[0][0, :5]
    wanted = TorchModel.load(checkpoint).forward(TOKENS[:5]).numpy()
    assert largest_difference(logits, wanted) <= 2e-2 * float(np.abs(wanted).max())


# ---------------------------------------------------------------- fixed shapes


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixed")
    checkpoint = open_checkpoint(str(write_checkpoint(folder / "m")))
    options = choose_options(TARGETS["cann"], checkpoint, 0, 24, 8)
    export_onnx(checkpoint, options, folder / "x")
    return folder / "x"


def test_the_two_graphs_share_their_weights(fixed: Path) -> None:
    places = []
    for name in (GRAPH_FILE, PREFILL_FILE):
        graph = onnx.load(str(fixed / name), load_external_data=False).graph
        places.append(
            {
                t.name: sorted((e.key, e.value) for e in t.external_data)
                for t in graph.initializer
                if t.external_data
            }
        )
    assert places[0] == places[1] != {}


def test_a_full_cache_is_an_error(fixed: Path) -> None:
    session = FixedOnnxSession(fixed, threads=1)
    assert session.context_length == 24
    session.prefill(TOKENS[:24])
    with pytest.raises(InputError, match="25 tokens do not fit the cache of 24"):
        session.decode(1)


def test_what_was_in_the_cache_before_does_not_matter(fixed: Path) -> None:
    session = FixedOnnxSession(fixed, threads=1)
    fresh = session.score(TOKENS[:13])
    session.score(TOKENS[20:40])
    assert np.array_equal(session.score(TOKENS[:13]), fresh)


def test_the_mask_shows_what_is_held_and_the_past_of_each_query() -> None:
    seen = score_mask(3, 5, 2)[0, 0] == 0
    assert seen.astype(int).tolist() == [
        [1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"context_length": 25},
        {"graphs": []},
        {"graphs": [{"filename": "../model.onnx", "sequence_length": 1}]},
        {"graphs": [{"filename": "model.onnx", "sequence_length": 2}]},
        {"graphs": [{"filename": "missing.onnx", "sequence_length": 1}]},
        {"graphs": "model.onnx"},
    ],
    ids=str,
)
def test_a_damaged_configuration_is_refused(
    fixed: Path, damage: dict[str, Any], tmp_path: Path
) -> None:
    for path in fixed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / FIXED_SHAPES).read_text()) | damage
    (tmp_path / FIXED_SHAPES).write_text(json.dumps(content))
    with pytest.raises(InputError):
        FixedOnnxSession(tmp_path, threads=1)


# ---------------------------------------------------------------- refusals


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "m", torch_dtype="float32", rms_norm_eps=1e-5)
    checkpoint = open_checkpoint(str(source))
    path = tmp_path / "m" / "model.safetensors"
    name = "model.layers.0.mlp.up_proj.weight"
    offset = checkpoint.source.infos[name].offset  # type: ignore[attr-defined]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(1e5).tobytes())
    options = choose_options(TARGETS["cann"], checkpoint)
    with pytest.raises(UnsupportedError, match=f"{name}: a weight does not fit float16"):
        export_onnx(checkpoint, options, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_model_that_is_too_large_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    cann = TARGETS["cann"]
    assert cann.rules is not None
    limit = 2 * checkpoint.parameter_count
    small = dataclasses.replace(cann, rules=dataclasses.replace(cann.rules, graph_bytes=limit))
    with pytest.raises(UnsupportedError, match=f"less than {limit}"):
        choose_options(small, checkpoint)


def test_a_graph_that_breaks_the_rules_is_not_left_behind(tmp_path: Path) -> None:
    """Rules of another target than the one that the options were chosen for."""
    checkpoint = open_checkpoint(str(write_checkpoint(tmp_path / "m")))
    with pytest.raises(UnsupportedError, match="target cann would not run this"):
        export_onnx(checkpoint, ExportOptions(), tmp_path / "x", check=checker(TARGETS["cann"]))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--target", "abacus"], 2, "'abacus' is not known"),
        (["--target", "groq"], 4, "API only"),
        (["--target", "torch:npu", "--format", "onnx"], 4, "does not read format 'onnx'"),
        (["--target", "qnn", "--dialect", "std24"], 2, "has one of its own"),
        (["--target", "cuda", "--prefill-length", "8"], 4, "has open shapes"),
        (["--format", "tflite"], 4, "is not supported yet"),
    ],
    ids=str,
)
def test_export_says_why_not(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_checkpoint(tmp_path / "m")
    output = ["-o", str(tmp_path / "x")]
    assert_refused(
        call_main(monkeypatch, capsys, "export", source, *arguments, *output), code, words
    )
    assert not (tmp_path / "x").exists()


def test_export_for_a_target_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(write_checkpoint(tmp_path / "m"), tmp_path / "q")
    arguments = ["--target", "qnn", "--context-length", "40", "--json", "-o", str(tmp_path / "x")]
    report = call_main(monkeypatch, capsys, "export", tmp_path / "q", *arguments).json
    assert report["target"] == "qnn"
    assert {GRAPH_FILE, PREFILL_FILE, FIXED_SHAPES} <= set(report["files"])
    checked = call_main(monkeypatch, capsys, "lint", tmp_path / "x", "--target", "qnn", "--json")
    assert checked.code == 0
    assert checked.json["passed"]


def test_a_torch_target_gets_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized(write_checkpoint(tmp_path / "m"), tmp_path / "q")
    arguments = ["--target", "torch:npu", "--json", "-o", str(tmp_path / "x")]
    assert call_main(monkeypatch, capsys, "export", tmp_path / "q", *arguments).code == 0
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
