-- Callbacks that take long and yet less than callback_time: each is a line in the log with the place where the time went.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local SLOW = t.sanitized and 0.3 or 0.1
local ENV = { REACTORD_SLOW_CALLBACK = false }

-- Finds "busy(s)": Lua instructions for that long, by the real clock.
local prelude = [[
local function now() local file = io.open("/proc/uptime") local s = file:read("n") file:close() return s end
local function busy(seconds) local stop = now() + (seconds or x.seconds) while now() < stop do end end
]]

local function start(text, config)
  local s = serve(prelude .. ("x.seconds = %g\n"):format(SLOW * 2.5) .. text,
    { config = ("slow_callback = %g\ncallback_time = %g\n"):format(SLOW, t.seconds(20)) .. (config or ""), env = ENV })
  return s
end


-- One callback that is slow in that way, and the pattern of what is told.
local function is_told(name, act, pattern)
  it("in " .. name, function()
    local s = start("local H = em.Connection:extend()\nfunction H:receive_data()\n" .. act .. "\nself:send_data('done')\nend\nreturn H")
    s:connect():send("go"):expect("done")
    s.d:wait_log("slow callback: it took %d+%.%d+ s")
    local took = tonumber(s.d:log():match("slow callback: it took ([%d.]+) s"))
    assert.is_true(took >= SLOW, "it took " .. took)
    assert.is_true(took < t.seconds(5), "it took " .. took)
    local line = s.d:log():match("[^\n]*slow callback: [^\n]*")
    assert.matches(" warn slow callback: it took [%d.]+ s[^\n]* %[listener=tcp://127.0.0.1:%d+ peer=127.0.0.1:%d+ handler=h "
      .. "callback=receive_data connection=%d+%]$", line)
    if pattern then
      assert.matches("; after slow_callback it was here %[[^\n]*\n\tstack traceback:\n" .. pattern, s.d:log())
    else
      assert.is_nil(s.d:log():find("stack traceback", 1, true))
    end
    assert.equal(1, s.d:count_log("slow callback"))
    s.d:stop()
    assert.equal("1", s.d:log():match("callbacks_slow=(%d+)"))
    assert.equal("0", s.d:log():match("callbacks_stopped=(%d+)"))
    assert.equal("0", s.d:log():match("handler_errors=(%d+)"))
  end)
end

local IN_BUSY = ".-h%.lua:2: in " -- the line of busy; what it calls may be above it

describe("a slow callback is logged, and runs on", function()
  t.auto()

  is_told("Lua", "busy()", IN_BUSY)
  is_told("a coroutine", "coroutine.wrap(function() busy() end)()", IN_BUSY)
  is_told("a coroutine that is entered late", [[
    busy(x.seconds / 2.5 * 0.9)
    coroutine.wrap(function() busy() coroutine.yield() end)()]], IN_BUSY)
  is_told("pcall", "assert(pcall(busy))", IN_BUSY)
  is_told("a function called by C", "table.sort({ 1, 2 }, function(a, b) busy() return a < b end)", IN_BUSY)
  is_told("a C function, which Lua's return from tells", [[
    local chunk = ('x'):rep(200)
    local stop = now() + x.seconds
    repeat chunk:find('.-.-b') until now() >= stop]], ".*h%.lua:%d+: in ")
  is_told("a metamethod", "local _ = setmetatable({}, { __index = function() busy() return 1 end }).x", IN_BUSY)
  is_told("a callback within it", [[
    em.connect("127.0.0.1", 1, { post_init = function() busy() end })]], IN_BUSY)
  is_told("a deep stack", "local function f(n) if n > 0 then f(n - 1) busy(0) else busy() end end f(150)", IN_BUSY)

  it("once, also where one error follows it", function()
    local s = start [[
      local H = em.Connection:extend()
      function H:receive_data() busy() busy() error("after all") end
      return H]]
    s:connect():send("go"):receive_end()
    s.d:wait_log("handler error: [^\n]*after all")
    assert.equal(1, s.d:count_log("slow callback"))
    assert.equal(1, s.d:count_log("handler error"))
    s.d:stop()
  end)

  it("also where it has been in one C function all the time", function()
    local s = start [[
      local H = em.Connection:extend()
      local subject = ("a"):rep(300)
      repeat -- a pattern that takes long enough on this machine, as the last thing of a callback
        subject = subject .. ("a"):rep(50)
        local began = now()
        subject:find(".-.-b")
      until now() - began > x.seconds
      function H:receive_data() return subject:find(".-.-b") end
      return H]]
    s:connect():send("go")
    s.d:wait_log("slow callback: it took [^\n]* callback=receive_data")
    s.d:stop()
  end)

  it("but for one that is stopped, and where the time is 0, or not passed", function()
    local text = [[
      local H = em.Connection:extend()
      function H:receive_data(word)
        if word == "long" then while true do end end
        busy(tonumber(word))
        self:send_data("done")
      end
      return H]]
    local s = serve(prelude .. text, { config = ("slow_callback = %g\ncallback_time = %g"):format(SLOW, SLOW * 2), env = ENV })
    s:connect():send("long"):receive_end()
    s.d:wait_log("callback stopped")
    s.d:stop()
    assert.equal(0, s.d:count_log("slow callback"))
    t.cleanup()
    for _, config in ipairs { "slow_callback = 0", "slow_callback = 3\ncallback_time = 3", "slow_callback = 30" } do
      s = serve(prelude .. text, { config = config, env = ENV })
      s:connect():send("0.3"):expect("done")
      s.d:stop()
      assert.equal(0, s.d:count_log("slow callback"))
      t.cleanup()
    end
  end)

  it("and the time may change with a reload", function()
    local s = start([[
      local H = em.Connection:extend()
      function H:receive_data() busy() self:send_data("done") end
      return H]])
    s:connect():send("go"):expect("done")
    s.d:wait_log("slow callback")
    local config = t.read("reactord.conf"):gsub("slow_callback = [%d.]+", "slow_callback = 0")
    t.write("reactord.conf", config)
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s:connect():send("go"):expect("done")
    s.d:stop()
    assert.equal(1, s.d:count_log("slow callback"))
  end)
end)
