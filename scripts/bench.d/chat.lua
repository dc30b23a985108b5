-- A chat call of 1 KB for wrk; the outcome as one line of JSON.
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.body = '{"model":"bench","messages":[{"role":"user","content":"'
  .. string.rep("Describe the place in two sentences. ", 25)
  .. '"}],"max_tokens":20}'
wrk.headers["Content-Type"] = "application/json"
local key = os.getenv("LLMQ_BENCH_KEY") or ""
if key ~= "" then
  wrk.headers["Authorization"] = "Bearer " .. key
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
