"""Reading answers out of texts: options, numbers, words, programs; and the numbers read off texts alone."""

from __future__ import annotations

from decimal import Decimal

import pytest

from lad_engine.evaluation import intervals
from lad_engine.evaluation.extraction import chosen_option, first_words, last_number, program
from lad_engine.evaluation.sets import Example
from lad_engine.evaluation.tasks import TASKS
from lad_engine.evaluation.text_metrics import distinct, repetition, rouge_l, rouge_n

CHOICES = ("an apple", "a pear", "a pear tree", "nothing")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1),
        ("(C)", 2),
        ("D.", 3),
        ("The answer is (B), not A.", 1),
        ("Answer: C", 2),
        ("The correct option is B. Click the", 1),
        ("Option A is wrong, so the answer is D", 3),
        ("I take option C", 2),
        ("The answer is A pear tree in a garden.", 2),
        ("The answer is A because it grows.", 0),
        ("The answer is A", 0),
        ("The answer to this question is D.", 3),
        ("The answer to the next question is a pear", 1),
        ("A pear.", 1),
        ("It is a pear tree in a garden", 2),
        ("I would say an apple or nothing", None),
        ("An apple", 0),
        ("E", None),
        ("", None),
        ("A dog is an animal", None),
        ("Nothing at all", 3),
        ("B\n\nBecause it grows.", 1),
        ("**Answer:** C", 2),
        ('The correct answer is "B. Burn', 1),
        ("B is the correct option.", 1),
        ("A is a letter", None),
        ("The answer is **A pear tree**", 2),
    ],
)
def test_an_option_is_read_from_a_letter_or_from_its_words(text, chosen):
    assert chosen_option(text, CHOICES) == chosen


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### $1,234.50 dollars, 3 of them", "1234.5"),
        ("The answer is 18. I checked it 2 times.", "18"),
        ("first 3 then -4", "-4"),
        ("5.00", "5"),
        ("none", None),
        ("####\nso it is 7", "7"),
        ("#### -10", "-10"),
        ("she is -$3 short", "-3"),
        ("it is $-3", "-3"),
        ("The sum is\n- 18 eggs", "18"),
        ("that leaves 20-5", "5"),
        ("it costs $.50", "0.5"),
        ("the total is...18", "18"),
    ],
)
def test_a_solution_ends_with_its_number(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_the_first_words_have_neither_case_nor_marks():
    assert first_words(' "Signs," he said', 1) == ["signs"]
    assert first_words("...") == first_words("--") == []
    assert first_words("- 'sea' it was", 1) == ["sea"] and first_words("don't") == ["don't"]


def test_of_a_reference_over_two_lines_every_word_counts():
    def is_right(text: str) -> bool:
        return TASKS["lambada"].scored(Example("1", "she took off", answers=("the\ngloves",)), text)["accuracy"]

    assert is_right(" the gloves, and") and not is_right(" the coat") and not is_right(" the") and not is_right("")


HEAD = 'from typing import List\n\ndef double(x: int) -> int:\n    """Twice."""\n'


@pytest.mark.parametrize(
    "text",
    [
        "Here it is:\n```python\ndef double(x: int) -> int:\n    return 2 * x\n```\nDone.",
        "def double(x: int) -> int:\n    return 2 * x",
        "```\nreturn 2 * x\n```",
        "    return 2 * x",
        "```python3\nreturn 2 * x\n```\nIt doubles.",
        # An engine strips answers on the left.
        "y = x\n    return y + x",
        "for y in [x]:\n        x += y\n    return x",
        "for y in [x]:\n      x += y\n    return x",
        "for y in [x]:\n    x += y\nreturn x",
        "y = x\nreturn y + x",
    ],
)
def test_a_program_is_a_block_a_function_or_its_body(text):
    names: dict = {}
    exec(program(text, HEAD, "double"), names)
    assert names["double"](4) == 8
    assert "List" in names


def test_helpers_of_the_prompt_stand_before_an_answer_that_is_the_whole_function():
    helped = 'import math\n\ndef half(x):\n    return math.floor(x / 2)\n\ndef quarter(x):\n    """A quarter."""\n'
    names: dict = {}
    exec(program("```python\ndef quarter(x):\n    return half(half(x))\n```", helped, "quarter"), names)
    assert names["quarter"](9) == 2 and names["half"](5) == 2


def test_rouge_by_hand():
    assert rouge_n("the cat sat", "the cat ran", 1) == pytest.approx(2 / 3)
    assert rouge_n("the cat sat", "the cat ran", 2) == pytest.approx(1 / 2)
    assert rouge_l("a b c d", "a c x d") == pytest.approx(3 / 4)
    assert rouge_l("", "a") == rouge_n("x", "y", 1) == 0.0
    # clipped: three of one word match one
    assert rouge_n("the the the", "the end", 1) == pytest.approx(2 / 5)


def test_variety_and_repetition_by_hand():
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct([], 1) == 0.0
    assert repetition("no no no") == pytest.approx(2 / 3)
    assert repetition("one two three four") == 0.0
    assert repetition("a b c a b c") == pytest.approx(1 / 6)


def test_intervals_are_the_known_ones_and_the_same_each_time():
    metric = intervals.share([True] * 8 + [False] * 2)
    # Wilson's interval for 8 of 10, from the published formula
    assert (metric["value"], metric["n"]) == (0.8, 10)
    assert (metric["low"], metric["high"]) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert intervals.mean([1.0, 2.0, 4.0]) == intervals.mean([1.0, 2.0, 4.0])
    low, value, high = (intervals.mean(list(range(100)))[name] for name in ("low", "value", "high"))
    assert value == 49.5 and 42 < low < 46 and 53 < high < 57
    assert intervals.ratio([2.0, 0.0], [1.0, 1.0], exponential=True)["value"] == pytest.approx(2.718281828)
    # One example says nothing about the spread.
    assert intervals.mean([2.0]) == {"value": 2.0, "low": None, "high": None, "interval": "bootstrap", "n": 1}
    assert intervals.share([])["value"] is None and intervals.ratio([0.0], [0.0])["value"] is None
    # Of a mean the delete-one jackknife is the textbook's standard error: here s / sqrt(n) = sqrt(0.3 * 0.7 / 9).
    hits = [1.0] * 3 + [0.0] * 7
    metric = intervals.of_list(hits, lambda some: sum(some) / len(some))
    assert metric["interval"] == "jackknife" and metric["value"] == pytest.approx(0.3)
    assert metric["high"] - metric["low"] == pytest.approx(2 * intervals.Z * (0.3 * 0.7 / 9) ** 0.5)
    assert intervals.of_list([1.0], sum) == {"value": 1.0, "low": None, "high": None, "interval": "jackknife", "n": 1}
