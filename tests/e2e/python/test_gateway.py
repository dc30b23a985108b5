"""How the gateway and the SDKs get on: waiting, refusing, giving up, leaving."""

import asyncio
import time

import anthropic
import openai
import pytest

from conftest import anthropic_client, openai_client
from harness import crossed, cut_inside_an_event, gateway, straight, wait_for

GPT, CLAUDE = "gpt-5-mini", "claude-haiku-4-5"
HELLO = [{"role": "user", "content": "Say hello."}]


def chat(server, *, stream=False, headers=None, **settings):
    with openai_client(server, **settings) as client:
        return client.chat.completions.create(
            model=GPT, messages=HELLO, stream=stream, extra_headers=headers
        )


def message(server, *, stream=False, headers=None, **settings):
    with anthropic_client(server, **settings) as client:
        return client.messages.create(
            model=CLAUDE, messages=HELLO, max_tokens=400, stream=stream, extra_headers=headers
        )


def client_of(sdk, server):
    return openai_client(server) if sdk is openai else anthropic_client(server)


def streamed(client):
    if isinstance(client, openai.OpenAI):
        return client.chat.completions.create(model=GPT, messages=HELLO, stream=True)
    return client.messages.create(model=CLAUDE, messages=HELLO, max_tokens=400, stream=True)


# Each SDK: how it asks, and its errors.
SDKS = [(chat, openai), (message, anthropic)]
both = pytest.mark.parametrize(("ask", "sdk"), SDKS, ids=["openai", "anthropic"])
either_way = pytest.mark.parametrize("form", [straight, crossed], ids=["straight", "crossed"])


@both
@either_way
def test_a_limit_is_waited_for_and_not_failed_at(over, ask, sdk, form):
    pair = over(form, "--limit", "requests=2/3s", limits='custom = ["requests=2/3s"]')
    began = time.monotonic()
    for _ in range(4):
        ask(pair.gateway)
    assert time.monotonic() - began >= 2.9
    assert pair.upstream.books()["refused"] == 0


@both
def test_a_wait_that_ends_is_a_rate_limit_error_that_says_when(over, ask, sdk):
    pair = over(straight, limits='custom = ["requests=1/1m"]')
    ask(pair.gateway)
    with pytest.raises(sdk.RateLimitError) as refused:
        ask(pair.gateway, headers={"X-LLMQ-Max-Wait": "100ms"})
    headers = refused.value.response.headers
    assert 50 <= int(headers["retry-after"]) <= 60
    assert headers["x-should-retry"] == "true"
    assert headers["x-llmq-wait"].startswith("rpm ")
    assert pair.upstream.books()["calls"] == 1, "nothing was sent in vain"


@both
def test_the_sdk_comes_back_when_it_is_told_to(over, ask, sdk):
    pair = over(straight, "--limit", "requests=1/2s", limits='custom = ["requests=1/2s"]')
    ask(pair.gateway)
    ask(pair.gateway, headers={"X-LLMQ-Max-Wait": "100ms"}, max_retries=2)
    books = pair.upstream.books()
    assert (books["accepted"], books["refused"]) == (2, 0)


@both
def test_an_sdk_is_not_put_to_sleep_for_hours(over, ask, sdk):
    # Anthropic's sleeps through any Retry-After that it is told to heed.
    pair = over(straight, limits='custom = ["requests=1/1h"]')
    ask(pair.gateway)
    began = time.monotonic()
    with pytest.raises(sdk.RateLimitError) as refused:
        ask(pair.gateway, headers={"X-LLMQ-Max-Wait": "100ms"}, max_retries=2)
    assert time.monotonic() - began < 30
    assert int(refused.value.response.headers["retry-after"]) > 120


@both
@either_way
def test_what_was_repeated_enough_is_not_repeated_by_the_sdk(over, ask, sdk, form):
    pair = over(form, "--fail", "1")
    with pytest.raises(sdk.InternalServerError) as refused:
        ask(pair.gateway, max_retries=5)
    assert refused.value.response.headers["x-should-retry"] == "false"
    assert pair.upstream.books()["calls"] == 2, "the gateway's own attempts"


@both
def test_an_unknown_model_is_not_found_and_the_known_are_named(over, ask, sdk):
    pair = over(straight)
    with openai_client(pair.gateway) as one, anthropic_client(pair.gateway) as other:
        with pytest.raises(sdk.NotFoundError, match=f"{CLAUDE}.*{GPT}"):
            if sdk is openai:
                one.chat.completions.create(model="none", messages=HELLO)
            else:
                other.messages.create(model="none", messages=HELLO, max_tokens=4)


@both
def test_a_body_over_the_limit_is_too_large(over, ask, sdk):
    def small(upstream):
        return straight(upstream) + '[server]\nmax_body = "1KB"\n'

    pair = over(small)
    long = [{"role": "user", "content": "x" * 2_000}]
    with openai_client(pair.gateway) as one, anthropic_client(pair.gateway) as other:
        with pytest.raises(sdk.APIStatusError, match="max_body") as refused:
            if sdk is openai:
                one.chat.completions.create(model=GPT, messages=long)
            else:
                other.messages.create(model=CLAUDE, messages=long, max_tokens=4)
    assert refused.value.status_code == 413
    if sdk is anthropic:
        assert isinstance(refused.value, anthropic.RequestTooLargeError)


@both
def test_without_a_key_that_is_known_it_is_an_authentication_error(over, ask, sdk):
    def closed(upstream):
        return straight(upstream) + '[server]\nauth = "keys"\n'

    with pytest.raises(sdk.AuthenticationError):
        ask(over(closed).gateway)


@both
@either_way
def test_an_sdk_that_gives_up_frees_its_place(over, ask, sdk, form):
    pair = over(form, "--latency", "20s", "--jitter", "0", limits="concurrency = 1")
    for _ in range(2):
        with pytest.raises(sdk.APITimeoutError):
            ask(pair.gateway, timeout=0.3)
    # The second could only be sent since the first had left.
    wait_for(pair.upstream, lambda books: books["abandoned"] == books["calls"] == 2)


@both
@either_way
@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_upstream_is_given_up_in_time(over, ask, sdk, form, stream):
    settings = 'timeouts = { first_byte = "200ms" }'
    pair = over(form, "--latency", "20s", "--jitter", "0", settings=settings)
    with pytest.raises(sdk.InternalServerError, match="no answer within 200ms") as refused:
        ask(pair.gateway, stream=stream, headers={"X-LLMQ-Max-Wait": "1s"}, max_retries=3)
    assert refused.value.status_code == 502
    assert refused.value.response.headers["x-should-retry"] == "false"


@both
@either_way
def test_a_stream_that_stalls_ends_as_an_error_and_not_as_whole(over, ask, sdk, form):
    settings = 'timeouts = { idle = "60ms" }'
    few = ["--latency", "2s", "--jitter", "0", "--output-tokens", "4"]
    pair = over(form, *few, settings=settings)
    with client_of(sdk, pair.gateway) as client:
        stream = streamed(client)
        with pytest.raises(sdk.APIError) as broken:
            for _ in stream:
                pass
    assert "stream_broken" in str(broken.value.body) or "broke" in broken.value.message


@both
@either_way
def test_a_stream_that_is_cut_inside_an_event_is_an_error_that_can_be_read(ask, sdk, form):
    with (
        cut_inside_an_event() as upstream,
        gateway(form(upstream)) as front,
        client_of(sdk, front) as client,
    ):
        said = ""
        with pytest.raises(sdk.APIError) as broken:
            for event in streamed(client):
                said += event.model_dump_json()
    assert said.count("Hello") == 1
    assert not isinstance(broken.value, sdk.APIConnectionError)
    if sdk is openai:
        assert broken.value.code == "stream_broken"
    else:
        assert broken.value.body["error"]["type"] == "api_error"


@both
@either_way
def test_a_stream_that_is_left_frees_its_place(over, ask, sdk, form):
    pair = over(form, "--latency", "1s", "--jitter", "0", limits="concurrency = 1")
    for number in (1, 2):
        with client_of(sdk, pair.gateway) as client, streamed(client) as stream:
            next(iter(stream))
        wait_for(pair.upstream, lambda books: books["abandoned"] == number)


@both
def test_calls_that_are_cancelled_in_line_are_never_sent(over, ask, sdk):
    pair = over(straight, limits='custom = ["requests=1/1m"]')
    ask(pair.gateway)

    async def cancelled():
        settings = {"api_key": "sk-test", "max_retries": 0}
        url = pair.gateway.openai if sdk is openai else pair.gateway.anthropic
        kind = sdk.AsyncOpenAI if sdk is openai else sdk.AsyncAnthropic
        async with kind(base_url=url, **settings) as client:
            if sdk is openai:
                call = client.chat.completions.create(model=GPT, messages=HELLO)
            else:
                call = client.messages.create(model=CLAUDE, messages=HELLO, max_tokens=4)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(call, 0.3)

    asyncio.run(cancelled())
    assert pair.upstream.books()["calls"] == 1
