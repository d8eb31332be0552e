"""Predictions of `plan`, and what `quantize` refuses before any work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from command_line import assert_refused, call_main
from places import SHARED_DATA, needs_shared_data
from small_models import small_config, write_checkpoint, write_json

import dsconv.runtime.plan as planning
from dsconv.convert.config_only import open_for_planning
from dsconv.convert.quantize.cost_model import Cost, Step, Work
from dsconv.convert.quantize.options import BitsTarget, QuantizeOptions
from dsconv.errors import OutputError, UnsupportedError
from dsconv.runtime.calibration.text_windows import CalibrationOptions, CalibrationSource
from dsconv.runtime.memory import machine_memory_bytes
from dsconv.runtime.plan import Machine, full_cost, problems_of, workload_of

KEYS = {
    "parameters",
    "output_bytes",
    "scratch_bytes",
    "free_disk_bytes",
    "peak_rss_bytes",
    "memory_bytes",
    "seconds",
    "fits",
    "reasons",
    "steps",
}
GIB = 2**30
CONFIGS = (
    ("DeepSeek-R1-Distill-Qwen-1.5B", 1.78e9),
    ("DeepSeek-R1-Distill-Qwen-7B", 7.62e9),
    ("DeepSeek-R1-Distill-Llama-8B", 8.03e9),
    ("DeepSeek-R1-Distill-Qwen-14B", 14.8e9),
    ("DeepSeek-R1-Distill-Qwen-32B", 32.8e9),
    ("DeepSeek-R1-Distill-Llama-70B", 70.6e9),
)


def cost(model: Path, tokens: int = 4096, target: BitsTarget | None = None, **options: Any) -> Cost:
    """Of a run whose calibration text lies in a file."""
    text = CalibrationOptions((CalibrationSource(Path("text.txt")),), tokens)
    chosen = QuantizeOptions(**options)
    return full_cost(workload_of(open_for_planning(str(model)), chosen, text, target))


def work(found: Cost, kind: Work) -> float:
    return sum(step.work.get(kind, 0.0) for step in found.steps)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", small_config())
    return tmp_path


# ---------------------------------------------------------------- what is predicted


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--bits", 8, "--method", "rtn"],
        ["--asymmetric", "--group-size", 64, "--head-bits", 8],
        ["--embedding-bits", 8, "--head-bits", 16],
        ["--scheme", "scale-min", "--bits", 3, "--embedding-bits", 6],
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_the_output_is_predicted_to_the_byte(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[object],
    tied: bool,
) -> None:
    if tied and "--head-bits" in options and "--embedding-bits" in options:
        pytest.skip("a tied matrix has the same bits as embedding and as head")
    model = write_checkpoint(tmp_path / "model", tie_word_embeddings=tied)
    monkeypatch.setattr("dsconv.convert.quantize.work_rates.MOMENT", 0.001)
    options = [*options, *([] if "--method" in options else ["--method", "search"])]
    planned = call_main(monkeypatch, capsys, "plan", model, *options, "--json")
    assert planned.code == 0, planned.err
    output = tmp_path / "output"
    done = call_main(monkeypatch, capsys, "quantize", model, "-o", output, *options, "--json")
    assert done.code == 0, done.err
    assert planned.json["output_bytes"] == done.json["size_bytes"]
    assert planned.json["parameters"] == done.json["parameters"]
    assert planned.json["scratch_bytes"] == 0


@pytest.mark.parametrize("options", [[], ["--method", "gptq"], ["--target-bpw", 12]])
def test_keys_and_figures(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: Path,
    options: list[object],
) -> None:
    monkeypatch.setattr("dsconv.convert.quantize.work_rates.MOMENT", 0.001)
    outcome = call_main(monkeypatch, capsys, "plan", config, *options, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert set(report) == KEYS
    assert report["parameters"] == 95_808
    assert report["fits"] is True
    assert report["reasons"] == []
    assert all(set(step) == {"name", "seconds"} for step in report["steps"])
    assert report["seconds"] == pytest.approx(sum(step["seconds"] for step in report["steps"]))
    assert report["free_disk_bytes"] > report["output_bytes"] > 0
    assert report["memory_bytes"] == machine_memory_bytes()
    assert report["peak_rss_bytes"] > 50_000_000
    table = call_main(monkeypatch, capsys, "plan", config, *options)
    assert table.code == 0
    assert "peak memory" in table.out


def test_what_does_not_fit_is_said_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: Path
) -> None:
    monkeypatch.setattr("dsconv.convert.quantize.work_rates.MOMENT", 0.001)
    monkeypatch.setattr(planning, "machine_memory_bytes", lambda: 2**20)
    outcome = call_main(monkeypatch, capsys, "plan", config, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["fits"] is False
    assert "the machine has 1.05 MB" in outcome.json["reasons"][0]
    assert "does not fit" in call_main(monkeypatch, capsys, "plan", config).err


def test_weights_are_never_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model")
    monkeypatch.setattr("dsconv.convert.quantize.work_rates.MOMENT", 0.001)
    monkeypatch.setattr("dsconv.convert.checkpoint.tensors.read_rows", None)
    outcome = call_main(monkeypatch, capsys, "plan", model, "--method", "gptq", "--json")
    assert outcome.code == 0, outcome.err


def test_a_quantized_checkpoint_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = write_checkpoint(tmp_path / "model")
    output = tmp_path / "int4"
    assert (
        call_main(monkeypatch, capsys, "quantize", model, "--method", "rtn", "-o", output).code == 0
    )
    assert_refused(call_main(monkeypatch, capsys, "plan", output), 4, "already quantized")


def test_more_tokens_cost_more(config: Path) -> None:
    few, many = (cost(config, tokens, method="gptq") for tokens in (4096, 65_536))
    assert many.peak_bytes > few.peak_bytes
    assert many.scratch_bytes > few.scratch_bytes > 0
    assert many.output_bytes == few.output_bytes
    for kind in (Work.FORWARD, Work.MOMENTS):
        assert work(many, kind) == 16 * work(few, kind) > 0
    for kind in (Work.FEEDBACK, Work.FACTORIZATION):
        assert work(many, kind) == work(few, kind) > 0


def test_the_correction_of_the_prefix_costs_a_second_stream(config: Path) -> None:
    one, two = (cost(config, method="gptq", prefix_correction=share) for share in (0.0, 0.5))
    assert work(two, Work.FORWARD) == 2 * work(one, Work.FORWARD)
    assert work(two, Work.MOMENTS) > work(one, Work.MOMENTS)
    assert two.scratch_bytes == 2 * one.scratch_bytes
    assert two.peak_bytes > one.peak_bytes


def test_text_of_the_model_itself_is_a_step_of_its_own(config: Path) -> None:
    workload = workload_of(
        open_for_planning(str(config)), QuantizeOptions(method="gptq"), CalibrationOptions(), None
    )
    steps = full_cost(workload).steps
    assert steps[0].name == "calibration text"
    assert steps[0].work[Work.GENERATION] > 0
    assert "calibration text" not in [step.name for step in cost(config, method="gptq").steps]


@needs_shared_data
@pytest.mark.parametrize(("name", "parameters"), CONFIGS)
def test_models_of_any_size_are_calibrated_in_bounded_memory(name: str, parameters: float) -> None:
    folder = SHARED_DATA / "configs" / name
    workload = open_for_planning(str(folder))
    assert workload.parameter_count == pytest.approx(parameters, rel=0.01)
    freely, calibrated = cost(folder), cost(folder, 32_768, method="gptq", max_memory=2 * GIB)
    whole = cost(folder, target=BitsTarget(bits_per_weight=4.5), method="gptq")
    assert freely.peak_bytes < 200 * 2**20
    assert 2**29 < calibrated.peak_bytes < 12e9
    assert whole.peak_bytes > 2 * parameters
    assert 0.5 * parameters < freely.output_bytes < 0.85 * parameters
    assert whole.output_bytes == pytest.approx(4.5 / 8 * parameters, rel=0.01)
    assert work(calibrated, Work.FORWARD) > 2 * 2 * 0.7 * parameters * 32_768


@needs_shared_data
def test_memory_grows_with_what_may_be_used_and_not_with_the_depth() -> None:
    folder = SHARED_DATA / "configs" / "DeepSeek-R1-Distill-Qwen-7B"
    small, large = (cost(folder, 32_768, method="gptq", max_memory=size) for size in (GIB, 8 * GIB))
    assert small.peak_bytes < large.peak_bytes
    assert small.scratch_bytes > large.scratch_bytes
    checkpoint = open_for_planning(str(folder))
    config = dataclasses.replace(checkpoint.decoder.config, num_hidden_layers=2)
    shallow = dataclasses.replace(
        checkpoint,
        config={**checkpoint.config, "num_hidden_layers": 2},
        decoder=type(checkpoint.decoder)(config),
    )
    text = CalibrationOptions((CalibrationSource(Path("text.txt")),), 32_768)
    options = QuantizeOptions(method="gptq", max_memory=GIB)
    found = full_cost(workload_of(shallow, options, text, None))
    assert found.peak_bytes == small.peak_bytes
    assert work(found, Work.MOMENTS) < work(small, Work.MOMENTS) / 5


# ---------------------------------------------------------------- what is refused


def test_a_full_disk_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, output = write_checkpoint(tmp_path / "model"), tmp_path / "output"
    monkeypatch.setattr(
        Machine, "at", classmethod(lambda cls, place: Machine(place, 50_000, 16 * GIB))
    )
    outcome = call_main(monkeypatch, capsys, "quantize", model, "-o", output)
    assert_refused(outcome, 6, "of disk at", str(output), "50 kB are free", "-o")
    assert not list(tmp_path.glob("output*"))


@pytest.mark.parametrize(
    ("options", "cure"),
    [
        (["--method", "search"], "threads"),
        (["--method", "gptq"], "--max-memory"),
        (["--max-kl", 1], "--threads"),
    ],
)
def test_too_little_memory_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    options: list[object],
    cure: str,
) -> None:
    model, output = write_checkpoint(tmp_path / "model"), tmp_path / "output"
    text = tmp_path / "text.txt"
    text.write_text("some text " * 1000, encoding="utf-8")
    given = [*options, *([] if "search" in options else ["--calibration", text])]
    monkeypatch.setattr(planning, "machine_memory_bytes", lambda: 30_000_000)
    outcome = call_main(monkeypatch, capsys, "quantize", model, "-o", output, *given)
    assert_refused(outcome, 4, "of memory", "the machine has 30 MB", cure)
    assert not list(tmp_path.glob("output*"))


def test_estimates_are_refused_with_a_margin_only() -> None:
    step = Step("rounding", {}, 100, "a cure")
    found = Cost(output_bytes=10, scratch_bytes=100, steps=(step,))
    place = Path("place")
    assert not problems_of(found, Machine(place, 110, 100))
    assert [type(p) for p in problems_of(found, Machine(place, 109, 99))] == [
        OutputError,
        UnsupportedError,
    ]
    assert not problems_of(found, Machine(place, 85, 75), planning.CERTAIN)
    assert len(problems_of(found, Machine(place, 84, 74), planning.CERTAIN)) == 2
    assert not problems_of(found, Machine(place, 1000, 0))  # a machine that does not tell


def test_what_an_unfinished_run_has_left_counts_as_free(tmp_path: Path) -> None:
    before = Machine.at(tmp_path / "new" / "output")
    assert before.free_disk > 0
    partial = tmp_path / "output.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    with (partial / "hole").open("wb") as file:
        file.truncate(2**40)
    used = sum(512 * path.stat().st_blocks for path in partial.iterdir())
    assert 0 < used < 2**30
    assert Machine.at(tmp_path / "output").free_disk >= used


def test_help_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = call_main(monkeypatch, capsys, "plan", "--help")
    assert outcome.code == 0
    assert "Example: dsconv plan " in outcome.out
