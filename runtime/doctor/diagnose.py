"""What is installed, what of it really works, and the one command that fixes the rest."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from dsconv import __version__
from dsconv.errors import UsageError
from dsconv.runtime.sessions.providers import (
    FAMILY,
    PROVIDERS,
    TORCH,
    refuse_unknown,
    torch_device_name,
)
from dsconv.runtime.sessions.torch_device import BACKENDS

from .probe import NATIVE

State = Literal["works", "broken", "missing"]

TORCH_TARGETS = tuple(f"{TORCH}:{kind}" for kind in ("cpu", *BACKENDS))
TIME_LIMIT = 60.0  # seconds per target
AT_ONCE = 4


@dataclass(frozen=True)
class GraphResult:
    """error: largest difference from NumPy, as a share of the largest value; None: did not run."""

    error: float | None
    message: str = ""

    @property
    def passed(self) -> bool:
        return self.error is not None and not self.message


@dataclass(frozen=True)
class TargetState:
    """One target. cure: the command or step that fixes it, in words."""

    name: str
    state: State
    version: str = ""
    graphs: Mapping[str, GraphResult] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    detail: str = ""
    cure: str = ""


@dataclass(frozen=True)
class Problem:
    """Something wrong with the environment as a whole."""

    what: str
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    targets: tuple[TargetState, ...]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "dsconv": __version__,
            "python": platform.python_version(),
            "targets": [
                {
                    "name": t.name,
                    "state": t.state,
                    "version": t.version or None,
                    "graphs": {name: vars(result) for name, result in t.graphs.items()},
                    "kernels": list(t.kernels),
                    "detail": t.detail,
                    "cure": t.cure,
                }
                for t in self.targets
            ],
            "problems": [vars(problem) for problem in self.problems],
        }


def installed_versions() -> dict[str, str]:
    """Distribution -> version, of what runtimes come from."""
    plugins = (provider.wheel for provider in PROVIDERS.values())
    vendors = (backend.package.replace("_", "-") for backend in BACKENDS.values())
    found = {}
    for name in dict.fromkeys((*FAMILY, *plugins, *vendors, "torch", "numpy")):
        try:
            found[name] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # ValueError: empty name
            continue
    return found


def package_problems(versions: Mapping[str, str]) -> list[Problem]:
    """What distributions do to each other."""
    found = []
    family = [name for name in FAMILY if name in versions]
    if len(family) > 1:
        both = " and ".join(f"{name} {versions[name]}" for name in family)
        kept = next((name for name in family if name != "onnxruntime"), family[0])
        found.append(
            Problem(
                f"{both} overwrite each other: both are the package 'onnxruntime'",
                f"pip uninstall -y {' '.join(family)} && pip install {kept}",
            )
        )
    numpy = versions.get("numpy", "1")
    if "onnxruntime-cann" in versions and int(numpy.partition(".")[0]) >= 2:
        found.append(
            Problem(
                f"onnxruntime-cann is built for NumPy 1 and cannot be imported with {numpy}",
                'pip install "numpy<2"',
            )
        )
    return found


def refuse_unknown_targets(names: Sequence[str]) -> None:
    """
    Raises:
        UsageError: no such target, or one twice.
    """
    for name in names:
        if name != NATIVE:
            refuse_unknown(name)
    if len(set(names)) != len(names):
        raise UsageError("a target is named twice", "name each once")


def diagnose(names: Sequence[str] = (), time_limit: float = TIME_LIMIT) -> Diagnosis:
    """Try the targets (all of them by default), each in a process of its own."""
    versions = installed_versions()
    chosen = tuple(names) or (NATIVE, *PROVIDERS, *TORCH_TARGETS)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        states = list(pool.map(lambda name: _state(name, versions, time_limit), chosen))
    problems = package_problems(versions)
    problems += [
        Problem(state.detail, state.cure)
        for state in states
        if "torch cannot be imported" in state.detail and state.name == f"{TORCH}:cpu"
    ]
    return Diagnosis(tuple(states), tuple(problems))


def _state(name: str, versions: Mapping[str, str], time_limit: float) -> TargetState:
    return read_answer(name, _version(name, versions), *_ask(name, time_limit))


def _version(name: str, versions: Mapping[str, str]) -> str:
    if name == NATIVE:
        return __version__
    if torch_device_name(name) is not None:
        return versions.get("torch", "")
    wheel = PROVIDERS[name].wheel if name in PROVIDERS else ""
    any_of_family = next((versions[wheel] for wheel in FAMILY if wheel in versions), "")
    return any_of_family if name == "cpu" else versions.get(wheel, "")


def _ask(name: str, time_limit: float) -> tuple[dict[str, Any] | None, str]:
    """-> the probe's answer, or None and why there is none."""
    command = [sys.executable, "-m", "dsconv.runtime.doctor.probe", name]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=time_limit,
        )
    except subprocess.TimeoutExpired:
        return None, f"no answer in {time_limit:g} s"
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer, ""
    except ValueError:
        said = " ".join(done.stderr.split())[-200:]
        return None, f"its process ended with code {done.returncode}: {said}"


def read_answer(
    name: str, version: str, answer: dict[str, Any] | None, failure: str
) -> TargetState:
    """What the probe's answer means."""
    provider = PROVIDERS.get(name)
    cure = (provider.prepare or provider.install) if provider else ""
    if answer is None:
        return TargetState(name, "broken", version, detail=failure, cure=cure)
    if not answer["found"]:
        # With its wheel there, something that the wheel needs is not.
        is_installed = bool(version) and provider is not None and name not in ("coreml", "cpu")
        state: State = "broken" if is_installed else "missing"
        return TargetState(name, state, version, detail=answer["error"], cure=answer["hint"])
    graphs = {
        key: GraphResult(graph["error"], graph["message"])
        for key, graph in answer["graphs"].items()
    }
    tried = {key: graph for key, graph in graphs.items() if not _is_refusal(graph)}
    bad = [f"{key}: {graph.message}" for key, graph in tried.items() if not graph.passed]
    some = not graphs or any(graph.passed for graph in graphs.values())
    state = "works" if some else "broken"
    kernels = tuple(answer.get("kernels", ()))
    return TargetState(
        name,
        state,
        answer.get("version") or version,
        graphs,
        kernels,
        "; ".join(bad),
        cure if bad else "",
    )


def _is_refusal(graph: GraphResult) -> bool:
    return graph.error is None and graph.message == "not taken by this provider"
