-- Handlers that never come back: whatever loops for ever is stopped, costs its own connection, and the daemon serves on.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local LIMIT = t.sanitized and 0.3 or 0.1 -- callback_time

-- A handler whose clients choose what to do by what they send: "ok" is answered, other words are functions of the text given.
local function chooser(text)
  return ([[
local H = em.Connection:extend()
local acts = {}
local function forever() while true do end end
%s
function H:receive_data(word)
  if word == "ok" then return self:send_data("ok") end
  acts[word](self)
  self:send_data("came back")
end
function H:unbind(err, why) say("unbind", err, why) end
return H]]):format(text)
end

local function start(text)
  return serve(text, { config = "callback_time = " .. LIMIT })
end

local function alive(c)
  c:send("ok")
  c:expect("ok")
end

-- How many callbacks the daemon says at its end that it has stopped.
local function stopped(s)
  s.d:stop()
  return tonumber(s.d:log():match("callbacks_stopped=(%d+)"))
end

-- One client does it, twice as the first time must leave nothing broken; another one goes on.
local function is_stopped(name, act, prelude)
  it("stops a loop in " .. name, function()
    local s = start(chooser((prelude or "") .. "\nfunction acts.act(self)\n" .. act .. "\nend"))
    local other = s:connect()
    alive(other)
    for i = 1, 2 do
      local c = s:connect()
      local began = t.now()
      c:send("act")
      assert.equal("", (c:receive_end()))
      local took = t.now() - began
      assert.is_true(took >= LIMIT * 0.9, ("stopped after %g s"):format(took))
      assert.is_true(took < t.seconds(LIMIT * 3 + 1), ("stopped after %g s"):format(took))
      t.until_true(function() return #s:said() == i end, nil, "unbind")
      assert.equal("unbind EHANDLER handler error: callback stopped: it ran longer than callback_time",
        (s:said()[i]:gsub("error: [^ ]*h%.lua:%d+: ", "error: ")))
      alive(other)
    end
    assert.equal(2, s.d:count_log("callback stopped: it ran longer than callback_time %[[^\n]*\n\tstack traceback:\n"))
    assert.equal(2, stopped(s))
  end)
end

describe("a callback that never comes back:", function()
  t.auto()

  is_stopped("receive_data", "forever()")
  is_stopped("receive_data that calls C functions all the time", "while true do tostring(1) end")
  is_stopped("receive_data that is nothing but a for", "for _ = 1, math.maxinteger do end")
  is_stopped("receive_data by tail calls", "local function f() return f() end f()")
  is_stopped("a repeat with goto", "::again:: goto again")
  is_stopped("a coroutine that is resumed", "local co = coroutine.create(forever) while true do coroutine.resume(co) end")
  is_stopped("a coroutine that is wrapped", "coroutine.wrap(forever)()")
  is_stopped("a coroutine of a coroutine", "coroutine.wrap(function() coroutine.wrap(forever)() end)() forever()")
  is_stopped("coroutines made all the time", "while true do coroutine.wrap(function() tostring(1) end)() end")
  is_stopped("pcall, tried again for ever", "while true do pcall(forever) end")
  is_stopped("nested pcalls", "local function f() pcall(f) forever() end f()")
  is_stopped("xpcall, tried again for ever", "while true do xpcall(forever, function() end) end")
  is_stopped("a message handler of xpcall", "xpcall(error, forever) forever()")
  is_stopped("pcall in a coroutine", "while true do coroutine.wrap(function() while true do pcall(forever) end end)() end")
  is_stopped("a comparator of table.sort", "table.sort({ 1, 2, 3 }, forever)")
  is_stopped("a comparator under pcall", "while true do pcall(table.sort, { 1, 2, 3 }, forever) end")
  is_stopped("a callback of string.gsub", "string.gsub('x', 'x', forever)")
  is_stopped("a callback of load", "load(forever)")
  is_stopped("an iterator", "for _ in forever do end")
  is_stopped("__close", "local x <close> = setmetatable({}, { __close = forever })")
  is_stopped("__close after a loop", "local x <close> = setmetatable({}, { __close = forever }) forever()")
  is_stopped("__close after a comparator's loop",
    "local x <close> = setmetatable({}, { __close = forever }) table.sort({ 1, 2, 3 }, forever)")
  is_stopped("__close of a wrapped coroutine after a comparator's loop", [[
    coroutine.wrap(function()
      local x <close> = setmetatable({}, { __close = forever })
      table.sort({ 1, 2, 3 }, forever)
    end)()]])
  is_stopped("__index", "return setmetatable({}, { __index = forever }).x")
  is_stopped("__eq", "return setmetatable({}, { __eq = forever }) == setmetatable({}, {})")
  is_stopped("__tostring", "tostring(setmetatable({}, { __tostring = forever }))")
  is_stopped("__index that is C", "table.concat(setmetatable({}, { __index = tostring }), '', 1, math.maxinteger)")
  is_stopped("a listener", "self:on('x', forever) self:emit('x')")
  is_stopped("a listener's comparator", "self:on('x', function() table.sort({ 1, 2, 3 }, forever) end) self:emit('x') forever()")
  is_stopped("require", "require('endless')", "package.preload.endless = forever")
  it("a connection's first callback, called from within another's: both end", function()
    local s = start(chooser [[
      function acts.act()
        em.connect("127.0.0.1", 1, { post_init = forever, unbind = function(_, err) say("inner", err) end })
        forever()
      end]])
    s:connect():send("act"):receive_end()
    alive(s:connect())
    assert.equal(1, stopped(s))
    local said = table.concat(s:said(), "\n")
    assert.matches("inner EHANDLER", said, 1, true)
    assert.matches("unbind EHANDLER handler error: callback stopped: it ran longer than callback_time", said, 1, true)
  end)

  it("in each callback of a connection's life", function()
    local s = start([[
      local H = em.Connection:extend()
      local function forever() while true do end end
      function H:receive_data(word)
        if word == "ok" then self:send_data("ok") return end
        if word == "eof" then self.receive_eof = forever end
        if word == "drained" then
          self.drained = forever
          self:set_watermarks(0, 1)
          self:send_data("12345")
        end
        if word == "unbind" then self.unbind = forever self:close_connection() end
        if word == "tick" then em.next_tick(forever) self:close_connection() end
        if word == "timer" then em.add_timer(0, forever) self:close_connection() end
        if word == "own timer" then self:add_timer(0, forever) end
        if word == "connect" then
          local server = em.start_server("127.0.0.1", 0, { post_init = function(peer) em.stop_server(x.server) forever() end })
          x.server = server
          local _, port = server:address()
          em.connect("127.0.0.1", port, { connection_completed = forever })
          self:close_connection()
        end
      end
      return H]])
    local other = s:connect()
    alive(other)
    local count = 0
    for _, word in ipairs { "drained", "unbind", "tick", "timer", "own timer", "connect", "eof" } do
      local c = s:connect()
      c:send(word)
      if word == "eof" then c:shutdown_write() end
      c:receive_end()
      count = count + (word == "connect" and 2 or 1)
      t.until_true(function() return s.d:count_log("callback stopped") == count end, nil, word .. " to be stopped")
      alive(other)
    end
    assert.equal(count, stopped(s))
  end)

  it("in initialize and post_init", function()
    for _, name in ipairs { "initialize", "post_init" } do
      local s = start(([[
        local H = em.Connection:extend()
        local first = true
        function H:%s()
          if first then first = false while true do end end
        end
        function H:receive_data(data) self:send_data(data) end
        return H]]):format(name))
      s:connect():receive_end()
      alive(s:connect())
      assert.equal(1, stopped(s))
      assert.matches("handler=h callback=" .. name, s.d:log())
      t.cleanup()
    end
  end)

  it("in the error handler", function()
    local s = start(chooser [[
      em.error_handler(function() forever() end)
      function acts.act() error("boom") end]])
    for _ = 1, 2 do
      local c = s:connect()
      c:send("act")
      c:receive_end()
    end
    alive(s:connect())
    s:waits_for("unbind EHANDLER handler error: " .. t.dir() .. "/h.lua:5: boom")
    assert.equal(2, stopped(s))
  end)

  it("in __tostring of an error", function()
    local s = start(chooser [[
      function acts.act() error(setmetatable({}, { __tostring = forever })) end]])
    for _ = 1, 2 do
      local c = s:connect()
      c:send("act")
      c:receive_end()
    end
    alive(s:connect())
    stopped(s)
  end)

  it("in __close after an error", function()
    local s = start(chooser [[
      function acts.act()
        local _ <close> = setmetatable({}, { __close = forever })
        error("boom")
      end
      function acts.wrap() coroutine.wrap(acts.act)() end]])
    for _, word in ipairs { "act", "act", "wrap", "wrap" } do
      local c = s:connect()
      c:send(word)
      c:receive_end()
      alive(s:connect())
    end
    assert.equal(4, stopped(s))
  end)

  it("in a shutdown hook, and the others are called", function()
    local s = start [[
      em.add_shutdown_hook(function() say("first") end)
      em.add_shutdown_hook(function() while true do end end)
      em.add_shutdown_hook(function() say("last") end)
      return {}]]
    assert.equal(1, stopped(s))
    assert.same({ "last", "first" }, s:said())
  end)

  it("while the handlers load: the start fails and says where", function()
    for _, text in ipairs { "while true do end", "while true do pcall(function() while true do end end) end" } do
      t.write("h.lua", "\n" .. text)
      local r = t.reactord { "-c", t.write("c.conf", ("callback_time = %g\nhandlers = { %q }\nlisten %q { handler = 'h' }"):format(LIMIT,
        t.dir(), "tcp://127.0.0.1:" .. t.free_port())) }
      assert.equal(1, r.status)
      assert.matches("c%.conf:3: handler 'h': .*callback stopped: it ran longer than callback_time", r.err)
      assert.matches("h%.lua:2: in ", r.err)
    end
  end)

  it("leaves alone a coroutine that was stopped and is resumed in good time later", function()
    local s = start(chooser [[
      local co
      function acts.act() co = coroutine.create(function()
          while not x.enough do end
          return "done"
        end)
        coroutine.resume(co)
      end
      function acts.again(self) x.enough = true self:send_data(tostring(select(2, coroutine.resume(co)))) end]])
    local c = s:connect()
    c:send("act")
    c:receive_end()
    c = s:connect()
    c:send("again")
    c:expect("donecame back")
    assert.equal(1, stopped(s))
  end)

  it("does not mean one that takes half the limit, or many short ones", function()
    local limit = t.seconds(0.6)
    local s = serve(chooser(([[
      local function now() -- of the real clock, as the limit is
        local file = io.open("/proc/uptime")
        local seconds = file:read("n")
        file:close()
        return seconds
      end
      function x.busy(s) local stop = now() + s while now() < stop do end end
      function acts.half() x.busy(%g) end]]):format(limit / 2)), { config = "callback_time = " .. limit })
    local c = s:connect()
    for _ = 1, 3 do
      c:send("half")
      c:expect("came back")
    end
    s:eval([[
      x.count = 0
      local function tick()
        x.busy(%g)
        x.count = x.count + 1
        if x.count < 40 then em.next_tick(tick) end
      end
      em.next_tick(tick)]], limit / 20)
    s:until_true "return x.count == 40"
    assert.equal(0, stopped(s))
  end)

  it("may not be stopped at all if the limit is 0", function()
    local s = serve(chooser [[function acts.act() local stop = os.clock() + 0.3 while os.clock() < stop do end end]],
      { config = "callback_time = 0" })
    local c = s:connect()
    c:send("act")
    c:expect("came back")
    assert.equal(0, stopped(s))
  end)

  it("is watched for without waking an idle daemon", function()
    local s = start(chooser "")
    local c = s:connect()
    alive(c)
    t.sys.sleep(LIMIT * 2) -- the last tick after a callback
    local before = s.d:wakeups()
    t.sys.sleep(LIMIT * 3)
    assert.equal(before, s.d:wakeups())
    alive(c)
  end)
end)

describe("a handler that recurses without end", function()
  t.auto()

  local function costs_one(name, act, pattern)
    it(name, function()
      local s = serve(chooser("function acts.act(self)\n" .. act .. "\nend"), { config = "callback_time = 5" })
      local other = s:connect()
      for _ = 1, 2 do
        local c = s:connect()
        c:send("act")
        c:receive_end()
        alive(other)
      end
      s.d:wait_log(pattern)
      assert.is_true(s.d:count_log("stack traceback") >= 2)
    end)
  end

  costs_one("by calls", "local function f() return 1 + f() end f()", "h%.lua:%d+: stack overflow")
  costs_one("through C", "local function f() return (('x'):gsub('x', f)) end f()", "C stack overflow")
  costs_one("through pcall", "local function f() assert(pcall(f)) end f()", "stack overflow")
  costs_one("through coroutines", "local function f() coroutine.wrap(f)() end f()", "C stack overflow")
  costs_one("through metamethods", "local m = {} m.__index = function(l, k) return l[k + 1] end return setmetatable({}, m)[1]",
    "stack overflow")
  costs_one("through error handlers of its own", "local function f() xpcall(error, f) end f() error('end')", "end")
  costs_one("by connections that connect in post_init", [[
    local C = {}
    function C:post_init() em.connect("127.0.0.1", x.port, C) end
    em.connect("127.0.0.1", x.port, C)
    error("end")]], "end")
  costs_one("by sources nested too deep", "assert(load(('('):rep(10000) .. '1' .. (')'):rep(10000)))", "overflow")
  costs_one("by listeners that emit", "self:on('x', function() self:emit('x') end) self:emit('x')", "stack overflow")
end)
