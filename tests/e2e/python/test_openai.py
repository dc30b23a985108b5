"""OpenAI's SDK, its answers checked against its own types."""

import asyncio
import json
import math

import openai
import pytest

from conftest import openai_client

MODEL = "gpt-5-mini"
HELLO = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say hello."},
]


@pytest.fixture
def client(server):
    with openai_client(server) as client:
        yield client


@pytest.fixture
def lenient(server):
    """For the few answers that OpenAI's own server gives and the SDK's types do not know."""
    with openai_client(server, strict=False) as client:
        yield client


def test_a_chat_has_a_text_a_reason_and_usage_that_adds_up(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer._request_id
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
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
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_as_many_choices_come_as_were_asked_for(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


def test_content_in_parts_is_read(client):
    parts = [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": parts}]
    )
    assert answer.choices[0].message.content


def test_a_streamed_chat_is_the_same_text_in_pieces(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    *spoken, last = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in spoken)
    assert text == whole.choices[0].message.content
    assert len(spoken) > 3
    assert spoken[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in spoken][-2:] == [None, "stop"]
    assert {chunk.id for chunk in chunks} == {last.id}
    assert all(chunk.usage is None for chunk in spoken)
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_stream_tells_no_usage_unasked(client):
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_the_stream_helper_puts_a_chat_together(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, n=2)
    with client.chat.completions.stream(model=MODEL, messages=HELLO, n=2) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    texts = [choice.message.content for choice in final.choices]
    assert texts == [choice.message.content for choice in whole.choices]


def test_a_stream_may_be_left_in_the_middle(client):
    with client.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream:
        assert next(iter(stream)).choices
    assert client.chat.completions.create(model=MODEL, messages=HELLO).choices


def test_plain_completions_whole_and_streamed(client, lenient):
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=12)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    # A `finish_reason` that is null, as it is in every chunk but the last.
    stream = lenient.completions.create(model=MODEL, prompt="Once", max_tokens=12, stream=True)
    *spoken, last = stream
    assert "".join(chunk.choices[0].text for chunk in spoken) == whole.choices[0].text
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "length")


def test_embeddings_are_the_same_in_both_encodings(client, lenient):
    texts = ["one", "two", "one"]
    # The SDK asks for base64 by itself, and unpacks it after its types were checked.
    packed = lenient.embeddings.create(model=MODEL, input=texts, dimensions=32)
    plain = client.embeddings.create(
        model=MODEL, input=texts, dimensions=32, encoding_format="float"
    )
    assert [item.index for item in packed.data] == [0, 1, 2]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
        assert math.hypot(*one.embedding) == pytest.approx(1, abs=1e-5)
    first, second, third = (item.embedding for item in packed.data)
    assert first == third and first != second
    assert packed.usage.total_tokens == packed.usage.prompt_tokens > 0


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2, 3], [4]]])
def test_embeddings_of_tokens_count_them(lenient, tokens):
    answer = lenient.embeddings.create(model=MODEL, input=tokens)
    flat = tokens if isinstance(tokens[0], int) else sum(tokens, [])
    assert answer.usage.prompt_tokens == len(flat)
    assert len(answer.data) == (1 if flat is tokens else len(tokens))


def test_a_response_has_a_text_and_usage_that_adds_up(client):
    answer = client.responses.create(model=MODEL, instructions="Be brief.", input="Say hello.")
    assert (answer.object, answer.status, answer.model) == ("response", "completed", MODEL)
    assert answer.output_text
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_response_that_was_cut_off_says_why(client):
    answer = client.responses.create(model=MODEL, input=HELLO, max_output_tokens=16)
    assert answer.status == "incomplete"
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 16


def test_a_streamed_response_is_the_same_text_in_pieces(client):
    whole = client.responses.create(model=MODEL, input="Say hello.")
    events = list(client.responses.create(model=MODEL, input="Say hello.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    text = "".join(
        event.delta for event in events if event.type == "response.output_text.delta"
    )
    assert text == whole.output_text
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.output_text == text
    assert last.response.usage == whole.usage


@pytest.mark.parametrize("cap", [None, 16])
def test_the_stream_helper_puts_a_response_together(client, cap):
    settings = {} if cap is None else {"max_output_tokens": cap}
    whole = client.responses.create(model=MODEL, input="Say hello.", **settings)
    with client.responses.stream(model=MODEL, input="Say hello.", **settings) as stream:
        kinds = [event.type for event in stream]
    assert kinds[-1] == ("response.completed" if cap is None else "response.incomplete")
    assert "response.output_text.done" in kinds
    assert whole.output_text


WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
    "strict": True,
}


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_in_a_response_and_its_result_answered(client, stream):
    question = {"role": "user", "content": "What will the weather be?"}
    settings = {"model": MODEL, "tools": [WEATHER]}
    if stream:
        with client.responses.stream(input=[question], **settings) as events:
            kinds = {event.type for event in events}
            answer = events.get_final_response()
        assert "response.function_call_arguments.delta" in kinds
    else:
        answer = client.responses.create(input=[question], **settings)
    [call] = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert set(json.loads(call.arguments)) == {"city", "days"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    called = call.model_dump(include={"type", "call_id", "name", "arguments"})
    told = client.responses.create(input=[question, called, result], **settings)
    assert told.output_text and [item.type for item in told.output] == ["message"]


def test_models_are_listed_and_found(client):
    names = [model.id for model in client.models.list()]
    assert names
    assert client.models.retrieve(names[0]).id == names[0]


def test_calls_in_parallel_get_their_own_answers(server):
    async def ask():
        settings = {"api_key": "sk-test", "max_retries": 0}
        async with openai.AsyncOpenAI(
            base_url=server.openai, _strict_response_validation=True, **settings
        ) as client:
            calls = (
                client.chat.completions.create(model=f"model-{number}", messages=HELLO)
                for number in range(20)
            )
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask())
    assert [answer.model for answer in answers] == [f"model-{number}" for number in range(20)]
    assert len({answer.id for answer in answers}) == 20
