"""Where limits come from, and what they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import dsconv
from outputs import quantized
from small_models import write_checkpoint

from dsconv.convert.inspect.describe import describe
from dsconv.errors import InputError, UsageError
from dsconv.runtime.verify.circumstances import narrowest_bits
from dsconv.runtime.verify.thresholds import (
    Threshold,
    choose,
    defaults,
    from_file,
    from_options,
    from_table,
)


def limits(thresholds: tuple[Threshold, ...]) -> dict[str, tuple[float, str]]:
    return {t.figure.key: (t.limit, t.source) for t in thresholds}


def test_the_first_that_names_a_figure_wins() -> None:
    options = from_options({"max_kl": 0.1, "min_top1": None})
    recipe = from_table({"max_kl": 0.2, "min_top1": 0.9}, "recipe.toml", "recipe")
    file = from_table({"min_top1": 0.8, "max_kl_p99": 1}, "dsconv.toml", "file")
    assert limits(choose(options, recipe, file, 4.5)) == {
        "max_kl": (0.1, "option"),
        "min_top1": (0.9, "recipe"),
        "max_kl_p99": (1.0, "file"),
    }


def test_the_defaults_count_only_where_nobody_names_any() -> None:
    chosen = choose((), (), (), 4.5)
    assert {t.source for t in chosen} == {"default"}
    assert chosen == defaults(4.5)
    option = from_options({"min_top1": 0.5})
    assert choose(option, (), (), 4.5) == option


def test_fewer_bits_are_allowed_more() -> None:
    kls = [limits(defaults(bits))["max_kl"][0] for bits in (16.0, 8.0, 4.5, 4.0, 3.0, 1.0)]
    assert kls == sorted(kls)
    assert kls[1] < kls[2] < kls[4]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_kl", -0.1),
        ("max_kl", float("nan")),
        ("min_top1", 1.5),
        ("max_probability_shift", -1),
        ("max_ppl_ratio", -1),
        ("max_kl_p99", float("nan")),
    ],
)
def test_limits_out_of_range(key: str, value: float) -> None:
    with pytest.raises(UsageError, match=key.replace("_", " ")):
        from_options({key: value})
    with pytest.raises(InputError, match=rf"x\.toml: {key}"):
        from_table({key: value}, "x.toml", "recipe")


@pytest.mark.parametrize("value", ["0.1", True, None, [0.1]])
def test_a_limit_in_a_file_is_a_number(value: Any) -> None:
    with pytest.raises(InputError, match="is not a number"):
        from_table({"max_kl": value}, "x.toml", "file")


def test_an_unknown_key_is_told_with_those_that_are_known() -> None:
    with pytest.raises(InputError, match="max_kl_divergence") as error:
        from_table({"max_kl_divergence": 1}, "x.toml", "file")
    assert "max_kl, max_kl_p99, min_top1" in error.value.hint


def test_the_file_of_the_folder(tmp_path: Path) -> None:
    assert from_file(tmp_path) == ()
    (tmp_path / "dsconv.toml").write_text("[other]\nx = 1\n")
    assert from_file(tmp_path) == ()
    (tmp_path / "dsconv.toml").write_text("[verify]\nmax_kl = 0.03\nmin_top1 = 1\n")
    assert limits(from_file(tmp_path)) == {"max_kl": (0.03, "file"), "min_top1": (1.0, "file")}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[verify\n", "not TOML"),
        (b"\xff", "not TOML"),
        (b"verify = 3\n", "not a table"),
        (b"[verify]\nmax_kl = 'low'\n", "max_kl"),
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "dsconv.toml").write_bytes(content)
    with pytest.raises(InputError, match=words):
        from_file(tmp_path)


@pytest.mark.parametrize(("bits", "low", "high"), [(4, 4.2, 5.5), (8, 8.2, 9.5)])
def test_the_narrowest_matrix(tmp_path: Path, bits: int, low: float, high: float) -> None:
    model = write_checkpoint(tmp_path / "m")
    assert narrowest_bits(str(model), describe(str(model))) == 16
    quantized(model, tmp_path / "q", bits=bits)
    assert low < narrowest_bits(str(tmp_path / "q"), describe(str(tmp_path / "q"))) < high


def test_int8_inputs_may_cost_more_than_int8_weights() -> None:
    assert limits(choose((), (), (), 8.0))["max_kl"] == (0.02, "default")
    assert limits(choose((), (), (), 8.0, rounds_inputs=True))["max_kl"] == (0.1, "default")


def test_int8_inputs_are_known_by_the_weights_of_checkpoint_and_exports(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m")
    quantized(model, tmp_path / "q", bits=8, activations="int8")
    artifacts = [tmp_path / "q"]
    for form in ("compressed-tensors", "ascend"):
        artifacts.append(tmp_path / form)
        assert dsconv("export", tmp_path / "q", "--format", form, "-o", artifacts[-1]).code == 0
    for artifact in artifacts:
        options = ("--max-tokens", 64, "--window", 32, "--no-layers", "--json")
        report = dsconv("verify", artifact, "--reference", model, *options).json
        limit = {check["name"]: check["limit"] for check in report["checks"]}
        assert limit["max-kl"] == 0.1, artifact
