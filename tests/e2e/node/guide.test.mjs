// The guide's examples for Node run as they stand there.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { SERVERS, start } from "./harness.mjs";

const GUIDE = process.env.LLMQ_GUIDE;

test("the examples of the chapter on SDKs run and say something", async (t) => {
  const text = await readFile(join(GUIDE, "sdks.md"), "utf8");
  const examples = [...text.matchAll(/^```js\n(.*?)^```/gms)].map((found) => found[1]);
  assert.equal(examples.length, 2);
  const server = await start(...SERVERS.gateway);
  t.after(server.stop);
  const env = {
    ...process.env,
    OPENAI_BASE_URL: server.openai,
    ANTHROPIC_BASE_URL: server.anthropic,
    OPENAI_API_KEY: "llmq_test",
    ANTHROPIC_API_KEY: "llmq_test",
  };
  // Beside the modules that they import.
  const home = await mkdtemp(join(import.meta.dirname, "guide-"));
  t.after(() => rm(home, { recursive: true }));
  for (const [number, code] of examples.entries()) {
    const file = join(home, `${number}.mjs`);
    await writeFile(file, code);
    const { stdout } = await promisify(execFile)(process.execPath, [file], { env });
    assert.ok(stdout.trim());
  }
});
