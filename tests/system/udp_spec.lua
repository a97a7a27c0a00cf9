-- Datagram sockets: what arrives, what cannot be sent, the one end, the config's udp:// listeners, reload, and EventMachine as a peer.
local t = require "tests.support.harness"
local socket = require "socket"

-- A port that no datagram socket has either.
local function free_port()
  while true do
    local port = t.free_port()
    local probe = socket.udp4()
    local free = probe:setsockname("127.0.0.1", port)
    probe:close()
    if free then return port end
  end
end

-- A datagram socket of the test's own; closed by the collector at the latest.
local function peer(host)
  local sock = assert(host and host:find(":", 1, true) and socket.udp6() or socket.udp4())
  assert(sock:setsockname(host or "127.0.0.1", 0))
  sock:settimeout(t.limit)
  return sock
end

-- Says something to a port and returns what comes back.
local function ask(sock, port, data, host)
  assert(sock:sendto(data, host or "127.0.0.1", port))
  return assert(sock:receivefrom(65536))
end

-- Runs the text as the body of em.run, with helpers; returns the lines that it printed, and what it logged. A limit ends what hangs.
local function run(body, ...)
  local result = t.script(([[
    local em = require "em"
    local arg = { ... }
    local function open(handler, host, port) return em.open_datagram_socket(host or "127.0.0.1", port or 0, handler) end
    local function port_of(conn) return (select(2, conn:get_sockname())) end
    em.run(function()
      em.add_timer(%g, function() print("hangs") em.stop() end)
      %s
    end)
  ]]):format(t.seconds(8), body), { ... })
  assert.equal(0, result.status, result.err)
  local lines = {}
  for line in result.out:gmatch("[^\n]*") do table.insert(lines, line) end
  if lines[#lines] == "" then table.remove(lines) end
  return lines, result.err
end

describe("a datagram socket", function()
  t.auto()

  it("gets one call a datagram with its sender, and answers it", function()
    local port = free_port()
    t.write("answer.lua", [[
      return { receive_data = function(self, data, host, port)
        local peer_host, peer_port = self:get_peername()
        assert(host == peer_host and port == peer_port)
        assert(self:send_data(#data, " bytes from ", host, " ", port) == true)
      end }
    ]])
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "answer" }'):format(port))
    local one, two = peer(), peer()
    local _, port_one = one:getsockname()
    local _, port_two = two:getsockname()
    assert(one:sendto("abc", "127.0.0.1", port))
    assert(one:sendto("", "127.0.0.1", port))
    assert(two:sendto("defg", "127.0.0.1", port))
    assert.equal("3 bytes from 127.0.0.1 " .. port_one, (one:receivefrom(100)))
    assert.equal("0 bytes from 127.0.0.1 " .. port_one, (one:receivefrom(100)))
    assert.equal("4 bytes from 127.0.0.1 " .. port_two, (two:receivefrom(100)))
    d:stop()
    local log = d:log()
    assert.matches("datagrams_in=3 ", log)
    assert.matches("datagrams_out=3 ", log)
  end)

  it("carries every size up to 65,507 bytes, whole", function()
    local port = free_port()
    t.start(('listen "udp://127.0.0.1:%d" { handler = "datagram_echo" }'):format(port))
    local sock = peer()
    t.sys.buffers(sock:getfd(), 1 << 20)
    for _, size in ipairs { 0, 1, 2, 1471, 1472, 1473, 4096, 16383, 16384, 16385, 32768, 65000, 65506, 65507 } do
      local data = ("0123456789abcdef"):rep(size // 16 + 1):sub(1, size)
      assert.is_true(ask(sock, port, data) == data, size .. " bytes")
    end
  end)

  it("works on IPv6", function()
    local lines = run [[
      local server = open({ receive_data = function(self, data, host) print(data, host) self:send_data(data) end }, "::1")
      open({
        post_init = function(self) self:send_datagram("six", "::1", port_of(server)) end,
        receive_data = function(self, data, host, port) print(data, host, port == port_of(server)) em.stop() end,
      }, "::")
    ]]
    assert.same({ "six\t::1", "six\t::1\ttrue" }, lines)
  end)

  it("answers only while it handles a datagram", function()
    local lines = run [[
      local server
      server = open {
        post_init = function(self) print("post_init", self:send_data("x")) end,
        receive_data = function(self, data)
          print("receive_data", self:send_data("y"))
          em.next_tick(function() print("later", self:send_data("z")) print("peer", self:get_peername()) em.stop() end)
        end,
      }
      open { post_init = function(self) self:send_datagram("a", "127.0.0.1", port_of(server)) end }
    ]]
    assert.same({
      "post_init\tnil\tthere is no datagram to answer: use send_datagram\tEDESTADDRREQ", "receive_data\ttrue",
      "later\tnil\tthere is no datagram to answer: use send_datagram\tEDESTADDRREQ", "peer\tnil",
    }, lines)
  end)

  it("tells listeners of datagrams too", function()
    local lines = run [[
      local conn = open()
      conn:on("data", function(data, host, port) print(data, host, port == port_of(conn)) conn:close_connection() end)
      conn:on("close", function(err, why) print(err, why) em.stop() end)
      conn:send_datagram("me", "127.0.0.1", port_of(conn))
    ]]
    assert.same({ "me\t127.0.0.1\ttrue", "nil\tclosed" }, lines)
  end)

  it("reports what cannot be sent or delivered with its destination, and lives on", function()
    local refused = free_port()
    local lines = run([[
      local refused, seen, conn = tonumber(arg[1]), 0
      conn = open {
        send_error = function(self, message, code, host, port)
          print(message, code, host, port)
          seen = seen + 1
          if seen == 4 then self:send_datagram("still here", "127.0.0.1", port_of(self)) end
        end,
        receive_data = function(self, data) print(data) em.stop() end,
      }
      conn:set_sock_opt("socket", "broadcast", false)
      print(conn:send_datagram(("x"):rep(65508), "127.0.0.1", 9))
      print(conn:send_datagram(("x"):rep(100000), "127.0.0.2", 9))
      print(conn:send_datagram("x", "255.255.255.255", 9))
      em.add_timer(0.05, function() print(conn:send_datagram("x", "127.0.0.1", refused)) end)
    ]], refused)
    assert.same({
      "true", "true", "true", "Message too long\tEMSGSIZE\t127.0.0.2\t9", "Message too long\tEMSGSIZE\t127.0.0.1\t9",
      "Permission denied\tEACCES\t255.255.255.255\t9", "true",
      ("Connection refused\tECONNREFUSED\t127.0.0.1\t%d"):format(refused), "still here",
    }, lines)
  end)

  it("loses no datagram to somebody else by what the network says of another", function()
    local refused = free_port()
    local lines = run([[
      local refused, got, errors = tonumber(arg[1]), 0, 0
      local sink = open { receive_data = function() got = got + 1 end }
      local conn = open { send_error = function(_, _, code, _, port)
        assert(code == "ECONNREFUSED" and port == refused)
        errors = errors + 1
      end }
      local turn = 0
      em.add_periodic_timer(0.001, function()
        turn = turn + 1
        if turn <= 100 then
          conn:send_datagram("bad", "127.0.0.1", refused)
          conn:send_datagram("good", "127.0.0.1", port_of(sink))
        elseif got == 100 and errors > 0 then
          print(got)
          em.stop()
        end
      end)
    ]], refused)
    assert.same({ "100" }, lines)
  end)

  it("raises for wrong arguments and refuses what only streams have", function()
    local lines = run [[
      local conn = open()
      local function raises(fn, ...) print((select(2, pcall(fn, ...)):gsub("^.-: ", ""):gsub("em%.core%.", "em."))) end
      raises(em.open_datagram_socket, nil, 1)
      raises(em.open_datagram_socket, "127.0.0.1", 70000)
      raises(function() conn:send_datagram({}, "127.0.0.1", 9) end)
      raises(function() conn:send_datagram("x", "", 9) end)
      raises(function() conn:send_datagram("x", "127.0.0.1", 0) end)
      raises(function() conn:join_multicast("nobody") end)
      for _, name in ipairs { "close_write", "enable_keepalive", "disable_keepalive", "start_tls" } do print(name, conn[name](conn)) end
      local _, port = conn:get_sockname()
      print((select(3, em.open_datagram_socket("127.0.0.1", port))))
      print((select(3, em.open_datagram_socket("192.0.2.77", 0))))
      print((select(3, em.open_datagram_socket("nosuch.invalid", 0))))
      local server = em.start_server("127.0.0.1", 0)
      local stream = em.connect("127.0.0.1", select(2, server:address()))
      print((select(3, conn:send_file_data("/etc/passwd"))), (select(3, conn:proxy_incoming_to(stream))))
      print((select(3, stream:proxy_incoming_to(conn))))
      conn:stream_file_data("/etc/passwd"):errback(function(why) print(why) end)
      print(stream:send_datagram("x", "127.0.0.1", 9))
      print(stream:join_multicast("239.1.2.3"))
      conn:close_connection()
      em.next_tick(function() em.next_tick(function()
        print(conn:send_datagram("x", "127.0.0.1", 9))
        print(conn:send_data("x"))
        em.stop()
      end) end)
    ]]
    assert.same({
      "bad argument #1 to 'em.open_datagram_socket' (string expected, got nil)",
      "bad argument #2 to 'em.open_datagram_socket' (must be from 0 to 65535)",
      "bad argument #1 to 'send_datagram' (string expected, got table)",
      "bad argument #2 to 'send_datagram' (must not be empty)",
      "bad argument #3 to 'send_datagram' (must be from 1 to 65535)",
      "bad argument #1 to 'join_multicast' (must be a multicast address)",
    }, { table.unpack(lines, 1, 6) })
    assert.same({
      "close_write\tnil\tnot on a datagram socket or a watch\tEOPNOTSUPP",
      "enable_keepalive\tnil\tnot on a datagram socket or a watch\tEOPNOTSUPP",
      "disable_keepalive\tnil\tnot on a datagram socket or a watch\tEOPNOTSUPP",
      "start_tls\tnil\tnot on a datagram socket or a watch\tEOPNOTSUPP",
      "EADDRINUSE", "EADDRNOTAVAIL", "EADDRNOTAVAIL", "EOPNOTSUPP\tEOPNOTSUPP", "EOPNOTSUPP", "not on a datagram socket or a watch",
      "nil\tnot a datagram socket\tEOPNOTSUPP", "nil\tnot a datagram socket\tEOPNOTSUPP",
      "nil\tclosed\tENOTCONN", "nil\tclosed\tENOTCONN",
    }, { table.unpack(lines, 7) })
  end)

  it("ends once: by a close, by an error, by silence; and sends what is queued where that is asked for", function()
    local lines = run [[
      local left = 5
      local function handler(name, more)
        more = more or {}
        function more:unbind(err, why) print(name, err, why, self:get_sockname() ~= nil) left = left - 1 if left == 0 then em.stop() end end
        return more
      end
      local sink = open(handler("sink", { receive_data = function(self, data)
        print(data)
        if data == "last" then self:close_connection() end
      end }))
      open(handler("idle")):set_comm_inactivity_timeout(0.2)
      local busy = open(handler("busy"))
      busy:set_comm_inactivity_timeout(0.2)
      local beats = 0
      local beat
      beat = em.add_periodic_timer(0.05, function()
        beats = beats + 1
        busy:send_datagram("", "127.0.0.1", port_of(busy))
        if beats == 10 then beat:cancel() end
      end)
      open(handler("fails", {
        post_init = function(self) self:send_datagram("me", "127.0.0.1", port_of(self)) end,
        receive_data = function() error("oops", 0) end,
      }))
      em.error_handler(function() end)
      em.add_timer(0.4, function()
        local after = open(handler("after"))
        after:send_datagram("first", "127.0.0.1", port_of(sink))
        after:send_datagram("last", "127.0.0.1", port_of(sink))
        after:close_connection_after_writing()
        print(after:send_datagram("too late", "127.0.0.1", port_of(sink)))
      end)
    ]]
    assert.same({
      "fails\tEHANDLER\thandler error: oops\ttrue", "idle\tETIMEDOUT\tidle timeout\ttrue", "nil\tclosed\tENOTCONN",
      "after\tnil\tclosed\ttrue", "first", "last", "sink\tnil\tclosed\ttrue", "busy\tETIMEDOUT\tidle timeout\ttrue",
    }, lines)
  end)

  it("pauses and resumes, and the kernel keeps what comes meanwhile", function()
    local lines = run [[
      local server = open { receive_data = function(self, data) print(data, self:paused()) if data == "3" then em.stop() end end }
      local conn = open()
      server:pause()
      for i = 1, 3 do conn:send_datagram(tostring(i), "127.0.0.1", port_of(server)) end
      em.add_timer(0.2, function() print("resumed") server:resume() end)
    ]]
    assert.same({ "resumed", "1\tfalse", "2\tfalse", "3\tfalse" }, lines)
  end)

  it("can be detached, and then is nobody's", function()
    local lines = run [[
      local conn
      conn = open { unbind = function(self, err, why)
        print(err, why, (self:get_sockname()))
        em.stop()
      end }
      conn:send_datagram("x", "127.0.0.1", 9)
      print(math.type(conn:detach()))
    ]]
    assert.same({ "integer", "nil\tdetached\t127.0.0.1" }, lines)
  end)

  it("stops in the middle of a burst when it is paused or closed", function()
    local lines = run [[
      local got = 0
      local server = open {
        receive_data = function(self, data)
          got = got + 1
          if got == 3 then self:pause() em.add_timer(0.1, function() print("paused", got) self:resume() end) end
          if got == 5 then self:close_connection() end
        end,
        unbind = function() print("closed", got) em.stop() end,
      }
      local conn = open()
      for i = 1, 20 do conn:send_datagram(tostring(i), "127.0.0.1", port_of(server)) end
    ]]
    assert.same({ "paused\t3", "closed\t5" }, lines)
  end)

  it("drops what its queue cannot hold, tells ENOBUFS, and says when there is room", function()
    local lines = run [[
      local sink, got = nil, 0
      sink = open { receive_data = function() got = got + 1 end }
      local dropped, conn = 0, nil
      conn = em.listen({ url = "udp://127.0.0.1:0", max_outbound = "64 KiB", high_water = "16 KiB", low_water = 0 }, {
        send_error = function(_, message, code, host, port)
          assert(code == "ENOBUFS" and host == "127.0.0.1" and port == port_of(sink))
          dropped = dropped + 1
        end,
        drained = function(self)
          print("drained", self:get_outbound_data_size(), dropped)
          em.add_timer(0.1, function() print("got", got) em.stop() end)
        end,
      })
      print(conn:send_datagram(("x"):rep(10000), "127.0.0.1", port_of(sink)))
      for _ = 1, 8 do print(conn:send_datagram(("x"):rep(10000), "127.0.0.1", port_of(sink))) end
      print(conn:get_outbound_data_size())
    ]]
    assert.same({
      "true", "false", "false", "false", "false", "false", "false", "false", "false", "60000", "drained\t0\t3", "got\t6",
    }, lines)
  end)

  it("bounds a flood of datagrams and of failures in memory", function()
    local lines = run [[
      local conn = em.listen({ url = "udp://127.0.0.1:0", max_outbound = "1 MiB" }, {
        send_error = function() error_count = (error_count or 0) + 1 end,
      })
      local before = collectgarbage("count")
      for _ = 1, 200000 do conn:send_datagram("", "127.0.0.1", 9) end
      print(conn:get_outbound_data_size(), collectgarbage("count") - before < 2000)
      em.add_timer(0.2, function() print(error_count > 0 and error_count < 100000) em.stop() end)
    ]]
    assert.same({ "0\ttrue", "true" }, lines)
  end)

  it("gives others their turn under a flood of its own", function()
    local lines = run [[
      local ticks, conn = 0, nil
      conn = open { receive_data = function(self) self:send_data("again") end }
      for _ = 1, 200 do conn:send_datagram("go", "127.0.0.1", port_of(conn)) end
      em.add_periodic_timer(0.01, function() ticks = ticks + 1 if ticks == 20 then print("done") em.stop() end end)
    ]]
    assert.same({ "done" }, lines)
  end)

  it("joins a group on an interface and leaves it; ttl and loop are options", function()
    local lines = run [[
      local group, got = "239.77.1.2", {}
      local member = open({ receive_data = function(_, data) got[#got + 1] = data end }, "0.0.0.0")
      local conn = open()
      print(member:join_multicast(group, "lo"))
      print((select(3, member:join_multicast(group, "127.0.0.1"))))
      print((select(3, member:join_multicast("10.1.2.3", "lo"))))
      print((select(3, member:join_multicast(group, "nosuch0"))))
      print(conn:set_multicast_interface("lo"))
      print(conn:get_sock_opt("ip", "multicast_ttl"), conn:get_sock_opt("ip", "multicast_loop"))
      print(conn:set_sock_opt("ip", "multicast_ttl", 3), conn:get_sock_opt("ip", "multicast_ttl"))
      conn:send_datagram("in", group, port_of(member))
      em.add_timer(0.1, function()
        print(member:leave_multicast(group, "lo"))
        print((select(3, member:leave_multicast(group, "lo"))))
        conn:send_datagram("out", group, port_of(member))
        em.add_timer(0.1, function()
          print(table.concat(got, ","))
          em.stop()
        end)
      end)
    ]]
    assert.same({ "true", "EADDRINUSE", "EINVAL", "ENODEV", "true", "1\ttrue", "true\t3", "true", "EADDRNOTAVAIL", "in" }, lines)
  end)

  -- Linux has no route for groups of IPv6 by lo, so nothing is sent here.
  it("joins groups of IPv6 too, and shares the port of a group", function()
    local lines = run([[
      local port = tonumber(arg[1])
      local one = assert(open({}, "ff02::4242%lo", port))
      local two = assert(open({}, "ff02::4242%lo", port))
      print(one:join_multicast("ff02::4242", "lo"), two:join_multicast("ff02::4242", 1), one:join_multicast("ff02::4243", "::1"))
      print(one:leave_multicast("ff02::4242", "lo"), (select(3, one:leave_multicast("ff02::4242", "lo"))))
      local conn = open({}, "::1")
      print(conn:set_multicast_interface("lo"), conn:set_sock_opt("ipv6", "multicast_hops", 2), conn:get_sock_opt("ipv6", "multicast_hops"))
      print(conn:get_sock_opt("ipv6", "multicast_loop"))
      em.stop()
    ]], free_port())
    assert.same({ "true\ttrue\ttrue", "true\tEADDRNOTAVAIL", "true\ttrue\t2", "true" }, lines)
  end)
end)

describe("a udp:// listener", function()
  t.auto()

  -- A handler that says a word in front of what it hears, and logs how its instances begin and end.
  local function speaker(word)
    return ([[
      local em = require "em"
      local H = em.Connection:extend()
      function H:initialize(more) self.more = more or "" em.log.info("%s begins") end
      function H:receive_data(data)
        if data == "die" then error("died") end
        if data == "close" then self:close_connection() end
        if data == "later" then em.add_timer(0.01, function() em.log.info("%s waited") end) end
        self:send_data("%s" .. self.more .. " " .. data)
      end
      function H:unbind(err, why) em.log.info("%s ends: %%s %%s %%s", tostring(err), why, tostring((self:get_sockname()))) end
      return H
    ]]):format(word, word, word, word)
  end

  local function reload(d)
    local mark = d:mark()
    d:signal("HUP")
    return tonumber((d:wait_log("reloaded: generation (%d+) serves", nil, mark)))
  end

  local function configure(text)
    t.write("reactord.conf", ("%s\nhandlers = { %q }\n"):format(text, t.dir()))
  end

  -- The number of the socket that is bound to a port of 127.0.0.1.
  local function inode(port)
    for line in io.lines("/proc/net/udp") do
      local at, number = line:match("^%s*%d+: 0100007F:(%x+) %x+:%x+ %x+ %S+ %S+ %S+%s+%d+%s+%d+ (%d+)")
      if at == ("%04X"):format(port) then return number end
    end
  end

  it("has one instance, with the block's arguments, from the start to the stop", function()
    local port = free_port()
    t.write("one.lua", speaker "one")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "one", args = { "!" } }'):format(port))
    assert.equal("one! a", ask(peer(), port, "a"))
    assert.equal("one! b", ask(peer(), port, "b"))
    d:stop()
    assert.equal(1, d:count_log("one begins"))
    assert.equal(1, d:count_log("one ends: nil stopped 127.0.0.1"))
    assert.is_nil(inode(port))
  end)

  it("is checked: options that only streams have, an address in use", function()
    local port = free_port()
    local conf = t.write("x.conf", [[
      listen "udp://127.0.0.1:1234" {
        handler = "echo",
        backlog = 5,
        nodelay = true,
      }
      connect "udp://127.0.0.1:1234" { handler = "echo" }
    ]])
    local result = t.reactord { "-t", "-c", conf }
    assert.equal(1, result.status)
    assert.matches("x.conf:1: 'backlog' in listen \"udp://127.0.0.1:1234\": only a stream socket has it", result.err, 1, true)
    assert.matches("x.conf:1: 'nodelay' in listen", result.err, 1, true)
    assert.matches('x.conf:6: this version cannot connect to "udp://127.0.0.1:1234"', result.err, 1, true)
    local taken = socket.udp4()
    assert(taken:setsockname("127.0.0.1", port))
    result = t.reactord { "-c", t.write("y.conf", ('listen "udp://127.0.0.1:%d" { handler = "echo" }'):format(port)) }
    taken:close()
    assert.equal(1, result.status)
    assert.matches(("y.conf:1: listen udp://127.0.0.1:%d: Address already in use"):format(port), result.err, 1, true)
  end)

  it("keeps its socket over a reload: the new code's instance goes on with it, no datagram is lost", function()
    local port = free_port()
    t.write("one.lua", speaker "old")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "one" }'):format(port))
    local sock = peer()
    assert.equal("old a", ask(sock, port, "a"))
    local number = inode(port)
    t.write("one.lua", speaker "new")
    -- asked for on and on while it happens
    local answers, old, new = 0, 0, 0
    d:signal("HUP")
    local deadline = t.now() + t.limit
    repeat
      local answer = ask(sock, port, "x")
      answers = answers + 1
      if answer == "old x" then old = old + 1 elseif answer == "new x" then new = new + 1 end
    until new >= 100 or t.now() > deadline
    assert.equal(answers, old + new)
    assert.is_true(new >= 100)
    assert.equal(number, inode(port))
    assert.equal(1, d:count_log("old ends: nil reloaded 127.0.0.1"))
    assert.equal(0, d:count_log("new ends"))
    assert.equal(2, reload(d) - 1)
    d:stop()
    assert.equal(2, d:count_log("new begins"))
  end)

  it("closes its socket when the block goes, and opens one when it comes", function()
    local port, other = free_port(), free_port()
    t.write("one.lua", speaker "one")
    configure(('listen "udp://127.0.0.1:%d" { handler = "one" }'):format(port))
    local d = t.start { config = t.path("reactord.conf") }
    configure(('listen "udp://127.0.0.1:%d" { handler = "one" }'):format(other))
    reload(d)
    assert.equal("one a", ask(peer(), other, "a"))
    t.until_true(function() return not inode(port) end)
    d:stop()
  end)

  it("is served by a new instance after an error, at once", function()
    local port = free_port()
    t.write("one.lua", speaker "one")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "one" }\nlog = { repeats = 0 }'):format(port))
    local sock = peer()
    for i = 1, 20 do
      assert(sock:sendto("die", "127.0.0.1", port))
      assert.equal("one " .. i, ask(sock, port, tostring(i)))
    end
    d:stop()
    assert.equal(20, d:count_log("one ends: EHANDLER handler error: [^\n]*one.lua:%d+: died"))
    assert.equal(21, d:count_log("one begins"))
  end)

  it("that can never begin tries again once a second, not faster", function()
    local port = free_port()
    t.write("bad.lua", "return { initialize = function() error('never') end }")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "bad" }'):format(port))
    t.until_true(function() return d:count_log("handler error: [^\n]*never") == 2 end, 3)
    local cpu = d:cpu()
    assert.is_true(cpu < t.seconds(1))
    d:stop()
    assert.is_true(d:count_log("handler error: [^\n]*never") <= 4)
  end)

  it("stays closed after its script has closed it, until a reload", function()
    local port = free_port()
    t.write("one.lua", speaker "one")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "one" }'):format(port))
    local sock = peer()
    assert(sock:sendto("close", "127.0.0.1", port))
    d:wait_log("one ends: nil closed")
    reload(d)
    assert.equal("one a", ask(sock, port, "a"))
    assert.equal(2, d:count_log("one begins"))
    d:stop()
  end)

  it("takes no more from the moment on in which the daemon drains", function()
    local port, tcp = free_port(), t.free_port()
    t.write("one.lua", speaker "one")
    local text = 'listen "udp://127.0.0.1:%d" { handler = "one" } listen "tcp://127.0.0.1:%d" { handler = "echo" }'
    local d = t.start(text:format(port, tcp))
    local c = t.connect(tcp):send("x"):expect("x")
    d:signal("TERM")
    d:wait_log("one ends: nil stopped")
    t.until_true(function() return not inode(port) end)
    c:send("y"):expect("y")
    d:stop()
  end)

  it("does not hold up the end of an old generation; a socket without a port of its own stays with it", function()
    local port = free_port()
    t.write("one.lua", speaker "one")
    t.write("own.lua", [[
      local em = require "em"
      em.next_tick(function()
        em.open_datagram_socket("127.0.0.1", 0, {
          post_init = function(self) em.log.info("own %d", (select(2, self:get_sockname()))) end,
          receive_data = function(self, data) self:send_data("own " .. data) end,
          unbind = function(_, err, why) em.log.info("own ends: %s %s", tostring(err), why) end,
        })
      end)
      return {}
    ]])
    configure(('listen "udp://127.0.0.1:%d" { handler = "one" } log = { level = "debug" }'):format(port))
    local d = t.start { config = t.path("reactord.conf") }
    reload(d)
    d:wait_log("generation 1 has ended")
    configure(('listen "udp://127.0.0.1:%d" { handler = "one" } listen "udp://127.0.0.1:%d" { handler = "own" }'):format(port, free_port()))
    reload(d)
    local own = tonumber((d:wait_log("own (%d+)")))
    configure(('listen "udp://127.0.0.1:%d" { handler = "one" } reload_timeout = 1'):format(port))
    reload(d)
    assert.equal("own a", ask(peer(), own, "a"))
    d:wait_log("own ends: nil reloaded")
    d:stop()
  end)

  it("of a script: the new generation's takes the socket over with what waits there", function()
    local port = free_port()
    local function script(word)
      return ([[
        local em = require "em"
        em.next_tick(function()
          assert(em.open_datagram_socket("127.0.0.1", %d, {
            receive_data = function(self, data) self:send_data("%s " .. data) end,
            unbind = function(_, err, why) em.log.info("%s ends: %%s %%s", tostring(err), why) end,
          }))
          em.log.info("%s listens")
        end)
        return {}
      ]]):format(port, word, word, word)
    end
    t.write("own.lua", script "old")
    local d = t.start(('listen "udp://127.0.0.1:%d" { handler = "own" }'):format(free_port()))
    d:wait_log("old listens")
    local sock, number = peer(), inode(port)
    assert.equal("old a", ask(sock, port, "a"))
    t.write("own.lua", script "new")
    reload(d)
    d:wait_log("new listens")
    assert.equal("new b", ask(sock, port, "b"))
    assert.equal(number, inode(port))
    d:wait_log("old ends: nil reloaded")
    t.write("own.lua", "return {}")
    reload(d)
    d:wait_log("new ends: nil reloaded")
    t.until_true(function() return not inode(port) end)
    d:stop()
  end)

  it("shares an address with reuse_port", function()
    local port = free_port()
    t.write("one.lua", speaker "one")
    local block = ('listen "udp://127.0.0.1:%d" { handler = "one", reuse_port = true }\n'):format(port)
    local d = t.start(block .. block)
    for _ = 1, 20 do assert.equal("one a", ask(peer(), port, "a")) end
    reload(d)
    for _ = 1, 20 do assert.equal("one a", ask(peer(), port, "a")) end
    d:stop()
    assert.equal(4, d:count_log("one begins"))
    assert.equal(4, d:count_log("one ends"))
  end)

  it("can be opened by em.listen with options, by run -l, and not while handlers load", function()
    local port = free_port()
    local d = t.start { args = { "run", t.root .. "/handlers/datagram_echo.lua", "-l", "udp://127.0.0.1:" .. port } }
    assert.equal("x", ask(peer(), port, "x"))
    d:stop()
    local lines = run [[
      local conn = em.listen({ url = "udp://127.0.0.1:0", idle_timeout = 0.1 }, { unbind = function(_, ...) print(...) em.stop() end })
      print(conn:get_comm_inactivity_timeout())
      print(select(2, pcall(em.listen, { url = "udp://127.0.0.1:0", backlog = 5 })))
    ]]
    assert.equal("0.1", lines[1])
    assert.matches("'backlog' in listen \"udp://127.0.0.1:0\": only a stream socket has it", lines[2], 1, true)
    assert.equal("ETIMEDOUT\tidle timeout", lines[3])
    t.write("early.lua", "require('em').open_datagram_socket('127.0.0.1', 0) return {}")
    local result = t.reactord { "-t", "-c",
      t.write("early.conf", ('listen "udp://127.0.0.1:1" { handler = "early" } handlers = { %q }'):format(t.dir())) }
    assert.matches("nothing can be opened while handlers load", result.err)
  end)
end)

describe("datagrams of EventMachine", function()
  t.auto()

  -- Starts a Ruby program with EventMachine; its log is the object's log.
  local function ruby(text, ...)
    local log = t.path("ruby.log")
    local pid = assert(t.sys.spawn({ "ruby", "-reventmachine", t.write("peer.rb", "$stdout.sync = true\n" .. text:format(...)) },
      { stdout = log, stderr = log }))
    local d = t.adopt(pid, log, { counters = false })
    d.unchecked = true
    return d
  end

  -- Sizes up to EventMachine's own limit.
  local sizes = "[0, 1, 100, 1472, 8192, 16383]"

  it("come back from ours, byte for byte", function()
    local port = free_port()
    t.start(('listen "udp://127.0.0.1:%d" { handler = "datagram_echo" }'):format(port))
    local d = ruby([[
      SIZES = %s
      class Client < EM::Connection
        def post_init; @at = 0; ask; end
        def ask; @sent = Random.bytes(SIZES[@at]); send_datagram(@sent, "127.0.0.1", %d); end
        def receive_data(data)
          abort "size #{SIZES[@at]}: got #{data.bytesize} other bytes" unless data == @sent
          @at += 1
          if @at == SIZES.size then puts "all came back"; EM.stop else ask end
        end
      end
      EM.run { EM.open_datagram_socket("127.0.0.1", 0, Client) }
    ]], sizes, port)
    d:wait_log("all came back")
  end)

  it("go there from ours and come back, byte for byte", function()
    local port = free_port()
    local d = ruby([[
      class Echo < EM::Connection
        def receive_data(data); send_data(data); end
      end
      EM.run { EM.open_datagram_socket("127.0.0.1", %d, Echo); puts "listens" }
    ]], port)
    d:wait_log("listens")
    local lines = run([[
      local sizes, port = { 0, 1, 100, 1472, 8192, 16383 }, tonumber(arg[1])
      local function ask(self)
        local bytes = {}
        for i = 1, sizes[1] do bytes[i] = string.char(math.random(0, 255)) end
        self.sent = table.concat(bytes)
        self:send_datagram(self.sent, "127.0.0.1", port)
      end
      open {
        post_init = ask,
        receive_data = function(self, data, host, from)
          assert(data == self.sent and host == "127.0.0.1" and from == port)
          table.remove(sizes, 1)
          if #sizes > 0 then return ask(self) end
          print("all came back")
          em.stop()
        end,
      }
    ]], port)
    assert.same({ "all came back" }, lines)
  end)
end)
