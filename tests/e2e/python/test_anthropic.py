"""Anthropic's SDK, its answers checked against its own types."""

import asyncio

import anthropic
import pytest

from conftest import anthropic_client

MODEL = "claude-haiku-4-5"
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def client(server):
    with anthropic_client(server) as client:
        yield client


def test_a_message_has_a_text_a_reason_and_usage(client):
    message = client.messages.create(model=MODEL, messages=HELLO, max_tokens=400)
    assert message._request_id
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.stop_reason == "end_turn"
    [block] = message.content
    assert block.type == "text" and block.text
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0


def test_a_cap_cuts_the_text_off_and_says_so(client):
    message = client.messages.create(model=MODEL, messages=HELLO, max_tokens=3)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_counted_tokens_are_those_that_are_charged(client):
    prompt = {"model": MODEL, "system": "Be brief.", "messages": HELLO}
    counted = client.messages.count_tokens(**prompt)
    message = client.messages.create(**prompt, max_tokens=400)
    assert counted.input_tokens == message.usage.input_tokens
    without = client.messages.count_tokens(model=MODEL, messages=HELLO)
    assert without.input_tokens < counted.input_tokens


def test_content_and_system_in_parts_are_read(client):
    message = client.messages.create(
        model=MODEL,
        system=[{"type": "text", "text": "Be brief."}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}],
        max_tokens=400,
    )
    assert message.content[0].text


def test_the_events_of_a_stream_come_in_their_order(client):
    whole = client.messages.create(model=MODEL, messages=HELLO, max_tokens=400)
    stream = client.messages.create(model=MODEL, messages=HELLO, max_tokens=400, stream=True)
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(
        event.delta.text for event in events if event.type == "content_block_delta"
    )
    assert text == whole.content[0].text
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("cap", [3, 400])
def test_the_stream_helper_puts_a_message_together(client, cap):
    whole = client.messages.create(model=MODEL, messages=HELLO, max_tokens=cap)
    with client.messages.stream(model=MODEL, messages=HELLO, max_tokens=cap) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.input_tokens == whole.usage.input_tokens
    assert final.usage.output_tokens == whole.usage.output_tokens


def test_models_are_listed_and_found(client):
    names = [model.id for model in client.models.list()]
    assert names
    assert client.models.retrieve(names[0]).id == names[0]


def test_calls_in_parallel_get_their_own_answers(server):
    async def ask():
        async with anthropic.AsyncAnthropic(
            base_url=server.anthropic,
            api_key="sk-ant-test",
            max_retries=0,
            _strict_response_validation=True,
        ) as client:
            calls = (
                client.messages.create(model=f"model-{number}", messages=HELLO, max_tokens=9)
                for number in range(20)
            )
            return await asyncio.gather(*calls)

    messages = asyncio.run(ask())
    assert [message.model for message in messages] == [f"model-{n}" for n in range(20)]
    assert len({message.id for message in messages}) == 20
