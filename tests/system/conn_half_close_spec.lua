-- Streams that end one side first.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

describe("close_write", function()
  t.auto()

  it("sends FIN after what is queued; receiving goes on until the peer ends", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:send_data(("x"):rep(3000000)) say(self:close_write()) self:send_data("no") end
      function H:receive_data(d) say("data", d) end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    assert.equal(3000000, #c:receive_all())
    c:send("one")
    s:waits_for("data one")
    c:send("two")
    s:waits_for("data two")
    c:close()
    s:expects { "true", "data one", "data two", "nil eof" }
    s.d:stop()
  end)

  it("refuses what comes later with EPIPE, and does not mind being repeated", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        self:close_write()
        local ok, message, code = self:send_data("x")
        say(ok, type(message), code)
        say(self:close_write())
        say(self:close_connection_after_writing())
      end
      return H]]
    s:connect():expect_eof()
    s:expects { "nil string EPIPE", "true", "true" }
    s.d:stop()
  end)

  it("works while connecting", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:post_init() self:send_data("request") self:close_write() end
      function C:connection_completed() say(self:send_data("x") == nil) end
      function C:receive_data(d) say("answer", d) end
      function C:unbind(...) say(...) end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return {}]]):format(server.port))
    local c = server:accept()
    assert.equal("request", c:receive_all())
    c:send("answer")
    s:waits_for("answer answer")
    c:close()
    s:expects { "true", "answer answer", "nil eof" }
    s.d:stop()
  end)

  it("waits for resume on a paused connection", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self self:send_data("tail") self:close_write() self:pause() end
      return H]]
    local c = s:connect()
    s:until_true("return x.conn:paused()")
    c:expect_silence(0.05)
    s:eval "x.conn:resume()"
    assert.equal("tail", c:receive_all())
    s.d:stop()
  end)
end)

describe("the peer's half-close", function()
  t.auto()

  it("without receive_eof closes after what is queued has been sent", function()
    local s = serve [[
      local H = {}
      function H:receive_data(d) self.text = (self.text or "") .. d if self.text == "go" then self:send_data(("x"):rep(5000000)) end end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    c:shutdown_write()
    assert.equal(5000000, #c:receive_all())
    s:expects { "nil eof" }
    s.d:stop()
  end)

  it("without receive_eof takes no more", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self end
      function H:receive_data() self:send_data(("x"):rep(5000000)) self.asked = true end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    c:shutdown_write()
    s:until_true("return x.conn.asked and not x.conn:send_data('')")
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.conn:send_data('late')" })
    assert.equal(5000000, #c:receive_all())
    s.d:stop()
  end)

  it("with receive_eof leaves our side open for as long as we like", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self end
      function H:receive_data(d) say("data", d) end
      function H:receive_eof() say("eof", self:send_data("first ")) end
      function H:unbind(...) say("unbind", ...) end
      return H]]
    local c = s:connect()
    c:send("x")
    c:shutdown_write()
    c:expect("first ")
    assert.is_true(s:eval "return x.conn:send_data('second ')")
    c:expect("second ")
    s:eval "x.conn:send_data('last') x.conn:close_connection_after_writing()"
    assert.equal("last", c:receive_all())
    s:expects { "data x", "eof true", "unbind nil closed" }
    s.d:stop()
  end)

  it("with receive_eof does not spin or wake up", function()
    local s = serve "local H = {} function H:receive_eof() say('eof') end return H"
    local c = s:connect()
    c:shutdown_write()
    s:waits_for("eof")
    local wakeups, cpu = s.d:wakeups(), s.d:cpu()
    c:expect_silence(0.2)
    assert.is_true(s.d:wakeups() - wakeups <= 1)
    assert.is_true(s.d:cpu() - cpu < 0.1)
    s.d:stop()
  end)

  it("with receive_eof still learns of a reset", function()
    local s = serve [[
      local H = {}
      function H:receive_eof() say('eof') end
      function H:unbind(...) say(...) end
      return H]]
    local c = s:connect()
    c:shutdown_write()
    s:waits_for("eof")
    c:reset()
    s:expects { "eof", "EPIPE Broken pipe" } -- so the kernel calls it after the peer's end
    s.d:stop()
  end)

  it("ends the connection when our side has been closed before", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:close_write() end
      function H:receive_eof() say("eof") end
      function H:unbind(...) say("unbind", ...) end
      return H]]
    local c = s:connect()
    c:expect_eof()
    c:shutdown_write()
    s:expects { "eof", "unbind nil eof" }
    s.d:stop()
  end)

  it("ends the connection when our side is closed after it, once all is sent", function()
    local s = serve [[
      local H = {}
      function H:receive_eof() self:send_data(("x"):rep(2000000)) self:close_write() say("eof") end
      function H:unbind(...) say("unbind", ...) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:shutdown_write()
    assert.equal(2000000, #c:receive_all())
    s:expects { "eof", "unbind nil eof" }
    s.d:stop()
  end)

  it("comes after all data, however much arrived with it", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self self:pause() end
      function H:receive_data(d) self.bytes = (self.bytes or 0) + #d end
      function H:receive_eof() say("eof", self.bytes) self:close_connection() end
      return H]]
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    local sent = 0
    repeat
      local n = c:send_some(("x"):rep(65536))
      sent = sent + n
    until n == 0
    c:shutdown_write()
    s:eval "x.conn:resume()"
    s:expects { "eof " .. sent }
    s.d:stop()
  end)

  it("may be answered by one end of a relay with a half-close of the other", function()
    -- cat through two connections: what the client sends until its end comes back, then the end.
    local s = serve [[
      em.next_tick(function()
        x.server = em.start_server("127.0.0.1", 0, {
          receive_data = function(self, d) self.text = (self.text or "") .. d end,
          receive_eof = function(self) self:send_data(self.text) self:close_connection_after_writing() end,
        })
        x.back = select(2, x.server:address())
      end)
      local Back, H = {}, {}
      function Back:initialize(front) self.front = front end
      function Back:receive_data(d) self.front:send_data(d) end
      function Back:unbind() self.front:close_connection_after_writing() end
      function H:post_init() self.back = em.connect("127.0.0.1", x.back, Back, self) end
      function H:receive_data(d) self.back:send_data(d) end
      function H:receive_eof() self.back:close_write() end
      return H]]
    local c = s:connect()
    c:send(("0123456789"):rep(20000))
    c:shutdown_write()
    assert.equal(("0123456789"):rep(20000), c:receive_all())
    s.d:stop()
  end)
end)
