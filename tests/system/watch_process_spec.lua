-- em.watch_process: the ends of processes, by pidfd.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"

local handler = [[
local P = em.ProcessWatch:extend()
function P:process_exited(status) say(self.pid == x.pid, status and (status.exited or status.signaled and "signal " .. status.signaled)) end
function P:unbind(err, why) say("unbind", err, why) end
x.P = P
return {}
]]

describe("em.watch_process", function()
  t.auto()

  it("tells of the end of somebody else's process, without a status", function()
    local s = serve(handler)
    local d = t.start { args = { "run", t.write("sleeper.lua", [[require("em").run()]]) }, wait = false, unchecked = true }
    s:eval("x.pid = %d x.w = em.watch_process(x.pid, x.P)", d.pid)
    assert.equal(d.pid, s:eval "return x.w.pid")
    d:kill()
    s:expects { "true nil", "unbind nil exited" }
    s.d:stop()
  end)

  -- Both the watch and popen learn of the end from the kernel in the same turn, and popen takes the status.
  it("has the status of children, whoever reaps them", function()
    local s = serve(handler)
    local before = 0
    for _, case in ipairs { { "exit 3", "3" }, { "exit 0", "0" }, { "kill -9 $$", "signal 9" } } do
      for order = 1, 2 do
        s:eval([[
          local c = em.popen({ "sh", "-c", "read line; %s" })
          x.pid = c:get_pid()
          assert(em.watch_process(x.pid, x.P))
          if %d == 2 then assert(em.watch_process(x.pid, x.P)) end
          c:send_data("go\n")]], case[1], order)
        before = before + 2 * order
        t.until_true(function() return #s:said() == before end)
        for i = before - 2 * order + 1, before do
          local line = s:said()[i]
          assert.is_true(line == "true " .. case[2] or line == "unbind nil exited", line)
        end
      end
    end
    s.d:stop()
  end)

  it("has the status of children that a script has started by other means", function()
    local result = t.script([[
      local em = require "em"
      local pipe = io.popen("echo $$; read line; exit 7", "r")
      local W = em.ProcessWatch:extend()
      function W:process_exited(status) print(status.exited, self.pid == pid) print(pipe:close()) end
      function W:unbind(err, why) print(err, why) end
      pid = pipe:read "n"
      assert(em.watch_process(pid, W))
    ]])
    assert.equal("7\ttrue\nnil\texit\t7\nnil\texited\n", result.out)
    assert.equal("", result.err)
  end)

  it("can be stopped, and ends with the daemon", function()
    local s = serve(handler)
    local own = require("testsys").getpid()
    s:eval("x.pid = %d x.w = em.watch_process(x.pid, x.P)", own)
    assert.is_true(s:eval "return x.w:stop_watching()")
    s:expects { "unbind nil closed" }
    s:eval "em.watch_process(x.pid, x.P)"
    s.d:stop()
    assert.same({ "unbind nil closed", "unbind nil stopped" }, s:said())
  end)

  it("says that there is no such process, and raises for what is none", function()
    local s = serve(handler)
    local pid = t.run({ "sh", "-c", "echo $$" }).out:match "%d+"
    local result, message, code = s:eval("return em.watch_process(%s, x.P)", pid)
    assert.same({ nil, ("watch process %s: No such process"):format(pid), "ESRCH" }, { result, message, code })
    for _, bad in ipairs { "0", "-1", "1.5", "'x'", "1 << 40" } do
      local ok, why = s:eval("return pcall(function() em.watch_process(%s, x.P) end)", bad)
      assert.is_false(ok)
      assert.matches("bad argument #1", why)
    end
    s.d:stop()
  end)
end)
