// Starts a server of llmq and says where it listens.
//
// The program is the one in LLMQ_BIN. A server is ready when it has said so: a line on stderr
// that begins with `listening` and holds its address.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

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
  const server = await start(...SERVERS.mock, ...flags);
  test.after(server.stop);
  return server;
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
