"""An impossible target of bits is refused before any text is written or weight is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from command_line import dsconv
from small_models import write_checkpoint

from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import BitsTarget, QuantizeOptions
from dsconv.convert.quantize.target_range import choices_of, refuse_impossible
from dsconv.errors import UsageError

SCALE_MIN = QuantizeOptions(scheme_name="scale-min")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("target") / "m")


@pytest.mark.parametrize(
    "options", [QuantizeOptions(), QuantizeOptions(symmetric=False), SCALE_MIN]
)
def test_the_range_is_what_can_be_reached(model: Path, options: QuantizeOptions) -> None:
    checkpoint = open_checkpoint(str(model))
    choices = choices_of(checkpoint, options)
    for size in (choices.smallest, choices.largest - 1):
        refuse_impossible(checkpoint, options, BitsTarget(size=size))
    for size in (choices.smallest - 1, choices.largest):
        with pytest.raises(UsageError, match=f"{choices.smallest:,} to {choices.largest:,} bytes"):
            refuse_impossible(checkpoint, options, BitsTarget(size=size))


def test_it_names_the_option_that_reaches_the_target(model: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    low = 8 * choices_of(checkpoint, SCALE_MIN).smallest / checkpoint.parameter_count
    target = BitsTarget(low + 0.01)
    with pytest.raises(UsageError) as refused:
        refuse_impossible(checkpoint, QuantizeOptions(), target)
    assert "--scheme scale-min" in refused.value.hint
    refuse_impossible(checkpoint, SCALE_MIN, target)
    with pytest.raises(UsageError) as refused:
        refuse_impossible(checkpoint, SCALE_MIN, BitsTarget(low - 0.1))
    assert "scale-min" not in refused.value.hint  # it is chosen


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target-bpw", "2"], "target of 2 bits per weight"),
        (["--target-bpw", "5", "--bits", "8"], "--bits 4"),
        (["--target-size", "1kB"], "target of 1,000 bytes"),
        (["--target-size", "1TB"], "leaves every matrix in float"),
        (["--target-bpw", "5", "--embedding-bits", "8"], "leave out --embedding-bits"),
        (["--target-size", "1MB", "--head-bits", "8"], "leave out --head-bits"),
    ],
)
def test_before_any_work(model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    found = dsconv("quantize", model, *options, "-o", tmp_path / "out")
    assert found.code == 2, found.err
    assert words in found.err
    assert list(tmp_path.iterdir()) == []
    if "--target-bpw" in options:
        planned = dsconv("plan", model, *options)
        assert planned.code == 2
        assert planned.err == found.err


@pytest.mark.parametrize("value", ["1", "0", "-5GB", "lots", "nan", "100MiB"])
def test_an_impossible_memory(model: Path, tmp_path: Path, value: str) -> None:
    found = dsconv("quantize", model, "--max-memory", value, "-o", tmp_path / "out")
    assert found.code == 2, found.err
    assert "hint: " in found.err
    assert list(tmp_path.iterdir()) == []
    assert dsconv("plan", model, "--max-memory", value).code == 2


def test_build_says_which_recipe(model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        f'description = "x"\nsource = "{model}"\n[quantize]\ntarget_bpw = 2.5\n', encoding="utf-8"
    )
    found: Any = dsconv("build", recipe, "-o", tmp_path / "out")
    assert found.code == 3
    assert re.search(r"small\.toml: \[quantize\]: target of 2\.5 bits per weight", found.err)
    assert not (tmp_path / "out").exists()
