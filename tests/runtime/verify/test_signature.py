"""Signatures: ours and those of model-signing's own command are the same; nothing else holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome, assert_refused, call_main
from small_models import write_checkpoint

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.runtime.export import ExportRequest, export_model

pytest.importorskip("model_signing")
Command = Callable[..., Outcome]
KINDS = ["onnx", "x.dsq"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts, and two pairs of keys: key.pem and key.pub, other.pem and other.pub."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    folder = tmp_path_factory.mktemp("signed")
    model = write_checkpoint(folder / "model")
    quantize_checkpoint(
        open_checkpoint(str(model)), QuantizeOptions(method="rtn"), folder / "quantized"
    )
    for name, request in {"onnx": ExportRequest("onnx"), "x.dsq": ExportRequest("native")}.items():
        export_model(str(folder / "quantized"), request, folder / name, False)
    for name in ("key", "other"):
        key = generate_private_key(SECP256R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{name}.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return lambda *arguments: call_main(monkeypatch, capsys, *arguments)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "made")


def sign(command: Command, folder: Path, kind: str) -> Path:
    outcome = command("sign", folder / kind, "--private-key", folder / "key.pem", "--json")
    assert outcome.code == 0, outcome.err
    files = 1 if (folder / kind).is_file() else len(os.listdir(folder / kind))
    signature = folder / f"{kind}.sig"
    assert outcome.json == {
        "artifact": str(folder / kind),
        "signature": str(signature),
        "files": files,
    }
    return signature


def check(command: Command, artifact: Path, key: str = "key.pub") -> Outcome:
    signature = artifact.with_name(artifact.name + ".sig")
    trusted = artifact.parent / key
    return command("verify", artifact, "--signature", signature, "--public-key", trusted, "--json")


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_signed_holds(command: Command, folder: Path, kind: str) -> None:
    sign(command, folder, kind)
    good = check(command, folder / kind)
    assert good.code == 0, good.err
    assert good.json == {"artifact": str(folder / kind), "passed": True, "findings": []}
    options = ["--signature", folder / f"{kind}.sig", "--public-key", folder / "key.pub"]
    said = command("verify", folder / kind, *options).out
    assert said == "integrity and signature: passed\n"


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_for_the_command_of_model_signing(
    command: Command, folder: Path, kind: str
) -> None:
    signature = sign(command, folder, kind)
    key = ["--signature", signature, "--public_key", folder / "key.pub"]
    assert model_signing("verify", "key", folder / kind, *key).returncode == 0
    with (folder / kind / "config.json" if kind == "onnx" else folder / kind).open("ab") as file:
        file.write(b"\n")
    assert model_signing("verify", "key", folder / kind, *key).returncode != 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_command_of_model_signing_signed_holds(
    command: Command, folder: Path, kind: str
) -> None:
    key = ["--signature", folder / f"{kind}.sig", "--private_key", folder / "key.pem"]
    done = model_signing("sign", "key", folder / kind, *key)
    assert done.returncode == 0, done.stderr
    assert check(command, folder / kind).code == 0


def change_consistently(folder: Path) -> None:
    """As an attacker would: the manifest agrees with the changed file."""
    from dsconv.convert.checkpoint.manifest import encode_manifest
    from dsconv.convert.files.hashes import sha256_file

    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").rstrip() + "\n\n", encoding="utf-8")
    manifest = json.loads((folder / "dsconv.json").read_text("utf-8"))
    manifest["sha256"]["config.json"] = sha256_file(config)
    (folder / "dsconv.json").write_bytes(encode_manifest(manifest))


def test_a_change_that_no_hash_tells(command: Command, folder: Path) -> None:
    sign(command, folder, "onnx")
    change_consistently(folder / "onnx")
    assert command("verify", folder / "onnx", "--integrity").code == 0
    bad = check(command, folder / "onnx")
    assert (bad.code, bad.json["passed"]) == (1, False)
    (finding,) = bad.json["findings"]
    assert finding["place"] == "onnx.sig"
    assert "config.json" in finding["message"]


def test_files_that_come_and_go(command: Command, folder: Path) -> None:
    sign(command, folder, "onnx")
    extra = folder / "onnx" / "README.md"  # which --integrity lets be
    extra.write_text("# a card", encoding="utf-8")
    assert command("verify", folder / "onnx", "--integrity").code == 0
    assert check(command, folder / "onnx").code == 1
    extra.unlink()
    assert check(command, folder / "onnx").code == 0
    (folder / "onnx" / "config.json").unlink()
    assert check(command, folder / "onnx").code == 1


def test_somebody_elses_key(command: Command, folder: Path) -> None:
    sign(command, folder, "onnx")
    bad = check(command, folder / "onnx", "other.pub")
    assert bad.code == 1
    assert bad.err.count("error: ") == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff\x00", b'{"a": 1}'])
def test_a_signature_that_is_none(command: Command, folder: Path, content: bytes) -> None:
    (folder / "onnx.sig").write_bytes(content)
    bad = check(command, folder / "onnx")
    assert (bad.code, bad.json["passed"]) == (1, False)


def test_every_bit_of_the_signature_counts(command: Command, folder: Path) -> None:
    """Of what is signed and of the signature itself, in the envelope."""
    signature = sign(command, folder, "onnx")
    bundle = json.loads(signature.read_text("utf-8"))
    envelope = bundle["dsseEnvelope"]
    for field, holder in (("payload", envelope), ("sig", envelope["signatures"][0])):
        good = holder[field]
        for place in range(0, len(good) - 4, max(1, len(good) // 8)):
            other = "A" if good[place] != "A" else "B"
            holder[field] = good[:place] + other + good[place + 1 :]
            signature.write_text(json.dumps(bundle), encoding="utf-8")
            assert check(command, folder / "onnx").code == 1, (field, place)
        holder[field] = good


def test_nothing_damaged_is_signed(command: Command, folder: Path) -> None:
    config = folder / "onnx" / "config.json"
    config.write_bytes(config.read_bytes() + b" ")
    refused = command("sign", folder / "onnx", "--private-key", folder / "key.pem")
    assert_refused(refused, 3, "config.json", "not signed")
    assert not (folder / "onnx.sig").exists()


def test_a_symbolic_link_is_not_signed(command: Command, folder: Path) -> None:
    config = folder / "onnx" / "config.json"
    config.rename(folder / "elsewhere.json")
    config.symlink_to(folder / "elsewhere.json")
    refused = command("sign", folder / "onnx", "--private-key", folder / "key.pem")
    assert_refused(refused, 3, "cannot be signed", "config.json")
    assert not (folder / "onnx.sig").exists()


def test_refusals(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = ["--private-key", folder / "key.pem"]
    inside = command("sign", folder / "onnx", *key, "-o", folder / "onnx" / "x.sig")
    assert_refused(inside, 2, "inside")
    public = command("sign", folder / "onnx", "--private-key", folder / "key.pub")
    assert_refused(public, 3, "key.pub", "openssl")
    assert_refused(command("sign", folder / "nothing", *key), 3, "nothing")
    sign(command, folder, "onnx")
    assert_refused(command("sign", folder / "onnx", *key), 6, "onnx.sig")
    assert command("sign", folder / "onnx", *key, "--overwrite").code == 0
    lonely = command("verify", folder / "onnx", "--signature", folder / "onnx.sig")
    assert_refused(lonely, 2, "--public-key")
    lonely = command("verify", folder / "onnx", "--public-key", folder / "key.pub")
    assert_refused(lonely, 2, "--signature")
    missing = command(
        "verify", folder / "onnx", "--signature", folder / "x", "--public-key", folder / "key.pub"
    )
    assert_refused(missing, 3, "no such file")
    private = check(command, folder / "onnx", "key.pem")
    assert_refused(private, 3, "key.pem", "public key")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert_refused(check(command, folder / "onnx"), 7, "model-signing", "pip install")


def test_together_with_a_reference(command: Command, folder: Path) -> None:
    sign(command, folder, "onnx")
    options = ["--signature", folder / "onnx.sig", "--public-key", folder / "key.pub"]
    compare = ["--reference", folder / "model", "--max-tokens", "64", "--no-reference-cache"]
    good = command("verify", folder / "onnx", *compare, *options, "--json")
    assert good.code in (0, 1)
    places = {finding["place"] for finding in good.json["findings"]}
    assert "onnx.sig" not in places
    change_consistently(folder / "onnx")
    bad = command("verify", folder / "onnx", *compare, *options, "--json")
    assert bad.code == 1
    assert "onnx.sig" in {finding["place"] for finding in bad.json["findings"]}
