"""Numbers as people write them."""

from __future__ import annotations

import pytest

from dsconv.errors import UsageError
from dsconv.runtime.console import (
    clock_text,
    count_text,
    parse_size,
    rate_text,
    size_text,
    sparkline,
    time_text,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.5, "0.5"),
        (12.34, "12.3"),
        (999, "999"),
        (999.7, "1.0k"),
        (1000, "1.0k"),
        (4004, "4.0k"),
        (95_808, "95.8k"),
        (99_960, "100k"),
        (134_515_008, "135M"),
        (999_999_999, "1.0G"),
        (1_543_714_304, "1.5G"),
        (671e9, "671G"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999.6, "1 kB"),
        (999_600_000, "1 GB"),
        (89_900_000, "89.9 MB"),
        (1_340_000_000, "1.34 GB"),
        (1.3e12, "1.3 TB"),
    ],
)
def test_sizes(value: float, text: str) -> None:
    assert size_text(value) == text


def test_rates() -> None:
    assert rate_text(4004, "tokens") == "4.0k tokens/s"
    assert rate_text(1.5e9, "B") == "1.5 GB/s"
    assert rate_text(0.5, "texts") == "0.5 texts/s"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (3.4, "0:03"), (59.6, "1:00"), (3599.6, "1:00:00")]
)
def test_clocks(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


def test_times_in_words() -> None:
    texts = ["0 s", "< 0.1 s", "0.1 s", "0.4 s", "36 s", "12 min", "3 h 20 min"]
    times = (0, 0.00016, 0.1, 0.4, 36, 720, 12_000)
    assert [time_text(seconds) for seconds in times] == texts


def test_sizes_are_read_as_they_are_written() -> None:
    for text in ("512 B", "1.34 GB", "89.9 MB"):
        assert size_text(parse_size(text)) == text
    assert parse_size("2GiB") == 2 << 30
    for wrong in ("", "two", "-1", "1.2.3", "1 XB", "nan"):
        with pytest.raises(UsageError, match="is not a size"):
            parse_size(wrong)


def test_sparklines() -> None:
    assert sparkline([0.0, 0.5, 1.0, float("nan")]) == "▁▅█?"
