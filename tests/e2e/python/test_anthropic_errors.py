"""What the SDK makes of refusals, faults and limits."""

from datetime import datetime

import anthropic
import pytest

from conftest import anthropic_client

MODEL = "claude-haiku-4-5"
HELLO = [{"role": "user", "content": "Say hello."}]


def ask(server, **settings):
    with anthropic_client(server, **settings) as client:
        return client.messages.create(model=MODEL, messages=HELLO, max_tokens=400)


def kind(error: anthropic.APIStatusError) -> str:
    """What the body says it is; the id there is that of the header."""
    assert error.body["type"] == "error"
    assert error.body["request_id"] == error.request_id
    return error.body["error"]["type"]


def test_a_bad_key_is_an_authentication_error(stand_in):
    with pytest.raises(anthropic.AuthenticationError) as refused:
        ask(stand_in(), api_key="bad")
    assert kind(refused.value) == "authentication_error"


def test_a_bad_body_is_a_bad_request_that_names_the_field(server):
    with anthropic_client(server) as client, pytest.raises(anthropic.BadRequestError) as refused:
        client.post("/v1/messages", body={"model": MODEL, "messages": HELLO}, cast_to=object)
    assert kind(refused.value) == "invalid_request_error"
    assert "max_tokens" in refused.value.message


def test_what_does_not_exist_is_not_found(server):
    with anthropic_client(server) as client, pytest.raises(anthropic.NotFoundError) as refused:
        client.post("/v1/no/such/thing", body={}, cast_to=object)
    assert kind(refused.value) == "not_found_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_limit_is_a_rate_limit_error_that_says_how_long(stand_in, stream):
    server = stand_in("--limit", "requests=1/1m")
    ask(server)
    with anthropic_client(server) as client, pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(model=MODEL, messages=HELLO, max_tokens=9, stream=stream)
    error = refused.value
    assert kind(error) == "rate_limit_error"
    assert 50 <= int(error.response.headers["retry-after"]) <= 60


def test_the_sdk_waits_as_long_as_it_is_told_and_no_longer(stand_in):
    server = stand_in("--limit", "requests=1/3s")
    ask(server)
    # Its own waits, tried first, are half a second and one: they would be refused again.
    assert ask(server, max_retries=2).content
    books = server.books()
    assert (books["accepted"], books["refused"]) == (2, 1)


def test_an_account_at_its_spend_limit_is_not_told_to_wait(stand_in):
    server = stand_in("--quota", "1")
    ask(server)
    with pytest.raises(anthropic.RateLimitError) as refused:
        ask(server)
    assert "retry-after" not in refused.value.response.headers
    assert refused.value.body["error"]["details"]["error_code"] == "enforced_spend_limit_reached"


def test_a_failed_server_is_an_internal_error(stand_in):
    with pytest.raises(anthropic.InternalServerError) as refused:
        ask(stand_in("--fail", "1"))
    assert refused.value.status_code == 500


def test_a_lack_of_capacity_is_an_overloaded_error(stand_in):
    with pytest.raises(anthropic.InternalServerError) as refused:
        ask(stand_in("--outage", "0s-10m"))
    assert type(refused.value).__name__ == "OverloadedError"
    assert kind(refused.value) == "overloaded_error"


def test_a_closed_connection_is_a_connection_error(stand_in):
    with pytest.raises(anthropic.APIConnectionError):
        ask(stand_in("--drop", "1"))


def test_the_limits_are_told_in_headers(stand_in):
    limits = ["requests=10/1m", "input_tokens=20k/1m", "output_tokens=8k/1m"]
    server = stand_in(*(word for limit in limits for word in ("--limit", limit)))
    with anthropic_client(server) as client:
        raw = client.messages.with_raw_response.create(
            model=MODEL, messages=HELLO, max_tokens=400
        )
    told = {
        name.removeprefix("anthropic-ratelimit-"): value
        for name, value in raw.headers.items()
        if name.startswith("anthropic-ratelimit-")
    }
    assert told["requests-limit"] == "10" and told["requests-remaining"] == "9"
    assert told["input-tokens-limit"] == "20000" and told["output-tokens-limit"] == "8000"
    assert told["tokens-limit"] == "28000"
    for name in ("requests", "input-tokens", "output-tokens", "tokens"):
        assert datetime.fromisoformat(told[f"{name}-reset"]).tzinfo
