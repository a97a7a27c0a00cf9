-- Named channels and em.shared with several processes: everyone hears everyone, and counts in the same place.
local t = require "tests.support.harness"
local P = require "tests.support.processes"
local lfs = require "lfs"

local handler = [[
local em = require "em"
local H = em.Connection:extend()
local room, counter = em.channel "room", em.shared "counter"
function H:post_init() self.rest = "" self:subscribe("room") self:send_data("at ", (em.process()), "\n") end
function H:receive_message(_, data) self:send_data("heard ", data, "\n") end
function H:receive_data(data)
  self.rest = (self.rest .. data):gsub("([^\n]*)\n", function(line)
    local word, rest = line:match("^(%l+) ?(.*)$")
    if word == "push" then assert(room:push(rest)) end
    if word == "count" then
      for _ = 1, tonumber(rest) do assert(counter:incr("n")) end
      self:send_data("counted ", counter:get("n"), "\n")
    end
    if word == "set" then assert(counter:set("v", rest)) self:send_data("set\n") end
    if word == "get" then self:send_data("got ", tostring(counter:get("v")), "\n") end
    if word == "sleep" then local till = os.clock() + tonumber(rest) while os.clock() < till do end self:send_data("slept\n") end
    if word == "flood" then
      local n = 0
      for _ = 1, tonumber(rest) do n = n + (room:push(("x"):rep(100000)) and 1 or 0) end
      self:send_data("pushed ", n, "\n")
    end
    return ""
  end)
end
return H]]

describe("with two processes", function()
  t.auto()

  local d, port

  local function start(more, text)
    port = t.free_port()
    t.write("h.lua", text or handler)
    local config = 'processes = 2\nlisten "tcp://127.0.0.1:%d" { handler = "h" }\ndrain_timeout = 0.1\n%s'
    d = t.start { config = config:format(port, more or ""), env = { RUNTIME_DIRECTORY = t.dir() } }
  end

  -- A client in each of both processes.
  local function connect()
    local at = {}
    t.until_true(function()
      local c = t.connect(port)
      local process = tonumber(c:receive_line():match("^at (%d)$"))
      if at[process] then c:close() else at[process] = c end
      return at[1] and at[2]
    end)
    return at[1], at[2]
  end

  it("everyone hears everyone, in each pusher's order", function()
    start()
    local a, b = connect()
    local lines, count = {}, t.full and 20000 or 2000
    for i = 1, count do lines[i] = ("push %d"):format(i) end
    lines[count + 1] = ""
    lines = table.concat(lines, "\n")
    a:send((lines:gsub("push", "push a")))
    b:send((lines:gsub("push", "push b")))
    for _, c in ipairs { a, b } do
      local last = { a = 0, b = 0 }
      for _ = 1, 2 * count do
        local who, n = c:receive_line():match("^heard (%l) (%d+)$")
        assert.equal(last[who] + 1, tonumber(n))
        last[who] = tonumber(n)
      end
      c:expect_silence(0.01)
      c:close()
    end
    d:stop()
    assert.matches("messages_pushed=" .. 2 * count .. " messages_refused=0 messages_missed=0 messages_queued=0", d:log())
  end)

  it("they count in one place, each step once, and find what the other has set", function()
    start()
    local a, b = connect()
    local each = t.full and 100000 or 10000
    a:send("count " .. each .. "\n")
    b:send("count " .. each .. "\n")
    local first, second = a:receive_line(), b:receive_line()
    assert.equal(2 * each, math.max(tonumber(first:match "^counted (%d+)"), tonumber(second:match "^counted (%d+)")))
    a:send("set one\n"):expect("set\n")
    b:send("get\n"):expect("got one\n")
    b:send("set two\n"):expect("set\n")
    a:send("get\n"):expect("got two\n")
    a:close()
    b:close()
    d:stop()
    for name in lfs.dir(t.dir()) do assert.is_nil(name:find("^reactord%-shared"), name) end
  end)

  it("an upgrade goes on counting, whichever process comes first and last, with two processes or one", function()
    start('pid_file = "x.pid"\n')
    local a, b = connect()
    a:send("count 10\n"):expect("counted 10\n")
    local running = d
    for round, processes in ipairs { 2, 1, 2 } do
      local file = t.read(running.config)
      t.write("reactord.conf", (file:gsub("processes = %d", "processes = " .. processes)))
      running:signal("USR2")
      local pid = t.until_true(function()
        local now = tonumber(t.read("x.pid"))
        return now and now ~= running.pid and now
      end)
      local heir = t.adopt(pid, running.log_path, { counters = false })
      heir.config = running.config
      b:send("count 1\n"):expect(("counted %d\n"):format(10 + 2 * round - 1))
      a:close()
      b:close()
      running:wait()
      running = heir
      a, b = t.connect(port), t.connect(port)
      a:receive_line()
      b:receive_line()
      a:send("count 1\n"):expect(("counted %d\n"):format(10 + 2 * round))
    end
    a:close()
    b:close()
    running:stop()
    for name in lfs.dir(t.dir()) do assert.is_nil(name:find("^reactord%-shared"), name) end
  end)

  it("goes on after a process was killed, be it in the midst of counting", function()
    start()
    local a, b = connect()
    b:send("set kept\n"):expect("set\n")
    for _ = 1, t.full and 4 or 2 do -- each start after a crash waits twice as long
      local victim = assert(P.pids(d)[1], "no process 1")
      a:send("count 1000000\n")
      t.until_true(function()
        b:send("get\n"):expect("got kept\n")
        b:send("count 1\n")
        return tonumber(b:receive_line():match("%d+")) % 50 == 0
      end)
      assert(t.sys.kill(victim, "KILL"))
      a:receive_end()
      b:send("count 1000\n")
      assert.matches("^counted", b:receive_line())
      t.until_true(function()
        a = t.connect(port)
        if a:receive_line() == "at 1" then return true end
        a:close()
      end)
      a:send("push again\n"):expect("heard again\n")
      b:expect("heard again\n")
      a:send("get\n"):expect("got kept\n")
    end
    a:close()
    b:close()
    d:stop()
  end)

  it("a slow one misses what there is no room for, which is counted; the others do not wait", function()
    start("channel_queue = '4 MiB'\ncallback_time = 5\n")
    local a, b = connect()
    b:send("sleep 0.5\n")
    local pushed = 0
    local deadline = t.now() + t.seconds(0.3)
    while t.now() < deadline do
      a:send("flood 10\n")
      local n = tonumber(a:receive_line():match("^pushed (%d+)")) -- fewer where there is no room on the way to the master
      for _ = 1, n do assert.matches("^heard x", a:receive_line()) end
      pushed = pushed + n
    end
    b:expect("slept\n")
    a:send("push last\n")
    local got = 0
    repeat
      local line = b:receive_line()
      if line:find("^heard x") then got = got + 1 end
    until line == "heard last"
    a:close()
    b:close()
    d:stop()
    local missed = tonumber(d:log():match(".*stopped: [^\n]*messages_missed=(%d+)")) -- the last line is the sum
    assert.equal(pushed, got + missed)
    if missed > 0 then assert.is_true(d:count_log("this process is too slow") > 0) end
  end)

  it("chat is one room, through reloads too, and nobody has another's number", function()
    local users, reloads = t.full and 200 or 30, t.full and 50 or 3
    start("", [[
      local em = require "em"
      local Chat = require "chat"
      local H = Chat:extend()
      function H:post_init() Chat.post_init(self) self:send_data("at ", (em.process()), " ", self.name, "\n") end
      return H]])
    local names, all = {}, {}
    local function join()
      local c = t.connect(port)
      local process, name
      repeat process, name = c:receive_line():match("^at (%d) (User #%d+)$") until process
      assert.is_nil(names[name])
      names[name] = true
      return c, name, tonumber(process)
    end
    -- Two who are in different processes come first: from then on what was told has arrived in both when all have heard it.
    local at = {}
    t.until_true(function()
      local c, name, process = join()
      if at[process] then c:close() else at[process] = { c, name } end
      return at[1] and at[2]
    end)
    for process = 1, 2 do
      at[process][1]:send("here\n")
      repeat local line = at[3 - process][1]:receive_line() until line == at[process][2] .. " said: here"
    end
    for _, who in ipairs(at) do all[#all + 1] = who end
    for i = 3, users do
      local c, name = join()
      for _, who in ipairs(all) do
        local line
        repeat line = who[1]:receive_line() until not line:find(" left$")
        assert.equal(name .. " joined", line)
      end
      all[i] = { c, name }
    end
    local said = 0
    local function round(word)
      for i = 1, users, 7 do
        said = said + 1
        all[i][1]:send(("%s %d\n"):format(word, said))
        local heard = ("%s said: %s %d\n"):format(all[i][2], word, said)
        for j = 1, users do
          if j ~= i then all[j][1]:expect(heard) end
        end
      end
    end
    round "before"
    for n = 1, reloads do
      local mark = d:mark()
      d:signal("HUP")
      round "meanwhile"
      d:wait_log("generation " .. n + 1 .. " serves", nil, mark)
      round "after"
    end
    for i = 1, users do all[i][1]:expect_silence(0) end
    all[1][1]:close()
    for i = 2, users do all[i][1]:expect(all[1][2] .. " left\n") end
    for i = 2, users do all[i][1]:close() end
    d:stop()
    local sum = d:log():match(".*stopped: ([^\n]*)") -- the last one
    assert.matches("handovers=" .. users * reloads .. " handovers_failed=0 ", sum)
    assert.matches("messages_missed=0 ", sum)
  end)
end)
