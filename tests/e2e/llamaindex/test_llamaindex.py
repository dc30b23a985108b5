"""LlamaIndex's ``llama-index-llms-openai`` and its sibling for other models, at the gateway."""

import asyncio
import gc
import re
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from harness import SERVERS, crossed, gateway, running, stand_in, straight, wait_for
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

GUIDE = Path(__file__).parents[3] / "docs/src/frameworks.md"


@pytest.fixture
def over():
    """Starts a gateway over the stand-in, and gives both."""
    with ExitStack() as stack:

        def start(form, *flags, **parts):
            upstream = stack.enter_context(running(*stand_in(*flags)))
            return stack.enter_context(gateway(form(upstream, **parts))), upstream

        yield start


@pytest.fixture(params=[straight, crossed], ids=["straight", "crossed"])
def front(request, over):
    return over(request.param)[0]


def model_of(server, **settings):
    settings = {"max_retries": 0, **settings}
    return OpenAI(model="gpt-5-mini", api_base=server.openai, api_key="sk-test", **settings)


def weather(city: str, days: int) -> str:
    """The weather at a place for some days."""
    return f"{city}: sunny for {days} days"


class Weather(BaseModel):
    """The weather at a place."""

    city: str
    days: int


def test_a_chat_and_a_completion_have_a_text_and_usage(front):
    model = model_of(front)
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Say hello."),
    ]
    answer = model.chat(messages)
    assert answer.message.content
    assert answer.raw.usage.total_tokens > 0
    assert model.complete("Say hello.").text


def test_a_stream_is_the_same_text_in_pieces(front):
    model = model_of(front)
    pieces = [piece.delta for piece in model.stream_complete("Say hello.")]
    assert len(pieces) > 3
    assert "".join(pieces) == model.complete("Say hello.").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called(front, stream):
    model, tools = model_of(front), [FunctionTool.from_defaults(weather)]
    if stream:
        *_, answer = model.stream_chat_with_tools(tools, user_msg="How is the weather?")
    else:
        answer = model.chat_with_tools(tools, user_msg="How is the weather?")
    [call] = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, set(call.tool_kwargs)) == ("weather", {"city", "days"})


def test_an_answer_keeps_to_a_type(front):
    answer = model_of(front).structured_predict(Weather, PromptTemplate("How is the weather?"))
    assert isinstance(answer, Weather)


def test_calls_at_once_each_get_their_answer(front):
    async def ask():
        model = model_of(front)
        return await asyncio.gather(*(model.acomplete(f"Say {n}.") for n in range(8)))

    assert all(answer.text for answer in asyncio.run(ask()))


def test_other_names_are_served_by_the_class_for_them(front):
    model = OpenAILike(
        model="claude-haiku-4-5",
        api_base=front.openai,
        api_key="sk-test",
        is_chat_model=True,
        max_retries=0,
    )
    # OpenAI's dialect, whichever the upstream speaks.
    assert model.complete("Say hello.").text


def test_a_header_says_how_long_a_call_waits(over):
    front, _ = over(straight, limits='custom = ["requests=1/1m"]')
    model = model_of(front, default_headers={"X-LLMQ-Max-Wait": "100ms"})
    model.complete("Say hello.")
    with pytest.raises(openai.RateLimitError, match="X-LLMQ-Max-Wait"):
        model.complete("Say hello.")


def test_an_upstream_that_fails_is_asked_again_by_the_gateway_alone(over):
    front, upstream = over(straight, "--fail", "1")
    with pytest.raises(openai.InternalServerError):
        model_of(front).complete("Say hello.")
    assert upstream.books()["calls"] == 2


def test_a_stream_that_is_left_frees_its_place(over):
    parts = ["--latency", "2s", "--jitter", "0"]
    front, upstream = over(straight, *parts, limits="concurrency = 1")
    for _ in model_of(front).stream_complete("Say hello."):
        break
    # What LlamaIndex wraps around a stream refers to itself.
    gc.collect()
    wait_for(upstream, lambda books: books["abandoned"] == 1)

    async def cancelled():
        async def hear():
            async for _ in await model_of(front).astream_complete("Say hello."):
                begun.set()

        begun = asyncio.Event()
        hearing = asyncio.create_task(hear())
        await begun.wait()
        # Before Python 3.12, `wait_for` loses a cancellation that comes with what it waits for.
        while not hearing.done():
            hearing.cancel()
            await asyncio.sleep(0.01)
        # The connection is closed by a task of the client's own.
        while upstream.books()["abandoned"] < 2:
            await asyncio.sleep(0.02)

    asyncio.run(asyncio.wait_for(cancelled(), 20))


def test_a_call_that_takes_too_long_is_a_timeout(over):
    front, _ = over(straight, "--latency", "20s")
    with pytest.raises(openai.APITimeoutError):
        model_of(front, timeout=0.3).complete("Say hello.")


def examples():
    fences = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    return [code for code in fences if "llama_index" in code]


@pytest.mark.parametrize("code", examples())
def test_an_example_of_the_guide_runs_and_says_something(code, capsys):
    with running(*SERVERS["gateway"]) as server:
        code = code.replace("127.0.0.1:8080", server.address).replace("llmq_…", "llmq_test")
        exec(compile(code, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()
