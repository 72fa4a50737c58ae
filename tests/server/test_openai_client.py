"""The official client, unmodified, sees what it expects of OpenAI's endpoints."""

from __future__ import annotations

import math
import re

import pytest

openai = pytest.importorskip("openai", reason="needs the extra test")

from live_server import HELLO, live_server, metric, wait_until  # noqa: E402

SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
ANY_TEXT = {"type": "json_schema", "json_schema": {"name": "any", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served.base_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_chat_answers_with_usage_and_reason(client):
    answer = client.chat.completions.create(model="first", messages=HELLO, max_tokens=8, seed=3, extra_body={"steps": 4})
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.lad["adapter"] == "first" and answer.lad["adapter_version"] == 1 and answer.lad["seed"] == 3
    again = client.chat.completions.create(model="first", messages=HELLO, max_tokens=8, seed=3, extra_body={"steps": 4})
    assert again.choices[0].message.content == answer.choices[0].message.content


def test_streamed_text_is_the_whole_answer(client):
    asked = {"model": "second", "messages": HELLO, "max_tokens": 8, "extra_body": {"steps": 4}}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    whole = client.chat.completions.create(**asked)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason


def test_steps_arrive_between_the_chunks(client):
    options = {"steps": True}
    stream = client.chat.completions.create(
        model="first", messages=HELLO, max_tokens=6, stream=True, stream_options=options, extra_body={"steps": 5, "early_stop": False}
    )
    steps = [chunk.step for chunk in stream if getattr(chunk, "step", None)]
    assert [step["step"] for step in steps] == [0, 1, 2, 3, 4] and steps[-1]["is_last"]
    assert len(steps[0]["cells"]) == steps[0]["length"] == 6
    assert all(0 <= cell[3] <= 1 for step in steps for cell in step["cells"])


def test_completions_continue_a_text(client):
    answer = client.completions.create(model="first", prompt="the user is", max_tokens=5, logprobs=0, extra_body={"steps": 3})
    logprobs = answer.choices[0].logprobs
    assert answer.object == "text_completion" and len(logprobs.tokens) == len(logprobs.token_logprobs) == answer.usage.completion_tokens


def test_an_answer_matches_the_pattern_it_is_asked_for(client):
    form = {"type": "regex", "pattern": r"<\S{0,9}>"}
    answer = client.chat.completions.create(model="first", messages=HELLO, max_tokens=24, response_format=form, extra_body={"steps": 3})
    assert re.fullmatch(form["pattern"], answer.choices[0].message.content) and answer.choices[0].finish_reason == "stop"


def test_logprobs_are_logarithms_of_confidences(client):
    answer = client.chat.completions.create(model="first", messages=HELLO, max_tokens=5, logprobs=True, extra_body={"steps": 3})
    content = answer.choices[0].logprobs.content
    assert content and all(-9999 <= token.logprob <= 0 and math.isfinite(token.logprob) for token in content)


def test_logprobs_end_where_a_stop_string_ends_the_text(client):
    asked = {"model": "first", "prompt": "the user is", "max_tokens": 12, "logprobs": 0, "extra_body": {"steps": 3}}
    whole = client.completions.create(**asked)
    tokens = [token for token in whole.choices[0].logprobs.tokens if token.isascii() and token.isprintable()]
    answer = client.completions.create(**asked, stop=tokens[0])
    assert answer.choices[0].finish_reason == "stop"
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.completion_tokens < whole.usage.completion_tokens


def test_models_are_the_base_and_each_adapter(client):
    assert [model.id for model in client.models.list()][:3] == ["tiny-base", "first", "second"]
    assert client.models.retrieve("second").id == "second"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize(
    "asked,param,says",
    [
        ({"temperature": 101}, "temperature", "less than or equal to 100"),
        ({"max_tokens": 100000}, "messages", "expected at most 512"),
        ({"max_tokens": 20, "extra_body": {"num_steps": 4, "tokens_per_step": 2}}, "num_steps", "show 8 positions"),
        ({"max_tokens": 20, "extra_body": {"steps": 4, "tokens_per_step": 2}}, "steps", "show 8 positions"),
        ({"max_tokens": 40, "extra_body": {"draft": "the user"}}, "draft", "noise_start is 1"),
        ({"max_tokens": 40, "extra_body": {"infill": "the [[3]]"}}, "max_tokens", "beside an infill"),
        ({"extra_body": {"infill": "the [[3]]", "context_window": 90}}, "context_window", "beside an infill"),
        ({"extra_body": {"infill": "the [[3]]", "draft": "the"}}, "draft", "both given"),
        ({"extra_body": {"block_length": 4}}, "block_length", "remasking transfer"),
        ({"stop": "a", "response_format": ANY_TEXT}, "stop", "beside response_format json_schema"),
        ({"response_format": ANY_TEXT, "extra_body": {"context_window": 90}}, "context_window", "beside response_format json_schema"),
        ({"response_format": ANY_TEXT, "extra_body": {"draft": ""}}, "draft", "beside response_format json_schema"),
        ({"extra_body": {"temprature": 1}}, "temprature", "Did you mean temperature"),
        ({"extra_body": {"steps": 401}}, "steps", "expected at most 400"),
        ({"extra_body": {"reveal": "origin"}}, "reveal", "decodes as lad"),
        ({"extra_body": {"profile": "nope"}}, "profile", "expected one of"),
        ({"n": 2}, "n", "less than or equal to 1"),
        ({"max_tokens": 8, "max_completion_tokens": 9}, "max_completion_tokens", "beside max_tokens"),
        ({"stop": ""}, "stop", "stop is ''"),
        ({"tools": []}, "tools", "not a parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text"),
        ({"stream_options": {"steps": True}}, "stream_options", "stream: true"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(client, asked, param, says):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="first", messages=HELLO, **asked)
    assert refused.value.param == param and says in refused.value.message


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="tiny-base, first, second"):
        client.chat.completions.create(model="nobody", messages=HELLO)


def test_closing_a_stream_cancels_the_request(client, served):
    before = metric(served, "lad_requests_cancelled_total")
    stream = client.chat.completions.create(
        model="first",
        messages=HELLO,
        max_tokens=400,
        stream=True,
        stream_options={"steps": True},
        extra_body={"steps": 400, "early_stop": False},
    )
    next(chunk for chunk in stream if getattr(chunk, "step", None))
    stream.close()
    wait_until(lambda: metric(served, "lad_requests_cancelled_total") == before + 1)
    assert metric(served, "lad_requests_running") == 0


def test_a_client_that_gives_up_waiting_cancels_its_request(client, served):
    before = metric(served, "lad_requests_cancelled_total")
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(
            model="first", messages=HELLO, max_tokens=400, extra_body={"steps": 400, "early_stop": False}
        )
    wait_until(lambda: metric(served, "lad_requests_cancelled_total") == before + 1)


def test_a_key_is_asked_for(engine_of):
    with live_server(engine_of(), api_keys=("0123456789abcdef",)) as http:
        wrong = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="0123456789abcdeF", max_retries=0)
        with pytest.raises(openai.AuthenticationError, match="no valid API key"):
            wrong.models.list()
        right = openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="0123456789abcdef", max_retries=0)
        assert len(list(right.models.list())) == 3
        assert http.get("/health").status_code == 200 and http.get("/metrics").status_code == 401
