"""Texts of a pattern: what is fixed and what are gaps, matching that agrees with Python's and never backtracks, and what is refused."""

from __future__ import annotations

import random
import re
import time

import pytest
from live_server import HELLO

from lad_engine.server.failures import Failure
from lad_engine.server.pattern import pattern_skeleton, tree_of
from lad_engine.server.regular import Matcher
from lad_engine.text.codec import load_tokenizer
from lad_engine.text.infill import parse_infill

ATOMS = ("a", "b", ".", r"\d", r"\w", r"\S", "[ab1]", "[^a-c]", r"[^\s\d]", "-", r"\.")
LETTERS = "ab1- .\né_"


def random_pattern(draw: random.Random, depth: int = 0) -> str:
    parts = []
    for _ in range(draw.randint(1, 3)):
        item = draw.choice(ATOMS)
        if depth < 2 and draw.random() < 0.4:
            item = f"({'|'.join(random_pattern(draw, depth + 1) for _ in range(draw.randint(1, 3)))})"
        parts.append(item + draw.choice(("", "", "", "?", "*", "+", "*?", "{2}", "{1,3}", "{0,2}")))
    return "".join(parts)


def test_matching_agrees_with_python():
    draw = random.Random(3)
    seen = set()
    for _ in range(300):
        pattern = random_pattern(draw)
        compiled, matcher = re.compile(pattern), Matcher(tree_of(pattern))
        for _ in range(12):
            text = "".join(draw.choice(LETTERS) for _ in range(draw.randint(0, 6)))
            fitting = [end for end in range(len(text) + 1) if compiled.fullmatch(text[:end])]
            assert list(matcher.ends(text)) == fitting, (pattern, text)
            seen.add(bool(fitting))
    assert seen == {True, False}


def test_kinds_of_letters_are_pythons():
    for kind in (r"\d", r"\w", r"\s"):
        matcher, compiled = Matcher(tree_of(kind)), re.compile(kind)
        assert all(any(matcher.ends(chr(code))) == bool(compiled.match(chr(code))) for code in range(0, 0x3000, 3))


@pytest.mark.parametrize("pattern", ["(a+)+b", "((((.*)*)*)*)*!", "a*" * 250 + "b", "(a|a|aa){0,150}b", "(.?){512}"])
def test_no_pattern_makes_it_backtrack(pattern):
    start = time.process_time()
    list(Matcher(tree_of(pattern)).ends("a" * 2000))
    pattern_skeleton(pattern).read("a" * 2000 + "b!")
    # Python's own search does not end within a day for most of these.
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    "pattern,parts",
    [
        (r"^\d{4}-\d{2}$", [..., "-", ...]),
        (r"Answer: (yes|no)\.", ["Answer: ", ["no", "yes"], "."]),
        ("positive|possible|bad", [["bad", "positive", "possible"]]),
        ("is (?:positive|possible)!", ["is ", ["positive", "possible"], "!"]),
        ("https?://[a-z]+", [["http", "https"], "://", ...]),
        (r"(\d{3}-){2}\d+", [..., "-", ..., "-", ...]),
        (r"(\w+, )+\w+", [..., ", ", ...]),
        ("(a|b)x(c|d)", [["a", "b"], "x", ["c", "d"]]),
        (r"C:\\a\\\w+", ["C:\\a", ...]),
    ],
)
def test_literals_are_fixed_and_choices_are_whole_words(pattern, parts):
    skeleton = pattern_skeleton(pattern)
    assert len(skeleton.parts) == len(parts)
    for part, wanted in zip(skeleton.parts, parts, strict=True):
        if isinstance(wanted, str):
            assert part == wanted
        else:
            assert part._choices == (None if wanted is ... else wanted)


@pytest.mark.parametrize("pattern", [r"\\\d", r"a\\(b|c)d", r"\d\\\\\d", r"\[\[\d\]\]", r"\[\d", r"\\\[\[\w"])
def test_an_infill_keeps_what_is_fixed(pattern):
    skeleton = pattern_skeleton(pattern)
    spans = parse_infill(skeleton.infill({gap.place: 3 for gap in skeleton.gaps}))
    assert [None if span.is_open else span.text for span in spans] == [part if isinstance(part, str) else None for part in skeleton.parts]


def test_gaps_that_hold_stay_and_the_others_are_gaps_again():
    skeleton = pattern_skeleton(r"id: [a-z]{3}-\d+ \((yes|no)\)")
    sizes = {gap.place: 4 for gap in skeleton.gaps}
    assert skeleton.infill(sizes) == "id: [[4]]-[[4]] ([[4]])"
    skeleton.read("id: ab1-17 or so (maybe)")
    assert [gap.text for gap in skeleton.gaps] == [None, "17", None]
    assert skeleton.open[1].place == "gap 3 (behind ' (')"
    assert skeleton.infill(sizes) == "id: [[4]]-17 ([[4]])"
    skeleton.read("id:  abcd-17 (nothing)")
    assert [gap.text for gap in skeleton.gaps] == [None, "17", None], "neither is cut out of a word"
    skeleton.read("id:  abc, or so-17 (YES, it is)")
    assert skeleton.open == [] and skeleton.document() == "id: abc-17 (yes)"
    assert re.fullmatch(r"id: [a-z]{3}-\d+ \((yes|no)\)", skeleton.document())


def test_an_answer_without_its_fixed_text_gives_nothing():
    skeleton = pattern_skeleton(r"id: \d+;")
    skeleton.read("12;")
    assert len(skeleton.open) == 1


def test_gaps_are_as_wide_as_their_texts(places):
    codec = load_tokenizer(places[0])
    skeleton = pattern_skeleton(r"\d{3}-(user|the user)-\w+-.*")
    sizes = list(skeleton.sizes(codec, 200).values())
    assert sizes == [3, len(codec.encode("the user")), 16, 64]
    fixed = 3 * len(codec.encode("-"))
    assert list(skeleton.sizes(codec, fixed + 3 + sizes[1] + 2).values()) == [3, sizes[1], 1, 1]
    with pytest.raises(Failure, match=f"expected at least {fixed + 3 + sizes[1] + 2} for this pattern"):
        skeleton.sizes(codec, fixed + 3 + sizes[1] + 1)


@pytest.mark.parametrize(
    "pattern,says",
    [
        ("(?=a)b", "look-around"),
        ("(?<!a)b+", "look-around"),
        (r"(a|b)\1", "back-reference"),
        ("(a)?(?(1)b|c)", "conditional group"),
        ("(?>a|b)c", "atomic group"),
        ("a++", "possessive repeat"),
        (r"\bx+", r"\\b"),
        ("a|^b$", "anchor"),
        ("(?i)a|b", "flag"),
        ("(?i:a|b)", "flag within a group"),
        ("hello", "0 gaps"),
        ("x?y" * 65, "65 gaps"),
        ("(a|b", "unterminated"),
        ("(" * 500, "cannot be read|too deep"),
        ("(" * 13 + "a" + ")+" * 13, "at most 24 levels"),
        ("a{513}", "513 letters"),
        ("(a{30}){4000000000}", "letters or more"),
        ("a{99999999999}", "counts too far"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(pattern, says):
    with pytest.raises(Failure, match=says) as refused:
        pattern_skeleton(pattern)
    assert refused.value.status == 400 and refused.value.param == "response_format"


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_whatever_a_client_sends_is_read_or_refused():
    draw = random.Random(5)
    read = 0
    for _ in range(3000):
        pattern = "".join(draw.choice(r"ab1()[]{}|*+?.^$\dwsSbAZ,-<>=!:P#0") for _ in range(draw.randint(1, 24)))
        try:
            skeleton = pattern_skeleton(pattern)
        except Failure:
            continue
        read += 1
        skeleton.read("ab1 b-1")
        if not skeleton.open:
            assert re.compile(pattern).fullmatch(skeleton.document()), pattern
    assert read > 100


FORM = {"type": "regex", "pattern": r"ref: [^\n]{1,30}"}


@pytest.mark.parametrize("path,prompt", [("/v1/chat/completions", {"messages": HELLO}), ("/v1/completions", {"prompt": "the user is "})])
def test_the_server_answers_with_the_pattern_or_says_that_it_could_not(served, path, prompt):
    body = {**prompt, "steps": 3, "max_tokens": 24, "model": "first", "response_format": FORM}
    for seed in range(3):
        answer = served.post(path, json={**body, "seed": seed})
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        text = choice["text"] if path == "/v1/completions" else choice["message"]["content"]
        assert re.fullmatch(FORM["pattern"], text) and choice["finish_reason"] == "stop"
    assert answer.json()["lad"]["rounds"] >= 1
    failed = served.post(path, json={**body, "response_format": {"type": "regex", "pattern": "is it (qq|zz)[0-9]{9}"}})
    error = failed.json()["error"]
    assert failed.status_code == 422 and error["code"] == "format_not_met" and "gap 1 (behind 'is it ')" in error["message"]


@pytest.mark.parametrize(
    "wrong,param,says",
    [
        ({"stream": True}, "stream", "beside response_format regex"),
        ({"logprobs": 0}, "logprobs", "beside response_format regex"),
        ({"draft": "a"}, "draft", "beside response_format regex"),
        ({"max_tokens": 2}, "max_new_tokens", "expected at least"),
        ({"response_format": {"type": "regex"}}, "response_format", "response_format.pattern is missing"),
        ({"response_format": {"type": "regex", "regex": "a+"}}, "response_format", "response_format"),
        ({"response_format": {**FORM, "max_length": 9}}, "response_format", "response_format.max_length is not a parameter"),
        ({"response_format": {"type": "text", "pattern": "a+"}}, "response_format", "response_format.pattern is not a parameter"),
        ({"response_format": {"type": "regex", "pattern": "a" * 513}}, "response_format", "at most 512"),
        ({"response_format": {"type": "regex", "pattern": r"(?=a)\w"}}, "response_format", "look-around"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "response_format.json_schema is missing"),
        ({"response_format": {"type": "grammar"}}, "response_format", "'regex'"),
    ],
)
def test_a_wrong_format_is_refused_by_name(served, wrong, param, says):
    refused = served.post("/v1/completions", json={"prompt": "the", "max_tokens": 24, "response_format": FORM, **wrong})
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == param and says in error["message"], error
