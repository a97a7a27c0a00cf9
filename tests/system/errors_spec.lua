-- Errors in callbacks: one traceback, one connection, the error handler; and what the log says of it all.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function escape(text) return (text:gsub("%p", "%%%0")) end

-- A handler that echoes, and raises in the callback named, for the first connection that says so by its first byte.
local function raising(name)
  return ([[
local H = em.Connection:extend()
x.armed = %q
local function boom(callback) if x.armed == callback then x.armed = nil error("boom in " .. callback) end end
function H:initialize() boom "initialize" end
function H:post_init() boom "post_init" say("post_init") end
function H:connection_completed() boom "connection_completed" end
function H:receive_data(data)
  if data == "drained" then self.waits = true self:set_watermarks(0, 1) self:send_data("xx") return end
  if data == "close" then self:close_connection() return end
  if data == "timer" then self:add_timer(0, function() boom "timer" end) return end
  if data == "listener" then self:on("data", function() boom "listener" end) return end
  boom "receive_data"
  self:send_data(data)
end
function H:receive_eof() boom "receive_eof" self:close_connection() end
function H:drained() boom "drained" end
function H:unbind(err, why) say("unbind", err, why) boom "unbind" end
return H]]):format(name)
end

describe("an error raised in", function()
  t.auto()

  -- What a client does to make it happen, and the line where it is raised.
  for name, what in pairs {
    initialize = { act = function() end },
    post_init = { act = function() end },
    receive_data = { act = function(c) c:send("x") end },
    receive_eof = { act = function(c) c:shutdown_write() end },
    drained = { act = function(c) c:send("drained") end },
    timer = { act = function(c) c:send("timer") end },
    listener = { act = function(c) c:send("listener") t.sys.sleep(0.02) c:send("x") end, callback = "data" },
  } do
    it(name .. " is logged once and ends its connection alone", function()
      local s = serve(raising(name))
      local c = s:connect()
      what.act(c)
      c:receive_end()
      local words = "handler error: " .. t.dir() .. "/h.lua:3: boom in " .. name
      s:waits_for("unbind EHANDLER " .. words)
      local other = s:connect()
      other:send("hello"):expect("hello")
      other:close()
      s.d:stop()
      local log = s.d:log()
      assert.equal(1, s.d:count_log("error handler error: [^\n@]*boom in [^\n@]* %[listener"))
      assert.equal(1, s.d:count_log("stack traceback:"))
      assert.matches(escape(words) .. " %[listener=tcp://127%.0%.0%.1:%d+ peer=127%.0%.0%.1:%d+ handler=h callback="
        .. (what.callback or name) .. "[^\n]*\n\tstack traceback:\n\t\t", log)
      assert.matches("h%.lua:%d+: in function", log)
      assert.matches("handler_errors=1 ", log)
      if name == "initialize" or name == "post_init" then
        assert.equal("unbind EHANDLER " .. words, s:said()[1]) -- what follows was skipped
      end
    end)
  end

  it("unbind is logged, and the connection ends as it would have", function()
    local s = serve(raising "unbind")
    local c = s:connect()
    c:send("close"):expect_eof()
    s.d:wait_log("h%.lua:3: boom in unbind [^\n]*callback=unbind")
    s:connect():send("hello"):expect("hello")
    s.d:stop()
    assert.matches("unbind nil closed", s.d:log())
    assert.equal(1, s.d:count_log("stack traceback:"))
  end)

  it("connection_completed ends an outgoing connection", function()
    local s = serve((raising("connection_completed"):gsub("return H$", "x.class = H return H")))
    s:eval "em.connect('127.0.0.1', x.port, x.class)"
    s:waits_for("unbind EHANDLER handler error: " .. t.dir() .. "/h.lua:3: boom in connection_completed")
    s:connect():send("hello"):expect("hello")
    assert.equal(1, s.d:count_log("callback=connection_completed"))
  end)

  it("a next_tick or a timer of nobody's ends no connection", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        em.next_tick(function() error("tick") end)
        em.add_timer(0, function() error("timer") end)
        self:send_data(data)
      end
      return H]]
    local c = s:connect()
    c:send("x"):expect("x")
    s.d:wait_log("h%.lua:3: tick %[callback=next_tick")
    s.d:wait_log("h%.lua:4: timer %[callback=timer")
    c:send("y"):expect("y")
  end)

  it("a function that follows post_init ends its connection", function()
    local s = serve "return function(conn) say('function') error('boom') end"
    s:connect():receive_end()
    s.d:wait_log("h%.lua:1: boom [^\n]*handler=h")
    assert.same({ "function" }, s:said())
  end)

  it("a server's listener ends nothing; the other listeners hear of the connection too", function()
    local s = serve [[
      em.next_tick(function()
        x.server = em.start_server("127.0.0.1", 0, { receive_data = function(self, data) self:send_data(data) end })
        x.server:on("accept", function() error("boom") end)
        x.server:on("accept", function(conn) say("second", type(conn.signature)) end)
      end)
      return {}]]
    local _, port = s:eval "return x.server:address()"
    t.connect(port):send("hello"):expect("hello")
    s.d:wait_log("h%.lua:3: boom [^\n]*callback=accept")
    assert.same({ "second number" }, s:said())
  end)

  it("a listener of a script's own object ends the connection whose callback emitted", function()
    local s = serve [[
      local bus = em.EventEmitter.include {}
      bus:on("x", function(word) if word == "raise" then error("boom") end end)
      local H = em.Connection:extend()
      function H:receive_data(data) bus:emit("x", data) self:send_data(data) end
      function H:unbind(err, why) say(err) end
      return H]]
    local other = s:connect()
    s:connect():send("raise"):receive_end()
    s:waits_for("EHANDLER")
    other:send("fine"):expect("fine")
    s.d:wait_log("h%.lua:2: boom %[listener=")
  end)

  it("the script of a connection at one end leaves the other one as it is", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        if data == "inner" then
          self.inner = em.connect("127.0.0.1", 1, { post_init = function() error("inner") end,
            unbind = function(_, err, why) say("inner", err) end })
          self:send_data(tostring(self.inner ~= nil))
        else
          self:send_data(data)
        end
      end
      return H]]
    local c = s:connect()
    c:send("inner"):expect("true")
    s:waits_for("inner EHANDLER")
    c:send("still here"):expect("still here")
    assert.equal(1, s.d:count_log("stack traceback"))
  end)
end)

describe("an error object", function()
  t.auto()

  for what, case in pairs {
    ["that is a table"] = { "error({})", "(error object is a table value)" },
    ["that is nil"] = { "error()", "(error object is a nil value)" },
    ["that is a number"] = { "error(42)", "42" },
    ["that is true"] = { "error(true)", "(error object is a boolean value)" },
    ["that is a function"] = { "error(print)", "(error object is a function value)" },
    ["that is a coroutine"] = { "error(coroutine.create(print))", "(error object is a thread value)" },
    ["with __tostring"] = { "error(setmetatable({}, { __tostring = function() return 'in words' end }))", "in words" },
    ["with a __tostring that raises"] = { "error(setmetatable({}, { __tostring = function() error('again') end }))",
      "error in error handling" },
    ["with a __tostring that gives no string"] = { "error(setmetatable({}, { __tostring = function() return {} end }))",
      "error in error handling" },
    ["with a __tostring that raises itself"] = {
      "local e = {} error(setmetatable(e, { __tostring = function() error(e) end }))", "error in error handling" },
    ["with a __name"] = { "error(setmetatable({}, { __name = 'mine' }))", "(error object is a table value)" },
    ["with bytes of its own"] = { "error('a\\0b\\nc\\xff', 0)", "a" },
    ["that is long"] = { "error(('x'):rep(100000), 0)", ("x"):rep(100000) },
  } do
    it(what .. " is told in words, in a callback and within one", function()
      local s = serve(([[
        local H = em.Connection:extend()
        local function act() %s end
        function H:receive_data(data)
          if data == "a" then act() end
          if data == "b" then em.connect("127.0.0.1", 1, { post_init = act, unbind = self.unbind }) end
          if data == "c" then self:on("x", act) self:emit("x") end
          if data == "d" then em.next_tick(act) end
        end
        function H:unbind(err, why) say(err, #why, why:sub(1, 60)) end
        return H]]):format(case[1]))
      local words = "handler error: " .. case[2]
      for i, word in ipairs { "a", "c", "b" } do
        local c = s:connect()
        c:send(word)
        t.until_true(function() return #s:said() >= i end)
        assert.equal(("EHANDLER %d %s"):format(#words, words:sub(1, 60)), s:said()[i])
        if word == "b" then
          c:send("d")
          s.d:wait_log("callback=next_tick")
        end
      end
    end)
  end
end)

describe("the error handler", function()
  t.auto()

  it("gets message with traceback and the connection", function()
    local s = serve [[
      em.error_handler(function(message, conn)
        say(message:match("h%.lua:%d+: [^\n]*"), message:find("\nstack traceback:\n", 1, true) ~= nil, conn and conn.name or conn)
        if conn then say(conn:get_peername()) conn:send_data("sorry") conn:close_connection(true) end
      end)
      local H = em.Connection:extend { name = "it" }
      function H:receive_data() error("boom") end
      function H:unbind(err, why) say(err) end
      em.next_tick(function() error("tick") end)
      return H]]
    s:waits_for("h.lua:8: tick true nil")
    s:connect():send("x"):receive_end()
    s:waits_for("h.lua:6: boom true it")
    t.until_true(function() return #s:said() == 4 end)
    assert.matches("^127%.0%.0%.1 %d+$", s:said()[3])
    s.d:stop()
    assert.matches("handler error: [^\n]*h%.lua:6: boom", s.d:log()) -- it is logged all the same
  end)

  it("that raises is logged, once for each time, and stays", function()
    local s = serve [[
      em.error_handler(function(message, conn) error("handler's own") end)
      local H = em.Connection:extend()
      function H:receive_data() error("boom") end
      return H]]
    for _ = 1, 3 do s:connect():send("x"):receive_end() end
    s.d:stop()
    assert.equal(3, s.d:count_log("h%.lua:1: handler's own %[callback=error_handler"))
    assert.equal(3, s.d:count_log("h%.lua:3: boom %["))
    assert.equal(6, s.d:count_log("stack traceback"))
  end)

  it("can be replaced and removed, also from within", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        if data == "raise" then em.next_tick(function() error("boom") end) end
        local function two() say("two") em.error_handler(nil) end
        if data == "one" then em.error_handler(function() say("one") em.error_handler(two) end) end
        if data == "gone" then em.error_handler(function() say("gone") end) em.error_handler() end
        self:send_data(".")
      end
      return H]]
    local c = s:connect()
    for _, word in ipairs { "one", "raise", "raise", "raise", "gone", "raise" } do c:send(word):expect(".") end
    t.until_true(function() return s.d:count_log("boom %[") == 4 end)
    assert.same({ "one", "two" }, s:said())
  end)

  it("may stop the process", function()
    local s = serve [[
      em.error_handler(function() em.stop { drain = 0, status = 4 } end)
      em.next_tick(function() em.next_tick(function() error("enough") end) end)
      return {}]]
    assert.equal(4, (s.d:wait()))
  end)

  it("hears of errors in unbind, in hooks and during the stop", function()
    local s = serve [[
      em.error_handler(function(message, conn) say(message:match("h%.lua:%d+: ([^\n]*)"), conn ~= nil) end)
      em.add_shutdown_hook(function() error("hook") end)
      return { unbind = function() error("unbind") end }]]
    s:connect():close()
    s:waits_for("unbind true")
    local c = s:connect()
    s:until_true "return em.connection_count() == 4"
    s.d:signal("INT")
    s.d:wait()
    c:close()
    assert.same({ "unbind true", "hook false", "unbind true" }, s:said())
  end)
end)

describe("under reactord run", function()
  t.auto()

  it("an error outside of a connection's callback ends the run with status 1", function()
    for _, text in ipairs {
      "error('boom')",
      "em.next_tick(function() error('boom') end) em.run()",
      "em.add_timer(0, function() error('boom') end) em.run()",
      "em.run(function() error('boom') end)",
      "em.run_block(function() end) error('boom')",
      "em.run(function() em.stop() end, function() error('boom') end)",
      "em.add_shutdown_hook(function() error('boom') end) em.run_block(function() end)",
      "em.run(function() em.start_server('127.0.0.1', 0, {}):on('close', function() error('boom') end) em.stop() end)",
    } do
      local r = t.script("local em = require 'em'\n" .. text)
      assert.equal(1, r.status, text)
      assert.matches("handler error: [^\n]*script%-%d+%.lua:2: boom", r.err, 1, false)
      assert.matches("stack traceback:\n", r.err)
      assert.equal(1, select(2, r.err:gsub("stack traceback", "")), text)
      assert.equal("", r.out)
    end
  end)

  it("hooks and unbinds are called before it ends", function()
    local r = t.script [[
      local em = require "em"
      em.add_shutdown_hook(function() print("hook") end)
      em.run(function()
        em.connect("127.0.0.1", 1, { unbind = function(_, err, why) print("unbind", why) end })
        em.next_tick(function() error("boom") end)
      end)
      print("never")]]
    assert.equal(1, r.status)
    assert.matches("^hook\nunbind\t", r.out)
  end)

  it("an error in a connection's callback, or with an error handler, does not", function()
    local r = t.script [[
      local em = require "em"
      em.run(function()
        em.connect("127.0.0.1", 1, {
          post_init = function() error("boom") end,
          unbind = function(_, err, why) print(err) em.stop() end,
        })
      end)
      em.error_handler(function(message, conn) print(message:match("tick"), conn) end)
      em.run(function()
        em.next_tick(function() error("tick") end)
        em.next_tick(em.stop)
      end)]]
    assert.equal("EHANDLER\ntick\tnil\n", r.out)
    assert.equal(0, r.status)
  end)

  it("an error in the error handler ends it", function()
    local r = t.script [[
      local em = require "em"
      em.error_handler(function() error("own") end)
      em.run(function() em.next_tick(function() error("boom") end) end)]]
    assert.equal(1, r.status)
    assert.matches("lua:3: boom", r.err)
    assert.matches("lua:2: own", r.err)
  end)

  it("odd error objects of the body are told", function()
    for text, words in pairs {
      ["error({})"] = "(error object is a table value)",
      ["error()"] = "(error object is a nil value)",
      ["error(setmetatable({}, { __tostring = function() return 'words' end }))"] = "words",
      ["error(setmetatable({}, { __tostring = function() error('again') end }))"] = "error in error handling",
      ["local e = {} error(setmetatable(e, { __tostring = function() error(e) end }))"] = "error in error handling",
    } do
      local r = t.script(text)
      assert.equal(1, r.status, text)
      assert.matches("handler error: [^\n]*" .. escape(words), r.err)
    end
  end)

  it("a script that does not compile, is not there, or is bytecode is an error", function()
    local r = t.script("x = = 1")
    assert.equal(1, r.status)
    assert.matches("script%-%d+%.lua:1: unexpected symbol near '='", r.err)
    r = t.reactord { "run", t.path("none.lua") }
    assert.equal(1, r.status)
    assert.matches("none%.lua", r.err)
    r = t.reactord { "run", t.write("byte.lua", string.dump(function() print("never") end)) }
    assert.equal(1, r.status)
    assert.matches("byte%.lua: attempt to load a binary chunk %(mode is 't'%)", r.err)
    assert.equal("", r.out)
  end)
end)

describe("a callback that yields", function()
  t.auto()

  it("from outside of a coroutine is an error that says so", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        if data == "tick" then em.next_tick(function() coroutine.yield(1, 2) end) self:send_data(".") return end
        if data == "sort" then table.sort({ 1, 2, 3 }, coroutine.yield) end
        if data == "ok" then self:send_data(coroutine.wrap(function() coroutine.yield("ok") end)()) return end
        if data == "inner" then em.connect("127.0.0.1", 1, { post_init = coroutine.yield }) self:send_data(".") return end
        if data == "pcall" then pcall(coroutine.yield) end
        coroutine.yield()
      end
      return H]]
    for _ = 1, 2 do
      for _, word in ipairs { "yield", "sort", "pcall" } do s:connect():send(word):receive_end() end
      s:connect():send("tick"):expect(".")
      s:connect():send("inner"):expect(".")
      s:connect():send("ok"):expect("ok")
    end
    s.d:stop()
    assert.equal(6, s.d:count_log("handler error: attempt to yield from outside a coroutine %["))
    assert.equal(4, s.d:count_log("attempt to yield across a C%-call boundary %["))
    assert.matches("h%.lua:8: in function", s.d:log())
    assert.matches("callbacks_stopped=0", s.d:log())
  end)

  -- Lua keeps the place on the stack of the message handler: the next error would call what lies there by then.
  it("takes the handler of an xpcall that it left with it", function()
    local s = serve([[
      local H = em.Connection:extend()
      local function spy() say("called") end
      local function fill(n, ...) if n == 0 then error("boom") end return fill(n - 1, spy, ...) end
      function H:receive_data(data)
        if data == "yield" then xpcall(coroutine.yield, print) end
        if data == "loop" then xpcall(function() while true do end end, print) end
        fill(30)
      end
      return H]], { config = "callback_time = 0.05" })
    for _, way in ipairs { "yield", "loop" } do
      s:connect():send(way):receive_end()
      s:connect():send("x"):receive_end()
    end
    s.d:stop()
    s:expects {}
    assert.equal(2, s.d:count_log("handler error: [^\n]*h%.lua:3: boom %["))
  end)
end)

describe("the log of scripts:", function()
  t.auto()

  it("em.log has four levels, formats, and names place and connection", function()
    local s = serve([[
      local H = em.Connection:extend()
      function H:receive_data(data)
        em.log.debug("a %d", 1)
        em.log.info("b %s %5.2f", "x", 1.5)
        em.log.warn("c 100%")
        em.log.error(42)
        em.log.info(setmetatable({}, { __tostring = function() return "d" end }))
        print("e", nil, 1.5, true)
        em.log.info("f\nsecond line")
        self:send_data(".")
      end
      em.log.info("while loading")
      return H]], { config = "log = { level = 'debug' }" })
    s:connect():send("x"):expect(".")
    local log = s.d:log()
    local fields = "[^\n]*listener=tcp://127%.0%.0%.1:%d+ [^\n]*handler=h [^\n]*"
    assert.matches("debug a 1 %[" .. fields .. "h%.lua:3", log)
    assert.matches("info b x  1%.50 %[" .. fields .. "h%.lua:4", log)
    assert.matches("warn c 100%% %[" .. fields .. "h%.lua:5", log)
    assert.matches("error 42 %[" .. fields .. "h%.lua:6", log)
    assert.matches("info d %[" .. fields .. "h%.lua:7", log)
    assert.matches("info e\tnil\t1%.5\ttrue %[" .. fields .. "h%.lua:8", log)
    assert.matches("info f %[" .. fields .. "h%.lua:9[^\n]*\n\tsecond line\n", log)
    assert.matches("info while loading %[[^\n]*h%.lua:12", log)
  end)

  it("em.log wants arguments that fit", function()
    local s = serve "return {}"
    for call, pattern in pairs {
      ["info()"] = "bad argument #1 to 'info' %(value expected%)",
      ["info('%d', 'x')"] = "bad argument #2 to '[%w_?.]*' %(number expected, got string%)",
      ["info({}, 1)"] = "bad argument #1 to 'info' %(string expected, got table%)",
    } do
      local ok, why = pcall(s.eval, s, "%s", "em.log." .. call)
      assert.is_false(ok)
      assert.matches(pattern, why)
    end
  end)

  it("print writes to standard output under run", function()
    local r = t.script [[
      print("a", 1, nil, setmetatable({}, { __tostring = function() return "b" end }))
      print()
      io.write("c\n")
      require("em").log.warn("to the log")]]
    assert.equal("a\t1\tnil\tb\n\nc\n", r.out)
    assert.matches("warn to the log", r.err)
  end)
end)
