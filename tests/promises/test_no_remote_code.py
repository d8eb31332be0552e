"""Nothing that comes with a model is run: no pickle, no Python of its own, no transformers."""

from __future__ import annotations

import ast
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_config, write_checkpoint, write_json

import dsconv
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.errors import DsconvError, InputError, UnsupportedError
from dsconv.runtime.text.tokenizer import TextTokenizer

ROOT = Path(dsconv.__file__).parent
PACKAGES = ("convert", "quant", "runtime", "recipes")

# ---------------------------------------------------------------- our own source


def source_files() -> list[Path]:
    inside = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return sorted([*ROOT.glob("*.py"), *inside])


def names_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Everything that is imported or called, by its dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call):
            yield node.lineno, ast.unparse(node.func)
            yield from (
                (node.lineno, f"argument {keyword.arg}={ast.unparse(keyword.value)}")
                for keyword in node.keywords
            )


FORBIDDEN = (
    *("transformers", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("yaml", "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "np.load"),
    *("torch.hub", "runpy", "importlib.util.spec_from_file_location", "os.system", "os.popen"),
    *("argument shell=True", "argument trust_remote_code=True", "argument allow_pickle=True"),
)


def forbidden_names(text: str) -> list[str]:
    return [
        f"line {line}: {name}"
        for line, name in names_of(ast.parse(text))
        if any(name == word or name.startswith(word + ".") for word in FORBIDDEN)
    ]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_ours_could_run_what_it_reads(path: Path) -> None:
    assert forbidden_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import transformers",
        "from transformers import AutoTokenizer",
        "def f():\n    import transformers.models.llama",
        "eval('1')",
        "torch.load(path)",
        "import pickle",
        "run(x, shell=True)",
    ],
)
def test_the_search_itself(text: str) -> None:
    assert len(forbidden_names(text)) == 1


# ---------------------------------------------------------------- commands without transformers

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "pickle5", "yaml"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Blocker())
import json
from dsconv import cli
for command in json.loads(sys.argv[1]):
    sys.argv = ["dsconv", *command]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
"""


def call_blocked(*commands: tuple[object, ...]) -> None:
    """Run the commands, one after the other, in one process."""
    texts = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, texts],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_commands_do_without_transformers(tmp_path: Path) -> None:
    model, folder = write_checkpoint(tmp_path / "m"), tmp_path
    text = folder / "text.txt"
    text.write_text("some words to compare by " * 20)
    limits = ("--max-kl", 100, "--max-tokens", 64, "--window", 32)
    artifacts = (folder / "onnx", folder / "m.dsq", model)
    call_blocked(
        ("quantize", model, "--method", "search", "-o", folder / "q"),
        ("export", folder / "q", "-o", folder / "onnx"),
        ("export", folder / "q", "--format", "native", "-o", folder / "m.dsq"),
        *[("run", artifact, "-p", "a", "--max-tokens", 2) for artifact in artifacts],
        ("inspect", folder / "q"),
        ("verify", folder / "onnx", "--reference", model, "--text", text, *limits),
    )


# ---------------------------------------------------------------- booby traps


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.sentinel), "w"))


def plain_pickle(path: Path, sentinel: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(sentinel)))


def torch_zip(path: Path, sentinel: Path) -> None:
    torch.save({"w": Payload(sentinel)}, path)


def nested_zip(path: Path, sentinel: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(sentinel)))
        archive.writestr("archive/version", "3")


def old_torch(path: Path, sentinel: Path) -> None:
    torch.save({"w": Payload(sentinel)}, path, _use_new_zipfile_serialization=False)


def numpy_objects(path: Path, sentinel: Path) -> None:
    np.savez(path.with_suffix(".npz"), w=np.array([Payload(sentinel)], object))
    path.with_suffix(".npz").rename(path)


PAYLOADS = (plain_pickle, torch_zip, nested_zip, old_torch, numpy_objects)
SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy")


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pickles_are_refused_with_the_cure(
    tmp_path: Path, payload: Callable[[Path, Path], None], suffix: str
) -> None:
    model, sentinel = write_checkpoint(tmp_path / "m"), tmp_path / "sentinel"
    (model / "model.safetensors").unlink()
    file = model / f"pytorch_model{suffix}"
    payload(file, sentinel)
    for given in (file, model):
        with pytest.raises(UnsupportedError, match="pickle") as caught:
            open_checkpoint(str(given))
        assert "safetensors" in caught.value.hint
        assert caught.value.exit_code == 4
    assert not sentinel.exists()
    payload_runs(payload, tmp_path)


def payload_runs(payload: Callable[[Path, Path], None], folder: Path) -> None:
    """A trap that would not spring proves nothing."""
    file, sentinel = folder / "armed", folder / "sprung"
    payload(file, sentinel)
    if payload is numpy_objects:
        with np.load(file, allow_pickle=True) as arrays:
            arrays["w"].item().close()
    elif payload is plain_pickle:
        pickle.loads(file.read_bytes()).close()
    elif payload is nested_zip:
        with zipfile.ZipFile(file) as archive:
            pickle.loads(archive.read("archive/data.pkl")).close()
    else:
        torch.load(file, weights_only=False)["w"].close()
    assert sentinel.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_pickle_under_another_name(tmp_path: Path, payload: Callable[[Path, Path], None]) -> None:
    model, sentinel = write_checkpoint(tmp_path / "m"), tmp_path / "sentinel"
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        file = model / name
        right = file.read_bytes()
        payload(file, sentinel)
        with pytest.raises(InputError):
            TextTokenizer(open_checkpoint(str(model)).side_files)
        file.write_bytes(right)
    for name in ("model.gguf", "model.dsq", "model.onnx"):
        payload(tmp_path / name, sentinel)
        with pytest.raises(DsconvError):
            describe(str(tmp_path / name))
    assert not sentinel.exists()


TRAP = "open(__file__ + '.sprung', 'w')\n"


def test_python_beside_a_model_is_never_run(tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "m",
        trust_remote_code=True,
        _attn_implementation_internal="someone/kernels",
        attn_implementation="someone/kernels",
        custom_pipelines={"text-generation": {"impl": "trap.Pipeline"}},
    )
    for name in ("modeling_x.py", "configuration_x.py", "tokenization_x.py", "trap.py"):
        (model / name).write_text(TRAP)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_x.T", None]}
    settings["tokenizer_class"] = "tokenization_x.T"
    write_json(model / "tokenizer_config.json", settings)
    call_blocked(
        ("run", model, "-p", "a", "--max-tokens", 1),
        ("quantize", model, "--method", "search", "-o", tmp_path / "q"),
    )
    assert not list(tmp_path.rglob("*.sprung"))
    assert not list((tmp_path / "q").glob("*.py"))


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """Under the name of a known architecture it might compute anything."""
    model = write_checkpoint(tmp_path / "m")
    own = {"AutoConfig": "c.C", "AutoModelForCausalLM": "modeling_x.X"}
    write_json(model / "config.json", small_config(auto_map=own))
    (model / "modeling_x.py").write_text(TRAP)
    with pytest.raises(UnsupportedError, match=r"auto_map.*AutoModelForCausalLM") as caught:
        open_checkpoint(str(model))
    assert "remove auto_map" in caught.value.hint
    assert not list(tmp_path.rglob("*.sprung"))


def test_code_for_the_config_alone_is_ignored(tmp_path: Path) -> None:
    open_checkpoint(str(write_checkpoint(tmp_path / "m", auto_map={"AutoConfig": "c.C"})))
