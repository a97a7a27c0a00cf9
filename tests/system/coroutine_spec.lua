-- Coroutines: em.go, em.await, em.sleep, reading from connections; in scripts and in the daemon, with errors, limits, ends and reloads.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function script(text)
  return t.script("local em = require 'em' local say = print " .. text)
end

local function run(text)
  local r = script(text)
  assert.equal("", r.err)
  assert.equal(0, r.status)
  return r.out
end

-- A guard that says when it is closed.
local guard = [[local function guard(word) return setmetatable({}, { __close = function() say("closed " .. word) end }) end ]]

describe("em.go", function()
  t.auto()

  it("starts at once and returns a deferrable of the results", function()
    assert.equal("in\t1\tnil\nbehind\nslept\nresults\t2\tnil\t3\nat once\tx\n", run [[
      local d = em.go(function(a, b) say("in", a, b) em.sleep(0.001) say("slept") return 2, nil, 3 end, 1, nil)
      d:callback(function(...) say("results", ...) end)
      say("behind")
      em.await(d)
      em.go(function() return "x" end):callback(function(x) say("at once", x) end)]])
  end)

  it("awaits what succeeds and what fails, before and after it is known", function()
    assert.equal("1\t2\nnil\tno\t3\nafter\nnil\nnil\tlate\n", run [[
      local d = em.DefaultDeferrable()
      d:succeed(1, 2)
      say(em.await(d))
      d = em.DefaultDeferrable()
      d:fail("no", 3)
      say(em.await(d))
      d = em.DefaultDeferrable()
      em.add_timer(0.001, function() d:succeed("after") end)
      say(em.await(d))
      d = em.DefaultDeferrable()
      em.add_timer(0.001, function() d:fail() end)
      say(em.await(d))
      d = em.DefaultDeferrable():timeout(0.001, "late")
      say(em.await(d))]])
  end)

  it("is woken once by a deferrable that changes its mind", function()
    assert.equal("first\nslept\n", run [[
      local d = em.DefaultDeferrable()
      d:callback(function() d:fail("second") end)
      em.next_tick(function() d:succeed("first") end)
      local e = em.DefaultDeferrable()
      em.go(function() say(em.await(e)) local from = em.current_time() em.sleep(0.02) say(em.current_time() - from >= 0.02 and "slept") end)
      e:callback(function() e:fail("second") end)
      e:succeed("first")
      em.sleep(0.05)]])
  end)

  it("takes turns with others, in the order in which they were woken", function()
    assert.equal("1 2 3 1 2 3 1 2 3 ", run [[
      for i = 1, 3 do em.go(function() for _ = 1, 3 do io.write(i, " ") em.sleep(0) end end) end]])
  end)

  it("sleeps never too short", function()
    assert.equal("true\n", run [[
      local from = em.current_time()
      em.sleep(0.03)
      say(em.current_time() - from >= 0.03)]])
  end)

  it("is refused with a reason where nothing can wait", function()
    local cannot = "NAME cannot wait inside of a callback, or of a C function that calls back %(require, table.sort"
    local wrapped = "NAME cannot wait inside of coroutine.wrap or coroutine.resume: call it in the function given to em.go"
    local outside = "NAME waits, which only a coroutine of em.go can"
    for text, why in pairs {
      ["table.sort({ 1, 2 }, function() em.sleep(1) end)"] = { cannot, "em.sleep" },
      ["('x'):gsub('x', function() em.await(d) end)"] = { cannot, "em.await" },
      ["tostring(setmetatable({}, { __tostring = function() em.await(d) end }))"] = { cannot, "em.await" },
      ["package.preload.m = function() em.sleep(1) end require 'm'"] = { cannot, "em.sleep" },
      ["table.sort({ 1, 2 }, function() c:read(1) end)"] = { cannot, "read" },
      ["coroutine.wrap(function() em.sleep(1) end)()"] = { wrapped, "em.sleep" },
      ["coroutine.wrap(function() c:read_line() end)()"] = { wrapped, "read_line" },
      ["tick(function() em.sleep(1) end)"] = { outside, "em.sleep" },
      ["tick(function() em.await(d) end)"] = { outside, "em.await" },
      ["tick(function() c:read_all() end)"] = { outside, "read_all" },
      ["em.await(1)"] = { "bad argument #1 to 'NAME' %(deferrable expected, got number%)", "await" },
      ["em.go(1)"] = { "bad argument #1 to 'NAME' %(function expected, got number%)", "go" },
      ["em.sleep('x')"] = { "bad argument #1 to 'NAME' %(number expected, got string%)", "sleep" },
      ["em.sleep(-1)"] = { "bad argument #1 to 'NAME' %(seconds must not be negative%)", "sleep" },
      ["c:read(-1)"] = { "bad argument #1 to 'NAME' %(must not be negative%)", "read" },
      ["c:read(1.5)"] = { "bad argument #1 to 'NAME' %(whole number expected, got float%)", "read" },
      ["c:read_line('x')"] = { "bad argument #1 to 'NAME' %(whole number from 0 on expected%)", "read_line" },
      ["c.receive_data = print c:read(1)"] = { "NAME and a receive_data do not go together", "read" },
    } do
      do
        local r = script([[
          local c, d = em.connect("127.0.0.1", 1), em.DefaultDeferrable()
          local function tick(fn) local e = em.DefaultDeferrable() em.next_tick(function() e:succeed(pcall(fn)) end)
            local _, m = em.await(e) error(m) end
          local ok, message = pcall(function() ]] .. text .. [[ end)
          io.write(tostring(message))
          os.exit(0)]])
        assert.matches((why[1]:gsub("NAME", why[2])), r.out, nil, text)
      end
    end
  end)

  it("refuses to start while handlers load", function()
    local r = t.reactord { "check", "-c", t.write("bad.conf", ('listen "tcp://127.0.0.1:1" { handler = %q }'):format(
      t.write("bad.lua", "require('em').go(print) return {}"))) }
    assert.equal(1, r.status)
    assert.matches("nothing can be opened while handlers load", r.err)
  end)

  it("an error is told with its traceback, fails the deferrable, and ends a script that does not handle it", function()
    local r = script "\nem.go(function() em.sleep(0) error('boom') end):errback(function(m) say('failed', m) end) em.sleep(5) say('never')"
    assert.matches("^failed\t[^\n]+:2: boom\n$", r.out)
    assert.equal(1, r.status)
    assert.matches("handler error: [^\n]+:2: boom [^\n]*callback=coroutine[^\n]*\n%s+stack traceback:", r.err)
  end)

  it("what is to be closed is closed after an error, and when the script ends", function()
    assert.equal("E\nclosed a\nnil\tboom\nend\nclosed b\n", script(guard .. [[
      em.error_handler(function() say("E") end)
      say(em.await(em.go(function() local _ <close> = guard "a" em.sleep(0) error("boom", 0) end)))
      em.go(function() local _ <close> = guard "b" em.await(em.DefaultDeferrable()) end)
      say("end")]]).out)
  end)
end)

describe("a script's body", function()
  t.auto()

  it("awaits from its first line, in em.run and in its tail", function()
    assert.equal("1\n2\n3\n4\n5\n", run [[
      em.sleep(0.001) say(1)
      em.run(function() em.sleep(0.001) say(2) em.add_timer(0.001, em.stop) end, function() say(3) em.sleep(0.001) say(4) end)
      em.sleep(0.001)
      say(5)]])
  end)

  it("that waits for nothing ends, closing what it has to close", function()
    assert.equal("closed body\n", run(guard .. [[
      local _ <close> = guard "body"
      em.await(em.DefaultDeferrable())
      say("never")]]))
  end)

  it("is ended by a stop, and by a signal", function()
    assert.equal("stop\nclosed body\n", run(guard .. [[
      local _ <close> = guard "body"
      em.add_timer(0.001, function() say("stop") em.stop() end)
      em.sleep(60)]]))
    local d = t.start { script = "local em = require 'em' print('in') em.sleep(60)", wait = "in", counters = false }
    d:signal("TERM")
    assert.equal(0, (d:wait()))
  end)

  it("that yields by itself is told so, also later", function()
    local r = script "em.sleep(0) coroutine.yield()"
    assert.equal(1, r.status)
    assert.matches("attempt to yield from outside a coroutine", r.err)
  end)
end)

-- A server whose coroutine says what the three methods return.
local reader = [[
local H = em.Connection:extend()
x.ways = {
  lines = function(self) repeat local r = table.pack(self:read_line(20)) say("line", table.unpack(r, 1, r.n)) until not r[1] end,
  threes = function(self) repeat local r = table.pack(self:read(3)) say("three", table.unpack(r, 1, r.n)) until not r[1] end,
  all = function(self) say("all", self:read_all()) say("again", self:read_all()) say("then", self:read(1)) end,
}
function H:post_init() em.go(function() x.ways[x.way](self) self:send_data("bye") end) end
function H:unbind(_, why) say("unbind", why) end
return H]]

describe("reading", function()
  t.auto()

  -- Sends text in two pieces, cut at each place; each time the same is said.
  local function split(way, text, expected)
    local s = serve(reader)
    s:eval("x.way = '" .. way .. "'")
    local all = {}
    for at = 0, #text do
      local c = s:connect()
      if at > 0 then
        c:send(text:sub(1, at))
        s:until_true(("return em.connection_count() > 0"))
      end
      c:send(text:sub(at + 1))
      c:shutdown_write()
      assert.equal("bye", c:receive_all())
      for _, line in ipairs(expected) do table.insert(all, line) end
      table.insert(all, "unbind eof")
      s:waits_for("unbind eof")
      t.until_true(function() return #s:said() >= #all end)
      c:close()
    end
    s:expects(all)
    s.d:stop()
  end

  it("lines, cut at every place", function()
    split("lines", "one\r\n\ntwo\nlast", { "line one", "line ", "line two", "line last", "line nil eof nil" })
    split("lines", "one\n", { "line one", "line nil eof nil" })
  end)

  it("numbers of bytes, cut at every place", function()
    split("threes", "abcdefgh", { "three abc", "three def", "three gh", "three nil eof nil" })
  end)

  it("all there is, cut at every place", function()
    split("all", "abcde", { "all abcde", "again ", "then nil eof nil" })
  end)

  it("a line that is too long is an error and stays; one of just that length is none", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function()
          say(self:read_line(3)) say(self:read_line(3)) say(self:read_line(3)) say(self:read_line(3)) say(self:read(4))
          say(self:read_all(2)) say(self:read_all(3))
        end)
      end
      return H]]
    local c = s:connect():send("abc\ndef\r\nghij")
    s:expects { "abc", "def", "nil a line of more than 3 bytes ELIMIT", "nil a line of more than 3 bytes ELIMIT", "ghij" }
    c:send("xyz")
    s:waits_for("nil more than 2 bytes ELIMIT")
    c:close()
    s:waits_for("xyz")
  end)

  it("what a peer that resets has sent before, then why", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init() em.go(function() say(self:read(2)) say(self:read(100)) say(self:read(100)) say(self:read_all()) end) end
      return H]]
    local c = s:connect():send("abcd")
    s:waits_for("ab")
    c:reset()
    s:expects { "ab", "cd", "nil Connection reset by peer ECONNRESET", "nil Connection reset by peer ECONNRESET" }
  end)

  it("what has come before the first read", function()
    assert.equal("hello\nhello\neof\n", run [[
      local server = em.start_server("127.0.0.1", 0, { post_init = function(self) self:send_data("hello\nhello\n")
        self:close_connection_after_writing() end })
      local _, port = server:address()
      local c = em.connect("127.0.0.1", port)
      em.sleep(0.05)
      say(c:read_line()) say(c:read_line()) say((select(2, c:read_line())))
      server:stop()]])
  end)

  it("of a connection that fails, of a child, after a reconnect, of one that has long ended", function()
    local port = t.free_port()
    assert.equal("nil\tConnection refused\tECONNREFUSED\nout\n\nfirst\nsecond\nnil\tclosed\n", run(([[
      local c = em.connect("127.0.0.1", %d)
      say(c:read(1))
      say(em.popen({ "echo", "out" }, nil):read_all())
      local n = 0
      local server = em.start_server("127.0.0.1", 0, { post_init = function(self) n = n + 1
        self:send_data(n == 1 and "first\nrest" or "second\n") end })
      local _, to = server:address()
      local d = em.connect("127.0.0.1", to)
      say(d:read_line())
      d:close_connection()
      em.sleep(0.01)
      d:reconnect("127.0.0.1", to)
      say(d:read_line())
      d:close_connection()
      em.sleep(0.01)
      say((select(1, d:read(1))), (select(2, d:read(1))))
      server:stop()]]):format(port)))
  end)

  it("by two at once is refused", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function() say(self:read(1)) end)
        em.go(function() say(pcall(self.read, self, 1)) end)
      end
      return H]]
    local c = s:connect()
    s:waits_for("false another coroutine reads from this connection")
    c:send("x")
    s:waits_for("x")
  end)

  it("holds the peer while nobody reads, and goes on when somebody does", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init()
        x.go = em.DefaultDeferrable()
        em.go(function()
          say(self:read(1))
          em.await(x.go)
          local n = 1
          repeat local data = self:read(10000) n = n + (data and #data or 0) until not data
          say(n)
        end)
      end
      return H]]
    local size = 16 * 1024 * 1024
    local c = s:connect({ buffer = 65536 })
    local sent, quiet = 0, 0
    repeat
      local n = c:send_some(("x"):rep(math.min(65536, size - sent)))
      sent, quiet = sent + n, n == 0 and quiet + 1 or 0
      if n == 0 then t.sys.sleep(0.005) end
    until quiet > 20 or sent == size
    assert.is_true(sent < size, "nobody holds the peer")
    assert.is_true(s:eval("return collectgarbage('count')") < 4096)
    s:eval("x.go:succeed()")
    c:send(("x"):rep(size - sent))
    c:shutdown_write()
    s:expects { "x", tostring(size) }
  end)

  it("is not in the way of a handler without any coroutine, nor of listeners", function()
    local s = serve [[
      local H = em.Connection:extend()
      x.n = 0
      function H:post_init()
        if x.listens then
          em.go(function() em.sleep(0.01) end)
          self:on("data", function(data) x.n = x.n + #data end)
        end
      end
      return H]]
    local c = s:connect()
    c:send(("x"):rep(1024 * 1024))
    c:shutdown_write()
    c:expect_eof()
    s:eval "x.listens = true"
    c = s:connect()
    c:send(("x"):rep(1024 * 1024))
    c:shutdown_write()
    c:expect_eof()
    assert.equal(1024 * 1024, s:eval "return x.n")
  end)
end)

describe("a connection's coroutine", function()
  t.auto()

  it("is ended with it: what it has to close is closed, before unbind", function()
    local s = serve(guard .. [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function() local _ <close> = guard "sleeper" em.sleep(60) say("never") end):errback(function(m) say("failed", m) end)
        em.go(function() local _ <close> = guard "waiter" em.await(x.never) say("never") end)
        em.go(function() local _ <close> = guard "reader" say(self:read(10)) say(self:read(10)) em.sleep(0) say("never") end)
      end
      function H:receive_eof() self:close_connection() end
      function H:unbind(_, why) say("unbind", why) em.go(function() em.sleep(0.01) say("nobody's") end) end
      x.never = em.DefaultDeferrable()
      return H]])
    local c = s:connect():send("abc")
    s:until_true("return em.connection_count() >= 3")
    c:close()
    s:waits_for("nobody's")
    local said = table.concat(s:said(), "; ")
    for _, word in ipairs { "closed sleeper", "failed closed", "closed waiter", "abc", "closed reader" } do
      local at = said:find(word, 1, true)
      assert.is_truthy(at, word .. " is missing in " .. said)
      assert.is_true(at < said:find("unbind", 1, true), said)
    end
    assert.is_nil(said:find("never", 1, true))
    s.d:stop()
  end)

  it("fails it alone by an error, also by a later one", function()
    local s = serve [[
      em.error_handler(function(m, c) say("handler", m:match(": (%l+)"), c == x.c) end)
      local H = em.Connection:extend()
      function H:receive_data(word)
        x.c = self
        em.go(function() if word == "later" then em.sleep(0.001) end if word ~= "hello" then error(word) end self:send_data("hi") end)
      end
      function H:unbind(err, why) say(err, why:match(": (%l+)$")) end
      return H]]
    local other = s:connect()
    for _, word in ipairs { "once", "later" } do
      local c = s:connect():send(word)
      c:expect_eof()
    end
    other:send("hello"):expect("hi")
    s:expects { "handler once true", "EHANDLER once", "handler later true", "EHANDLER later" }
    assert.equal(2, s.d:count_log("handler error: [^\n]*callback=coroutine"))
  end)

  it("has callback_time in each of its pieces", function()
    for _, loop in ipairs { "while true do end", "while true do pcall(function() while true do end end) end",
      "table.sort({ 1, 2, 3 }, function() while true do end end)" } do
      local s = serve(guard .. [[
        local H = em.Connection:extend()
        function H:receive_data(word)
          em.go(function() if word == "later" then em.sleep(0) end ]] .. loop .. [[ end)
        end
        function H:unbind(err, why) say(err, why:match("it ran longer than callback_time")) end
        return H]], { config = "callback_time = 0.05\nslow_callback = 0.02" })
      for n, word in ipairs { "now", "later" } do
        s:connect():send(word):expect_eof()
        t.until_true(function() return #s:said() == n end)
        assert.equal("EHANDLER it ran longer than callback_time", s:said()[n])
      end
      assert.equal(4, s:eval "return 4")
      s.d:stop()
      assert.equal("2", s.d:log():match("stopped: [^\n]*callbacks_stopped=(%d+)"))
    end
  end)

  it("that is stopped closes what it has to close, under a limit", function()
    local s = serve([[
      local H = em.Connection:extend()
      function H:receive_data()
        em.go(function()
          local _ <close> = setmetatable({}, { __close = function() say("closed") while true do end end })
          em.sleep(0)
          while true do end
        end)
      end
      return H]], { config = "callback_time = 0.05" })
    s:connect():send("x"):expect_eof()
    s:waits_for("closed")
    assert.equal(4, s:eval "return 4")
  end)

  it("goes on in old code after a reload while its connection lives; nobody's ends", function()
    local s = serve(guard .. [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function()
          for line in function() return self:read_line() end do em.sleep(0.01) self:send_data("old " .. line .. "\n") end
        end)
      end
      function x.nobody() em.go(function() local _ <close> = guard "nobody" em.sleep(60) end) end
      function H:handover() return {} end
      function H:takeover() end
      return H]], { config = "log = { level = 'debug' }" })
    local c = s:connect():send("a\n"):expect("old a\n")
    s:eval "em.next_tick(x.nobody)"
    c:send("b\n")
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s:waits_for("closed nobody")
    c:expect("old b\n"):send("c\n"):expect("old c\n")
    assert.equal(1, s.d:count_log("stays on generation 1: a coroutine of it has not ended"))
    c:shutdown_write()
    c:expect_eof()
    s.control:close()
    s.d:wait_log("generation 1 has ended")
  end)

  it("begins in takeover, and is ended when that fails", function()
    local text = [[
      local H = em.Connection:extend()
      function H:post_init() self.receive_data = function(_, data) self:send_data("callback ", data) end end
      function H:handover() return {} end
      function H:takeover()
        em.go(function() local _ <close> = guard "new" self:send_data("coroutine ", self:read(1)) em.sleep(60) end)
        FAILS
      end
      return H]]
    local prelude = "local em, x = require 'em', require 'shared' local say = x.say "
    local s = serve(guard .. text:gsub("FAILS", ""))
    local c = s:connect():send("a"):expect("callback a")
    t.write("h.lua", prelude .. guard .. text:gsub("FAILS", "error('boom')"))
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s:waits_for("closed new")
    c:send("b"):expect("callback b")
    t.write("h.lua", prelude .. guard .. text:gsub("FAILS", ""))
    s.d:signal("HUP")
    s.d:wait_log("generation 3 serves")
    c:send("c"):expect("coroutine c")
    c:reset()
    t.until_true(function() return #s:said() == 2 end)
  end)

  it("is one of ten thousand that wait", function()
    local s = serve [[
      local H = em.Connection:extend()
      x.ended, x.d = 0, em.DefaultDeferrable()
      function H:receive_data(word)
        for i = 1, 10000 do
          em.go(function() if i % 2 == 0 then em.sleep(60) else em.await(x.d) em.sleep(0.01) end x.ended = x.ended + 1 end)
        end
        self:send_data("started")
      end
      return H]]
    local c = s:connect():send("x"):expect("started")
    local full = s:eval "return collectgarbage('count')"
    assert.is_true(full > 5000)
    s:eval "x.d:succeed()"
    s:until_true "return x.ended == 5000"
    c:close()
    s:until_true(("for _ = 1, 100 do collectgarbage('step') end return collectgarbage('count') < %f"):format(full / 3))
    assert.equal(5000, s:eval "return x.ended")
    s.d:stop()
  end)

  it("that waits when the daemon stops is ended", function()
    local s = serve(guard .. [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function() local _ <close> = guard "mine" say(self:read(1)) em.sleep(60) end)
        em.next_tick(function() em.go(function() local _ <close> = guard "nobody's" em.sleep(60) end) say("ready") end)
      end
      return H]])
    s:connect()
    s:waits_for("ready")
    s.d:stop()
    local said = table.concat(s:said(), "; ")
    assert.is_truthy(said:find("closed mine", 1, true), said)
    assert.is_truthy(said:find("closed nobody's", 1, true), said)
  end)
end)

describe("a coroutine that the end of its connection has woken", function()
  t.auto()

  it("subscribes to nothing that would outlive the connection", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init()
        em.go(function()
          self:read_line()
          say("woken", self:subscribe("news"))
        end)
        self:add_timer(0.01, function() self:close_connection() end)
      end
      return H]]
    for _ = 1, 3 do s:connect() end
    s:expects { "woken nil closed ENOTCONN", "woken nil closed ENOTCONN", "woken nil closed ENOTCONN" }
    s:until_true "return em.connection_count() == 3"
    for _ = 1, 2 do
      s:eval [[ for _ = 1, 100 do collectgarbage("step") end em.channel("news"):push("x") ]]
    end
    s:eval "return em.VERSION"
    s.d:stop()
  end)
end)
