"""The commands as people and scripts call them: help, pipeline, JSON keys, exit codes."""

from __future__ import annotations

import inspect
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import Outcome, assert_refused, call_main, dsconv, fresh_dsconv
from places import ROOT
from small_models import TEMPLATE, small_config, write_checkpoint, write_json

import dsconv as package
from dsconv import cli

COMMANDS = ("plan", "quantize", "export", "run", "verify", "inspect", "demo")
HEAVY = ("torch", "onnxruntime", "onnx_ir", "onnx", "transformers", "numpy", "tokenizers", "rich")
QUANTIZE = {
    "output",
    "parameters",
    "bits_per_weight",
    "size_bytes",
    "seconds",
    "source_bytes_per_second",
    "doubtful_matrices",
    "calibration_kl",
    "peak_rss_bytes",
}
EXPORT = {
    "output",
    "target",
    "bytes_written",
    "bytes_linked",
    "files",
    "seconds",
    "peak_rss_bytes",
}
RUN = {
    "stopped_by",
    "not_applied",
    "text",
    "thinking",
    "tokens",
    "stop_reason",
    "prompt_tokens",
    "generated_tokens",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "sampling",
    "speculation",
    "placement",
    "runtime",
    "provider",
}
VERIFY = {
    "passed",
    "grade",
    "cure",
    "tokens",
    "kl",
    "top1_agreement",
    "perplexity",
    "noise_floor",
    "runtime",
    "provider",
    "nodes_on_provider",
    "thresholds",
    "failures",
    "probability_shift",
    "checks",
    "findings",
    "buckets",
    "worst_tokens",
    "layers",
    "free_running",
    "tasks",
    "speeds",
    "report",
    "provenance",
    "blocks",
}
INSPECT = {
    "kind",
    "family",
    "parameters",
    "bits_per_weight",
    "size_bytes",
    "tensors",
    "notes",
    "architecture",
    "tokenizer",
    "sampling",
    "provenance",
    "problem",
}
SHORT = ("--window", 64, "--max-tokens", 128, "--threads", 2)


BRIEF = ("--calibration-tokens", 1024)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture(scope="module")
def quantized(model: Path) -> tuple[Path, Outcome]:
    output = model.parent / "int4"
    return output, dsconv("quantize", model, "-o", output, "--json")


@pytest.fixture(scope="module")
def exported(quantized: tuple[Path, Outcome]) -> tuple[Path, Outcome]:
    output = quantized[0].parent / "onnx"
    return output, dsconv("export", quantized[0], "-o", output, "--accuracy-level", 0, "--json")


def good(outcome: Outcome) -> dict[str, Any]:
    """The JSON of a command that succeeded in silence."""
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    return outcome.json


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_command_has_help_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, flag: str
) -> None:
    outcome = call_main(monkeypatch, capsys, command, flag)
    assert outcome.code == 0
    assert outcome.err == ""
    assert f"Example: dsconv {command}" in outcome.out


def test_the_help_names_every_command() -> None:
    outcome = dsconv("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in outcome.out


def test_every_command_is_a_file_of_its_name() -> None:
    files = {path.stem for path in (ROOT / "runtime" / "commands").glob("*.py")}
    others = {"__init__", "options"}
    found = [command.callback for command in cli.app.registered_commands]
    names = [callback.__name__ for callback in found if callback is not None]
    modules = [callback.__module__ for callback in found if callback is not None]
    assert modules == [f"dsconv.runtime.commands.{name}" for name in names]
    assert set(names) == files - others


def test_options_are_compiled_with_their_file() -> None:
    """As strings they would be compiled at every start, which takes as long as all imports."""
    callbacks = [command.callback for command in cli.app.registered_commands]
    for callback in callbacks:
        assert callback is not None
        options = inspect.signature(callback).parameters.values()
        assert not [option.name for option in options if isinstance(option.annotation, str)]


def test_help_is_quick() -> None:
    """By the processor's time: the clock would blame it for a busy machine."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert fresh_dsconv("--help").code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys; from dsconv import cli; sys.argv = ['dsconv', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        f"finally: print([n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "[]"


def test_version() -> None:
    outcome = dsconv("--version")
    assert (outcome.code, outcome.out) == (0, f"dsconv {package.__version__}\n")


def test_without_a_command_the_help_is_shown_as_a_usage_error() -> None:
    outcome = dsconv()
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Usage: dsconv" in outcome.err


# ---------------------------------------------------------------- the pipeline


def test_quantize(model: Path, quantized: tuple[Path, Outcome]) -> None:
    output, outcome = quantized
    report = good(outcome)
    assert set(report) == QUANTIZE
    assert report["parameters"] == 95_808
    assert 4 < report["bits_per_weight"] < 16
    assert report["size_bytes"] < (model / "model.safetensors").stat().st_size
    assert report["seconds"] > 0
    assert report["peak_rss_bytes"] > 10_000_000
    assert (output / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(("options", "said"), [((), True), (("--embedding-bits", 8), False)])
def test_quantize_says_what_the_embedding_takes(
    model: Path, tmp_path: Path, options: tuple[object, ...], said: bool
) -> None:
    outcome = dsconv("quantize", model, "--method", "rtn", *options, "-o", tmp_path / "q")
    assert outcome.code == 0
    assert ("embedding, which stays in float" in outcome.err) is said


def test_export(quantized: tuple[Path, Outcome], exported: tuple[Path, Outcome]) -> None:
    output, outcome = exported
    report = good(outcome)
    assert set(report) == EXPORT
    assert sorted(path.name for path in output.iterdir()) == report["files"]
    weights = "model.safetensors"
    assert (output / weights).stat().st_ino == (quantized[0] / weights).stat().st_ino
    assert report["bytes_written"] < report["bytes_linked"]


def test_run_gives_the_same_tokens_in_both_runtimes(
    quantized: tuple[Path, Outcome], exported: tuple[Path, Outcome]
) -> None:
    options = ("-p", "hello", "--max-tokens", 24, "--temperature", 0, "--json")
    onnx = good(dsconv("run", exported[0], *options))
    torch = good(dsconv("run", quantized[0], *options))
    assert set(onnx) == set(torch) == RUN
    assert (onnx["runtime"], torch["runtime"]) == ("onnxruntime", "torch")
    assert onnx["tokens"] == torch["tokens"]
    assert onnx["generated_tokens"] == len(onnx["tokens"]) > 1


def test_run_on_the_unquantized_checkpoint(model: Path, tmp_path: Path) -> None:
    good(dsconv("export", model, "-o", tmp_path / "x", "--accuracy-level", 0, "--json"))
    options = ("-p", "hello", "--max-tokens", 24, "--temperature", 0, "--json")
    onnx, torch = (good(dsconv("run", path, *options)) for path in (tmp_path / "x", model))
    assert onnx["tokens"] == torch["tokens"]
    assert onnx["text"] == torch["text"]


def test_run_streams_the_answer_to_stdout_and_the_rest_to_stderr(
    exported: tuple[Path, Outcome],
) -> None:
    as_json = good(dsconv("run", exported[0], "-p", "hello", "--max-tokens", 8, "--json"))
    outcome = dsconv("run", exported[0], "-p", "hello", "--max-tokens", 8)
    assert outcome.code == 0
    assert outcome.out.strip() == as_json["text"]
    assert "8 tokens (length)" in outcome.err


def test_run_uses_the_chat_template_unless_raw(exported: tuple[Path, Outcome]) -> None:
    assert "assistant" in TEMPLATE
    options = ("-p", "hello", "--max-tokens", 1, "--json")
    chat = good(dsconv("run", exported[0], *options))
    raw = good(dsconv("run", exported[0], *options, "--raw"))
    assert raw["prompt_tokens"] == len("hello") + 1
    assert chat["prompt_tokens"] == len("user: hello\nassistant:") + 1


def test_run_in_a_terminal_without_unicode(exported: tuple[Path, Outcome]) -> None:
    options = ("run", exported[0], "-p", "hello", "--max-tokens", 24)
    plain = good(dsconv(*options, "--json"))
    assert not plain["text"].isascii()
    environment = {"PYTHONIOENCODING": "ascii"}
    assert good(dsconv(*options, "--json", environment=environment))["text"] == plain["text"]
    assert dsconv(*options, environment=environment).code == 0


def test_verify(model: Path, exported: tuple[Path, Outcome]) -> None:
    report = good(dsconv("verify", exported[0], "--reference", model, *SHORT, "--json"))
    assert set(report) == VERIFY
    assert set(report["kl"]) == {"mean", "stderr", "median", "p90", "p99", "p999", "max"}
    assert set(report["perplexity"]) == {"reference", "artifact", "ratio"}
    assert report["noise_floor"]["what"] == "bfloat16 against float32"
    assert report["thresholds"] == {"max_kl": None, "min_top1": None}
    assert report["passed"] is True
    assert report["failures"] == []
    assert {check["source"] for check in report["checks"]} == {"default"}
    assert report["tokens"] == 128
    assert report["provider"] == "cpu"
    assert report["nodes_on_provider"] == 1.0
    assert 0 < report["noise_floor"]["kl_mean"] < report["kl"]["mean"]


@pytest.mark.parametrize(
    ("threshold", "key", "value", "words"),
    [
        ("--max-kl", "max_kl", 0, "mean KL"),
        ("--min-top1", "min_top1", 1, "top-1 agreement"),
    ],
)
def test_a_failed_verdict_is_exit_code_1_with_its_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    exported: tuple[Path, Outcome],
    threshold: str,
    key: str,
    value: int,
    words: str,
) -> None:
    arguments = ("verify", exported[0], "--reference", model, *SHORT, threshold, value)
    outcome = call_main(monkeypatch, capsys, *arguments, "--json")
    assert outcome.code == 1
    assert outcome.json["passed"] is False
    assert outcome.json["thresholds"][key] == value
    assert len(outcome.json["failures"]) == 1
    error, hint = outcome.err.splitlines()
    assert error.startswith(f"error: {words}")
    assert hint.startswith("hint: ")
    table = call_main(monkeypatch, capsys, *arguments)
    assert table.code == 1
    assert table.out.rstrip().endswith("verdict: failed")


def test_verify_a_checkpoint_against_itself_reads_a_text_of_the_user(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "text.txt").write_text("some text", encoding="utf-8")
    options = ("--text", tmp_path / "text.txt", "--max-kl", 0, "--min-top1", 1, "--json")
    outcome = call_main(monkeypatch, capsys, "verify", model, "--reference", model, *options)
    assert outcome.code == 0, outcome.err
    assert outcome.json["tokens"] == len("some text")


@pytest.mark.parametrize("which", ["model", "int4", "onnx"])
def test_inspect(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exported: tuple[Path, Outcome],
    which: str,
) -> None:
    path = exported[0].parent / which
    report = good(call_main(monkeypatch, capsys, "inspect", path, "--json"))
    assert set(report) == INSPECT
    kinds = {"model": "checkpoint", "int4": "quantized-checkpoint", "onnx": "onnx"}
    assert report["kind"] == kinds[which]
    assert report["family"] == "qwen2"
    assert report["parameters"] == 95_808
    assert all(set(row) == {"name", "shape", "storage", "size_bytes"} for row in report["tensors"])
    assert report["size_bytes"] == sum(row["size_bytes"] for row in report["tensors"])
    assert report["bits_per_weight"] == pytest.approx(8 * report["size_bytes"] / 95_808)
    stored = {row["name"]: row["storage"] for row in report["tensors"]}
    wanted = "BF16" if which == "model" else "int4 g32 symmetric"
    assert stored["model.layers.0.mlp.up_proj.weight"] == wanted
    table = call_main(monkeypatch, capsys, "inspect", path)
    assert table.code == 0
    assert "95,808 parameters" in table.out


def test_inspect_a_lone_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_json(tmp_path / "config.json", small_config())
    report = good(call_main(monkeypatch, capsys, "inspect", tmp_path, "--json"))
    assert (report["kind"], report["parameters"]) == ("config", 95_808)
    assert report["bits_per_weight"] == 16


def test_the_manifest_tells_where_the_artifact_came_from(quantized: tuple[Path, Outcome]) -> None:
    manifest = json.loads((quantized[0] / "dsconv.json").read_text("utf-8"))
    assert manifest["source"]["name"] == "model"
    beside = {"config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert set(manifest["source"]["sha256"]) == {"model.safetensors", *beside}
    present = {path.name for path in quantized[0].iterdir()} - {"dsconv.json"}
    assert set(manifest["sha256"]) == present


def test_the_same_command_writes_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for name, threads in (("one", 1), ("two", 2)):
        options = ["-o", tmp_path / name, *BRIEF, "--threads", threads, "--json"]
        good(dsconv("quantize", model, *options))
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_people_get_one_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
) -> None:
    outcome = call_main(monkeypatch, capsys, "quantize", model, *BRIEF, "-o", tmp_path / "q")
    assert (outcome.code, outcome.out) == (0, "")
    assert len(outcome.err.splitlines()) == 1
    assert "95.8k parameters" in outcome.err


def test_transformers_is_never_imported(tmp_path: Path, model: Path) -> None:
    """A module of that name which refuses to be imported stands in the way."""
    (tmp_path / "poison").mkdir()
    (tmp_path / "poison" / "transformers.py").write_text("raise RuntimeError('imported')\n")
    environment = {"PYTHONPATH": str(tmp_path / "poison")}

    def step(*arguments: object) -> Mapping[str, Any]:
        return good(dsconv(*arguments, "--json", environment=environment))

    step("quantize", model, *BRIEF, "-o", tmp_path / "q")
    step("export", tmp_path / "q", "-o", tmp_path / "x")
    step("run", tmp_path / "x", "-p", "a", "--max-tokens", 2)
    step("verify", tmp_path / "x", "--reference", model, *SHORT)
    step("inspect", tmp_path / "x")


# ---------------------------------------------------------------- usage errors


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["frobnicate"], "frobnicate"),
        (["--nope"], "--nope"),
        (["quantize", "MODEL", "-o", "OUT", "--nope"], "--nope"),
        (["quantize", "MODEL"], "--output"),
        (["quantize", "-o", "OUT"], "argument 'model'"),
        (["quantize", "MODEL", "-o"], "-o"),
        (["quantize", "MODEL", "-o", "OUT", "--bits", "x"], "--bits"),
        (["quantize", "MODEL", "-o", "OUT", "--bits", "5"], "bits: 5"),
        (["quantize", "MODEL", "-o", "OUT", "--group-size", "33"], "group size: 33"),
        (["quantize", "MODEL", "-o", "OUT", "--head-bits", "2"], "head bits: 2"),
        (["quantize", "MODEL", "-o", "OUT", "--embedding-bits", "3"], "embedding bits: 3"),
        (["quantize", "MODEL", "-o", "OUT", "--method", "magic"], "'magic'"),
        (["quantize", "MODEL", "-o", "OUT", "--threads", "-1"], "--threads"),
        (["export", "MODEL", "-o", "OUT", "--dialect", "latin"], "'latin'"),
        (["export", "MODEL", "-o", "OUT", "--accuracy-level", "7"], "7"),
        (["export", "MODEL", "-o", "OUT", "--context-length", "0"], "0"),
        (["run", "MODEL"], "--prompt"),
        (["run", "MODEL", "-p", ""], "the prompt is empty"),
        (["run", "MODEL", "-p", " \n"], "the prompt is empty"),
        (["run", "MODEL", "-p", "a", "--max-tokens", "0"], "max tokens"),
        (["run", "MODEL", "-p", "a", "--temperature", "-1"], "temperature"),
        (["run", "MODEL", "-p", "a", "--temperature", "nan"], "temperature"),
        (["run", "MODEL", "-p", "a", "--top-p", "2"], "top_p"),
        (["run", "MODEL", "-p", "a", "--top-k", "-1"], "top_k"),
        (["run", "MODEL", "-p", "a", "--seed", "-1"], "seed"),
        (["run", "MODEL", "-p", "a", "--dtype", "int3"], "'int3'"),
        (["run", "MODEL", "-p", "a", "--provider", "abacus"], "'abacus'"),
        (["verify", "MODEL"], "--reference"),
        (["verify", "MODEL", "--reference", "MODEL", "--max-kl", "-1"], "max kl"),
        (["verify", "MODEL", "--reference", "MODEL", "--min-top1", "2"], "min top1"),
        (["verify", "MODEL", "--reference", "MODEL", "--window", "1"], "window"),
        (["inspect"], "argument 'model'"),
        (["inspect", "MODEL", "extra"], "extra"),
    ],
)
def test_usage_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    arguments: list[str],
    word: str,
) -> None:
    places = {"MODEL": str(model), "OUT": str(tmp_path / "out")}
    given = [places.get(argument, argument) for argument in arguments]
    assert_refused(call_main(monkeypatch, capsys, *given), 2, word)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--format", "tflite"]])
def test_what_is_not_supported_yet(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: Path,
    tmp_path: Path,
    option: list[str],
) -> None:
    outcome = call_main(monkeypatch, capsys, "export", model, "-o", tmp_path / "x", *option)
    assert_refused(outcome, 4, option[1], "is not supported yet")
