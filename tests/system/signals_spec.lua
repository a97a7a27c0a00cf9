-- How the daemon ends: draining, stopping, by a signal or by a handler; log files under a new name; nothing to do, nothing done.
local t = require "tests.support.harness"

-- Says back what it hears and logs how it ends; some words do more.
local handler = [[
local em = require "em"
local H = em.Connection:extend()
function H:receive_data(data)
  local word = data:match("^(%S+)\n$")
  if word == "stop" then
    em.stop()
  elseif word == "stop_soon" then
    em.stop { drain = 0.05 }
  elseif word == "stop_now" then
    em.stop { drain = 0, status = 7 }
  elseif word == "log" then
    em.log.info("a word for the log")
  end
  self:send_data(data)
  if word == "stopping" then self:send_data(tostring(em.stopping()) .. "\n") end
end
function H:unbind(err, why) em.log.info("ends: %s %s", tostring(err), why) end
em.run(function() em.add_shutdown_hook(function() em.log.info("hook") end) end)
return H
]]

local function start(options, more)
  local port = t.free_port()
  t.write("back.lua", handler)
  more = more or {}
  more.config = ('listen "tcp://127.0.0.1:%d" { handler = "back" }\n%s'):format(port, options or "")
  return t.start(more), port
end

local function refuses(port)
  return not pcall(t.connect, port)
end

describe("SIGTERM", function()
  t.auto()

  it("refuses new connections, lets open ones go on, and ends with the last", function()
    local d, port = start()
    local a, b = t.connect(port), t.connect(port)
    a:send("stopping\n"):expect("stopping\nfalse\n")
    d:signal("TERM")
    d:wait_log("draining: 2 connection%(s%) may go on for 30 s")
    assert.is_true(refuses(port))
    a:send("stopping\n"):expect("stopping\ntrue\n")
    a:close()
    b:send("still here\n"):expect("still here\n")
    assert.is_false(d:ended())
    b:close()
    assert.equal(0, d:wait())
    d:check()
    assert.equal(2, d:count_log("ends: nil eof"))
    assert.equal(1, d:count_log("info hook "))
  end)

  it("ends at once when nothing is connected", function()
    local d = start()
    d:signal("TERM")
    assert.equal(0, d:wait(1))
    d:check()
  end)

  it("waits drain_timeout at most", function()
    local d, port = start("drain_timeout = 0.05")
    local c = t.connect(port):send("x"):expect("x")
    d:signal("TERM")
    c:expect_eof()
    assert.equal(0, d:wait())
    d:check()
    d:wait_log("ends: nil stopped")
  end)

  it("waits for connections of older generations, but not for outgoing ones", function()
    local s = t.listen()
    local d, port = start(('connect "tcp://127.0.0.1:%d" { handler = "back", reconnect = 0.01 }'):format(s.port))
    local out = s:accept()
    local c = t.connect(port):send("x"):expect("x")
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    d:signal("TERM")
    d:wait_log("draining: 1 ")
    out:send("y"):expect("y"):close()
    s.sock:settimeout(0.05)
    assert.is_nil((s.sock:accept()))
    c:send("x"):expect("x"):close()
    assert.equal(0, d:wait())
    d:check()
  end)

  it("reaches what a connection has sent before: nothing is lost", function()
    local d, port = start()
    local c = t.connect(port)
    local bytes = ("0123456789"):rep(20000)
    c:send(bytes)
    d:signal("TERM")
    assert.equal(bytes, c:receive(#bytes))
    c:close()
    assert.equal(0, d:wait())
    d:check()
  end)

  it("stops at once the second time", function()
    local d, port = start()
    local c = t.connect(port):send("x"):expect("x")
    d:signal("TERM")
    d:wait_log("draining")
    d:signal("TERM")
    c:expect_eof()
    assert.equal(0, d:wait())
    d:check()
    d:wait_log("ends: nil stopped")
    assert.equal(1, d:count_log("info hook "))
  end)

  it("during a drain is not disturbed by a reload", function()
    local d, port = start()
    local c = t.connect(port):send("x"):expect("x")
    d:signal("TERM")
    d:wait_log("draining")
    d:signal("HUP")
    c:send("y"):expect("y")
    assert.is_nil(d:log():find("generation 2", 1, true))
    c:close()
    assert.equal(0, d:wait())
    d:check()
  end)
end)

describe("impatience", function()
  t.auto()

  it("does not turn a stop into a crash", function()
    for _, name in ipairs { "TERM", "INT", "HUP", "USR1" } do
      for _ = 1, 3 do
        local d = start('pid_file = "x.pid"')
        d:signal("TERM")
        while not d:ended() do
          t.sys.kill(d.pid, name)
          t.sys.sleep(0.0001)
        end
        d:check()
        assert.is_nil(t.read("x.pid"))
      end
    end
  end)
end)

describe("SIGINT", function()
  t.auto()

  it("stops at once", function()
    local d, port = start()
    local c = t.connect(port):send("x"):expect("x")
    d:signal("INT")
    c:expect_eof()
    assert.equal(0, d:wait())
    d:check()
    d:wait_log("ends: nil stopped")
    assert.is_nil(d:log():find("draining", 1, true))
  end)

  it("also ends a drain", function()
    local d, port = start()
    local c = t.connect(port):send("x"):expect("x")
    d:signal("TERM")
    d:wait_log("draining")
    d:signal("INT")
    c:expect_eof()
    assert.equal(0, d:wait())
    d:check()
  end)
end)

describe("em.stop in a handler", function()
  t.auto()

  it("drains like SIGTERM", function()
    local d, port = start()
    local c = t.connect(port):send("stop\n"):expect("stop\n")
    d:wait_log("draining: 1 ")
    assert.is_true(refuses(port))
    c:send("stopping\n"):expect("stopping\ntrue\n"):close()
    assert.equal(0, d:wait())
    d:check()
  end)

  it("drains for as long as it says", function()
    local d, port = start()
    local c = t.connect(port):send("stop_soon\n")
    assert.equal("stop_soon\n", c:receive_all())
    assert.equal(0, d:wait())
    d:check()
    d:wait_log("ends: nil stopped")
  end)

  it("takes a status", function()
    local d, port = start(nil, { unchecked = true })
    t.connect(port):send("stop_now\n"):receive_end()
    assert.equal(7, d:wait())
    assert.matches("stopped: connections_accepted=1 ", d:log())
  end)

  it("is followed by SIGTERM: that stops at once", function()
    local d, port = start()
    local c = t.connect(port):send("stop\n"):expect("stop\n")
    d:wait_log("draining: 1 ")
    d:signal("TERM")
    c:expect_eof()
    assert.equal(0, d:wait())
    d:check()
  end)
end)

describe("SIGUSR1", function()
  t.auto()

  it("opens the log file anew after a rename", function()
    local log = t.path("daemon.log")
    local d, port = start(("log = { file = %q }"):format(log), { log = log })
    local c = t.connect(port):send("log\n"):expect("log\n")
    d:wait_log("a word for the log")
    assert(os.rename(log, log .. ".1"))
    c:send("log\n"):expect("log\n")
    t.until_true(function() return select(2, t.read("daemon.log.1"):gsub("a word", "")) == 2 end)
    assert.is_nil(t.read("daemon.log"))
    d:signal("USR1")
    t.until_true(function() return t.read("daemon.log") end)
    c:send("log\n"):expect("log\n")
    d:wait_log("a word for the log")
    assert.equal(1, d:count_log("a word"))
    d:stop()
    assert.equal(2, select(2, t.read("daemon.log.1"):gsub("a word", "")))
  end)

  it("keeps the open file where that fails, and does no harm without a file", function()
    local log = t.path("sub/daemon.log")
    t.write("sub/x", "")
    local d, port = start(("log = { file = %q }"):format(log), { log = log })
    assert(os.rename(t.path("sub"), t.path("other")))
    d.log_path = t.path("other/daemon.log")
    d:signal("USR1")
    d:wait_log("cannot reopen log file")
    t.connect(port):send("log\n"):expect("log\n")
    d:wait_log("a word for the log")
    d = start()
    d:signal("USR1")
    d:stop()
  end)
end)

describe("an idle daemon", function()
  t.auto()

  it("is not woken up by anything", function()
    local s = t.listen()
    local d, port = start(('connect "tcp://127.0.0.1:%d" { handler = "back" }\nlisten "unix://x" { handler = "back" }'):format(s.port))
    local c = t.connect(port):send("x"):expect("x")
    s:accept()
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    c:send("y"):expect("y")
    local count, since = nil, nil
    t.until_true(function() -- what was done before may ring once more, within a quarter of callback_time
      local now = d:wakeups()
      if now ~= count then count, since = now, t.now() end
      return t.now() - since > 0.3
    end)
    local cpu = d:cpu()
    t.sys.sleep(1)
    assert.equal(count, d:wakeups())
    assert.is_true(d:cpu() - cpu <= 0.02)
  end)
end)
