-- A reload of several processes: all of them have the new code afterwards, or none; and one that begins later has what the others have.
local t = require "tests.support.harness"
local P = require "tests.support.processes"

local port

-- The handler's text: says its version on connecting; more is put in front of it.
local function handler(version, more)
  return ('%s\nlocal version = %q\n%s'):format(more or "", version,
    (P.handler:gsub('"%%d of %%d\\n"%):format%(em.process%(%)%)', 'version .. " %%d of %%d\\n"):format(em.process())')))
end

local function start(more)
  port = t.free_port()
  t.write("who.lua", handler "1")
  return t.start { config = ('processes = 2\nlisten "tcp://127.0.0.1:%d" { handler = "who" }\n%s'):format(port, more or "") }
end

-- The versions that the processes have, as "1 1".
local function versions()
  local found = {}
  for _ = 1, 200 do
    local c = t.connect(port)
    local version, process = c:receive_line():match "^(%S+) (%d) of 2$"
    c:close()
    found[tonumber(process)] = version
    if found[1] and found[2] then return found[1] .. " " .. found[2] end
  end
  error "one of the processes does not accept"
end

local function reload(d)
  local mark = d:mark()
  d:signal "HUP"
  return d:wait_log("reload(%l+): generation %d+ serves", 10, mark), mark
end

-- Reloads; the reasons that the log has for a refusal, each without its lead.
local function refused(d)
  local mark = d:mark()
  d:signal "HUP"
  d:wait_log("reload refused: generation", 10, mark)
  local reasons = {}
  for reason in d:log():sub(mark):gmatch "error reload refused: ([^\n]+)" do table.insert(reasons, reason) end
  table.remove(reasons)
  return reasons
end

describe("a reload of several processes", function()
  t.auto()

  it("gives all of them the new code, and keeps connections", function()
    local d = start()
    local c = t.connect(port)
    c:receive_line()
    t.write("who.lua", handler "2")
    reload(d)
    assert.equal("2 2", versions())
    P.echoes(c, "old")
    d:stop()
    assert.equal(1, d:count_log "reloaded: generation 2 serves")
  end)

  it("is refused by all when the handler is broken, with each reason once", function()
    local d = start()
    t.write("who.lua", 'error "broken for good"')
    local reasons = refused(d)
    assert.equal(1, #reasons)
    assert.truthy(reasons[1]:find("broken for good", 1, true))
    assert.equal("1 1", versions())
    d:stop()
    assert.truthy(d:log():find "reloads=0 reloads_refused=1 ")
  end)

  it("is refused by all when one of them refuses", function()
    local d = start()
    t.write("who.lua", handler("2", 'if require "em".process() == 2 then error "the second cannot" end'))
    local reasons = refused(d)
    assert.equal(1, #reasons)
    assert.truthy(reasons[1]:find("the second cannot", 1, true))
    assert.equal("1 1", versions())
    t.write("who.lua", handler "3")
    reload(d)
    assert.equal("3 3", versions())
    d:stop()
  end)

  it("is refused where a process dies of it", function()
    local d = start "unsafe = true"
    local pid = P.pids(d)[2]
    t.write("who.lua", handler("2", 'if require "em".process() == 2 then os.execute "kill -9 $PPID" while true do end end'))
    local reasons = refused(d)
    assert.same({ "process 2 was killed by SIGKILL while it loaded the handlers" }, reasons)
    P.replaced(d, 2, pid)
    assert.equal("1 1", versions())
    d:stop()
  end)

  it("is refused where a process does not come to an end of it", function()
    local d = start "callback_time = 0.2\nhang_timeout = 0.5\nunsafe = true"
    local pid = P.pids(d)[1]
    t.write("who.lua", handler("2", 'if require "em".process() == 1 then os.execute "sleep 1000" end'))
    local reasons = refused(d)
    assert.same({ "process 1 has not loaded the handlers in 1 s" }, reasons)
    P.replaced(d, 1, pid)
    assert.equal("1 1", versions())
    d:stop()
  end)

  it("changes nothing before all are ready", function()
    local d = start "unsafe = true\ncallback_time = 0"
    local gate, prepared = t.path "gate", t.path "prepared"
    t.write("who.lua", handler("2", ([[
      if require "em".process() == 1 then io.open(%q, "w"):close() end
      while require "em".process() == 2 and not io.open(%q) do os.execute "sleep 0.01" end]]):format(prepared, gate)))
    d:signal "HUP"
    t.until_true(function() return t.read "prepared" end, 10, "the first one's loading")
    local clients = {}
    for i = 1, 20 do clients[i] = t.connect(port) end
    t.until_true(function() -- those that come to the first are served, by the code of before
      for _, c in ipairs(clients) do
        c:fill(t.sys.now() + 0.01)
        if c.buffer ~= "" then return c.buffer == "1 1 of 2\n" end
      end
    end, 10, "an answer of the first process")
    t.write("gate", "")
    d:wait_log "reloaded: generation 2 serves"
    assert.equal("2 2", versions())
    d:stop()
  end)

  it("is no matter of files on the disk for one that begins later", function()
    t.write("part.lua", 'return "part 1"')
    local d = start()
    t.write("who.lua", handler("2", 'assert(require "part" == "part 1")'))
    reload(d)
    t.write("who.lua", "this is no Lua")
    assert(os.remove(t.path "part.lua"))
    t.write("reactord.conf", "neither is this")
    for index, pid in pairs(P.pids(d)) do
      P.kill(pid, "KILL")
      P.replaced(d, index, pid)
    end
    assert.equal("2 2", versions())
    d:stop()
  end)

  it("opens new listeners and closes those that are gone in all of them", function()
    local d = start()
    local first, second = port, t.free_port()
    local function config(...)
      local text = { "processes = 2", ("handlers = { %q }"):format(t.dir()) }
      for _, p in ipairs { ... } do table.insert(text, ('listen "tcp://127.0.0.1:%d" { handler = "who" }'):format(p)) end
      t.write(d.config:match "[^/]+$", table.concat(text, "\n"))
    end
    config(first, second)
    reload(d)
    port = second
    assert.equal("1 1", versions())
    config(second)
    reload(d)
    assert.is_false((pcall(t.connect, first)))
    assert.equal("1 1", versions())
    local pid = P.pids(d)[2]
    P.kill(pid, "KILL")
    P.replaced(d, 2, pid)
    assert.equal("1 1", versions())
    d:stop()
  end)

  it("refuses nobody while it goes on", function()
    local d = start()
    for i = 2, t.full and 100 or 10 do
      t.write("who.lua", i % 3 == 0 and 'error "every third"' or handler(tostring(i)))
      local mark = d:mark()
      d:signal "HUP"
      while not d:log():find("generation %d+ serves", mark) do
        t.connect(port):receive_line()
        t.close_clients()
      end
    end
    d:stop()
  end)

  it("asks for a restart where the number of processes changes", function()
    local d = start()
    t.write(d.config:match "[^/]+$", ('processes = 3\nlisten "tcp://127.0.0.1:%d" { handler = "who" }'):format(port))
    local reasons = refused(d)
    assert.equal(1, #reasons)
    assert.truthy(reasons[1]:find "'processes' cannot change in a reload: restart the daemon$")
    assert.equal("1 1", versions())
    d:stop()
  end)
end)
