"""Answers as models write them: units, money, signs, fractions, boxes, texts that were cut."""

from __future__ import annotations

import pytest

from dsconv.runtime.verify.tasks.answers import equivalent, final_answer, right_answer


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (r"\boxed{025}", "25"),  # AIME's three digits
        (r"\boxed{25}", "025"),
        (r"\boxed{0}", "000"),
        (r"\boxed{-0}", "0"),
        (r"\boxed{18\%}", "18"),
        (r"\boxed{1,234,567}", "1234567"),
        (r"\boxed{1\,234}", "1234"),
        (r"\boxed{1 234}", "1234"),
        (r"\boxed{−7}", "-7"),  # typed minus
        (r"\boxed{–7}", "-7"),
        ("The answer is −7", "-7"),
        ("so x=-7", "-7"),
        ("it falls by -$5.", "-5"),
        ("10-7", "7"),  # what is taken away
        ("see Covid-19", "19"),
        (r"\boxed{\frac{-3}{4}}", r"-\frac{3}{4}"),
        (r"\boxed{\tfrac34}", r"\frac{3}{4}"),
        ("the answer is 3/4.", r"\frac{3}{4}"),
        (r"the answer is $-\frac{3}{4}$.", "-3/4"),
        ("1 1/2", r"\frac32"),
        (r"\boxed{1 1/2}", "1.5"),
        (r"\boxed{1\frac{1}{2}}", r"\frac32"),
        (r"\boxed{\text{(A) 5}}", "A"),
        (r"\boxed{\textbf{(A)}}", "A"),
        (r"\boxed{\boxed{18}}", "18"),
        (r"\boxed{x = \boxed{18}}", "18"),
        (r"\fbox{x+1}", "1+x"),
        (r"\boxed {x+1}", "x+1"),
        (r"\boxed 18", "18"),
        (r"\boxed{3}, as asked in \boxed{}", "3"),
        (r"\boxed{3}, \boxed{5}", "3,5"),
        (r"$\boxed{3}$ and $\boxed{5}$", "3,5"),
        (r"\boxed{18}. Checked: \boxed{18}", "18"),
        (r"\boxed{\left\{1,2\right\}}", r"\{1,2\}"),
        (r"\boxed{3.0\times10^{5}}", "300000"),
        ("3e5", "300000"),
        (r"\boxed{50\text{ km/h}}", "50"),
        (r"\boxed{50 km/h}", "50"),
        (r"\boxed{50\, \mathrm{m/s^2}}", "50"),
        (r"\boxed{18~\text{cm}}", "18"),
        (r"\boxed{\text{18 dollars}}", "18"),
        (r"\boxed{18\text{ dollars}\ }", "18"),
        (r"\boxed{£50}", "50"),
        (r"\boxed{¥1,050}", "1050"),
        (r"\boxed{50元}", "50"),
        (r"\boxed{50\text{元}}", "50"),
        (r"\boxed{50°}", "50"),
        ("**$18.50**", "18.5"),
        (r"\boxed{12_{5}}", "12_5"),
        ("１８", "18"),
    ],
)
def test_right(text: str, told: str) -> None:
    assert equivalent(final_answer(text), right_answer(told, is_value=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (r"\boxed{18\%}", "0.18"),
        (r"\boxed{}", "18"),
        (r"\boxed{3} or \boxed{5}", "5"),  # says both
        (r"\boxed{3\pi}", "3"),
        (r"\boxed{18!}", "18"),
        (r"\boxed{5万}", "5"),
        (r"\boxed{1 1/2}", "5.5"),
        (r"\boxed{12 34}", "1234"),
        (r"\boxed{12_5}", "125"),
        (r"\boxed{10000000000000000000001}", "10000000000000000000000"),
        (r"\boxed{1e400}", "2"),
        (r"\boxed{(B) 5}", "A"),
    ],
)
def test_wrong(text: str, told: str) -> None:
    assert not equivalent(final_answer(text), right_answer(told, is_value=True))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{12", None),  # of 125, perhaps
        (r"\boxed{7}; again: \boxed{1", "7"),
        ("it is 5, then 12", "5"),
        ("12", None),
        ("it is 12.", "12"),
        (r"\boxed{12}, and so on, 3", "12"),
    ],
)
def test_a_text_that_was_cut(text: str, answer: str | None) -> None:
    assert final_answer(text, is_cut=True) == answer
