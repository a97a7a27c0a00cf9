-- Back-pressure: marks, limits, pause and resume.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- A handler whose client decides: x.conn is the newest connection.
local plain = [[
local H = {}
function H:post_init() x.conn = self end
function H:drained() say("drained", self:get_outbound_data_size()) end
function H:unbind(...) say(...) end
]]

local mib = 1024 * 1024

describe("send_data", function()
  t.auto()

  it("is true up to the high-water mark and false above it", function()
    local s = serve(plain .. "return H")
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    local a, b, d, e = s:eval [[
      local c = x.conn
      return c:send_data(("x"):rep(1024 * 1024)), c:send_data("y"), c:get_outbound_data_size(), c:send_data("")]]
    assert.same({ true, false, mib + 1, false }, { a, b, d, e })
    c:receive(mib + 1)
    s:expects { "drained 0" }
    s.d:stop()
  end)

  it("obeys the marks of the config", function()
    local s = serve(plain .. "return H", 'low_water = 10, high_water = 20')
    s:connect()
    s:until_true("return x.conn ~= nil")
    assert.same({ true, false }, { s:eval "return x.conn:send_data(('x'):rep(20)), x.conn:send_data('y')" })
    s:expects { "drained 0" }
    s.d:stop()
  end)

  it("brings drained once for each crossing, at the low-water mark, and not without one", function()
    local s = serve(plain .. [[
      function H:drained() x.drained = (x.drained or 0) + 1 x.left = math.max(x.left or 0, self:get_outbound_data_size()) end
      return H]])
    local c = s:connect { buffer = 8192 }
    s:until_true("return x.conn ~= nil")
    s:eval "x.conn:set_watermarks(1000, 100000)"
    for i = 1, 3 do
      assert.is_true(s:eval "return x.conn:send_data(('x'):rep(100000))")
      c:receive(100000)
      s:until_true("return x.conn:get_outbound_data_size() == 0")
      assert.equal(i - 1, s:eval "return x.drained or 0")
      local a, b, d = s:eval "return x.conn:send_data(('x'):rep(4000000)), x.conn:send_data('y'), x.conn:send_data('z')"
      assert.same({ false, false, false }, { a, b, d })
      c:receive(4000002)
      s:until_true("return x.conn:get_outbound_data_size() == 0")
      assert.equal(i, s:eval "return x.drained")
    end
    assert.is_true(s:eval "return x.left" <= 1000)
    s.d:stop()
  end)

  it("is true again between the marks", function()
    local s = serve(plain .. "return H")
    local c = s:connect { buffer = 8192 }
    s:until_true("return x.conn ~= nil")
    s:eval "x.conn:set_watermarks(0, 1000000)"
    assert.is_false(s:eval "return x.conn:send_data(('x'):rep(4000000))")
    local received = 0
    repeat
      received = received + #c:receive(50000)
    until s:eval "return x.conn:get_outbound_data_size()" < 900000
    assert.is_true(s:eval "return x.conn:send_data('more')")
    c:receive(4000004 - received)
    s:expects { "drained 0" }
    s.d:stop()
  end)

  it("and drained carry a stream of any length with little memory", function()
    local s = serve [[
      local H = {}
      local piece = ("0123456789abcdef"):rep(1024)
      function H:fill()
        while self.left > 0 do
          self.left = self.left - 1
          if not self:send_data(piece) then return end
        end
        self:close_connection_after_writing()
      end
      function H:receive_data() self.left = 4000 self:fill() end
      function H:drained() x.times = (x.times or 0) + 1 self:fill() end
      return H]]
    local c = s:connect()
    c:send("go")
    c:receive(mib)
    local before, most, received = s.d:rss(), 0, mib
    while received < 4000 * 16384 do
      received = received + #c:receive(math.min(mib, 4000 * 16384 - received))
      most = math.max(most, s.d:rss())
    end
    c:expect_eof()
    assert.is_true(s:eval "return x.times" >= 20)
    if not t.sanitized then assert.is_true(most - before < 8 * mib, ("memory grew by %d"):format(most - before)) end
    s.d:stop()
  end)

  it("over max_outbound ends the connection with ELIMIT", function()
    local s = serve(plain .. "return H", 'high_water = 1000, low_water = 0, max_outbound = 100000')
    local c = s:connect { buffer = 8192 }
    s:until_true("return x.conn ~= nil")
    assert.same({ false, nil, "closed", "ENOTCONN", 0 }, { s:eval [[
      local c = x.conn
      local first = c:send_data(("x"):rep(100000))
      local second, why, code = c:send_data("y")
      return first, second, why, code, c:get_outbound_data_size()]] })
    s:expects { "ELIMIT outbound limit" }
    assert.equal("", (c:receive_end()))
    s.d:stop()
  end)

  it("of more than max_outbound at once ends it too", function()
    local s = serve(plain .. "return H", 'high_water = 1000, low_water = 0, max_outbound = 100000')
    s:connect()
    s:until_true("return x.conn ~= nil")
    assert.is_nil((s:eval "return x.conn:send_data(('x'):rep(100001))"))
    s:expects { "ELIMIT outbound limit" }
    s.d:stop()
  end)

  it("bounds memory by max_outbound with a peer that never reads", function()
    local s = serve([[
      local H = {}
      function H:receive_data(d) self:send_data(d) end
      function H:unbind(...) say(...) end
      return H]], 'max_outbound = "4 MiB"')
    local c = s:connect()
    local before = s.d:rss()
    local piece, deadline = ("x"):rep(65536), t.now() + t.limit
    while #s:said() == 0 and t.now() < deadline do
      if c:send_some(piece) ~= 0 then assert.is_true(s.d:rss() - before < 40 * mib) end
    end
    s:expects { "ELIMIT outbound limit" }
    s.d:stop()
  end)

  it("over max_queued of the process ends the connection with the longest queue, and that one alone", function()
    local s = serve([[
      local H = {}
      x.all = {}
      function H:post_init() table.insert(x.all, self) self.number = #x.all end
      function H:unbind(err, why) say(self.number, err, why) end
      return H]], { config = 'max_queued = "2 MiB"' })
    local list = {}
    for i = 1, 4 do
      list[i] = s:connect { buffer = 8192 }
      s:until_true("return #x.all == " .. i)
    end
    s:eval [[
      x.all[1]:send_data(("a"):rep(600000))
      x.all[2]:send_data(("b"):rep(900000))
      x.all[3]:send_data(("c"):rep(500000))
      for i = 1, 10 do x.all[4]:send_data(("d"):rep(50000)) end]]
    s:expects { "2 ELIMIT outbound limit of the process" }
    assert.equal(600000, #list[1]:receive(600000))
    assert.equal(500000, #list[3]:receive(500000))
    assert.equal(500000, #list[4]:receive(500000))
    list[2]:receive_end()
    assert.equal(1, #s:said())
    s.d:stop()
  end)
end)

describe("set_watermarks", function()
  t.auto()

  it("raises for what makes no sense", function()
    local s = serve(plain .. [[
      function H:receive_data()
        local function try(...) say((pcall(self.set_watermarks, self, ...))) end
        try(2, 1) try(-1, 1) try("a", "b") try(1) try(1, 100001) try(0, 0) try(5, 5) try(0, 100000)
      end
      return H]], 'high_water = 1000, low_water = 0, max_outbound = 100000')
    s:connect():send("x")
    s:expects { "false", "false", "false", "false", "false", "true", "true", "true" }
    s.d:stop()
  end)

  it("below what is queued owes a drained", function()
    local s = serve(plain .. "return H")
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    s:eval "x.conn:send_data(('x'):rep(1000)) x.conn:set_watermarks(10, 100)"
    c:receive(1000)
    s:expects { "drained 0" }
    s.d:stop()
  end)
end)

describe("pause", function()
  t.auto()

  it("stops receive_data inside of receive_data, at once; resume goes on in order", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self end
      function H:receive_data(d) say("data", #d > 0, self:paused(), self:pause(), self:paused()) self.bytes = (self.bytes or 0) + #d end
      return H]]
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    c:send("1")
    s:waits_for("data true false true true")
    c:send(("x"):rep(100000))
    c:expect_silence(0.05)
    assert.equal(1, #s:said())
    assert.same({ 1, true, false }, { s:eval "return x.conn.bytes, x.conn:resume(), x.conn:paused()" })
    t.until_true(function() return #s:said() == 2 end)
    t.until_true(function() return s:eval "x.conn:resume() return x.conn.bytes" == 100001 end)
    s.d:stop()
  end)

  it("stops writing as well, in the middle of a queue", function()
    local s = serve(plain .. "return H")
    local c = s:connect { buffer = 8192 }
    s:until_true("return x.conn ~= nil")
    s:eval "x.conn:send_data(('x'):rep(5000000))"
    local received = #c:receive(1000)
    local left = s:eval "x.conn:pause() return x.conn:get_outbound_data_size()"
    local in_flight = 5000000 - left - received
    c:receive(in_flight)
    c:expect_silence(0.05)
    assert.equal(left, s:eval "return x.conn:get_outbound_data_size()")
    s:eval "x.conn:resume()"
    c:receive(left)
    s.d:stop()
  end)

  it("holds what is sent meanwhile", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self self:pause() say(self:send_data("waiting")) end
      return H]]
    local c = s:connect()
    s:waits_for("true")
    c:expect_silence(0.05)
    assert.equal(7, s:eval "return x.conn:get_outbound_data_size()")
    s:eval "x.conn:resume()"
    c:expect("waiting")
    s.d:stop()
  end)

  it("before an outgoing connection is there keeps it quiet", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:post_init() x.conn = self self:pause() self:send_data("hi") end
      function C:connection_completed() say("completed", self:paused()) end
      function C:receive_data(d) say("data", d) end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return {}]]):format(server.port))
    local c = server:accept()
    c:send("hello")
    s:waits_for("completed true")
    c:expect_silence(0.05)
    s:eval "x.conn:resume()"
    c:expect("hi")
    s:expects { "completed true", "data hello" }
    s.d:stop()
  end)

  it("and resume in one turn change nothing", function()
    local s = serve [[
      local H = {}
      function H:receive_data(d) for _ = 1, 10 do self:pause() self:resume() end self:send_data(d) self:pause() self:resume() end
      return H]]
    local c = s:connect()
    for i = 1, 50 do
      c:send("ping" .. i)
      c:expect("ping" .. i)
    end
    s.d:stop()
  end)

  it("is quiet: no wake-ups, however much the peer sends", function()
    local s = serve "local H = {} function H:post_init() x.conn = self self:pause() end return H"
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    repeat until c:send_some(("x"):rep(65536)) == 0
    s:eval "return 1"
    local wakeups = s.d:wakeups()
    t.sys.sleep(0.2)
    assert.is_true(s.d:wakeups() - wakeups <= 2)
    s.d:stop()
  end)

  it("learns of a reset at once", function()
    local s = serve "local H = {} function H:post_init() x.conn = self self:pause() end function H:unbind(...) say(...) end return H"
    for i, before in ipairs { function() end, function(c) c:send("unread") end, function() s:eval "x.conn:send_data('queued')" end } do
      local c = s:connect()
      s:until_true("return x.conn ~= nil")
      before(c)
      s:eval "x.conn = nil"
      c:reset()
      t.until_true(function() return #s:said() == i end)
      assert.equal("ECONNRESET Connection reset by peer", s:said()[i])
    end
    s.d:stop()
  end)

  it("learns of a reset although error() was asked before", function()
    local s = serve "local H = {} function H:post_init() x.conn = self self:pause() end function H:unbind(...) say(...) end return H"
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    -- Both in one callback: the loop has not seen it yet.
    t.write("go", "")
    c:send("x")
    c:reset()
    t.until_true(function()
      local error = s:eval "return x.conn:error()"
      return error == "ECONNRESET" or error == nil and #s:said() > 0 or #s:said() > 0
    end)
    s:expects { "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)

  it("learns of the peer's end when it is resumed", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self self:pause() end
      function H:receive_data(d) say("data", d) end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    c:send("tail")
    c:close()
    t.sys.sleep(0.05)
    assert.same({}, s:said())
    assert.is_false(s:eval "return x.conn:resume() == nil")
    s:expects { "data tail", "nil eof" }
    s.d:stop()
  end)

  it("gives way to a close after writing", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:send_data("bye") self:pause() self:close_connection_after_writing() end
      return H]]
    assert.equal("bye", s:connect():receive_all())
    s.d:stop()
  end)

  it("keeps the idle limit running", function()
    local s = serve([[
      local H = {}
      function H:post_init() self:pause() end
      function H:unbind(...) say(...) end
      return H]], "idle_timeout = 0.1")
    s:connect()
    s:expects { "ETIMEDOUT idle timeout" }
    s.d:stop()
  end)
end)
