"""Words for hardware mean a row, or several; what is typed wrong gets the nearest."""

from __future__ import annotations

import pytest

from dsconv.convert.targets.table import TARGETS, find_target, matching
from dsconv.errors import UsageError


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("qualcomm", "qnn"),
        ("Snapdragon", "qnn"),
        ("ARM", "cpu"),
        ("aarch64", "cpu"),
        ("trt", "tensorrt"),
        ("rocm", None),
        ("radeon", "migraphx"),
        ("birentech", "torch:supa"),
        ("CUDA", "cuda"),
        (" torch:NPU ", "torch:npu"),
        ("vulkan", "webgpu"),
    ],
)
def test_one_meaning(word: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(UsageError, match="may be 2 targets"):
            find_target(word)
    else:
        assert find_target(word).name == name


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("nvidia", ["cuda", "tensorrt", "torch:cuda"]),
        ("ascend", ["cann", "torch:npu"]),
        ("intel", ["cpu", "openvino", "openvino-npu", "torch:xpu"]),
        ("AMD", ["cpu", "migraphx"]),
        ("apple", ["cpu", "webgpu"]),
        ("Moore Threads", ["musa", "torch:musa"]),
        ("npu", ["openvino-npu", "qnn", "cann", "torch:npu"]),
    ],
)
def test_several_meanings_are_listed(word: str, names: list[str]) -> None:
    with pytest.raises(UsageError, match=f"may be {len(names)} targets") as caught:
        find_target(word)
    for name in names:
        assert f"{name} ({TARGETS[name].hardware.partition(';')[0]}: " in caught.value.hint


def test_the_format_may_decide() -> None:
    assert find_target("ascend", "onnx").name == "cann"
    assert find_target("intel", "gguf").name == "cpu"
    assert "compressed-tensors" in find_target("nvidia", "compressed-tensors").artifacts


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("openvno", "did you mean 'openvino'?"),
        ("nvidai", "did you mean nvidia? use cuda"),
        ("vLLM", "--format compressed-tensors"),
        ("llama.cpp", "--format gguf"),
        ("abacus", "choose cpu, cuda"),
    ],
)
def test_what_is_not_known(word: str, cure: str) -> None:
    with pytest.raises(UsageError, match="is not known") as caught:
        find_target(word)
    assert cure in caught.value.hint


def test_words_are_written_as_they_are_looked_up_and_are_no_names() -> None:
    for target in TARGETS.values():
        for word in target.words:
            assert word == "-".join(word.lower().split())
            assert word not in TARGETS


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("open*", {"openvino", "openvino-npu"}),
        ("torch:", {name for name in TARGETS if name.startswith("torch:")}),
        ("nvidia", {"cuda", "tensorrt", "torch:cuda"}),
        ("ascend", {"cann", "torch:npu"}),
        ("groq", {"groq"}),
    ],
)
def test_a_pattern(pattern: str, names: set[str]) -> None:
    assert {target.name for target in matching(pattern)} == names


def test_a_pattern_that_fits_nothing() -> None:
    with pytest.raises(UsageError, match="no target fits 'abacus'"):
        matching("abacus")
