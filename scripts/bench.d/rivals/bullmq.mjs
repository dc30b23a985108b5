// BullMQ, measured as the other queues are.
//
// node bullmq.mjs PORT JOBS SINGLES CALLERS prints one JSON object: jobs accepted a second in
// bulk calls of 1,000, singly by CALLERS at once, and finished a second by one worker whose
// processor does nothing but give 2 KB back.
import { Queue, Worker } from "bullmq";

const [port, jobs, singles, callers] = process.argv.slice(2).map(Number);
const connection = { host: "127.0.0.1", port, maxRetriesPerRequest: null };
const BULK = 1000;
const payload = { body: "x".repeat(1000) };
const result = "y".repeat(2000);

function rate(count, began) {
  return count / ((performance.now() - began) / 1000);
}

async function bulk(queue) {
  const began = performance.now();
  for (let done = 0; done < jobs; done += BULK) {
    await queue.addBulk(Array.from({ length: BULK }, () => ({ name: "call", data: payload })));
  }
  return rate(jobs, began);
}

async function single(queue) {
  const began = performance.now();
  const caller = async () => {
    for (let done = 0; done < singles / callers; done += 1) await queue.add("call", payload);
  };
  await Promise.all(Array.from({ length: callers }, caller));
  return rate(singles, began);
}

// A job is finished when its result is in Redis, which the worker's `completed` event tells.
async function lives(name) {
  let done = 0;
  const began = performance.now();
  const worker = new Worker(name, async () => result, { connection, concurrency: 50 });
  await new Promise((resolve) => {
    worker.on("completed", () => {
      done += 1;
      if (done === jobs) resolve();
    });
  });
  const found = rate(jobs, began);
  await worker.close();
  return found;
}

const queue = new Queue("lives", { connection });
const others = new Queue("singles", { connection });
const found = { bulk: await bulk(queue), lives: await lives("lives"), single: await single(others) };
console.log(JSON.stringify(found));
await Promise.all([queue.close(), others.close()]);
process.exit(0);
