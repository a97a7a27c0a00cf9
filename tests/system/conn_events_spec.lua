-- Listeners of events on connections and servers.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

describe("on", function()
  t.auto()

  it("returns self, and calls any number of listeners in order, beside the handler's own callback", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        say(self:on("data", function(d) say("first", d) end)
          :on("data", function(d) say("second", d) end)
          :on("close", function(...) say("close", ...) end)
          :on("close", function(...) say("close too", ...) end) == self)
      end
      function H:receive_data(d) say("handler", d) end
      function H:unbind(...) say("unbind", ...) end
      return H]]
    local c = s:connect()
    c:send("x")
    s:waits_for("second x")
    c:close()
    s:expects { "true", "handler x", "first x", "second x", "unbind nil eof", "close nil eof", "close too nil eof" }
    s.d:stop()
  end)

  it("connect and drain", function()
    local server = t.listen()
    local s = serve(([[
      em.next_tick(function()
        local c = em.connect("127.0.0.1", %d, { connection_completed = function() say "completed" end })
        c:on("connect", function(...) say("connect", select("#", ...)) end)
        c:on("drain", function() say("drain", c:get_outbound_data_size()) end)
        x.conn = c
      end)
      return {}]]):format(server.port))
    local c = server:accept()
    s:waits_for("connect 0")
    s:eval "x.conn:send_data('abc')"
    s:waits_for("drain 0")
    s:eval "x.conn:send_data('def')"
    s:expects { "completed", "connect 0", "drain 0", "drain 0" }
    c:expect("abcdef"):close()
    s.d:stop()
  end)

  it("drain comes when all is sent, not before", function()
    local s = serve [[
      local H = {}
      function H:receive_data() self:on("drain", function() say("drain") end) self:send_data(("x"):rep(8000000)) end
      return H]]
    local c = s:connect { buffer = 8192 }
    c:send("go")
    c:receive(1000000)
    assert.same({}, s:said())
    c:receive(7000000)
    s:expects { "drain" }
    s.d:stop()
  end)

  it("may be added and removed while an event is told", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        local function second(d) say("second", d) end
        self:on("data", function(d)
          say("first", d)
          self:off("data", second)
          self:on("data", function(e) say("third", e) end)
        end)
        self:on("data", second)
      end
      return H]]
    local c = s:connect()
    c:send("1")
    s:waits_for("second 1")
    c:send("2")
    s:expects { "first 1", "second 1", "first 2", "third 2" }
    s.d:stop()
  end)

  it("raises for wrong arguments", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        say((pcall(self.on, self, "data")))
        say((pcall(self.on, self, nil, print)))
        say((pcall(self.once, self, "data", {})))
      end
      return H]]
    s:connect()
    s:expects { "false", "false", "false" }
    s.d:stop()
  end)

  it("does not hear data after a close in the handler's callback", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:on("data", function(d) say("listener", d) end) end
      function H:receive_data(d) say("handler", d) self:close_connection() end
      return H]]
    s:connect():send("x"):receive_end()
    s:expects { "handler x" }
    s.d:stop()
  end)
end)

describe("once, off and emit", function()
  t.auto()

  it("once is called once", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:once("data", function(d) say("once", d) end):on("data", function(d) say("on", d) end) end
      return H]]
    local c = s:connect()
    c:send("1")
    s:waits_for("on 1")
    c:send("2")
    s:expects { "once 1", "on 1", "on 2" }
    s.d:stop()
  end)

  it("off takes one listener, also of once, or all of an event", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        local function a() say "a" end
        local function b() say "b" end
        self:on("e", a):once("e", b):on("e", a):on("f", a)
        self:off("e", a) self:off("e", b) self:off("e", print)
        say(self:emit("e"))
        self:off("e")
        say(self:emit("e"))
        say(self:emit("f"))
        say(self:emit("none"))
      end
      return H]]
    s:connect()
    s:expects { "a", "true", "false", "a", "true", "false" }
    s.d:stop()
  end)

  it("emit tells events of one's own, with all arguments", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:on("mine", function(...) say(select("#", ...), ...) end) self:emit("mine", 1, nil, "x", nil) end
      return H]]
    s:connect()
    s:expects { "4 1 nil x nil" }
    s.d:stop()
  end)

  it("are the instance's own: another connection hears nothing", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.count = (x.count or 0) + 1 if x.count == 1 then self:on("data", function(d) say(d) end) end end
      return H]]
    local a = s:connect()
    s:until_true("return x.count == 1")
    local b = s:connect()
    s:until_true("return x.count == 2")
    b:send("not heard")
    a:send("heard")
    s:waits_for("heard")
    assert.equal(1, #s:said())
    s.d:stop()
  end)
end)

describe("a listener that raises", function()
  t.auto()

  it("does not stop the others; the connection ends with EHANDLER, the error is logged", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        self:on("data", function() error("first fails") end)
        self:on("data", function(d) say("second", d) end)
        self:on("close", function(err) say("close", err) error("close fails too") end)
        self:on("close", function(err) say("close too", err) end)
      end
      function H:unbind(err, why) say(err, (why:gsub("^(handler error: ).*h%.lua:%d+: ", "%1"))) end
      return H]]
    s:connect():send("x"):receive_end()
    s:expects { "second x", "EHANDLER handler error: first fails", "close EHANDLER", "close too EHANDLER" }
    assert.equal(1, s.d:count_log("error handler error: [^\n]*h%.lua:%d+: first fails"))
    assert.equal(1, s.d:count_log("error handler error: [^\n]*h%.lua:%d+: close fails too"))
    s.d:stop()
  end)

  it("goes to em.error_handler with the connection", function()
    local s = serve [[
      em.error_handler(function(message, conn) say("handler", message:match("h%.lua:%d+: (%w+)"), conn and conn.name) end)
      local H = {}
      function H:post_init() self.name = "me" self:on("data", function() error("oops") end) end
      return H]]
    s:connect():send("x"):receive_end()
    s:expects { "handler oops me" }
    s.d:stop()
  end)
end)

describe("a server's events", function()
  t.auto()

  it("accept comes after post_init, with the connection; close at its end, once", function()
    local s = serve [[
      em.next_tick(function()
        local H = {}
        function H:post_init() say("post_init") self.name = "it" end
        x.server = em.start_server("127.0.0.1", 0, H)
        say(x.server:on("accept", function(conn) say("accept", conn.name, (conn:get_peername())) end) == x.server)
        x.server:on("close", function(...) say("close", select("#", ...)) end)
        x.listens_on = select(2, x.server:address())
      end)
      return {}]]
    s:until_true("return x.listens_on ~= nil")
    t.connect(s:eval "return x.listens_on")
    s:waits_for("accept it 127.0.0.1")
    s:eval "x.server:stop() x.server:stop()"
    s:expects { "true", "post_init", "accept it 127.0.0.1", "close 0" }
    s.d:stop()
  end)

  it("close comes at the daemon's end too", function()
    local s = serve [[
      em.next_tick(function() em.start_server("127.0.0.1", 0):on("close", function() say("close") end) say("open") end)
      return {}]]
    s:waits_for("open")
    s.d:stop()
    s:expects { "open", "close" }
  end)

  it("accept is not told of a connection that closed in post_init or failed there", function()
    local s = serve [[
      em.next_tick(function()
        local H = {}
        function H:post_init()
          x.count = (x.count or 0) + 1
          if x.count == 1 then self:close_connection() elseif x.count == 2 then error("oh no") end
        end
        function H:unbind(err) say("unbind", err) end
        x.server = em.start_server("127.0.0.1", 0, H):on("accept", function(conn) say("accept") end)
        x.listens_on = select(2, x.server:address())
      end)
      return {}]]
    s:until_true("return x.listens_on ~= nil")
    local port = s:eval "return x.listens_on"
    t.connect(port):receive_end()
    t.connect(port):receive_end()
    t.connect(port)
    s:expects { "unbind nil", "unbind EHANDLER", "accept" }
    s.d:stop()
  end)

  it("may stop and forget the server in a callback of its newcomer", function()
    local s = serve [[
      local function collect() for _ = 1, 200 do collectgarbage("step", 1000) end end
      em.next_tick(function()
        local H = {}
        function H:post_init() x.server:stop() x.server = nil collect() self:send_data("bye") end
        x.server = em.start_server("127.0.0.1", 0, H):on("accept", function() say "accept" end)
        x.listens_on = select(2, x.server:address())
      end)
      return {}]]
    s:until_true("return x.listens_on ~= nil")
    t.connect(s:eval "return x.listens_on"):expect("bye")
    assert.is_true(s:eval "return x.server == nil")
    s.d:stop()
  end)
end)
