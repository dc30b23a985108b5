-- Jobs for wrk: `jobs.lua` accepts calls of 1 KB durably, LLMQ_BENCH_MANY in each request.
local many = tonumber(os.getenv("LLMQ_BENCH_MANY") or "1")
local job = '{"model":"bench","endpoint":"/v1/chat/completions","body":{"model":"bench","messages":'
  .. '[{"role":"user","content":"' .. string.rep("Describe the place in two sentences. ", 25)
  .. '"}],"max_tokens":20}}'
wrk.method = "POST"
wrk.path = "/api/requests"
wrk.headers["Content-Type"] = "application/json"
if many == 1 then
  wrk.body = job
else
  wrk.body = '{"requests":[' .. job .. string.rep("," .. job, many - 1) .. "]}"
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "jobs": %d, "seconds": %.6f, "p50_us": %d, "p99_us": %d, "errors": %d}\n',
    summary.requests, summary.requests * many, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
