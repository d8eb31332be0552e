"""The tree keeps its shape: folders in order, imports down it, no circles, rooms of a size to read.

What a rule allows beside itself stands in a list here, with the reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = "dsconv"
TOPS = ("quant", "convert", "runtime")
# From the bottom to the top: a module imports from the lines before its own, and from its own
# folder with all below it. Folders of one line do not know each other.
FOLDERS = (
    ("errors",),
    ("atomic", "progress"),
    ("quant",),
    ("convert.files",),
    ("convert.families",),
    ("convert.checkpoint",),
    ("convert.forward", "convert.hub"),
    ("convert.quantize",),
    ("convert.formats",),
    ("convert.targets",),
    ("convert.open",),
    ("convert.config_only", "convert.streamed_checkpoint"),
    ("convert.inspect",),
    ("runtime.memory", "runtime.console", "runtime.option_fields"),
    ("runtime.model_paths",),
    ("runtime.sessions",),
    ("runtime.batches",),
    ("runtime.text",),
    ("runtime.generate",),
    ("runtime.scheduling",),
    ("runtime.prompts",),
    ("runtime.harness",),
    ("runtime.serve.texts",),
    ("runtime.serve",),
    ("runtime.calibration",),
    ("runtime.doctor",),
    ("runtime.verify",),
    ("runtime.report",),
    ("runtime.quantize_request",),
    ("runtime.plan", "runtime.export"),
    ("runtime.quantize",),
    ("runtime.demo",),
    ("runtime.bench",),
    ("runtime.build",),
    ("runtime.command_line",),
    ("runtime.commands",),
    ("library", "cli", "lm_eval"),
)
LINES_OF_A_FILE = 400
LINES_OF_A_FUNCTION = 60
LINES_OF_A_CLASS = 250
PARAMETERS = 6  # beside self
FILES_OF_A_FOLDER = 20
FLAT = {"convert": 6, "runtime": 8}

# What is imported where it is used, because a command must start without it or it may be missing.
IMPORTED_LATE = {
    "certifi": "only for systems without certificates of their own",
    "difflib": "only for a word that is not known",
    "gguf": "a fifth of a second; only GGUF files need it",
    "huggingface_hub": "a fifth of a second; only downloads need it",
    "llama_cpp": "a peer of bench, an extra",
    "math_verify": "an extra",
    "model_signing": "an extra",
    "onnx": "a third of a second; sessions start without it",
    "onnxruntime": "a tenth of a second; other runtimes do without",
    "onnxruntime_genai": "a peer of bench, an extra",
    "openvino": "a peer of bench, an extra",
    "openvino_genai": "a peer of bench, an extra",
    "rich": "a tenth of a second; --json and --help need no table",
    "tempfile": "only for the traceback of a bug",
    "threadpoolctl": "only calibration limits the threads of libraries",
    "tokenizers": "its library is loaded with the first tokenizer",
    "torch": "a second or two; run, bench and verify of an export do without",
    "traceback": "only for the traceback of a bug",
}
# Whose functions import modules of ours, and what is spared by it.
IMPORTS_LATE = {
    "dsconv": "`import dsconv` costs nothing",
    "dsconv.cli": "--help shows in a quarter of a second",
    "dsconv.library": "a function imports what it needs",
    "dsconv.convert.quantize.cost": "torch, where nothing is calibrated",
    "dsconv.convert.quantize.run": "torch, where nothing is calibrated",
    "dsconv.convert.quantize.work_rates": "torch, where nothing is calibrated",
    "dsconv.runtime.batches.open": "ONNX Runtime, where the artifact is another",
    "dsconv.runtime.bench.peers.llama_cpp_peer": "the exports, in the worker that times",
    "dsconv.runtime.build.recipe": "onnx, where recipes are only listed",
    "dsconv.runtime.build.steps": "onnx, where nothing is exported",
    "dsconv.runtime.calibration.text_windows": "torch, where the text is given",
    "dsconv.runtime.command_line.completion": "the command line imports it for every command",
    "dsconv.runtime.doctor.probe": "every trial but the one that the process is for",
    "dsconv.runtime.plan": "torch, where nothing is calibrated",
    "dsconv.runtime.quantize": "torch, where nothing is calibrated",
    "dsconv.runtime.quantize_request": "the command line imports it for every command",
    "dsconv.runtime.sessions.load": "every session but the one that is asked for",
    "dsconv.runtime.text.chat_template": "jinja2, where no template is rendered",
    "dsconv.runtime.text.row_rendering": "jinja2, where no template is rendered",
    "dsconv.runtime.verify.findings.structure": "onnx, where the artifact is no graph",
    "dsconv.runtime.verify.reference": "torch, where the predictions are cached",
    "dsconv.runtime.verify.weights": "torch, where no weights are compared",
}
COMMANDS = f"{PACKAGE}.runtime.commands"
# Names of tensors, which only families and GGUF's names may know.
TENSOR_NAME = re.compile(
    r"model\.layers|\b(q|k|v|o|gate|up|down)_proj\b|(input|post_attention)_layernorm"
    r"|\bself_attn\b|\bembed_tokens\b|\blm_head\b"
)
KNOW_TENSOR_NAMES = (
    *("convert/families/", "convert/formats/gguf/"),
    "convert/formats/foreign/",  # GPTQ and AWQ have a setting of the name lm_head
    "runtime/bench/peers/openvino_peer.py",  # names in files of another tool
    "runtime/quantize_request.py",  # the help of --head-bits says what a user would
)


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        is_package = self.path.name == "__init__.py"
        return self.name if is_package else self.name.rpartition(".")[0]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((PACKAGE, *(part for part in parts if part != "__init__")))


@cache
def modules() -> dict[str, Module]:
    top = ROOT.glob("*.py")
    below = (path for name in TOPS for path in (ROOT / name).rglob("*.py"))
    found = {}
    for path in sorted((*top, *below)):
        text = path.read_text(encoding="utf-8")
        found[module_name(path)] = Module(module_name(path), path, text, ast.parse(text))
    return found


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def statements(node: ast.AST, in_function: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Imports below a node, and whether they stand in a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        elif not for_types_only(child):
            inside = in_function or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from statements(child, inside)


def targets(module: Module, node: ast.stmt) -> Iterator[str]:
    """Full names of what an import statement imports; a module where the name is one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    assert isinstance(node, ast.ImportFrom)
    base = node.module or ""
    if node.level:
        parts = module.package.split(".")
        base = ".".join((*parts[: len(parts) - node.level + 1], *filter(None, [node.module])))
    for alias in node.names:
        full = f"{base}.{alias.name}"
        yield full if full in modules() else base


@cache
def imports() -> tuple[Import, ...]:
    return tuple(
        Import(module.name, target, node.lineno, in_function)
        for module in modules().values()
        for node, in_function in statements(module.tree)
        for target in targets(module, node)
    )


def own_imports() -> Iterator[Import]:
    return (found for found in imports() if found.imported in modules())


LEVELS = {name: level for level, names in enumerate(FOLDERS) for name in names}


def folder_of(name: str) -> str:
    """The longest name in FOLDERS that a module lies in."""
    inner = name.removeprefix(f"{PACKAGE}.")
    return max((folder for folder in LEVELS if is_below(inner, folder)), key=len, default="")


def is_below(name: str, folder: str) -> bool:
    return f"{name}.".startswith(f"{folder}.")


def test_every_module_lies_in_a_folder_of_the_order() -> None:
    tops = {PACKAGE, f"{PACKAGE}.__main__", *(f"{PACKAGE}.{top}" for top in TOPS)}
    assert {name for name in modules() if not folder_of(name)} == tops - {f"{PACKAGE}.quant"}


def test_imports_go_down_the_folders() -> None:
    wrong = []
    for found in own_imports():
        importer, imported = folder_of(found.importer), folder_of(found.imported)
        if importer and imported and importer != imported and LEVELS[importer] <= LEVELS[imported]:
            wrong.append(str(found))
    assert wrong == []


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node that all reach each other (Tarjan's algorithm)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1 or node in arrows.get(node, ()):
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in order:
            visit(node)
    return found


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports inside functions count: a circle is one whenever it is closed."""
    arrows: dict[str, set[str]] = {}
    for found in own_imports():
        if found.imported != PACKAGE:  # its version, nothing else
            arrows.setdefault(found.importer, set()).add(found.imported)
    assert circles(arrows) == []


def test_the_search_for_circles_finds_them() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"a"}}) == [["a"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_circle_of_folders() -> None:
    """Of two folders only one knows the other."""
    arrows: dict[str, set[str]] = {}
    for found in own_imports():
        importer = modules()[found.importer].package
        imported = modules()[found.imported].package
        inside = f"{importer}.".startswith(f"{imported}.") or f"{imported}.".startswith(
            f"{importer}."
        )
        if not inside:
            arrows.setdefault(importer, set()).add(imported)
    assert circles(arrows) == []


def late_imports() -> Iterator[Import]:
    return (found for found in imports() if found.in_function)


def test_imports_inside_functions_have_a_reason() -> None:
    """Commands need none: each file of theirs is imported for --help."""
    without = []
    for found in late_imports():
        if found.imported not in modules():
            has_reason = found.imported.split(".")[0] in IMPORTED_LATE
        else:
            has_reason = found.importer in IMPORTS_LATE or is_below(found.importer, COMMANDS)
        if not has_reason:
            without.append(str(found))
    assert without == []


def test_every_reason_is_still_needed() -> None:
    ours = {found.importer for found in late_imports() if found.imported in modules()}
    theirs = {found.imported.split(".")[0] for found in late_imports()}
    assert set(IMPORTS_LATE) <= ours
    assert set(IMPORTED_LATE) <= theirs


def test_library_code_imports_no_command() -> None:
    users = {found.importer for found in own_imports() if is_below(found.imported, COMMANDS)}
    assert {user for user in users if not is_below(user, COMMANDS)} == {f"{PACKAGE}.cli"}


def test_names_of_tensors_stand_where_they_may() -> None:
    elsewhere = []
    for module in modules().values():
        place = module.path.relative_to(ROOT).as_posix()
        if place.startswith(KNOW_TENSOR_NAMES):
            continue
        described = docstrings(module.tree)
        for node in ast.walk(module.tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and node not in described and TENSOR_NAME.search(text):
                elsewhere.append(f"{place}:{node.lineno} {text!r}")
    assert elsewhere == []


def docstrings(tree: ast.Module) -> list[ast.expr]:
    bodies = [getattr(node, "body", None) for node in ast.walk(tree)]
    first = [body[0] for body in bodies if isinstance(body, list) and body]
    return [node.value for node in first if isinstance(node, ast.Expr)]


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without the signature: options of a command are declared there, a line or three each."""
    return (node.end_lineno or node.lineno) - node.body[0].lineno + 1


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    own = names[:1] in (["self"], ["cls"])
    return len(names) - own + (given.vararg is not None) + (given.kwarg is not None)


def is_command(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Are its parameters the options of a command? library.py has them as keywords."""
    verb = module.path.stem
    if module.name == f"{PACKAGE}.library":
        return (ROOT / "runtime" / "commands" / f"{function.name}.py").exists() or (
            function.name in ("generate", "open_session")
        )
    return is_below(module.name, COMMANDS) and function.name == verb


def test_sizes_of_files_classes_and_functions() -> None:
    too_large = []
    for module in modules().values():
        lines = module.text.count("\n")
        if lines > LINES_OF_A_FILE:
            too_large.append(f"{module.name}: {lines} lines")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and lines_of(node) > LINES_OF_A_CLASS:
                too_large.append(f"{module.name}.{node.name}: {lines_of(node)} lines")
        for function in functions(module):
            count = body_lines if is_command(module, function) else lines_of
            if count(function) > LINES_OF_A_FUNCTION:
                too_large.append(f"{module.name}.{function.name}: {count(function)} lines")
            if parameters(function) > PARAMETERS and not is_command(module, function):
                too_large.append(
                    f"{module.name}.{function.name}: {parameters(function)} parameters"
                )
    assert too_large == []


@pytest.mark.parametrize("top", [*TOPS, "tests"])
def test_no_folder_is_too_full(top: str) -> None:
    folders = [ROOT / top, *(path for path in (ROOT / top).rglob("*") if path.is_dir())]
    sources = (".py", ".cpp", ".h")
    counts = {
        folder.relative_to(ROOT).as_posix(): sum(
            path.suffix in sources for path in folder.iterdir()
        )
        for folder in folders
    }
    assert {name: count for name, count in counts.items() if count > FILES_OF_A_FOLDER} == {}
    flat = [path for path in (ROOT / top).glob("*.py") if path.name != "__init__.py"]
    assert len(flat) <= FLAT.get(top, FILES_OF_A_FOLDER)


@pytest.mark.parametrize("top", TOPS)
def test_every_folder_says_what_is_in_it(top: str) -> None:
    """A line per file in the docstring of its `__init__`."""
    silent = []
    for start in (ROOT / top).rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(start.read_text(encoding="utf-8"))) or ""
        inside = (path for path in start.parent.iterdir() if is_part(path))
        silent += [
            path.relative_to(ROOT).as_posix()
            for path in inside
            if not re.search(rf"\b{re.escape(path.stem)}\b", text)
        ]
    assert silent == []


def is_part(path: Path) -> bool:
    if path.is_dir():
        return (path / "__init__.py").exists()
    return path.suffix == ".py" and path.name != "__init__.py"


def test_no_switch_on_schemes() -> None:
    """What a scheme is and does stands in quant/, how it lies in a file in one table."""
    switch = re.compile(
        r"isinstance\([^()]*,[^()]*\b(Scheme|IntegerScheme|ScaleMin|Int8Rows|Quantized\w*)\b", re.S
    )
    allowed = "convert/checkpoint/matrix_layout.py"
    found = [
        module.path.relative_to(ROOT).as_posix()
        for module in modules().values()
        if switch.search(module.text)
    ]
    assert [name for name in found if not name.startswith("quant/") and name != allowed] == []
