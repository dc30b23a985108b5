// Both SDKs and the gateway, on upstreams that speak the SDK's own API or the other one: what is
// translated, and how they get on when a call waits, fails or is left.

import Anthropic from "@anthropic-ai/sdk";
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import OpenAI from "openai";
import { FORMS, collect, pair, reached } from "./harness.mjs";

const HELLO = [{ role: "user", content: "Say hello." }];
const SCHEMA = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
};
// One red pixel.
const PNG =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ" +
  "AAAADUlEQVR4nGP4z8DwHwAFAAH/q842iQAAAABJRU5ErkJggg==";

// Each SDK in the words that the tests have in common.
const SDKS = {
  openai: {
    kind: OpenAI,
    client: (server, settings) =>
      new OpenAI({ baseURL: server.openai, apiKey: "sk-test", maxRetries: 0, ...settings }),
    ask: (client, more = {}, options) =>
      client.chat.completions.create({ model: "gpt-5-mini", messages: HELLO, ...more }, options),
    helper: async (client, more = {}) => {
      const call = { model: "gpt-5-mini", messages: HELLO, ...more };
      return client.chat.completions.stream(call).finalChatCompletion();
    },
    text: (answer) => answer.choices[0].message.content,
    reason: (answer) => answer.choices[0].finish_reason,
    model: "gpt-5-mini",
    tools: [{ type: "function", function: { name: "weather", parameters: SCHEMA } }],
    called: (answer) => {
      const [call] = answer.choices[0].message.tool_calls;
      return [call.function.name, JSON.parse(call.function.arguments)];
    },
    image: { type: "image_url", image_url: { url: `data:image/png;base64,${PNG}` } },
    ended: { text: "stop", tool: "tool_calls", cut: "length" },
    cap: "max_completion_tokens",
    foreign: { logprobs: true },
  },
  anthropic: {
    kind: Anthropic,
    client: (server, settings) =>
      new Anthropic({ baseURL: server.anthropic, apiKey: "sk-test", maxRetries: 0, ...settings }),
    ask: (client, more = {}, options) => {
      const call = { model: "claude-haiku-4-5", messages: HELLO, max_tokens: 400, ...more };
      return client.messages.create(call, options);
    },
    helper: async (client, more = {}) => {
      const call = { model: "claude-haiku-4-5", messages: HELLO, max_tokens: 400, ...more };
      return client.messages.stream(call).finalMessage();
    },
    text: (answer) => answer.content[0].text,
    reason: (answer) => answer.stop_reason,
    model: "claude-haiku-4-5",
    tools: [{ name: "weather", input_schema: SCHEMA }],
    called: (answer) => {
      const [call] = answer.content;
      return [call.name, call.input];
    },
    image: { type: "image", source: { type: "base64", media_type: "image/png", data: PNG } },
    ended: { text: "end_turn", tool: "tool_use", cut: "max_tokens" },
    cap: "max_tokens",
    foreign: { top_k: 5 },
  },
};

for (const [name, sdk] of Object.entries(SDKS)) {
  const { kind } = sdk;

  for (const form of Object.keys(FORMS)) {
    describe(`${name}, ${form}`, () => {
      test("an answer has a text, a reason and the upstream's model", async (t) => {
        const { gateway } = await pair(t, form);
        const client = sdk.client(gateway);
        const whole = await sdk.ask(client);
        assert.ok(sdk.text(whole));
        assert.equal(sdk.reason(whole), sdk.ended.text);
        assert.equal(whole.model === sdk.model, form === "straight");
        const cut = await sdk.ask(client, { [sdk.cap]: 3 });
        assert.equal(sdk.reason(cut), sdk.ended.cut);
        const streamed = await sdk.helper(client);
        assert.equal(sdk.text(streamed), sdk.text(whole));
        assert.equal(sdk.reason(streamed), sdk.ended.text);
        const events = await collect(await sdk.ask(client, { stream: true }));
        assert.ok(events.length > 3);
      });

      test("a tool is called, whole and streamed", async (t) => {
        const { gateway } = await pair(t, form);
        const client = sdk.client(gateway);
        for (const answer of [
          await sdk.ask(client, { tools: sdk.tools }),
          await sdk.helper(client, { tools: sdk.tools }),
        ]) {
          assert.equal(sdk.reason(answer), sdk.ended.tool);
          assert.deepEqual(sdk.called(answer), ["weather", { city: "text", days: 1 }]);
        }
      });

      test("an image is taken as data", async (t) => {
        const { gateway } = await pair(t, form);
        const content = [{ type: "text", text: "What is this?" }, sdk.image];
        const messages = [{ role: "user", content }];
        assert.ok(sdk.text(await sdk.ask(sdk.client(gateway), { messages })));
      });

      test("a limit is waited for and not failed at", async (t) => {
        const limits = 'custom = ["requests=2/3s"]';
        const { gateway, upstream } = await pair(t, form, {
          flags: ["--limit", "requests=2/3s"],
          limits,
        });
        const client = sdk.client(gateway);
        const began = performance.now();
        await Promise.all([1, 2, 3, 4].map(() => sdk.ask(client)));
        assert.ok(performance.now() - began >= 2_900);
        assert.equal((await upstream.books()).refused, 0);
      });

      test("what was repeated enough is not repeated by the SDK", async (t) => {
        const { gateway, upstream } = await pair(t, form, { flags: ["--fail", "1"] });
        const asked = sdk.ask(sdk.client(gateway, { maxRetries: 5 }));
        await assert.rejects(asked, (error) => {
          assert.ok(error instanceof kind.InternalServerError, `${error}`);
          assert.equal(error.headers.get("x-should-retry"), "false");
          return true;
        });
        assert.equal((await upstream.books()).calls, 2, "the gateway's own attempts");
      });

      test("an SDK that gives up, or leaves a stream, frees its place", async (t) => {
        const { gateway, upstream } = await pair(t, form, {
          flags: ["--latency", "3s", "--jitter", "0"],
          limits: "concurrency = 1",
        });
        const late = sdk.ask(sdk.client(gateway, { timeout: 300 }));
        await assert.rejects(late, kind.APIConnectionTimeoutError);
        const leaving = new AbortController();
        const { signal } = leaving;
        const stream = await sdk.ask(sdk.client(gateway), { stream: true }, { signal });
        await stream[Symbol.asyncIterator]().next();
        leaving.abort();
        // The second could only be sent since the first had left.
        await reached(upstream, ({ abandoned, calls }) => abandoned === 2 && calls === 2);
      });
    });
  }

  test(`${name}: what cannot be translated is refused by name`, async (t) => {
    const { gateway, upstream } = await pair(t, "crossed");
    const [member] = Object.keys(sdk.foreign);
    await assert.rejects(sdk.ask(sdk.client(gateway), sdk.foreign), (error) => {
      assert.ok(error instanceof kind.BadRequestError, `${error}`);
      assert.match(error.message, new RegExp(`\`${member}\` cannot be translated`));
      return true;
    });
    assert.equal((await upstream.books()).calls, 0);
  });

  test(`${name}: a wait that ends is a rate-limit error, and the SDK comes back`, async (t) => {
    const limits = 'custom = ["requests=1/2s"]';
    const { gateway, upstream } = await pair(t, "straight", { limits });
    const headers = { "X-LLMQ-Max-Wait": "100ms" };
    await sdk.ask(sdk.client(gateway));
    await assert.rejects(sdk.ask(sdk.client(gateway), {}, { headers }), (error) => {
      assert.ok(error instanceof kind.RateLimitError, `${error}`);
      assert.ok(Number(error.headers.get("retry-after")) <= 2);
      return error.headers.get("x-should-retry") === "true";
    });
    await sdk.ask(sdk.client(gateway, { maxRetries: 2 }), {}, { headers });
    assert.equal((await upstream.books()).calls, 2);
  });

  test(`${name}: an unknown model is not found and the known are named`, async (t) => {
    const { gateway } = await pair(t, "straight");
    await assert.rejects(sdk.ask(sdk.client(gateway), { model: "none" }), (error) => {
      assert.match(error.message, /claude-haiku-4-5.*gpt-5-mini/);
      return error instanceof kind.NotFoundError;
    });
  });
}
