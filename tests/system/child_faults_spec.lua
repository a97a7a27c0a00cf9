-- Children that do not behave: each costs its own connection at most, never the loop, a zombie, a descriptor or a byte of output.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- A handler's file with a class for children: what they write is counted and kept, their end is said.
local handler = [[
local Child = em.Connection:extend()
x.Child, x.children = Child, {}
function Child:initialize(name) self.name, self.count = name, 0 x.children[name] = self end
function Child:receive_data(data) self.count = self.count + #data self.last = ((self.last or "") .. data):sub(-20) end
function Child:unbind(err, why)
  local status = self:get_status() or {}
  say(self.name, err, why, status.exited and "exited " .. status.exited or status.signaled and "signaled " .. status.signaled)
end
function x.start(name, command, options)
  options = options or {}
  options.args = { name }
  local child, message, code = em.popen(command, Child, options)
  if not child then say(name, message, code) end
  return child
end
return { receive_data = function(self, data) self:send_data(data) end }
]]

-- Children of a process that have not been reaped.
local function children_of(pid)
  local text = t.read(("/proc/%d/task/%d/children"):format(pid, pid)) or ""
  local found = {}
  for child in text:gmatch("%d+") do table.insert(found, tonumber(child)) end
  return found
end

-- The longest that one echo took while a function said "go on".
local function longest_echo(client, go_on)
  local longest = 0
  repeat
    local before = t.now()
    client:send("ping")
    client:expect("ping")
    longest = math.max(longest, t.now() - before)
    t.sys.sleep(0.001)
  until not go_on()
  return longest
end

describe("a child", function()
  t.auto()

  it("that has ended is not signalled any more while a descendant keeps its output open", function()
    local s = serve(handler)
    s:eval [[ x.start("parent", { "sh", "-c", "sleep 60 & echo $!" }) ]]
    s:until_true "return x.children.parent:get_status() ~= nil and x.children.parent.last ~= nil"
    local descendant = tonumber(s:eval "return x.children.parent.last")
    for _ = 1, 3 do
      local result, _, code = s:eval [[ return x.children.parent:kill("KILL") ]]
      assert.same({ nil, "ESRCH" }, { result, code })
    end
    t.sys.kill(descendant, "KILL")
    s:expects { "parent nil eof exited 0" }
    local result, _, code = s:eval [[ return x.children.parent:kill("KILL") ]]
    assert.same({ nil, "ENOTCONN" }, { result, code })
    s.d:stop()
  end)

  it("that ignores TERM is killed; the loop goes on meanwhile", function()
    local s = serve(handler)
    local c = s:connect()
    s:eval [[ x.start("stubborn", { "sh", "-c", "trap '' TERM HUP INT PIPE; echo on; while :; do sleep 0.05; done" }) ]]
    s:until_true "return x.children.stubborn.count > 0"
    local before = t.now()
    s:eval [[ x.children.stubborn:close_connection() x.children.stubborn:close_connection() ]]
    local longest = longest_echo(c, function() return #s:said() == 0 end)
    s:expects { "stubborn nil closed signaled 9" }
    local took = t.now() - before
    assert.is_true(took > 1.3 and took < 1.5 + t.seconds(1), "it took " .. took .. " s")
    assert.is_true(longest < t.seconds(0.2), "an echo took " .. longest .. " s")
    assert.same({}, children_of(s.d.pid))
  end)

  it("that heeds the end of its input, or TERM, has the time to", function()
    local s = serve(handler)
    s:eval [[
      x.start("reader", { "sh", "-c", "cat >/dev/null; exit 3" })
      x.start("tidy", { "sh", "-c", "trap 'exit 4' TERM; echo on; while :; do sleep 0.02; done" })
      x.start("stopped", { "sh", "-c", "kill -STOP $$" })
      x.start("plain", "sleep 1000")
    ]]
    s:until_true "return x.children.tidy.count > 0"
    s:eval [[ for _, child in pairs(x.children) do child:close_connection() end ]]
    t.until_true(function() return #s:said() == 4 end)
    local said = s:said()
    table.sort(said)
    assert.same({
      "plain nil closed signaled 15", "reader nil closed exited 3", "stopped nil closed signaled 9", "tidy nil closed exited 4",
    }, said)
  end)

  it("that closes its output and lives on keeps its connection, and its status is waited for", function()
    local s = serve(handler)
    s:eval [[
      local child = x.start("quiet", { "sh", "-c", "exec <&- >&-; while [ ! -e " .. x.path("go") .. " ]; do sleep 0.02; done; exit 6" })
      local hears = x.start("hears", { "sh", "-c", "exec <&- >&-; while [ ! -e " .. x.path("go") .. " ]; do sleep 0.02; done; exit 7" })
      function hears:receive_eof() self.heard = true end
      local unwanted = x.start("unwanted", { "sh", "-c", "exec <&- >&-; exec sleep 1000" })
      function unwanted:receive_eof() self:close_connection() end
    ]]
    s:until_true "return x.children.hears.heard"
    s:waits_for("unwanted nil closed signaled 15")
    assert.is_nil(s:eval "return x.children.quiet:get_status()")
    local sent, _, code = s:eval [[ return x.children.quiet:send_data("x") ]]
    assert.is_nil(sent)
    assert.equal("EPIPE", code)
    assert.is_true(s:eval [[ return x.children.hears:kill("CONT") ]])
    t.write("go", "")
    s:waits_for("quiet nil eof exited 6")
    s:waits_for("hears nil eof exited 7")
  end)

  it("whose output a child of its own keeps open is waited for one second, and its last words are there", function()
    local s = serve(handler)
    local before = t.now()
    s:eval [[
      x.start("parent", { "sh", "-c", "sleep 1000 & echo $! last words" })
      x.start("err", { "sh", "-c", "exec >/dev/null; sleep 1000 2>&2 <&- & echo $! >&2; exit 2" }, { stderr = "separate" })
        .receive_stderr = function(self, data) self.last = data end
      x.start("chatty", { "sh", "-c", "(while sleep 0.02; do echo noise; done) & echo $!; exit 3" })
    ]]
    t.until_true(function() return #s:said() == 3 end)
    local took = t.now() - before
    local said = s:said()
    table.sort(said)
    assert.same({ "chatty nil eof exited 3", "err nil eof exited 2", "parent nil eof exited 0" }, said)
    assert.is_true(took > 0.9 and took < 1 + t.seconds(1), "it took " .. took .. " s")
    assert.is_truthy(s:eval("return x.children.parent.last"):find("last words\n", 1, true))
    for _, name in ipairs { "parent", "err" } do
      t.sys.kill(tonumber(s:eval("return x.children.%s.last", name):match("%d+")), "KILL")
    end
  end)

  it("that has ended while its reader was paused loses nothing", function()
    local s = serve(handler)
    s:eval [[
      x.start("alone", "head -c 100000 /dev/zero"):pause()
      x.start("unread", { "sh", "-c", "head -c 100000 /dev/zero" }):pause()
      x.children.unread:send_data(("x"):rep(100000)) -- the child leaves without having read it
      x.start("held", { "sh", "-c", "sleep 1000 2>&1 & head -c 100000 /dev/zero; echo $! end" }):pause()
      x.start("err", { "sh", "-c", "head -c 50000 /dev/zero >&2; echo out" }, { stderr = "separate" }):pause()
      function x.children.err:receive_stderr(data) self.errors = (self.errors or 0) + #data end
    ]]
    s:until_true [[ for _, c in pairs(x.children) do if not c:get_status() then return false end end return true ]]
    t.sys.sleep(1.3) -- longer than output of others is waited for
    assert.same({}, s:said())
    assert.equal(0, s:eval "local n = 0 for _, c in pairs(x.children) do n = n + c.count + (c.errors or 0) end return n")
    s:eval [[ for _, c in pairs(x.children) do c:resume() end ]]
    t.until_true(function() return #s:said() == 4 end)
    local said = s:said()
    table.sort(said)
    assert.same({ "alone nil eof exited 0", "err nil eof exited 0", "held nil eof exited 0", "unread nil eof exited 0" }, said)
    assert.equal(100000, s:eval "return x.children.alone.count")
    assert.equal(100000, s:eval "return x.children.unread.count")
    assert.is_truthy(s:eval "return x.children.held.last":find(" end\n", 1, true))
    assert.equal(50000, s:eval "return x.children.err.errors")
    assert.equal("out\n", s:eval "return x.children.err.last")
    t.sys.kill(tonumber(s:eval("return x.children.held.last"):match("%d+")), "KILL")
  end)

  it("that leaves without reading its input ends in the ordinary way, with all it said", function()
    local s = serve(handler)
    s:eval [[
      local much = ("x"):rep(1000000)
      for i = 1, 20 do
        local child = x.start("head" .. i, { "sh", "-c", "head -c 10; head -c 300000 /dev/zero; echo last" })
        child:send_data(much)
      end
    ]]
    t.until_true(function() return #s:said() == 20 end)
    for _, line in ipairs(s:said()) do assert.is_truthy(line:find(" nil eof exited 0$"), line) end
    assert.equal(20, s:eval [[ local n = 0 for _, c in pairs(x.children) do if c.count == 300015 then n = n + 1 end end return n ]])
  end)

  it("that does not read is met by the limits of every connection", function()
    local s = serve(handler)
    s:eval [[
      local deaf = x.start("deaf", "sleep 1000")
      local much = ("x"):rep(8000000)
      repeat until deaf:send_data(much) == false
      x.kept = deaf:get_outbound_data_size()
      for i = 1, 9 do deaf:send_data(much) end
      x.start("idle", "sleep 1000"):set_comm_inactivity_timeout(0.1)
    ]]
    assert.is_true(s:eval "return x.kept" > 1000000)
    t.until_true(function() return #s:said() == 2 end)
    local said = s:said()
    table.sort(said)
    assert.same({ "deaf ELIMIT outbound limit signaled 15", "idle ETIMEDOUT idle timeout signaled 15" }, said)
  end)

  it("that writes without end is held up by a slow reader: memory stays bounded", function()
    local size = t.full and 1024 or 50
    local s = serve(handler)
    s:eval([[
      local child = x.start("flood", "head -c %d /dev/zero")
      function child:receive_data(data)
        x.Child.receive_data(self, data)
        self.chunks = (self.chunks or 0) + 1
        self:pause()
        em.add_timer(self.chunks %% 40 == 0 and 0.01 or 0, function() self:resume() end)
      end
      x.start("quick", "head -c %d /dev/zero")
    ]], size * 1024 * 1024, size * 1024 * 1024)
    local before, highest = s.d:rss(), 0
    t.until_true(function()
      highest = math.max(highest, s.d:rss())
      return #s:said() == 2
    end, t.full and 120 or 20)
    assert.equal(size * 1024 * 1024, s:eval "return x.children.flood.count")
    assert.equal(size * 1024 * 1024, s:eval "return x.children.quick.count")
    local grown = (highest - before) / 1e6
    assert.is_true(grown < (t.sanitized and 600 or 20), "memory grew by " .. grown .. " MB")
  end)

  it("500 in a row leave no zombie and no descriptor, and nobody waits for them", function()
    local s = serve(handler)
    local c = s:connect()
    s:eval "return 1"
    local fds = s.d:fds()
    s:eval [[
      x.done, x.bad = 0, 0
      local function start(n)
        if n == 0 then return end
        em.system("sh", "-c", "echo out $0; exit " .. n %% 256, n, function(output, status)
          x.done = x.done + 1
          if output ~= "out " .. n .. "\n" or status.exited ~= n %% 256 then x.bad = x.bad + 1 end
          start(n - 1)
        end)
      end
      start(500)
    ]]
    local last = t.now()
    local longest = longest_echo(c, function()
      if t.now() - last < 0.1 then return true end
      last = t.now()
      return s:eval "return x.done" < 500
    end)
    assert.equal(0, s:eval "return x.bad")
    assert.is_true(longest < t.seconds(0.2), "an echo took " .. longest .. " s")
    assert.same({}, children_of(s.d.pid))
    t.until_true(function() return s.d:fds() == fds end, 5, "the descriptors to be closed")
  end)

  it("100 at once are told apart", function()
    local s = serve(handler)
    s:eval [[ for i = 1, 100 do x.start("c" .. i, { "sh", "-c", "read line; echo $line; exit " .. i }):send_data(i .. "\n") end ]]
    t.until_true(function() return #s:said() == 100 end)
    for _, line in ipairs(s:said()) do
      local name, status = line:match("^c(%d+) nil eof exited (%d+)$")
      assert.is_truthy(name, line)
      assert.equal(name, status)
    end
    assert.equal(100, s:eval [[ local n = 0 for i = 1, 100 do if x.children["c" .. i].last == i .. "\n" then n = n + 1 end end return n ]])
  end)

  it("that cannot be executed leaves nothing behind, however often", function()
    local s = serve(handler)
    s:eval "return 1"
    local fds = s.d:fds()
    assert.equal(200, s:eval [[
      local n = 0
      for i = 1, 100 do
        local _, _, code = em.popen("no-such-program", x.Child, { stderr = "separate" })
        local _, _, denied = em.popen("/etc/passwd", x.Child)
        n = n + (code == "ENOENT" and 1 or 0) + (denied == "EACCES" and 1 or 0)
      end
      return n
    ]])
    assert.equal(fds, s.d:fds())
    assert.same({}, children_of(s.d.pid))
    assert.same({}, s:said())
    s.d:stop()
    assert.is_truthy(s.d:log():find(" children_started=0 ", 1, true))
  end)

  it("of an older generation stays with its code, and goes with it", function()
    local s = serve(handler, { config = "reload_timeout = 1\n" })
    s:eval [[ x.start("cat", "cat") x.start("sleep", "sleep 1000") x.cat = x.children.cat
      function x.cat:receive_data(data)
        x.say("old code", data)
        self:send_data("again")
        function self:receive_data(d) x.say("and", d) end
      end ]]
    t.write("h.lua", [[ require("em").log.info("new code") return {} ]])
    local mark = s.d:mark()
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves", nil, mark)
    s:eval [[ x.cat:send_data("word") ]] -- the control connection is of the old generation too
    s:waits_for("and again")
    s:waits_for("cat nil reloaded exited 0")
    s:waits_for("sleep nil reloaded signaled 15")
    assert.same({}, children_of(s.d.pid))
  end)

  it("dies with a daemon that is told to stop, which starts no other meanwhile", function()
    local s = serve(handler)
    s:eval [[
      local again = x.start("again", "sleep 1000")
      function again:unbind(...) x.Child.unbind(self, ...) x.start("late", "sleep 1000") end
      x.start("stubborn", { "sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done" })
      x.start("finishing", "sleep 1000"):close_connection_after_writing()
    ]]
    s:until_true "return x.children.stubborn.count > 0"
    local pids = children_of(s.d.pid)
    assert.equal(3, #pids)
    s.d:stop()
    local log = s.d:log()
    assert.is_truthy(log:find("{{again nil stopped signaled 15}}", 1, true), log)
    assert.is_truthy(log:find("{{late stopping ECANCELED}}", 1, true), log)
    assert.is_truthy(log:find("{{stubborn nil stopped signaled 9}}", 1, true), log)
    assert.is_truthy(log:find("{{finishing nil stopped signaled 15}}", 1, true), log)
    assert.is_truthy(log:find(" children=0 children_started=3 ", 1, true), log)
    for _, pid in ipairs(pids) do assert.is_nil(t.read("/proc/" .. pid .. "/stat")) end
  end)

  it("is known to one that was started without standard descriptors, or with SIGCHLD ignored", function()
    t.write("s.lua", ([[
      local em = require "em"
      em.system("sh", "-c", "cat; echo out; echo err >&2; exit 9", { stderr = "merge" },
        function(child) child:send_data("in ") child:close_write() end,
        function(output, status) local f = io.open(%q, "w") f:write(output, status.exited) f:close() end)
    ]]):format(t.path("said")))
    for _, redirections in ipairs { "<&- >&- 2>&-", "<&-", ">&-", "2>&-", "<&- 2>&-" } do
      os.remove(t.path("said"))
      t.run { "sh", "-c", ("trap '' CHLD; exec %s run %s %s"):format(t.binary, t.path("s.lua"), redirections) }
      assert.equal("in out\nerr\n9", t.read("said"), redirections)
    end
  end)

  it("makes an idle daemon no busier: no wake-ups while one runs", function()
    local s = serve(handler)
    s:eval [[ x.start("sleeper", "sleep 1000") ]]
    s:eval "return 1"
    s.control:close()
    s.control = nil
    t.sys.sleep(0.05)
    local before = s.d:wakeups()
    t.sys.sleep(0.5)
    assert.is_true(s.d:wakeups() - before <= 1)
  end)

  it("is fed a file without Lua; one that leaves in the middle fails the stream and not itself", function()
    t.write("file", ("x"):rep(3000000))
    local s = serve(handler)
    s:eval [[
      local wc = x.start("wc", "wc -c")
      wc:stream_file_data(x.path "file"):callback(function() x.say("streamed") end)
      wc:close_write()
      local leaves = x.start("leaves", { "sh", "-c", "head -c 10; echo end" })
      leaves:stream_file_data(x.path "file"):errback(function(why) x.say("stream: " .. why) x.sent = select(3, leaves:send_data("x")) end)
    ]]
    t.until_true(function() return #s:said() == 4 end)
    local said = s:said()
    table.sort(said)
    assert.same({ "leaves nil eof exited 0", "stream: Broken pipe", "streamed", "wc nil eof exited 0" }, said)
    assert.equal("3000000\n", s:eval "return x.children.wc.last")
    assert.equal("xxxxxxxxxxend\n", s:eval "return x.children.leaves.last")
    assert.equal("EPIPE", s:eval "return x.sent")
  end)

  it("of a relay carries bytes without Lua, and its end", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        local child = em.popen("tr a-z A-Z", { unbind = function(self, err, why) say("child", err, why, self:get_status().exited) end })
        self.child = child
        self:proxy_incoming_to(child)
        child:proxy_incoming_to(self)
      end
      function H:unbind(err, why) say("client", err, why) end
      return H
    ]]
    local c = s:connect()
    c:send(("word"):rep(100000))
    c:shutdown_write()
    assert.equal(("WORD"):rep(100000), c:receive_all())
    s:waits_for("child nil eof 0")
    s:waits_for("client nil eof")
  end)
end)
