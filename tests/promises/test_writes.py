"""Who writes to the disk: every call in the library is below a scratch path of atomic.py, and here.

A call that is not in the list below is an output that can be left half-written. Most are writers of
a file in the folder or at the path that `output_folder` or `output_file` has yielded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT, library_files

# Module -> why it may write by itself.
IN_SCRATCH = "into the scratch folder that its caller has from output_folder"
GIVEN = "at the path that output_file yields here"
DOWNLOAD = "parts of downloads, which are put in place when their hash is right"
ALLOWED = {
    "atomic.py": "the only module that puts outputs in place",
    "runtime/command_line/exit_codes.py": "the traceback of a bug, in a temporary folder",
    "convert/forward/activation_store.py": "a nameless file in the scratch folder",
    "convert/files/hashes.py": GIVEN,
    "convert/formats/gguf/export.py": IN_SCRATCH,
    "convert/formats/gguf/seal.py": IN_SCRATCH,
    "convert/hub/file_writer.py": DOWNLOAD,
    "convert/hub/listing_cache.py": GIVEN,
    "convert/hub/stores.py": DOWNLOAD,
    "convert/streamed_checkpoint.py": "shards that come and go again, beside the scratch folder",
    "convert/files/json_file.py": IN_SCRATCH,
    "convert/quantize/journal.py": "the journal of the scratch folder",
    "convert/checkpoint/manifest.py": IN_SCRATCH,
    "convert/formats/float_copy.py": IN_SCRATCH,
    "convert/formats/native/export.py": GIVEN,
    "convert/formats/onnx/graph.py": IN_SCRATCH,
    "convert/formats/onnx/placing.py": IN_SCRATCH,
    "convert/formats/onnx/weights.py": IN_SCRATCH,
    "convert/quantize/inputs.py": "kept in the scratch folder, flushed and renamed",
    "convert/quantize/run.py": IN_SCRATCH,
    "convert/quantize/calibration/residual_files.py": IN_SCRATCH,
    "convert/files/safetensors.py": "the writer of the container; its callers have the path",
    "convert/quantize/tune.py": IN_SCRATCH,
    "runtime/prompts/output.py": "kept in the scratch folder, flushed and renamed",
    "runtime/bench/against.py": "a temporary folder for what is not kept",
    "runtime/build/build.py": "the locked work folder",
    "runtime/build/state.py": "removes what a step wrote before it is done again; " + GIVEN,
    "runtime/build/steps.py": IN_SCRATCH,
    "runtime/build/verdict.py": IN_SCRATCH,
    "runtime/demo/run.py": "a temporary folder",
    "runtime/report/github_annotations.py": "appends to the file that GitHub gives to all steps",
    "runtime/verify/weights.py": GIVEN,
    "runtime/report/junit.py": GIVEN,
    "runtime/sessions/onnx_graph.py": "a temporary folder for ONNX Runtime's profile",
    "runtime/bench/peers/llama_cpp_peer.py": "in the scratch folder of against.py",
    "runtime/sessions/onnx_provider.py": "the null device",
    "runtime/verify/reference_cache.py": GIVEN,
    "runtime/report/page.py": GIVEN,
}
NAMES = {
    *("write_text", "write_bytes", "mkdir", "makedirs", "rmdir", "rename", "unlink", "touch"),
    *("symlink_to", "hardlink_to", "rmtree", "copyfile", "copytree", "copy2", "move"),
    *("save_file", "serialize_file", "tofile", "savez", "memmap", "write_header_to_file"),
    *("mkstemp", "mkdtemp", "TemporaryDirectory", "NamedTemporaryFile"),
}
# Names that mean many things: only the functions of these modules write.
OF_MODULES = {
    **dict.fromkeys(("replace", "remove", "link", "symlink", "truncate"), ("os",)),
    "save": ("onnx", "onnx_ir", "ir", "torch", "np", "numpy"),
    "connect": ("sqlite3",),
}


def writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that changes the disk."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function, module = node.func, ""
        if isinstance(function, ast.Attribute):
            name = function.attr
            module = function.value.id if isinstance(function.value, ast.Name) else ""
        else:
            name = function.id if isinstance(function, ast.Name) else ""
        is_function = isinstance(function, ast.Name)
        opened = name == "open" and module != "os" and mode(node, int(is_function))[0] in "wax+?"
        if opened or name in NAMES or module in OF_MODULES.get(name, ()):
            yield node.lineno, name


def mode(node: ast.Call, position: int) -> str:
    """Of open(...): with "w" in front where it writes, "r" where none is given."""
    given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
    given += node.args[position : position + 1]
    if not given:
        return "r"
    text = str(given[0].value) if isinstance(given[0], ast.Constant) else "?"
    return f"w{text}" if "+" in text else text


@pytest.mark.parametrize("path", library_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_who_writes(path: Path) -> None:
    found = list(writes(ast.parse(path.read_text(encoding="utf-8"))))
    if path.relative_to(ROOT).as_posix() not in ALLOWED:
        assert not found


def test_the_list_names_nobody_who_does_not_write() -> None:
    for name in ALLOWED:
        assert list(writes(ast.parse((ROOT / name).read_text(encoding="utf-8")))), name


@pytest.mark.parametrize(
    "code",
    [
        "open('x', 'w')",
        "open('x', mode='ab')",
        "path.open('wb')",
        "path.write_text('x')",
        "np.save('x', a)",
        "onnx.save(m, 'x')",
        "os.replace(a, b)",
        "path.mkdir()",
        "shutil.rmtree(path)",
        "sqlite3.connect('x')",
        "os.truncate(path, 3)",
        "save_file(arrays, path)",
        "path.open('r+b')",
    ],
)
def test_what_counts_as_writing(code: str) -> None:
    assert len(list(writes(ast.parse(code)))) == 1


@pytest.mark.parametrize("code", ["open('x')", "path.open('rb')", "s.replace('a', 'b')", "open(f)"])
def test_what_does_not(code: str) -> None:
    assert not list(writes(ast.parse(code)))
