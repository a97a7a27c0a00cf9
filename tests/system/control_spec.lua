-- The control socket itself: who may speak, how it is spoken to, and what it bears.

local json = require "dkjson"
local t = require "tests.support.harness"

local ECHO = 'listen "tcp://127.0.0.1:%d" { handler = "echo" }\n'

describe("the control socket", function()
  t.auto()

  local port, path, d

  -- A daemon with a control socket.
  local function start(more)
    port, path = t.free_port(), t.path "control.sock"
    d = t.start { config = ('control = %q\n%s'):format(path, more or "") .. ECHO:format(port) }
    return d
  end

  -- Asks by a line of JSON on a client's connection: the answer.
  local function ask(c, request)
    c:send(json.encode(request) .. "\n")
    return assert(json.decode(c:receive_line()))
  end

  it("speaks plain words and JSON on one connection", function()
    start()
    local c = t.connect(path)
    c:send("status\n")
    local seen = {}
    repeat
      local line = c:receive_line()
      local name, value = line:match("^([%l_]+): +(.*)$")
      if name then seen[name] = value end
    until line:find("^ +1 ")
    c:expect("\n")
    assert.equal(tostring(d.pid), seen.pid)
    assert.equal("serving", seen.state)
    local answer = ask(c, { command = "status" })
    assert.equal(0, answer.exit)
    assert.equal(d.pid, answer.result.pid)
    assert.equal(1, answer.result.listeners)
    assert.equal(0, answer.result.connections) -- its own clients are not counted
    c:send("connections\n")
    c:expect("no connections\n\n")
    d:stop()
  end)

  it("answers what was asked before the end of the stream, the last line too", function()
    start()
    local c = t.connect(path)
    c:send("log-level debug\r\n\n  \nlog-level  info ")
    c:shutdown_write()
    assert.equal("debug\n\ninfo\n\n", c:receive_all())
    d:stop()
  end)

  it("says what is wrong with a request", function()
    start()
    local c = t.connect(path)
    for request, expected in pairs {
      ["nonsense"] = "unknown command 'nonsense'",
      ["statu"] = "unknown command 'statu' (did you mean 'status'?)",
      ["close"] = "close wants ID",
      ["close me"] = "close wants the number of a connection, got 'me'",
      ["status please"] = "status takes no argument, got 'please'",
      ["log-level loud"] = "log-level wants error, warn, info or debug, got 'loud'",
      ["close 4711"] = "there is no connection 4711",
      ["eval 1"] = "eval is off: control_eval = true in the configuration allows it",
      ["sta\0tus"] = "a request must not hold a NUL",
    } do
      c:send(request .. "\n")
      c:expect("error: " .. expected .. "\n\n")
    end
    for _, request in ipairs { "{", "{}", '{"command": 1}', '{"command": "close", "argument": 1}', '{"command": "close"}', "{\255}" } do
      c:send(request .. "\n")
      local answer = assert(json.decode(c:receive_line()), request)
      assert.equal(2, answer.exit, request)
      assert.equal(1, #answer.errors, request)
    end
    assert.equal(0, ask(c, { command = "status" }).exit)
    d:stop()
  end)

  it("is for its owner and group alone", function()
    if t.run { "id", "-u" }.out ~= "0\n" then return pending "another user takes root" end
    t.copy_daemon()
    start 'user = "nobody"\ngroup = "daemon"\n'
    local function stat(format) return (t.run { "stat", "-c", format, path }.out:gsub("\n", "")) end
    assert.equal("660 nobody daemon", stat "%a %U %G")
    local function status(uid, gid) return t.run { t.binary, "ctl", "-s", path, "status", uid = uid, gid = gid } end
    local nobody, daemon = 65534, tonumber((t.run { "id", "-g", "daemon" }.out))
    assert.equal(0, status(0, 0).status)
    assert.equal(0, status(nobody, nobody).status)
    assert.equal(0, status(4242, daemon).status)
    local refused = status(4242, 4242)
    assert.equal(3, refused.status)
    assert.is_truthy(refused.err:find("Permission denied", 1, true))
    -- also when somebody has opened the file to all
    assert.equal(0, t.run({ "chmod", "666", path }).status)
    refused = status(4242, 4242)
    assert.equal(2, refused.status)
    assert.is_truthy(refused.err:find("not permitted", 1, true))
    d:stop()
  end)

  it("replaces a dead daemon's socket, takes away its own, and leaves a live one's alone", function()
    start()
    d:kill()
    assert.is_truthy(t.run({ "test", "-S", path }).status == 0)
    local second = t.start { config = ('control = %q\n'):format(path) .. ECHO:format(port) }
    local third = t.reactord { "-c", t.write("third.conf", ('control = %q\nhandlers = { %q }\n'):format(path, t.root .. "/handlers")) }
    assert.equal(1, third.status)
    assert.is_truthy(third.err:find("control " .. path, 1, true))
    assert.equal(0, t.reactord({ "ctl", "-s", path, "status" }).status)
    second:stop()
    assert.is_truthy(t.run({ "test", "-e", path }).status ~= 0)
  end)

  it("hangs up on an endless line", function()
    start()
    local c = t.connect(path)
    local fed = 0
    pcall(function()
      for _ = 1, 100 do
        c:send(("x"):rep(10000))
        fed = fed + 10000
      end
    end)
    assert.is_true(fed <= 1000000)
    assert.is_truthy((c:receive_end()):find("a request is at most 65536 bytes long", 1, true))
    assert.equal(0, t.reactord({ "ctl", "-s", path, "status" }).status)
    d:stop()
  end)

  it("bears garbage", function()
    start()
    local seed = 42
    for _ = 1, 20 do
      local bytes = {}
      for i = 1, 500 do
        seed = (seed * 1103515245 + 12345) % 2147483648
        bytes[i] = string.char(seed // 65536 % 256)
      end
      local c = t.connect(path)
      pcall(c.send, c, table.concat(bytes) .. "\n")
      c:close()
    end
    assert.equal(0, t.reactord({ "ctl", "-s", path, "status" }).status)
    d:stop()
  end)

  it("tells clients over its bound so, and goes on with those it has", function()
    start()
    local clients = {}
    for i = 1, 64 do
      clients[i] = t.connect(path)
      assert.equal(0, ask(clients[i], { command = "status" }).exit)
    end
    for _ = 1, t.full and 936 or 50 do
      local c = t.connect(path)
      assert.same({ exit = 2, errors = { "too many clients of the control socket" } }, json.decode(c:receive_line()))
      c:close()
    end
    assert.equal(0, ask(clients[1], { command = "status" }).exit)
    clients[2]:close()
    t.until_true(function() return t.reactord({ "ctl", "-s", path, "status" }).status == 0 end, 5, "a place")
    d:stop()
  end)

  it("keeps one answer for a client that never reads, and does not go on with its requests", function()
    start()
    local c = t.connect(path, { buffer = 4096 })
    local before, sent = d:rss(), 0
    local lines = ("metrics\n"):rep(1000)
    t.until_true(function()
      local n = c:send_some(lines)
      sent = sent + (n or 0)
      return not n or n == 0
    end, 10, "a full socket")
    assert.equal(0, t.reactord({ "ctl", "-s", path, "status" }).status)
    if not t.sanitized then assert.is_true(d:rss() - before < 4 << 20, ("%d bytes more"):format(d:rss() - before)) end
    assert.is_true(sent < 1 << 20)
    d:stop() -- and it does not keep the daemon from ending
  end)

  it("hangs up on who says nothing for 30 seconds", function()
    if not t.full then return pending "takes half a minute" end
    start()
    local c = t.connect(path)
    t.until_true(function() return (pcall(c.receive_end, c)) end, 40, "the end")
    d:stop()
  end)

  it("answers connections in pages, the newest first", function()
    start()
    local clients = {}
    for i = 1, 12 do
      clients[i] = t.connect(port)
      clients[i]:send("x")
      clients[i]:expect("x")
    end
    local c, seen, before = t.connect(path), {}, nil
    repeat
      local answer = ask(c, { command = "connections", limit = 5, before = before })
      assert.is_true(#answer.result <= 5)
      for _, row in ipairs(answer.result) do seen[#seen + 1] = row.id end
      before = answer.more
    until not before
    assert.equal(12, #seen)
    for i = 2, #seen do assert.is_true(seen[i] < seen[i - 1]) end
    assert.equal(12, #ask(c, { command = "connections", limit = 1000000 }).result)
    d:stop()
  end)

  it("is in its folder where that exists, and nobody minds if it cannot be", function()
    local config = t.write("default.conf", ("handlers = { %q }\n"):format(t.root .. "/handlers") .. ECHO:format(t.free_port()))
    local script = t.write("run", ([[
      set -e
      mount -t tmpfs none /run
      mkdir /run/reactord
      %s -c %s 2>first & first=$!
      while ! grep -q ready first; do sleep 0.02; done
      %s ctl -c %s status --json | grep -m 1 '"pid"'
      echo $first
      sed 's/tcp/unix/; s/127[^"]*/%s/' %s >second.conf
      %s -c second.conf 2>second & second=$!
      while ! grep -q ready second; do sleep 0.02; done
      grep control second
      kill $first $second
      wait
    ]]):format(t.binary, config, t.binary, config, (t.path "s.sock"):gsub("/", "\\/"), config, t.binary))
    if t.run({ "unshare", "-m", "true" }).status ~= 0 then return pending "no mount namespaces here" end
    local result = t.run { "unshare", "-m", "--propagation", "private", "sh", script, cwd = t.dir() }
    assert.equal(0, result.status, result.err)
    local pid, first, told = result.out:match '"pid": (%d+),?\n(%d+)\n(.*)$'
    assert.equal(first, pid, result.out)
    assert.is_truthy(told:find("info control /run/reactord/control.sock: ", 1, true), told)
  end)

  it("is not there unless asked for, where its folder is not", function()
    local folder = t.run { "test", "-d", "/run/reactord" }
    if folder.status == 0 then return pending "/run/reactord exists here" end
    d = t.start { config = ECHO:format(t.free_port()) }
    assert.equal(0, d:count_log("control"))
    d:stop()
  end)

  it("cannot change in a reload", function()
    start()
    local config = ('control = %q\nhandlers = { %q }\n'):format(path .. "2", t.root .. "/handlers")
    t.write("reactord.conf", config .. ECHO:format(port))
    local result = t.reactord { "ctl", "-s", path, "reload" }
    if result.status == 0 then error("reloaded: " .. d.config) end
    assert.is_truthy(result.err:find("'control' cannot change in a reload", 1, true))
    d:stop()
  end)
end)
