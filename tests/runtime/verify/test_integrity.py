"""One flipped bit anywhere in anything that dsconv writes is found, and the file named."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from build_recipe import FAST, RECIPE
from command_line import Outcome, assert_refused, call_main
from small_models import gpt2_checkpoint

from dsconv.convert.checkpoint.manifest import name_and_commit
from dsconv.convert.files.hashes import sha256_file
from dsconv.convert.formats.gguf.export import export_gguf
from dsconv.convert.formats.gguf.seal import KEY
from dsconv.convert.formats.gguf.write_tokenizer import TextSettings
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.runtime.build.build import build
from dsconv.runtime.build.recipe import load_recipe
from dsconv.runtime.export import ExportRequest, export_model
from dsconv.runtime.verify.findings.integrity import can_be_vouched_for, integrity_findings

FLIPS = 200
KINDS = ["quantized", "onnx", "onnx-fixed", "compressed-tensors", "gguf", "x.dsq", "x.gguf"]
Verify = Callable[..., Outcome]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one artifact of every kind; its own files, no links."""
    folder = tmp_path_factory.mktemp("integrity")
    model = gpt2_checkpoint(folder / "model")
    options = QuantizeOptions(method="rtn", head_bits=8)
    quantize_checkpoint(open_checkpoint(str(model)), options, folder / "quantized")
    for name, request in {
        "onnx": ExportRequest("onnx", copy=True),
        "onnx-fixed": ExportRequest("onnx", "qnn", prefill_length=8, copy=True),
        "compressed-tensors": ExportRequest("compressed-tensors", copy=True),
        "gguf": ExportRequest("gguf"),
        "x.dsq": ExportRequest("native"),
        "x.gguf": ExportRequest("gguf"),
    }.items():
        export_model(str(folder / "quantized"), request, folder / name, False)
    return folder


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ (1 << bit)
        file.seek(byte)
        file.write(bytes([value]))


def files_of(artifact: Path) -> list[Path]:
    if artifact.is_file():
        return [artifact]
    return sorted(path for path in artifact.rglob("*") if path.is_file())


def flips_found(artifact: Path, count: int, seed: int) -> None:
    """Half of them in files drawn alike, so that the small ones get their share."""
    assert integrity_findings(artifact) == ()
    chance = random.Random(seed)
    files = files_of(artifact)
    sizes = [path.stat().st_size for path in files]
    for index in range(count):
        path = chance.choice(files) if index % 2 else chance.choices(files, sizes)[0]
        byte, bit = chance.randrange(path.stat().st_size), chance.randrange(8)
        flip(path, byte, bit)
        found = integrity_findings(artifact)
        name = path.name if path == artifact else path.relative_to(artifact).as_posix()
        named = [name in f"{finding.place}: {finding.message}" for finding in found]
        assert any(named), (name, byte, bit, found)
        flip(path, byte, bit)
    assert integrity_findings(artifact) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit(artifacts: Path, kind: str) -> None:
    flips_found(artifacts / kind, FLIPS, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_for_long(artifacts: Path, kind: str) -> None:
    flips_found(artifacts / kind, 3000, seed=8)


def test_one_flipped_bit_in_a_built_folder(artifacts: Path, tmp_path: Path) -> None:
    """Whose artifact is a folder with a manifest of its own."""
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE.format(source=artifacts / "model", format="onnx"), encoding="utf-8")
    build(load_recipe(str(recipe), FAST), tmp_path / "built", 2)
    copied = shutil.copytree(tmp_path / "built", tmp_path / "copied")  # no links to the work folder
    flips_found(copied, FLIPS, seed=9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_or_longer_file(artifacts: Path, tmp_path: Path, kind: str) -> None:
    artifact = artifacts / kind
    for path in files_of(artifact):
        content = path.read_bytes()
        for changed in (content[:-1], content + b"\0", content[: len(content) // 2], b""):
            path.write_bytes(changed)
            found = integrity_findings(artifact)
            assert found, (path.name, len(changed))
        path.write_bytes(content)
    assert integrity_findings(artifact) == ()


@pytest.mark.parametrize("kind", ["quantized", "onnx"])
def test_missing_and_extra(artifacts: Path, tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(artifacts / kind, tmp_path / "folder")
    (folder / "config.json").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "extra.py").write_text("1")
    os.mkfifo(folder / "pipe")
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    (folder / "nowhere").symlink_to(tmp_path / "missing")
    places = {finding.place for finding in integrity_findings(folder)}
    assert places == {"config.json", "sub/extra.py", "pipe", "elsewhere", "nowhere"}


# ---------------------------------------------------------------- the command


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verify:
    return lambda *arguments: call_main(monkeypatch, capsys, "verify", *arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_the_command(artifacts: Path, tmp_path: Path, verify: Verify, kind: str) -> None:
    original = artifacts / kind
    copy = shutil.copytree if original.is_dir() else shutil.copyfile
    artifact = Path(copy(original, tmp_path / kind))
    good = verify(artifact, "--integrity", "--json")
    assert good.code == 0
    assert good.json == {"artifact": str(artifact), "passed": True, "findings": []}
    assert verify(artifact, "--integrity").out == "integrity: passed\n"
    damaged = max(files_of(artifact), key=lambda path: path.stat().st_size)
    flip(damaged, damaged.stat().st_size - 1, 0)
    bad = verify(artifact, "--integrity", "--json")
    assert (bad.code, bad.json["passed"]) == (1, False)
    assert bad.err.count("error: ") == 1
    assert damaged.name in bad.err


def test_what_only_a_reference_can_tell(artifacts: Path, tmp_path: Path, verify: Verify) -> None:
    artifact = artifacts / "onnx"
    assert_refused(verify(artifact), 2, "--reference", "--integrity")
    assert_refused(verify(artifact, "--integrity", "--max-kl", "0.1"), 2, "--max-kl")
    assert_refused(verify(artifact, "--integrity", "--junit", tmp_path / "x"), 2, "--junit")
    assert_refused(verify(tmp_path / "missing", "--integrity"), 3, "missing")


def test_a_gguf_file_of_somebody_else(artifacts: Path, tmp_path: Path) -> None:
    """Without our hash nothing can be said for it."""
    data = (artifacts / "x.gguf").read_bytes()
    assert can_be_vouched_for(artifacts / "x.gguf")
    other = tmp_path / "other.gguf"
    other.write_bytes(data.replace(KEY.encode(), b"somebody.provenan"))
    assert not can_be_vouched_for(other)
    assert [finding.message for finding in integrity_findings(other)] == [
        "it has no hash of dsconv"
    ]


# ---------------------------------------------------------------- provenance


def made_of(manifest: Path) -> dict[str, object]:
    source = json.loads(manifest.read_text("utf-8"))["source"]
    assert isinstance(source, dict)
    return source


@pytest.mark.parametrize("kind", ["onnx", "compressed-tensors", "gguf"])
def test_an_export_names_its_input_and_what_that_was_made_from(artifacts: Path, kind: str) -> None:
    source = made_of(artifacts / kind / "dsconv.json")
    quantized, model = artifacts / "quantized", artifacts / "model"
    assert source["name"] == "quantized"
    weights = "model.safetensors"
    hashes = source["sha256"]
    assert isinstance(hashes, dict)
    assert hashes[weights] == sha256_file(quantized / weights)
    assert hashes["config.json"] == sha256_file(quantized / "config.json")
    assert source["made_from"] == made_of(quantized / "dsconv.json")
    assert made_of(quantized / "dsconv.json")["sha256"] == {
        path.name: sha256_file(path) for path in model.iterdir()
    }


def test_single_files_name_their_input_too(artifacts: Path) -> None:
    from dsconv.convert.formats.gguf.container import read_header
    from dsconv.convert.formats.native.file import open_native_file

    wanted = made_of(artifacts / "gguf" / "dsconv.json")
    native = open_native_file(artifacts / "x.dsq").metadata.origin
    assert json.loads(native["provenance"]) == wanted
    assert json.loads(read_header(artifacts / "x.gguf")[0][KEY])["source"] == wanted


def test_a_model_of_the_hub_by_its_name_and_commit(artifacts: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshots = tmp_path / "models--some-org--model" / "snapshots"
    folder = shutil.copytree(artifacts / "model", snapshots / commit)
    assert name_and_commit(folder) == ("some-org/model", commit)
    assert name_and_commit(folder / "x.gguf") == ("some-org/model", commit)
    options = QuantizeOptions(method="rtn")
    quantize_checkpoint(open_checkpoint(str(folder)), options, tmp_path / "q")
    source = made_of(tmp_path / "q" / "dsconv.json")
    assert (source["name"], source["commit"]) == ("some-org/model", commit)


def test_no_time_host_or_path_in_any_output(artifacts: Path) -> None:
    host = os.uname().nodename.encode()
    for kind in KINDS:
        for path in files_of(artifacts / kind):
            content = path.read_bytes()
            assert str(artifacts).encode() not in content, path
            assert len(host) < 5 or host not in content, path


def test_the_gguf_writer_without_a_checkpoint_of_ours(artifacts: Path, tmp_path: Path) -> None:
    """A float checkpoint, which has no manifest."""
    checkpoint = open_checkpoint(str(artifacts / "model"))
    export_gguf(checkpoint, TextSettings(0, (0,), None, False, None), tmp_path / "x.gguf")
    assert integrity_findings(tmp_path / "x.gguf") == ()
