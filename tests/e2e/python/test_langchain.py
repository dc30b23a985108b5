"""LangChain's ``langchain-openai`` against the gateway."""

import asyncio

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from harness import crossed, straight, wait_for

MODEL = "gpt-5-mini"


@pytest.fixture(params=[straight, crossed], ids=["straight", "crossed"])
def pair(request, over):
    return over(request.param)


def model_of(server, **settings):
    settings = {"max_retries": 0, **settings}
    return ChatOpenAI(model=MODEL, base_url=server.openai, api_key="sk-test", **settings)


@tool
def weather(city: str, days: int) -> str:
    """The weather at a place for some days."""
    return f"{city}: sunny for {days} days"


class Weather(BaseModel):
    """The weather at a place."""

    city: str
    degrees: float


def test_a_chat_has_a_text_a_reason_and_usage(pair):
    answer = model_of(pair.gateway).invoke([("system", "Be brief."), ("human", "Say hello.")])
    assert answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_a_stream_is_the_same_text_in_pieces(pair):
    model = model_of(pair.gateway, stream_usage=True)
    whole = model.invoke("Say hello.")
    chunks = list(model.stream("Say hello."))
    assert len(chunks) > 3
    together = chunks[0]
    for chunk in chunks[1:]:
        together += chunk
    assert together.content == whole.content
    assert together.usage_metadata["total_tokens"] == whole.usage_metadata["total_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_answered(pair, stream):
    model = model_of(pair.gateway, streaming=stream).bind_tools([weather])
    question = HumanMessage("What will the weather be?")
    answer = model.invoke([question])
    [call] = answer.tool_calls
    assert (call["name"], set(call["args"])) == ("weather", {"city", "days"})
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    told = model.invoke([question, answer, result])
    assert told.content and not told.tool_calls


@pytest.mark.parametrize("stream", [False, True])
def test_the_responses_api_answers_and_calls_tools(over, stream):
    settings = {"use_responses_api": True, "streaming": stream}
    model = model_of(over(straight).gateway, **settings)
    answer = model.invoke("Say hello.")
    assert answer.text and answer.usage_metadata["total_tokens"] > 0
    assert answer.response_metadata["id"].startswith("resp_")
    model = model.bind_tools([weather])
    question = HumanMessage("What will the weather be?")
    answer = model.invoke([question])
    [call] = answer.tool_calls
    assert (call["name"], set(call["args"])) == ("weather", {"city", "days"})
    told = model.invoke([question, answer, weather.invoke(call)])
    assert told.text and not told.tool_calls


def test_the_responses_api_keeps_to_a_type(over):
    model = model_of(over(straight).gateway, use_responses_api=True)
    model = model.with_structured_output(Weather, method="json_schema")
    assert isinstance(model.invoke("What is the weather?"), Weather)


@pytest.mark.parametrize("responses", [False, True])
def test_a_stream_that_is_left_frees_its_place(over, responses):
    pair = over(straight, "--latency", "2s", "--jitter", "0", limits="concurrency = 1")
    model = model_of(pair.gateway, use_responses_api=responses)
    stream = model.stream("Say hello.")
    next(stream)
    stream.close()
    wait_for(pair.upstream, lambda books: books["abandoned"] == 1)

    async def cancelled():
        async def hear():
            async for _ in model.astream("Say hello."):
                begun.set()

        begun = asyncio.Event()
        hearing = asyncio.create_task(hear())
        await begun.wait()
        # Before Python 3.12, `wait_for` loses a cancellation that comes with what it waits for.
        while not hearing.done():
            hearing.cancel()
            await asyncio.sleep(0.01)
        # The connection is closed by a task of the client's own.
        while pair.upstream.books()["abandoned"] < 2:
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(cancelled(), 20))


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_keeps_to_a_type(pair, method):
    model = model_of(pair.gateway).with_structured_output(Weather, method=method)
    assert isinstance(model.invoke("What is the weather?"), Weather)


def test_calls_in_a_batch_each_get_their_answer(pair):
    answers = model_of(pair.gateway).batch([f"Say {number}." for number in range(8)])
    assert all(answer.content for answer in answers) and len(answers) == 8


def test_calls_that_wait_at_once_get_their_answers(pair):
    async def ask():
        model = model_of(pair.gateway)
        return await asyncio.gather(*(model.ainvoke(f"Say {n}.") for n in range(8)))

    assert len({answer.id for answer in asyncio.run(ask())}) == 8


def test_embeddings_of_texts_come_in_their_order(over):
    # Where the tokenizer's tables cannot be downloaded, texts are sent as they are.
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        base_url=over(lambda upstream: embedding(straight(upstream))).gateway.openai,
        api_key="sk-test",
        check_embedding_ctx_length=False,
    )
    one, two, three = embeddings.embed_documents(["one", "two", "one"])
    assert one == three != two
    assert embeddings.embed_query("two") == two


def embedding(config):
    model = '[models."text-embedding-3-small"]\nupstreams = [{ upstream = "openai" }]\n'
    return config + model


def test_a_header_says_how_long_a_call_waits(over):
    pair = over(straight, limits='custom = ["requests=1/1m"]')
    model = model_of(pair.gateway, default_headers={"X-LLMQ-Max-Wait": "100ms"})
    model.invoke("Say hello.")
    with pytest.raises(openai.RateLimitError, match="X-LLMQ-Max-Wait"):
        model.invoke("Say hello.")


def test_an_upstream_that_fails_is_asked_again_by_the_gateway_alone(over):
    pair = over(straight, "--fail", "1")
    with pytest.raises(openai.InternalServerError):
        model_of(pair.gateway, max_retries=5).invoke("Say hello.")
    assert pair.upstream.books()["calls"] == 2


def test_a_call_that_takes_too_long_is_a_timeout(over):
    pair = over(straight, "--latency", "20s")
    with pytest.raises(openai.APITimeoutError):
        model_of(pair.gateway, timeout=0.3).invoke("Say hello.")


def test_what_cannot_be_translated_is_a_bad_request(over):
    with pytest.raises(openai.BadRequestError, match="`n` cannot be translated"):
        model_of(over(crossed).gateway, n=2).invoke("Say hello.")
