-- em.on_signal: signals for scripts; which ones the daemon keeps; what a reload does to them.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

describe("on_signal", function()
  t.auto()

  it("calls the function, with and without SIG, by the newest one; nil takes it back", function()
    local s = serve [[
      em.run(function()
        em.on_signal("WINCH", function() say("never") end)
        em.on_signal("SIGWINCH", function(name) say("got", name) end)
        em.on_signal("RTMIN+5", function(name) say("got", name) end)
      end)
      return {}
    ]]
    s:eval "return 1"
    s.d:signal("WINCH")
    s:waits_for("got WINCH")
    t.run { "sh", "-c", "kill -39 " .. s.d.pid } -- the C library counts from 34
    s:expects { "got WINCH", "got RTMIN+5" }
    assert.is_true(s:eval [[ return em.on_signal("WINCH", nil) ]])
    assert.is_true(s:eval [[ return em.on_signal("WINCH") ]])
    s.d:signal("WINCH")
    t.run { "sh", "-c", "kill -39 " .. s.d.pid } -- the C library counts from 34
    s:expects { "got WINCH", "got RTMIN+5", "got RTMIN+5" }
    assert.is_true(s:eval [[ return em.on_signal("QUIT", function() say("quit") em.on_signal("QUIT", nil) end) ]])
    s.d:signal("QUIT")
    s:waits_for("quit")
  end)

  it("names the signal that a handler may not have", function()
    local s = serve "return {}"
    for _, name in ipairs { "HUP", "INT", "TERM", "USR1", "USR2", "PIPE", "CHLD", "RTMIN+1", "SEGV", "ABRT" } do
      local ok, why = s:eval("return pcall(em.on_signal, %q, print)", name)
      assert.is_false(ok)
      assert.is_truthy(why:find("the daemon keeps SIG" .. name .. " for itself", 1, true), why)
      ok, why = s:eval("return pcall(em.on_signal, %q, nil)", "SIG" .. name)
      assert.is_false(ok, why)
    end
    for _, name in ipairs { "KILL", "STOP" } do
      local _, why = s:eval("return pcall(em.on_signal, %q, print)", name)
      assert.is_truthy(why:find("SIG" .. name .. " cannot be caught", 1, true), why)
    end
    for _, name in ipairs { "", "NONE", "sigquit", "SIG", "RTMIN+99", "RTMIN-1", "RTMAX+1", "RTMIN+", "RTMIN+1x", "11" } do
      local _, why = s:eval("return pcall(em.on_signal, %q, print)", name)
      assert.is_truthy(why:find("there is no signal '" .. name .. "'", 1, true), why)
    end
    assert.is_false((s:eval [[ return pcall(em.on_signal, "QUIT", 12) ]]))
    assert.is_false((s:eval [[ return pcall(em.on_signal, 12, print) ]]))
  end)

  it("an error in the function is logged and ends nothing", function()
    local s = serve [[
      em.run(function() em.on_signal("WINCH", function() error("bad signal") end) em.on_signal("CONT", function() say("cont") end) end)
      return {}
    ]]
    local c = s:connect()
    s:eval "return 1"
    s.d:signal("WINCH")
    s.d:wait_log("bad signal.*callback=on_signal")
    s.d:signal("CONT")
    s:waits_for("cont")
    c:expect_silence(0.01)
  end)

  it("ends with its generation; in between the signal does not do what it does by default", function()
    local s = serve [[
      em.run(function() em.on_signal("QUIT", function() say("old") end) em.on_signal("VTALRM", function() say("old alarm") end) end)
      return {}
    ]]
    s:eval "return 1"
    local held = s:connect()
    s.d:signal("QUIT")
    s:waits_for("old")
    t.write("h.lua", [[
      local em = require "em" local x = require "shared"
      em.run(function() em.on_signal("QUIT", function() x.say("new") end) end)
      return {}]])
    s.d:signal("HUP")
    for _ = 1, 20 do s.d:signal("QUIT") end
    s.d:wait_log("generation 2 serves")
    s.d:signal("QUIT")
    s:waits_for("new")
    local before = s.d:count_log("{{old}}")
    s.d:signal("QUIT")
    t.until_true(function() return s.d:count_log("{{new}}") >= 2 end)
    assert.equal(before, s.d:count_log("{{old}}"))
    assert.equal(0, s.d:count_log("old alarm"))
    held:close()
  end)

  it("cannot be set while a handler's file loads", function()
    t.write("early.lua", [[require("em").on_signal("QUIT", print) return {}]])
    local result = t.reactord { "-t", "-c", t.write("early.conf",
      ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "early" }\n'):format(t.dir(), t.free_port())) }
    assert.equal(1, result.status)
    assert.is_truthy(result.err:find("nothing can be opened while handlers load", 1, true), result.err)
  end)
end)

describe("on_signal in a script", function()
  t.auto()

  for _, name in ipairs { "HUP", "INT", "TERM" } do
    it("takes " .. name .. ", which then does not end the run, until it is given back", function()
      local d = t.start { script = ([[
        local em = require "em"
        em.run(function()
          local count = 0
          em.on_signal(%q, function(name)
            count = count + 1
            print("got", name, count)
            if count == 2 then em.on_signal(name, nil) print("given back") end
          end)
          print("ready")
        end, function() print("tail") end)
      ]]):format(name), unchecked = true }
      d:signal(name)
      d:wait_log("got\t" .. name .. "\t1")
      d:signal(name)
      d:wait_log("given back")
      d:signal(name)
      d:wait()
      assert.equal(0, d.status)
      assert.is_nil(d:log():find("tail", 1, true))
      assert.equal(2, d:count_log("got\t"))
    end)
  end

  it("takes USR1 and USR2; the others stay kept", function()
    local d = t.start { script = [[
      local em = require "em"
      em.run(function()
        em.on_signal("USR1", function() print("one") end)
        em.on_signal("SIGUSR2", function() print("two") em.stop { status = 5 } end)
        print(pcall(em.on_signal, "CHLD", print))
        print(pcall(em.on_signal, "RTMIN+1", print))
        print("ready")
      end)
    ]], unchecked = true }
    d:signal("USR1")
    d:wait_log("one")
    d:signal("USR2")
    assert.equal(5, d:wait())
    assert.equal(2, d:count_log("the daemon keeps SIG"))
  end)

  it("does not keep a script alive that waits for nothing else", function()
    local result = t.script [[ require("em").on_signal("TERM", print) print("end") ]]
    assert.equal(0, result.status)
    assert.equal("end\n", result.out)
  end)

  it("a handler that is run alone may take them too", function()
    t.write("alone.lua", [[
      local em = require "em"
      em.run(function() em.on_signal("TERM", function() em.log.info("not yet") em.on_signal("TERM") end) end)
      return {}]])
    local d = t.start { args = { "run", t.path("alone.lua"), "-l", "tcp://127.0.0.1:" .. t.free_port() } }
    d:signal("TERM")
    d:wait_log("not yet")
    d:signal("TERM")
    assert.equal(0, d:wait())
  end)
end)
