-- Memory of handlers: garbage costs one connection, a hoard its generation, and what has ended gives everything back.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local MIB = 1048576

local function start(text, options)
  options = options or {}
  options.config = "memory_limit = '32 MiB'\ncallback_time = 30\n" .. (options.config or "")
  return serve([[
local H = em.Connection:extend()
local acts, MIB = {}, 1048576
]] .. text .. [[

function H:receive_data(word)
  if word == "ok" then return self:send_data("ok") end
  acts[word](self)
  self:send_data("came back")
end
function H:unbind(err, why) say("unbind", err, why) end
return H]], options)
end

local function alive(c)
  c:send("ok")
  c:expect("ok")
end

describe("a callback that asks for more than memory_limit", function()
  t.auto()

  for name, act in pairs {
    ["by one string of 2 GiB"] = "local s = ('x'):rep(1 << 31)",
    ["by a string that doubles"] = "local s = 'x' while true do s = s .. s end",
    ["by string.rep of 8 EiB"] = "local s = ('xx'):rep(1 << 62)",
    ["by tables"] = "local l = {} while true do l[#l + 1] = {} end",
    ["by a table of great size"] = "local l = table.move({}, 1, 9000000, 1) for i = 1, 1 << 40 do l[i] = i end",
    ["by closures"] = "local l = {} while true do l[#l + 1] = function() return l end end",
    ["by coroutines"] = "local l = {} while true do l[#l + 1] = coroutine.create(print) end",
    ["by strings in a coroutine"] = "coroutine.wrap(function() local s = 'x' while true do s = s .. s end end)()",
    ["by table.concat"] = "local l = {} for i = 1, 1000 do l[i] = ('x'):rep(10000) end local s = table.concat(l) s = s:rep(5)",
    ["by string.format"] = "local s = ('x'):rep(9000000) s = ('%s%s%s%s'):format(s, s, s, s)",
    ["by string.gsub"] = "local s = ('x'):rep(9000000):gsub('x', 'xxxxxx')",
    ["by a source to load"] = "local s = load('return {' .. ('1,'):rep(9000000) .. '}')() assert(#s < 0)",
    ["by upvalues of itself"] = "local f = print while true do local g = f f = function() return g() end end",
    ["by arguments"] = "local l = {} for i = 1, 900000 do l[i] = 'x' end string.char(table.unpack(l))",
  } do
    it(name .. " ends its connection alone", function()
      local s = start("function acts.act(self) " .. act .. " end")
      local other = s:connect()
      alive(other)
      for i = 1, 2 do
        local c = s:connect()
        c:send("act")
        assert.equal("", (c:receive_end()))
        t.until_true(function() return #s:said() == i end)
        assert.matches("^unbind EHANDLER handler error: ", s:said()[i])
        alive(other)
      end
      s:until_true "return collectgarbage('count') < 16 * 1024" -- a full collection comes once a second
      assert.is_true(t.sanitized or s.d:rss() < 200 * MIB)
      s.d:stop()
      assert.equal(2, s.d:count_log("error handler error: "))
      assert.equal(2, s.d:count_log("stack traceback"))
      assert.matches("h%.lua:%d+: in", s.d:log())
      assert.matches("memory_replacements=0", s.d:log())
    end)
  end

  it("is told of it where it can catch that", function()
    local s = start [[
      function acts.act(self)
        local ok, why = pcall(string.rep, "x", 1 << 30)
        self:send_data(tostring(ok), " ", tostring(why), " ")
      end]]
    s:connect():send("act"):expect("false not enough memory came back")
  end)

  it("does not disturb what comes and goes in good order", function()
    local s = start [[
      function acts.act(self) for _ = 1, 400 do local s = ("x"):rep(1 << 20) end end]]
    local c = s:connect()
    c:send("act"):expect("came back")
    assert.equal(0, s.d:count_log("error"))
  end)
end)

describe("a hoard", function()
  t.auto()

  it("replaces its generation: connections end with ELIMIT, new ones are served, the old memory is freed", function()
    local s = start [[
      em.log.info("LOADED")
      function acts.hoard()
        local room = ("x"):rep(MIB) -- for what is said at the end
        while room do x.hoard = { x.hoard } end -- strings may be refused although there is garbage left
      end]]
    local idle = s:connect()
    alive(idle)
    for round = 1, 3 do
      local c = s:connect()
      c:send("hoard")
      c:receive_end()
      s.d:wait_log("generation " .. round + 1 .. " serves in its place")
      idle:receive_end()
      t.until_true(function() return #s:said() == 2 * round end)
      local said = { s:said()[2 * round - 1]:sub(1, 36), s:said()[2 * round]:sub(1, 36) }
      table.sort(said)
      assert.same({ "unbind EHANDLER handler error: not e", "unbind ELIMIT memory" }, said)
      idle = s:connect()
      alive(idle)
      if s.control then s.control:close() end -- of the old generation
      s.control = nil
      assert.is_true(s:eval "return collectgarbage('count')" < 2 * 1024)
      assert.is_true(t.sanitized or s.d:rss() < 120 * MIB, tostring(s.d:rss()))
    end
    s.d:stop()
    assert.equal(4, s.d:count_log("LOADED"))
    assert.equal(3, s.d:count_log("memory_limit %(33554432 bytes%) reached by the live data of generation"))
    assert.matches("generations=0 .*memory_replacements=3 ", s.d:log())
  end)

  it("that catches its errors is found by the next callback that gets nothing", function()
    local s = start [[
      function acts.hoard()
        pcall(function(room) while room do x.hoard = { x.hoard } end end, ("x"):rep(MIB))
      end
      function acts.want() local l = {} for i = 1, 1 << 30 do l[i] = { i } end end]]
    local c = s:connect()
    c:send("hoard")
    c:receive(1)
    local other = s:connect()
    other:send("want")
    other:receive_end()
    c:receive_end()
    s.d:wait_log("generation 2 serves in its place")
    alive(s:connect())
  end)

  it("may not live on by what its unbinds open", function()
    local s = start [[
      local Again = {}
      function Again:unbind() local _, _, code = em.connect("127.0.0.1", x.port, Again) say("again", code) end
      function acts.hoard()
        em.connect("127.0.0.1", x.port, Again)
        em.add_timer(0.01, function() local room = ("x"):rep(MIB) while room do x.hoard = { x.hoard } end end)
      end]]
    local c = s:connect()
    c:send("hoard")
    c:receive_end()
    s.d:wait_log("generation 2 serves in its place")
    s.d:wait_log("again ECANCELED")
    s.d:stop()
  end)

  it("while handlers load refuses the start or the reload", function()
    local s = start ""
    t.write("h.lua", "local l = {} while true do l[#l + 1] = {} end")
    s.d:signal("HUP")
    s.d:wait_log("reload refused: [^\n]*handler 'h': not enough memory")
    alive(s:connect())
    local d = t.start { config = ("memory_limit = '8 MiB'\nlisten %q { handler = 'h' }"):format("tcp://127.0.0.1:" .. t.free_port()),
      wait = false, unchecked = true, name = "other.conf" }
    assert.equal(1, (d:wait()))
    assert.matches("other%.conf:2: handler 'h': not enough memory", d:log())
  end)

  it("of a script ends the run", function()
    local r = t.reactord { "run", "-s", "memory_limit=16 MiB", t.write("s.lua", [[
      local em = require "em"
      em.run(function()
        em.next_tick(function() while true do hoard = { hoard } end end)
        em.add_periodic_timer(0.01, function() end)
      end)]]) }
    assert.equal(1, r.status)
    assert.matches("not enough memory", r.err)
  end)
end)

describe("connections that have ended", function()
  t.auto()

  it("give everything back", function()
    local count = t.full and 20000 or 2000
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init()
        self.buffer = {}
        self:add_timer(60, function() end)
        self:add_periodic_timer(60, function() end)
        self:on("close", function() end)
        self:set_comm_inactivity_timeout(60)
      end
      function H:receive_data(data)
        self.buffer[#self.buffer + 1] = data
        self:once("drain", function() end)
        self:send_data(data)
      end
      function x.settle()
        for _ = 1, 300 do collectgarbage("step") end
        return collectgarbage("count")
      end
      return H]]
    local function round(n)
      local open = {}
      for i = 1, n do
        local c = s:connect()
        c:send("hello")
        open[#open + 1] = c
        if #open == 100 or i == n then
          for _, one in ipairs(open) do one:expect("hello") end
          for k, one in ipairs(open) do
            if k % 2 == 0 then one:reset() else one:close() end
          end
          open = {}
        end
      end
      s:until_true "return em.connection_count() == 3 and em.get_timer_count() == 0"
      return s:eval "return x.settle()", s.d:rss(), s.d:fds()
    end
    round(300)
    local memory, rss, fds = round(300)
    local memory2, rss2, fds2 = round(count)
    assert.equal(fds, fds2)
    assert.is_true(memory2 < memory * 1.1 + 100, ("%g KB, then %g KB"):format(memory, memory2))
    assert.is_true(t.sanitized or rss2 < rss + 8 * MIB, ("%g, then %g"):format(rss, rss2))
    s.d:stop()
  end)
end)
