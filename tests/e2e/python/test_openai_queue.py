"""OpenAI's own ways to hand in work and come back for it: background responses, files, batches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import openai
import pytest

from conftest import openai_client
from harness import SERVERS, running


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    # The stand-in keeps nothing: this is the gateway's alone.
    with running(*SERVERS["gateway"]) as server:
        yield openai_client(server, strict=False)


def until(ask, states: set[str]):
    """Asks until the thing is in one of these states."""
    deadline = time.monotonic() + 60
    while (thing := ask()).status not in states:
        assert time.monotonic() < deadline, thing
        time.sleep(0.05)
    return thing


def call(name: str) -> dict:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(client: openai.OpenAI, lines: list[dict]):
    content = "".join(json.dumps(line) + "\n" for line in lines)
    return client.files.create(file=("calls.jsonl", content.encode()), purpose="batch")


def test_a_response_is_made_in_the_background(client: openai.OpenAI) -> None:
    made = client.responses.create(model="gpt-4o-mini", input="hello", background=True)
    assert made.status in ("queued", "in_progress", "completed")
    done = until(lambda: client.responses.retrieve(made.id), {"completed"})
    assert done.id == made.id
    assert done.output_text
    events = list(client.responses.retrieve(made.id, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == done.output_text
    told = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert told == done.output_text
    rest = list(client.responses.retrieve(made.id, stream=True, starting_after=2))
    assert [event.sequence_number for event in rest] == list(range(3, len(events)))
    assert client.responses.cancel(made.id).status == "completed"


def test_a_response_in_the_background_can_be_watched(client: openai.OpenAI) -> None:
    stream = client.responses.create(
        model="gpt-4o-mini", input="hello", background=True, stream=True
    )
    events = list(stream)
    assert events[-1].type == "response.completed"
    kept = client.responses.retrieve(events[0].response.id)
    assert kept.output_text == events[-1].response.output_text


def test_an_unknown_response_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_0192aaaabbbbccccddddeeeeffff0000")


def test_files_are_kept_listed_and_removed(client: openai.OpenAI) -> None:
    file = client.files.create(
        file=("notes.txt", b"some text"),
        purpose="user_data",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.bytes == 9 and file.filename == "notes.txt"
    assert file.expires_at == file.created_at + 3600
    assert client.files.content(file.id).read() == b"some text"
    assert client.files.retrieve(file.id).id == file.id
    assert file.id in [one.id for one in client.files.list(purpose="user_data", limit=2)]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_is_finished_and_fetched(client: openai.OpenAI) -> None:
    file = upload(client, [call(f"row-{n}") for n in range(20)])
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"what": "test"},
    )
    assert batch.status == "validating"
    done = until(
        lambda: client.batches.retrieve(batch.id), {"completed", "failed", "expired", "cancelled"}
    )
    assert done.status == "completed", done.errors
    assert (done.request_counts.total, done.request_counts.completed) == (20, 20)
    assert done.usage.total_tokens > 0 and done.metadata == {"what": "test"}
    lines = [json.loads(line) for line in client.files.content(done.output_file_id).iter_lines()]
    assert {line["custom_id"] for line in lines} == {f"row-{n}" for n in range(20)}
    assert all(line["response"]["status_code"] == 200 for line in lines)
    assert batch.id in [one.id for one in client.batches.list(limit=1)]


def test_a_bad_input_is_told_by_line(client: openai.OpenAI) -> None:
    file = upload(client, [call("one"), call("one")])
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    failed = until(lambda: client.batches.retrieve(batch.id), {"failed"})
    assert [(e.code, e.line) for e in failed.errors.data] == [("duplicate_custom_id", 2)]
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(batch.id)
