-- em.run, em.run_block, em.stop: what runs when, what ends how, and the exit status.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function script(text, options)
  return t.script("local em = require 'em' local say = print " .. text, nil, options)
end

local function run(text, options)
  local r = script(text, options)
  assert.equal("", r.err)
  assert.equal(0, r.status)
  return r.out
end

describe("em.run", function()
  t.auto()

  it("calls its function, waits for em.stop, calls tail, returns", function()
    assert.equal("before\nfn\ntimer\ntail\nafter\n", run [[
      say("before")
      em.run(function()
        say("fn")
        em.add_timer(0.001, function() say("timer") em.stop() end)
      end, function() say("tail") end)
      say("after")]])
  end)

  it("ends only by em.stop, even with nothing to wait for", function()
    local d = t.start { script = "require('em').run(function() print('in') end)", wait = "in", counters = false }
    t.sys.sleep(0.1)
    assert.is_false(d:ended())
    d:signal("TERM")
    assert.equal(0, (d:wait()))
  end)

  it("not called, the script ends when nothing is left to wait for", function()
    assert.equal("body\ntick\ntimer\n", run [[
      em.add_timer(0.005, function() say("timer") end)
      em.next_tick(function() say("tick") end)
      say("body")]])
    assert.equal("", run "")
    assert.equal("unbound\teof\n", run [[
      local server
      server = em.start_server("127.0.0.1", 0, { post_init = function(self) server:stop() self:close_connection() end })
      local _, port = server:address()
      em.connect("127.0.0.1", port, { unbind = function(_, err, why) say("unbound", why) end })]])
  end)

  it("inside the running loop calls its function and returns", function()
    assert.equal("1\n2\n3\n4\n5\n6\n", run [[
      em.run(function()
        say(1)
        em.run(function() say(2) end)
        say(3)
        em.add_timer(0, function()
          em.run(function() say(4) em.run(function() say(5) end) end)
          say(6)
          em.stop()
        end)
      end)]])
  end)

  it("may be called again after a stop, also when what was open then has ended", function()
    assert.equal("1\tstopped\n2\tstopped\n3\tstopped\nend\n", run [[
      for i = 1, 3 do
        em.run(function()
          local server = em.start_server("127.0.0.1", 0, {})
          local _, port = server:address()
          em.connect("127.0.0.1", port, {
            connection_completed = function() em.stop() end,
            unbind = function(_, err, why) say(i, why) end,
          })
          em.add_timer(30, function() say("never") end)
          em.add_periodic_timer(0.001, function() end)
        end)
        assert(em.get_timer_count() == 0 and em.connection_count() == 0)
      end
      say("end")]])
  end)

  it("returns at once when the stop came first", function()
    assert.equal("fn\nafter\n", run [[
      em.run(function() em.stop() say("fn") end)
      say("after")]])
  end)

  it("can be left by an error in its function, and called again", function()
    assert.equal("false\tboom\nfine\n", run [[
      say(pcall(em.run, function() error("boom", 0) end))
      em.run(function() say("fine") em.stop() end)]])
  end)

  it("works in functions and pcalls of the body, and tells who runs", function()
    assert.equal("false\ttrue\ttrue\tfalse\ntrue\n", run [[
      local before, inside, callback = em.reactor_running()
      local function go()
        em.run(function()
          inside = em.reactor_running()
          em.next_tick(function() callback = em.reactor_running() em.stop() end)
        end)
      end
      local ok = pcall(go)
      say(before, inside, callback, em.reactor_running())
      say(ok)]])
  end)

  it("run_block runs and stops; the loop does not run afterwards", function()
    assert.equal("block\nafter\tfalse\n", run [[
      em.run_block(function() say("block") end)
      say("after", em.reactor_running())]])
  end)

  it("a body that yields is told so", function()
    for _, text in ipairs { "coroutine.yield()", "em.run(function() coroutine.yield() end)",
      "em.add_timer(0, print) coroutine.yield(1, 2)" } do
      local r = script("\n" .. text .. "\nsay('never')")
      assert.equal("", r.out)
      assert.equal(1, r.status)
      assert.matches("attempt to yield from outside a coroutine", r.err)
      assert.matches("script%-%d+%.lua:2: in ", r.err)
    end
  end)
end)

describe("em.stop", function()
  t.auto()

  it("lets the turn finish, calls hooks last in first out, then unbinds what is open", function()
    assert.equal("turn goes on\nhook 3\nhook 2\nhook 1\nunbind\tnil\tstopped\nunbind\tnil\tstopped\ntail\n", run [[
      local H = { unbind = function(_, err, why) say("unbind", err, why) end }
      em.add_shutdown_hook(function() say("hook 1") end)
      em.add_shutdown_hook(function() say("hook 2") end)
      em.run(function()
        local server = em.start_server("127.0.0.1", 0, H)
        local _, port = server:address()
        em.connect("127.0.0.1", port, H)
        em.add_shutdown_hook(function() say("hook 3") end)
        server:on("accept", function()
          em.stop()
          em.next_tick(function() say("turn goes on") end)
        end)
      end, function() say("tail") end)]])
  end)

  it("calls each hook once, goes on when one raises, and takes hooks that hooks add", function()
    local r = script [[
      em.error_handler(function(message) say("error", message:match("hook %d")) end)
      em.add_shutdown_hook(function() say("hook 1") end)
      em.add_shutdown_hook(function() error("hook 2") end)
      em.add_shutdown_hook(function() say("hook 3") em.add_shutdown_hook(function() say("hook 4") end) end)
      em.run_block(function() end)
      em.run_block(function() say("again") end)]]
    assert.equal("hook 3\nhook 4\nerror\thook 2\nhook 1\nagain\n", r.out)
    assert.equal(0, r.status)
  end)

  it("has an alias, and tells that it is under way", function()
    assert.equal("false\ttrue\nhook\ttrue\nunbind\ttrue\nafter\tfalse\n", run [[
      em.add_shutdown_hook(function() say("hook", em.stopping()) end)
      em.run(function()
        em.connect("127.0.0.1", 1, { unbind = function() say("unbind", em.stopping()) end })
        local before = em.stopping()
        em.stop_event_loop()
        say(before, em.stopping())
      end)
      say("after", em.stopping())]])
  end)

  it("drops timers and unsent output by default, and waits for output if asked to", function()
    local function peer_gets(stop)
      local server = t.listen()
      local d = t.start { wait = false, counters = false, script = ([[
        local em = require "em"
        em.run(function()
          em.add_timer(0.05, function() print("timer fired") end)
          em.connect("127.0.0.1", %d, {
            connection_completed = function(self)
              self:set_watermarks(0, 50000000)
              self:send_data(("x"):rep(30000000))
              em.stop(%s)
            end,
            unbind = function(_, err, why) print("unbind", err, why) end,
          })
        end)]]):format(server.port, stop) }
      local peer = server:accept()
      d:wait_log(stop == "" and "unbind\tnil\tstopped" or "")
      local bytes = peer:receive_end()
      peer:close()
      assert.equal(0, (d:wait()))
      assert.matches("unbind\tnil\tstopped", d:log())
      assert.is_nil(d:log():find("timer fired"))
      return #bytes
    end
    assert.is_true(peer_gets "" < 30000000)
    assert.equal(30000000, peer_gets "{ drain = 20 }")
  end)

  it("does not wait for longer than drain says, does not spin, and not for a peer that has all it gets", function()
    local server = t.listen()
    local text = [[
      local em = require "em"
      em.run(function()
        em.connect("127.0.0.1", %d, { connection_completed = function(self)
          self:set_watermarks(0, 50000000)
          self:send_data(("x"):rep(%d))
          em.stop { drain = %g }
        end, unbind = function(_, err, why) print("unbind", err, why) end })
      end)]]
    local began = t.now()
    local d = t.start { wait = false, counters = false, script = text:format(server.port, 30000000, 0.5) }
    server:accept() -- and does not read
    d:wait_log("unbind\tnil\tstopped")
    local took = t.now() - began
    assert.is_true(took >= 0.45 and took < t.seconds(3), tostring(took))
    assert.equal(0, (d:wait()))

    began = t.now()
    d = t.start { wait = false, counters = false, script = text:format(server.port, 10, 30) }
    local peer = server:accept() -- reads, and does not close
    peer:expect("xxxxxxxxxx")
    assert.equal(0, (d:wait()))
    assert.is_true(t.now() - began < t.seconds(5))

    d = t.start { wait = false, counters = false, script = text:format(server.port, 30000000, t.seconds(1)) }
    server:accept()
    t.until_true(function() -- nothing is done for a while
      local before = d:cpu()
      t.sys.sleep(0.1)
      return d:cpu() == before and not d:ended()
    end, 3, "the script to sleep while it drains")
    d:wait()
  end)

  it("decides the exit status, the last one given", function()
    assert.equal(0, script("em.run(function() em.stop() end)").status)
    assert.equal(7, script("em.run(function() em.stop { status = 7 } end)").status)
    assert.equal(7, script("em.run(function() em.stop { status = 7 } em.stop() em.stop { drain = 0 } end)").status)
    assert.equal(3, script("em.run(function() em.stop { status = 7 } em.stop { status = 3 } end)").status)
    assert.equal(5, script("em.stop { status = 5 }").status)
    assert.equal(4, script("em.run(function() os.exit(4) end)").status)
    assert.equal(1, script("em.run(function() os.exit(false) end)").status)
    assert.equal(0, script("em.run(function() os.exit(true) end)").status)
    assert.equal(0, script("em.run(function() os.exit() end)").status)
  end)

  it("is not undone by what hooks and unbinds do", function()
    local r = script [[
      em.add_shutdown_hook(function() em.stop() end)
      em.run(function()
        em.next_tick(function() error("boom") end)
      end)]]
    assert.equal(1, r.status)
    r = script [[
      local connects, refused = 0, nil
      local H = {}
      function H:unbind()
        connects = connects + 1
        if connects > 100 then os.exit(9) end
        local why
        self.next, why, refused = em.connect("127.0.0.1", 1, H)
        em.add_timer(0, function() say("never") end)
        em.add_periodic_timer(0, function() say("never") end)
        em.next_tick(function() say("never") end)
        em.start_server("127.0.0.1", 0, H)
      end
      em.run(function()
        em.connect("127.0.0.1", 1, H)
        em.stop()
      end)
      say(connects < 5, refused)
      em.run(function() em.connect("127.0.0.1", 1, { unbind = function(_, err) say(err) em.stop() end }) end)]]
    assert.equal("", r.err)
    assert.equal("true\tECANCELED\nECONNREFUSED\n", r.out)
    assert.equal(0, r.status)
  end)

  it("ends a connection that would reconnect for ever", function()
    local r = script([[
      local H, ends = {}, 0
      function H:unbind(err, why)
        ends = ends + 1
        self.result = table.pack(self:reconnect("127.0.0.1", 1))
        if em.stopping() then say(why, self.result[1], self.result[3]) end
      end
      em.run(function()
        em.connect("127.0.0.1", 1, H)
        em.add_timer(0.05, function() em.stop() end)
      end)
      say(ends > 1)]], { seconds = 5 })
    assert.equal("", r.err)
    assert.matches("^[^\n]*\tnil\tECANCELED\ntrue\n$", r.out)
  end)

  it("refuses other arguments", function()
    local s = serve "return {}"
    for argument, pattern in pairs {
      ["42"] = "table expected, got number",
      ["{ drain = -1 }"] = "drain must be a number of seconds",
      ["{ drain = 'x' }"] = "drain must be a number of seconds",
      ["{ status = 256 }"] = "status must be a whole number from 0 to 255",
      ["{ status = 1.5 }"] = "status must be a whole number from 0 to 255",
      ["{ drian = 1 }"] = "unknown option 'drian'",
    } do
      local ok, why = pcall(s.eval, s, "em.stop(" .. argument .. ")")
      assert.is_false(ok)
      assert.matches("bad argument #1 to 'stop' (" .. pattern, why, 1, true)
    end
    assert.is_false(s:eval "return em.stopping()")
  end)
end)

describe("a stop that drains", function()
  t.auto()

  -- A run that has more queued than its peer takes, and stops.
  local function draining(drain)
    local server = t.listen()
    local d = t.start {
      script = ([[
        local em = require "em"
        em.run(function()
          em.connect("127.0.0.1", %d, {
            connection_completed = function(self)
              for _ = 1, 300 do self:send_data(("x"):rep(100000)) end
              em.stop { drain = %s }
              print("stop")
            end,
            unbind = function(_, err, why) print(err, why) end,
          })
        end)]]):format(server.port, drain),
      wait = "stop", counters = false,
    }
    return d, server
  end

  it("may wait for ever", function()
    local d, server = draining("math.huge")
    local c = server:accept()
    t.sys.sleep(0.3)
    assert.is_false(d:ended())
    assert.equal(30000000, #c:receive(30000000))
    c:expect_eof()
    c:close()
    assert.equal(0, (d:wait()))
  end)

  it("is ended by a signal", function()
    local d, server = draining("60")
    local c = server:accept()
    t.sys.sleep(0.1)
    local began = t.now()
    d:signal("TERM")
    assert.equal(0, (d:wait()))
    assert.is_true(t.now() - began < t.seconds(5))
    assert.matches("nil\tstopped", d:log())
    c:close()
  end)
end)

describe("programs that a script starts", function()
  t.auto()

  it("have the usual meaning of SIGPIPE", function()
    assert.equal("nil\tsignal\t13\n", run [[
      say(os.execute("kill -PIPE $$"))
    ]])
  end)
end)

describe("in the daemon", function()
  t.auto()

  it("shutdown hooks that add themselves again do not keep it from ending", function()
    local s = serve [[
      local n = 0
      local function hook() n = n + 1 em.add_shutdown_hook(hook) if n <= 3 then say("hook", n) end end
      em.add_shutdown_hook(hook)
      return {}]]
    s.d:stop()
    assert.same({ "hook 1", "hook 2", "hook 3" }, s:said())
  end)

  it("em.stop drains and exits: hooks, then unbinds", function()
    local s = serve [[
      local H = em.Connection:extend()
      em.add_shutdown_hook(function() say("hook 1") end)
      em.add_shutdown_hook(function() say("hook 2") end)
      function H:receive_data(data)
        if data == "stop" then em.stop { drain = 0.05, status = 3 } say(em.stopping()) end
      end
      function H:unbind(err, why) say("unbind", err, why) end
      return H]]
    s:connect():send("stop")
    assert.equal(3, (s.d:wait()))
    assert.same({ "true", "hook 2", "hook 1", "unbind nil stopped" }, s:said())
    assert.matches("stopped: .* connections=0 listeners=0 timers=0 references=0 ", s.d:log())
  end)

  it("a connection that goes on may end by itself within the drain", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        if data == "stop" then em.stop { drain = 30 } else self:send_data(data) end
      end
      function H:unbind(err, why) say("unbind", err, why) end
      return H]]
    local c = s:connect()
    c:send("stop")
    s.d:wait_log("draining: 1 connection")
    c:send("still here"):expect("still here")
    c:close()
    assert.equal(0, (s.d:wait()))
    assert.same({ "unbind nil eof" }, s:said())
  end)

  it("em.stop may not be called while handlers load", function()
    t.write("h.lua", "require('em').stop()\nreturn {}")
    local r = t.reactord { "-c", t.write("c.conf", ("handlers = { %q }\nlisten %q { handler = 'h' }"):format(t.dir(),
      "tcp://127.0.0.1:" .. t.free_port())) }
    assert.equal(1, r.status)
    assert.matches("h%.lua:1: .*while handlers load", r.err)
  end)

  it("a refused reload has no effect, timers and ticks of its files included", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data) self:send_data(data) end
      return H]]
    t.write("h.lua", [[
      local em = require "em"
      em.add_timer(0, function() em.log.info("TIMER") end)
      em.add_periodic_timer(0.001, function() em.log.info("TIMER") end)
      em.next_tick(function() em.log.info("TICK") end)
      em.add_shutdown_hook(function() em.log.info("HOOK") end)
      error("no")]])
    s.d:signal("HUP")
    s.d:wait_log("reload refused")
    assert.equal(0, s:eval "return em.get_timer_count()")
    s:connect():send("x"):expect("x")
    s.d:stop()
    assert.is_nil(s.d:log():find("TIMER"))
    assert.is_nil(s.d:log():find("TICK"))
    assert.is_nil(s.d:log():find("HOOK"))
  end)

  it("connections are counted with listeners", function()
    local s = serve "return {}"
    assert.equal(3, s:eval "return em.connection_count()") -- two listeners and the one that asks
    local c = s:connect()
    s:until_true "return em.connection_count() == 4"
    s:eval "x.server = em.start_server('127.0.0.1', 0, {})"
    assert.equal(5, s:eval "return em.connection_count()")
    s:eval "x.server:stop()"
    c:close()
    s:until_true "return em.connection_count() == 3"
    assert.same({ 1, 1 }, { s:eval "return em.process()" })
    assert.is_true(s:eval "return em.reactor_running()")
  end)

  it("what opens anew in each unbind does not keep it from ending", function()
    local s = serve [[
      local H = em.Connection:extend()
      local Again = {}
      function Again:unbind() x.again = em.connect("127.0.0.1", x.port, Again) em.add_timer(0, print) end
      function H:post_init() em.connect("127.0.0.1", 1, Again) end
      return H]]
    s:connect()
    s:until_true "return x.again"
    local began = t.now()
    s.d:stop()
    assert.is_true(t.now() - began < t.seconds(3))
  end)
end)
