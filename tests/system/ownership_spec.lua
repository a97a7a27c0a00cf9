-- Who owns the pid file and the files of Unix sockets: one daemon at a time, however many start at once, and whatever a killed one has
-- left.
local t = require "tests.support.harness"
local lfs = require "lfs"

local function exact(text)
  return (text:gsub("%p", "%%%0"))
end

-- Starts many daemons of one configuration at the same moment; returns the one that serves when all others have ended.
-- The folder is locked for a moment first, so that those who want a socket in it meet at the lock.
local function race(count, config)
  local all, running = {}, nil
  local lock = t.sys.spawn({ "flock", "-F", t.dir(), "sleep", "0.3" }, { stdout = t.path("lock.log"), stderr = t.path("lock.log") })
  t.until_true(function() return t.run { "flock", "-n", t.dir(), "true" }.status == 1 end, 5, "the lock")
  for i = 1, count do all[i] = t.start { config = t.write(("%d.conf"):format(i), config), wait = false, unchecked = true } end
  t.sys.waitpid(lock)
  t.until_true(function()
    local left = 0
    for _, d in ipairs(all) do
      if not d:ended() then left, running = left + 1, d end
    end
    assert(left > 0, "all of them have ended")
    return left == 1
  end, 20, "all but one to end")
  running:wait_log("%f[%w]ready%f[%W]")
  for _, d in ipairs(all) do
    if d ~= running then assert.equal(1, d.status) end
  end
  return running, all
end

describe("of twenty daemons that start at once", function()
  t.auto()
  local handlers = ("\nhandlers = { %q }\n"):format(t.root .. "/handlers")

  it("one gets the pid file, and the others say who has it", function()
    for _ = 1, t.full and 10 or 1 do
      local winner, all = race(20, ('pid_file = %q'):format(t.path("x.pid")) .. handlers)
      assert.equal(winner.pid .. "\n", t.read("x.pid"))
      for _, d in ipairs(all) do
        if d ~= winner then
          assert.matches(("error pid file %s: in use by "):format(exact(t.path("x.pid"))), d:log())
          local owner = d:log():match("in use by process (%d+)")
          assert.is_true(owner == nil or tonumber(owner) == winner.pid)
        end
      end
      winner:stop()
      assert.is_nil(t.read("x.pid"))
    end
  end)

  it("one gets a Unix path, also where a dead daemon's file is in the way", function()
    local path = t.path("x.sock")
    for _ = 1, t.full and 10 or 2 do
      t.listen("x.sock"):close() -- the file stays
      local winner, all = race(20, ('listen "unix://%s" { handler = "echo" }'):format(path) .. handlers)
      t.connect(path):send("hello\n"):expect("hello\n")
      for _, d in ipairs(all) do
        if d ~= winner then
          assert.matches(("listen unix://%s: in use by process %d\n"):format(exact(path), winner.pid), d:log())
        end
      end
      t.connect(path):send("hello\n"):expect("hello\n")
      winner:stop()
      assert.is_nil(lfs.symlinkattributes(path, "mode"))
    end
  end)
end)

describe("a daemon that was killed", function()
  t.auto()

  it("leaves files that the next one takes over", function()
    local path = t.path("x.sock")
    local config = ('pid_file = "x.pid"\nlisten "unix://%s" { handler = "echo" }'):format(path)
    local first = t.start { config = config, unchecked = true }
    first:kill()
    assert.equal(first.pid .. "\n", t.read("x.pid"))
    assert.equal("socket", lfs.attributes(path, "mode"))
    local second = t.start(config)
    assert.equal(second.pid .. "\n", t.read("x.pid"))
    t.connect(path):send("x"):expect("x")
    second:stop()
    assert.is_nil(t.read("x.pid"))
    assert.is_nil(lfs.attributes(path, "mode"))
  end)
end)

describe("a file", function()
  t.auto()

  it("that has taken a socket's place is left alone at the end", function()
    local path = t.path("x.sock")
    local d = t.start(('listen "unix://%s" { handler = "echo" }'):format(path))
    assert(os.remove(path))
    local s = t.listen("x.sock")
    d:stop()
    t.connect(path)
    s:accept()
  end)

  it("that has taken the pid file's place is left alone, also with our process id in it", function()
    local d = t.start('pid_file = "x.pid"')
    assert(os.remove(t.path("x.pid")))
    t.write("x.pid", d.pid .. "\n")
    d:stop()
    assert.equal(d.pid .. "\n", t.read("x.pid"))
  end)

  it("is not waited for when somebody keeps its folder locked", function()
    local lock = t.sys.spawn({ "flock", "-F", t.dir(), "sleep", "60" }, { stdout = t.path("lock.log"), stderr = t.path("lock.log") })
    t.until_true(function() return t.run { "flock", "-n", t.dir(), "true" }.status == 1 end, 5, "the lock")
    local r = t.reactord { "-c", t.write("reactord.conf", ('listen "unix://%s" { handler = "echo" }'):format(t.path("x.sock"))) }
    t.sys.kill(lock, "KILL")
    t.sys.waitpid(lock)
    assert.equal(1, r.status)
    assert.matches("listen unix://" .. exact(t.path("x.sock")) .. ": another process keeps the folder locked\n", r.err)
  end)
end)
