"""One target, tried in a process of its own: a provider that crashes takes nobody along.

python -m dsconv.runtime.doctor.probe openvino
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from dsconv.errors import DsconvError
from dsconv.runtime.sessions.providers import choose_provider, torch_device_name

from .graphs import INT4, TOLERANCE, Trial, float16

NATIVE = "native"
Run = Callable[[Trial], float]


def probe(target: str) -> dict[str, Any]:
    """-> `found`, `error`, `hint`; and per graph its error, or in words why it did not run."""
    try:
        return _try(target)
    except DsconvError as error:
        return {"found": False, "error": error.message, "hint": error.hint}


def _try(target: str) -> dict[str, Any]:
    if target == NATIVE:
        return _try_native()
    device = torch_device_name(target)
    if device is not None:
        return _try_torch(device)
    from dsconv.runtime.sessions.onnx_provider import (
        create_session,
        import_onnxruntime,
        require_provider,
    )

    choice = choose_provider(target)
    runtime = import_onnxruntime()
    require_provider(choice)

    def run(trial: Trial) -> float:
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # why a provider does not start is only in the log
        options.intra_op_num_threads = 1
        session = create_session(trial.model, choice, options)
        return trial.error_of(session.run(None, {"x": trial.x})[0])

    graphs = {"int4": INT4.get(choice.provider.int4), "fp16": float16}
    return {"found": True, "graphs": {name: _outcome(make, run) for name, make in graphs.items()}}


def _outcome(make: Callable[[], Trial] | None, run: Run) -> dict[str, Any]:
    if make is None:
        return {"error": None, "message": "not taken by this provider"}
    try:
        error = run(make())
    except Exception as failure:  # runtimes raise what they like; it is what we report
        words = failure.message if isinstance(failure, DsconvError) else str(failure)
        return {"error": None, "message": " ".join(words.split()) or type(failure).__name__}
    # NaN is no match either
    wrong = "" if error <= TOLERANCE else f"off by {error:.2g} of the largest value"
    return {"error": error, "message": wrong}


def _try_torch(device: str) -> dict[str, Any]:
    from dsconv.runtime.sessions.torch_device import find_device, import_torch

    found = find_device(device)
    torch = import_torch()
    from .torch_trials import run_float16, run_int4

    return {
        "found": True,
        "version": torch.__version__,
        "graphs": {
            "int4": _outcome(INT4["contrib"], lambda trial: run_int4(trial, found)),
            "fp16": _outcome(float16, lambda trial: run_float16(trial, found)),
        },
    }


def _try_native() -> dict[str, Any]:
    from dsconv.runtime.sessions.native import available_kernels

    return {"found": True, "kernels": available_kernels(), "graphs": {}}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # runtimes print to stdout too
    os.dup2(2, 1)
    print(json.dumps(probe(sys.argv[1])), file=answers, flush=True)


if __name__ == "__main__":
    main()
