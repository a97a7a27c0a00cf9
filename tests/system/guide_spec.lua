-- The course for newcomers: each step's file is run as the course says, and spoken to.
local t = require "tests.support.harness"

local guide = t.root .. "/handlers/guide/"

-- Serves a step by its command line. Returns the daemon and the port.
local function serve(step)
  local port = t.free_port()
  return t.start { args = { "run", guide .. step .. ".lua", "-l", "tcp://127.0.0.1:" .. port } }, port
end

local function text_of(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

describe("the guide", function()
  t.auto()

  it("step 1 greets and echoes", function()
    local _, port = serve "1_hello"
    local c = t.connect(port)
    c:expect("Hello! Say something.\n")
    c:send("something\n"):expect("something\n")
  end)

  it("step 2 keeps state of a connection and of all", function()
    local _, port = serve "2_state"
    local a, b = t.connect(port), t.connect(port)
    a:expect("You are visitor 1.\n")
    b:expect("You are visitor 2.\n")
    a:send("12345"):expect("You have sent 5 bytes.\n")
    b:send("1"):expect("You have sent 1 bytes.\n")
    a:send("67"):expect("You have sent 7 bytes.\n")
  end)

  it("step 3 puts lines together, within bounds", function()
    local _, port = serve "3_lines"
    local c = t.connect(port)
    for byte in ("abc\r\nxy\n"):gmatch(".") do
      c:send(byte)
      t.sys.sleep(0.002)
    end
    c:expect("cba\nyx\n")
    c:send("1 2\n3 4\nbye\nno more\n"):expect("2 1\n4 3\nGood-bye.\n"):expect_eof()
    c = t.connect(port)
    c:send(("x"):rep(1024) .. "\n"):expect(("x"):rep(1024) .. "\n")
    c:send(("x"):rep(1025)):expect("That line is too long.\n"):expect_eof()
  end)

  it("step 4 counts seconds and ends who is silent", function()
    -- The same file with other times: nobody wants to wait for ten seconds.
    local text = text_of(guide .. "4_timers.lua")
    local quick, changed = text:gsub("TICK = 1 ", "TICK = 0.05 "):gsub("PATIENCE = 10", "PATIENCE = 0.5")
    assert.equal(1, changed)
    local port = t.free_port()
    t.start { args = { "run", t.write("4_timers.lua", quick), "-l", "tcp://127.0.0.1:" .. port } }
    local talker, silent = t.connect(port), t.connect(port)
    local began = t.now()
    for i = 1, 12 do
      talker:expect("tick " .. i .. "\n")
      talker:send("x")
    end
    assert.is_true(t.now() - began >= 0.6 * 0.9) -- 12 ticks: longer than the patience
    local said = silent:receive_all()
    assert.matches("^tick 1\ntick 2\n.*You say nothing%.\n$", said)
    talker:expect("tick 13\n")
  end)

  it("step 4 runs as it is", function()
    local _, port = serve "4_timers"
    t.connect(port):expect("tick 1\n")
  end)

  it("step 5 passes lines on to the others", function()
    local d, port = serve "5_chat"
    local a, b, c = t.connect(port), t.connect(port), t.connect(port)
    -- They are in the room when their own line has come to the others.
    c:send("c")
    t.until_true(function() return d:fds() >= 3 end)
    a:send("one\n")
    b:expect("one\n")
    c:send("two\n")
    a:expect("ctwo\n")
    b:expect("ctwo\n")
    c:expect("one\n")
    b:close()
    a:send("three\n")
    c:expect("three\n")
    a:expect_silence(0.02)
  end)

  it("step 6 connects, comes back, and goes on with the same object", function()
    local s = t.listen()
    local d = t.start {
      args = { "run", guide .. "6_client.lua", "127.0.0.1", s.port }, wait = "connected", counters = false,
    }
    local c = s:accept()
    c:expect("hello\n")
    c:send("Hello! Say something.\n")
    d:wait_log("Hello! Say something%.")
    c:close()
    d:wait_log("eof %(no error%), next try in 0%.5 s")
    c = s:accept()
    c:expect("hello\n")
    s:close()
    c:reset()
    d:wait_log("%(ECONNRESET%), next try in 0%.5 s")
    d:wait_log("%(ECONNREFUSED%), next try in 1 s")
    s = t.listen(s.port)
    c = s:accept()
    c:expect("hello\n")
    c:reset()
    d:wait_log("%(ECONNREFUSED%).*%(ECONNRESET%), next try in 0%.5 s") -- patient again
    d:signal("TERM")
    assert.equal(0, d:wait())
  end)

  it("step 7 loses one connection to an error, and says why each one ended", function()
    local d, port = serve "7_errors"
    local a, b = t.connect(port), t.connect(port)
    b:send("live\n"):expect("evil\n")
    a:send("oops\n")
    a:receive_end()
    d:wait_log("7_errors%.lua:%d+: something is wrong")
    d:wait_log("ended: handler error: [^\n]*something is wrong %(EHANDLER%)")
    b:send("live\n"):expect("evil\n")
    b:send("bye\n"):expect("Good-bye.\n"):expect_eof():close()
    d:wait_log("ended: closed %(no error%)")
    t.connect(port):reset()
    d:wait_log("%(ECONNRESET%)")
  end)

  it("step 7 does not grow for a peer that does not read", function()
    local d, port = serve "7_errors"
    local c = t.connect(port)
    c:send("live\n"):expect("evil\n")
    local before = d:rss()
    c:send("flood\n")
    t.connect(port):send("live\n"):expect("evil\n") -- the flood is under way, others are served
    if not t.sanitized then assert.is_true(d:rss() - before < 16 * 1024 * 1024, "grew by " .. d:rss() - before) end
    local left = 64 * 1024 * 1024
    while left > 0 do
      local n = math.min(left, 1024 * 1024)
      assert.equal(n, #c:receive(n))
      left = left - n
    end
    c:send("live\n"):expect("evil\n")
  end)

  it("step 8 changes code and configuration under open connections", function()
    local port, second = t.free_port(), t.free_port()
    local readme = text_of(guide .. "README.md")
    local config = readme:match("```lua\n(.-)```"):gsub("9000", port):gsub("9001", second)
    local code = text_of(guide .. "8_reload.lua")
    t.write("handlers/guide/8_reload.lua", code)
    t.write("handlers/guide/3_lines.lua", text_of(guide .. "3_lines.lua"))
    t.write("guide.conf", config)
    -- The commands of the course, but for the place of the binary.
    for command in readme:gmatch("\nbuild/reactord (%-[^\n]*guide%.conf[^\n]*)") do
      assert.matches("^%-t %-c guide%.conf$", (command:gsub("^%-c guide%.conf %-p guide%.pid$", "-t -c guide.conf")))
    end
    local checked = t.run { t.binary, "-t", "-c", "guide.conf", cwd = t.dir() }
    assert.equal("", checked.err)
    local d = t.start { args = { "-c", "guide.conf", "-p", "guide.pid" }, cwd = t.dir() }
    assert.equal(d.pid, tonumber(t.read("guide.pid")))

    local old = t.connect(port)
    old:send("x"):expect("Good morning!\n")
    t.connect(second):send("abc\n"):expect("cba\n")
    local changed, count = code:gsub('PUNCTUATION = "!"', 'PUNCTUATION = "?"')
    assert.equal(1, count)
    t.write("handlers/guide/8_reload.lua", changed)
    d:signal("HUP")
    d:wait_log("reloaded")
    local new = t.connect(port)
    new:send("x"):expect("Good morning?\n")
    old:send("x"):expect("Good morning!\n")

    t.write("handlers/guide/8_reload.lua", changed .. "\nend")
    d:signal("HUP")
    d:wait_log("reload refused: [^\n]*8_reload%.lua:%d+: [^\n]*'end'")
    t.connect(port):send("x"):expect("Good morning?\n")
    t.write("handlers/guide/8_reload.lua", changed)
    local mark = d:mark()
    t.write("guide.conf", (config:gsub("idle_timeout", "idle_timeot")))
    d:signal("HUP")
    d:wait_log("reload refused: [^\n]*guide%.conf:%d+: [^\n]*'idle_timeot'", nil, mark)
    t.connect(port):send("x"):expect("Good morning?\n")
    new:send("x"):expect("Good morning?\n")
    old:send("x"):expect("Good morning!\n")
  end)

  it("names every step, in order", function()
    local readme = text_of(guide .. "README.md")
    local steps = 0
    for name in require("lfs").dir(guide) do
      if name:find("%.lua$") then
        steps = steps + 1
        assert.is_truthy(readme:find("| " .. name:match("^%d+") .. " | `" .. name .. "` |", 1, true), name)
      end
    end
    assert.equal(9, steps)
  end)

  it("step 9 asks, sleeps and answers in a coroutine", function()
    local _, port = serve "9_coroutines"
    local c = t.connect(port):expect("Your name? "):send("Ann\r\n"):expect("How many seconds to think? ")
    local other = t.connect(port):expect("Your name? ")
    c:send("0.02\n"):expect("Let me think.\nGood-bye, Ann. I live at ")
    assert.matches("^[%d.:]+%.\n$", c:receive_all())
    other:shutdown_write()
    other:expect_eof()
  end)
end)
