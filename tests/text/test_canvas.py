"""Every prompt format lays out the ids the spec names, and what does not fit is refused with its numbers."""

import numpy as np
import pytest
from tokenizers import AddedToken

from lad_engine.errors import RequestError
from lad_engine.text.canvas import fixed_length, lay_out
from lad_engine.text.codec import TextCodec, load_tokenizer
from lad_engine.text.formats import PromptDefaults
from lad_engine.text.infill import parse_infill
from lad_engine.text.prompts import Prompt
from tiny_checkpoint import make_tiny

HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    codec = load_tokenizer(make_tiny(tmp_path_factory.mktemp("tiny")))
    codec._tokenizer.add_special_tokens([AddedToken(text, special=True) for text in HEADERS])
    return codec


@pytest.fixture(scope="module")
def mask(codec):
    return codec.piece_id("MASK")


def canvas_of(codec, prompt, format="chat", **settings):
    needs = PromptDefaults(
        **{"prompt_format": format, **{k: settings.pop(k) for k in ("system_prompt", "predicts_next_token") if k in settings}}
    )
    settings = {"max_new_tokens": 6, "max_positions": 512, "mask_id": codec.piece_id("MASK"), **settings}
    return lay_out(prompt, codec, needs, **settings)


def front(codec, canvas):
    return codec.decode(canvas.ids[: canvas.answer_start], skip_special=False)


def test_chat_uses_the_models_template_and_opens_the_answer_only(codec, mask):
    canvas = canvas_of(codec, "the user")
    assert front(codec, canvas) == ("<|im_start|>system\nBe tiny.<|im_end|>\n<|im_start|>user\nthe user<|im_end|>\n<|im_start|>assistant\n")
    assert canvas.ids.dtype == np.int64 and canvas.answer_length == 6
    assert (canvas.ids[canvas.answer_start :] == mask).all()
    assert canvas.is_open.tolist() == [False] * canvas.answer_start + [True] * 6


def test_the_requests_system_prompt_wins_over_the_adapters(codec):
    assert "system\nof the adapter<" in front(codec, canvas_of(codec, "a", system_prompt="of the adapter"))
    assert "system\nmine<" in front(codec, canvas_of(codec, Prompt("a", system="mine"), system_prompt="of the adapter"))
    talk = ({"role": "system", "content": "first"}, {"role": "user", "content": "a"})
    assert "adapter" not in front(codec, canvas_of(codec, Prompt(messages=talk), system_prompt="of the adapter"))


def test_several_turns_are_rendered_in_order(codec):
    talk = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
    assert "user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<" in front(
        codec, canvas_of(codec, Prompt(messages=talk))
    )


def test_space_format_is_the_text_of_the_spec_and_leaves_the_newline_to_the_answer(codec):
    canvas = canvas_of(codec, Prompt("why?", format="space"))
    system, user, assistant = (f"<|start_header_id|>{role}<|end_header_id|>" for role in ("system", "user", "assistant"))
    expected = f"<|begin_of_text|>\n{system}\nYou are a helpful assistant.\n{user}\nwhy?\n{assistant}"
    assert canvas.ids[: canvas.answer_start].tolist() == codec.encode(expected)
    draft = canvas_of(codec, Prompt("why?", format="space", draft="er"))
    assert codec.decode(draft.ids[draft.answer_start :]) == "\ner"


def test_space_format_needs_a_llama_vocabulary(tmp_path):
    with pytest.raises(RequestError, match="not one token of this tokenizer, expected a Llama 3 vocabulary"):
        canvas_of(load_tokenizer(make_tiny(tmp_path)), "a", "space")


def test_raw_text_stands_as_it_is_behind_one_bos(codec):
    assert canvas_of(codec, "the user", "raw").ids[:3].tolist() == [1, *codec.encode("the user")][:3]
    assert front(codec, canvas_of(codec, "<|im_start|>the", "raw")) == "<|im_start|>the"
    without_bos = TextCodec(codec._tokenizer, {"eos_token": "<|im_end|>"})
    assert front(without_bos, canvas_of(without_bos, "the", "raw")) == "the"


def test_a_draft_fills_the_answer_and_ends_with_the_end_token(codec):
    canvas = canvas_of(codec, Prompt("a", draft="the"))
    words = codec.encode("the")
    assert canvas.ids[canvas.answer_start :].tolist() == words + [2] * (6 - len(words))
    assert canvas.is_open[canvas.answer_start :].all()


def test_infill_in_chat_is_the_assistants_turn_with_a_fixed_end(codec, mask):
    canvas = canvas_of(codec, Prompt("a", infill="the[[3]] user"))
    the, user = codec.encode("the"), codec.encode(" user")
    assert canvas.ids[canvas.answer_start :].tolist() == [*the, mask, mask, mask, *user, 2]
    assert canvas.is_open[canvas.answer_start :].tolist() == [False] * len(the) + [True] * 3 + [False] * (len(user) + 1)
    assert fixed_length(canvas, (2,)) == len(the) + 3 + len(user)


def test_raw_infill_is_the_whole_canvas_with_a_fixed_token_in_front(codec, mask):
    canvas = canvas_of(codec, Prompt(infill="[[2]] user"), "raw", predicts_next_token=True)
    assert (canvas.answer_start, canvas.ids[0], canvas.ids[1:3].tolist()) == (1, 1, [mask, mask])
    without_bos = TextCodec(codec._tokenizer, {"eos_token": "<|im_end|>"})
    shifted = canvas_of(without_bos, Prompt(infill="[[2]] user"), "raw", predicts_next_token=True)
    assert (shifted.answer_start, shifted.ids[0]) == (1, 2)
    assert canvas_of(without_bos, Prompt(infill="[[2]] user"), "raw").answer_start == 0
    with pytest.raises(RequestError, match="expected a token in front of the first gap"):
        bare = TextCodec(codec._tokenizer, {})
        canvas_of(bare, Prompt(infill="[[2]] user"), "raw", predicts_next_token=True)


def test_gaps_can_start_from_words_and_brackets_can_be_literal(codec, mask):
    kinds = [(span.text, span.is_open, span.size) for span in parse_infill("x\\[[1]] [[2]][[:er on]][[4:in]]y]]")]
    assert kinds == [("x[[1]] ", False, None), ("", True, 2), ("er on", True, None), ("in", True, 4), ("y]]", False, None)]
    canvas = canvas_of(codec, Prompt("a", infill="x[[4:in]]"))
    (x,), (inner,) = codec.encode("x"), codec.encode("in")
    assert canvas.ids[canvas.answer_start :].tolist() == [x, inner, mask, mask, mask, 2]


@pytest.mark.parametrize("bad", ["no gap", "[[0]] a", "a [[x]]", "a [[]]", "a [[3", "[[:]] a", "[[-1]] a"])
def test_malformed_gaps_are_refused(bad):
    with pytest.raises(RequestError, match=r"^infill: "):
        parse_infill(bad)


def test_what_does_not_fit_is_refused_with_its_numbers(codec):
    canvas = canvas_of(codec, "a")
    front_length, limit = canvas.answer_start, canvas.answer_start + 10
    assert canvas_of(codec, "a", max_positions=limit, max_new_tokens=10).length == limit
    with pytest.raises(RequestError) as caught:
        canvas_of(codec, "a", max_positions=limit, max_new_tokens=11)
    assert str(caught.value) == (
        f"prompt: {front_length} prompt and 11 answer positions make {limit + 1}, expected at most {limit} (the model's window). "
        "Lower max_new_tokens to 10 or shorten the prompt."
    )
    for prompt in (Prompt("a", infill="b [[99999999999999]]"), Prompt("word " * 600)):
        with pytest.raises(RequestError, match="expected at most 512"):
            canvas_of(codec, prompt)
    with pytest.raises(RequestError, match="Shorten the prompt"):
        canvas_of(codec, "a", max_new_tokens=10**12, max_positions=front_length)
    with pytest.raises(RequestError, match="draft: it is 12 tokens, expected at most max_new_tokens=6"):
        canvas_of(codec, Prompt("a", draft="bcdfgklmpqvx"))
    with pytest.raises(RequestError, match="gap's words are 3 tokens, expected at most its 2"):
        canvas_of(codec, Prompt("a", infill="[[2:bcd]]"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "  \n"}, "the text is empty"),
        ({}, "nothing is given"),
        ({"text": "a", "draft": ""}, "the draft is empty"),
        ({"text": "a", "draft": "b", "infill": "[[2]]"}, "both given"),
        ({"text": "a", "format": "chatml"}, "expected one of chat, space, raw"),
        ({"text": 3}, "text is int, expected text"),
        ({"messages": []}, "not a list of messages"),
        ({"messages": "hi"}, "not a list of messages"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "has the role 'bot'"),
        ({"messages": [{"role": "user"}]}, "an object with role and content"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 1 is empty"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "the last message is the assistant's"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "second system prompt"),
        ({"promt": "a"}, "'promt' is not a field of a prompt. Did you mean"),
    ],
)
def test_bad_prompts_are_refused_by_name(values, message):
    with pytest.raises(RequestError, match=message):
        Prompt.from_mapping(values)


def test_formats_refuse_parts_they_cannot_place(codec):
    talk = ({"role": "user", "content": "a"},)
    for prompt, message in (
        (Prompt(messages=talk, format="raw"), "raw format: messages are given"),
        (Prompt("a", system="b", format="raw"), "raw format: a system prompt is given"),
        (Prompt(infill="[[2]] a"), "chat format: only an infill is given"),
    ):
        with pytest.raises(RequestError, match=message):
            canvas_of(codec, prompt)
