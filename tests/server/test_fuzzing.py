"""Requests made from our own OpenAPI document, right and wrong ones: none may end in an error of the server's."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="needs the extra test-services")
hypothesis = pytest.importorskip("hypothesis", reason="schemathesis brings it")

from schemathesis.generation import GenerationMode  # noqa: E402

RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
POSTS = ("/v1/chat/completions", "/v1/completions", "/v1/edits", "/v1/adapters")
# No name in a path is a wrong one.
NAMED = (("GET", "/v1/models/{model}", RIGHT), ("DELETE", "/v1/adapters/{name}", RIGHT))


@pytest.mark.parametrize("method,path,mode", [*(("POST", path, mode) for path in POSTS for mode in (RIGHT, WRONG)), *NAMED])
def test_no_request_breaks_the_server(served, method, path, mode):
    schema = schemathesis.openapi.from_dict(served.get("/openapi.json").json())

    @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=15, deadline=None, database=None, derandomize=True, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def try_it(case):
        if isinstance(case.body, dict):
            # Long decodes are slow, not wrong.
            for name in ("steps", "num_steps", "num_inference_steps"):
                if isinstance(case.body.get(name), int) and case.body[name] > 2:
                    case.body[name] = 2
        response = case.call(base_url=str(served.base_url).rstrip("/"))
        assert response.status_code < 500, (case.body, response.text)
        if response.status_code >= 400:
            assert response.json()["error"]["message"]

    try_it()
    assert "StepError" not in served.get("/metrics").text
