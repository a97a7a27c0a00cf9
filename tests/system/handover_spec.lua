-- Hand-over at a reload: connections whose handler has handover and takeover go on with the new code, with nothing lost; whatever cannot
-- move, or fails to, stays where it is and works on, and the log says why.
local t = require "tests.support.harness"
local pki = require "tests.support.pki"
local tls = require "tests.support.tls"

-- A handler that counts bytes, whose state moves. It says its word with each answer, and logs how it ends. more: lines behind it.
local function counter_of(word, more)
  return ([[
local em = require "em"
local H = em.Connection:extend()
function H:initialize() em.log.info("%s initialize") end
function H:post_init() em.log.info("%s post_init") self.bytes = 0 self:send_data("hello\n") end
function H:receive_data(data) self.bytes = self.bytes + #data self:send_data("%s ", self.bytes, "\n") end
function H:unbind(err, why) em.log.info("%s ends: %%s %%s", tostring(err), why) end
function H:handover() return { bytes = self.bytes } end
function H:takeover(state) self.bytes = state.bytes end
%s
return H
]]):format(word, word, word, word, more or "")
end

-- Reloads; returns what was logged meanwhile.
local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  d:wait_log("reloaded: generation %d+ serves", nil, mark)
  return d:log():sub(mark)
end

local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

-- Writes the handler h, starts a daemon that serves it on a port, and on a Unix socket `x.sock`.
local function start(text, options)
  local port = t.free_port()
  t.write("h.lua", text)
  local d = t.start(([[listen "tcp://127.0.0.1:%d" { handler = "h" %s }
    listen "unix://x.sock" { handler = "h" }
    callback_time = 0.2]]):format(port, options and ", " .. options or ""))
  return d, port
end

describe("a hand-over", function()
  t.auto()

  it("takes connections to the new code with their state, without unbind, initialize and post_init", function()
    local d, port = start(counter_of "one")
    local tcp, unix = t.connect(port):expect("hello\n"), t.connect(t.path("x.sock")):expect("hello\n")
    tcp:send("abc"):expect("one 3\n")
    t.write("h.lua", counter_of "two")
    local said = reload(d)
    assert.matches("generation 2 has taken over 2 connection", said)
    tcp:send("de"):expect("two 5\n")
    unix:send("x"):expect("two 1\n")
    t.write("h.lua", counter_of "three")
    reload(d)
    tcp:send("f"):expect("three 6\n")
    tcp:close()
    d:wait_log("three ends: nil eof")
    assert.is_nil(d:log():find("two initialize", 1, true))
    assert.is_nil(d:log():find("two post_init", 1, true))
    unix:close()
    d:stop()
    assert.is_nil(d:log():find("one ends", 1, true))
    assert.is_nil(d:log():find("two ends", 1, true))
    assert.equal(4, counter(d, "handovers"))
    assert.equal(0, counter(d, "handovers_failed"))
  end)
end)
