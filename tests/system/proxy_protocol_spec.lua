-- The PROXY protocol in and out: by hand, and with HAProxy and curl as peers.
local t = require "tests.support.harness"
local sys = t.sys

-- Says whose connection it is; then an echo. On HTTP requests it says so in HTTP.
local whoami = [[
local em = require "em"
local Who = em.Connection:extend()
local function name(host, port) return port and ("%s:%d"):format(host, port) or tostring(host) end
function Who:post_init()
  self.text = name(self:get_peername()) .. " to " .. name(self:get_sockname())
end
function Who:receive_data(data)
  if data:find("^GET ") then
    self:send_data(("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"):format(#self.text, self.text))
    self:close_connection_after_writing()
  else
    self:send_data(self.text, ": ", data)
  end
end
function Who:unbind()
  em.log.info("unbind of %s, %s", name(self:get_peername()), name(self:get_sockname()))
end
return Who
]]

local SIGNATURE = "\r\n\r\n\0\r\nQUIT\n"
local V1 = "PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
local V2 = SIGNATURE .. "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc6\x33\x64\x02\xdc\x04\x01\xbb"
local NAMED = "192.0.2.1:56324 to 198.51.100.2:443: "

-- A daemon with whoami on a port; options: networks (Lua text), listen (more options), more (lines of the file).
local function start(options)
  options = options or {}
  t.write("whoami.lua", whoami)
  local port = options.port or t.free_port()
  local d = t.start(('listen "%s://127.0.0.1:%d" { handler = "whoami", proxy_protocol = { %s }%s }\n%s'):format(
    options.scheme or "tcp", port, options.networks or '"127.0.0.0/8"', options.listen or "", options.more or ""))
  return port, d
end

-- A line of the file: the same by TLS.
local function secure_listener(port)
  return ('listen "tls://127.0.0.1:%d" { handler = "whoami", proxy_protocol = { "127.0.0.1" }, tls = { self_signed = true } }'):format(port)
end

-- What the daemon's last line says of a counter.
local function counter(d, name)
  return tonumber(d:log():match("stopped: .*%f[%w_]" .. name .. "=(%d+)"))
end

-- HAProxy with those sections, in the foreground; ports that must be open before it counts as started.
local function haproxy(text, ports)
  local defaults = "  mode tcp\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n"
  local config = t.write("haproxy.cfg", "global\n  maxconn 200\ndefaults\n" .. defaults .. text)
  local log = t.path("haproxy.log")
  local pid = assert(sys.spawn({ "haproxy", "-db", "-f", config }, { stdout = log, stderr = log }))
  local d = t.adopt(pid, log, { counters = false })
  d.unchecked = true
  for _, port in ipairs(ports) do
    t.until_true(function()
      assert(not d:ended(), "haproxy ended: " .. d:log())
      local ok, c = pcall(t.connect, port)
      if ok then c:close() end
      return ok
    end, 10, "haproxy on port " .. port)
  end
  return d
end

describe("PROXY headers that come in", function()
  t.auto()

  it("name the client and where it connected to, in both versions", function()
    local port, d = start()
    t.connect(port):send(V1 .. "data"):expect(NAMED .. "data")
    t.connect(port):send(V2 .. "data"):expect(NAMED .. "data")
    t.connect(port):send("PROXY TCP6 2001:db8::1 ::1 1 2\r\ndata"):expect("2001:db8::1:1 to ::1:2: data")
    t.connect(port):send(SIGNATURE .. "\x21\x31\x00\xd8" .. "/run/client" .. ("\0"):rep(97) .. "/run/server" .. ("\0"):rep(97) .. "data")
      :expect("/run/client to /run/server: data")
    d:stop()
    assert.matches("unbind of 192.0.2.1:56324, 198.51.100.2:443", d:log())
    assert.equal(0, counter(d, "proxy_headers_refused"))
  end)

  it("come in pieces of any size, with data right behind", function()
    local port = start()
    for _, header in ipairs { V1, V2 } do
      local c = t.connect(port)
      for i = 1, #header do
        c:send(header:sub(i, i))
        if i % 7 == 0 then sys.sleep(0.001) end
      end
      c:send("x"):expect(NAMED .. "x")
      for _, cut in ipairs { 1, 6, 12, 13, 16, #header - 1 } do
        c = t.connect(port):send(header:sub(1, cut))
        sys.sleep(0.005)
        c:send(header:sub(cut + 1) .. "behind"):expect(NAMED .. "behind")
        c:close()
      end
    end
  end)

  it("leave the socket's own addresses where they say so", function()
    local port = start()
    for _, header in ipairs {
      "PROXY UNKNOWN\r\n", "PROXY UNKNOWN ::1 ::1 5 6\r\n", SIGNATURE .. "\x20\x00\x00\x00", SIGNATURE .. "\x21\x00\x00\x00",
    } do
      local c = t.connect(port)
      local _, own = c.sock:getsockname()
      c:send(header .. "x"):expect(("127.0.0.1:%d to 127.0.0.1:%d: x"):format(own, port))
    end
  end)

  it("come before TLS", function()
    local port = start { scheme = "tls", listen = ", tls = { self_signed = true }" }
    for _, version in ipairs { "v1", "v2" } do
      local r = t.script([[
        local em = require "em"
        local port, version = ...
        em.run(function()
          local c = em.connect({ url = "tls://127.0.0.1:" .. port, proxy_protocol = version, tls = { verify_peer = false } })
          c:send_data("hello")
          function c:receive_data(data) print(data, "from", self:get_sockname()) em.stop() end
        end)
      ]], { port, version })
      local own = r.out:match("from\t127%.0%.0%.1\t(%d+)")
      assert.matches(("^127.0.0.1:%s to 127.0.0.1:%d: hello"):format(own, port), r.out)
    end
  end)

  it("are required: whatever else comes is closed, and the handler never hears of it", function()
    local port, d = start()
    local wrong = {
      "GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01", "PROXY TCP4 1.2.3.4\r\n", SIGNATURE .. "\x31",
      SIGNATURE .. "\x21\x11\xff\xff" .. ("x"):rep(65535), "PROXY UNKNOWN " .. ("x"):rep(200), V1:sub(1, 20) .. "\0",
    }
    for _, bytes in ipairs(wrong) do
      local c = t.connect(port)
      c:send_some(bytes)
      c:receive_end()
    end
    t.connect(port):send(V1:sub(1, 20)):shutdown_write():receive_end()
    t.connect(port):close() -- a look whether somebody is there
    d:wait_log("PROXY header refused: no PROXY header .*peer=127.0.0.1:%d+")
    d:wait_log("PROXY header refused: neither version 1 nor 2")
    d:wait_log("PROXY header refused: a header of more than 4096 bytes")
    d:wait_log("PROXY header refused: the end in the middle of it")
    d:stop()
    assert.equal(#wrong + 1, counter(d, "proxy_headers_refused"))
    assert.equal(#wrong + 1, d:count_log(" info PROXY header refused"))
    assert.equal(0, d:count_log("unbind of"))
    assert.equal(0, counter(d, "connections_closed"))
  end)

  it("are believed from trusted networks only, and nobody else may come", function()
    local port, d = start { networks = '"127.0.0.2/32", "2001:db8::/32", "unix"' }
    local _, how = t.connect(port):receive_end()
    assert.is_string(how)
    t.connect(port, { bind = "127.0.0.2" }):send(V1 .. "x"):expect(NAMED .. "x")
    d:wait_log("PROXY header refused: it is not from a trusted network .*peer=127.0.0.1:")
    t.close_clients()
    d:stop()
    assert.equal(1, d:count_log("unbind of"))
  end)

  it("have to be complete within the handshake's time, however they trickle", function()
    local port, d = start { scheme = "tls", listen = ", tls = { self_signed = true, handshake_timeout = 0.3 }" }
    local begun = t.now()
    local silent, c = t.connect(port), t.connect(port)
    for i = 1, #V1 - 1 do
      if not pcall(c.send, c, V1:sub(i, i)) then break end
      if c:fill(t.now() + 0.03) or c.eof or c.failed then break end
    end
    silent:receive_end()
    assert.is_true(t.now() - begun < t.seconds(2))
    t.until_true(function() return d:count_log("PROXY header refused: it took too long") == 2 end)
  end)

  it("count for the limits: by the client's address, and while they are awaited", function()
    local port, d = start { listen = ", max_connections_per_address = 2, max_connections = 4" }
    local a = t.connect(port):send(V1 .. "x"):expect(NAMED .. "x")
    local b = t.connect(port):send(V2 .. "x"):expect(NAMED .. "x")
    t.connect(port):send(V2 .. "x"):receive_end() -- a third of that client
    local c = t.connect(port):send("PROXY TCP4 192.0.2.7 198.51.100.2 5 6\r\nx"):expect("192.0.2.7:5 to 198.51.100.2:6: x")
    local waiting = t.connect(port)
    local late = t.connect(port):send(V1 .. "late"):expect_silence(0.05) -- there are four
    a:close()
    late:expect(NAMED .. "late")
    b:close()
    c:close()
    waiting:close()
    late:close()
    d:stop()
    assert.equal(1, counter(d, "connections_refused"))
  end)

  it("on a Unix socket need \"unix\" among the networks", function()
    t.write("whoami.lua", whoami)
    local one, two = t.path("one.sock"), t.path("two.sock")
    local d = t.start(([[
      listen "unix://%s" { handler = "whoami", proxy_protocol = { "unix" } }
      listen "unix://%s" { handler = "whoami", proxy_protocol = { "0.0.0.0/0", "::/0" } }
    ]]):format(one, two))
    t.connect(one):send(V2 .. "x"):expect(NAMED .. "x")
    t.connect(two):receive_end()
    d:wait_log("PROXY header refused: it is not from a trusted network")
  end)

  it("may be awaited over a reload, and go to the new code", function()
    local port, d = start()
    local c = t.connect(port):send(V1:sub(1, 10))
    local text = t.read("reactord.conf")
    t.write("whoami.lua", whoami:gsub('" to "', '" towards "'))
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    c:send(V1:sub(11) .. "x"):expect("192.0.2.1:56324 towards 198.51.100.2:443: x")
    -- the option itself may change
    local waits = t.connect(port):send(V1:sub(1, 10))
    t.write("reactord.conf", (text:gsub("proxy_protocol = {[^}]*}", "")))
    d:signal("HUP")
    d:wait_log("generation 3 serves")
    waits:send(V1:sub(11) .. "x"):expect("192.0.2.1:56324 towards 198.51.100.2:443: x")
    t.connect(port):send("plain"):receive(5)
    -- and the listener may go
    t.write("reactord.conf", text)
    d:signal("HUP")
    d:wait_log("generation 4 serves")
    local lost = t.connect(port):send(V1:sub(1, 10))
    sys.sleep(0.02)
    t.write("reactord.conf", (text:gsub("listen[^\n]*", "")))
    d:signal("HUP")
    d:wait_log("generation 5 serves")
    lost:receive_end()
    d:stop()
    assert.equal(0, counter(d, "proxy_headers_refused"))
  end)

  it("work for listeners of scripts, which may pause", function()
    local port = t.free_port()
    t.write("whoami.lua", whoami)
    local d = t.start { wait = "serving", counters = false, unchecked = true, args = { port, t.path("whoami.lua") }, script = [[
      local em = require "em"
      local port, handler = ...
      em.run(function()
        local server = em.listen({ url = "tcp://127.0.0.1:" .. port, proxy_protocol = { "127.0.0.1" } }, handler)
        em.start_unix_domain_server("control.sock", function(c)
          function c:receive_data(data)
            server[data](server)
            self:send_data("done")
          end
        end)
        print "serving"
      end)
    ]], cwd = t.dir() }
    local control = t.connect(t.path("control.sock"))
    local c = t.connect(port):send(V1:sub(1, 10))
    sys.sleep(0.02)
    control:send("pause"):expect("done")
    c:send(V1:sub(11) .. "x"):expect_silence(0.05)
    control:send("resume"):expect("done")
    c:expect(NAMED .. "x")
    c = t.connect(port):send(V1:sub(1, 10))
    sys.sleep(0.02)
    control:send("stop"):expect("done")
    c:receive_end()
    d:signal("TERM")
  end)

  it("are refused as options where they make no sense", function()
    local networks = "'proxy_protocol' in listen must be a list of networks"
    for option, message in pairs {
      ['listen = { "10.0.0.0/33" }'] = networks,
      ['listen = { "proxy.example.org" }'] = networks,
      ['listen = true'] = networks,
      ['connect = "v3"'] = "'proxy_protocol' in connect must be one of \"none\", \"v1\", \"v2\"",
    } do
      local block, value = option:match("^(%l+) = (.*)$")
      local text = ('%s "tcp://127.0.0.1:1" { handler = "echo", proxy_protocol = %s }\nhandlers = {}\n'):format(block, value)
      local r = t.reactord { "-t", "-c", t.write("bad.conf", text) }
      assert.equal(1, r.status)
      assert.is_truthy(r.err:find(message, 1, true), r.err)
    end
  end)

  it("come from HAProxy in either version, with further data in them, over TLS, and from its health checks", function()
    local plain, secure = t.free_port(), t.free_port()
    local ports = { t.free_port(), t.free_port(), t.free_port(), t.free_port() }
    local _, d = start { port = plain,
      more = secure_listener(secure) }
    local p = haproxy(([[
listen one
  bind 127.0.0.1:%d
  server s 127.0.0.1:%d send-proxy check inter 50ms
listen two
  bind 127.0.0.1:%d
  server s 127.0.0.1:%d send-proxy-v2 check inter 50ms
listen three
  bind 127.0.0.1:%d
  unique-id-format %%{+X}o\ %%ci:%%cp_%%fi:%%fp_%%Ts_%%rt:%%pid
  server s 127.0.0.1:%d send-proxy-v2 proxy-v2-options crc32c,unique-id
listen four
  bind 127.0.0.1:%d
  server s 127.0.0.1:%d send-proxy-v2 ssl verify none
]]):format(ports[1], plain, ports[2], plain, ports[3], plain, ports[4], secure), ports)
    for i, port in ipairs(ports) do
      for _, bind in ipairs { "127.0.0.1", "127.0.0.7" } do
        local c = t.connect(port, { bind = bind })
        local _, own = c.sock:getsockname()
        c:send("via " .. i):expect(("%s:%d to 127.0.0.1:%d: via %d"):format(bind, own, port, i))
        c:close()
      end
    end
    sys.sleep(0.15) -- some checks
    p:kill()
    d:stop()
    assert.equal(0, counter(d, "proxy_headers_refused"))
  end)

  it("come from curl, also before TLS", function()
    local plain, secure = t.free_port(), t.free_port()
    start { port = plain,
      more = secure_listener(secure) }
    for scheme, port in pairs { http = plain, https = secure } do
      local r = t.run { "curl", "-sSk", "--haproxy-protocol", "-w", " %{local_port}", ("%s://127.0.0.1:%d/"):format(scheme, port) }
      assert.equal("", r.err)
      local peer, to, own = r.out:match("^127%.0%.0%.1:(%d+) to 127%.0%.0%.1:(%d+) (%d+)$")
      assert.equal(own, peer)
      assert.equal(port, tonumber(to))
    end
  end)
end)

describe("PROXY headers that go out", function()
  t.auto()

  it("tell our own addresses, before anything else", function()
    local s = t.listen()
    local script = [[
      local em = require "em"
      local port, version = ...
      em.run(function()
        local c = em.connect({ url = "tcp://127.0.0.1:" .. port, proxy_protocol = version })
        c:send_data("early")
        function c:connection_completed() self:send_data(" late ", select(2, self:get_sockname()), "\n") end
        function c:unbind() em.stop() end
      end)
    ]]
    t.start { script = script, args = { s.port, "v1" }, wait = false, unchecked = true }
    local c = s:accept()
    local own = c:receive_line():match("^PROXY TCP4 127%.0%.0%.1 127%.0%.0%.1 (%d+) " .. s.port .. "\r$")
    c:expect("early late " .. own .. "\n")
    t.start { script = script, args = { s.port, "v2" }, wait = false, unchecked = true }
    c = s:accept()
    c:expect(SIGNATURE .. "\x21\x11\x00\x0c\x7f\0\0\1\x7f\0\0\1")
    local header = c:receive(4)
    c:expect("early late " .. header:byte(1) * 256 + header:byte(2) .. "\n")
    assert.equal(s.port, header:byte(3) * 256 + header:byte(4))
  end)

  it("come before TLS", function()
    local s = t.listen()
    t.start { wait = false, unchecked = true, args = { s.port }, script = [[
      local em = require "em"
      em.connect({ url = "tls://127.0.0.1:" .. ..., proxy_protocol = "v1" }):send_data("secret")
    ]] }
    local c = s:accept()
    assert.matches("^PROXY TCP4 127%.0%.0%.1 127%.0%.0%.1 %d+ %d+\r$", c:receive_line())
    c:expect("\x16\x03\x01")
    assert.is_nil(c.buffer:find("secret", 1, true))
  end)

  it("are an option of connect blocks", function()
    local s = t.listen()
    t.start(('connect "tcp://127.0.0.1:%d" { handler = "echo", proxy_protocol = "v1", reconnect = 0.05 }'):format(s.port))
    for _ = 1, 2 do -- and of each further connection
      local c = s:accept()
      assert.matches("^PROXY TCP4 ", c:receive_line())
      c:send("x"):expect("x")
      c:close()
    end
  end)

  it("tell a Unix socket's addresses, or that they are unknown", function()
    local s = t.listen("server.sock")
    t.start(([[
      connect "unix://%s" { handler = "echo", proxy_protocol = "v1" }
    ]]):format(s.path))
    s:accept():expect("PROXY UNKNOWN\r\n"):send("x"):expect("x")
    t.start { name = "two.conf", config = ('connect "unix://%s" { handler = "echo", proxy_protocol = "v2" }'):format(s.path) }
    local c = s:accept()
    c:expect(SIGNATURE .. "\x21\x31\x00\xd8" .. ("\0"):rep(108) .. s.path .. ("\0"):rep(108 - #s.path))
    c:send("x"):expect("x")
  end)

  it("tell a client's with proxy_for, also when that has ended", function()
    local s = t.listen()
    local port = t.free_port()
    t.write("front.lua", ([[
      local em = require "em"
      local Front = em.Connection:extend()
      function Front:receive_data(data)
        self:send_data("ok")
        local function try(options) em.log.info("try: %%s", select(2, pcall(em.connect, options))) end
        if data == "faults" then
          try { url = "tcp://127.0.0.1:1", proxy_for = self }
          try { url = "tcp://127.0.0.1:1", proxy_for = "me", proxy_protocol = "v1" }
          try { url = "tcp://127.0.0.1:1", proxy_for = { 1 }, proxy_protocol = "v1" }
        else
          local options = { url = "tcp://127.0.0.1:%d", proxy_for = self, proxy_protocol = "v1", idle_timeout = 10 }
          em.connect(options, function(c) c:send_data(data) end)
          assert(options.proxy_for == self and options.url, "the table was changed")
          function self:unbind()
            em.next_tick(function() em.connect(options, function(c) c:send_data("ended") end) end)
          end
        end
      end
      return Front
    ]]):format(s.port))
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "front" }'):format(port))
    local c = t.connect(port, { bind = "127.0.0.5" })
    local _, own = c.sock:getsockname()
    c:send("hello"):expect("ok")
    s:accept():expect(("PROXY TCP4 127.0.0.5 127.0.0.1 %d %d\r\nhello"):format(own, port))
    c:close()
    s:accept():expect(("PROXY TCP4 127.0.0.5 127.0.0.1 %d %d\r\nended"):format(own, port))
    t.connect(port):send("faults"):expect("ok")
    d:wait_log("try: .*proxy_for needs proxy_protocol")
    d:wait_log("try: .*proxy_for must be a connection, got string")
    d:wait_log("try: .*proxy_for must be a connection, got table")
  end)

  it("go through HAProxy: from a client by the relay to a server behind both", function()
    local last, middle, first = t.free_port(), t.free_port(), t.free_port()
    local _, d = start { port = last,
      more = ('listen "tcp://127.0.0.1:%d" { handler = "relay", args = { "127.0.0.1", %d, { proxy_protocol = "v2" } } }')
        :format(first, middle) }
    haproxy(([[
listen middle
  bind 127.0.0.1:%d accept-proxy
  server s 127.0.0.1:%d send-proxy
]]):format(middle, last), { middle })
    for i = 1, 3 do
      local c = t.connect(first, { bind = "127.0.0." .. 10 + i })
      local _, own = c.sock:getsockname()
      c:send("x"):expect(("127.0.0.%d:%d to 127.0.0.1:%d: x"):format(10 + i, own, first))
      c:shutdown_write()
      c:expect_eof()
    end
    t.close_clients()
    d:stop()
  end)
end)
