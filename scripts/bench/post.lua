-- Posts one prepared request, and counts the answers that are good: status 200 with the label
-- LABEL first. BODY and HEADERS name files, the latter of "Name: value" lines.
local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local file = io.open(os.getenv("BODY"), "rb")
  wrk.method, wrk.body = "POST", file:read("*a")
  file:close()
  for line in io.lines(os.getenv("HEADERS")) do
    local name, value = line:match("^([^:]+): (.*)$")
    wrk.headers[name] = value
  end
  wanted = os.getenv("LABEL")
  good, wrong, refused, failed = 0, 0, 0, 0
  prepared = wrk.format()
end

function request()
  return prepared
end

function response(status, headers, body)
  if status == 200 then
    if body:match('label\\?":%s*\\?"([^"\\]*)') == wanted then
      good = good + 1
    else
      wrong = wrong + 1
    end
  elseif status == 503 or status == 429 then
    refused = refused + 1
  else
    failed = failed + 1
  end
end

function done(summary, latency, requests)
  local sum = { good = 0, wrong = 0, refused = 0, failed = 0 }
  for _, thread in ipairs(threads) do
    for name, value in pairs(sum) do
      sum[name] = value + thread:get(name)
    end
  end
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"seconds":%.4f,"good":%d,"wrong":%d,"refused":%d,"failed":%d,"socket_errors":%d,'
      .. '"timeouts":%d,"p50":%.3f,"p99":%.3f,"max":%.3f}\n',
    summary.duration / 1e6, sum.good, sum.wrong, sum.refused, sum.failed,
    errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
