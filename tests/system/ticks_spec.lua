-- next_tick and schedule: order, turns, isolation.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function run(text)
  local r = t.script("local em = require 'em' local say = print " .. text)
  assert.equal("", r.err)
  assert.equal(0, r.status)
  return r.out
end

describe("next_tick", function()
  t.auto()

  it("calls functions later, in order, each once", function()
    assert.equal("at once\n1\n2\n3\n", run [[
      em.run(function()
        for i = 1, 3 do em.next_tick(function() say(i) end) end
        em.next_tick(function() em.stop() end)
        say("at once")
      end)]])
  end)

  it("lets those that are added meanwhile wait for the next turn", function()
    assert.equal("a\nb\na's\nb's\n", run [[
      em.run(function()
        em.next_tick(function()
          say("a")
          em.next_tick(function() say("a's") end)
        end)
        em.next_tick(function()
          say("b")
          em.next_tick(function() say("b's") em.stop() end)
        end)
      end)]])
  end)

  it("does not starve timers and connections when it is called for ever", function()
    local s = serve [[
      local function tick() em.next_tick(tick) end
      em.next_tick(tick)
      em.next_tick(function() em.add_timer(0.01, function() x.fired = true end) end)
      local H = em.Connection:extend()
      function H:receive_data(data) self:send_data(data) end
      return H]]
    s:until_true "return x.fired"
    s:connect():send("hello"):expect("hello")
    s.d:stop()
  end)

  it("comes after the input of its turn and before what was sent is written", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        em.next_tick(function() self:send_data("tick ") end)
        self:send_data("data ")
      end
      return H]]
    s:connect():send("x"):expect("data tick ")
  end)

  it("takes a callable object", function()
    assert.equal("called\n", run [[
      em.run(function()
        em.next_tick(setmetatable({}, { __call = function() say("called") em.stop() end }))
      end)]])
  end)

  it("goes on with the next function when one raises, and keeps the order", function()
    local s = serve [[
      em.next_tick(function()
        for i = 1, 5 do
          em.next_tick(function()
            say(i)
            if i % 2 == 1 then error("boom " .. i) end
          end)
        end
        em.next_tick(function() x.done = true end)
      end)
      return {}]]
    s:until_true "return x.done"
    s.d:stop()
    assert.same({ "1", "2", "3", "4", "5" }, s:said())
    assert.equal(3, s.d:count_log("handler error: [^\n]*h%.lua:5: boom %d %[callback=next_tick"))
    assert.equal(3, s.d:count_log("stack traceback:"))
    assert.matches("handler_errors=3 ", s.d:log())
  end)

  it("has the errors of a turn told once each to the error handler", function()
    local r = t.script [[
      local em = require "em"
      em.error_handler(function(message, conn) print(message:match("boom (%d)"), conn) end)
      em.run(function()
        em.next_tick(function() error("boom 1") end)
        em.next_tick(function() error("boom 2") end)
        em.next_tick(function() print("stop") em.stop() end)
      end)]]
    assert.equal("1\tnil\n2\tnil\nstop\n", r.out)
    assert.equal(0, r.status)
  end)

  it("holds 200,000 functions", function()
    assert.equal("200000\n", run [[
      local count = 0
      em.run(function()
        for _ = 1, 200000 do em.next_tick(function() count = count + 1 end) end
        em.next_tick(function() say(count) em.stop() end)
      end)]])
  end)

  it("gives the memory of what has run back", function()
    local s = serve [[
      function x.round(n)
        x.left = n
        for _ = 1, n do em.next_tick(function() x.left = x.left - 1 end) end
      end
      function x.kilobytes()
        for _ = 1, 200 do collectgarbage("step") end
        return collectgarbage("count")
      end
      return {}]]
    local function round()
      s:eval "x.round(20000)"
      s:until_true "return x.left == 0"
      return s:eval "return x.kilobytes()"
    end
    round()
    local before = round()
    for _ = 1, 5 do round() end
    local after = round()
    assert.is_true(after < before * 1.3 + 100, ("%g KB, then %g KB"):format(before, after))
  end)

  it("called while handlers load waits until they serve", function()
    local s = serve [[
      say("loading", em.reactor_running())
      em.next_tick(function() say("tick", em.reactor_running()) end)
      em.schedule(function() say("scheduled", em.reactor_running()) end)
      em.run(function() say("run", em.reactor_running()) end)
      say("loaded")
      return {}]]
    s:expects { "loading false", "loaded", "tick true", "scheduled true", "run true" }
  end)

  it("called before em.run waits for it; what is left at a stop is dropped", function()
    assert.equal("body\nrun\ntick\nagain\nfresh\n", run [[
      em.next_tick(function() say("tick") end)
      say("body")
      em.run(function()
        say("run")
        em.next_tick(function() em.stop() em.next_tick(function() say("left over") end) end)
      end)
      em.run(function()
        say("again")
        em.next_tick(function() say("fresh") em.stop() end)
      end)]])
  end)

  it("wants a function, and so do its relatives", function()
    local s = serve "return {}"
    for _, call in ipairs { "next_tick", "schedule", "run_block", "add_shutdown_hook", "run" } do
      for _, argument in ipairs(call == "run" and { "42", "'x'", "{}" } or { "", "nil", "42", "'x'", "{}" }) do
        local ok, why = pcall(s.eval, s, ("em.%s(%s)"):format(call, argument))
        assert.is_false(ok, call .. argument)
        assert.matches("eval:1: bad argument #1 to '" .. call .. "' %(function expected, got ", why)
      end
    end
    local ok, why = pcall(s.eval, s, "em.run(function() end, 42)")
    assert.is_false(ok)
    assert.matches("bad argument #2 to 'run' %(function expected, got number%)", why)
    ok, why = pcall(s.eval, s, "em.error_handler('x')")
    assert.is_false(ok)
    assert.matches("bad argument #1 to 'error_handler' %(function expected, got string%)", why)
  end)
end)

describe("schedule", function()
  t.auto()

  it("calls at once where the loop runs", function()
    assert.equal("1\n2\n3\n", run [[
      em.run(function()
        say(1)
        em.schedule(function() say(2) end)
        say(3)
        em.stop()
      end)]])
  end)

  it("lets an error out to its caller", function()
    assert.equal("false\tinside\n", run [[
      em.run(function()
        say(pcall(em.schedule, function() error("inside", 0) end))
        em.stop()
      end)]])
  end)
end)
