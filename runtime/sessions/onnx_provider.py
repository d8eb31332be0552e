"""Create an ONNX Runtime session that runs where it was asked to run, or say why it cannot.

ONNX Runtime by itself goes on with the CPU: `get_available_providers()` lists what was compiled in,
a provider whose libraries are missing is dropped with a line on stderr, and one that refuses the
graph leaves its nodes to the CPU. Here every one of these is an error.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from dsconv.errors import OutputError, ProviderError

from .captured_output import Captured, captured_output
from .compiled_graphs import compiled_folder
from .providers import PROVIDERS, Provider, ProviderChoice

NO_CPU_NODES = "session.disable_cpu_ep_fallback"
RECORD_PARTITION = "session.record_ep_graph_assignment_info"
# OpenVINO's, QNN's, ONNX Runtime's own words; the first that is found tells most.
PROVIDER_FAILURES = (
    r"(Device \S+ is not available)",
    r"QNN SetupBackend failed ([^\x1b\n]*)",
    r"(Failed to create \w+\.[^\x1b\n]*)",
)


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        ProviderError: it is not installed, or built for another NumPy.
    """
    try:
        with captured_output():
            return importlib.import_module("onnxruntime")
    except ImportError as error:
        reason = " ".join(str(error).split())
        if isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime":
            raise ProviderError(
                "package 'onnxruntime' is not installed", "pip install onnxruntime"
            ) from error
        # onnxruntime-cann is built with NumPy 1 and does not say so.
        hint = 'pip install "numpy<2"' if "numpy" in reason else "pip install --force onnxruntime"
        raise ProviderError(f"onnxruntime cannot be imported: {reason}", hint) from error


def require_provider(choice: ProviderChoice) -> list[Any]:
    """Find the provider -> devices of its plugin; empty for one that is built in.

    Raises:
        ProviderError: it, a library that it needs, or its device is not there.
    """
    runtime = import_onnxruntime()
    provider = choice.provider
    has_plugin = bool(provider.plugin) and importlib.util.find_spec(provider.plugin) is not None
    if not has_plugin and provider.name in runtime.get_available_providers():
        _require_libraries(choice, runtime)
        return []
    if not has_plugin:
        needs = f"; it also needs {provider.needs}" if provider.needs else ""
        raise ProviderError(
            f"provider {choice.label!r}: the installed onnxruntime {runtime.__version__} has no "
            f"{provider.name}{needs}",
            f"{provider.install}, or run with --provider cpu",
        )
    return _plugin_devices(choice, runtime)


def _require_libraries(choice: ProviderChoice, runtime: Any) -> None:
    missing = missing_library(choice.provider, runtime)
    if missing is not None:
        raise _unusable(choice, missing)


def _unusable(choice: ProviderChoice, reason: str) -> ProviderError:
    """The provider is installed; something that it needs is not there."""
    provider = choice.provider
    return ProviderError(
        f"provider {choice.label!r}: {provider.name} needs {provider.needs or 'more'}: {reason}",
        provider.prepare or provider.install,
    )


def missing_library(provider: Provider, runtime: Any) -> str | None:
    """What the loader says of the provider's shared library; None when it loads or is built in."""
    suffix = "dll" if os.name == "nt" else "so"
    prefix = "" if os.name == "nt" else "lib"
    path = Path(runtime.__file__).parent / "capi" / f"{prefix}{provider.library}.{suffix}"
    if not path.exists():
        return None
    if provider.memory == "cuda" and hasattr(runtime, "preload_dlls"):
        with suppress(Exception), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            runtime.preload_dlls()  # CUDA from pip's wheels; what is missing is found out below
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return " ".join(str(error).split())
    return None


def _plugin_devices(choice: ProviderChoice, runtime: Any) -> list[Any]:
    """Register the plugin (once per process) -> its devices."""
    provider = choice.provider
    try:
        if not any(device.ep_name == provider.name for device in runtime.get_ep_devices()):
            library = importlib.import_module(provider.plugin).get_library_path()
            with captured_output():
                runtime.register_execution_provider_library(provider.name, str(library))
        devices = [d for d in runtime.get_ep_devices() if d.ep_name == provider.name]
    except Exception as error:  # ONNX Runtime raises a class of its own per status code
        reason = " ".join(str(error).split())
        raise ProviderError(
            f"provider {choice.label!r}: its plugin {provider.wheel} cannot be loaded: {reason}",
            provider.prepare or provider.install,
        ) from error
    if not devices:
        raise ProviderError(
            f"provider {choice.label!r}: {provider.wheel} finds no device on this machine",
            f"it needs {provider.needs}: {provider.prepare}",
        )
    return devices


def create_session(
    model: Path | bytes, choice: ProviderChoice, options: Any, allow_fallback: bool = False
) -> Any:
    """An InferenceSession on the provider; the CPU takes nodes only with `allow_fallback`.

    Providers that share the graph with the CPU by design (`shares_with_cpu`) are not held to that
    here: what they left to it shows when the session has run.

    Raises:
        ProviderError: the provider is not there, or refuses the graph.
        OutputError: there is no folder for what the provider compiles.
    """
    devices = require_provider(choice)
    runtime = import_onnxruntime()
    where = "the graph" if isinstance(model, bytes) else str(model)
    is_strict = not (allow_fallback or choice.is_cpu or choice.provider.shares_with_cpu)
    if is_strict:
        options.add_session_config_entry(NO_CPU_NODES, "1")
    if not choice.is_cpu:
        options.add_session_config_entry(RECORD_PARTITION, "1")
    arguments: dict[str, Any] = {"enable_fallback": 0}
    given = _provider_options(choice, model)
    if devices:
        options.add_provider_for_devices([_device(devices, choice)], _without_device(given))
    else:
        arguments["providers"] = _provider_list(choice, given, is_strict)
    try:
        with captured_output() as said:
            source = model if isinstance(model, bytes) else str(model)
            session = runtime.InferenceSession(source, options, **arguments)
    except Exception as error:  # ONNX Runtime raises a class of its own per status code
        if choice.is_cpu:
            raise
        if _failure_in(said):
            raise _unusable(choice, _failure_in(said)) from error
        raise _refusal(where, choice, " ".join(str(error).split())) from error
    if not choice.is_cpu and _failure_in(said):  # a plugin is listed all the same
        raise _unusable(choice, _failure_in(said))
    if choice.provider.name not in session.get_providers():
        raise _refusal(where, choice, said.last_line() or "ONNX Runtime went on without it")
    return session


def _device(devices: list[Any], choice: ProviderChoice) -> Any:
    index = choice.device_index
    if index >= len(devices):
        raise ProviderError(
            f"provider {choice.label!r}: device {index} is not there, {len(devices)} are",
            f"use a number from 0 to {len(devices) - 1}",
        )
    return devices[index]


def _provider_options(choice: ProviderChoice, model: Path | bytes) -> dict[str, str]:
    """What the choice says, and a folder for what is compiled, where the provider keeps that."""
    if not choice.provider.cache_option:
        return dict(choice.options)
    folder = compiled_folder(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}", "point XDG_CACHE_HOME to another folder"
        ) from error
    return {**choice.options, choice.provider.cache_option: str(folder)}


def _without_device(options: Mapping[str, str]) -> dict[str, str]:
    """A plugin's device is chosen by handing it over, not by an option."""
    return {key: value for key, value in options.items() if key != "device_id"}


def _provider_list(
    choice: ProviderChoice, options: Mapping[str, str], is_strict: bool
) -> list[Any]:
    """ONNX Runtime refuses a list that names the CPU where the CPU is to get nothing."""
    wanted: list[Any] = [(choice.provider.name, dict(options))]
    if is_strict or choice.provider.name == PROVIDERS["cpu"].name:
        return wanted
    helpers = [PROVIDERS["cuda"].name] if choice.provider is PROVIDERS["tensorrt"] else []
    return [*wanted, *helpers, PROVIDERS["cpu"].name]


def _refusal(where: str, choice: ProviderChoice, reason: str) -> ProviderError:
    if "fallback" in reason and "disabled" in reason:
        return ProviderError(
            f"{where}: {choice.provider.name} does not take every node, and the CPU is not to run "
            "the rest",
            "export for that provider (--target), or see with --allow-fallback what it leaves out",
        )
    return ProviderError(
        f"{where}: provider {choice.label!r} cannot run it: {reason}",
        "export for that provider's target; dsconv doctor says what works here",
    )


def _failure_in(said: Captured) -> str:
    """Why a provider, or its device, could not be started: ONNX Runtime only logs it."""
    found = (re.search(pattern, said.text) for pattern in PROVIDER_FAILURES)
    return next((" ".join(match.group(1).split()) for match in found if match), "")
