--- Counters for Prometheus, and the daemon's health, by HTTP: GET and nothing else, one answer a connection.
--
--   /metrics   all counters, in the text format of Prometheus
--   /healthz   200 while the process answers at all
--   /readyz    200 while it should get work, 503 while it drains or its loop is late
--
-- listen "tcp://127.0.0.1:9091" { handler = "metrics" }
-- args = { 2 } says how many seconds a turn of the loop may take for /readyz, 5 if not given.

local em = require "em"
local core = require "em.core"

local MAX_HEAD = 8192 -- bytes of a request
local PATIENCE = 10   -- seconds until it is complete
local MAX_LAG = 5     -- seconds that a turn of the loop may take

local REASONS = {
  [200] = "OK",
  [400] = "Bad Request",
  [404] = "Not Found",
  [405] = "Method Not Allowed",
  [408] = "Request Timeout",
  [431] = "Request Header Fields Too Large",
  [503] = "Service Unavailable",
}

local Metrics = em.Connection:extend()

local pages = {}

pages["/metrics"] = function()
  return 200, core.metrics(), "text/plain; version=0.0.4; charset=utf-8"
end

pages["/healthz"] = function()
  return 200, "alive\n"
end

pages["/readyz"] = function(self)
  if em.stopping() then
    return 503, "draining\n"
  end
  local lag = core.loop_lag()
  if lag > self.max_lag then
    return 503, ("a turn of the loop took %.1f s\n"):format(lag)
  end
  return 200, "ready\n"
end

function Metrics:initialize(max_lag)
  self.max_lag = max_lag or MAX_LAG
  self.head = ""
  self:add_timer(PATIENCE, function()
    self:answer(408, "the request is not complete\n")
  end)
end

--- Answers, once, and ends the connection.
function Metrics:answer(status, body, kind)
  if self.answered then
    return
  end
  self.answered = true
  self.head = nil
  self:send_data(
    ("HTTP/1.0 %d %s\r\n"):format(status, REASONS[status]),
    ("Content-Type: %s\r\n"):format(kind or "text/plain; charset=utf-8"),
    ("Content-Length: %d\r\n"):format(#body),
    status == 405 and "Allow: GET\r\n" or "",
    "Cache-Control: no-store\r\nConnection: close\r\n\r\n",
    body
  )
  self:close_connection_after_writing()
end

--- Serves the first line of a request.
function Metrics:serve(line)
  local method, target = line:match("^(%u+) (/%g*) HTTP/1%.%d$")
  if not method then
    return self:answer(400, "this is not a request by HTTP/1.0\n")
  end
  local page = pages[target:match("^[^?#]*")]
  if method ~= "GET" then
    return self:answer(405, method == "HEAD" and "" or "GET is all there is\n")
  elseif not page then
    return self:answer(404, "there are /metrics, /healthz and /readyz\n")
  end
  self:answer(page(self))
end

--- A request ends with an empty line; of what is in it only the first line counts.
function Metrics:receive_data(data)
  if self.answered then
    return
  end
  local head = self.head .. data
  self.head = head
  local last = head:find("\r?\n\r?\n")
  if (last or #head) > MAX_HEAD then
    self:answer(431, "the request is too long\n")
  elseif last then
    self:serve(head:match("^[^\r\n]*"))
  elseif not head:find("^%u") then
    self:answer(400, "this is not a request by HTTP/1.0\n")
  end
end

return Metrics
