-- What the libraries do to the unwary, one test a fault: each is met by our design, and stays so.

local t = require "tests.support.harness"
local tls = require "tests.support.tls"

describe("the trap", function()
  t.auto()

  it("of a TLS connection that stalls for ever under back-pressure is absent", function()
    t.write("slow.lua", [[
      local Slow = require "em".Connection:extend()
      function Slow:receive_data(data)
        self.total = (self.total or 0) + #data
        self:pause()
        self:add_timer(0.001, function() self:resume() end)
        if self.total >= 4000000 then self:send_data(tostring(self.total)) end
      end
      return Slow
    ]])
    local port = t.free_port()
    local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "slow", tls = { self_signed = true } }'):format(port) }
    local c = assert(tls.connect(port))
    c:send(("z"):rep(4000000)):expect("4000000")
    c:close()
    d:stop()
  end)

  it("of the last bytes that are lost when they come together with the goodbye is absent", function()
    t.write("last.lua", [[
      local em = require "em"
      local Last = em.Connection:extend()
      function Last:receive_data(data) self.total = (self.total or 0) + #data end
      function Last:unbind(err, why) em.log.info("total %d %s %s", self.total or 0, tostring(err), why) end
      return Last
    ]])
    local port = t.free_port()
    local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "last", tls = { self_signed = true } }'):format(port) }
    for _, size in ipairs { 1, 100, 16384, 16385, 100000, 1000000 } do
      local c = assert(tls.connect(port))
      c:send(("l"):rep(size))
      c:close()
      d:wait_log("total " .. size .. " nil eof")
    end
    d:stop()
  end)

  it("of a close without close_notify is absent: every orderly end says goodbye", function()
    for name, body in pairs {
      after_writing = "self:send_data('bye'); self:close_connection_after_writing()",
      at_once = "self:close_connection()",
      half = "self:close_write()",
    } do
      t.write(name .. ".lua", ([[
        local Bye = require "em".Connection:extend()
        function Bye:receive_data() %s end
        return Bye
      ]]):format(body))
      local port = t.free_port()
      local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "%s", tls = { self_signed = true } }'):format(port, name) }
      local c = assert(tls.connect(port))
      c:send "now"
      local bytes, why = c:receive_all()
      assert.equal(name == "after_writing" and "bye" or "", bytes)
      assert.is_true(why == nil or why == "closed", why) -- LuaSec: an end without goodbye is another error
      c:close()
      d:stop()
    end
  end)

  it("of an error queue that is left over to the next connection is absent", function()
    t.write("ends.lua", [[
      local em = require "em"
      local Ends = em.Connection:extend()
      function Ends:receive_data(data) self:send_data(data) end
      function Ends:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
      return Ends
    ]])
    local port = t.free_port()
    local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "ends", tls = { self_signed = true } }'):format(port) }
    local c = assert(tls.connect(port))
    for _ = 1, 5 do
      local bad = t.connect(port)
      bad:send "garbage garbage garbage"
      bad:receive_end()
      c:send("well"):expect("well")
    end
    local mark = d:mark()
    c:close()
    d:wait_log("end nil eof", 10, mark)
    d:stop()
  end)

  it("of descriptors that children inherit is absent: all are close-on-exec", function()
    local port, target = t.free_port(), t.listen()
    local d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "echo" }\nconnect "tcp://127.0.0.1:%d" { handler = "discard" }')
        :format(port, target.port),
    }
    local c = t.connect(port)
    c:send("x"):expect("x")
    target:accept()
    local count = 0
    for fd in require "lfs".dir("/proc/" .. d.pid .. "/fd") do
      local number = tonumber(fd)
      local info = number and number > 2 and io.open(("/proc/%d/fdinfo/%d"):format(d.pid, number))
      if info then
        local flags = tonumber(info:read("a"):match "flags:%s*(%d+)", 8)
        info:close()
        assert.is_true(flags & 0x80000 ~= 0, "descriptor " .. number .. " would be inherited")
        count = count + 1
      end
    end
    assert.is_true(count > 4)
    c:close()
    t.close_clients()
    d:stop()
  end)

  it("of a listener that spins when descriptors run out is absent: accepting pauses, one line a second, and resumes", function()
    local port = t.free_port()
    local d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "echo" }'):format(port), limits = { nofile = 40 } }
    local clients = {}
    for i = 1, 60 do clients[i] = t.connect(port) end
    d:wait_log "accepting pauses: Too many open files"
    local cpu, begun = d:cpu(), t.sys.now()
    t.until_true(function() return t.sys.now() - begun > 0.5 end, 5, "half a second")
    assert.is_true(d:cpu() - cpu < 0.1 * (t.sys.now() - begun) + 0.02)
    assert.is_true(d:count_log "accepting pauses" <= 2)
    for i = 1, 40 do clients[i]:close() end
    for i = 41, 60 do clients[i]:send("served"):expect "served" end
    d:stop()
  end)

  it("of output without a cap is absent: a peer that never reads is ended within max_outbound", function()
    local port = t.free_port()
    local d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "echo", max_outbound = "2 MiB" }'):format(port) }
    local warm = t.connect(port)
    warm:send "x" :expect "x"
    local before = d:rss()
    local c = t.connect(port, { buffer = 65536 })
    local piece, sent, ended = ("n"):rep(65536), 0, false
    while not ended and sent < 200e6 do
      local n, code = c:send_some(piece)
      if n == nil then
        ended = code
      else
        sent = sent + n
        if n == 0 then t.sys.poll({ c.fd }, "w", 1) end
      end
    end
    assert.is_truthy(ended)
    if not t.sanitized then assert.is_true(d:rss() - before < 16 * 1024 * 1024) end
    warm:send "y" :expect "y"
    c:close()
    d:stop()
  end)

  it("of an idle limit as the only guard of a handshake is absent: its time is absolute", function()
    local port = t.free_port()
    local d = t.start {
      config = ('listen "tls://127.0.0.1:%d" { handler = "echo", idle_timeout = 30, '
        .. 'tls = { self_signed = true, handshake_timeout = 0.3 } }')
        :format(port),
    }
    local c = t.connect(port)
    c:send "\22\3\1\2\0\1\0\1\252"
    local begun = t.sys.now()
    while not (c.eof or c.failed) and t.sys.now() - begun < t.limit do
      c:send_some "\0"
      c:fill(t.sys.now() + 0.02)
    end
    assert.is_truthy(c.eof or c.failed)
    assert.is_true(t.sys.now() - begun >= 0.29)
    d:stop()
  end)

  it("of a connection that is freed inside its own callback is absent: it ends when the turn does", function()
    t.write("inside.lua", [[
      local em = require "em"
      local Inside = em.Connection:extend()
      function Inside:receive_data(data)
        self:close_connection()
        for _ = 1, 100 do collectgarbage "step" end
        assert(self:send_data(data) == nil)
        assert(self:get_peername())
        self.after = true
      end
      function Inside:unbind() em.log.info("unbound %s", tostring(self.after)) end
      return Inside
    ]])
    local port, secure = t.free_port(), t.free_port()
    local d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "inside" }\n'
        .. 'listen "tls://127.0.0.1:%d" { handler = "inside", tls = { self_signed = true } }')
        :format(port, secure),
    }
    t.connect(port):send("x"):expect_eof()
    assert(tls.connect(secure)):send("x"):receive_all()
    t.until_true(function() return d:count_log "unbound true" == 2 end, 10, "both ends")
    d:stop()
  end)
end)
