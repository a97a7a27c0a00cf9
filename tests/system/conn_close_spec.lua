-- How a connection ends: asked for in any callback, by the peer, by an error; unbind comes once and last, and says why.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- A handler that closes in the callback whose name x.at holds, with x.how, and says what is called.
local closer = [[
local H = {}
local function step(name)
  H[name] = function(self, ...)
    say(name, ...)
    if x.at == name then
      say("close", self:close_connection(x.after))
      say("again", self:close_connection(x.after))
      say("send", self:send_data("late"))
    end
  end
end
step "initialize" step "post_init" step "connection_completed" step "receive_data" step "receive_eof" step "drained" step "unbind"
]]

describe("close_connection", function()
  t.auto()

  for _, at in ipairs { "initialize", "post_init", "receive_data", "receive_eof" } do
    it("in " .. at .. " ends the connection after the callback; what is queued is dropped", function()
      local s = serve(closer .. "x.at = '" .. at .. "' return H")
      local c = s:connect()
      if at == "receive_data" or at == "receive_eof" then c:send("x") end
      if at == "receive_eof" then c:shutdown_write() end
      assert.equal("", (c:receive_end()))
      s:until_true("return em.connection_count() == 3")
      local expected = { "initialize", "post_init", "receive_data x", "receive_eof" }
      local lines = {}
      for _, line in ipairs(expected) do
        lines[#lines + 1] = line
        if line:match("^%S+") == at then
          table.move({ "close true", "again nil closed ENOTCONN", "send nil closed ENOTCONN" }, 1, 3, #lines + 1, lines)
          if at == "initialize" then lines[#lines + 1] = "post_init" end
          break
        end
      end
      lines[#lines + 1] = "unbind nil closed"
      s:expects(lines)
      s.d:stop()
    end)
  end

  it("in unbind does nothing more", function()
    local s = serve(closer .. "x.at = 'unbind' H.receive_eof = nil return H")
    s:connect():close()
    s:waits_for("send nil closed ENOTCONN")
    s:until_true("return em.connection_count() == 3")
    s:expects { "initialize", "post_init", "unbind nil eof", "close nil closed ENOTCONN", "again nil closed ENOTCONN",
      "send nil closed ENOTCONN" }
    s.d:stop()
  end)

  it("in connection_completed ends an outgoing connection", function()
    local server = t.listen()
    local s = serve(closer .. ([[
      em.next_tick(function() x.at = "connection_completed" em.connect("127.0.0.1", %d, H) end)
      return H]]):format(server.port))
    server:accept():receive_end()
    s:expects { "initialize", "post_init", "connection_completed", "close true", "again nil closed ENOTCONN", "send nil closed ENOTCONN",
      "unbind nil closed" }
    s.d:stop()
  end)

  it("while connecting ends without connection_completed", function()
    local server = t.listen()
    local s = serve(closer .. ([[
      em.next_tick(function() x.at = "post_init" em.connect("127.0.0.1", %d, H) end)
      return H]]):format(server.port))
    s:expects { "initialize", "post_init", "close true", "again nil closed ENOTCONN", "send nil closed ENOTCONN", "unbind nil closed" }
    s.d:stop()
  end)

  it("in drained", function()
    local s = serve(closer .. [[
      x.at = "drained"
      function H:post_init() self:set_watermarks(0, 10) say(self:send_data(("x"):rep(100))) end
      return H]])
    assert.equal(("x"):rep(100), (s:connect():receive_end()))
    s:expects { "initialize", "false", "drained", "close true", "again nil closed ENOTCONN", "send nil closed ENOTCONN",
      "unbind nil closed" }
    s.d:stop()
  end)

  it("from elsewhere, of many in one turn, in the order asked for", function()
    local s = serve [[
      local H = {}
      x.all = {}
      function H:post_init() table.insert(x.all, self) end
      function H:unbind(err, why) say("unbind", self.name, err, why) end
      return H]]
    for _ = 1, 5 do s:connect() end
    s:until_true("return #x.all == 5")
    s:eval [[
      for i, c in ipairs(x.all) do c.name = i end
      for _, i in ipairs { 3, 1, 5, 2, 4 } do x.all[i]:close_connection() end
      say "all asked"]]
    s:expects { "all asked", "unbind 3 nil closed", "unbind 1 nil closed", "unbind 5 nil closed", "unbind 2 nil closed",
      "unbind 4 nil closed" }
    s.d:stop()
  end)

  it("of another connection in a callback, also in its unbind", function()
    local s = serve [[
      local H = {}
      x.all = {}
      function H:post_init() table.insert(x.all, self) end
      function H:receive_data() for _, c in ipairs(x.all) do c:close_connection() end end
      function H:unbind() for _, c in ipairs(x.all) do c:close_connection() c:send_data("x") end say("unbind") end
      return H]]
    local a, b = s:connect(), s:connect()
    s:until_true("return #x.all == 2")
    b:send("x")
    a:expect_eof()
    b:receive_end()
    s:expects { "unbind", "unbind" }
    a, b = s:connect(), s:connect()
    s:until_true("return #x.all == 4")
    a:close()
    b:expect_eof()
    s:expects { "unbind", "unbind", "unbind", "unbind" }
    s.d:stop()
  end)
end)

describe("close_connection_after_writing", function()
  t.auto()

  it("sends all of 10 MB to a slow reader first, takes no more, and ends when the reader does", function()
    local s = serve [[
      local H = {}
      function H:receive_data()
        self:send_data(("0123456789abcdef"):rep(64 * 1024 * 10))
        say(self:close_connection_after_writing())
        say(self:send_data("no more"))
        say(self:get_outbound_data_size())
      end
      function H:unbind(...) say("unbind", ...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    s:expects { "true", "nil closed ENOTCONN", tostring(10 * 1024 * 1024) }
    c:send("this is not read")
    assert.equal(("0123456789abcdef"):rep(64), c:receive(1024))
    local rest = c:receive_all()
    assert.equal(10 * 1024 * 1024 - 1024, #rest)
    assert.is_true(rest == ("0123456789abcdef"):rep(64 * 1024 * 10 - 64))
    c:close()
    s:expects { "true", "nil closed ENOTCONN", tostring(10 * 1024 * 1024), "unbind nil closed" }
    s.d:stop()
  end)

  it("goes by an overridden close_connection", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:close_connection(...) say("close", ...) return em.Connection.close_connection(self, ...) end
      function H:receive_data() self:send_data("bye") say(self:close_connection_after_writing()) end
      return H]]
    local c = s:connect()
    c:send("x")
    assert.equal("bye", c:receive_all())
    s:expects { "close true", "true" }
    s.d:stop()
  end)

  it("can be turned into a close at once", function()
    local s = serve [[
      local H = {}
      x.conns = {}
      function H:post_init() x.conn = self end
      function H:receive_data() self:send_data(("x"):rep(10000000)) self:close_connection_after_writing() end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    c:receive(1)
    s:eval "x.conn:close_connection()"
    s:expects { "nil closed" }
    assert.is_true(#c:receive_end() < 9999999)
    s.d:stop()
  end)

  it("while connecting flushes after the connection is there", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:post_init() self:send_data("short visit") self:close_connection_after_writing() end
      function C:unbind(...) say(...) end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return {}]]):format(server.port))
    local c = server:accept()
    assert.equal("short visit", c:receive_all())
    c:close()
    s:expects { "nil closed" }
    s.d:stop()
  end)

  it("ends with linger timeout at a peer that does not read, also at one that trickles", function()
    local s = serve([[
      local H = {}
      function H:receive_data()
        self.at = em.current_time()
        self:send_data(("x"):rep(10000000))
        self:close_connection_after_writing()
      end
      function H:unbind(err, why) say(err, why, (em.current_time() - self.at) // 0.1) end
      return H]], "linger_timeout = 0.3")
    local c, trickler = s:connect { buffer = 8192 }, s:connect { buffer = 8192 }
    c:send("go")
    trickler:send("go")
    t.until_true(function()
      pcall(trickler.send_some, trickler, "x")
      t.sys.recv(trickler.fd, 100)
      return #s:said() == 2
    end)
    for _, line in ipairs(s:said()) do
      local tenths = tonumber(line:match("^ETIMEDOUT linger timeout ([%d.]+)$"))
      assert.is_true(tenths ~= nil and tenths >= 3 and tenths < 3 + t.seconds(3), line)
    end
    s.d:stop()
  end)

  it("ends with linger timeout when the peer does not close its side", function()
    local s = serve([[
      local H = {}
      function H:post_init() self:send_data("bye") self:close_connection_after_writing() end
      function H:unbind(...) say(...) end
      return H]], "linger_timeout = 0.1")
    local c = s:connect()
    assert.equal("bye", c:receive_all())
    s:expects { "ETIMEDOUT linger timeout" }
    s.d:stop()
  end)

  it("does not destroy the last bytes by a reset when input is unread", function()
    local s = serve [[
      local H = {}
      function H:receive_data() self:send_data(("y"):rep(100000)) self:close_connection_after_writing() end
      return H]]
    for _ = 1, 10 do
      local c = s:connect()
      c:send(("x"):rep(300000))
      assert.equal(100000, #c:receive_all())
      c:close()
    end
    s.d:stop()
  end)

  it("ignores further arguments", function()
    local s = serve [[
      local H = {}
      function H:post_init() say(self:close_connection_after_writing(1, 2)) end
      return H]]
    s:connect():expect_eof()
    s:expects { "true" }
    s.d:stop()
  end)
end)

describe("unbind", function()
  t.auto()

  local unbinder = "local H = {} function H:post_init() x.conn = self end function H:unbind(...) say(...) end return H"

  it("says eof when the peer has closed", function()
    local s = serve(unbinder)
    s:connect():close()
    s:expects { "nil eof" }
    s.d:stop()
  end)

  it("says ECONNRESET when the peer has reset, at once", function()
    local s = serve(unbinder)
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    c:reset()
    s:expects { "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)

  it("says so also in the middle of a write", function()
    local s = serve [[
      local H = {}
      function H:receive_data() self:send_data(("x"):rep(8000000)) end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    c:receive(10)
    c:reset()
    s:expects { "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)

  -- The daemon is busy while a client sends something and resets; then it writes before it has read.
  local function write_after_reset(handler)
    local s = serve(handler, { config = "callback_time = 0" })
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    s:ask [[
      say "busy"
      repeat local file = io.open(x.path "go") until file
      x.conn:send_data("too late")]]
    s:waits_for("busy")
    c:send("last words")
    c:reset()
    t.write("go", "")
    s:answer()
    return s
  end

  it("comes after what had arrived before the reset, also when a write has met it first", function()
    local s = write_after_reset [[
      local H = {}
      function H:post_init() x.conn = self end
      function H:receive_data(d) say("data", d, self:send_data("x")) end
      function H:unbind(...) say(...) end
      return H]]
    s:expects { "busy", "data last words nil closed ENOTCONN", "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)

  it("comes although the connection is paused where that is read", function()
    local s = write_after_reset [[
      local H = {}
      function H:post_init() x.conn = self end
      function H:receive_data(d) say("data", d) self:pause() end
      function H:unbind(...) say(...) end
      return H]]
    s:expects { "busy", "data last words", "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)

  it("comes once at the daemon's end, with stopped", function()
    local s = serve(unbinder)
    s:connect()
    s:until_true("return x.conn ~= nil")
    s.d:stop { keep_clients = true }
    s:expects { "nil stopped" }
  end)

  it("still knows the names of both ends, and so does the object afterwards", function()
    local s = serve [[
      local H = {}
      local function names(self)
        return table.concat({ self:get_peername() }, " ") .. " " .. table.concat({ self:get_sockname() }, " ")
      end
      function H:post_init() self.names = names(self) end
      function H:unbind() say(names(self) == self.names) x.old = self x.names = names end
      return H]]
    local c = s:connect()
    c:send("x")
    c:shutdown_write()
    c:expect_eof()
    s:expects { "true" }
    assert.equal("127.0.0.1", (s:eval "return x.old:get_peername()"))
    assert.is_true(s:eval "return x.names(x.old) == x.old.names")
    assert.equal(s.port, (select(2, s:eval "return x.old:get_sockname()")))
    s.d:stop()
  end)

  it("leaves an object whose methods return nil, closed, ENOTCONN", function()
    local s = serve "local H = {} function H:unbind() x.old = self end return H"
    s:connect():close()
    s:until_true("return x.old ~= nil")
    -- Every method, with arguments where it wants some, but for those that answer all the same.
    local arguments = {
      send_data = "'x'", write = "'x'", close_connection = "true", set_watermarks = "1, 2", set_comm_inactivity_timeout = "1",
      set_pending_connect_timeout = "1", set_sock_opt = "'tcp', 'nodelay', true", get_sock_opt = "'tcp', 'nodelay'",
      add_timer = "1, print", add_periodic_timer = "1, print", send_file_data = "'x'", stream_file_data = "'x'",
      send_datagram = "'x', '127.0.0.1', 1", join_multicast = "'224.0.0.251'", leave_multicast = "'224.0.0.251'",
      proxy_incoming_to = "x.old", subscribe = "'x'", unsubscribe = "'x'",
    }
    local answer = {
      get_peername = true, get_sockname = true, reconnect = true, on = true, once = true, off = true, emit = true, get_pid = true,
      get_status = true, get_proxied_bytes = true, extend = true,
      read = true, read_line = true, read_all = true, -- in coroutines alone
    }
    local names = s:eval [[
      local names = {}
      for name, fn in pairs(em.Connection) do
        if type(fn) == "function" then table.insert(names, name) end
      end
      return table.concat(names, " ")]]
    local count = 0
    for name in names:gmatch("%S+") do
      local call = ("%s(%s)"):format(name, arguments[name] or "")
      if not answer[name] then
        count = count + 1
        assert.same({ call, nil, "closed", "ENOTCONN" }, { call, s:eval("return x.old:" .. call) })
      end
    end
    assert.is_true(count > 40)
    assert.equal("integer", s:eval "return math.type(x.old.signature)")
    assert.equal(s.port, (select(2, s:eval "return x.old:get_sockname()")))
    s:eval "x.old:on('custom', function(...) say('custom', ...) end):emit('custom', 1, 2)"
    s:expects { "custom 1 2" }
    s.d:stop()
  end)

  it("may make new connections and timers", function()
    local s = serve [[
      local H = {}
      function H:unbind()
        say("unbind")
        em.add_timer(0.01, function() say("timer") end)
        if not x.once then
          x.once = true
          em.connect("127.0.0.1", x.port, { connection_completed = function(self) say("connected") self:close_connection() end })
        end
      end
      return H]]
    s:connect():close()
    t.until_true(function() return #s:said() == 5 end)
    local said = s:said()
    table.sort(said)
    assert.same({ "connected", "timer", "timer", "unbind", "unbind" }, said)
    s.d:stop()
  end)

  it("comes once for each of a thousand connections, and nothing of them stays", function()
    local s = serve [[
      local H = {}
      x.begun, x.ended, x.twice = 0, 0, 0
      function H:post_init() x.begun = x.begun + 1 if x.begun % 3 == 0 then self:close_connection() end end
      function H:receive_data(d) self:send_data(d) if d == "bye" then self:close_connection_after_writing() end end
      function H:unbind() if self.done then x.twice = x.twice + 1 end self.done = true x.ended = x.ended + 1 end
      return H]]
    for i = 1, 1000 do
      local c = s:connect()
      if i % 4 == 1 then c:send_some("bye") elseif i % 4 == 2 then c:reset() elseif i % 4 == 3 then c:send_some("x") end
      c:close()
    end
    s:until_true("return x.ended == 1000")
    assert.equal(0, s:eval "return x.twice")
    assert.equal(3, s:eval "return em.connection_count()")
    s.d:stop()
  end)

  it("is not called inside close_connection, however deep the calls", function()
    local s = serve [[
      local H = {}
      local inside
      function H:post_init() x.conn = self end
      function H:receive_data()
        inside = true
        self:close_connection()
        em.next_tick(function() say("tick", self:send_data("x")) end)
        inside = false
      end
      function H:unbind(_, why) say("unbind", inside, why) end
      return H]]
    s:connect():send("x"):receive_end()
    s:expects { "tick nil closed ENOTCONN", "unbind false closed" }
    s.d:stop()
  end)
end)
