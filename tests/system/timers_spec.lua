-- Timers of scripts: when they fire, in what order, and how they are cancelled, restarted and changed.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- Runs a script in which say(...) writes a line; returns what was written.
local function run(text, options)
  local r = t.script("local em = require 'em' local function say(...) print(...) end " .. text, nil, options)
  assert.equal("", r.err)
  assert.equal(0, r.status)
  return r.out
end

describe("timers", function()
  t.auto()

  it("fire once, never early, and not before the next turn", function()
    assert.equal("now\nlater\n", run [[
      em.run(function()
        local began = em.current_time()
        for _, s in ipairs { 0, 0.0001, 0.001, 0.0105, 0.02, 0.0333 } do
          local added = em.current_time()
          em.add_timer(s, function()
            local took = em.current_time() - added
            if took < s then say("early", s, took) end
          end)
        end
        em.add_timer(0, function() say("later") end)
        em.add_timer(0.06, function() em.stop() end)
        say("now")
      end)]])
  end)

  it("fire in the order of their times, and of their making where these are the same", function()
    assert.equal("a b c d e f g h\n", run [[
      local order = {}
      local function mark(word) return function() table.insert(order, word) end end
      em.run(function()
        em.add_timer(0.03, mark "g")
        em.add_timer(0.01, mark "c")
        em.add_timer(0, mark "a")
        em.add_timer(0, mark "b")
        em.add_timer(0.01, mark "d")
        em.add_timer(0.02, mark "e")
        em.add_timer(0.02, mark "f")
        em.add_timer(0.04, mark "h")
        local stop = os.clock() + 0.06 -- all of them are due when the loop looks again
        while os.clock() < stop do end
        em.add_timer(0.01, function() say(table.concat(order, " ")) em.stop() end)
      end)]])
  end)

  it("by the thousand fire in order", function()
    assert.equal("100000\ttrue\t0\n", run([[
      local count, sorted, last_s, last_i = 0, true, -1, 0
      em.run(function()
        for i = 1, 100000 do
          local s = (i * 7919 % 1000) / 10000
          em.add_timer(s, function()
            count = count + 1
            if i < last_i and s <= last_s then sorted = false end -- made earlier for an earlier time, and fired later
            last_s, last_i = s, i
            if count == 100000 then em.next_tick(function() say(count, sorted, em.get_timer_count()) em.stop() end) end
          end)
        end
      end)]], { seconds = 20 }))
  end)

  it("made in a timer with no delay wait for the next turn, so that the others have theirs", function()
    assert.equal("true\n", run [[
      local rounds, ticks = 0, 0
      em.run(function()
        local function again()
          rounds = rounds + 1
          em.next_tick(function() ticks = ticks + 1 end)
          if rounds < 50 then em.add_timer(0, again) else em.next_tick(function() say(ticks == 50) em.stop() end) end
        end
        again()
      end)]])
  end)

  it("have a time that stands still within a turn and is never before the due time", function()
    assert.equal("still\ttrue\nmoved\ttrue\ndue\ttrue\n", run [[
      em.run(function()
        local before = em.current_time()
        local stop = os.clock() + 0.005
        while os.clock() < stop do end
        say("still", em.current_time() == before)
        em.add_timer(0.01, function()
          say("moved", em.current_time() > before)
          say("due", em.current_time() >= before + 0.01)
          em.stop()
        end)
      end)]])
  end)

  it("are cancelled: before, by each other, by themselves, twice", function()
    assert.equal("self\nfirst\nlast\n0\n", run [[
      em.run(function()
        local never = em.add_timer(0.001, function() say("never") end)
        never:cancel()
        never:cancel()
        em.cancel_timer(never)
        local second
        em.add_timer(0.002, function() say("first") second:cancel() end)
        second = em.add_timer(0.002, function() say("second") end)
        local own
        own = em.add_periodic_timer(0.001, function() say("self") own:cancel() own:cancel() end)
        own:cancel()
        own:restart()
        em.add_timer(0.02, function() say("last") own:cancel() em.next_tick(function() say(em.get_timer_count()) em.stop() end) end)
      end)]])
  end)

  it("are counted while they wait", function()
    assert.equal("0\t1\t2\t1\nin it\t0\nin a periodic one\t0\t0\n", run [[
      em.run(function()
        local a = em.get_timer_count()
        local one = em.add_timer(5, function() end)
        local b = em.get_timer_count()
        local two = em.add_periodic_timer(5, function() end)
        local c = em.get_timer_count()
        one:cancel()
        say(a, b, c, em.get_timer_count())
        two:cancel()
        em.add_timer(0, function()
          say("in it", em.get_timer_count())
          local p
          p = em.add_periodic_timer(0, function()
            local inside = em.get_timer_count()
            p:cancel()
            say("in a periodic one", inside, em.get_timer_count())
            em.stop()
          end)
        end)
      end)]])
  end)

  it("may be started again, sooner or later, also after they have fired", function()
    assert.equal("true\nfired\t1\nfired\t2\nfired\t3\ntrue\tfalse\n", run [[
      em.run(function()
        local began, count, timer = em.current_time(), 0, nil
        timer = em.add_timer(30, function()
          count = count + 1
          say("fired", count)
          if count == 1 then
            timer:restart() -- inside its own function
          elseif count == 2 then
            em.add_timer(0.001, function() timer:restart() end) -- after it
          else
            local fired = em.current_time()
            local late = em.add_timer(0.002, function() say("never") end)
            late:restart(5)
            em.add_timer(0.01, function()
              say(em.current_time() - began >= 0.003, late:interval() ~= 5)
              em.stop()
            end)
          end
        end)
        say(timer:restart(0.001) == timer)
      end)]])
  end)

  it("repeat until they are cancelled, inside their function too", function()
    assert.equal("1 2 3 4\ttrue\n", run [[
      em.run(function()
        local seen, began, timer = {}, em.current_time(), nil
        timer = em.add_periodic_timer(0.005, function()
          table.insert(seen, #seen + 1)
          if #seen == 4 then
            timer:cancel()
            local took = em.current_time() - began
            em.add_timer(0.02, function() say(table.concat(seen, " "), took >= 0.02) em.stop() end)
          end
        end)
      end)]])
  end)

  it("as em.Timer and em.PeriodicTimer are the same", function()
    assert.equal("once\nperiodic\nperiodic\n", run [[
      em.run(function()
        em.Timer(0.001, function() say("once") end)
        local count, timer = 0, nil
        timer = em.PeriodicTimer(0.005, function()
          count = count + 1
          say("periodic")
          if count == 2 then timer:cancel() em.stop() end
        end)
      end)]])
  end)

  it("take a new interval from the next start on", function()
    assert.equal("0.01\n0.001\ntrue\n", run [[
      em.run(function()
        local last, timer = em.current_time(), nil
        timer = em.add_periodic_timer(0.01, function()
          if timer:interval() == 0.01 then
            last = em.current_time()
            say(timer:interval(0.001))
          else
            say(em.current_time() - last < 0.5)
            em.stop()
          end
        end)
        say(timer:interval())
      end)]])
  end)

  it("with an interval of 0 do not starve the rest", function()
    assert.equal("4\n", run [[
      em.run(function()
        local count, timer = 0, nil
        timer = em.add_periodic_timer(0, function()
          count = count + 1
          if count == 4 then timer:cancel() em.add_timer(0.01, function() say(count) em.stop() end) end
        end)
      end)]])
  end)

  it("at a fixed rate keep to their beats and skip what was missed; others count from their end", function()
    assert.equal("fixed\ttrue\ttrue\nloose\ttrue\n", run [[
      local function busy(s) local stop = os.clock() + s while os.clock() < stop do end end
      local beat = 0.04
      em.run(function()
        local began, beats, timer = em.current_time(), {}, nil
        timer = em.add_periodic_timer(beat, function()
          table.insert(beats, (em.current_time() - began) / beat)
          if #beats == 1 then busy(2.4 * beat) end
          if #beats == 3 then
            timer:cancel()
            local on_beat = true
            for _, b in ipairs(beats) do on_beat = on_beat and b % 1 < 0.8 end
            say("fixed", on_beat, beats[2] >= 4 and beats[3] >= 5) -- 2 and 3 were missed, and not made up for
            local count, ended = 0, nil
            timer = em.add_periodic_timer(beat, function()
              count = count + 1
              if count == 1 then
                busy(1.5 * beat)
                em.next_tick(function() ended = em.current_time() end)
              else
                say("loose", em.current_time() - ended >= beat - 1.5 * beat + beat * 0.5)
                em.stop()
              end
            end)
          end
        end, { fixed_rate = true })
      end)]])
  end)

  it("go on after an error, which is logged; one-shots do not come again", function()
    local s = serve [[
      x.periodic, x.once = 0, 0
      em.next_tick(function()
        x.timer = em.add_periodic_timer(0.005, function() x.periodic = x.periodic + 1 error("beat " .. x.periodic) end)
        em.add_timer(0.001, function() x.once = x.once + 1 error("once") end)
      end)
      return {}]]
    s:until_true "return x.periodic >= 3 and x.once == 1"
    s:eval "x.timer:cancel()"
    assert.equal(1, s:eval "return x.once")
    assert.equal(0, s:eval "return em.get_timer_count()")
    s.d:stop()
    assert.matches("handler error: [^\n]*h%.lua:4: once %[[^\n]*callback=timer", s.d:log())
    assert.matches("h%.lua:3: beat 3", s.d:log())
    assert.equal(1, s.d:count_log("h%.lua:3: beat 1 "))
  end)

  it("may lie as far in the future as numbers go", function()
    assert.equal("fine\n", run [[
      em.run(function()
        for _, s in ipairs { 1e7, 11912000000, 1e18, math.huge, math.maxinteger, 1 << 62 } do
          em.add_timer(s, function() say("too early", s) end)
          em.add_periodic_timer(s, function() say("too early", s) end, { fixed_rate = true })
        end
        em.add_timer(0.02, function() say("fine") em.stop() end)
      end)]])
  end)

  it("refuse what is no time, no function, no timer", function()
    local s = serve "return {}"
    local function raises(pattern, text)
      local ok, why = pcall(s.eval, s, (text:gsub("%%", "%%%%")))
      assert.is_false(ok, text)
      assert.matches(pattern, why, 1, false)
    end
    for _, name in ipairs { "add_timer", "add_periodic_timer", "Timer", "PeriodicTimer" } do
      raises("bad argument #1 to '" .. name .. "' %(seconds must not be negative%)", ("em.%s(-0.001, print)"):format(name))
      raises("bad argument #1 to '" .. name .. "' %(seconds must not be negative%)", ("em.%s(0/0, print)"):format(name))
      raises("bad argument #1 to '" .. name .. "' %(number expected, got no value%)", ("em.%s()"):format(name))
      raises("bad argument #2 to '" .. name .. "' %(function expected, got no value%)", ("em.%s(1)"):format(name))
      raises("bad argument #2 to '" .. name .. "' %(function expected, got table%)", ("em.%s(1, {})"):format(name))
    end
    raises("bad argument #3 to 'add_periodic_timer'", "em.add_periodic_timer(1, print, true)")
    raises("bad argument #3 to 'add_periodic_timer' %(unknown option 'fixed_rat'", "em.add_periodic_timer(1, print, { fixed_rat = true })")
    raises("bad argument #1 to 'cancel_timer' %(timer expected, got no value%)", "em.cancel_timer()")
    raises("bad argument #1 to 'cancel_timer' %(timer expected, got string%)", "em.cancel_timer('x')")
    raises("bad argument #1 to 'cancel_timer' %(timer expected, got FILE%*%)", "em.cancel_timer(io.stdout)")
    raises("bad argument #1 to 'restart' %(seconds", "em.add_timer(0, print):restart(-1)")
    raises("bad argument #1 to 'interval' %(number expected, got boolean%)", "em.add_timer(0, print):interval(true)")
    assert.equal("function", s:eval "return type(em.add_timer(0, setmetatable({}, { __call = function() end })).cancel)")
  end)

  it("of a connection get it, and end with it", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(word)
        if word == "once" then x.timer = self:add_timer(0.001, function(c) c:send_data(c == self and "self" or "other") end) end
        if word == "often" then
          x.count = 0
          x.timer = self:add_periodic_timer(0.001, function(c) x.count = x.count + (c == self and 1 or 1000) end)
        end
        if word == "wait" then x.timer = self:add_timer(30, function() say("never") end) end
        if word == "raise" then self:add_timer(0.001, function() error("boom") end) end
      end
      function H:unbind(err, why)
        say(err, why)
        say(self:add_timer(0, print))
        say(self:add_periodic_timer(0, print))
      end
      return H]]
    local c = s:connect()
    c:send("once")
    c:expect("self")
    c:send("often")
    s:until_true "return x.count and x.count >= 3"
    assert.is_true(s:eval "return x.count < 1000")
    c:close()
    s:waits_for("nil eof")
    s:until_true "return em.get_timer_count() == 0"
    assert.same({ "nil eof", "nil closed ENOTCONN", "nil closed ENOTCONN" }, s:said())
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.timer:restart()" })
    c = s:connect()
    c:send("wait")
    s:until_true "return em.get_timer_count() == 1"
    c:close()
    s:until_true "return em.get_timer_count() == 0"
    c = s:connect()
    c:send("raise")
    c:receive_end()
    s:waits_for("EHANDLER handler error: " .. t.dir() .. "/h.lua:9: boom")
  end)

  it("of a connection that has wiped itself do not miss it", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data()
        local timer = self:add_timer(0, function() end)
        x.timer = timer
        self:add_timer(0.01, function(c) c:close_connection() end)
        em.next_tick(function()
          for k in next, self do rawset(self, k, nil) end
          for _ = 1, 100 do collectgarbage("step") end
        end)
      end
      return H]]
    for _ = 1, 3 do
      local c = s:connect()
      c:send("x")
      s:until_true "return x.timer"
      c:close()
      s:until_true "for _ = 1, 100 do collectgarbage('step') end return em.get_timer_count() == 0"
      s:eval "for _ = 1, 100 do collectgarbage('step') end return x.timer:restart()"
      s:eval "x.timer = nil"
    end
  end)

  it("leave nothing behind in the daemon, however they end", function()
    local s = serve [[
      em.next_tick(function()
        for i = 1, 5000 do
          local timer = em.add_timer(i % 3 == 0 and 0 or 50, function() end)
          if i % 3 == 1 then timer:cancel() end
        end
        em.add_periodic_timer(0.001, function() end)
      end)
      return {}]]
    s:until_true "return em.get_timer_count() <= 1668"
    s.d:stop()
  end)
end)
