"""OpenAI's SDK and its Batch API: every endpoint, and every way in which a batch ends."""

from __future__ import annotations

import json
import time

import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from conftest import Pair, openai_client
from harness import crossed, straight

MODEL = "gpt-5-mini"
ENDS = {"completed", "failed", "expired", "cancelled"}
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Say hello."}]}


def call(name: str, body: dict, url: str = CHAT) -> dict:
    return {
        "custom_id": name,
        "method": "POST",
        "url": url,
        "body": {"model": MODEL, **body},
    }


def handed_in(client: openai.OpenAI, lines: list[dict], url: str = CHAT, window: str = "24h"):
    """A batch of these lines. The last one has no newline behind it."""
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("calls.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=url, completion_window=window, metadata={"of": "a test"}
    )


def until(client: openai.OpenAI, batch, reached):
    """The batch, as soon as it is so."""
    deadline = time.monotonic() + 60
    while not reached(batch := client.batches.retrieve(batch.id)):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def end(client: openai.OpenAI, batch):
    return until(client, batch, lambda batch: batch.status in ENDS)


def lines_of(client: openai.OpenAI, file_id: str | None) -> list[dict]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).iter_lines()]


def counts(batch) -> tuple[int, int, int]:
    found = batch.request_counts
    return found.total, found.completed, found.failed


EVERY = {
    "chat": (straight, CHAT, HELLO, ChatCompletion),
    "chat over Anthropic": (crossed, CHAT, HELLO, ChatCompletion),
    "responses": (straight, "/v1/responses", {"input": "Say hello."}, Response),
    "embeddings": (straight, "/v1/embeddings", {"input": ["a", "b"]}, CreateEmbeddingResponse),
    "completions": (straight, "/v1/completions", {"prompt": "Say"}, Completion),
}


@pytest.mark.parametrize(("form", "url", "body", "kind"), EVERY.values(), ids=EVERY)
def test_a_batch_is_for_every_endpoint(over, form, url, body, kind) -> None:
    pair: Pair = over(form)
    with openai_client(pair.gateway, strict=False) as client:
        batch = handed_in(client, [call(f"row-{n}", body, url) for n in range(5)], url)
        done = end(client, batch)
        assert (done.status, done.endpoint, counts(done)) == ("completed", url, (5, 5, 0))
        answers = lines_of(client, done.output_file_id)
        assert {line["custom_id"] for line in answers} == {f"row-{n}" for n in range(5)}
        for line in answers:
            assert line["response"]["status_code"] == 200 and line["error"] is None
            # Each field is what the SDK says that it is.
            kind.model_validate(line["response"]["body"])
        assert done.error_file_id is None
        assert done.usage.input_tokens > 0
        assert pair.upstream.books()["accepted"] == 5


def test_a_batch_of_messages_is_handed_in_by_the_same_sdk(over) -> None:
    pair = over(straight)
    body = {"model": "claude-haiku-4-5", "max_tokens": 50, **HELLO}
    with openai_client(pair.gateway, strict=False) as client:
        done = end(client, handed_in(client, [call("a", body, "/v1/messages")], "/v1/messages"))
        assert counts(done) == (1, 1, 0), done
        [line] = lines_of(client, done.output_file_id)
        assert line["response"]["body"]["type"] == "message"


def test_what_a_provider_refuses_is_in_the_error_file(over) -> None:
    pair = over(straight)
    with openai_client(pair.gateway, strict=False) as client:
        lines = [call("good", HELLO), call("bad", {**HELLO, "n": 0})]
        done = end(client, handed_in(client, lines))
        assert (done.status, counts(done)) == ("completed", (2, 1, 1))
        assert [line["custom_id"] for line in lines_of(client, done.output_file_id)] == ["good"]
        [bad] = lines_of(client, done.error_file_id)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
        assert bad["response"]["body"]["error"]["message"]


# So many calls a day: what comes behind them waits.
TWO_A_DAY = 'custom = ["requests=2/1d"]'


def test_a_batch_that_is_cancelled_keeps_what_is_done(over) -> None:
    pair = over(straight, limits=TWO_A_DAY)
    with openai_client(pair.gateway, strict=False) as client:
        batch = handed_in(client, [call(f"row-{n}", HELLO) for n in range(6)])
        going = until(client, batch, lambda batch: batch.request_counts.completed == 2)
        assert (going.status, going.output_file_id) == ("in_progress", None)
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        gone = end(client, batch)
        assert (gone.status, counts(gone)) == ("cancelled", (6, 2, 4))
        assert gone.cancelling_at and gone.cancelled_at and gone.completed_at is None
        done = lines_of(client, gone.output_file_id)
        assert [line["response"]["status_code"] for line in done] == [200, 200]
        left = lines_of(client, gone.error_file_id)
        assert {line["error"]["code"] for line in left} == {"batch_cancelled"}
        names = {line["custom_id"] for line in done + left}
        assert names == {f"row-{n}" for n in range(6)}
        assert client.batches.cancel(batch.id).status == "cancelled", "once is enough"
        assert pair.upstream.books()["calls"] == 2


def test_a_batch_whose_window_closes_keeps_what_is_done(over) -> None:
    pair = over(straight, limits=TWO_A_DAY)
    with openai_client(pair.gateway, strict=False) as client:
        batch = handed_in(client, [call(f"row-{n}", HELLO) for n in range(5)], window="2s")
        gone = end(client, batch)
        assert (gone.status, counts(gone)) == ("expired", (5, 2, 3))
        assert gone.expired_at >= gone.expires_at >= gone.in_progress_at
        assert len(lines_of(client, gone.output_file_id)) == 2
        left = lines_of(client, gone.error_file_id)
        assert [(line["response"], line["error"]["code"]) for line in left] == [
            (None, "batch_expired")
        ] * 3
        with pytest.raises(openai.BadRequestError):
            client.batches.cancel(batch.id)


def test_a_response_that_waits_is_cancelled_for_good(over) -> None:
    pair = over(straight, limits='custom = ["requests=1/1d"]')
    with openai_client(pair.gateway, strict=False) as client:
        client.responses.create(model=MODEL, input="the only one today")
        made = client.responses.create(model=MODEL, input="hello", background=True)
        assert client.responses.retrieve(made.id).status == "queued"
        gone = client.responses.cancel(made.id)
        assert (gone.id, gone.status) == (made.id, "cancelled")
        assert client.responses.retrieve(made.id).status == "cancelled"
        assert client.responses.cancel(made.id).status == "cancelled"
        # Whoever watches it is told its end as well.
        events = list(client.responses.retrieve(made.id, stream=True))
        assert events[-1].response.status == "cancelled"
        assert pair.upstream.books()["calls"] == 1


BROKEN = {
    "no JSON": ('{"custom_id": ', [("invalid_json_line", 1)]),
    "half of them": (
        "\n".join([json.dumps(call("a", HELLO)), "nonsense", json.dumps(call("a", HELLO))]),
        [("invalid_json_line", 2), ("duplicate_custom_id", 3)],
    ),
    "mixed": (
        "\n".join(
            [
                json.dumps(call("a", HELLO)),
                "",
                json.dumps(call("b", {"input": "x"}, "/v1/responses")),
                json.dumps(call("c", {**HELLO, "model": "another"})),
            ]
        ),
        [("mismatched_url", 3), ("mismatched_model", 4)],
    ),
    "nothing": ("", [("empty_file", None)]),
    "a mark and nothing": ("\ufeff\r\n", [("empty_file", None)]),
}


@pytest.mark.parametrize(("content", "faults"), BROKEN.values(), ids=BROKEN)
def test_a_bad_file_is_told_line_by_line_and_nothing_is_sent(over, content, faults) -> None:
    pair = over(straight)
    with openai_client(pair.gateway, strict=False) as client:
        file = client.files.create(file=("calls.jsonl", content.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        failed = end(client, batch)
        assert failed.status == "failed"
        assert [(fault.code, fault.line) for fault in failed.errors.data] == faults
        assert pair.upstream.books()["calls"] == 0


def test_a_file_of_another_editor_is_read_all_the_same(over) -> None:
    pair = over(straight)
    with openai_client(pair.gateway, strict=False) as client:
        lines = "\r\n".join(json.dumps(call(name, HELLO)) for name in ("a", "b"))
        content = ("\ufeff" + lines).encode()
        file = client.files.create(file=("calls.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        assert counts(end(client, batch)) == (2, 2, 0)


def test_a_file_that_is_kept_here_is_not_for_a_call(over) -> None:
    pair = over(straight)
    with openai_client(pair.gateway) as client:
        file = client.files.create(file=("a.txt", b"some text"), purpose="user_data")
        content = [{"type": "input_file", "file_id": file.id}]
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(model=MODEL, input=[{"role": "user", "content": content}])
        assert refused.value.param == "file_id" and "file_data" in refused.value.message
        assert pair.upstream.books()["calls"] == 0
