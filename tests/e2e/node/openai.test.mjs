// OpenAI's SDK.

import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import OpenAI from "openai";
import { SERVERS, collect, standIn, start } from "./harness.mjs";

const MODEL = "gpt-5-mini";
const HELLO = [{ role: "user", content: "Say hello." }];

const clientOf = (server, settings = {}) =>
  new OpenAI({ baseURL: server.openai, apiKey: "sk-test", maxRetries: 0, ...settings });
const ask = (server, settings) =>
  clientOf(server, settings).chat.completions.create({ model: MODEL, messages: HELLO });

for (const [name, words] of Object.entries(SERVERS)) {
  describe(name, () => {
    let server;
    let client;
    before(async () => {
      server = await start(...words);
      client = clientOf(server);
    });
    after(() => server.stop());

    test("a chat has a text, a reason and usage that adds up", async () => {
      const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO });
      assert.ok(answer._request_id);
      assert.equal(answer.model, MODEL);
      assert.equal(answer.choices[0].finish_reason, "stop");
      assert.ok(answer.choices[0].message.content);
      const { prompt_tokens, completion_tokens, total_tokens } = answer.usage;
      assert.ok(prompt_tokens > 0 && completion_tokens > 0);
      assert.equal(total_tokens, prompt_tokens + completion_tokens);
    });

    test("a streamed chat is the same text in pieces", async () => {
      const call = { model: MODEL, messages: HELLO };
      const whole = await client.chat.completions.create(call);
      const stream = await client.chat.completions.create({
        ...call,
        stream: true,
        stream_options: { include_usage: true },
      });
      const chunks = await collect(stream);
      const last = chunks.pop();
      const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
      assert.equal(text, whole.choices[0].message.content);
      assert.ok(chunks.length > 3);
      assert.ok(chunks.every((chunk) => chunk.usage === null));
      assert.deepEqual([last.choices, last.usage], [[], whole.usage]);
    });

    test("the stream helper puts a chat together", async () => {
      const call = { model: MODEL, messages: HELLO, max_completion_tokens: 5 };
      const whole = await client.chat.completions.create(call);
      const final = await client.chat.completions.stream(call).finalChatCompletion();
      assert.equal(final.choices[0].message.content, whole.choices[0].message.content);
      assert.equal(final.choices[0].finish_reason, "length");
    });

    test("a stream may be left in the middle", async () => {
      const call = { model: MODEL, messages: HELLO, stream: true };
      for await (const chunk of await client.chat.completions.create(call)) {
        assert.equal(chunk.choices.length, 1);
        break;
      }
      assert.ok((await ask(server)).choices.length);
    });

    test("embeddings are the same in both encodings", async () => {
      const call = { model: MODEL, input: ["one", "two"], dimensions: 32 };
      // The SDK asks for base64 by itself and unpacks it.
      const packed = await client.embeddings.create(call);
      const plain = await client.embeddings.create({ ...call, encoding_format: "float" });
      assert.equal(packed.data.length, 2);
      for (const [index, { embedding }] of packed.data.entries()) {
        assert.equal(embedding.length, 32);
        const other = plain.data[index].embedding;
        assert.ok(embedding.every((number, at) => Math.abs(number - other[at]) < 1e-6));
      }
    });

    test("a streamed response is the same text in pieces", async () => {
      const call = { model: MODEL, input: "Say hello." };
      const whole = await client.responses.create(call);
      assert.equal(whole.status, "completed");
      const events = await collect(await client.responses.create({ ...call, stream: true }));
      assert.deepEqual(
        events.map((event) => event.sequence_number),
        [...events.keys()],
      );
      const deltas = events.filter((event) => event.type === "response.output_text.delta");
      assert.equal(deltas.map((event) => event.delta).join(""), whole.output_text);
      assert.deepEqual(events.at(-1).response.usage, whole.usage);
    });

    test("the stream helper puts a response together", async () => {
      const call = { model: MODEL, input: "Say hello." };
      const whole = await client.responses.create(call);
      const final = await client.responses.stream(call).finalResponse();
      assert.equal(final.status, "completed");
      assert.equal(final.output_text, whole.output_text);
    });

    test("models are listed and found", async () => {
      const names = (await collect(client.models.list())).map((model) => model.id);
      assert.ok(names.length);
      assert.equal((await client.models.retrieve(names[0])).id, names[0]);
    });

    test("a bad key is an authentication error", async (test) => {
      await assert.rejects(ask(await standIn(test), { apiKey: "bad" }), (error) => {
        assert.ok(error instanceof OpenAI.AuthenticationError);
        assert.deepEqual([error.status, error.code], [401, "invalid_api_key"]);
        assert.ok(error.requestID);
        return true;
      });
    });

    test("a bad body is a bad request that names the field", async () => {
      await assert.rejects(client.chat.completions.create({ model: MODEL }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.deepEqual([error.param, error.type], ["messages", "invalid_request_error"]);
        return true;
      });
    });

    test("what does not exist is not found", async () => {
      await assert.rejects(client.post("/no/such/thing", { body: {} }), OpenAI.NotFoundError);
    });
  });
}

test("a limit is a rate-limit error that says how long", async (t) => {
  const server = await standIn(t, "--limit", "requests=1/1m");
  await ask(server);
  await assert.rejects(ask(server), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.deepEqual([error.code, error.type], ["rate_limit_exceeded", "requests"]);
    const wait = Number(error.headers.get("retry-after"));
    assert.ok(wait >= 50 && wait <= 60, `${wait}`);
    return true;
  });
});

test("the SDK waits as long as it is told and no longer", async (t) => {
  const server = await standIn(t, "--limit", "requests=1/3s");
  await ask(server);
  // Its own waits, tried first, are half a second and one: they would be refused again.
  await ask(server, { maxRetries: 2 });
  const { accepted, refused } = await server.books();
  assert.deepEqual([accepted, refused], [2, 1]);
});

test("an account without money is told by its code", async (t) => {
  const server = await standIn(t, "--quota", "1");
  await ask(server);
  await assert.rejects(ask(server), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.equal(error.code, "insufficient_quota");
    return true;
  });
});

test("a broken server is an internal error", async (t) => {
  const server = await standIn(t, "--outage", "0s-10m");
  await assert.rejects(ask(server), OpenAI.InternalServerError);
});

test("a closed connection is a connection error", async (t) => {
  const server = await standIn(t, "--drop", "1");
  await assert.rejects(ask(server), OpenAI.APIConnectionError);
});

test("the limits are told in headers", async (t) => {
  const server = await standIn(t, "--limit", "requests=10/1m", "--limit", "tokens=1000/1m");
  const call = { model: MODEL, messages: HELLO, max_completion_tokens: 100 };
  const { data, response } = await clientOf(server).chat.completions.create(call).withResponse();
  const told = (name) => response.headers.get(`x-ratelimit-${name}`);
  assert.deepEqual([told("limit-requests"), told("remaining-requests")], ["10", "9"]);
  // The prompt and the cap are counted when the call arrives.
  assert.equal(Number(told("remaining-tokens")), 1_000 - data.usage.prompt_tokens - 100);
});
