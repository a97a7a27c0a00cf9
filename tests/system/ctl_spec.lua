-- reactord ctl: every command, as a table and as JSON, and how it fails.

local json = require "dkjson"
local t = require "tests.support.harness"

describe("reactord ctl", function()
  t.auto()

  local port, path, d

  -- A daemon with a control socket and a folder of handlers of the test's own.
  local function start(more, listen)
    port, path = t.free_port(), t.path "control.sock"
    local config = ('control = %q\n%s'):format(path, more or "")
    d = t.start { config = config .. (listen or 'listen "tcp://127.0.0.1:%d" { handler = "echo" }\n'):format(port) }
    return d
  end

  -- ctl with the test's socket: status, standard output, standard error.
  local function ctl(...)
    local result = t.reactord { "ctl", "-s", path, ... }
    return result.status, result.out, result.err
  end

  -- The same, whose JSON must come with status 0.
  local function ask(...)
    local status, out, err = ctl("--json", ...)
    assert.equal(0, status, err)
    return (assert(json.decode(out, nil, json.null)))
  end

  -- A client that has echoed some bytes.
  local function client(bytes)
    local c = t.connect(port)
    c:send(bytes)
    c:expect(bytes)
    return c
  end

  it("shows the daemon's status", function()
    start()
    client "hello"
    local s = ask "status"
    assert.equal(d.pid, s.pid)
    assert.equal("serving", s.state)
    assert.equal(1, s.generation)
    assert.equal(1, s.processes)
    assert.equal(1, s.connections)
    assert.equal(1, s.listeners)
    assert.equal(5, s.bytes_in)
    assert.equal(5, s.bytes_out)
    assert.equal(d.config, s.config)
    assert.is_truthy(s.version:find("^%d"))
    assert.is_true(s.uptime > 0 and s.uptime < 60)
    assert.is_true(s.lua_memory > 10000)
    assert.equal(1, #s.process_list)
    assert.equal(d.pid, s.process_list[1].pid)
    local status, out = ctl "status"
    assert.equal(0, status)
    assert.is_truthy(out:find("\nconnections:  +1\n"))
    assert.is_truthy(out:find("\npid:  +" .. d.pid .. "\n"))
    d:stop()
  end)

  it("lists connections", function()
    start()
    local c = client "0123456789"
    local host, client_port = c.sock:getsockname()
    local rows = ask "connections"
    assert.equal(1, #rows)
    local row = rows[1]
    assert.equal("tcp://127.0.0.1:" .. port, row.listener)
    assert.equal("echo", row.handler)
    assert.equal(host .. ":" .. client_port, row.peer)
    assert.equal(10, row.bytes_in)
    assert.equal(10, row.bytes_out)
    assert.equal(0, row.queued)
    assert.equal(1, row.generation)
    assert.equal(1, row.process)
    assert.equal("open", row.state)
    assert.is_true(row.age >= row.idle and row.age < 60)
    local _, out = ctl "connections"
    local head, line = out:match("^(.-)\n(.-)\n$")
    assert.is_truthy(head:find("^id +process +listener +handler +peer"))
    assert.is_truthy(line:find(row.peer, 1, true))
    assert.equal(head:find("listener", 1, true), line:find("tcp://", 1, true)) -- aligned
    d:stop()
  end)

  it("puts pages of connections together", function()
    start()
    local clients = {}
    for i = 1, 520 do clients[i] = t.connect(port) end
    t.until_true(function() return ask("status").connections == #clients end)
    local rows, seen = ask "connections", {}
    assert.equal(520, #rows)
    for _, row in ipairs(rows) do seen[row.id] = true end
    local count = 0
    for _ in pairs(seen) do count = count + 1 end
    assert.equal(520, count)
    d:stop()
  end)

  it("lists listeners and handlers, those of scripts too", function()
    local other = t.free_port()
    t.write("opens.lua", ([[
      local em = require "em"
      em.run(function() em.start_server("127.0.0.1", %d, {}) end)
      return {}
    ]]):format(other))
    start(nil, 'listen "tcp://127.0.0.1:%d" { handler = "echo", max_connections = 7 }\nlisten "unix://o.sock" { handler = "opens" }\n')
    client "x"
    local by_name = {}
    for _, row in ipairs(ask "listeners") do by_name[row.listener] = row end
    local row = by_name["tcp://127.0.0.1:" .. port]
    assert.equal("echo", row.handler)
    assert.equal(1, row.connections)
    assert.equal(7, row.max_connections)
    assert.is_true(row.accepting)
    assert.is_table(by_name["tcp://127.0.0.1:" .. other])
    local handlers = {}
    for _, h in ipairs(ask "handlers") do handlers[h.handler] = h end
    assert.equal(1, handlers.echo.connections)
    assert.is_true(handlers.echo.callbacks >= 2)
    assert.is_true(handlers.echo.callback_time > 0)
    assert.equal(0, handlers.opens.connections)
    local _, out = ctl "handlers"
    assert.is_truthy(out:find("\n +1 +echo "))
    d:stop()
  end)

  it("reloads and waits for the outcome", function()
    start()
    assert.equal(2, ask("reload").generation)
    local status, out = ctl "reload"
    assert.equal(0, status)
    assert.equal("generation: 3\n", out)
    assert.equal(3, ask("status").generation)
    assert.equal(2, ask("status").reloads)
    d:stop()
  end)

  it("tells every reason why a reload is refused, and exits with 1", function()
    start()
    t.write("broken.lua", "return {")
    local good = assert(io.open(d.config)):read "a"
    t.write("reactord.conf", good .. [[

      listen "tcp://127.0.0.1:1" { handler = "broken" }
      listen "tcp://127.0.0.1:2" { handler = "nowhere" }
    ]])
    local status, out, err = ctl "reload"
    assert.equal(1, status)
    assert.equal("", out)
    assert.is_truthy(err:find("broken.lua:1:", 1, true))
    assert.is_truthy(err:find("nowhere", 1, true))
    status, out = ctl("reload", "--json")
    assert.equal(1, status)
    assert.is_true(#json.decode(out).errors >= 2)
    t.write("reactord.conf", good)
    assert.equal(0, (ctl "reload"))
    d:stop()
  end)

  it("finds the daemon by its configuration, also when that is broken", function()
    start()
    assert.equal(0, t.reactord({ "ctl", "-c", d.config, "status" }).status)
    assert.equal(0, t.reactord({ "ctl", "status", env = { REACTORD_CONFIG = d.config } }).status)
    assert.equal(0, t.reactord({ "ctl", "status", env = { REACTORD_CONTROL = path } }).status)
    local good = assert(io.open(d.config)):read "a"
    t.write("reactord.conf", good .. "\nnonsense = = 1\n")
    local result = t.reactord { "ctl", "-c", d.config, "reload" }
    assert.equal(1, result.status)
    assert.is_truthy(result.err:find(d.config, 1, true))
    d:stop()
  end)

  it("is also called reactorctl", function()
    start()
    local link = t.path "reactorctl"
    assert.equal(0, t.run({ "ln", "-s", t.binary, link }).status)
    local result = t.run { link, "-s", path, "status", "--json" }
    assert.equal(0, result.status)
    assert.equal(d.pid, json.decode(result.out).pid)
    d:stop()
  end)

  it("speaks for many processes as for one", function()
    start "processes = 3\ncontrol_eval = true\n"
    local clients, ids, processes = {}, {}, {}
    for i = 1, 12 do
      clients[i] = client "x"
    end
    local s = ask "status"
    assert.equal(d.pid, s.pid)
    assert.equal(3, s.processes)
    assert.equal(12, s.connections)
    assert.equal(1, s.listeners)
    assert.equal(12, s.bytes_in)
    assert.equal(3, #s.process_list)
    local rows = ask "connections"
    assert.equal(12, #rows)
    for i, row in ipairs(rows) do
      assert.is_nil(ids[row.id], "an id comes twice")
      ids[row.id], processes[row.process] = true, true
      assert.is_true(i == 1 or row.id < rows[i - 1].id)
    end
    assert.is_truthy(next(processes, next(processes)), "all are in one process")
    assert.equal(3, #ask "listeners")
    assert.equal(3, #ask "handlers")
    for _, row in ipairs(rows) do
      assert.equal(0, (ctl("close", tostring(row.id))))
    end
    for _, c in ipairs(clients) do
      c:receive_end()
    end
    assert.equal(1, (ctl("close", tostring(rows[1].id))))
    local count = 0
    for _, row in ipairs(ask("eval", "(require('em').process())")) do count = count + (tostring(row.process) == row.result and 1 or 0) end
    assert.equal(3, count)
    assert.equal(0, (ctl("log-level", "error")))
    assert.equal(2, ask("reload").generation)
    assert.equal(1, ask("status").reloads)
    t.write("broken.lua", "return {")
    local good = assert(io.open(d.config)):read "a"
    t.write("reactord.conf", good .. '\nlisten "unix://x" { handler = "broken" }\n')
    local status, _, err = ctl "reload"
    assert.equal(1, status)
    assert.is_truthy(err:find("broken.lua:1:", 1, true))
    t.write("reactord.conf", good)
    local c = client "x"
    local waits = t.connect(path)
    waits:send('{"command": "drain"}\n')
    assert.same({ progress = { connections = 1 } }, json.decode(waits:receive_line()))
    c:close()
    local answer
    repeat answer = json.decode(waits:receive_line()) until not answer.progress
    assert.equal(0, answer.exit)
    waits:close()
    assert.equal(0, d:wait(10))
    d:check()
  end)

  it("does without a process that hangs", function()
    start "processes = 2\ncontrol_eval = true\nhang_timeout = 0\n"
    local list = ask("status").process_list
    assert(t.sys.kill(list[2].pid, "STOP"))
    assert.equal(1, #ask "listeners") -- of the other one
    assert(t.sys.kill(list[2].pid, "CONT"))
    t.until_true(function() return #ask "listeners" == 2 end)
    d:stop()
  end)

  it("tells each who asks for a reload what became of his own", function()
    t.write("slow.lua", "local till = os.clock() + 0.6 while os.clock() < till do end return {}")
    start("processes = 2\ncallback_time = 20\n", 'listen "tcp://127.0.0.1:%d" { handler = "slow" }\n')
    local first, second = t.connect(path), t.connect(path)
    first:send('{"command": "reload"}\n')
    t.until_true(function() -- both are loading
      local busy = 0
      for _, row in ipairs(ask("status").process_list) do busy = busy + (row.lag > 0.05 and row.uptime > 0.1 and 1 or 0) end
      return busy == 2
    end)
    t.write("slow.lua", "return {")
    second:send('{"command": "reload"}\n')
    assert.same({ exit = 0, result = { generation = 2 } }, json.decode(first:receive_line()))
    local answer = json.decode(second:receive_line())
    assert.equal(1, answer.exit)
    assert.is_truthy(answer.errors[1]:find("slow.lua:1:", 1, true))
    d:stop()
  end)

  it("says that an answer of a process is too large for its way", function()
    start "processes = 2\ncontrol_eval = true\n"
    local status, out, err = ctl("eval", "('x'):rep(9000000)")
    assert.equal(1, status)
    assert.equal("", out)
    assert.is_truthy(err:find("the answer is too large", 1, true))
    status, out = ctl("eval", "1, 2")
    assert.equal(0, status)
    assert.is_truthy(out:find("\n +2  1 2\n"))
    d:stop()
  end)

  it("closes a connection by its number", function()
    start()
    local c, other = client "a", client "b"
    local _, client_port = c.sock:getsockname()
    local id
    for _, row in ipairs(ask "connections") do
      if row.peer:match("%d+$") == tostring(client_port) then id = row.id end
    end
    assert.equal(0, (ctl("close", tostring(id))))
    c:receive_end()
    other:send("still here")
    other:expect("still here")
    local status, _, err = ctl("close", tostring(id))
    assert.equal(1, status)
    assert.equal(("reactorctl: there is no connection %d\n"):format(id), err)
    d:stop()
  end)

  it("sets the log's level until the next reload", function()
    start()
    assert.equal(0, (ctl("log-level", "error")))
    assert.equal("error", ask("status").log_level)
    assert.equal(0, (ctl "reload"))
    assert.equal("info", ask("status").log_level)
    d:stop()
  end)

  it("evaluates Lua where that is allowed", function()
    start "control_eval = true\n"
    local status, out, err = ctl("eval", "1 + 1, 'two', nil")
    assert.equal(0, status, err)
    assert.equal("2\ttwo\tnil\n", out)
    assert.equal(0, (ctl("eval", "x = 7")))
    assert.equal("7", ask("eval", "return x"))
    assert.equal(1, ask("eval", "require('em').connection_count() - 0") - 0) -- the listener
    status, out, err = ctl("eval", "error 'oops'")
    assert.equal("", out)
    assert.equal(1, status)
    assert.is_truthy(err:find("oops", 1, true))
    status, out, err = ctl("eval", "this is no Lua")
    assert.equal("", out)
    assert.equal(1, status)
    assert.is_truthy(err:find("syntax error", 1, true))
    d:stop()
  end)

  it("stops what eval has begun when it takes too long", function()
    start "control_eval = true\ncallback_time = 0.1\n"
    local status, _, err = ctl("eval", "pcall(function() while true do end end)")
    assert.equal(1, status)
    assert.is_truthy(err:find("callback_time", 1, true))
    client "x"
    d:stop()
  end)

  it("does not evaluate where it is not", function()
    start()
    local status, _, err = ctl("eval", "1")
    assert.equal(1, status)
    assert.is_truthy(err:find("control_eval", 1, true))
    d:stop()
  end)

  it("drains, and tells how many are left", function()
    start "drain_timeout = 30\n"
    local a, b = client "a", client "b"
    local c = t.connect(path)
    c:send('{"command": "drain"}\n')
    assert.same({ progress = { connections = 2 } }, json.decode(c:receive_line()))
    assert.equal("draining", ask("status").state)
    local status, _, err = ctl "reload"
    assert.equal(1, status)
    assert.is_truthy(err:find("stopping", 1, true))
    a:close()
    b:close()
    local answer
    repeat answer = json.decode(c:receive_line()) until not answer.progress
    assert.same({ exit = 0, result = "stopped: no connection was left" }, answer)
    c:expect_eof()
    c:close()
    assert.equal(0, d:wait(10))
    d:check()
  end)

  it("tells how many connections a drain has cut", function()
    start "drain_timeout = 0.2\n"
    client "a"
    local status, out, err = ctl "drain"
    assert.equal(0, status)
    assert.is_truthy(err:find("1 connection(s) left", 1, true))
    assert.is_truthy(out:find("^stopped: "))
    assert.equal(0, d:wait(10))
  end)

  it("stops", function()
    start()
    local c = client "a"
    assert.equal(0, (ctl "stop"))
    c:receive_end()
    assert.equal(0, d:wait(10))
    d:check()
  end)

  it("says that there is no daemon, with 3", function()
    path = t.path "none.sock"
    local status, out, err = ctl "status"
    assert.equal(3, status)
    assert.equal("", out)
    assert.equal(("reactorctl: cannot reach the daemon at %s: No such file or directory: is it running?\n"):format(path), err)
    start()
    d:kill()
    status, out, err = ctl "status"
    assert.equal(3, status)
    assert.equal("", out)
    assert.is_truthy(err:find("Connection refused: is it running?", 1, true))
  end)

  it("says what is wrong with the usage, with 2", function()
    path = t.path "none.sock"
    for _, case in ipairs {
      { "which command" },
      { "did you mean 'status'", "statsu" },
      { "too many arguments", "close", "1", "2" },
      { "close wants ID", "close" },
      { "close wants the number", "close", "all" },
      { "status takes no argument", "status", "x" },
      { "log%-level wants error", "log-level", "loud" },
      { "eval: the argument is not UTF%-8", "eval", "\xff" },
      { "unknown option", "--nonsense", "status" },
      { "wants an argument", "status", "-c" },
    } do
      local expected = table.remove(case, 1)
      local status, out, err = ctl(table.unpack(case))
      assert.equal(2, status, expected)
      assert.equal("", out)
      assert.is_truthy(err:find(expected), expected .. ": " .. err)
    end
    assert.equal(2, t.reactord({ "ctl", "-c", t.path "none.conf", "status" }).status)
  end)

  it("helps without a daemon", function()
    for _, arguments in ipairs { { "--help" }, { "help" } } do
      local result = t.reactord { "ctl", table.unpack(arguments) }
      assert.equal(0, result.status)
      for _, name in ipairs { "status", "connections", "reload", "close ID", "metrics" } do
        assert.is_truthy(result.out:find("\n? +" .. name .. " "), name)
      end
    end
  end)
end)
