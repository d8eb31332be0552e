"""What is asked of a quantization: one declaration for two commands and recipes, and defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest

from dsconv.errors import UsageError
from dsconv.runtime.commands.options import asking
from dsconv.runtime.commands.plan import plan
from dsconv.runtime.commands.quantize import quantize
from dsconv.runtime.quantize_request import QuantizeCommandRequest, QuantizeRequest


def names_of(command: Any) -> list[str]:
    return list(inspect.signature(command).parameters)


def test_every_field_is_an_option() -> None:
    assert {entry.name for entry in fields(QuantizeCommandRequest)} <= set(names_of(quantize))
    common = [entry.name for entry in fields(QuantizeRequest) if entry.name != "damping"]
    assert [name for name in names_of(plan) if name in common] == common
    targets = names_of(quantize)
    first = targets.index("target_bpw")
    assert targets[first : first + 4] == ["target_bpw", "target_size", "max_kl", "recipe"]


def test_a_command_is_given_the_request() -> None:
    seen: list[Any] = []

    @asking(QuantizeRequest, without=["damping"])
    def command(model: str, *, request: QuantizeRequest, threads: int = 0) -> None:
        seen.append((model, request, threads))

    defaults = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    given = {**defaults, "model": "m", "bits": 8, "calibration": ["self", "a.txt=2"], "threads": 3}
    command(**given)  # type: ignore[call-arg]
    assert seen == [("m", QuantizeRequest(bits=8, calibration=("self", "a.txt=2")), 3)]


@pytest.mark.parametrize(
    ("asked", "can_write", "tied", "method", "embedding_bits", "correction"),
    [
        ({}, True, False, "gptq", 4, 0.5),
        ({}, False, False, "search", 16, 0.5),
        ({"bits": 8}, True, False, "search", 16, 0.0),
        ({"bits": 8, "target_bpw": 7.0}, True, False, "gptq", 8, 0.0),
        ({"bits": 8, "calibration": ("self",)}, True, False, "gptq", 8, 0.0),
        ({"bits": 8, "activations": "int8"}, False, False, "gptq", 16, 0.0),
        ({"scheme": "scale-min"}, True, False, "gptq", 5, 0.5),
        ({"head_bits": 8}, True, True, "gptq", 8, 0.5),
        ({"head_bits": 8}, True, False, "gptq", 4, 0.5),
        ({"head_bits": 8}, False, True, "search", 16, 0.5),
        ({"method": "rtn", "embedding_bits": 8}, True, False, "rtn", 8, 0.5),
        ({"prefix_correction": 0.25}, True, False, "gptq", 4, 0.25),
    ],
    ids=str,
)
def test_what_is_left_open(
    asked: dict[str, Any],
    can_write: bool,
    tied: bool,
    method: str,
    embedding_bits: int,
    correction: float,
) -> None:
    found = QuantizeRequest(**asked).resolve(3, can_write, tied)
    assert (found.method, found.embedding_bits) == (method, embedding_bits)
    assert found.prefix_correction == correction
    assert (found.threads, found.max_memory) == (3, 2**31)


@pytest.mark.parametrize("target", [{"target_bpw": 4.5}, {"target_size": "1GB"}, {"max_kl": 0.1}])
def test_any_target_calibrates(target: dict[str, Any]) -> None:
    request = QuantizeCommandRequest(bits=8, **target)
    assert request.target() is not None
    assert request.resolve(1, True, False).method == "gptq"


def test_several_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="several targets"):
        QuantizeCommandRequest(target_bpw=4.5, max_kl=0.1).target()
    assert QuantizeCommandRequest().target() is None
