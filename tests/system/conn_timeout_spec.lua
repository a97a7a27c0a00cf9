-- Limits of time: idle, connecting, lingering.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- Says how it ended and how many hundredths of a second after the last byte.
local timed = [[
local H = {}
function H:post_init() x.conn = self self.at = em.current_time() end
function H:receive_data(d) self.at = em.current_time() if self.answer then self:send_data(d) end end
function H:unbind(err, why) say(("%s %s"):format(err, why)) x.after = em.current_time() - self.at end
]]

-- A port on which nobody answers: its backlog is full. Connections that hold it are the test's.
local function silent_port()
  local server = t.listen(nil, 0)
  t.connect(server.port)
  local more = {}
  for i = 1, 3 do
    local sock = require("socket").tcp4()
    sock:settimeout(0)
    sock:connect("127.0.0.1", server.port)
    more[i] = sock
  end
  server.held = more
  return server.port, server
end

describe("the idle limit", function()
  t.auto()

  it("is exact: neither early nor late", function()
    local s = serve(timed .. "return H", "idle_timeout = 0.2")
    s:connect()
    s:expects { "ETIMEDOUT idle timeout" }
    local after = s:eval "return x.after"
    assert.is_true(after >= 0.2 and after < 0.2 + t.seconds(0.1), after)
    s.d:stop()
  end)

  it("is off by default and by 0", function()
    local s = serve(timed .. [[function H:receive_data() self:send_data(self:get_comm_inactivity_timeout(), "\n") end return H]])
    local c = s:connect()
    c:send("x")
    assert.equal(0, tonumber(c:receive_line()))
    s:eval "x.conn:set_comm_inactivity_timeout(0.05) x.conn:set_comm_inactivity_timeout(0)"
    c:expect_silence(0.15)
    s.d:stop()
  end)

  it("can be set and read, and raises for what is no time", function()
    local s = serve(timed .. "return H", "idle_timeout = 7.5")
    s:connect()
    s:until_true("return x.conn ~= nil")
    assert.same({ 7.5, true, 2.5 }, { s:eval [[
      local c = x.conn
      return c:get_comm_inactivity_timeout(), c:set_comm_inactivity_timeout(2.5), c:get_comm_inactivity_timeout()]] })
    assert.same({ false, false }, { s:eval [[
      return pcall(x.conn.set_comm_inactivity_timeout, x.conn, -1) and true, pcall(x.conn.set_comm_inactivity_timeout, x.conn, "x") and true
      ]] })
    s.d:stop()
  end)

  it("set by the script counts from the last byte", function()
    local s = serve(timed .. "return H")
    s:connect()
    s:until_true("return x.conn and x.conn:get_idle_time() > 0.1")
    s:eval "x.conn:set_comm_inactivity_timeout(0.15)"
    s:expects { "ETIMEDOUT idle timeout" }
    local after = s:eval "return x.after"
    assert.is_true(after >= 0.15 and after < 0.15 + t.seconds(0.1), after)
    s.d:stop()
  end)

  it("ends what has been idle for longer already", function()
    local s = serve(timed .. "return H")
    s:connect()
    s:until_true("return x.conn and x.conn:get_idle_time() > 0.06")
    s:eval "x.conn:set_comm_inactivity_timeout(0.05) say 'set'"
    s:expects { "set", "ETIMEDOUT idle timeout" }
    s.d:stop()
  end)

  it("spares a peer that sends a byte now and then", function()
    local s = serve(timed .. "return H", "idle_timeout = " .. t.seconds(0.2))
    local c = s:connect()
    local stop = t.now() + t.seconds(0.6)
    while t.now() < stop do
      c:send("x")
      t.sys.sleep(0.05)
      assert.same({}, s:said())
    end
    s:expects { "ETIMEDOUT idle timeout" }
    assert.is_true(s:eval "return x.after" >= t.seconds(0.2))
    s.d:stop()
  end)

  it("spares a peer that reads now and then what we send", function()
    local s = serve(timed .. "return H", ("idle_timeout = %g"):format(t.seconds(0.2)))
    local c = s:connect { buffer = 8192 }
    s:until_true("return x.conn ~= nil")
    s:eval "x.conn:set_sock_opt('socket', 'sndbuf', 4096) x.conn:send_data(('x'):rep(2000000))"
    local stop = t.now() + t.seconds(0.6)
    while t.now() < stop do
      c:receive(20000)
      t.sys.sleep(0.03)
      assert.same({}, s:said())
    end
    s:expects { "ETIMEDOUT idle timeout" }
    s.d:stop()
  end)

  it("is met by a peer that does not read, although we go on queueing", function()
    local s = serve(timed .. [[
      function H:receive_data()
        local function more() if self:send_data(("x"):rep(100)) ~= nil then em.add_timer(0.02, more) end end
        self:send_data(("x"):rep(9000000))
        more()
      end
      return H]], "idle_timeout = 0.2")
    s:connect({ buffer = 8192 }):send("go")
    s:expects { "ETIMEDOUT idle timeout" }
    s.d:stop()
  end)

  it("of an outgoing connection begins when it is there", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:post_init() self:set_comm_inactivity_timeout(0.1) end
      function C:connection_completed() say "completed" end
      function C:unbind(...) say(...) end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return {}]]):format(server.port))
    local c = server:accept()
    c:receive_end()
    s:expects { "completed", "ETIMEDOUT idle timeout" }
    s.d:stop()
  end)

  it("costs no wake-ups of its own while it is far away", function()
    local s = serve(timed .. "return H", "idle_timeout = 100")
    for _ = 1, 20 do s:connect():send("x") end
    s:until_true("return em.connection_count() == 23")
    local wakeups = s.d:wakeups()
    t.sys.sleep(0.1)
    assert.is_true(s.d:wakeups() - wakeups <= 1)
    s.d:stop()
  end)

  it("ends many connections, each at its own time", function()
    local s = serve([[
      local H = {}
      x.early, x.late = 0, 0
      function H:post_init()
        self.at, self.limit = em.current_time(), 0.05 + math.random() / 5
        self:set_comm_inactivity_timeout(self.limit)
      end
      function H:unbind(err)
        local after = em.current_time() - self.at
        if err ~= "ETIMEDOUT" or after < self.limit then x.early = x.early + 1 end
        if after > self.limit + 0.1 then x.late = x.late + 1 end
      end
      return H]])
    for _ = 1, 100 do s:connect() end
    s:until_true("return em.connection_count() == 3")
    local early, late = s:eval "return x.early, x.late"
    assert.equal(0, early)
    if not t.sanitized then assert.is_true(late < 20, late) end
    s.d:stop()
  end)
end)

describe("get_idle_time", function()
  t.auto()

  it("grows, and begins anew with a byte in or out", function()
    local s = serve(timed .. "return H")
    local c = s:connect()
    s:until_true("return x.conn and x.conn:get_idle_time() > 0.05")
    c:send("x")
    s:until_true("return x.conn:get_idle_time() < 0.05")
    s:until_true("return x.conn:get_idle_time() > 0.05")
    s:eval "x.conn:send_data('x')"
    c:receive(1)
    assert.is_true(s:eval "return x.conn:get_idle_time()" < t.seconds(0.05))
    s.d:stop()
  end)
end)

describe("the limit of connecting", function()
  t.auto()

  it("ends with ETIMEDOUT, connect timeout, exactly", function()
    local port = silent_port()
    local s = serve(timed .. ([[
      function H:connection_completed() say "completed" end
      em.next_tick(function() em.connect("127.0.0.1", %d, H):set_pending_connect_timeout(0.2) end)
      return {}]]):format(port))
    s:expects { "ETIMEDOUT connect timeout" }
    local after = s:eval "return x.after"
    assert.is_true(after >= 0.2 and after < 0.2 + t.seconds(0.1), after)
    s.d:stop()
  end)

  it("can be set in post_init and in the options, and is 20 seconds else", function()
    local port = silent_port()
    local s = serve(timed .. ([[
      local D = setmetatable({}, { __index = em.Connection })
      function D:post_init() say(self:get_pending_connect_timeout()) self:close_connection() end
      em.next_tick(function()
        em.connect("127.0.0.1", %d, D)
        em.connect({ url = "tcp://127.0.0.1:%d", connect_timeout = 3 }, D)
        local P = {}
        function P:post_init() self:set_pending_connect_timeout(0.05) say(self:get_pending_connect_timeout()) end
        function P:unbind(...) say(...) end
        em.connect("127.0.0.1", %d, P)
      end)
      return {}]]):format(port, port, port))
    s:expects { "20.0", "3.0", "0.05", "ETIMEDOUT connect timeout" }
    s.d:stop()
  end)

  it("of 0 in the options is none", function()
    local port, server = silent_port()
    local s = serve(([[
      local C = {}
      function C:post_init() x.conn = self end
      function C:connection_completed() say "completed" end
      function C:unbind(...) say(...) end
      em.next_tick(function() em.connect({ url = "tcp://127.0.0.1:%d", connect_timeout = 0 }, C) end)
      return {}]]):format(port))
    s:until_true("return x.conn and x.conn:get_idle_time() > 0.1")
    assert.same({}, s:said())
    s:eval "x.conn:close_connection()"
    s:expects { "nil closed" }
    server:close()
    s.d:stop()
  end)

  it("raises for 0, negative and other values of the script", function()
    local s = serve(timed .. "return H")
    s:connect()
    s:until_true("return x.conn ~= nil")
    for _, value in ipairs { "0", "-1", "'x'", "nil", "{}" } do
      assert.is_false((s:eval("return pcall(x.conn.set_pending_connect_timeout, x.conn, %s)", value)))
    end
    s.d:stop()
  end)

  it("leaves nothing behind: descriptors are closed", function()
    local port = silent_port()
    local s = serve(timed .. "return {}")
    s:eval "return 1"
    local before = s.d:fds()
    s:eval([[
      for _ = 1, 20 do
        em.connect("127.0.0.1", %d, { unbind = function(_, err) say(err) end }):set_pending_connect_timeout(0.02)
      end]], port)
    t.until_true(function() return #s:said() == 20 end)
    s:until_true("return em.connection_count() == 3")
    assert.equal(before, s.d:fds())
    s.d:stop()
  end)
end)

describe("the limit of the first byte", function()
  t.auto()

  it("ends who says nothing, and nobody who has said something", function()
    local s = serve(timed .. "return H", "first_byte_timeout = 0.3")
    local talker = s:connect()
    talker:send("x")
    s:connect():expect_eof()
    s:expects { "ETIMEDOUT first byte timeout" }
    local after = s:eval "return x.after"
    assert.is_true(after >= 0.3 and after < 0.3 + t.seconds(0.3), after)
    talker:expect_silence(0.2)
    talker:send("x"):close()
    s:expects { "ETIMEDOUT first byte timeout", "nil eof" }
    s.d:stop()
  end)

  it("counts what comes after a TLS handshake alone", function()
    local tls = require "tests.support.tls"
    local s = serve(timed .. "return H", "first_byte_timeout = 0.3, tls = { self_signed = true }")
    local c = assert(tls.connect(s.port, { verify = "none" }))
    s:expects { "ETIMEDOUT first byte timeout" }
    c:close()
    s.d:stop()
  end)

  it("waits for one who is not listened to, and leaves other ends alone", function()
    local s = serve([[
      local H = {}
      function H:post_init()
        x.conn = self
        if x.close then return self:close_connection_after_writing() end
        self:pause()
      end
      function H:receive_data(d) self:send_data(d) end
      function H:unbind(err, why) say(("%s %s"):format(err, why)) end
      return H]], "first_byte_timeout = 0.1, linger_timeout = 0.4")
    local c = s:connect()
    c:send("word")
    c:expect_silence(0.3)
    s:eval "x.conn:resume() x.close = true"
    c:expect("word")
    c:close()
    s:expects { "nil eof" }
    local began = t.now()
    s:connect() -- and does not close
    s:expects { "nil eof", "ETIMEDOUT linger timeout" }
    assert.is_true(t.now() - began >= 0.4)
    s.d:stop()
  end)

  it("is none by default, and not for outgoing connections and datagrams", function()
    local r = t.reactord { "-t", "-c", t.write("c.conf", 'connect "tcp://127.0.0.1:1" { handler = "echo", first_byte_timeout = 1 }\n'
      .. 'listen "udp://127.0.0.1:1" { handler = "echo", first_byte_timeout = 1 }') }
    assert.equal(1, r.status)
    assert.matches("unknown option 'first_byte_timeout' in connect", r.err, 1, true)
    assert.matches("'first_byte_timeout' in listen \"udp://127.0.0.1:1\": only a stream socket has it", r.err, 1, true)
    local s = serve(timed .. "return H")
    s:connect():expect_silence(0.3)
    s.d:stop()
  end)
end)
