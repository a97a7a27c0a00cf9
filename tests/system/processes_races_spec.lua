-- What meets a daemon of several processes at a bad moment: ends and orders while a reload is under way, and a lack of descriptors.
local t = require "tests.support.harness"
local P = require "tests.support.processes"

local port

-- The handler's text: says its version on connecting; head runs while it loads.
local function handler(version, head)
  return ('%s\nlocal version = %q\n%s'):format(head or "", version,
    (P.handler:gsub('"%%d of %%d\\n"%):format%(em.process%(%)%)', 'version .. " %%d of %%d\\n"):format(em.process())')))
end

local function start(more, options)
  port = t.free_port()
  t.write("who.lua", handler "1")
  options = options or {}
  options.config = ('processes = %d\nlisten "tcp://127.0.0.1:%d" { handler = "who" }\nunsafe = true\n%s')
    :format(options.processes or 2, port, more or "callback_time = 0")
  return t.start(options)
end

-- A client of that process, which says the version that it expects.
local function client_of(index, version)
  return t.until_true(function()
    local c = t.connect(port)
    local found, process = c:receive_line():match "^(%S+) (%d) of 2$"
    if tonumber(process) == index then
      assert.equal(version, found)
      return c
    end
    c:close()
  end, 10, "a connection to process " .. index)
end

-- Begins a reload in which process 1 is ready and process 2 is loading until the file "gate" is there. Returns a client of the first.
local function half_prepare(d)
  local c = client_of(1, "1")
  t.write("who.lua", handler("2", ([[
    if require "em".process() == 1 then io.open(%q, "w"):close() end
    while require "em".process() == 2 and not io.open(%q) do os.execute "sleep 0.01" end]]):format(t.path "first", t.path "gate")))
  d:signal "HUP"
  t.until_true(function() return t.read "first" end, 10, "the first one's loading")
  P.echoes(c, "a turn later") -- then it is ready
  return c
end

describe("several processes, in the middle of a reload,", function()
  t.auto()

  it("have the new code also where one dies that was ready", function()
    local d = start()
    half_prepare(d)
    local pid = P.pids(d)[1]
    P.kill(pid, "KILL")
    t.until_true(function() return P.pids(d)[1] ~= pid end, 10, "its end")
    t.write("gate", "")
    d:wait_log "reloaded: generation 2 serves"
    P.replaced(d, 1, pid)
    client_of(2, "2"):close()
    client_of(1, "2"):close()
    d:stop()
  end)

  for _, signal in ipairs { "TERM", "INT" } do
    it("stop when " .. signal .. " comes", function()
      local d = start()
      half_prepare(d):close()
      d:signal(signal)
      t.write("gate", "")
      assert.equal(0, d:wait())
      d:check()
    end)
  end

  it("stop when em.stop is called in one that was ready", function()
    local d = start(nil, { unchecked = true })
    local c = half_prepare(d)
    c:send "stop 3\n"
    c:close()
    t.write("gate", "")
    assert.equal(3, d:wait())
  end)
end)

describe("several processes of which one does not answer", function()
  t.auto()

  -- Stops process 1 where it waits for what comes next.
  local function freeze(d)
    local pid = P.pids(d)[1]
    P.kill(pid, "STOP")
    return pid
  end

  if not t.full then
    pending "take half a minute"
    return
  end

  it("go on with a reload without it", function()
    local d = start()
    half_prepare(d):close()
    local pid = freeze(d)
    t.write("gate", "")
    d:wait_log("process 1 %(pid %d+%) hangs: it does not answer", 40)
    d:wait_log "reloaded: generation 2 serves"
    P.replaced(d, 1, pid)
    client_of(1, "2"):close()
    d:stop()
  end)

  it("go on with an upgrade without it", function()
    local d = start(nil, { unchecked = true })
    freeze(d)
    d:signal "USR2"
    d:wait_log("process 1 %(pid %d+%) hangs: it does not answer", 40)
    local new = t.adopt(tonumber((d:wait_log "upgraded: process (%d+) serves")), d.log_path)
    new:wait_log("ready: pid " .. new.pid)
    new:stop()
  end)

  it("go on when it does not get done with its start", function()
    local d = start "callback_time = 0.2\nhang_timeout = 0.5"
    local hang = ('if require "em".process() == 1 and io.open(%q) then os.execute "exec sleep 40" end'):format(t.path "late")
    t.write("who.lua", handler("2", hang))
    d:signal "HUP"
    d:wait_log "reloaded: generation 2 serves"
    t.write("late", "")
    local pid = P.pids(d)[1]
    P.kill(pid, "KILL")
    local second = P.replaced(d, 1, pid)
    d:wait_log("process 1 %(pid %d+%) hangs: it does not get done with loading", 40)
    assert(os.remove(t.path "late"))
    P.replaced(d, 1, second)
    client_of(1, "2"):close()
    d:stop()
  end)
end)

describe("several processes", function()
  t.auto()

  -- Runs a daemon to its end.
  local function run(more)
    local text = 'processes = 2\nhandlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "who" }\n%s'
    local path = t.write("c.conf", text:format(t.dir(), t.free_port(), more or ""))
    return t.run { t.binary, "-c", path, seconds = 10 }
  end

  it("stop what runs too long while a handler is loaded", function()
    t.write("who.lua", "while true do end")
    local r = run "callback_time = 0.3"
    assert.equal(1, r.status)
    assert.truthy(r.err:find("callback_time", 1, true) or r.err:find("too long", 1, true))
  end)

  it("stop in good order when em.stop is called at once", function()
    t.write("who.lua", 'local em = require "em" em.next_tick(function() em.stop() end) return {}')
    assert.equal(0, run().status)
  end)
end)

describe("several processes, in the middle of an upgrade,", function()
  t.auto()

  it("think nothing of it when the next one is upgraded too", function()
    local d = start(nil, { unchecked = true })
    local c = client_of(1, "1")
    local second = d:upgrade()
    local last = second:upgrade()
    t.until_true(function() return not t.read(("/proc/%d/stat"):format(second.pid)) end, 10, "the end of the one between")
    P.echoes(c, "still here")
    c:close()
    t.until_true(function() return d:ended() end, 10, "the end of the first")
    last:stop()
    assert.equal(0, last:count_log "which has taken over, has ended")
  end)

  it("are replaced where they die before all of them serve", function()
    port = t.free_port()
    t.write("who.lua", ([[
      if require "em".process() == 2 then os.execute "echo $PPID >%s" end
      while require "em".process() == 3 and not io.open(%q) do os.execute "sleep 0.01" end
      ]]):format(t.path "second", t.path "gate") .. P.handler)
    t.write("gate", "")
    local d = t.start { config = ([[
      processes = 3
      unsafe = true
      callback_time = 0
      listen "tcp://127.0.0.1:%d" { handler = "who" }]]):format(port), unchecked = true }
    local before = t.read "second"
    assert(os.remove(t.path "gate"))
    d:signal "USR2"
    local second = t.until_true(function() -- has loaded everything, and waits for the third
      local text = t.read "second"
      return text ~= before and t.read(("/proc/%d/wchan"):format(tonumber(text) or d.pid)):find "ep" and tonumber(text)
    end, 10, "the second of the new processes")
    P.kill(second, "STOP")
    t.write("gate", "")
    local new = t.adopt(tonumber((d:wait_log "upgraded: process (%d+) serves")), d.log_path)
    P.kill(second, "KILL")
    new:wait_log "process 2 was killed by SIGKILL: another one takes its place"
    new:wait_log("ready: pid " .. new.pid)
    P.connect_to(port, 2):close()
    new:stop()
  end)
end)

describe("several processes without a free descriptor", function()
  t.auto()

  -- Adds a listener to the configuration, and reloads; returns what the log says then.
  local function reload_with_another(d)
    local file = d.config:match "[^/]+$"
    t.write(file, ('%s\nlisten "tcp://127.0.0.1:%d" { handler = "who" }\n'):format(t.read(file), t.free_port()))
    local mark = d:mark()
    d:signal "HUP"
    d:wait_log("generation %d+ serves", 10, mark)
    return d:log():sub(mark)
  end

  it("go on with their connections when one cannot take a new listener", function()
    local d = start(nil, { limits = { nofile = 32 } })
    local clients = {}
    repeat
      local c = t.connect(port)
      table.insert(clients, c)
      c:fill(t.sys.now() + 0.02)
    until c.buffer == "" or #clients == 100
    local pids = P.pids(d)
    assert.truthy(reload_with_another(d):find("reload refused: ", 1, true))
    P.echoes(clients[1], clients[1]:receive_line())
    assert.same(pids, P.pids(d))
    d:stop()
  end)

  it("go on with their connections when the master cannot send a new listener", function()
    local refused = 0
    for limit = 28, 44, 2 do
      local d = start(nil, { processes = 8, limits = { nofile = limit } })
      local pids = P.pids(d)
      local log = reload_with_another(d)
      refused = refused + (log:find("reload refused: ", 1, true) and 1 or 0)
      assert.same(pids, P.pids(d))
      assert.is_nil(log:find("cannot be told", 1, true))
      d:stop()
    end
    assert.is_true(refused > 0)
  end)
end)
