-- A daemon around the text of one handler, for specs that look at callbacks: what the handler says is collected in order, and Lua can
-- be run in its VM from outside, so that a test asks for a state instead of waiting for a time.
--
--   local s = serve([[ local H = {} function H:receive_data(d) say("data", d) end return H ]], "max_connections = 1")
--   s:connect():send("x")
--   s:expects { "data x" }
--   s:eval "return em.connection_count()"
--
-- The handler's text finds em, say(...) (one line of what was said; nil is written out) and x, a table that eval knows too. It listens
-- on s.port of 127.0.0.1 with the options given. x.port is the same port, x.path(name) a file of the test's folder.

local t = require "tests.support.harness"

-- In front of the handler's text, on its first line, so that tracebacks keep the lines.
local prelude = [[local em = require "em"; local x = require "shared"; local say = x.say; ]]

local shared = [[
local em = require "em"
local x = { port = %d }
function x.path(name) return %q .. "/" .. name end
function x.say(...)
  local words = table.pack(...)
  for i = 1, words.n do words[i] = tostring(words[i]) end
  em.log.info("%%s", "{{" .. table.concat(words, " ") .. "}}")
end
return x
]]

-- Runs Lua that ends with a NUL and answers with the results, or false and the error, as Lua literals.
local control = [[
local em = require "em"
local x = require "shared"
local H = {}
function H:receive_data(data)
  self.text = (self.text or "") .. data
  if data:sub(-1) ~= "\0" then return end
  local text = self.text:sub(1, -2)
  self.text = nil
  local fn, why = load(text, "=eval", "t", setmetatable({ em = em, x = x, say = x.say }, { __index = _G }))
  local r = fn and table.pack(pcall(fn)) or table.pack(false, why)
  for i = 1, r.n do
    local kind = type(r[i])
    if kind == "table" or kind == "function" or kind == "userdata" then r[i] = tostring(r[i]) end
    r[i] = ("%q"):format(r[i])
  end
  self:send_data(table.concat(r, ",") .. "\0")
end
return H
]]

local Serve = {}
Serve.__index = Serve

-- All that was said so far, as a list.
function Serve:said()
  local list = {}
  for line in self.d:log():gmatch("{{([^\n]-)}}") do table.insert(list, line) end
  return list
end

-- Waits until exactly these lines have been said; more of them, or others, are a failure.
function Serve:expects(lines, seconds)
  local deadline = t.now() + (seconds and t.seconds(seconds) or t.limit)
  local said
  repeat
    said = self:said()
    if #said >= #lines then break end
    t.sys.sleep(0.003)
  until t.now() > deadline or self.d:ended()
  require("luassert").same(lines, said)
end

-- Waits until this line was said.
function Serve:waits_for(line, seconds)
  t.until_true(function()
    for _, said in ipairs(self:said()) do
      if said == line then return true end
    end
  end, seconds, "the handler to say '" .. line .. "'; it said: " .. table.concat(self:said(), "; "))
end

-- Runs Lua in the handler's VM; returns its results. An error there is raised here.
function Serve:eval(text, ...)
  self:ask(text, ...)
  return self:answer()
end

-- The two halves of eval: what the test does in between happens while that callback runs, if it runs for long enough.
function Serve:ask(text, ...)
  if not (self.control and not self.control.eof) then self.control = t.connect(self.control_path) end
  self.control:send(text:format(...) .. "\0")
end

function Serve:answer()
  local answer = ""
  repeat answer = answer .. self.control:receive(1) .. self.control.buffer; self.control.buffer = "" until answer:sub(-1) == "\0"
  local results = table.pack(assert(load("return " .. answer:sub(1, -2)))())
  if not results[1] then error("in the daemon: " .. tostring(results[2]), 2) end
  return table.unpack(results, 2, results.n)
end

-- Runs it again and again until its first result is true.
function Serve:until_true(text, seconds)
  return t.until_true(function() return self:eval(text) end, seconds, text)
end

-- A client of the handler.
function Serve:connect(options)
  return t.connect(self.port, options)
end

-- Starts it. listen: the text of more options of the listen block, or a table: listen (that text), config (more of the configuration), and
-- what t.start takes.
return function(handler, listen)
  local options = type(listen) == "table" and listen or { listen = listen }
  local port = t.free_port()
  local s = setmetatable({ port = port, control_path = t.path("control.sock") }, Serve)
  t.write("shared.lua", shared:format(port, t.dir()))
  t.write("control.lua", control)
  t.write("h.lua", prelude .. handler)
  local more = options.config or ""
  -- A drain would wait for connections between two ends in the daemon itself.
  if not more:find("drain_timeout", 1, true) then more = "drain_timeout = 0.1\n" .. more end
  options.config = ([[
listen "tcp://127.0.0.1:%d" { handler = "h", %s }
listen "unix://%s" { handler = "control" }
%s]]):format(port, options.listen or "", s.control_path, more)
  options.env = options.env or {}
  options.env.REACTORD_LOG_REPEATS = options.env.REACTORD_LOG_REPEATS or "0" -- what is said again is said again
  s.d = t.start(options)
  return s
end
