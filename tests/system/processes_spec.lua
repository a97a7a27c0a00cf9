-- Several processes behind one master: connections spread over them, one that dies is replaced and nobody is refused meanwhile, all stop
-- together.
local t = require "tests.support.harness"
local P = require "tests.support.processes"
local lfs = require "lfs"

local function start(more, options)
  t.write("who.lua", P.handler)
  local port = t.free_port()
  options = options or {}
  options.config = ('processes = 2\nlisten "tcp://127.0.0.1:%d" { handler = "who" }\n%s'):format(port, more or "")
  return t.start(options), port
end

-- Sockets that a process listens on, by the kernel's list.
local function listening(pid)
  local inodes, found = {}, {}
  for name in lfs.dir(("/proc/%d/fd"):format(pid)) do
    local inode = (lfs.symlinkattributes(("/proc/%d/fd/%s"):format(pid, name), "target") or ""):match("^socket:%[(%d+)%]$")
    if inode then inodes[inode] = true end
  end
  for line in io.lines("/proc/net/tcp") do
    local state, inode = line:match("^%s*%d+: %S+ %S+ (%x%x) %S+ %S+ %S+%s+%d+%s+%d+ (%d+)")
    if state == "0A" and inodes[inode] then table.insert(found, inode) end
  end
  return found
end

describe("several processes", function()
  t.auto()

  it("share connections evenly", function()
    local d, port = start()
    local counts, clients = { 0, 0 }, {}
    for i = 1, 400 do
      clients[i] = P.connect(port)
      assert.equal(2, clients[i].count)
      counts[clients[i].process] = counts[clients[i].process] + 1
    end
    assert.is_true(counts[1] > 140 and counts[2] > 140, counts[1] .. " to " .. counts[2])
    d:stop()
    assert.equal(1, d:count_log "stopped: connections_accepted=400 ")
    assert.equal(2, d:count_log "turns=%d+ %[process=%d%]")
  end)

  it("hold their own listeners and nobody else's", function()
    local d = start()
    local pids = P.pids(d)
    assert.equal(2, #listening(d.pid))
    local first, second = listening(pids[1]), listening(pids[2])
    assert.equal(1, #first)
    assert.equal(1, #second)
    assert.not_equal(first[1], second[1])
    d:stop()
  end)

  for _, signal in ipairs { "KILL", not t.sanitized and "SEGV" or nil } do -- sanitizers take a fault for their own business
    it("are replaced when " .. signal .. " ends them, and nobody is refused meanwhile", function()
      local d, port = start()
      local other, lost, pid = P.connect_to(port, 1), P.connect_to(port, 2), P.pids(d)[2]
      P.kill(pid, signal)
      for _ = 1, 50 do -- into the gap
        P.connect(port):close()
      end
      lost:receive_end()
      P.echoes(other, "still here")
      P.replaced(d, 2, pid)
      P.connect_to(port, 2):close()
      d:stop()
    end)
  end

  it("wait longer and longer where they die at the start", function()
    local d, port = start()
    local pid = P.pids(d)[2]
    P.kill(pid, "KILL")
    local second = P.replaced(d, 2, pid)
    d:wait_log "process 2 was killed by SIGKILL: another one takes its place"
    P.kill(second, "KILL")
    d:wait_log "process 2 was killed by SIGKILL: the next one starts in 1 s"
    local third = P.replaced(d, 2, second)
    d:wait_log("process 2 serves %(pid " .. third)
    P.kill(third, "KILL")
    d:wait_log "process 2 was killed by SIGKILL: the next one starts in 2 s"
    P.connect_to(port, 1)
    d:stop()
  end)

  it("do not start when a handler does not load, which is said once", function()
    t.write("broken.lua", 'error "not today"')
    local r = t.reactord { "-c", t.write("broken.conf",
      ('processes = 3\nhandlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "broken" }'):format(t.dir(), t.free_port())) }
    assert.equal(1, r.status)
    local _, count = r.err:gsub("not today", "")
    assert.equal(1, count)
  end)

  it("do not start when only one of them cannot", function()
    t.write("second.lua", 'if require "em".process() == 2 then error "not me" end return {}')
    local r = t.reactord { "-c", t.write("second.conf",
      ('processes = 2\nhandlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "second" }'):format(t.dir(), t.free_port())) }
    assert.equal(1, r.status)
    local _, count = r.err:gsub("not me", "")
    assert.equal(1, count)
    assert.is_nil(r.err:find("ready", 1, true))
  end)

  it("do not share an address with another daemon", function()
    local d, port = start()
    local r = t.reactord { "-c", d.config }
    assert.equal(1, r.status)
    assert.truthy(r.err:find("listen tcp://127.0.0.1:" .. port .. ": Address already in use", 1, true))
    d:stop()
  end)

  it("drain together", function()
    local d, port = start("drain_timeout = 20")
    local one, two = P.connect_to(port, 1), P.connect_to(port, 2)
    d:signal "TERM"
    d:wait_log "draining: .*process=1"
    d:wait_log "draining: .*process=2"
    assert.is_false((pcall(t.connect, port)))
    P.echoes(one, "one")
    P.echoes(two, "two")
    one:close()
    P.echoes(two, "two again")
    assert.is_false(d:ended())
    two:close()
    assert.equal(0, d:wait(10))
    d:check()
  end)

  it("stop at once on INT, and on a second TERM", function()
    for _, signals in ipairs { { "INT" }, { "TERM", "TERM" } } do
      local d, port = start("drain_timeout = 60")
      local c = P.connect_to(port, 2)
      d:signal(signals[1])
      if signals[2] then
        d:wait_log "draining: .*process=2"
        d:signal(signals[2])
      end
      assert.equal(0, d:wait(10))
      c:receive_end()
      d:check()
    end
  end)

  it("stop all when em.stop is called in one, with its status", function()
    local d, port = start()
    local c, other = P.connect_to(port, 2), P.connect_to(port, 1)
    c:send "stop 7\n"
    t.until_true(function() return d:log():find("draining", 1, true) end, 10, "the drain")
    other:close()
    c:close()
    assert.equal(7, d:wait(10))
    d:wait_log "stopped: connections_accepted=%d+ [^\n]* connections=0 listeners=0 timers=0 references=0 [^\n]* turns=%d+\n"
  end)

  it("end when the master is killed", function()
    local d, port = start("", { unchecked = true })
    local pids = P.pids(d)
    local c = P.connect_to(port, 2)
    P.kill(d.pid, "KILL")
    c:receive_end()
    t.until_true(function() return P.gone(pids[1]) and P.gone(pids[2]) end, 10, "the processes' end")
    assert.equal(2, d:count_log "the master has gone: this process ends")
  end)

  it("are killed and replaced when they hang in C", function()
    local d, port = start("callback_time = 0.2\nhang_timeout = 0.5\nunsafe = true", { unchecked = t.sanitized })
    local one, two, pid = P.connect_to(port, 1), P.connect_to(port, 2), P.pids(d)[2]
    two:send "hang\n"
    d:wait_log "process 2 %(pid %d+%) hangs"
    d:wait_log "process 2 was killed by SIGABRT, as it hung: another one takes its place"
    P.echoes(one, "alive")
    P.replaced(d, 2, pid)
    P.connect_to(port, 2)
    if t.sanitized then d:kill() else d:stop() end
  end)

  it("connect from the first of them alone, unless each is to", function()
    t.write("caller.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:connection_completed() self:send_data(em.process() .. "\n") end
      return H
    ]])
    local once, each = t.listen(), t.listen()
    local d = start(('connect "tcp://127.0.0.1:%d" { handler = "caller", reconnect = 0.05 }\n' ..
      'connect "tcp://127.0.0.1:%d" { handler = "caller", each_process = true }'):format(once.port, each.port))
    local c = once:accept()
    assert.equal("1", c:receive_line())
    local a, b = each:accept():receive_line(), each:accept():receive_line()
    assert.same({ "1", "2" }, a < b and { a, b } or { b, a })
    P.kill(P.pids(d)[1], "KILL")
    c:receive_end()
    assert.equal("1", once:accept():receive_line())
    d:stop()
  end)
end)
