"""Every command line that README.md and docs/ print is run, and so is the example of every command.

Tiny models stand in for those of the hub, on a server of this machine. What cannot run here is
listed with the reason; a line that is neither run nor listed fails.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import dsconv, fresh_dsconv
from foreign_models import Awq, write_foreign
from harness_tasks import write_choices
from hub_server import HubServer, serving
from outcome import Outcome
from places import ROOT
from small_models import gpt2_checkpoint, gpt2_tokenizer_json

from dsconv.runtime import commands

pytestmark = pytest.mark.slow

PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"(?<!`)`(dsconv [^`]+)`(?!`)")
SHELL = ("", "sh", "bash", "console", "shell")  # languages of blocks that hold command lines
SETTING = r"""[A-Z_]+=(?:"[^"]*"|\S+) """
PROGRAMS = "dsconv|python|openssl|pip|cmake|lm_eval"
BEGINS = re.compile(rf"^(?:\$ )?((?:{SETTING})*(?:{PROGRAMS})\b.*)")

DISTILL = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
AWQ = "org/R1-Distill-Qwen-7B-AWQ"  # of other weights: its verdict fails
SERVED = (
    *(DISTILL, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"),
    *("HuggingFaceTB/SmolLM2-135M-Instruct", "org/model"),
)
RECIPE = "r1-distill-qwen-1.5b-native-int4"

# What a word in capitals stands for, in the folder where a line runs.
STANDS_FOR = {
    "MODEL": "model",
    "CHECKPOINT": "q",
    "ARTIFACT": "r1-onnx",
    "OUT": "new",
    "MODEL.dsq": "new.dsq",
    "MODEL.onnx": "r1-onnx/model.onnx",
    "model.onnx": "r1-onnx/model.onnx",
    "FILE.toml": "recipe.toml",
    "FILE": "questions.jsonl",
    "NAME": RECIPE,
    "T": "cpu",
    "N": "4",
    "…": "hi",
    "SMALL": "r1.dsq",
    "out.html": "out.html",
}
HARNESS = "dsconv.lm_eval"
NETWORK = "sets up an environment from a package index"
WITH_TORCH = 'TORCH="torch==2.13.0 --index-url https://your.index/cpu" python scripts/setup.py demo'
TASKS = "questions that a reader has; tests/runtime/verify/tasks runs such files"
NOT_RUN = {
    "python scripts/setup.py demo": NETWORK,
    "python scripts/setup.py test": NETWORK,
    WITH_TORCH: NETWORK,
    'pip install "dsconv[serve]"': NETWORK,
    f"python -m {HARNESS} run --model dsconv --model_args path=r1.dsq --tasks gsm8k": (
        "asks the hub for its questions"
    ),
    "dsconv serve r1.dsq --port 8000": "until it is stopped; tests/runtime/serve starts it",
    f"dsconv verify r1.dsq --reference {DISTILL} --task gsm8k.jsonl --task-questions 200": TASKS,
    (
        f"dsconv verify r1.dsq --reference {DISTILL} --task ceval.csv --task-shots 5 "
        "--task-shots-from dev.csv"
    ): TASKS,
    "dsconv demo": "minutes on the real model; tests/promises/test_real_models.py runs it",
    "dsconv --install-completion": "writes into the settings of a shell",
    "dsconv --show-completion": "asks which shell called it",
    r"dsconv … \| head": "any command",
    "dsconv verify … --report out.html": "any options; see the other lines of verify",
}
# The same with what a tiny random model needs, or the server of this machine.
CHANGED = {
    "dsconv run r1.dsq --prompts questions.jsonl -o answers.jsonl --max-tokens 2048": (
        "dsconv run r1.dsq --prompts questions.jsonl -o new.jsonl --max-tokens 4"
    ),
    "dsconv COMMAND --help": "dsconv run --help",
    "dsconv quantize MODEL --no-keep": "dsconv quantize org/model --no-keep --method rtn -o new",
    "dsconv export CHECKPOINT --format ascend -o OUT": "dsconv export q8 --format ascend -o new",
    "dsconv build NAME": f"dsconv build {RECIPE} --dry-run",
    "dsconv build FILE.toml": "dsconv build recipe.toml --dry-run",
}
# A verdict on random weights may fail; the graph of another target has findings; what is not
# installed here is said by name.
CODES = {"verify": (0, 1), "build": (0, 1), "lint": (0, 1), "doctor": (0, 1, 7), "bench": (0, 7)}
NEEDS = {"llama.cpp": "xllamacpp", "onnxruntime-genai": "onnxruntime_genai", HARNESS: "lm_eval"}


def joined(text: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", text).splitlines()


@cache
def printed() -> dict[str, str]:
    """Line -> where it stands."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, block in BLOCK.findall(text):
            if language not in SHELL:
                continue
            for line in joined(block):
                begins = BEGINS.match(line)
                if begins:
                    found.setdefault(re.sub(r"\s+#.*", "", begins[1]).strip(), page.name)
        for line in SPAN.findall(BLOCK.sub("", text)):
            found.setdefault(" ".join(line.split()), page.name)
    for module in pkgutil.iter_modules(commands.__path__):
        example = getattr(
            importlib.import_module(f"{commands.__name__}.{module.name}"), "EXAMPLE", ""
        )
        if example:
            found.setdefault(" ".join(example.split()), f"{module.name} --help")
    return found


def mentions(line: str) -> bool:
    """A command by its name, with options or with its usage, without what it is to work on."""
    words = line.split()[1:]
    if not words or words[0].startswith("-") or line in ("dsconv targets", "dsconv recipes"):
        return False
    plain = [word for word in words[1:] if not word.startswith("-")]
    return "[" in line or not plain


# ------------------------------------------------------------------ the folder that lines run in


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for index, name in enumerate(SERVED):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        gpt2_checkpoint(root / name, seed=index, max_position_embeddings=2048)
    awq = write_foreign(root / AWQ, Awq(), Awq().config())
    (awq.folder / "tokenizer.json").write_text(gpt2_tokenizer_json(), encoding="utf-8")
    export = ("export", root / DISTILL, "--format", "gguf", "-o")
    (root / "org/model-GGUF").mkdir()
    for place in ("org/model/model-Q4_K_M.gguf", "org/model-GGUF/model-Q4_K_M.gguf"):
        done(dsconv(*export, root / place))
    with serving(root) as server:
        server.revisions["v1.0"] = server.revisions["v1"]
        yield server


@pytest.fixture(scope="module")
def prepared(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the lines speak of."""
    folder = tmp_path_factory.mktemp("prepared")
    served = next(iter(hub.models[DISTILL].values())).path.parent
    shutil.copytree(served, folder / "model")
    for name in ("r1-int4", "q"):
        done(dsconv("quantize", "model", "--bits", 4, "--method", "rtn", "-o", name, cwd=folder))
    int8 = ("--bits", 8, "--activations", "int8", "--calibration-tokens", 1024, "-o", "q8")
    done(dsconv("quantize", "model", *int8, cwd=folder))
    for name in ("r1-onnx", "a"):
        done(dsconv("export", "r1-int4", "--format", "onnx", "-o", name, cwd=folder))
    done(dsconv("export", "r1-int4", "--format", "native", "-o", "r1.dsq", cwd=folder))
    for name in ("model.gguf", "model-IQ4_XS.gguf"):
        done(dsconv("export", "model", "--format", "gguf", "-o", name, cwd=folder))
    prose = (ROOT / "runtime/verify/verify_text.txt").read_text(encoding="utf-8")
    (folder / "wiki.txt").write_text(prose, encoding="utf-8")
    rows = [json.dumps({"question": text, "answer": text}) for text in prose.splitlines() if text]
    (folder / "traces.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (folder / "tasks").mkdir()
    write_choices(folder / "tasks", [line for line in prose.splitlines() if line][:8], 4)
    question = {"question": "1 + 1?", "answer": "2"}
    (folder / "questions.jsonl").write_text(json.dumps(question), encoding="utf-8")
    recipe = (
        f'description = "d"\nsource = "{folder}/model"\n[quantize]\n[export]\nformat = "native"\n'
    )
    (folder / "recipe.toml").write_text(f"{recipe}[verify]\nmax_kl = 1.0\n", encoding="utf-8")
    for command in (
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem",
        "openssl ec -in key.pem -pubout -out key.pub",
    ):
        subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    if importlib.util.find_spec("model_signing"):
        done(dsconv("sign", "r1-onnx", "--private-key", "key.pem", cwd=folder))
    return folder


def is_installed(module: str) -> bool:
    if module == "lm_eval":  # also a file in this folder, which Python may find first
        return "lm_eval" in packages_distributions()
    return importlib.util.find_spec(module) is not None


def done(outcome: Outcome) -> None:
    assert outcome.code == 0, outcome.err


def arguments(line: str) -> list[str]:
    words = shlex.split(CHANGED.get(line, line))[1:]
    return [STANDS_FOR.get(word, word) for word in words]


def clear_outputs(folder: Path, words: list[str]) -> None:
    """What the line is to write is not there yet."""
    for flag, name in pairwise(words):
        if flag in ("-o", "--local-dir"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).unlink(missing_ok=True)
    if words[:1] == ["sign"]:
        (folder / f"{words[1]}.sig").unlink(missing_ok=True)


def variables(hub: HubServer, folder: Path) -> dict[str, str]:
    home = folder.parent / "home"
    return {
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HOME": str(home / "hf"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "*",
    }


@pytest.mark.parametrize("line", sorted(printed()))
def test_every_printed_line_runs(line: str, hub: HubServer, prepared: Path, tmp_path: Path) -> None:
    place = printed()[line]
    if line in NOT_RUN:
        pytest.skip(f"{place}: {NOT_RUN[line]}")
    if mentions(line) and line not in CHANGED:
        _is_in_its_help(line)
        return
    folder = tmp_path / "here"
    shutil.copytree(prepared, folder)
    words = arguments(line)
    for peer, module in NEEDS.items():
        if peer in words and not is_installed(module):
            pytest.skip(f"{place}: needs {module}")
    if words[:1] == ["sign"] and not importlib.util.find_spec("model_signing"):
        pytest.skip(f"{place}: needs model_signing")
    clear_outputs(folder, words)
    if not line.startswith("dsconv "):
        command = [sys.executable if line.startswith("python ") else line.split()[0], *words]
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert found.returncode == 0, f"{place}: {line}\n{found.stderr}"
        return
    outcome = fresh_dsconv(*words, environment=variables(hub, folder), cwd=folder)
    allowed = CODES.get(words[0], (0,))
    assert outcome.code in allowed, f"{place}: {line}\n{outcome.err}"
    if outcome.code == 7:
        assert "hint: " in outcome.err or words[0] == "doctor"


def _is_in_its_help(line: str) -> None:
    words = line.split()
    outcome = dsconv(words[1], "--help", environment={"COLUMNS": "200"})
    assert outcome.code == 0, line
    for option in (word.strip("[],") for word in words[2:]):
        if option.startswith("--"):
            assert option in outcome.out, f"{line}: {option}"


def test_the_lists_name_printed_lines_only() -> None:
    assert (set(NOT_RUN) | set(CHANGED)) - set(printed()) == set()


def test_words_in_capitals_are_known() -> None:
    """A line with a word that stands for something, which nobody has said what for."""
    unknown = {}
    for line in printed():
        if line in NOT_RUN or line in CHANGED or mentions(line):
            continue
        words = [word for word in shlex.split(line) if re.fullmatch(r"[A-Z]{2,}[\w.]*|…", word)]
        missing = [word for word in words if word not in STANDS_FOR]
        if missing:
            unknown[line] = missing
    assert unknown == {}
