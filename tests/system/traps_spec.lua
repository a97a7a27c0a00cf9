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
      config = ('listen "tcp://127.0.0.1:%d" { handler = "echo" }\nconnect "tcp://127.0.0.1:%d" { handler = "discard" }'):format(port, target.port),
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
end)
