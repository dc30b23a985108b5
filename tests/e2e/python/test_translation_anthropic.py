"""Anthropic's SDK against upstreams that speak OpenAI's API."""

import json

import anthropic
import pytest

from conftest import anthropic_client
from harness import crossed
from test_translation_openai import BY_DATA, BY_URL, PNG

MODEL, UPSTREAM_MODEL = "claude-haiku-4-5", "gpt-5-mini"
CALL = {
    "model": MODEL,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 400,
}
WEATHER = {
    "name": "weather",
    "description": "The weather at a place.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    },
}


@pytest.fixture
def client(translating):
    with anthropic_client(translating.gateway) as client:
        yield client


def test_a_message_has_a_text_a_reason_and_usage(client):
    raw = client.messages.with_raw_response.create(**CALL)
    message = raw.parse()
    assert message._request_id
    assert raw.headers["x-llmq-upstream"] == f"openai/{UPSTREAM_MODEL}"
    assert (message.type, message.role) == ("message", "assistant")
    assert message.model == UPSTREAM_MODEL
    assert message.stop_reason == "end_turn"
    [block] = message.content
    assert block.type == "text" and block.text
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0


def test_a_cap_cuts_the_text_off_and_says_so(client):
    message = client.messages.create(**CALL | {"max_tokens": 3})
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 3)


def test_the_events_of_a_stream_come_in_their_order(client):
    whole = client.messages.create(**CALL)
    events = list(client.messages.create(**CALL, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    deltas = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == whole.content[0].text
    ended = events[-2]
    assert ended.delta.stop_reason == whole.stop_reason
    assert ended.usage.output_tokens == whole.usage.output_tokens
    # OpenAI tells what it read at the end.
    assert ended.usage.input_tokens == whole.usage.input_tokens


def test_the_stream_helper_puts_a_message_together(client):
    whole = client.messages.create(**CALL)
    with client.messages.stream(**CALL) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert (final.stop_reason, final.content[0].text) == ("end_turn", whole.content[0].text)
    assert final.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("choice", ["auto", "any", "tool"])
def test_a_tool_is_called_and_its_result_answered(client, choice):
    choice = {"type": choice} | ({"name": "weather"} if choice == "tool" else {})
    message = client.messages.create(**CALL, tools=[WEATHER], tool_choice=choice)
    assert message.stop_reason == "tool_use"
    [call] = message.content
    assert (call.type, call.name, set(call.input)) == ("tool_use", "weather", {"city", "days"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny."}
    messages = [
        *CALL["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    told = client.messages.create(**CALL | {"messages": messages}, tools=[WEATHER])
    assert told.stop_reason == "end_turn" and told.content[0].text


def test_the_stream_helper_puts_a_tool_call_together(client):
    whole = client.messages.create(**CALL, tools=[WEATHER])
    with client.messages.stream(**CALL, tools=[WEATHER]) as stream:
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert final.content[0].input == whole.content[0].input


@pytest.mark.parametrize(
    ("source", "url"),
    [(BY_DATA, f"data:image/png;base64,{PNG}"), (BY_URL, BY_URL["url"])],
)
def test_an_image_arrives_as_openai_takes_it(over, tmp_path, source, url):
    pair = over(crossed, "--record", str(tmp_path))
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    with anthropic_client(pair.gateway) as client:
        messages = [{"role": "user", "content": blocks}]
        assert client.messages.create(**CALL | {"messages": messages}).content[0].text
    [file] = tmp_path.iterdir()
    sent = json.loads(file.read_text())
    assert sent["path"] == "/v1/chat/completions"
    assert sent["request"]["messages"][-1]["content"] == [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is this?"},
    ]


@pytest.mark.parametrize(
    ("member", "more"),
    [
        ("top_k", {"extra_body": {"top_k": 5}}),
        ("thinking", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        ("tools[0].type", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("no_such_member", {"extra_body": {"no_such_member": 1}}),
    ],
)
def test_what_cannot_be_translated_is_refused_by_name(client, translating, member, more):
    before = translating.upstream.books()["calls"]
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**CALL | more)
    error = refused.value.body["error"]
    assert error["type"] == "invalid_request_error"
    assert f"`{member}" in error["message"] and "cannot be translated" in error["message"]
    assert translating.upstream.books()["calls"] == before, "nothing was sent"


def test_counting_needs_an_upstream_that_counts(client):
    with pytest.raises(anthropic.BadRequestError, match="count_tokens"):
        client.messages.count_tokens(model=MODEL, messages=CALL["messages"])


@pytest.mark.parametrize(
    ("flags", "kind", "status", "word"),
    [
        (["--fail", "1"], anthropic.InternalServerError, 500, "api_error"),
        (["--outage", "0s-10m"], anthropic.InternalServerError, 503, "overloaded_error"),
        (["--quota", "1"], anthropic.RateLimitError, 429, "billing_error"),
    ],
)
def test_an_upstreams_failure_is_the_sdks_own_error(over, flags, kind, status, word):
    pair = over(crossed, *flags)
    with anthropic_client(pair.gateway) as client:
        call = CALL | {"extra_headers": {"X-LLMQ-Max-Wait": "1s"}}
        if "--quota" in flags:
            client.messages.create(**call)
        with pytest.raises(kind) as refused:
            client.messages.create(**call)
    assert refused.value.status_code == status
    assert refused.value.body["error"]["type"] == word
    assert refused.value.request_id
