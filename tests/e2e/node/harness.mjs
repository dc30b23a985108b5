// Starts a server of llmq and says where it listens.
//
// The program is the one in LLMQ_BIN. A server is ready when it has said so: a line on stderr
// that begins with `listening` and holds its address.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const READY = /^listening\b.*?http:\/\/([^/\s,]+)/;
// Longer than any step needs; reached only when something hangs.
const PATIENCE_MS = 20_000;

// Every server that the SDKs are pointed at, by name, with the arguments that start it.
export const SERVERS = {
  mock: ["mock", "--listen", "127.0.0.1:0", "--latency", "0ms"],
  gateway: ["serve", "--mock", "--listen", "127.0.0.1:0"],
};

/** Runs `llmq ...words` until `stop` is called. */
export async function start(...words) {
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !name.startsWith("LLMQ_")),
  );
  const child = spawn(process.env.LLMQ_BIN, words, { env, stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(child, "exit");
  // Ends the wait for a line that never comes.
  const hung = setTimeout(() => child.kill("SIGKILL"), PATIENCE_MS);
  try {
    const address = await untilReady(child);
    return {
      openai: `http://${address}/v1`,
      // Anthropic's SDK adds the version itself.
      anthropic: `http://${address}`,
      books: async () => (await fetch(`http://${address}/mock/report`)).json(),
      stop: async () => {
        child.kill();
        await ended;
      },
    };
  } finally {
    clearTimeout(hung);
  }
}

/** Starts the stand-in with further flags for one test, such as `--limit`, `requests=1/1s`. */
export async function standIn(test, ...flags) {
  const atOnce = flags.includes("--latency") ? [] : ["--latency", "0ms"];
  const server = await start("mock", "--listen", "127.0.0.1:0", ...atOnce, ...flags);
  test.after(server.stop);
  return server;
}

const GPT = 'upstream = "openai", model = "gpt-5-mini"';
const CLAUDE = 'upstream = "anthropic", model = "claude-haiku-4-5"';

const over = (upstream, gpt, claude, { limits = "", settings = "" }) => `
[upstreams.openai]
provider = "openai"
base_url = "${upstream.openai}"
${settings}
[upstreams.anthropic]
provider = "anthropic"
base_url = "${upstream.anthropic}"
${settings}
[models."gpt-5-mini"]
upstreams = [{ ${gpt}, limits = { ${limits} } }]
[models."claude-haiku-4-5"]
upstreams = [{ ${claude}, limits = { ${limits} } }]
[retry]
max_attempts = 2
server = { base = "10ms", max = "20ms" }
`;

/** The forms of a configuration: each model served by its own provider's API, or by the other's. */
export const FORMS = {
  straight: (upstream, parts) => over(upstream, GPT, CLAUDE, parts),
  crossed: (upstream, parts) => over(upstream, CLAUDE, GPT, parts),
};

/** Starts a gateway for one test, over a stand-in with these flags. */
export async function pair(test, form, { flags = [], ...parts } = {}) {
  const upstream = await standIn(test, ...flags);
  const home = await mkdtemp(join(tmpdir(), "llmq-"));
  test.after(() => rm(home, { recursive: true }));
  const config = join(home, "llmq.toml");
  await writeFile(config, FORMS[form](upstream, parts));
  const words = ["--config", config, "--listen", "127.0.0.1:0", "--store", "memory:"];
  const gateway = await start("serve", ...words);
  test.after(gateway.stop);
  return { gateway, upstream };
}

/** The stand-in's books once they are so. */
export async function reached(upstream, wanted) {
  for (const until = Date.now() + PATIENCE_MS; ; await sleep(20)) {
    const books = await upstream.books();
    if (wanted(books)) return books;
    if (Date.now() > until) throw new Error(`not reached: ${JSON.stringify(books)}`);
  }
}

/** All of an async iterable; `Array.fromAsync` is not in Node 20. */
export async function collect(items) {
  const all = [];
  for await (const item of items) all.push(item);
  return all;
}

async function untilReady(child) {
  const said = [];
  // The reader goes on after this loop, so that nothing the server says fills the pipe.
  const lines = createInterface({ input: child.stderr });
  return new Promise((resolve, reject) => {
    lines.on("line", (line) => {
      said.push(line);
      const found = READY.exec(line);
      if (found) resolve(found[1]);
    });
    lines.on("close", () => reject(new Error(`it ended before it was ready:\n${said.join("\n")}`)));
    child.on("error", reject);
  });
}
