-- The harness itself, with small programs of the shell in the daemon's place where it matters what a daemon does.
local t = require "tests.support.harness"

-- A program that behaves like a daemon as far as the harness looks: says that it is ready, ends on SIGTERM with what is given.
local function pretend(on_term, first)
  local path = t.write("pretend", ([[#!/bin/sh
trap '%s' TERM
%s
echo 'info: ready' >&2
while :; do sleep 0.01; done
]]):format(on_term, first or ""))
  t.sys.chmod(path, "0755")
  t.binary = path
end

local good = [[echo "stopped: connections=0 listeners=0 timers=0 references=0 turns=12" >&2; exit 0]]

describe("the harness", function()
  t.auto()
  local binary = t.binary
  after_each(function() t.binary = binary end)

  it("starts and stops a daemon, with a config and handlers of the test", function()
    pretend(good, 'echo "args: $*" >&2')
    local d = t.start { config = "user = 'x'", args = { "-v" } }
    assert.matches("args: %-c " .. t.dir():gsub("%p", "%%%0") .. "/reactord%.conf %-v", d:log())
    assert.matches("^user = 'x'\nhandlers = ", t.read("reactord.conf"))
    assert.is_true(d:fds() >= 3)
    assert.is_true(d:rss() > 100000)
    assert.is_true(d:cpu() >= 0)
    d:stop()
    assert.equal(0, d.status)
  end)

  it("finds a daemon that ends before it is ready, and shows why", function()
    pretend(good, "echo 'no such option'; exit 1")
    assert.has_error(function() t.start { config = "" } end)
    local _, why = pcall(t.start, { config = "" })
    assert.matches("no such option", why)
  end)

  it("fails a daemon that leaves something behind", function()
    for _, last in ipairs { "connections=1 listeners=0 timers=0 references=0", "connections=0 listeners=0 timers=0", "" } do
      pretend(("echo 'stopped: %s' >&2; exit 0"):format(last):gsub("'", '"'))
      local d = t.start { config = "" }
      assert.has_error(function() d:stop() end)
    end
    pretend("exit 0")
    local d = t.start { config = "" }
    local ok, why = pcall(d.stop, d)
    assert.is_false(ok)
    assert.matches("without its 'stopped:' line", why)
  end)

  it("fails a daemon that ends badly or was reported by a sanitizer", function()
    pretend(good:gsub("exit 0", "exit 3"))
    local d = t.start { config = "" }
    local ok, why = pcall(d.stop, d)
    assert.is_false(ok)
    assert.matches("status 3", why)
    pretend(good, 'echo oops > "${ASAN_OPTIONS##*log_path=}.$$"')
    d = t.start { config = "" }
    ok, why = pcall(d.stop, d)
    assert.is_false(ok)
    assert.matches("oops", why)
  end)

  it("cleans up after a test that forgot to", function()
    pretend(good)
    local d, folder = t.start { config = "" }, t.dir()
    t.connect(t.listen().port)
    t.cleanup()
    assert.equal(0, d.status)
    assert.is_nil(t.read(folder .. "/reactord.conf"))
    assert.is_nil((t.sys.kill(d.pid, 0)))
  end)

  it("cleans up, and then tells what was wrong", function()
    pretend("", "exec 2>&1")
    local d = t.start { config = "", unchecked = true }
    t.cleanup()
    assert.equal(9, d.killed_by)
    pretend("exit 1")
    d = t.start { config = "" }
    assert.has_error(function() t.cleanup() end)
    assert.is_true(d:ended())
  end)

  it("runs commands", function()
    local r = t.run { "sh", "-c", "cat; echo $NAME; echo err >&2; exit 4", env = { NAME = "value" }, input = "in " }
    assert.same({ status = 4, out = "in value\n", err = "err\n" }, r)
    assert.equal(15, t.run({ "sh", "-c", "kill -TERM $$" }).signal)
    assert.has_error(function() t.run { "sleep", "100", seconds = 0.05 } end)
  end)

  it("gives descriptors and limits to a process", function()
    local s = t.listen()
    local r = t.run { "sh", "-c", "ulimit -n", limits = { nofile = 77 } }
    assert.equal("77\n", r.out)
    pretend(good, "readlink /proc/$$/fd/3 /proc/$$/fd/4")
    local d = t.start { config = "", fds = { s.sock:getfd() } }
    assert.matches("^socket:%[%d+%]\n", d:log())
    assert.is_nil(d:log():find("socket.*socket"))
  end)

  it("connects, sends and receives with a limit", function()
    for _, where in ipairs { 0, "a.sock" } do
      local s = t.listen(where ~= 0 and where or nil)
      local c = t.connect(s.port or s.path)
      local peer = s:accept()
      c:send("one\ntwo\nthree")
      assert.equal("one", peer:receive_line())
      peer:expect("two\n")
      assert.equal("th", peer:receive(2))
      c:shutdown_write()
      assert.equal("ree", peer:receive_all())
      c:expect_silence(0.01)
      peer:send(("x"):rep(3000000 > 100000 and 100000 or 0))
      peer:close()
      assert.equal(("x"):rep(100000), c:receive_all())
      c:expect_eof()
    end
  end)

  it("says what it saw instead", function()
    local limit = t.limit
    finally(function() t.limit = limit end)
    t.limit = 0.05
    local s = t.listen()
    local c = t.connect(s.port)
    local peer = s:accept()
    peer:send("hello")
    local _, why = pcall(c.receive, c, 6)
    assert.matches('6 bytes were expected, then nothing more came; seen: "hello"', why)
    _, why = pcall(c.expect, c, "hallo")
    assert.matches('expected "hallo", got "hello"', why)
    assert.has_error(function() c:expect_eof() end)
    peer:reset()
    local seen, how = c:receive_end()
    assert.same({ "", "ECONNRESET" }, { seen, how })
    assert.has_error(function() t.until_true(function() return false end, 0.01, "rain") end)
  end)

  it("never gives a port twice", function()
    local seen = {}
    for _ = 1, 50 do
      local port = t.free_port()
      assert.is_nil(seen[port])
      seen[port] = true
    end
  end)
end)
