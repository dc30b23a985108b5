"""What the SDK makes of refusals, faults and limits."""

import openai
import pytest

from conftest import openai_client

MODEL = "gpt-5-mini"
HELLO = [{"role": "user", "content": "Say hello."}]


def ask(server, **settings):
    with openai_client(server, **settings) as client:
        return client.chat.completions.create(model=MODEL, messages=HELLO)


def test_a_bad_key_is_an_authentication_error(stand_in):
    with pytest.raises(openai.AuthenticationError) as refused:
        ask(stand_in(), api_key="bad")
    error = refused.value
    assert (error.status_code, error.code) == (401, "invalid_api_key")
    assert error.request_id


def test_a_bad_body_is_a_bad_request_that_names_the_field(server):
    with openai_client(server) as client, pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body={"model": MODEL}, cast_to=object)
    error = refused.value
    assert (error.param, error.type) == ("messages", "invalid_request_error")
    assert "messages" in error.message


def test_what_does_not_exist_is_not_found(server):
    with openai_client(server) as client, pytest.raises(openai.NotFoundError) as refused:
        client.post("/no/such/thing", body={}, cast_to=object)
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_is_a_rate_limit_error_that_says_how_long(stand_in, stream):
    server = stand_in("--limit", "requests=1/1m")
    ask(server)
    with openai_client(server) as client, pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    error = refused.value
    assert (error.code, error.type) == ("rate_limit_exceeded", "requests")
    assert 50 <= int(error.response.headers["retry-after"]) <= 60
    assert "Please try again in" in error.message


def test_the_sdk_waits_as_long_as_it_is_told_and_no_longer(stand_in):
    server = stand_in("--limit", "requests=1/3s")
    ask(server)
    # Its own waits, tried first, are half a second and one: they would be refused again.
    assert ask(server, max_retries=2).choices
    books = server.books()
    assert (books["accepted"], books["refused"]) == (2, 1)


def test_an_account_without_money_is_told_by_its_code(stand_in):
    server = stand_in("--quota", "1")
    ask(server)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(server)
    assert refused.value.code == refused.value.type == "insufficient_quota"
    assert "retry-after" not in refused.value.response.headers


@pytest.mark.parametrize(
    ("flags", "status"),
    [(["--fail", "1"], 500), (["--outage", "0s-10m"], 503)],
)
def test_a_broken_server_is_an_internal_error(stand_in, flags, status):
    with pytest.raises(openai.InternalServerError) as refused:
        ask(stand_in(*flags))
    assert refused.value.status_code == status


def test_a_closed_connection_is_a_connection_error(stand_in):
    with pytest.raises(openai.APIConnectionError):
        ask(stand_in("--drop", "1"))


def test_the_limits_are_told_in_headers(stand_in):
    server = stand_in("--limit", "requests=10/1m", "--limit", "tokens=1000/1m")
    with openai_client(server) as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=HELLO, max_completion_tokens=100
        )
        used = 1_000 - int(raw.headers["x-ratelimit-remaining-tokens"])
        prompt = raw.parse().usage.prompt_tokens
    assert raw.headers["x-ratelimit-limit-requests"] == "10"
    assert raw.headers["x-ratelimit-remaining-requests"] == "9"
    assert raw.headers["x-ratelimit-limit-tokens"] == "1000"
    # The prompt and the cap are counted when the call arrives.
    assert used == prompt + 100
    assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    assert int(raw.headers["openai-processing-ms"]) >= 0
