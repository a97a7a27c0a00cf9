-- em.system and em.DeferrableChildProcess: whole outputs of whole commands.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- Runs a script to its end; returns what it printed.
local function output_of(script, options)
  local result = t.script("local em = require 'em'\n" .. script, nil, options)
  assert.equal(0, result.status, result.err)
  return result.out
end

describe("system", function()
  t.auto()

  it("calls back with output and status; returns the pid", function()
    local out = output_of [[
      local pid
      pid = em.system("sh -c 'echo $$'", function(output, status) print(tonumber(output) == pid, status.exited, status.signaled) end)
    ]]
    assert.equal("true\t0\tnil\n", out)
  end)

  it("takes a line, a table of words, a program and arguments", function()
    local out = output_of [=[
      local results, left = {}, 0
      local function show(name)
        left = left + 1
        return function(output, status)
          results[#results + 1] = name .. " " .. output .. " " .. (status.exited or "killed by " .. status.signaled)
          left = left - 1
          if left == 0 then table.sort(results) print(table.concat(results, "\n")) end
        end
      end
      em.system("printf %s 'one line'", show "a")
      em.system({ "printf", "[%s]", "two words", "" }, show "b")
      em.system("printf", "[%s]", "1", "2 version", 3, show "c")
      em.system("sh", "-c", "exit 7", show "d")
      em.system("sh -c 'kill -9 $$'", show "e")
      em.system("printf", "%s", "ünïcode with spaces", {}, show "f")
      em.system("sh", "-c", "printf %s $X; printf err >&2", { env = { X = "env" }, stderr = "merge", cwd = "/" }, show "g")
      em.system("wc -c", show "h") -- there is no input
    ]=]
    assert.equal("a one line 0\nb [two words][] 0\nc [1][2 version][3] 0\nd  7\ne  killed by 9\n" ..
      "f ünïcode with spaces 0\ng enverr 0\nh 0\n 0\n", out)
  end)

  it("a first function feeds the input", function()
    local out = output_of [[
      em.system("sh", function(child)
        child:send_data("echo hello\n")
        child:send_data("exit 3\n")
      end, function(output, status) io.write("shell ", output, status.exited, "\n") end)
      em.system("cat", "-", { max_output = 100 }, function(child)
        child:send_data("fed")
        child:close_write()
      end, function(output) print("cat " .. output) end)
    ]]
    assert.is_truthy(out:find("shell hello\n3\n", 1, true), out)
    assert.is_truthy(out:find("cat fed\n", 1, true), out)
  end)

  it("without a function to tell it runs the command all the same", function()
    output_of(("em.system('touch %s') em.system('touch', %q) em.system('touch', %q, nil)"):format(t.path("a"), t.path("b"), t.path("c")))
    for _, name in ipairs { "a", "b", "c" } do assert.equal("", t.read(name)) end
  end)

  it("returns what cannot be executed, and raises for what cannot be meant", function()
    local out = output_of [[
      print(em.system("no-such-program", "x", function() print("called") end))
      print(em.system("true", { cwd = "/no/such" }, function() print("called") end))
      for _, arguments in ipairs {
        { "", print }, { "a 'b", print }, { { "a" }, "b", print }, { "true", { max_output = -1 }, print },
        { "true", { max_output = "x" }, print }, { "true", { outputs = 1 }, print }, { "true", print, print, print }, { nil, print },
      } do
        local ok = pcall(em.system, table.unpack(arguments, 1, 4))
        print(ok)
      end
      print(em.connection_count())
    ]]
    assert.equal("nil\tpopen: cannot execute 'no-such-program': No such file or directory\tENOENT\n" ..
      "nil\tpopen: cannot enter '/no/such' for 'true': No such file or directory\tENOENT\n" .. ("false\n"):rep(8) .. "0\n", out)
  end)

  it("ends a child that says more than max_output", function()
    local out = output_of [[
      local started = os.clock()
      em.system("yes", { max_output = 1000 }, function(output, status) print(#output, status.error, status.exited or status.signaled) end)
      em.system("sh", "-c", "trap '' TERM PIPE; while :; do echo x; done 2>/dev/null", { max_output = 10 }, function(output, status)
        print(#output, status.error, status.signaled)
      end)
      em.system("printf", "exactly", { max_output = 7 }, function(output, status) print(output, status.error, status.exited) end)
    ]]
    assert.is_truthy(out:find("1000\tELIMIT\t", 1, true), out)
    assert.is_truthy(out:find("10\tELIMIT\t9\n", 1, true), out)
    assert.is_truthy(out:find("exactly\tnil\t0\n", 1, true), out)
  end)

  it("64 MiB is the limit where none is given", function()
    local size = t.full and 70 or 66
    local out = output_of(([[
      em.system("head -c %d /dev/zero", function(output, status) print(#output, status.error) end)
    ]]):format(size * 1024 * 1024))
    assert.equal("67108864\tELIMIT\n", out)
  end)

  it("an error in a function belongs to nobody else", function()
    local s = serve([[
      local H = {}
      function H:receive_data() em.system("true", function() error("in the callback") end) em.system("cat", function() error("in init") end,
        function(output, status) say("ended", status.error) end) end
      return H
    ]])
    local c = s:connect()
    c:send("x")
    s.d:wait_log("in the callback")
    s.d:wait_log("in init")
    s:waits_for("ended EHANDLER")
    c:expect_silence(0.01)
  end)

  it("children that run when the daemon stops are ended, and their functions called", function()
    local s = serve([[
      return {
        receive_data = function()
          em.system("sleep 1000", function(output, status) say("slept", status.signaled, status.error) end)
          em.system({ "sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.1; done" }, function(output, status)
            say("stubborn", output:match("%d+"), status.signaled) end)
          em.system({ "sh", "-c", "cat; exit 5" }, function() end, function(output, status) say("read its input", status.exited) end)
          say("started")
        end }
    ]])
    s:connect():send("x")
    s:waits_for("started")
    s:until_true [[ return em.connection_count() >= 6 ]]
    local _, its_log = s.d:stop(), s.d:log()
    assert.is_truthy(its_log:find("{{slept 15 nil}}", 1, true), its_log)
    assert.is_truthy(its_log:find("{{read its input 5}}", 1, true), its_log)
    assert.is_truthy(its_log:find("{{stubborn %S+ 9}}"), its_log)
    local pid = its_log:match("{{stubborn (%d+) 9}}") -- nil where it was stopped before it had said it
    if pid then assert.is_nil(t.read("/proc/" .. pid .. "/stat")) end
    assert.is_truthy(its_log:find(" children=0 children_started=3 ", 1, true), its_log)
  end)
end)

describe("DeferrableChildProcess", function()
  t.auto()

  it("succeeds with output and status when the child has ended", function()
    local out = output_of [[
      local child = em.DeferrableChildProcess.open("sh -c 'echo out; exit 4'")
      child:callback(function(output, status) print("one", output, status.exited) end)
      child:errback(function() print("never") end)
      print(math.type(child:get_pid()), em.Deferrable.is(child))
      local late = em.DeferrableChildProcess.open({ "printf", "%s", "late" }, { env = { A = "b" } })
      em.add_timer(0.2, function() late:callback(function(output) print("late", output) end) end)
    ]]
    assert.equal("integer\ttrue\none\tout\n\t4\nlate\tlate\n", out)
  end)

  it("fails for a command that cannot be executed, and past max_output", function()
    local out = output_of [[
      em.DeferrableChildProcess.open("no-such-program"):errback(function(message, code) print(message, code) end)
      em.DeferrableChildProcess.open("yes", { max_output = 10 }):errback(function(message, code) print(message, code) end)
    ]]
    assert.equal("popen: cannot execute 'no-such-program': No such file or directory\tENOENT\noutput limit\tELIMIT\n", out)
  end)
end)
