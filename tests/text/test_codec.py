"""The tokenizer of a folder reads like transformers' own, and refuses what it cannot read in one sentence."""

import json

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoTokenizer

from lad_engine.errors import AdapterError, CheckpointError, RequestError
from lad_engine.text.answer import cut_answer
from lad_engine.text.codec import TextCodec, load_tokenizer
from tiny_checkpoint import make_tiny

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "the inner user\n is on"},
    {"role": "assistant", "content": "er"},
    {"role": "user", "content": "why? é"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def codec(folder):
    return load_tokenizer(folder)


def metaspace_codec() -> TextCodec:
    """A SentencePiece-like tokenizer: every separately encoded text gets a word-start mark in front."""
    pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "\n", "▁a", "▁b"]
    tokenizer = Tokenizer(BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return TextCodec(tokenizer, {"bos_token": "<s>", "eos_token": "</s>"})


def test_ids_and_chat_equal_those_of_transformers(folder, codec):
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("the inner user", " a\n\nb", "<|im_start|>user MASK", "é ü 漢字", ""):
        assert codec.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert codec.decode(codec.encode(text)) == theirs.decode(theirs.encode(text, add_special_tokens=False), skip_special_tokens=True)
    for messages in (TALK, TALK[1:], TALK[1:2]):
        assert codec.render_chat(messages) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert (codec.bos_id, codec.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_mask_token_is_one_piece_or_refused(codec):
    assert codec.decode([codec.piece_id("MASK")]) == "MASK"
    with pytest.raises(AdapterError, match=r"'HOLE' is 2 tokens of this tokenizer \('HO', 'LE'\), expected exactly 1"):
        codec.piece_id("HOLE")


def test_bytes_that_no_shell_could_decode_are_refused(codec):
    for read in (codec.encode, codec.encode_continuation, codec.piece_id):
        with pytest.raises(RequestError, match=r"text: '.*udcff' holds bytes that are not UTF-8"):
            read("a\udcff")


def test_a_continuation_carries_no_word_start_mark():
    codec = metaspace_codec()
    assert codec.decode(codec.encode("a") + codec.encode_continuation("bc")) == "abc"
    assert codec.decode(codec.encode("a") + codec.encode_continuation(" bc")) == "a bc"
    assert [codec.piece(i) for i in codec.encode("a b")] == [" a", " b"]


@pytest.mark.parametrize("form", ["text", "object", "list", "file"])
def test_special_tokens_and_templates_are_read_in_every_stored_form(tmp_path, form):
    folder = make_tiny(tmp_path / form)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    source = settings.pop("chat_template")
    if form == "object":
        settings |= {name: {"content": settings[name], "special": True} for name in ("bos_token", "eos_token")}
    if form == "list":
        settings["chat_template"] = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": source}]
    elif form == "file":
        (folder / "chat_template.jinja").write_text(source)
    else:
        settings["chat_template"] = source
    file.write_text(json.dumps(settings))
    codec = load_tokenizer(folder)
    assert (codec.bos_id, codec.eos_id) == (1, 2)
    assert codec.render_chat([{"role": "user", "content": "a"}]).endswith("user\na<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_refuses_in_one_sentence(tmp_path):
    folder = make_tiny(tmp_path / "strict")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role here') }}")
    with pytest.raises(RequestError, match="refuses these messages: no system role here"):
        load_tokenizer(folder).render_chat(TALK)
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}{{ 1 + 'a' }}")
    with pytest.raises(RequestError, match="refuses these messages: division by zero"):
        load_tokenizer(folder).render_chat(TALK)
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(CheckpointError, match="expected valid Jinja"):
        load_tokenizer(folder).render_chat(TALK)


def test_unreadable_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    folder = make_tiny(tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja cannot be read .* expected Jinja in UTF-8"):
        load_tokenizer(folder)


def cut(codec, ids, **settings):
    return cut_answer(codec, ids, eos_ids=(2,), mask_id=codec.piece_id("MASK"), **settings)


def test_an_answer_ends_at_the_first_end_token(codec):
    words = codec.encode("the user")
    answer = cut(codec, [*words, 2, *words, 2])
    assert (answer.text, answer.length, answer.finish_reason) == ("the user", len(words), "eos")
    assert cut(codec, words).finish_reason == "length"
    assert cut(codec, [codec.piece_id("MASK"), *words]).text == "the user"


def test_fixed_words_behind_a_gap_survive_an_end_token_inside_it(codec):
    gap, tail = [2, 2], codec.encode(" is on")
    assert cut(codec, gap + tail).text == ""
    assert cut(codec, [*gap, *tail, 2], not_before=4, strip_left=False).text == " is on"


def test_a_stop_string_ends_the_text_before_it(codec):
    ids = codec.encode("the user is on the user")
    answer = cut(codec, ids, stop=(" on", " is"))
    assert (answer.text, answer.finish_reason) == ("the user", "stop")
    assert " is" in codec.decode(ids[: answer.length]) and " is" not in codec.decode(ids[: answer.length - 1])
    assert cut(codec, ids, stop=("never", "")).finish_reason == "length"
