-- Relays between connections: proxy_incoming_to and its kin, by scripts that are driven from outside.
local t = require "tests.support.harness"
local pattern = require "tests.support.pattern"

-- A daemon whose handler "front" relays each client to a server of the test's own. Lua text of the handlers' methods comes in methods
-- (Front, Back: the classes; out(fmt, ...): a line in the log).
local function start(methods, options)
  options = options or {}
  local server = t.listen()
  local port = t.free_port()
  t.write("front.lua", ([[
local em = require "em"
local out = em.log.info
local Front, Back = em.Connection:extend(), em.Connection:extend()
function Back:initialize(front) self.front = front; front.back = self end
%s
function Front:post_init()
  local to = em.connect("127.0.0.1", %d, Back, self)
  if self.begin then self:begin(to) else
    assert(self:proxy_incoming_to(to))
    assert(to:proxy_incoming_to(self))
  end
end
return Front
]]):format(methods or "", server.port))
  local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "front"%s }'):format(port, options.listen or ""))
  return port, server, d
end

describe("a relay", function()
  t.auto()

  it("passes bytes both ways, without receive_data", function()
    local port, server, d = start [[
      function Front:receive_data() out("front receives") end
      function Back:receive_data() out("back receives") end
    ]]
    local c = t.connect(port)
    local s = server:accept()
    for i = 1, 20 do
      c:send("question " .. i .. "\n")
      s:expect("question " .. i .. "\n")
      s:send("answer " .. i .. "\n")
      c:expect("answer " .. i .. "\n")
    end
    d:stop()
    assert.equal(0, d:count_log("receives"))
    assert.matches("bytes_relayed=%d%d%d", d:log())
  end)

  it("takes bytes before its target is connected", function()
    local port, server = start()
    local c = t.connect(port):send("early")
    server:accept():expect("early")
    c:close()
  end)

  it("moves megabytes both ways at once", function()
    local port, server = start()
    local c, bytes = t.connect(port), pattern(3 << 20)
    local s = server:accept()
    local at = { [c] = 1, [s] = 1 }
    local got = { [c] = {}, [s] = {} }
    local count = { [c] = 0, [s] = 0 }
    t.until_true(function()
      for side in pairs(at) do
        if at[side] <= #bytes then at[side] = at[side] + (side:send_some(bytes:sub(at[side], at[side] + 65535)) or 0) end
        if side:fill(0) then
          table.insert(got[side], side.buffer)
          count[side] = count[side] + #side.buffer
          side.buffer = ""
        end
      end
      return count[c] == #bytes and count[s] == #bytes
    end, 10, "all bytes")
    assert.is_true(table.concat(got[c]) == bytes)
    assert.is_true(table.concat(got[s]) == bytes)
  end)

  it("keeps to its bufsize while the target does not read, and loses nothing", function()
    local port, server, d = start [[
      function Front:begin(to)
        self:proxy_incoming_to(to, 100000)
        self:add_periodic_timer(0.02, function()
          if not to.most or to:get_outbound_data_size() > to.most then
            to.most = to:get_outbound_data_size()
            out("queue %d", to.most)
          end
        end)
      end
    ]]
    local c = t.connect(port) -- its buffers are the kernel's: small ones wait for delayed acknowledgements, 40 ms each
    local s, bytes = server:accept(), pattern(24 << 20) -- more than kernels take in between
    t.sys.buffers(s.fd, 65536)
    local sent, still = 0, 0
    while still < 20 do -- until nothing moves any more
      local n = c:send_some(bytes:sub(sent + 1, sent + 262144))
      sent = sent + n
      still = n == 0 and still + 1 or 0
      if n == 0 then t.sys.sleep(0.01) end
    end
    assert.is_true(sent < #bytes, "no back-pressure")
    local most = 0
    for n in d:log():gmatch("queue (%d+)") do most = math.max(most, tonumber(n)) end
    assert.is_true(most > 0 and most <= 100000 + 16384, "queue of " .. most)
    -- now it reads
    local got, count = {}, 0
    t.until_true(function()
      repeat -- without a pause as long as anything moves
        local n = sent < #bytes and c:send_some(bytes:sub(sent + 1, sent + 262144)) or 0
        sent = sent + n
        while s:fill(n > 0 and 0.01 or 0) do
          table.insert(got, s.buffer)
          count = count + #s.buffer
          s.buffer = ""
          n = n + 1
        end
      until n == 0
      return count == #bytes
    end, 10, "the rest")
    assert.is_true(table.concat(got) == bytes)
  end)

  it("is not idle while the target moves on slowly", function()
    local port, server, d = start([[
      function Front:begin(to) self:proxy_incoming_to(to, 65536) end
      function Front:unbind(err, why) out("front ends: %s", why) end
    ]], { listen = ", idle_timeout = 0.4" })
    local c = t.connect(port, { buffer = 16384 })
    local s = server:accept()
    local bytes, sent, read = pattern(24 << 20), 0, 0
    local till = t.now() + 1.2
    while t.now() < till do
      sent = sent + (c:send_some(bytes:sub(sent + 1, sent + 262144)) or 0)
      if s:fill(t.now() + 0.05) then
        read = read + #s.buffer
        s.buffer = ""
      end
    end
    assert.equal(0, d:count_log("front ends"))
    t.until_true(function() return d:count_log("front ends: idle timeout") == 1 end, 5, "the idle timeout")
    assert.is_true(read > 0)
  end)

  it("ends after length bytes: proxy_completed, and the rest comes to receive_data", function()
    local port, server, d = start [[
      function Front:begin(to) assert(em.enable_proxy(self, to, 0, 5)) end
      function Front:proxy_completed() out("completed after %d", self:get_proxied_bytes()) end
      function Front:receive_data(data) out("received '%s'", data); self:send_data(data) end
    ]]
    local c = t.connect(port):send("12345678")
    server:accept():expect("12345"):expect_silence(0.05)
    c:expect("678")
    c:send("more"):expect("more")
    d:wait_log("received 'more'")
    local log = d:log()
    assert.is_true(log:find("completed after 5", 1, true) < log:find("received '678'", 1, true))
  end)

  it("goes on with a new one from proxy_completed, at the exact byte", function()
    local port, server = start [[
      local size = 0
      function Front:begin(to) self:proxy_incoming_to(to, 0, 3) end
      function Front:proxy_completed()
        size = size + 1
        self.back:send_data("|")
        if size < 4 then self:proxy_incoming_to(self.back, 0, size) end
      end
      function Front:receive_data(data) self.back:send_data(data) end
    ]]
    t.connect(port):send("abcdefghijkl")
    server:accept():expect("abc|d|ef|ghi|jkl")
  end)

  it("stops at once with stop_proxying; the count stays", function()
    local port, server, d = start [[
      function Front:begin(to)
        self:proxy_incoming_to(to)
        function to:receive_data()
          assert(em.disable_proxy(self.front))
          out("stopped at %d", self.front:get_proxied_bytes())
          self:send_data("stopped")
        end
      end
      function Front:receive_data(data) self:send_data("to you: " .. data) end
      function Front:unbind()
        out("in unbind %d", self:get_proxied_bytes())
        em.next_tick(function() out("after it %d", self:get_proxied_bytes()) end)
      end
    ]]
    local c = t.connect(port):send("1234567")
    local s = server:accept():expect("1234567")
    s:send("enough"):expect("stopped")
    c:send("hello"):expect("to you: hello")
    c:close()
    d:wait_log("after it 7")
    d:wait_log("in unbind 7")
    d:wait_log("stopped at 7")
  end)

  it("is refused where the target is busy, closed or shut", function()
    local port, server, d = start [[
      local first
      function Front:begin(to)
        local function try(what, target)
          local ok, message, code = self:proxy_incoming_to(target or to)
          out("%s: %s, %s, %s", what, ok, message, code)
        end
        if not first then
          first = to
          try "free"
          try "again"
          return
        end
        try("busy", first)
        to:close_write()
        try "shut"
        to:close_connection()
        try "closing"
        function to.unbind()
          try "in unbind"
          em.next_tick(function()
            try "ended"
            self:close_connection()
            try("from a closing one", first)
            em.next_tick(function() em.next_tick(function() try("from an ended one", first) end) end)
          end)
        end
      end
    ]]
    local c = t.connect(port)
    server:accept()
    local c2 = t.connect(port)
    d:wait_log("from an ended one: nil, closed, ENOTCONN")
    d:wait_log("from a closing one: nil, closed, ENOTCONN")
    d:wait_log("free: true, nil, nil")
    d:wait_log("again: true, nil, nil")
    d:wait_log("busy: nil, the target is fed by another connection, EBUSY")
    d:wait_log("shut: nil, the target is closed for writing, EPIPE")
    d:wait_log("closing: nil, the target is closed, ENOTCONN")
    d:wait_log("in unbind: nil, the target is closed, ENOTCONN")
    d:wait_log("ended: nil, the target is closed, ENOTCONN")
    c:close()
    c2:close()
  end)

  it("raises for what is no connection or no size", function()
    local r = t.script [[
      local em = require "em"
      local c = em.connect("127.0.0.1", 1)
      local function try(...) print(select(2, pcall(...))) end
      try(c.proxy_incoming_to, c, {})
      try(c.proxy_incoming_to, c)
      try(c.proxy_incoming_to, c, c, -1)
      try(c.proxy_incoming_to, c, c, 0, "x")
      try(em.enable_proxy, 5, c)
      try(em.disable_proxy, nil)
      print(c:get_proxied_bytes())
    ]]
    assert.equal(0, r.status)
    assert.matches("bad argument #2 .*connection expected, got table", r.out)
    assert.matches("connection expected, got no value", r.out)
    assert.matches("bad argument #3", r.out)
    assert.matches("bad argument #4", r.out)
    assert.matches("bad argument #1 .*connection expected, got number", r.out)
    assert.matches("connection expected, got nil", r.out)
    assert.matches("\n0\n$", r.out)
  end)

  it("is refused where there is no stream", function()
    local r = t.script [[
      local em = require "em"
      local udp = em.open_datagram_socket("127.0.0.1", 0)
      local c = em.connect("127.0.0.1", 1)
      print(udp:proxy_incoming_to(c))
      print(em.enable_proxy(c, udp))
      udp:close_connection()
    ]]
    assert.equal(("nil\tnot on a datagram socket or a watch\tEOPNOTSUPP\n"):rep(2), r.out)
  end)

  it("passes a child's output on, to its tail", function()
    local port, server, d = start [[
      function Front:begin(to)
        local child = assert(em.popen({ "sh", "-c", "head -c 3000000 /dev/zero; echo the end" }))
        child:proxy_incoming_to(self, 65536)
        self:proxy_incoming_to(to)
      end
    ]]
    local c = t.connect(port)
    t.sys.sleep(0.1)
    local bytes = c:receive_all()
    assert.equal(3000008, #bytes)
    assert.equal("the end\n", bytes:sub(-8))
    c:close()
    server:close()
    d:stop()
  end)

  it("tells the source when its target ends; later data comes to receive_data", function()
    local port, server, d = start [[
      function Front:proxy_target_unbound() out("target unbound"); self:send_data("alone") end
      function Front:receive_data(data) self:send_data("got " .. data) end
      function Back:unbind(err, why) out("back ends: %s", err) end
    ]]
    local c = t.connect(port):send("x")
    server:accept():expect("x"):reset()
    c:expect("alone")
    c:send("later"):expect("got later")
    c:close()
    d:stop()
    assert.equal(1, d:count_log("target unbound"))
    assert.equal(1, d:count_log("back ends: ECONNRESET"))
  end)

  it("gives back to receive_data what a closing target does not take", function()
    local port, server, d = start [[
      function Front:begin(to) self:proxy_incoming_to(to) end
      function Back:receive_data() self:close_connection_after_writing() end
      function Front:proxy_target_unbound() out("target unbound") end
      function Front:receive_data(data) self:send_data("got " .. data) end
    ]]
    local c = t.connect(port):send("x")
    local s = server:accept():expect("x")
    s:send("end"):expect_eof() -- lingers as long as we leave it
    c:send("later"):expect("got later")
    assert.equal(1, d:count_log("target unbound"))
    s:close()
    c:send("again"):expect("got again")
    c:close()
    d:stop()
    assert.equal(1, d:count_log("target unbound"))
  end)

  it("hears of a target that cannot be connected", function()
    local port, server, d = start [[
      function Front:proxy_target_unbound() out("target unbound"); self:close_connection() end
    ]]
    server:close()
    t.connect(port):send("for nobody"):receive_end()
    d:wait_log("target unbound")
  end)

  it("carries half-closes across, and ends with the second", function()
    local port, server, d = start [[
      function Front:unbind(err, why) out("front ends: %s, %s", err, why) end
      function Back:unbind(err, why) out("back ends: %s, %s", err, why) end
    ]]
    local c = t.connect(port):send("request"):shutdown_write()
    local s = server:accept()
    assert.equal("request", s:receive_all())
    c:expect_silence(0.05)
    s:send("response, after the end"):shutdown_write()
    assert.equal("response, after the end", c:receive_all())
    d:wait_log("front ends: nil, eof")
    d:wait_log("back ends: nil, eof")
    -- and the other way round
    c = t.connect(port)
    s = server:accept():send("banner"):shutdown_write()
    assert.equal("banner", c:receive_all())
    c:send("late word"):shutdown_write()
    assert.equal("late word", s:receive_all())
    t.until_true(function() return d:count_log("ends: nil, eof") == 4 end)
  end)

  it("calls receive_eof where there is one, beside passing the end on", function()
    local port, server, d = start [[
      function Front:receive_eof() out("front hears"); self:send_data("bye") end
    ]]
    local c = t.connect(port):send("request"):shutdown_write()
    local s = server:accept()
    assert.equal("request", s:receive_all())
    c:expect("bye")
    s:send("response"):shutdown_write()
    assert.equal("response", c:receive_all())
    assert.equal(1, d:count_log("front hears"))
  end)

  it("ends a half-closed source with its target", function()
    local port, server, d = start [[
      function Front:unbind(err, why) out("front ends: %s, %s", err, why) end
    ]]
    local c = t.connect(port):send("request"):shutdown_write()
    local s = server:accept():expect("request")
    s:send("half an answ")
    c:expect("half an answ")
    s:reset()
    c:expect_eof()
    d:wait_log("front ends: nil, eof")
  end)

  it("passes on all that came before a reset, also when it had to wait", function()
    local port, server, d = start [[
      function Front:begin(to)
        assert(self:proxy_incoming_to(to))
        assert(to:proxy_incoming_to(self, 16384))
        self:pause()
        self:add_timer(0.3, function()
          out("resumes with %d", self:get_outbound_data_size())
          self:resume()
        end)
      end
      function Back:unbind(err) out("back ends: %s", err); self.front:close_connection_after_writing() end
    ]]
    local c, bytes = t.connect(port), pattern(100000)
    local s = server:accept():send(bytes)
    t.sys.sleep(0.05)
    s:reset()
    assert.is_true(c:receive_all() == bytes)
    d:wait_log("back ends: ECONNRESET")
    d:wait_log("resumes with 16384")
  end)

  it("to itself is an echo", function()
    local port, server, d = start [[
      function Front:begin(to) to:close_connection(); assert(self:proxy_incoming_to(self)) end
      function Front:unbind(err, why) out("front ends: %s, %s, %d", err, why, self:get_proxied_bytes()) end
    ]]
    local c, bytes = t.connect(port), pattern(1 << 20)
    for _ = 1, 4 do c:send(bytes):expect(bytes) end
    c:send("the last"):shutdown_write()
    assert.equal("the last", c:receive_all())
    d:wait_log("front ends: nil, eof, " .. (4 << 20) + 8)
    server:close()
  end)

  it("stands still while its source is paused", function()
    local port, server, d = start [[
      function Front:begin(to)
        self:pause()
        self:proxy_incoming_to(to)
        function to.receive_data() self:resume() end
      end
    ]]
    t.connect(port):send("held")
    local s = server:accept():expect_silence(0.1)
    s:send("go"):expect("held")
    d:stop()
  end)

  it("has TLS on either side, or both", function()
    local inner = t.free_port()
    local ports = { t.free_port(), t.free_port(), t.free_port() }
    t.write("to.lua", [[
      local em = require "em"
      local To = em.Connection:extend()
      function To:initialize(url)
        local to = em.connect({ url = url, tls = url:find("^tls") and { verify_peer = false } or nil })
        self:proxy_incoming_to(to, 300000)
        to:proxy_incoming_to(self, 300000)
      end
      return To
    ]])
    -- client -> tls -> plain -> tls -> echo: two relays in a row, each with TLS on one side
    local d = t.start(([[
      listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }
      listen "tcp://127.0.0.1:%d" { handler = "to", args = { "tls://127.0.0.1:%d" } }
      listen "tls://127.0.0.1:%d" { handler = "to", args = { "tcp://127.0.0.1:%d" }, tls = { self_signed = true } }
      listen "tcp://127.0.0.1:%d" { handler = "to", args = { "tls://127.0.0.1:%d" } }
    ]]):format(inner, ports[1], inner, ports[2], ports[1], ports[3], ports[2]))
    local c, bytes = t.connect(ports[3]), pattern(2 << 20)
    local sent, got, count = 0, {}, 0
    t.until_true(function()
      if sent < #bytes then sent = sent + c:send_some(bytes:sub(sent + 1, sent + 262144)) end
      while c:fill(0) do
        table.insert(got, c.buffer)
        count = count + #c.buffer
        c.buffer = ""
      end
      return count == #bytes
    end, 20, "the echo")
    assert.is_true(table.concat(got) == bytes)
    c:send("last words"):shutdown_write()
    assert.equal("last words", c:receive_all())
    d:stop()
  end)

  it("keeps nothing of connections that end in any order", function()
    local port, server, d = start()
    for i = 1, 30 do
      local c = t.connect(port):send(("x"):rep(i * 100))
      local s = server:accept()
      if i % 3 == 0 then s:reset() elseif i % 3 == 1 then s:close() end
      if i % 2 == 0 then c:reset() else c:close() end
      if i % 3 == 2 then s:close() end
    end
    d:stop()
  end)
end)
