"""Whatever goes wrong: the promised exit code, two lines, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from command_line import Outcome, assert_refused, call_main, dsconv
from processes.small_disk import needs_unshare, on_small_disk
from safetensors.numpy import load_file, save_file
from small_models import write_checkpoint, write_json

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint

Damage = Callable[[Path], None]
Call = Callable[..., Outcome]
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SECOND = "model-00002-of-000002.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    return lambda *arguments: call_main(monkeypatch, capsys, *arguments)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in" / "model")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    source = open_checkpoint(str(write_checkpoint(folder / "model")))
    quantize_checkpoint(source, QuantizeOptions(), folder / "int4")
    export_onnx(open_checkpoint(str(folder / "int4")), ExportOptions(), folder / "onnx")
    return folder / "onnx"


@pytest.fixture
def artifact(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(exported, tmp_path / "artifact")


def overwrite_bytes(name: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return damage


def change_json(name: str, *path: str, value: object) -> Damage:
    """Set one key; with the value None, remove it."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        if value is None:
            del inner[path[-1]]
        write_json(folder / name, content)

    return damage


def change_tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:  # type: ignore[type-arg]
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def only_pickles(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def text(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content) and None


def with_nan(tensors: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    tensors[UP] = tensors[UP].astype(np.float32)
    tensors[UP][3, 5], tensors[UP][0, 0], tensors[UP][95, 63] = np.nan, np.inf, -np.inf


def too_large(tensors: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    tensors[UP] = np.full_like(tensors[UP], 3e38, ml_dtypes.bfloat16)


# What is done to the checkpoint, how many shards it has, the exit code, words of the message.
DAMAGES: dict[str, tuple[Damage, int, int, list[str]]] = {
    "header cut": (overwrite_bytes(WEIGHTS, lambda b: b[:100]), 1, 3, [WEIGHTS, "header"]),
    "data cut": (overwrite_bytes(WEIGHTS, lambda b: b[:-10]), 1, 3, [WEIGHTS, "ends at byte"]),
    "empty file": (overwrite_bytes(WEIGHTS, lambda b: b""), 1, 3, [WEIGHTS, "empty (0 bytes)"]),
    "header length lies": (
        overwrite_bytes(WEIGHTS, lambda b: b"\xff" * 8 + b[8:]),
        1,
        3,
        [WEIGHTS, str(2**64 - 1)],
    ),
    "header too short": (
        overwrite_bytes(WEIGHTS, lambda b: (50).to_bytes(8, "little") + b[8:]),
        1,
        3,
        [WEIGHTS, "header: not valid JSON"],
    ),
    "bytes appended": (overwrite_bytes(WEIGHTS, lambda b: b + b"x"), 1, 3, ["1 bytes after"]),
    "shard missing": (remove(SECOND), 2, 3, [SECOND, "missing"]),
    "shard cut": (overwrite_bytes(SECOND, lambda b: b[:-1]), 2, 3, [SECOND]),
    "index names a tensor too many": (
        change_json(INDEX, "weight_map", "ghost.weight", value=SECOND),
        2,
        3,
        ["'ghost.weight' is not in"],
    ),
    "index without a tensor": (
        change_json(INDEX, "weight_map", UP, value=None),
        2,
        3,
        [UP, "missing"],
    ),
    "shard name leads out": (
        change_json(INDEX, "weight_map", UP, value="../model.safetensors"),
        2,
        3,
        ["../model.safetensors", "not a plain"],
    ),
    "absolute shard name": (
        change_json(INDEX, "weight_map", UP, value="/model.safetensors"),
        2,
        3,
        ["not a plain"],
    ),
    "shard name too long": (
        change_json(INDEX, "weight_map", UP, value="x" * 5000 + ".safetensors"),
        2,
        3,
        [".safetensors"],
    ),
    "shard name is a number": (change_json(INDEX, "weight_map", UP, value=3), 2, 3, ["'3'"]),
    "weight map is a list": (change_json(INDEX, "weight_map", value=[1]), 2, 3, ["weight_map"]),
    "index is no JSON": (text(INDEX, "{"), 2, 3, [INDEX, "not valid JSON"]),
    "no config": (remove(CONFIG), 1, 3, [CONFIG, "no config.json"]),
    "config is no JSON": (text(CONFIG, "not json"), 1, 3, [CONFIG, "not valid JSON"]),
    "config is a list": (text(CONFIG, "[]"), 1, 3, ["the top level is list"]),
    "config has a key twice": (text(CONFIG, '{"a": 1, "a": 2}'), 1, 3, ["'a' appears twice"]),
    "config has NaN": (text(CONFIG, '{"a": NaN}'), 1, 3, ["NaN"]),
    "config nested deeply": (text(CONFIG, "[" * 200_000), 1, 3, ["nested too deeply"]),
    "a string for a number": (
        change_json(CONFIG, "hidden_size", value="64"),
        1,
        3,
        ["hidden_size: '64' is not an integer"],
    ),
    "a bool for a number": (change_json(CONFIG, "hidden_size", value=True), 1, 3, ["hidden_size"]),
    "a number out of range": (
        change_json(CONFIG, "num_hidden_layers", value=10**9),
        1,
        3,
        ["num_hidden_layers"],
    ),
    "a number without end": (
        change_json(CONFIG, "rms_norm_eps", value=10**400),
        1,
        3,
        ["rms_norm_eps"],
    ),
    "a key is missing": (change_json(CONFIG, "vocab_size", value=None), 1, 3, ["vocab_size"]),
    "architectures is text": (
        change_json(CONFIG, "architectures", value="Qwen2ForCausalLM"),
        1,
        3,
        ["architectures"],
    ),
    "unknown architecture": (
        change_json(CONFIG, "architectures", value=["MambaForCausalLM"]),
        1,
        4,
        ["MambaForCausalLM", "Qwen2ForCausalLM"],
    ),
    "architecture is a list": (
        change_json(CONFIG, "architectures", value=[["x"]]),
        1,
        4,
        ["architecture ['x'] is not supported"],
    ),
    "tensor missing": (change_tensors(lambda t: t.pop(UP)), 1, 3, [UP, "is missing"]),
    "tensor too many": (
        change_tensors(lambda t: t.update({"model.extra.weight": np.ones(3, np.float32)})),
        1,
        3,
        ["model.extra.weight", "is not part of Qwen2ForCausalLM"],
    ),
    "wrong shape": (
        change_tensors(lambda t: t.update({UP: t[UP].T.copy()})),
        1,
        3,
        [UP, "[64, 96]", "[96, 64]"],
    ),
    "pickles only": (only_pickles, 1, 4, ["pickle", "safetensors"]),
    "no weights": (remove(WEIGHTS), 1, 3, ["no .safetensors"]),
    "NaN": (change_tensors(with_nan), 1, 3, [UP, "3 of 6144 values are NaN or infinite"]),
    "too large for float16 scales": (change_tensors(too_large), 1, 3, [UP]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(call: Call, tmp_path: Path, name: str) -> None:
    damage, shards, code, words = DAMAGES[name]
    folder = write_checkpoint(tmp_path / "in" / "model", shards=shards)
    damage(folder)
    (tmp_path / "out").mkdir()
    rounded = call("quantize", folder, "--method", "search", "-o", tmp_path / "out" / "q")
    assert_refused(rounded, code, *words)
    assert list((tmp_path / "out").iterdir()) == []


def test_calibrating_names_what_is_not_finite(call: Call, tmp_path: Path) -> None:
    damage, shards, code, _ = DAMAGES["NaN"]
    folder = write_checkpoint(tmp_path / "in" / "model", shards=shards)
    damage(folder)
    assert_refused(call("quantize", folder, "-o", tmp_path / "q"), code, "tensor 'model.", "NaN")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("command", ["export", "run", "inspect"])
@pytest.mark.parametrize("name", ["data cut", "unknown architecture", "pickles only"])
def test_every_command_refuses_it(call: Call, model: Path, name: str, command: str) -> None:
    damage, _, code, words = DAMAGES[name]
    damage(model)
    options = {"export": ["-o", model.parent / "x"], "run": ["-p", "a"], "inspect": []}
    assert_refused(call(command, model, *options[command]), code, *words)
    assert list(model.parent.iterdir()) == [model]


@pytest.mark.parametrize("command", ["quantize", "export", "run", "verify", "inspect"])
def test_an_input_that_does_not_exist(call: Call, tmp_path: Path, command: str) -> None:
    missing = tmp_path / "missing"
    options: dict[str, list[object]] = {
        "quantize": ["-o", tmp_path / "out"],
        "export": ["-o", tmp_path / "out"],
        "run": ["-p", "a"],
        "verify": ["--reference", missing],
        "inspect": [],
    }
    assert_refused(call(command, missing, *options[command]), 3, str(missing))
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_checkpoint_is_not_quantized_again(call: Call, exported: Path) -> None:
    outcome = call("quantize", exported.parent / "int4", "-o", exported.parent / "again")
    assert_refused(outcome, 4, "already quantized")


# ---------------------------------------------------------------- outputs


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_an_output_is_replaced_only_when_asked(
    call: Call, model: Path, tmp_path: Path, command: str
) -> None:
    output = tmp_path / "out"
    options = ["--method", "rtn"] if command == "quantize" else []
    assert call(command, model, *options, "-o", output).code == 0
    (output / "marker").write_text("old")
    assert_refused(call(command, model, "-o", output), 6, str(output), "--overwrite")
    assert (output / "marker").exists()
    assert call(command, model, *options, "-o", output, "--overwrite").code == 0
    assert not (output / "marker").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("command", ["quantize", "export"])
def test_somebody_elses_folder_is_never_replaced(
    call: Call, model: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("precious")
    for output in (tmp_path / "home", model, model.parent):
        outcome = call(command, model, "-o", output, "--overwrite")
        assert_refused(outcome, 6, "dsconv did not write it")
    assert (tmp_path / "home" / "thesis.txt").exists()
    assert (model / WEIGHTS).exists()


def test_an_output_that_holds_the_input_is_refused(call: Call, exported: Path) -> None:
    quantized = exported.parent / "int4"
    outcome = call("export", quantized, "-o", quantized, "--overwrite")
    assert_refused(outcome, 2, "holds the input")
    assert (quantized / WEIGHTS).exists()


def test_an_output_below_a_file(call: Call, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert_refused(call("quantize", model, "-o", tmp_path / "file" / "out"), 6, "file")
    assert_refused(call("quantize", model, "-o", tmp_path / "file"), 6, "already exists")
    assert (tmp_path / "file").read_text() == "x"


def test_an_output_with_too_long_a_name(call: Call, model: Path, tmp_path: Path) -> None:
    outcome = call("quantize", model, "-o", tmp_path / ("x" * 300))
    assert_refused(outcome, 6, "name")


SEARCH = "$PYTHON -m dsconv quantize --method search"


@needs_unshare
@pytest.mark.parametrize("size", ["4k", "40k", "80k", "96k"])
@pytest.mark.parametrize("command", ["quantize --method search", "export --copy"])
def test_a_full_disk(model: Path, tmp_path: Path, command: str, size: str) -> None:
    """What can be gone on with stays, everything else is removed; what surely cannot fit is refused
    before anything is written."""
    script = f'$PYTHON -m dsconv {command} "{model}" -o "$DISK/out"; code=$?; ls -A "$DISK"; exit '
    outcome = on_small_disk(tmp_path, size, script + "$code")
    begun = command.startswith("quantize") and size in ("80k", "96k")
    assert outcome.out == ("out.partial\n" if begun else "")
    cause = "No space left" if begun else "are free"
    assert_refused(Outcome(outcome.code, "", outcome.err), 6, cause, "-o")


@needs_unshare
def test_a_full_disk_that_is_enlarged(model: Path, tmp_path: Path) -> None:
    script = (
        f'{SEARCH} "{model}" -o "$DISK/out"; code=$?; '
        '[ $code = 6 ] && mount -o remount,size=400k "$DISK" && '
        f'{SEARCH} "{model}" -o "$DISK/out" && ls -A "$DISK"'
    )
    outcome = on_small_disk(tmp_path, "80k", script)
    assert (outcome.code, outcome.out) == (0, "out\n")


@needs_unshare
def test_a_disk_that_is_just_large_enough(model: Path, tmp_path: Path) -> None:
    script = f'{SEARCH} "{model}" -o "$DISK/out" --json && ls -A "$DISK" >&2'
    outcome = on_small_disk(tmp_path, "300k", script)
    assert (outcome.code, outcome.err) == (0, "out\n")


@needs_unshare
def test_a_read_only_disk(model: Path, tmp_path: Path) -> None:
    script = (
        'mount -o remount,ro "$DISK" && '
        f'{SEARCH} "{model}" -o "$DISK/out"; code=$?; ls -A "$DISK"; exit $code'
    )
    assert_refused(on_small_disk(tmp_path, "300k", script), 6, "Read-only", "read-only")


@needs_unshare
def test_a_read_only_input_is_no_obstacle(model: Path, tmp_path: Path) -> None:
    script = (
        f'cp -r "{model}" "$DISK/m" && mount -o remount,ro "$DISK" && '
        f'{SEARCH} "$DISK/m" -o "{tmp_path}/out" --json'
    )
    outcome = on_small_disk(tmp_path, "1m", script)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "out" / WEIGHTS).exists()


# ---------------------------------------------------------------- running and verifying


def test_a_provider_that_is_not_installed(call: Call, artifact: Path) -> None:
    outcome = call("run", artifact, "-p", "a", "--provider", "qnn")
    assert_refused(outcome, 7, "'qnn'", "onnxruntime-qnn")


def test_a_provider_for_a_checkpoint(call: Call, model: Path) -> None:
    assert_refused(call("run", model, "-p", "a", "--provider", "cuda"), 4, "export it first")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (overwrite_bytes("model.onnx", lambda b: b[: len(b) // 2]), ["model.onnx"]),
        (overwrite_bytes("model.onnx", lambda b: b"garbage" * 100), ["model.onnx"]),
        (overwrite_bytes("model.onnx", lambda b: b""), ["model.onnx"]),
        (remove("model.onnx"), ["model.onnx", "missing"]),
        (remove(WEIGHTS), [WEIGHTS, "beside the graph"]),
        (overwrite_bytes(WEIGHTS, lambda b: b[:500]), ["model.onnx"]),
        (text("genai_config.json", "{}"), ["genai_config.json"]),
        (text("genai_config.json", "["), ["genai_config.json"]),
        (text("dsconv.json", "["), ["dsconv.json"]),
        (remove(CONFIG), [CONFIG]),
        (remove("tokenizer.json"), ["tokenizer.json", "missing"]),
        (text("tokenizer.json", "{}"), ["tokenizer.json"]),
        (text("tokenizer_config.json", '{"eos_token": "<end>"}'), ["'<end>' is not in"]),
        (text("generation_config.json", '{"do_sample": 1}'), ["generation_config.json"]),
    ],
)
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_damaged_artifact(
    call: Call, artifact: Path, damage: Damage, words: list[str], option: list[str]
) -> None:
    damage(artifact)
    assert_refused(call("run", artifact, "-p", "a", "--max-tokens", 2, *option), 3, *words)


def test_a_prompt_longer_than_the_context(call: Call, artifact: Path) -> None:
    assert_refused(call("run", artifact, "-p", "a" * 3000), 3, "the context 2048")


def test_a_system_prompt_without_a_template(call: Call, artifact: Path) -> None:
    outcome = call("run", artifact, "-p", "a", "--raw", "--system", "b")
    assert_refused(outcome, 2, "--system")


def test_verify_with_another_vocabulary(call: Call, artifact: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", vocab_size=272)
    outcome = call("verify", artifact, "--reference", other, "--json")
    assert_refused(outcome, 3, "264 logits per token, the reference 272")


def test_verify_without_a_tokenizer(call: Call, artifact: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other")
    (other / "tokenizer.json").unlink()
    assert_refused(call("verify", artifact, "--reference", other), 3, "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"], ids=["empty", "not UTF-8"])
def test_verify_with_a_useless_text(call: Call, artifact: Path, content: bytes) -> None:
    path = artifact / "text.txt"
    path.write_bytes(content)
    assert_refused(call("verify", artifact, "--reference", artifact, "--text", path), 3, "text.txt")


# ---------------------------------------------------------------- network, signals, bugs


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{unused.getsockname()[1]}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "NO_PROXY": "*",
        }
        start = time.perf_counter()
        outcome = dsconv("quantize", "org/model", "-o", tmp_path / "out", environment=environment)
    assert_refused(outcome, 5, "org/model", "HF_ENDPOINT")
    assert time.perf_counter() - start < 15
    assert not (tmp_path / "out").exists()


def test_offline_mode(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    assert_refused(dsconv("inspect", "org/model", environment=environment), 5, "org/model")


SLOW_QUANTIZE = """
import sys, time
from dsconv import cli
from dsconv.convert.quantize import run

def wait(*arguments):
    print("busy", flush=True)
    time.sleep(60)

assert callable(run.write_json)
run.write_json = wait
sys.argv = ["dsconv", *sys.argv[1:]]
cli.main()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_nothing_under_the_final_name(
    model: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    output = tmp_path / "work" / "out"
    python = [sys.executable, "-c", SLOW_QUANTIZE]
    with subprocess.Popen(
        [*python, "quantize", str(model), "--method", "search", "-o", str(output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "busy\n"
        assert output.with_name("out.partial").exists()
        child.send_signal(number)
        start = time.perf_counter()
        error = child.communicate(timeout=20)[1]
    assert child.returncode == code
    assert time.perf_counter() - start < 2
    assert "Traceback" not in error
    assert not output.exists()
    assert [path.name for path in output.parent.iterdir()] == ["out.partial"]
    assert dsconv("quantize", model, "--method", "search", "-o", output).code == 0
    assert list(output.parent.iterdir()) == [output]


def test_a_bug_of_ours_is_exit_code_70_with_the_traceback_in_a_file(
    call: Call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError("the\nunexpected")

    monkeypatch.setattr("dsconv.convert.quantize.run.round_freely", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = call("quantize", model, "--method", "search", "-o", tmp_path / "out")
    assert_refused(outcome, 70, "ZeroDivisionError: the unexpected")
    found = re.search(r"report it with (\S+)", outcome.err)
    assert found is not None
    traceback = Path(found[1]).read_text()
    assert "Traceback (most recent call last)" in traceback
    assert 'raise ZeroDivisionError("the\\nunexpected")' in traceback
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_too_little_memory_is_no_bug_of_ours(
    call: Call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dsconv.convert.quantize.run.round_freely", fail)
    outcome = call("quantize", model, "--method", "search", "-o", tmp_path / "out")
    assert_refused(outcome, 4, "not enough memory")


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_reader_that_goes_away_is_no_failure_of_ours(model: Path, option: str) -> None:
    """The reader is gone before anything is written, so that even a short output finds nobody."""
    inspect = f'"{sys.executable}" -m dsconv inspect "{model}" {option}'
    done = subprocess.run(
        ["bash", "-c", f"(sleep 0.1; {inspect}) | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (141, "")
