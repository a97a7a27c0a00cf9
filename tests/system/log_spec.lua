-- The log of a running daemon: its formats, levels and fields, and what handlers and peers put into it.
local t = require "tests.support.harness"
local json = require "dkjson"

-- Logs each word that it hears, fails on demand.
local handler = [[
local em = require "em"
local H = em.Connection:extend()
function H:receive_data(data)
  if data:find("^fail") then error("broken: " .. data) end
  em.log.error("heard %s", data)
  em.log.warn("heard %s", data)
  em.log.info("heard %s %d", data, 5)
  em.log.debug("heard %s", data)
  print("printed", data)
  self:send_data("ok\n")
end
return H
]]

-- A daemon with that log.
local function start(log)
  local port = t.free_port()
  t.write("hears.lua", handler)
  return t.start(('listen "tcp://127.0.0.1:%d" { handler = "hears" }\nlog = { %s }'):format(port, log)), port
end

local function lines(text)
  local list = {}
  for line in text:gmatch("([^\n]*)\n") do table.insert(list, line) end
  return list
end

describe("the log", function()
  t.auto()

  it("is text with time, level and message, one line an event and its traceback behind tabs", function()
    local d, port = start ""
    t.connect(port):send("word"):expect("ok\n")
    t.connect(port):send("fail"):expect_eof()
    d:stop()
    for _, line in ipairs(lines(d:log())) do
      assert.is_truthy(line:find("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ %l+ ") or line:find("^\t"), line)
    end
    assert.matches(" error heard word %[listener=tcp://127.0.0.1:%d+ peer=127.0.0.1:%d+ handler=hears callback=receive_data "
      .. "source=[^\n]*hears.lua:5 connection=1%]\n", d:log())
    assert.matches(" warn heard word ", d:log())
    assert.matches(" info heard word 5 ", d:log())
    assert.matches(" info printed\tword", d:log())
    assert.is_nil(d:log():find(" debug ", 1, true))
    assert.matches(" error handler error: [^\n]*hears.lua:4: broken: fail %[listener=tcp://127.0.0.1:%d+ peer=127.0.0.1:%d+ handler=hears "
      .. "callback=receive_data source=[^\n]*hears.lua:4 connection=2%]\n\tstack traceback:\n", d:log())
  end)

  it("is JSON, of which each line parses", function()
    local d, port = start 'format = "json", level = "debug"'
    local nasty = 'quote" back\\slash \27[31m \200\255 ü \0 tab\t'
    t.connect(port):send(nasty):expect("ok\n")
    t.connect(port):send("fail\n" .. nasty):expect_eof()
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    d:stop()
    local events = {}
    for _, line in ipairs(lines(d:log())) do
      local event, _, why = json.decode(line)
      assert.is_nil(why, line)
      assert.matches("^%d+%-%d+%-%d+T%d+:%d+:%d+%.%d+Z$", event.time)
      assert.is_truthy(event.level and event.message)
      table.insert(events, event)
    end
    local heard, failed
    for _, event in ipairs(events) do
      if event.level == "warn" and event.message:find("^heard") then heard = event end
      if event.message:find("^handler error") then failed = event end
    end
    assert.equal("receive_data", heard.callback)
    assert.equal("hears", heard.handler)
    assert.equal(1, heard.connection)
    assert.matches("^127.0.0.1:%d+$", heard.peer)
    assert.matches("^tcp://127.0.0.1:%d+$", heard.listener)
    assert.matches("hears.lua:6$", heard.source)
    assert.matches('^heard quote" back\\slash \27%[31m \u{FFFD}\u{FFFD} ü', heard.message)
    assert.matches("\nstack traceback:\n", failed.message)
    assert.equal(2, failed.connection)
  end)

  it("has the journal's priorities before every line", function()
    local d, port = start 'format = "journal", level = "debug"'
    t.connect(port):send("word"):expect("ok\n")
    t.connect(port):send("fail"):expect_eof()
    d:stop()
    for _, line in ipairs(lines(d:log())) do assert.matches("^<[3467]>", line) end
    assert.matches("<3>heard word ", d:log())
    assert.matches("<4>heard word ", d:log())
    assert.matches("<6>heard word 5 ", d:log())
    assert.matches("<7>heard word ", d:log())
    assert.matches("<3>handler error: [^\n]*\n<3>stack traceback:\n", d:log())
  end)

  it("is the journal's by itself where standard error is the journal, and text elsewhere", function()
    local file = t.write("out", "")
    t.write("script.lua", 'require("em").log.warn("hello")')
    for _, stream in ipairs { "$(stat -L -c %d:%i /dev/stderr)", "1:2", "nonsense" } do
      local r = t.run { "sh", "-c", ("export JOURNAL_STREAM=%s; exec %s run %s"):format(stream, t.binary, t.path("script.lua")) }
      assert.equal(0, r.status)
      assert.matches(stream:find("stat", 1, true) and "^<4>hello" or "^%d+%-.* warn hello", r.err)
    end
    -- A file is not the journal, wherever standard error goes.
    local r = t.run { "sh", "-c", ("export JOURNAL_STREAM=$(stat -L -c %%d:%%i /dev/stderr) REACTORD_LOG_FILE=%s; exec %s run %s")
      :format(file, t.binary, t.path("script.lua")) }
    assert.same({ 0, "" }, { r.status, r.err })
    assert.matches("^%d+%-.* warn hello", t.read("out"))
  end)

  it("has the levels that it is asked for", function()
    for i, level in ipairs { "error", "warn", "info", "debug" } do
      local port = t.free_port()
      t.write("hears.lua", handler)
      local d = t.start {
        config = ('listen "tcp://127.0.0.1:%d" { handler = "hears" }\nlog = { level = %q }'):format(port, level), wait = false,
        counters = i > 2,
      }
      t.until_true(function() return pcall(t.connect, port) end)
      t.connect(port):send("word"):expect("ok\n")
      d:stop()
      local counts = { d:count_log(" error "), d:count_log(" warn "), d:count_log(" info "), d:count_log(" debug ") }
      for j = 1, 4 do assert.equal(j <= i, counts[j] > 0, level .. " " .. j) end
    end
  end)

  it("cannot be forged by peers", function()
    local d, port = start ""
    t.connect(port):send("x\n2000-01-01T00:00:00.000Z error forged\r\27[2J\0y"):expect("ok\n")
    d:stop()
    assert.is_nil(d:log():find("\n2000", 1, true))
    assert.is_nil(d:log():find("[%z\1-\8\11-\31]"))
  end)

  it("goes to a file that others cannot write to, and is appended to", function()
    local lfs = require "lfs"
    t.write("x.log", "before\n")
    local port = t.free_port()
    t.write("hears.lua", handler)
    local d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "hears" }\nlog = { file = "x.log" }'):format(port), log = t.path("x.log"),
    }
    d:stop()
    assert.matches("^before\n", t.read("x.log"))
    assert.equal("", t.read(d.output_path))
    d = t.start { config = 'log = { file = "y.log" }', log = t.path("y.log") }
    d:stop()
    assert.matches("^rw%-r[w-]%-%-%-%-$", lfs.attributes(t.path("y.log"), "permissions"))
  end)

  it("moves to another file with a reload", function()
    local d = t.start { config = 'log = { file = "a.log" }', log = t.path("a.log") }
    t.write("reactord.conf", 'log = { file = "b.log", format = "json" }')
    d:signal("HUP")
    d.log_path = t.path("b.log")
    t.until_true(function() return t.read("b.log") end)
    d:wait_log('"reloaded: generation 2 serves"')
    assert.is_nil(t.read("a.log"):find("generation 2", 1, true))
    d:stop()
  end)

  -- How many events of that message the log has, those included that were only counted.
  local function said(d, message)
    local count = 0
    for line in d:log():gmatch("[^\n]*") do
      local at = line:find(message, 1, true)
      if at and line:find("message repeated %d+ times: ", 1) then
        count = count + tonumber(line:match("repeated (%d+) times"))
      elseif at then
        count = count + 1
      end
    end
    return count
  end

  it("counts what is the same too often, tells how often, and hides nothing that differs", function()
    local port, other = t.free_port(), t.free_port()
    t.write("storm.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:receive_data(word)
        if word == "fail" then error("broken") end
        for i = 1, 500 do
          em.log.info("same")
          if i % 100 == 0 then em.log.info("different %d", i) end
        end
        self:send_data("ok\n")
      end
      return H]])
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "storm" }\nlisten "tcp://127.0.0.1:%d" { handler = "storm" }')
      :format(port, other))
    t.connect(port):send("storm"):expect("ok\n")
    t.connect(other):send("storm"):expect("ok\n")
    for _ = 1, 60 do t.connect(port):send("fail"):expect_eof() end
    -- The counts come by themselves.
    t.until_true(function() return said(d, ": same [listener=tcp://127.0.0.1:" .. port) == 490 and said(d, "info same [") == 20 end, nil,
      "the counts of info lines")
    t.until_true(function() return said(d, "broken") >= 60 end, nil, "the count of errors")
    for i = 100, 500, 100 do assert.equal(2, d:count_log("info different " .. i .. " ")) end
    local written = d:count_log("error handler error: ")
    assert.is_true(written >= 10 and written < 60, written .. " errors were written")
    assert.matches(" info message repeated 490 times: same %[listener=tcp://127.0.0.1:" .. other
      .. " handler=storm callback=receive_data source=[^ ]*storm.lua:%d+%]\n", d:log())
    assert.matches(" error message repeated %d+ times: handler error: [^\n]*storm.lua:%d+: broken %[listener=tcp://127.0.0.1:" .. port
      .. " handler=storm callback=receive_data source=[^ ]*%]\n", d:log())
    -- And then it sleeps.
    local before = d:wakeups()
    t.sys.sleep(1.2)
    assert.equal(before, d:wakeups())
    d:stop()
    assert.equal(60, said(d, "broken"))
  end)

  it("tells at the end how often the last event was repeated, and in a second what one callback repeats for long", function()
    local d, port = start "repeats = 2"
    local c = t.connect(port)
    for _ = 1, 5 do c:send("word"):expect("ok\n") end
    d:stop()
    assert.equal(2, d:count_log(" warn heard word "))
    assert.matches(" warn message repeated 3 times: heard word .*stopped: ", d:log())

    local r = t.script([[
      local em = require "em"
      local stop = os.time() + 3
      while os.time() < stop do em.log.warn("again") end]])
    assert.equal(0, r.status)
    local told = select(2, r.err:gsub("message repeated", ""))
    assert.is_true(told >= 2 and told <= 5, told .. " counts")
  end)

  it("has every event where repeats is 0, and JSON counts too", function()
    local d, port = start "repeats = 0"
    local c = t.connect(port)
    for _ = 1, 30 do c:send("word"):expect("ok\n") end
    d:stop()
    assert.equal(30, d:count_log(" warn heard word "))

    d, port = start 'repeats = 1, format = "json"'
    c = t.connect(port)
    for _ = 1, 30 do c:send("word"):expect("ok\n") end
    d:stop()
    for _, line in ipairs(lines(d:log())) do assert.is_nil(select(3, json.decode(line))) end
    assert.matches('"level":"warn","message":"message repeated 29 times: heard word","listener":"tcp', d:log(), 1, true)
  end)

  it("has a level for each listener and each outgoing connection", function()
    local ports = { debug = t.free_port(), error = t.free_port(), default = t.free_port() }
    t.write("hears.lua", handler)
    t.write("says.lua", [[
      local em = require "em"
      return {
        connection_completed = function(self, ...)
          em.log.debug("from the client")
          self:send_data("client")
        end,
      }]])
    local text = 'log = { level = "warn" }\ndrain_timeout = 0.1\n'
    for level, port in pairs(ports) do
      text = text .. ('listen "tcp://127.0.0.1:%d" { handler = "hears", log_level = %q }\n'):format(port, level)
    end
    text = text .. ('connect "tcp://127.0.0.1:%d" { handler = "says", log_level = "debug" }\n'):format(ports.error)
    local d = t.start { config = text, wait = false, counters = false }
    t.until_true(function() return pcall(t.connect, ports.default) end)
    for level, port in pairs(ports) do
      t.connect(port):send(level):expect("ok\n")
      t.connect(port):send("fail " .. level):expect_eof()
    end
    d:wait_log("debug from the client ")
    d:stop()
    local function levels(word)
      local list = {}
      for _, level in ipairs { "error", "warn", "info", "debug" } do
        if d:log():find(" " .. level .. " heard " .. word .. " ", 1, true) then table.insert(list, level) end
      end
      return table.concat(list, " ")
    end
    assert.equal("error warn info debug", levels("debug"))
    assert.equal("error", levels("error"))
    assert.equal("error warn", levels("default"))
    for level in pairs(ports) do assert.matches("handler error: [^\n]*broken: fail " .. level, d:log()) end
  end)

  it("that nobody reads does not stop the daemon", function()
    local port = t.free_port()
    t.write("hears.lua", handler)
    t.write("slow.conf", ('listen "tcp://127.0.0.1:%d" { handler = "hears" }\nhandlers = { "." }'):format(port))
    assert(os.execute("mkfifo " .. t.path("fifo")))
    local pid = assert(t.sys.spawn({ "sh", "-c", ("exec %s -c %s 2>%s"):format(t.binary, t.path("slow.conf"), t.path("fifo")) }, {}))
    local reader = assert(io.open(t.path("fifo")))
    local d = t.adopt(pid, t.path("none"), { counters = false })
    t.until_true(function() return pcall(t.connect, port) end)
    local c = t.connect(port)
    local word = ("x"):rep(5000)
    local begin = t.now()
    for _ = 1, 20 do c:send(word):expect("ok\n") end
    assert.is_true(t.now() - begin < t.seconds(3))
    c:close()
    t.close_clients()
    d:signal("TERM")
    assert.equal(0, d:wait())
    reader:close()
  end)
end)
