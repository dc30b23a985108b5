"""OpenAI's SDK against upstreams that speak Anthropic's API."""

import json

import openai
import pytest

from conftest import openai_client
from harness import crossed

MODEL, UPSTREAM_MODEL = "gpt-5-mini", "claude-haiku-4-5"
HELLO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say hello."},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}
# One red pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"
    "AAAADUlEQVR4nGP4z8DwHwAFAAH/q842iQAAAABJRU5ErkJggg=="
)
BY_NAME = {"type": "function", "function": {"name": "weather"}}
BY_DATA = {"type": "base64", "media_type": "image/png", "data": PNG}
BY_URL = {"type": "url", "url": "https://example.org/red.png"}


@pytest.fixture
def client(translating):
    with openai_client(translating.gateway) as client:
        yield client


def test_a_chat_has_a_text_a_reason_and_usage_that_adds_up(client, translating):
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=HELLO)
    answer = raw.parse()
    assert answer._request_id
    assert raw.headers["x-llmq-upstream"] == f"anthropic/{UPSTREAM_MODEL}"
    assert (answer.object, answer.model) == ("chat.completion", UPSTREAM_MODEL)
    [choice] = answer.choices
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    assert choice.message.content
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_cap_cuts_the_text_off_and_says_so(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_completion_tokens=3
    )
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 3)


def test_a_streamed_chat_is_the_same_text_in_pieces(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    *spoken, last = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in spoken)
    assert text == whole.choices[0].message.content
    assert len(spoken) > 3
    assert [chunk.choices[0].finish_reason for chunk in spoken][-2:] == [None, "stop"]
    assert {chunk.id for chunk in spoken} == {last.id}
    assert (last.choices, last.usage.total_tokens) == ([], whole.usage.total_tokens)


def test_a_stream_tells_no_usage_unasked(client):
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


@pytest.mark.parametrize("choice", ["auto", "required", BY_NAME])
def test_a_tool_is_called_and_its_result_answered(client, choice):
    question = [{"role": "user", "content": "What will the weather be?"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=question, tools=[WEATHER], tool_choice=choice
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    [call] = answer.choices[0].message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    told = client.chat.completions.create(
        model=MODEL,
        messages=[*question, answer.choices[0].message, result],
        tools=[WEATHER],
    )
    assert (told.choices[0].finish_reason, told.choices[0].message.tool_calls) == ("stop", None)
    assert told.choices[0].message.content


def test_the_stream_helper_puts_a_tool_call_together(client):
    call = {"model": MODEL, "messages": HELLO, "tools": [WEATHER]}
    whole = client.chat.completions.create(**call)
    with client.chat.completions.stream(**call) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    [wanted], [got] = (each.choices[0].message.tool_calls for each in (whole, final))
    assert got.function.name == wanted.function.name
    assert json.loads(got.function.arguments) == json.loads(wanted.function.arguments)
    assert final.choices[0].finish_reason == "tool_calls"


def test_an_answer_keeps_to_a_schema(client):
    schema = WEATHER["function"]["parameters"] | {"additionalProperties": False}
    answer = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "schema": schema, "strict": True},
        },
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"city", "days"}


@pytest.mark.parametrize(
    ("url", "source"),
    [(f"data:image/png;base64,{PNG}", BY_DATA), (BY_URL["url"], BY_URL)],
)
def test_an_image_arrives_as_anthropic_takes_it(over, tmp_path, url, source):
    pair = over(crossed, "--record", str(tmp_path))
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    with openai_client(pair.gateway) as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": parts}]
        )
    assert answer.choices[0].message.content
    [file] = tmp_path.iterdir()
    sent = json.loads(file.read_text())
    assert sent["path"] == "/v1/messages"
    assert sent["request"]["messages"][0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image", "source": source},
    ]


@pytest.mark.parametrize(
    ("member", "more"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": True}),
        ("seed", {"seed": 7}),
        ("messages[0].name", {"messages": [{"role": "user", "name": "Ada", "content": "Hi"}]}),
        ("no_such_member", {"extra_body": {"no_such_member": 1}}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_translated_is_refused_by_name(
    client, translating, member, more, stream
):
    before = translating.upstream.books()["calls"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            **({"model": MODEL, "messages": HELLO, "stream": stream} | more)
        )
    error = refused.value
    assert f"`{member}` cannot be translated" in error.message
    assert (error.type, error.param) == ("invalid_request_error", member)
    assert translating.upstream.books()["calls"] == before, "nothing was sent"


def test_what_exists_in_one_dialect_only_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model=MODEL, input="one")


@pytest.mark.parametrize(
    ("flags", "kind", "status", "code"),
    [
        (["--fail", "1"], openai.InternalServerError, 500, None),
        (["--outage", "0s-10m"], openai.InternalServerError, 529, "server_is_overloaded"),
        (["--quota", "1"], openai.RateLimitError, 429, "enforced_spend_limit_reached"),
    ],
)
def test_an_upstreams_failure_is_the_sdks_own_error(over, flags, kind, status, code):
    pair = over(crossed, *flags)
    with openai_client(pair.gateway) as client:
        headers = {"X-LLMQ-Max-Wait": "1s"}
        call = {"model": MODEL, "messages": HELLO, "extra_headers": headers}
        if "--quota" in flags:
            client.chat.completions.create(**call)
        with pytest.raises(kind) as refused:
            client.chat.completions.create(**call)
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert refused.value.request_id
