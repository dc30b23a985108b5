// Anthropic's SDK.

import Anthropic from "@anthropic-ai/sdk";
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { SERVERS, collect, standIn, start } from "./harness.mjs";

const CALL = {
  model: "claude-haiku-4-5",
  messages: [{ role: "user", content: "Say hello." }],
  max_tokens: 400,
};

const clientOf = (server, settings = {}) =>
  new Anthropic({ baseURL: server.anthropic, apiKey: "sk-ant-test", maxRetries: 0, ...settings });
const ask = (server, settings) => clientOf(server, settings).messages.create(CALL);

/** The error is of `type`, and its body says `kind`. */
const is = (type, kind) => (error) => {
  assert.ok(error instanceof type, `${error}`);
  assert.equal(error.error.type, "error");
  assert.equal(error.error.error.type, kind);
  assert.equal(error.error.request_id, error.requestID);
  return true;
};

for (const [name, words] of Object.entries(SERVERS)) {
  describe(name, () => {
    let server;
    let client;
    before(async () => {
      server = await start(...words);
      client = clientOf(server);
    });
    after(() => server.stop());

    test("a message has a text, a reason and usage", async () => {
      const message = await client.messages.create(CALL);
      assert.ok(message._request_id);
      assert.deepEqual([message.model, message.stop_reason], [CALL.model, "end_turn"]);
      assert.ok(message.content[0].text);
      assert.ok(message.usage.input_tokens > 0 && message.usage.output_tokens > 0);
    });

    test("counted tokens are those that are charged", async () => {
      const { max_tokens: _, ...prompt } = CALL;
      const counted = await client.messages.countTokens(prompt);
      const message = await client.messages.create(CALL);
      assert.equal(counted.input_tokens, message.usage.input_tokens);
    });

    test("the events of a stream come in their order", async () => {
      const whole = await client.messages.create(CALL);
      const events = await collect(await client.messages.create({ ...CALL, stream: true }));
      const kinds = events.map((event) => event.type);
      assert.deepEqual(kinds.slice(0, 2), ["message_start", "content_block_start"]);
      const end = ["content_block_stop", "message_delta", "message_stop"];
      assert.deepEqual(kinds.slice(-3), end);
      const deltas = events.filter((event) => event.type === "content_block_delta");
      assert.equal(deltas.map((event) => event.delta.text).join(""), whole.content[0].text);
      assert.equal(events.at(-2).usage.output_tokens, whole.usage.output_tokens);
    });

    for (const max_tokens of [3, 400]) {
      test(`the stream helper puts a message of at most ${max_tokens} together`, async () => {
        const whole = await client.messages.create({ ...CALL, max_tokens });
        const final = await client.messages.stream({ ...CALL, max_tokens }).finalMessage();
        assert.equal(final.content[0].text, whole.content[0].text);
        assert.equal(final.stop_reason, whole.stop_reason);
        assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
      });
    }

    test("models are listed and found", async () => {
      const names = (await collect(client.models.list())).map((model) => model.id);
      assert.ok(names.length);
      const model = await client.models.retrieve(names[0]);
      assert.deepEqual([model.type, model.id], ["model", names[0]]);
    });

    test("a bad key is an authentication error", async (test) => {
      const refused = ask(await standIn(test), { apiKey: "bad" });
      await assert.rejects(refused, is(Anthropic.AuthenticationError, "authentication_error"));
    });

    test("a bad body is a bad request that names the field", async () => {
      const { max_tokens: _, ...body } = CALL;
      await assert.rejects(client.post("/v1/messages", { body }), (error) => {
        assert.match(error.message, /max_tokens/);
        return is(Anthropic.BadRequestError, "invalid_request_error")(error);
      });
    });

    test("what does not exist is not found", async () => {
      const missing = client.post("/v1/no/such/thing", { body: {} });
      await assert.rejects(missing, is(Anthropic.NotFoundError, "not_found_error"));
    });
  });
}

test("a limit is a rate-limit error that says how long", async (t) => {
  const server = await standIn(t, "--limit", "requests=1/1m");
  await ask(server);
  await assert.rejects(ask(server), (error) => {
    const wait = Number(error.headers.get("retry-after"));
    assert.ok(wait >= 50 && wait <= 60, `${wait}`);
    return is(Anthropic.RateLimitError, "rate_limit_error")(error);
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

test("a lack of capacity says so", async (t) => {
  const server = await standIn(t, "--outage", "0s-10m");
  await assert.rejects(ask(server), is(Anthropic.InternalServerError, "overloaded_error"));
});

test("a closed connection is a connection error", async (t) => {
  const server = await standIn(t, "--drop", "1");
  await assert.rejects(ask(server), Anthropic.APIConnectionError);
});

test("the limits are told in headers", async (t) => {
  const limits = ["requests=10/1m", "input_tokens=20k/1m", "output_tokens=8k/1m"];
  const server = await standIn(t, ...limits.flatMap((limit) => ["--limit", limit]));
  const { response } = await clientOf(server).messages.create(CALL).withResponse();
  const told = (name) => response.headers.get(`anthropic-ratelimit-${name}`);
  assert.deepEqual([told("requests-limit"), told("requests-remaining")], ["10", "9"]);
  assert.deepEqual([told("input-tokens-limit"), told("tokens-limit")], ["20000", "28000"]);
  assert.ok(Date.parse(told("tokens-reset")) > 0);
});
