-- Outgoing connections: where to, what may fail and how it is told, and how to come back.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local client = [[
local C = em.Connection:extend()
function C:connection_completed() say("completed", self:get_peername()) end
function C:receive_data(d) say("data", d) end
function C:unbind(...) say("unbind", ...) end
]]

-- Starts a daemon that runs a text once it serves.
local function dialling(text, ...)
  return serve(client .. "em.next_tick(function() " .. text:format(...) .. " end) return {}")
end

describe("connect", function()
  t.auto()

  it("by address", function()
    local server = t.listen()
    local s = dialling("em.connect('127.0.0.1', %d, C):send_data('hi')", server.port)
    local c = server:accept()
    c:expect("hi"):send("there")
    s:waits_for("data there")
    c:close()
    s:expects { "completed 127.0.0.1 " .. server.port, "data there", "unbind nil eof" }
    s.d:stop()
  end)

  it("by name: localhost, whichever of its addresses answers", function()
    local server = t.listen()
    local s = dialling("em.connect('localhost', %d, C):send_data('hi')", server.port)
    server:accept():expect("hi"):close()
    s:expects { "completed 127.0.0.1 " .. server.port, "unbind nil eof" }
    s.d:stop()
  end)

  it("by IPv6 address, bare or in a URL", function()
    local port = t.free_port()
    local s = serve(client .. ([[
      em.next_tick(function()
        local server, _, code = em.start_server("::1", %d, function(conn) conn:send_data("six") conn:close_connection_after_writing() end)
        say(server and server:address() or code)
        if server then
          em.connect("::1", %d, C)
          em.connect("tcp://[::1]:%d", C)
        end
      end)
      return {}]]):format(port, port, port))
    t.until_true(function() return #s:said() >= 1 end)
    if s:said()[1]:find("^::1 ") then
      t.until_true(function() return #s:said() == 7 end)
      local said = s:said()
      table.sort(said)
      local completed = "completed ::1 " .. port
      assert.same({ "::1 " .. port, completed, completed, "data six", "data six", "unbind nil eof", "unbind nil eof" }, said)
    end
    s.d:stop()
  end)

  it("by URL and by a table with options", function()
    local server = t.listen()
    local s = dialling([[
      em.connect("tcp://127.0.0.1:%d", C)
      em.connect({ url = "tcp://127.0.0.1:%d", idle_timeout = 5, high_water = 10, low_water = 1 },
        { post_init = function(self) say(self:get_comm_inactivity_timeout(), self:send_data("01234567890")) end })
      ]], server.port, server.port)
    local both = { server:accept(), server:accept() }
    s:waits_for("5.0 false")
    s:waits_for("completed 127.0.0.1 " .. server.port)
    both[1]:close() both[2]:close()
    s:waits_for("unbind nil eof")
    s.d:stop()
  end)

  it("to a Unix socket, three ways", function()
    local server = t.listen("u.sock")
    local s = dialling([[
      em.connect_unix_domain(%q, C)
      em.connect("unix://%s", C)
      em.connect({ url = "unix://%s" }, C)]], server.path, server.path, server.path)
    for _ = 1, 3 do server:accept():close() end
    t.until_true(function() return #s:said() == 6 end)
    local said = s:said()
    table.sort(said)
    assert.equal("completed " .. server.path, said[3])
    assert.equal("unbind nil eof", said[4])
    s.d:stop()
  end)

  it("returns the connection, whose handle works while it connects", function()
    local server = t.listen()
    local s = dialling([[
      local c = em.connect("127.0.0.1", %d, C)
      say(c:get_peername(), c:get_sockname(), c:error(), c:paused(), c:get_outbound_data_size())
      say(c:send_data("queued"), c:get_outbound_data_size())
      say(c:get_sock_opt("tcp", "nodelay"))
      say(c:enable_keepalive(5, 6, 7))]], server.port)
    server:accept():expect("queued")
    s:waits_for("completed 127.0.0.1 " .. server.port)
    assert.same({ "nil nil nil false 0", "true 6", "nil not connected yet ENOTCONN", "true" }, table.move(s:said(), 1, 4, 1, {}))
    s.d:stop()
  end)
end)

describe("a connection that fails", function()
  t.auto()

  it("to a closed port says ECONNREFUSED, after connect has returned", function()
    local s = dialling("em.connect('127.0.0.1', %d, C) say('returned')", t.free_port())
    s:expects { "returned", "unbind ECONNREFUSED Connection refused" }
    s.d:stop()
  end)

  it("to localhost on a closed port too, when all addresses have been tried", function()
    local s = dialling("em.connect('localhost', %d, C)", t.free_port())
    s:expects { "unbind ECONNREFUSED Connection refused" }
    s.d:stop()
  end)

  it("to a path says ENOENT, ECONNREFUSED, ENAMETOOLONG", function()
    t.listen("dead.sock").sock:close()
    local s = dialling([[
      em.connect_unix_domain(x.path "none.sock", C)
      em.connect_unix_domain(x.path "dead.sock", C)
      em.connect_unix_domain("/" .. ("x"):rep(200), C)
      say "returned"]])
    t.until_true(function() return #s:said() == 4 end)
    local said = s:said()
    assert.equal("returned", said[1])
    table.sort(said)
    assert.same({ "returned", "unbind ECONNREFUSED Connection refused", "unbind ENAMETOOLONG File name too long",
      "unbind ENOENT No such file or directory" }, said)
    s.d:stop()
  end)

  it("for a bad name says EAI_*, and nothing raises", function()
    local s = dialling([[
      say(pcall(em.connect, "no such name", 80, C))
      em.connect("", 80, C)
      em.connect(("x"):rep(300) .. ".invalid", 80, C)]])
    t.until_true(function() return #s:said() == 4 end)
    local said = s:said()
    assert.matches("^true connection: ", said[1])
    for i = 2, 4 do assert.matches("^unbind EAI_%u+ .", said[i]) end
    s.d:stop()
  end)

  it("has called initialize and post_init, not connection_completed; its methods then say closed", function()
    local s = serve(([[
      local F = {}
      for _, name in ipairs { "initialize", "post_init", "connection_completed" } do F[name] = function(_, ...) say(name, ...) end end
      function F:unbind(err, why)
        say(err, self:send_data("x"))
        say(self:get_peername(), self:get_sockname())
        x.old = self
      end
      em.next_tick(function() em.connect("127.0.0.1", %d, F, "arg"):send_data("lost") end)
      return {}]]):format(t.free_port()))
    s:expects { "initialize arg", "post_init", "ECONNREFUSED nil closed ENOTCONN", "nil nil" }
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.old:close_connection()" })
    s.d:stop()
  end)

  for _, name in ipairs { "initialize", "post_init" } do
    it("by an error in " .. name .. " ends with EHANDLER; connect returns it all the same", function()
      local server = t.listen()
      local s = dialling([[
        function C:%s() error("oh no") end
        say(type(em.connect("127.0.0.1", %d, C)))]], name, server.port)
      t.until_true(function() return #s:said() == 2 end)
      assert.equal("table", s:said()[1])
      assert.matches("^unbind EHANDLER handler error: .*h%.lua:%d+: oh no$", s:said()[2])
      s.d:stop()
    end)
  end

  it("by an error in connection_completed ends with EHANDLER", function()
    local server = t.listen()
    local s = dialling([[
      function C:connection_completed() self:send_data("lost") error("oh no") end
      em.connect("127.0.0.1", %d, C)]], server.port)
    assert.equal("", (server:accept():receive_end()))
    t.until_true(function() return #s:said() == 1 end)
    assert.matches("^unbind EHANDLER handler error: .*oh no$", s:said()[1])
    s.d:stop()
  end)

  it("for want of descriptors says EMFILE, and the next one works again", function()
    local server = t.listen()
    local s = serve(client .. "x.C = C return {}", { limits = { nofile = 40 } })
    s:eval([[
      x.C.connection_completed, x.ended = nil, 0
      function x.C:unbind(err, why) x.ended = x.ended + 1 if err then say(err, why) end end
      x.all = {}
      for i = 1, 60 do x.all[i] = em.connect("127.0.0.1", %d, x.C) end]], server.port)
    s:waits_for("EMFILE Too many open files")
    s:eval "for _, c in ipairs(x.all) do c:close_connection() end"
    s:until_true("return x.ended == 60")
    s:eval("em.connect('127.0.0.1', %d, { connection_completed = function(c) say('again') c:close_connection() end })", server.port)
    s:waits_for("again")
    s.d:stop()
  end)

  it("by arguments that are wrong raises", function()
    local s = dialling([[
      local function try(...) say((pcall(em.connect, ...))) end
      try() try("127.0.0.1") try("127.0.0.1", "x") try("127.0.0.1", 0) try("127.0.0.1", 65536) try("127.0.0.1", 1.5)
      try("ftp://127.0.0.1:1") try("tcp://127.0.0.1") try({}) try({ url = 1 }) try({ url = "tcp://127.0.0.1:1", colour = "red" })
      try({ url = "tcp://127.0.0.1:1", idle_timeout = -1 })]])
    t.until_true(function() return #s:said() == 12 end)
    assert.equal(("false "):rep(12), table.concat(s:said(), " ") .. " ")
    assert.equal(3, s:eval "return em.connection_count()")
    s.d:stop()
  end)
end)

describe("bind_connect", function()
  t.auto()

  it("comes from the local address and port that were given", function()
    local server = t.listen()
    local port = t.free_port()
    local s = dialling("em.bind_connect('127.0.0.2', %d, '127.0.0.1', %d, C)", port, server.port)
    local c = server:accept()
    local host, from = c.sock:getpeername()
    assert.same({ "127.0.0.2", port }, { host, tonumber(from) })
    assert.same({ nil, "closed" }, { c:close(), "closed" })
    s:waits_for("unbind nil eof")
    s.d:stop()
  end)

  it("with any port, by the option too; get_sockname tells", function()
    local server = t.listen()
    local s = dialling([[
      local function tell(self) say((self:get_sockname())) self:close_connection() end
      em.bind_connect("127.0.0.3", 0, "127.0.0.1", %d, { connection_completed = tell })
      em.bind_connect("127.0.0.4", nil, "127.0.0.1", %d, { connection_completed = tell })
      em.connect({ url = "tcp://127.0.0.1:%d", bind = "127.0.0.5" }, { connection_completed = tell })]],
      server.port, server.port, server.port)
    t.until_true(function() return #s:said() == 3 end)
    local said = s:said()
    table.sort(said)
    assert.same({ "127.0.0.3", "127.0.0.4", "127.0.0.5" }, said)
    s.d:stop()
  end)

  it("reports a local address that is not ours, or no address at all, through unbind", function()
    local server = t.listen()
    local s = dialling([[
      em.bind_connect("192.0.2.1", 0, "127.0.0.1", %d, C)
      em.bind_connect("not an address", 0, "127.0.0.1", %d, C)
      em.bind_connect("::1", 0, "127.0.0.1", %d, C)]], server.port, server.port, server.port)
    t.until_true(function() return #s:said() == 3 end)
    for _, line in ipairs(s:said()) do assert.matches("^unbind EADDRNOTAVAIL .", line) end
    s.d:stop()
  end)

  it("reports a port that is taken", function()
    local server = t.listen()
    local s = dialling("em.bind_connect('127.0.0.1', %d, '127.0.0.1', %d, C)", server.port, server.port)
    s:expects { "unbind EADDRINUSE Address already in use" }
    s.d:stop()
  end)
end)

describe("reconnect", function()
  t.auto()

  it("inside unbind makes the same object connect again, without initialize and post_init", function()
    local server = t.listen()
    local s = dialling([[
      function C:initialize() say "initialize" end
      function C:post_init() say("post_init") self.mine = "kept" end
      function C:connection_completed() say("completed", self.mine, self == x.conn) end
      function C:unbind(_, why) say("unbind", why) if not self.again then self.again = true self:reconnect("127.0.0.1", %d) end end
      x.conn = em.connect("127.0.0.1", %d, C)]], server.port, server.port)
    server:accept():close()
    local second = server:accept()
    second:send("hello")
    s:waits_for("data hello")
    second:close()
    s:expects { "initialize", "post_init", "completed kept true", "unbind eof", "completed kept true", "data hello", "unbind eof" }
    s.d:stop()
  end)

  it("inside unbind queues what is sent right away, and obeys what is set", function()
    local server = t.listen()
    local s = dialling([[
      function C:unbind()
        if self.again then say "end" return end
        self.again = true
        say(em.reconnect("127.0.0.1", %d, self) == self)
        say(self:send_data("at once"))
        say(self:set_comm_inactivity_timeout(7), self:get_comm_inactivity_timeout())
      end
      x.conn = em.connect("127.0.0.1", %d, C)]], server.port, server.port)
    server:accept():close()
    local second = server:accept()
    second:expect("at once")
    assert.equal(7, s:eval "return x.conn:get_comm_inactivity_timeout()")
    second:close()
    s:waits_for("end")
    s.d:stop()
  end)

  it("long afterwards, with the limits that it had", function()
    local server = t.listen()
    local s = dialling([[
      x.conn = em.connect({ url = "tcp://127.0.0.1:%d", idle_timeout = 9, low_water = 1, high_water = 2 }, C)]], server.port)
    server:accept():close()
    s:waits_for("unbind nil eof")
    collectgarbage()
    assert.is_true(s:eval("return x.conn:reconnect('127.0.0.1', %d) == x.conn", server.port))
    local second = server:accept()
    assert.same({ 9.0, false }, { s:eval "return x.conn:get_comm_inactivity_timeout(), x.conn:send_data('abc')" })
    second:expect("abc")
    second:close()
    t.until_true(function() return #s:said() == 4 end)
    s.d:stop()
  end)

  it("while connected does nothing", function()
    local server = t.listen()
    local s = dialling("x.conn = em.connect('127.0.0.1', %d, C)", server.port)
    local c = server:accept()
    s:waits_for("completed 127.0.0.1 " .. server.port)
    assert.is_true(s:eval("return x.conn:reconnect('127.0.0.1', %d) == x.conn", server.port))
    assert.equal(4, s:eval "return em.connection_count()")
    c:close()
    s:expects { "completed 127.0.0.1 " .. server.port, "unbind nil eof" }
    s.d:stop()
  end)

  it("after a failure, until it succeeds; timers of the object live with each connection", function()
    local port = t.free_port()
    local s = dialling([[
      function C:connection_completed() say("completed") self:add_timer(10, function() end) end
      function C:unbind(err)
        x.tries = (x.tries or 0) + 1
        if err then em.add_timer(0.01, function() self:reconnect("127.0.0.1", %d) end) else say("unbind", err) end
      end
      x.conn = em.connect("127.0.0.1", %d, C)]], port, port)
    s:until_true("return (x.tries or 0) >= 3")
    local server = t.listen(port)
    local c = server:accept()
    s:waits_for("completed")
    c:close()
    s:expects { "completed", "unbind nil" }
    assert.equal(0, s:eval "return em.get_timer_count()")
    s.d:stop()
  end)

  it("may be closed again in the same unbind: that is one more unbind", function()
    local server = t.listen()
    local s = dialling([[
      function C:unbind(_, why)
        say("unbind", why)
        if not self.again then self.again = true self:reconnect("127.0.0.1", %d) say(self:close_connection()) end
      end
      em.connect("127.0.0.1", %d, C)]], server.port, server.port)
    server:accept():close()
    s:expects { "completed 127.0.0.1 " .. server.port, "unbind eof", "true", "unbind closed" }
    s.d:stop()
  end)

  it("to a bad name or with bad arguments", function()
    local s = dialling([[
      function C:unbind(err) say(err) if not self.again then self.again = true self:reconnect("no such name", 1) end end
      x.conn = em.connect("127.0.0.1", %d, C)]], t.free_port())
    t.until_true(function() return #s:said() == 2 end)
    assert.matches("^EAI_", s:said()[2])
    assert.is_false((s:eval "return pcall(x.conn.reconnect, x.conn, 'localhost', 0)"))
    assert.is_false((s:eval "return pcall(x.conn.reconnect, x.conn)"))
    assert.is_false((s:eval "return pcall(em.reconnect, 'localhost', 1, {})"))
    s.d:stop()
  end)

  it("is refused to an accepted connection", function()
    local s = serve [[
      local H = {}
      function H:unbind() local ok, why, code = self:reconnect("127.0.0.1", x.port) say(ok, type(why), code) end
      return H]]
    s:connect():close()
    s:expects { "nil string EOPNOTSUPP" }
    s.d:stop()
  end)

  it("by thousands leaves nothing behind", function()
    local s = serve(client .. [[
      local H = {}
      function H:post_init() self:close_connection() end
      function C:connection_completed() end
      function C:unbind()
        self.count = (self.count or 0) + 1
        if self.count < 1000 then self:reconnect("127.0.0.1", x.port) else say "done" end
      end
      em.next_tick(function() em.connect("127.0.0.1", x.port, C) end)
      return H]])
    s:expects { "done" }
    s:until_true("return em.connection_count() == 3")
    s.d:stop()
  end)
end)

describe("a connect block of the config", function()
  t.auto()

  it("keeps one connection up, also when a script connects an earlier one again", function()
    local server = t.listen()
    local s = serve([[
      local H = {}
      function H:connection_completed() self:send_data(self.signature .. "\n") x.first = x.first or self end
      function H:unbind(_, why) say(self.signature, why) end
      x.H = H
      return {}]], { config = "" })
    t.write("dials.lua", "return require('shared').H")
    t.write("reactord.conf", t.read("reactord.conf") .. ('connect "tcp://127.0.0.1:%d" { handler = "dials", reconnect = 0.05 }')
      :format(server.port))
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    local first = server:accept()
    local name = first:receive_line()
    first:close()
    local second = server:accept()
    second:receive_line()
    s:eval("x.first:reconnect('127.0.0.1', %d)", server.port)
    first = server:accept():expect(name .. "\n")
    first:close()
    s:until_true "return x.first:get_outbound_data_size() == nil"
    second:expect_silence(0.3)
    assert.equal(4, s:eval "return em.connection_count()") -- two listeners, the one that asks, the block's
  end)

  it("connects, and again after its reconnect time", function()
    local server = t.listen()
    local s = serve("local H = {} function H:initialize(...) say(...) end function H:unbind(_, why) say(why) end return H", {
      config = ('connect "tcp://127.0.0.1:%d" { handler = "h", args = { "a", 1 }, reconnect = 0.02 }'):format(server.port),
    })
    for _ = 1, 3 do server:accept():close() end
    local last = server:accept()
    s:expects { "a 1", "eof", "a 1", "eof", "a 1", "eof", "a 1" }
    last:close()
    s.d:stop()
  end)
end)
