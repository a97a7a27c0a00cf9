-- What the daemon tells the service manager: a datagram socket in the place of systemd's.
local t = require "tests.support.harness"
local socket = require "socket"
socket.unix = require "socket.unix"

describe("the service manager is told", function()
  t.auto()

  local manager
  after_each(function()
    if manager then manager:close() end
    manager = nil
  end)

  -- A daemon with a listener of that handler, and the manager's socket.
  local function start(text, more)
    local port = t.free_port()
    manager = assert(socket.unix.dgram())
    assert(manager:bind(t.path("notify")))
    manager:settimeout(t.limit)
    t.write("greet.lua", 'return { post_init = function(c) c:send_data("hello\\n") end }')
    more = more or {}
    more.config = ('listen "tcp://127.0.0.1:%d" { handler = "greet" }\n%s'):format(port, text or "")
    more.env = more.env or {}
    more.env.NOTIFY_SOCKET = t.path("notify")
    return t.start(more), port
  end

  -- The next message as a table of its assignments.
  local function message()
    local bytes = assert(manager:receive())
    local fields, count = {}, 0
    for name, value in bytes:gmatch("([%u_]+)=([^\n]*)") do
      fields[name] = value
      count = count + 1
    end
    assert.equal(count, select(2, bytes:gsub("[^\n]+", "")), bytes)
    return fields
  end

  it("that the daemon is ready, when it can be connected to, and that it stops", function()
    local d, port = start()
    assert.same({ READY = "1", STATUS = "Serving, generation 1", MAINPID = tostring(d.pid) }, message())
    local c = t.connect(port):expect("hello\n")
    d:signal("TERM")
    assert.same({ STOPPING = "1", STATUS = "Draining" }, message())
    c:close()
    d:wait()
    d:check()
    manager:settimeout(0)
    assert.is_nil((manager:receive()))
  end)

  it("before it is ready nothing is told, and a start that fails says nothing", function()
    manager = assert(socket.unix.dgram())
    assert(manager:bind(t.path("notify")))
    manager:settimeout(0)
    local r = t.reactord { "-c", t.write("c.conf", "x = 1"), env = { NOTIFY_SOCKET = t.path("notify") } }
    assert.equal(1, r.status)
    assert.is_nil((manager:receive()))
    r = t.reactord { "-t", "-c", t.write("c.conf", ""), env = { NOTIFY_SOCKET = t.path("notify") } }
    assert.equal(0, r.status)
    assert.is_nil((manager:receive()))
  end)

  it("of each reload: that it begins, with the time, and how it ended", function()
    local d = start()
    message()
    local before = t.now() * 1e6
    d:signal("HUP")
    local m = message()
    assert.same({ "1", "Reloading" }, { m.RELOADING, m.STATUS })
    assert.matches("^%d+$", m.MONOTONIC_USEC)
    assert.is_true(tonumber(m.MONOTONIC_USEC) >= before - 1 and tonumber(m.MONOTONIC_USEC) <= t.now() * 1e6)
    assert.same({ READY = "1", STATUS = "Serving, generation 2", MAINPID = tostring(d.pid) }, message())

    t.write("greet.lua", "x =")
    d:signal("HUP")
    assert.equal("1", message().RELOADING)
    m = message()
    assert.equal("1", m.READY)
    assert.matches("^Reload refused, generation 2 serves on: [^\n]*reactord.conf:1: handler 'greet': [^\n]*greet.lua:1: unexpected symbol",
      m.STATUS)

    t.write("greet.lua", "return {}")
    d:signal("HUP")
    assert.equal("1", message().RELOADING)
    assert.equal("Serving, generation 3", message().STATUS)
  end)

  it("nothing that a handler's error would like to say", function()
    local d = start()
    message()
    t.write("greet.lua", 'error("\\nMAINPID=1\\nSTOPPING=1", 0)')
    d:signal("HUP")
    assert.equal("1", message().RELOADING)
    local m = message()
    assert.equal(tostring(d.pid), m.MAINPID)
    assert.is_nil(m.STOPPING)
  end)

  it("that the loop turns, twice in the time of the watchdog, and not by one that hangs", function()
    t.write("hang.lua", "return { receive_data = function() while true do end end }")
    local port = t.free_port()
    local d = start(('callback_time = 0\nlisten "tcp://127.0.0.1:%d" { handler = "hang" }'):format(port),
      { env = { WATCHDOG_USEC = "400000" }, unchecked = true })
    assert.equal("1", message().READY)
    local began = t.now()
    for _ = 1, 6 do assert.same({ WATCHDOG = "1" }, message()) end
    local took = t.now() - began -- the first comes at once
    assert.is_true(took >= 0.95 and took < t.seconds(1.5), took .. " s for 6")
    -- An idle daemon wakes up for nothing else.
    local before = d:wakeups()
    for _ = 1, 5 do message() end
    assert.is_true(d:wakeups() - before <= 6, d:wakeups() - before .. " wake-ups for 5 words")
    t.connect(port):send("x")
    manager:settimeout(1.2)
    while manager:receive() do end -- what was said before; then nothing
    t.until_true(function() return d:cpu() > 0.2 end)
    assert.is_nil((manager:receive()))
    d:kill()
  end)

  it("by the master alone that the loop turns, of several processes", function()
    local d = start("processes = 2", { env = { WATCHDOG_USEC = "400000" } })
    assert.equal("1", message().READY)
    local began = t.now()
    for _ = 1, 6 do assert.same({ WATCHDOG = "1" }, message()) end
    assert.is_true(t.now() - began >= 0.95, "more than one says so")
    d:signal("TERM")
    t.until_true(function() return message().STOPPING end)
    d:wait()
    d:check()
  end)

  it("nothing of a watchdog that there is not", function()
    local d = start("", { env = { WATCHDOG_USEC = "0" } })
    assert.equal("1", message().READY)
    manager:settimeout(0.5)
    assert.is_nil((manager:receive()))
    d:stop()
  end)

  it("that it stops without a drain", function()
    local d, port = start()
    message()
    t.connect(port):expect("hello\n")
    d:signal("INT")
    assert.equal("1", message().STOPPING)
    d:wait()
    d:check()
  end)
end)
