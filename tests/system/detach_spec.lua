-- Going to the background with -d, and the pid file.
local t = require "tests.support.harness"
local lfs = require "lfs"

local greet = 'return { post_init = function(c) c:send_data("hello\\n") end }'

-- A configuration for one listener that logs to a file; returns its path and the port.
local function configuration(more)
  local port = t.free_port()
  t.write("greet.lua", greet)
  local text = 'listen "tcp://127.0.0.1:%d" { handler = "greet" }\nlog = { file = "daemon.log" }\nhandlers = { "." }\n%s'
  return t.write("reactord.conf", text:format(port, more or "")), port
end

-- The daemon that has written its pid there.
local function adopt(name)
  return t.adopt(assert(tonumber(t.read(name))), t.path("daemon.log"))
end

describe("reactord -d", function()
  t.auto()

  it("returns 0 when the daemon serves, which then has neither terminal nor output", function()
    local config, port = configuration()
    for _, option in ipairs { "-d", "--detach" } do
      local r = t.reactord { "-c", config, option, "-p", t.path("x.pid") }
      assert.same({ 0, "", "" }, { r.status, r.out, r.err })
      t.connect(port):expect("hello\n") -- at once
      local d = adopt("x.pid")
      local stat = t.read("/proc/" .. d.pid .. "/stat"):gsub("^.*%) ", "")
      local session, terminal = stat:match("^%S+ %S+ %S+ (%d+) (%-?%d+)")
      assert.same({ tostring(d.pid), "0" }, { session, terminal })
      for fd = 0, 2 do
        local link = t.run { "readlink", ("/proc/%d/fd/%d"):format(d.pid, fd) }
        assert.equal("/dev/null\n", link.out)
      end
      d:signal("HUP")
      d:wait_log("generation 2 serves")
      t.connect(port):expect("hello\n")
      d:stop()
      assert.is_nil(t.read("x.pid"))
    end
  end)

  it("returns 1 and says why when it cannot serve", function()
    local config = configuration "zebra = 1"
    local r = t.reactord { "-c", config, "-d", "-p", t.path("x.pid") }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("unknown option 'zebra'", r.err)
    assert.is_nil(t.read("x.pid"))
    local s = t.listen()
    config = configuration(('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(s.port))
    r = t.reactord { "-c", config, "-d", "-p", t.path("x.pid") }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("Address already in use", r.err)
    assert.is_nil(t.read("x.pid"))
    config = configuration()
    t.write("greet.lua", "x =")
    r = t.reactord { "-c", config, "-d", "-p", t.path("x.pid") }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("greet.lua:1:", r.err)
    assert.is_nil(t.read("x.pid"))
  end)
end)

describe("the pid file", function()
  t.auto()

  local function start()
    os.remove(t.path("daemon.log"))
    local config = configuration 'pid_file = "x.pid"'
    return t.start { config = config, log = t.path("daemon.log") }
  end

  it("holds the process id, may be read by everyone, and goes with the daemon", function()
    local config = configuration 'pid_file = "x.pid"'
    local r = t.run { "sh", "-c", ("umask 077; exec %s -c %s -d"):format(t.binary, config) }
    assert.equal(0, r.status, r.err)
    local d = adopt("x.pid")
    assert.equal(d.pid .. "\n", t.read("x.pid"))
    assert.equal("rw-r--r--", lfs.attributes(t.path("x.pid"), "permissions"))
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    assert.equal(d.pid .. "\n", t.read("x.pid"))
    d:stop()
    assert.is_nil(t.read("x.pid"))
  end)

  it("is replaced when no daemon holds it, whatever number is in it, also that of some other process that runs", function()
    local ended = t.start { config = configuration(), log = t.path("daemon.log") }
    ended:stop()
    for _, text in ipairs { ended.pid .. "\n", t.sys.getpid() .. "\n", "", "no number\n", "-5\n", "99999999999999999999\n" } do
      t.write("x.pid", text)
      local d = start()
      assert.equal(d.pid .. "\n", t.read("x.pid"))
      d:stop()
      assert.is_nil(t.read("x.pid"))
    end
  end)

  it("is no way to overwrite another file", function()
    local config = configuration 'pid_file = "x.pid"'
    t.write("precious", "precious")
    assert(lfs.link(t.path("precious"), t.path("x.pid"), true))
    local r = t.reactord { "-c", config }
    assert.equal(1, r.status)
    assert.matches("error pid file [^\n]*x.pid: Too many levels of symbolic links\n$", r.err)
    assert.equal("precious", t.read("precious"))
  end)

  it("that another daemon has taken over is not removed", function()
    local d = start()
    t.write("x.pid", "1\n")
    d:stop()
    assert.equal("1\n", t.read("x.pid"))
  end)
end)
