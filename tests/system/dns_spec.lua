-- Names: against a real resolver (dnsmasq on loopback), and against servers that do not answer. Nothing ever waits for them.
local t = require "tests.support.harness"
local socket = require "socket"

-- A port that neither a stream nor a datagram socket has.
local function free_port()
  while true do
    local port = t.free_port()
    local probe = socket.udp4()
    local free = probe:setsockname("127.0.0.1", port)
    probe:close()
    if free then return port end
  end
end

-- dnsmasq with those records; returns its port, and the process.
local function dnsmasq(records)
  local port = free_port()
  local lines = {
    "no-resolv", "no-hosts", "no-daemon", "log-queries", "log-facility=-", "listen-address=127.0.0.1", "bind-interfaces", "user=", "group=",
    "local=/test/", "local=//", "pid-file=" .. t.path("dnsmasq.pid"), "port=" .. port, "cache-size=0", records,
  }
  local conf, log = t.write("dnsmasq.conf", table.concat(lines, "\n") .. "\n"), t.path("dnsmasq.log")
  local d = t.adopt(assert(t.sys.spawn({ "/usr/sbin/dnsmasq", "-C", conf }, { stdout = log, stderr = log })), log, { counters = false })
  d.unchecked = true
  d:wait_log("dnsmasq%[?%d*%]?: started")
  return port, d
end

-- A name server that takes questions and never answers; returns its port.
local function silent()
  local sock = assert(socket.udp4())
  assert(sock:setsockname("127.0.0.1", 0))
  return select(2, sock:getsockname()), sock
end

-- Runs the text as the body of em.run with the name server's port in `server`, and show(name, options) to print a name's outcome;
-- returns the lines that it printed.
local function run(server, body, ...)
  local result = t.script(([[
    local em = require "em"
    local arg, left = { ... }, 0
    local server = "127.0.0.1:%d"
    local function show(name, options)
      options = options or {}
      options.nameserver = options.nameserver or server
      left = left + 1
      local function tell(what)
        return function(outcome, code)
          if type(outcome) == "table" then table.sort(outcome) outcome = table.concat(outcome, " ") end
          print(name, options.type or "both", what, outcome, code)
          left = left - 1
          if left == 0 then em.stop() end
        end
      end
      em.dns.resolve(name, options):callback(tell "is"):errback(tell "failed")
    end
    em.run(function()
      em.add_timer(%g, function() print("hangs") em.stop() end)
      %s
    end)
  ]]):format(server, t.seconds(8), body), { ... })
  assert.equal(0, result.status, result.err)
  assert.equal("", result.err)
  local lines = {}
  for line in result.out:gmatch("([^\n]*)\n") do table.insert(lines, line) end
  return lines
end

-- A daemon with that name server which runs the text once it serves; its log tells of connections made with the class C.
local function daemon(server, body, ...)
  t.write("client.lua", ([[
    local em = require "em"
    local C = em.Connection:extend()
    function C:connection_completed() em.log.info("completed %%s %%d", self:get_peername()) end
    function C:unbind(err, why) em.log.info("unbind %%s %%s", tostring(err), why) end
    em.next_tick(function() %s end)
    return { receive_data = function(self, data) self:send_data(data) end }
  ]]):format(body:format(...)))
  local port = t.free_port()
  local d = t.start(('nameservers = { "127.0.0.1:%d" } listen "tcp://127.0.0.1:%d" { handler = "client" }'):format(server, port))
  return d, port
end

-- A listener on ::1 whose backlog is full: who connects to it hears nothing.
local function deaf(port)
  local sock = assert(socket.tcp6())
  assert(sock:setoption("ipv6-v6only", true))
  assert(sock:bind("::1", port))
  assert(sock:listen(0))
  local held = { sock }
  for _ = 1, 4 do
    local c = socket.tcp6()
    c:settimeout(0)
    c:connect("::1", port)
    table.insert(held, c)
  end
  return held
end

local many = {}
for i = 1, 60 do many[i] = ("host-record=many.test,127.1.0.%d"):format(i) end

describe("em.dns.resolve", function()
  t.auto()

  it("finds IPv4 and IPv6 addresses, one or several, by way of aliases too", function()
    local server = dnsmasq [[
host-record=one.test,127.0.0.1
host-record=both.test,127.0.0.2,::2
address=/pair.test/127.0.0.3
address=/pair.test/127.0.0.4
host-record=six.test,::6
cname=alias.test,both.test]]
    local lines = run(server, [[
      show "one.test" show("one.test", { type = "A" })
      show "both.test" show("both.test", { type = "A" }) show("both.test", { type = "AAAA" })
      show "pair.test" show("six.test", { type = "AAAA" }) show "alias.test"
    ]])
    table.sort(lines)
    assert.same({
      "alias.test\tboth\tis\t127.0.0.2 ::2\tnil", "both.test\tA\tis\t127.0.0.2\tnil", "both.test\tAAAA\tis\t::2\tnil",
      "both.test\tboth\tis\t127.0.0.2 ::2\tnil", "one.test\tA\tis\t127.0.0.1\tnil", "one.test\tboth\tis\t127.0.0.1\tnil",
      "pair.test\tboth\tis\t127.0.0.3 127.0.0.4\tnil", "six.test\tAAAA\tis\t::6\tnil",
    }, lines)
  end)

  it("says why there is none: no such name, no address of that type, no name at all", function()
    local server = dnsmasq "host-record=one.test,127.0.0.1\nmx-host=mail.test,one.test"
    local lines = run(server, [[
      show "missing.test" show("one.test", { type = "AAAA" }) show "mail.test" show "" show(("a"):rep(64) .. ".test") show(("a."):rep(200))
      show "two words.test" show "one.test\0.x" show "-one.test" show("127.0.0.1", { type = "AAAA" })
    ]])
    for _, line in ipairs(lines) do assert.matches("\tfailed\t[^\t]+\tEAI_NONAME$", line) end
    assert.equal(10, #lines)
  end)

  it("asks nobody for addresses and for what the hosts file has", function()
    local server, sock = silent()
    local lines = run(server, [[
      show "127.0.0.1" show "::1" show("fe80::1%lo", { type = "AAAA" })
      show("localhost", { type = "A" }) show("localhost", { type = "AAAA" })
    ]])
    table.sort(lines)
    assert.same({
      "127.0.0.1\tboth\tis\t127.0.0.1\tnil", "::1\tboth\tis\t::1\tnil", "fe80::1%lo\tAAAA\tis\tfe80::1%lo\tnil",
      "localhost\tA\tis\t127.0.0.1\tnil", "localhost\tAAAA\tis\t::1\tnil",
    }, lines)
    sock:settimeout(0)
    assert.is_nil((sock:receive()))
  end)

  it("takes an answer that is too big for a datagram by TCP", function()
    local server, d = dnsmasq(table.concat(many, "\n"))
    local lines = run(server, [[
      em.dns.resolve("many.test", { type = "A", nameserver = server }):callback(function(list) print(#list) em.stop() end)
    ]])
    assert.same({ "60" }, lines)
    assert.is_true(d:count_log("query%[A%] many.test") >= 2) -- by UDP, then by TCP
  end)

  it("fails after a while where nobody answers, and the loop serves on meanwhile", function()
    local server = silent()
    local d, port = daemon(server, [[
      em.dns.resolve("slow.test"):errback(function(why, code) em.log.info("failed %%s %%s", code, why) end)
      em.dns.resolve("slow.test"):timeout(0.2, "too slow"):errback(function(why) em.log.info("gave up: %%s", why) end)
    ]])
    local c = t.connect(port)
    local slowest = 0
    t.until_true(function()
      local from = t.now()
      c:send("x"):expect("x")
      slowest = math.max(slowest, t.now() - from)
      return d:log():find("failed EAI_AGAIN name servers do not answer", 1, true)
    end, 20)
    assert.is_true(slowest < t.seconds(0.5), slowest)
    assert.equal(1, d:count_log("gave up: too slow"))
    d:stop()
  end)

  it("fails at once where no name server is", function()
    local lines = run(free_port(), [[ show("x.test", { type = "A" }) ]])
    assert.same({ "x.test\tA\tfailed\tname servers cannot be reached\tEAI_AGAIN" }, lines)
  end)

  it("raises for wrong arguments and while handlers load", function()
    local lines = run(1, [[
      local function raises(...) print((select(2, pcall(em.dns.resolve, ...)):gsub("^.-: ", ""))) end
      raises() raises("x", 5) raises("x", { typ = "A" })
      raises("x", { type = "MX" }) raises("x", { nameserver = "localhost" }) raises("x", { type = 1 })
      em.stop()
    ]])
    for i, pattern in ipairs {
      "bad argument #1 to 'resolve' %(string expected, got nil%)", "#2 .*table expected, got number", "unknown option 'typ'",
      'type must be "A" or "AAAA"', 'nameserver must be "address" or "address:port"', "type must be a string",
    } do
      assert.matches(pattern, lines[i])
    end
    t.write("early.lua", "require('em').dns.resolve('x') return {}")
    local result = t.reactord { "-t", "-c",
      t.write("early.conf", ('listen "tcp://127.0.0.1:1" { handler = "early" } handlers = { %q }'):format(t.dir())) }
    assert.matches("nothing can be opened while handlers load", result.err)
  end)

  it("leaves nothing behind: a stop in the middle, a reload, a script that waits for nothing else", function()
    local server = silent()
    local d = daemon(server, [[
      for i = 1, 100 do em.dns.resolve("x" .. i .. ".test"):callback(print) end
      em.connect("y.test", 1, C)
      em.log.info("asked")
    ]])
    d:wait_log("asked")
    d:signal("HUP")
    d:wait_log("reloaded: generation 2")
    d:stop()
    local dns = dnsmasq "host-record=one.test,127.0.0.1"
    local result = t.script([[
      local em = require "em"
      em.dns.resolve("one.test", { nameserver = "127.0.0.1:" .. ... }):callback(function(list) print(list[1]) end)
    ]], { dns })
    assert.equal("127.0.0.1\n", result.out)
  end)

  it("bounds how many look-ups wait", function()
    local server = silent()
    local lines = run(server, [[
      local failed = 0
      for i = 1, 10100 do
        em.dns.resolve("x" .. i .. ".test", { nameserver = server, type = "A" }):errback(function(why, code)
          failed = failed + 1
          if failed == 1 then print(code, why) end
        end)
      end
      print(failed)
      em.stop()
    ]])
    assert.same({ "EAI_AGAIN\ttoo many look-ups are under way", "100" }, lines)
  end)
end)

describe("the option nameservers", function()
  t.auto()

  it("is who is asked by every look-up, and can change in a reload without disturbing those under way", function()
    local first = dnsmasq "host-record=one.test,127.0.0.1"
    local answering = t.free_port()
    local quiet = silent()
    local d, port = daemon(quiet, [[
      em.connect("one.test", %d, C)
      em.log.info("asked")
    ]], answering)
    d:wait_log("asked")
    t.write("reactord.conf", ([[nameservers = { "127.0.0.1:%d", "[::1]:1" } handlers = { %q }
      listen "tcp://127.0.0.1:%d" { handler = "client" }]]):format(first, t.dir(), port))
    local server = t.listen(answering)
    local mark = d:mark()
    d:signal("HUP")
    d:wait_log("completed 127.0.0.1 " .. answering, nil, mark) -- by the new generation
    server:accept()
    assert.equal(0, d:count_log("unbind EAI")) -- the old generation's still waits
    d:stop()
  end)

  it("must be addresses", function()
    local text = 'nameservers = { "localhost" } listen "tcp://127.0.0.1:1" { handler = "echo" }'
    local result = t.reactord { "-t", "-c", t.write("x.conf", text) }
    assert.equal(1, result.status)
    assert.matches("x.conf:1: 'nameservers' must be a list such as", result.err, 1, true)
  end)
end)

describe("connect by name", function()
  t.auto()

  it("tells every failure in unbind, with its code", function()
    local server = dnsmasq "host-record=one.test,127.0.0.1\nmx-host=mail.test,one.test"
    local closed = t.free_port()
    for text, expected in pairs {
      ["'missing.test', 1"] = "EAI_NONAME name not known",
      ["'mail.test', 1"] = "EAI_NONAME name has no address",
      ["'no name', 1"] = "EAI_NONAME not a valid name",
      ["'one.test', " .. closed] = "ECONNREFUSED Connection refused",
    } do
      local d = daemon(server, "em.connect(%s, C)", text)
      d:wait_log("unbind " .. expected)
      d:stop()
      assert.equal(1, d:count_log("info unbind"))
    end
  end)

  it("gives up where nobody answers, at the latest with the connect timeout", function()
    local d = daemon(silent(), "em.connect('slow.test', 1, C):set_pending_connect_timeout(0.3)")
    d:wait_log("unbind ETIMEDOUT connect timeout", 3)
    d:stop()
  end)

  it("waits 250 ms for an IPv6 address that does not answer, then takes the IPv4 one", function()
    local server = dnsmasq "host-record=race.test,127.0.0.1,::1"
    local listening = t.listen()
    local held = deaf(listening.port)
    local d = daemon(server, [[
      local from = em.current_time()
      C.connection_completed = function(self)
        em.log.info("took %%d ms to %%s", (em.current_time() - from) * 1000 // 1, (self:get_peername()))
      end
      em.dns.resolve("race.test"):callback(function(list) em.log.info("first is %%s", list[1]) end)
      em.connect("race.test", %d, C)
    ]], listening.port)
    local took = tonumber((d:wait_log("took (%d+) ms to 127.0.0.1")))
    assert.is_true(took >= 250 and took < 250 + 750 * t.slow, took)
    assert.equal(1, d:count_log("first is ::1"))
    d:stop()
    for _, c in ipairs(held) do c:close() end
  end)

  it("does not wait where the IPv6 address refuses", function()
    local server = dnsmasq "host-record=race.test,127.0.0.1,::1"
    local listening = t.listen()
    local d = daemon(server, "em.connect('race.test', %d, C)", listening.port)
    listening:accept()
    d:wait_log("completed 127.0.0.1")
    d:stop()
  end)

  it("tries every address of a name", function()
    local server = dnsmasq "address=/all.test/127.0.0.9\naddress=/all.test/127.0.0.8\naddress=/all.test/127.0.0.1"
    local listening = t.listen()
    local d = daemon(server, "em.connect('all.test', %d, C)", listening.port)
    listening:accept()
    d:wait_log("completed 127.0.0.1 " .. listening.port)
    d:stop()
  end)
end)

describe("send_datagram by name", function()
  t.auto()

  it("sends when the name is known, in order, and tells what is not known", function()
    local server = dnsmasq "host-record=one.test,127.0.0.1\nhost-record=six.test,::1"
    t.write("client.lua", [[
      local em = require "em"
      em.next_tick(function()
        local got = {}
        local sink = em.open_datagram_socket("127.0.0.1", 0, { receive_data = function(_, data)
          got[#got + 1] = data
          if #got == 3 then em.log.info("got %s", table.concat(got, ",")) end
        end })
        local _, port = sink:get_sockname()
        local conn = em.open_datagram_socket("127.0.0.1", 0, {
          send_error = function(_, message, code, host, to) em.log.info("send_error %s %s %s %d", message, code, host, to) end,
          unbind = function(_, err, why) em.log.info("unbind %s %s", tostring(err), why) end,
        })
        for i = 1, 3 do conn:send_datagram(tostring(i), "one.test", port) end
        conn:send_datagram("x", "missing.test", 5)
        conn:send_datagram("x", "six.test", 6)
        em.log.info("queued %d", conn:get_outbound_data_size())
        conn:close_connection_after_writing()
      end)
      return {}
    ]])
    local d = t.start(('nameservers = { "127.0.0.1:%d" } listen "tcp://127.0.0.1:%d" { handler = "client" }'):format(server, t.free_port()))
    d:wait_log("queued 5")
    d:wait_log("got 1,2,3")
    d:wait_log("send_error name not known EAI_NONAME missing.test 5")
    d:wait_log("send_error name has no address EAI_NONAME six.test 6")
    d:wait_log("unbind nil closed")
    d:stop()
  end)

  it("bounds names and bytes that wait, and gives them up with the socket", function()
    local server = silent()
    t.write("client.lua", [[
      local em = require "em"
      em.next_tick(function()
        local codes, told = {}, 0
        local conn = em.listen({ url = "udp://127.0.0.1:0", max_outbound = "1 MiB" }, {
          send_error = function(_, _, code) codes[code] = (codes[code] or 0) + 1 end,
          unbind = function(_, err, why) em.log.info("unbind %s %s", tostring(err), why) end,
        })
        for i = 1, 300 do conn:send_datagram("x", "x" .. i .. ".test", 5) end
        em.add_timer(0.05, function()
          em.log.info("EAGAIN %d", codes.EAGAIN)
          for _ = 1, 40 do conn:send_datagram(("x"):rep(50000), "x1.test", 5) end
          em.add_timer(0.05, function()
            local dropped, failed = codes.ENOBUFS, 0
            codes.EAGAIN, codes.ENOBUFS = nil, nil
            for code, count in pairs(codes) do em.log.info("%s %d", code, count) failed = failed + count end
            em.log.info("ENOBUFS %d %d %d", dropped, conn:get_outbound_data_size(), failed)
            conn:close_connection()
          end)
        end)
      end)
      return {}
    ]])
    local d = t.start(('nameservers = { "127.0.0.1:%d" } listen "tcp://127.0.0.1:%d" { handler = "client" }'):format(server, t.free_port()))
    assert.equal("44", (d:wait_log("EAGAIN (%d+)")))
    local dropped, queued, failed = d:wait_log("ENOBUFS (%d+) (%d+) (%d+)") -- a resolver may give a look-up up where the machine is slow
    assert.equal(256 - failed + 50000 * (40 - dropped), tonumber(queued))
    assert.is_true(tonumber(queued) <= 1 << 20)
    d:wait_log("unbind nil closed")
    d:stop()
  end)
end)
