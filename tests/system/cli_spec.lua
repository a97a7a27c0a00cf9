-- The command line: words, options, exit status; what goes before what; scripts and handlers without a configuration.
local t = require "tests.support.harness"

local greet = [[
local em = require "em"
local H = em.Connection:extend()
function H:post_init() self:send_data("hello\n") end
return H
]]

describe("the command line", function()
  t.auto()

  it("tells version and usage", function()
    for _, option in ipairs { "-V", "--version" } do
      local r = t.reactord { option }
      assert.same({ 0, "" }, { r.status, r.err })
      assert.matches("^reactord %d+%.%d+%.%d+\n$", r.out)
    end
    for _, command in ipairs { { "-h" }, { "--help" }, { "check", "--help" }, { "run", "-h" } } do
      local r = t.reactord(command)
      assert.same({ 0, "" }, { r.status, r.err })
      assert.matches("^usage: reactord ", r.out)
      assert.matches("reactord run SCRIPT", r.out)
    end
  end)

  it("ends with 2 and a hint when it is used wrongly", function()
    local script, many = t.write("x.lua", ""), {}
    for i = 1, 65 do many[2 * i - 1], many[2 * i] = "-s", "drain_timeout=1" end
    for _, case in ipairs {
      { { "--nonsense" }, "unrecognized option '%-%-nonsense'" },
      { { "-x" }, "invalid option %-%- 'x'" },
      { { "-c" }, "requires an argument" },
      { { "frobnicate" }, "unknown command or too many arguments: frobnicate" },
      { { "-c", script, "more" }, "too many arguments: more" },
      { { "check", "more" }, "too many arguments: more" },
      { { "check", "--dump=xml" }, "%-%-dump knows only json, not xml" },
      { { "-s", "drain_timeout" }, "%-%-set wants OPTION=VALUE, not drain_timeout" },
      { { "-l", "tcp://127.0.0.1:1" }, "invalid option %-%- 'l'" },
      { { "check", "--listen", "tcp://127.0.0.1:1" }, "%-%-listen" },
      { { "--listen", "tcp://127.0.0.1:1" }, "%-%-listen" },
      { { "run" }, "run wants a script or a handler" },
      { { "run", "-d", script }, "invalid option %-%- 'd'" },
      { { "run", "--detach", script }, "%-%-detach" },
      { { "run", "--check", script }, "%-%-check" },
      { { "run", "--config", script, script }, "%-%-config" },
      { { "run", "--pid-file", "x", script }, "%-%-pid%-file" },
      { { "run", script, "-l", "tcp://127.0.0.1:1", "more" }, "a handler takes no arguments: more" },
      { many, "too many options" },
    } do
      local r = t.reactord(case[1])
      assert.equal(2, r.status, table.concat(case[1], " "))
      assert.equal("", r.out)
      assert.matches(case[2], r.err)
      assert.matches("try 'reactord %-%-help'\n$", r.err)
    end
  end)

  it("ends with 1 when the configuration is not there or cannot be read", function()
    local r = t.reactord { "-c", t.path("none.conf") }
    assert.equal(1, r.status)
    assert.matches("/none.conf: No such file or directory\n$", r.err)
    r = t.reactord { env = { REACTORD_CONFIG = t.path("other.conf") } }
    assert.equal(1, r.status)
    assert.matches("/other.conf: No such file or directory\n$", r.err)
    r = t.reactord { "-c", t.dir() }
    assert.equal(1, r.status)
    assert.matches(": Is a directory\n$", r.err)
  end)

  it("goes before the environment, which goes before the file, also in a reload", function()
    local port = t.free_port()
    local text = [[
      listen "tcp://127.0.0.1:%d" { handler = "greet" }
      drain_timeout = 33
      log = { level = "error", format = "json" }]]
    t.write("greet.lua", greet)
    local d = t.start {
      config = text:format(port), env = { REACTORD_LOG_LEVEL = "warn", REACTORD_DRAIN_TIMEOUT = "22" },
      args = { "--log-level", "debug", "-s", "log_format=text" },
    }
    t.connect(port):expect("hello\n"):close()
    d:wait_log("^%d+%-%d+%-%d+T[%d:.]+Z info ")
    for i = 1, 2 do
      d:signal("HUP")
      d:wait_log(("info reloaded: generation %d"):format(i + 1))
      d:wait_log(("debug generation %d has ended"):format(i))
    end
    t.connect(port):expect("hello\n")
    d:signal("TERM")
    d:wait_log("may go on for 22 s")
    t.close_clients()
    d:stop()

    d = t.start {
      config = text:format(port), args = { "-s", "drain_timeout=11", "--log-level=info" }, env = { REACTORD_DRAIN_TIMEOUT = "22" },
    }
    t.connect(port):expect("hello\n")
    d:signal("TERM")
    d:wait_log('"message":"draining: 1 connection%(s%) may go on for 11 s"')
  end)

  it("names the source of a wrong option", function()
    t.write("c.conf", "")
    local r = t.reactord { "-c", t.path("c.conf"), "-s", "drain_timeot=1", "--log-level", "loud", env = { REACTORD_MAX_QUEUED = "lots" } }
    assert.equal(1, r.status)
    assert.matches("%-%-set: unknown option 'drain_timeot' %(did you mean 'drain_timeout'%?%)", r.err)
    assert.matches('%-%-log%-level: \'log_level\' must be one of "error", "warn", "info", "debug", got "loud"', r.err)
    assert.matches("REACTORD_MAX_QUEUED: 'max_queued' must be ", r.err)
  end)

  it("finds the configuration by the environment", function()
    local port = t.free_port()
    t.write("greet.lua", greet)
    t.write("mine.conf", ('handlers = { "." }\nlisten "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port))
    t.start { env = { REACTORD_CONFIG = t.path("mine.conf") } }
    t.connect(port):expect("hello\n")
  end)
end)

describe("reactord run SCRIPT", function()
  t.auto()

  it("runs a script to its end when nothing is left to wait for", function()
    local r = t.script("print('hello', #arg, arg[0] ~= nil, arg[1], ...)", { "a", "-l2", "--c" })
    assert.same({ 0, "" }, { r.status, r.err })
    assert.equal("hello\t3\ttrue\ta\ta\t-l2\t--c\n", r.out)
    r = t.script [[
      local em = require "em"
      local beats = 0
      local beat = em.add_periodic_timer(0.01, function() beats = beats + 1 end)
      em.add_timer(0.05, function() beat:cancel() print("end", beats >= 2) end)
      print "body"]]
    assert.same({ 0, "body\nend\ttrue\n", "" }, { r.status, r.out, r.err })
  end)

  it("waits for connections and servers too", function()
    local r = t.script [[
      local em = require "em"
      local server = em.start_server("127.0.0.1", 0, function(c) c:send_data("x") c:close_connection_after_writing() end)
      local C = em.Connection:extend()
      function C:receive_data(data) print(data) end
      function C:unbind(err, why) print(err, why) server:stop() end
      local _, port = server:address()
      em.connect("127.0.0.1", port, C)]]
    assert.same({ 0, "x\nnil\teof\n", "" }, { r.status, r.out, r.err })
  end)

  it("takes its status from em.stop and os.exit", function()
    for _, case in ipairs {
      { 0, "em.stop()" }, { 3, "em.stop { status = 3 }" }, { 255, "em.stop { status = 255 }" }, { 4, "os.exit(4)" },
      { 0, "os.exit()" }, { 1, "os.exit(false)" }, { 0, "os.exit(true)" },
    } do
      local r = t.script(('local em = require "em"\nem.run(function() %s end)\nprint "after"'):format(case[2]))
      assert.same({ case[1], "after\n", "" }, { r.status, r.out, r.err })
      r = t.script(('local em = require "em"\nem.add_timer(0, function() %s end)\nem.add_timer(100, print)'):format(case[2]))
      assert.same({ case[1], "", "" }, { r.status, r.out, r.err })
      r = t.script(('local em = require "em"\nem.add_timer(100, print)\n%s'):format(case[2]))
      assert.same({ case[1], "", "" }, { r.status, r.out, r.err })
    end
  end)

  it("suspends the body in em.run, as often as it likes, and calls the tail", function()
    local r = t.script [[
      local em = require "em"
      print("before", em.reactor_running())
      em.run(function() print "one" em.next_tick(em.stop) end, function() print "tail" end)
      print "between"
      em.run(function()
        em.run(function() print "nested" end)
        em.add_timer(0.01, function() print "timer" em.stop { status = 2 } end)
      end)
      print "after"
      em.run_block(function() print "block" end)]]
    assert.equal("before\tfalse\none\ntail\nbetween\nnested\ntimer\nafter\nblock\n", r.out)
    assert.equal("", r.err)
  end)

  it("goes on after em.run only when somebody stops the loop", function()
    local d = t.start { script = [[
      local em = require "em"
      em.run(function() em.log.info "waiting" end)
      print "not reached by a signal"]], wait = "waiting", counters = false }
    t.sys.sleep(0.05)
    assert.is_false(d:ended())
    d:signal("TERM")
    assert.equal(0, d:wait())
    d:check()
    assert.is_nil(d:log():find("not reached", 1, true))
  end)

  it("ends by SIGINT, SIGTERM and SIGHUP; connections are unbound, hooks called", function()
    for _, name in ipairs { "INT", "TERM", "HUP" } do
      local s = t.listen()
      local d = t.start { script = ([[
        local em = require "em"
        local C = em.Connection:extend()
        function C:connection_completed() em.log.info "waiting" end
        function C:unbind(err, why) print("unbind", err, why) end
        em.add_shutdown_hook(function() print "hook" end)
        em.connect("127.0.0.1", %d, C)]]):format(s.port), wait = "waiting", counters = false }
      local c = s:accept()
      d:signal(name)
      c:expect_eof()
      assert.equal(0, d:wait())
      d:check()
      d:wait_log("hook\nunbind\tnil\tstopped\n")
    end
  end)

  it("ends with 1 and a traceback on an error that nobody handles", function()
    local r = t.script "local function f()\n  error 'oops'\nend\nf()\n"
    assert.equal(1, r.status)
    assert.matches("script%-%d+.lua:2: oops [^\n]*\n\tstack traceback:\n", r.err)
    assert.matches("script%-%d+.lua:4: in main chunk", r.err)
    r = t.script 'local em = require "em"\nem.run(function()\n  em.add_timer(0, function() error "in a timer" end)\nend)\nprint "no"'
    assert.equal(1, r.status)
    assert.matches("script%-%d+.lua:3: in a timer [^\n]*\n\tstack traceback:\n", r.err)
    assert.equal("", r.out)
    r = t.script "x ="
    assert.equal(1, r.status)
    assert.matches("script%-%d+.lua:1: unexpected symbol near <eof>", r.err)
    r = t.reactord { "run", t.path("none.lua") }
    assert.equal(1, r.status)
    assert.matches("cannot open [^\n]*none.lua", r.err)
    r = t.script('local em = require "em"\nem.error_handler(function(m) print((m:match("[^:\\n]*$", 1))) end)\n'
      .. 'em.run(function() em.next_tick(function() em.next_tick(em.stop) error("handled", 0) end) end)\nprint "on"')
    assert.same({ 0, "on\n" }, { r.status, r.out:match("on\n") })
  end)

  it("has the whole library, and require beside the script", function()
    t.write("beside.lua", "return 'found'")
    local r = t.script "print(require 'beside', debug.getinfo ~= nil, io.popen ~= nil, os.execute ~= nil)"
    assert.same({ 0, "found\ttrue\ttrue\ttrue\n", "" }, { r.status, r.out, r.err })
    r = t.script "print(load(string.dump(function() end), 'x', 'b'))"
    assert.matches("^nil\t", r.out)
  end)

  it("does not stop a script that computes, unless it is told to", function()
    local text = "local stop = os.clock() + 0.3\nwhile os.clock() < stop do end\nprint 'done'"
    t.write("long.lua", text)
    assert.equal("done\n", t.reactord({ "run", t.path("long.lua") }).out)
    local r = t.reactord { "run", "-s", "callback_time=0.05", t.path("long.lua") }
    assert.equal(1, r.status)
    assert.matches("ran longer than callback_time", r.err)
  end)
end)

describe("reactord run HANDLER -l URL", function()
  t.auto()

  it("serves a handler without a configuration", function()
    local a, b, file = t.free_port(), t.free_port(), t.write("greet.lua", greet)
    local d = t.start { args = { "run", file, "-l", "tcp://127.0.0.1:" .. a, "-l", "unix://" .. t.path("x.sock") } }
    t.connect(a):expect("hello\n")
    t.connect(t.path("x.sock")):expect("hello\n")
    d:stop()
    d = t.start { args = { "run", "-l", "tcp://127.0.0.1:" .. b, "greet.lua" }, cwd = t.dir() }
    t.connect(b):expect("hello\n")
    d:signal("HUP")
    assert.equal(0, d:wait())
    d:check()
    d = t.start { args = { "run", "-s", "log_format=json", "greet.lua", "--listen=tcp://127.0.0.1:" .. b }, cwd = t.dir() }
    t.connect(b):expect("hello\n")
    d:signal("INT")
    assert.equal(0, d:wait())
    d:check()
    assert.matches('^{"time"', d:log())
  end)

  it("says what is wrong", function()
    local file, s = t.write("greet.lua", greet), t.listen()
    local r = t.reactord { "run", file, "-l", "tcp://127.0.0.1:" .. s.port }
    assert.equal(1, r.status)
    assert.matches(("listen tcp://127.0.0.1:%d: Address already in use\n$"):format(s.port), r.err)
    r = t.reactord { "run", file, "-l", "http://x", "-l", "tcp://127.0.0.1" }
    assert.equal(1, r.status)
    assert.matches("http://x", r.err)
    assert.matches("tcp://127.0.0.1", r.err)
    r = t.reactord { "run", file, "-l", "http://x", "-l", "tcp://127.0.0.1:" .. t.free_port() }
    assert.equal(1, r.status)
    assert.matches("http://x", r.err)
    r = t.reactord { "run", t.path("none.lua"), "-l", "unix://" .. t.path("s") }
    assert.equal(1, r.status)
    assert.matches("none.lua", r.err)
  end)

  it("ends with 1 on an error that belongs to no connection, with none on others", function()
    local port = t.free_port()
    local file = t.write("fails.lua", [[
      local em = require "em"
      return { receive_data = function(self, data)
        if data == "timer\n" then em.add_timer(0, function() error "in a timer" end) else error "in a connection" end
      end }]])
    local d = t.start { args = { "run", file, "-l", "tcp://127.0.0.1:" .. port }, unchecked = true }
    t.connect(port):send("x"):expect_eof()
    d:wait_log("fails.lua:3: in a connection")
    t.connect(port):send("timer\n"):receive_end()
    assert.equal(1, d:wait())
    assert.matches("fails.lua:3: in a timer", d:log())
  end)
end)
