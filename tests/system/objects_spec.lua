-- em's objects in the daemon: what their errors cost, who may change them, and what is left of many.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function run(text)
  local r = t.script("local em = require 'em' local say = print " .. text)
  assert.equal("", r.err)
  assert.equal(0, r.status)
  return r.out
end

describe("em's objects", function()
  t.auto()

  it("work before and in the loop", function()
    assert.equal("popped 1\nheard 2\nmapped 2 4 6\nspawned 3\nticked 10\nstopped\n", run [[
      local queue, channel = em.Queue(), em.Channel()
      queue:push(1)
      channel:subscribe(function(item) say("heard", item) end)
      local process = em.spawn(function(x) say("spawned", x) end)
      local ticks = 0
      em.run(function()
        queue:pop(function(item) say("popped", item) end)
        channel:push(2)
        em.Iterator({ 1, 2, 3 }, 2):map(function(n, iter)
          em.add_timer(0.01 / n, function() iter:return_value(2 * n) end)
        end, function(values)
          say("mapped", table.unpack(values))
          process:notify(3)
          em.tick_loop(function()
            ticks = ticks + 1
            if ticks == 10 then say("ticked", ticks) return "stop" end
          end):on_stop(function() em.Completion():timeout(0.01):errback(function() say("stopped") em.stop() end) end)
        end)
      end)]]:gsub("\t", " "))
  end)

  it("take an error for that of the connection in whose callback it was raised, and go on", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(word)
        local said = {}
        local function after() said[#said + 1] = "after" end
        local job, channel, queue = em.DefaultDeferrable(), em.Channel(), em.Queue()
        job:callback(function() error("job") end):callback(after)
        channel:subscribe(function() error("channel") end)
        channel:subscribe(after)
        queue:pop(function() error("queue") end)
        queue:pop(after)
        if word == "job" then job:succeed() elseif word == "channel" then channel:push(1) else queue:push(1, 2) end
        say(word, table.concat(said, " "))
      end
      function H:unbind(err, why) say(err, why:gsub("\n.*", "")) end
      return H]]
    for i, word in ipairs { "job", "channel", "queue" } do
      local c = s:connect()
      c:send(word)
      assert.equal("", (c:receive_end()))
      t.until_true(function() return #s:said() == 2 * i end)
      assert.equal(word .. " after", s:said()[2 * i - 1])
      assert.matches("^EHANDLER handler error: .*:%d+: " .. word, s:said()[2 * i])
    end
  end)

  it("cannot be changed by one handler for the others", function()
    local s = serve "return {}"
    for _, name in ipairs { "Queue", "Channel", "Completion", "Pool", "BufferedTokenizer", "DefaultDeferrable" } do
      assert.equal("em." .. name, s:eval("return getmetatable(em." .. name .. "())"))
      assert.is_false(pcall(s.eval, s, "em.%s = nil", name))
    end
    for _, text in ipairs { "em.Iterator.Stop = nil", "getmetatable(em.Iterator).__call = nil", "setmetatable(em.Queue(), nil)" } do
      assert.is_false(pcall(s.eval, s, text), text)
    end
  end)

  it("leave nothing of 100,000 deferrables", function()
    assert.equal("100000\n0\ntrue\n", run [[
      local ended, before = 0
      local weak = setmetatable({}, { __mode = "k" })
      local function count() ended = ended + 1 end
      em.run(function()
        collectgarbage()
        before = collectgarbage("count")
        for i = 1, 100000 do
          local job = em.DefaultDeferrable():callback(count):errback(count):timeout(i % 2 == 0 and 0 or 60)
          weak[job] = true
          if i % 2 == 1 then job:succeed(job) end
        end
        em.tick_loop(function() return ended == 100000 and "stop" or nil end):on_stop(function()
          say(ended)
          say(em.get_timer_count())
          em.next_tick(function()
            collectgarbage()
            collectgarbage()
            say(next(weak) == nil and collectgarbage("count") - before < 4096)
            em.stop()
          end)
        end)
      end)]])
  end)

  it("hold no timers and no values in the daemon when they have ended", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        local jobs = {}
        for i = 1, 50000 do jobs[i] = em.DefaultDeferrable():timeout(60) end
        say(em.get_timer_count())
        for i = 1, 50000 do jobs[i]:succeed(i) end
        self:send_data("done")
      end
      return H]]
    s:connect():send("go"):expect("done")
    assert.same({ "50000" }, s:said())
    assert.equal(0, s:eval "return em.get_timer_count()")
    s.d:stop() -- which looks at the counters
  end)
end)
