-- The shipped handler "relay": a TCP proxy in front of servers of the test's own, and of real ones.
local t = require "tests.support.harness"
local pattern = require "tests.support.pattern"

-- A relay on a free port with those args (Lua text); options: more of the listen block, and lines of the file.
local function start(args, options)
  options = options or {}
  local port = t.free_port()
  local d = t.start(('listen "%s://127.0.0.1:%d" { handler = "relay", args = { %s }%s }\n%s'):format(options.scheme or "tcp", port, args,
    options.listen or "", options.more or ""))
  return port, d
end

describe("the handler relay", function()
  t.auto()

  it("takes host and port, a URL, a Unix socket", function()
    local server = t.listen()
    local path = t.listen(t.path("server.sock"))
    for _, case in ipairs {
      { ('"127.0.0.1", %d'):format(server.port), server },
      { ('"localhost", %d'):format(server.port), server },
      { ('"tcp://127.0.0.1:%d"'):format(server.port), server },
      { ('"unix://%s"'):format(path.path), path },
    } do
      local port, d = start(case[1])
      local c = t.connect(port):send("question\n")
      local s = case[2]:accept():expect("question\n")
      s:send("answer\n")
      c:expect("answer\n")
      c:shutdown_write()
      s:expect_eof()
      s:send("the rest"):shutdown_write()
      assert.equal("the rest", c:receive_all())
      s:close()
      d:stop()
      assert.equal(0, d:count_log(" warn "))
    end
  end)

  it("says what is wrong with its args", function()
    for _, args in ipairs { "", '"127.0.0.1"', "5, 6", '"host", "port"' } do
      local port, d = start(args)
      t.connect(port):receive_end()
      d:wait_log("relay needs args = { HOST, PORT } or { URL, { options of TLS } }", nil)
      d:stop()
    end
  end)

  it("closes the client where there is no server, and says why", function()
    local port, d = start(('"127.0.0.1", %d'):format(t.free_port()))
    t.connect(port):expect_eof()
    d:wait_log("cannot connect: Connection refused")
    t.connect(port):send("lost"):receive_end()
    t.until_true(function() return d:count_log("cannot connect") == 2 end)
    d:stop()
  end)

  it("closes both sides, whichever ends", function()
    local server = t.listen()
    local port, d = start(('"127.0.0.1", %d'):format(server.port))
    for _, how in ipairs { "close", "reset" } do
      local c = t.connect(port):send("x")
      local s = server:accept():expect("x")
      c[how](c)
      s:receive_end()
      s:close()
      c = t.connect(port):send("x")
      s = server:accept():expect("x")
      s:send("last"):expect_silence(0.02)
      s[how](s)
      c:expect("last")
      c:send("into the void"):receive_end()
      c:close()
    end
    t.until_true(function() return d:count_log("the server's connection ended: Connection reset by peer") >= 1 end)
    d:stop()
  end)

  it("ends idle clients with their server's connection", function()
    local server = t.listen()
    local port = start(('"127.0.0.1", %d'):format(server.port), { listen = ", idle_timeout = 0.2" })
    local c = t.connect(port):send("x")
    local s = server:accept():expect("x")
    c:expect_eof()
    s:expect_eof()
  end)

  it("has options of em.connect", function()
    local server = t.listen()
    local port, d = start(('"127.0.0.1", %d, { idle_timeout = 0.2, bind = "127.0.0.9" }'):format(server.port))
    local c = t.connect(port):send("x")
    local s = server:accept():expect("x")
    assert.equal("127.0.0.9", (s.sock:getpeername()))
    c:expect_eof()
    d:wait_log("the server's connection ended: idle timeout")
  end)

  it("keeps a bounded queue for a server that is slow to accept or read", function()
    local server = t.listen()
    local port, d = start(('"127.0.0.1", %d'):format(server.port))
    local bytes, sent, still = pattern(32 << 20), 0, 0
    local before = d:rss()
    local c = t.connect(port, { buffer = 65536 })
    while still < 20 do
      local n = c:send_some(bytes:sub(sent + 1, sent + 262144))
      sent = sent + n
      still = n == 0 and still + 1 or 0
      if n == 0 then t.sys.sleep(0.01) end
    end
    assert.is_true(sent < #bytes, "no back-pressure")
    assert.is_true(d:rss() - before < (t.sanitized and 32 or 8) << 20, "memory grows")
    local s = server:accept()
    assert.is_true(s:receive(sent) == bytes:sub(1, sent))
  end)

  it("has TLS on either side", function()
    local tls = t.free_port()
    local inner = ('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }'):format(tls)
    local port, d = start(('"tls://127.0.0.1:%d", { verify_peer = false }'):format(tls),
      { scheme = "tls", listen = ", tls = { self_signed = true }", more = inner })
    local plain = t.free_port()
    local d2 = t.start { name = "second.conf",
      config = ('listen "tcp://127.0.0.1:%d" { handler = "relay", args = { "tls://127.0.0.1:%d", { verify_peer = false } } }')
        :format(plain, port) }
    local c, bytes = t.connect(plain), pattern(1 << 20)
    for _ = 1, 3 do
      local sent = 0
      local parts, count = {}, 0
      t.until_true(function()
        if sent < #bytes then sent = sent + c:send_some(bytes:sub(sent + 1)) end
        while c:fill(0) do
          table.insert(parts, c.buffer)
          count = count + #c.buffer
          c.buffer = ""
        end
        return count == #bytes
      end, 10, "the echo")
      assert.is_true(table.concat(parts) == bytes)
    end
    c:send("last words"):shutdown_write()
    assert.equal("last words", c:receive_all())
    d2:stop()
    d:stop()
  end)

  it("asks nobody for a client whose handshake fails", function()
    local server = t.listen()
    local port, d = start(('"127.0.0.1", %d'):format(server.port), { scheme = "tls",
      listen = ", tls = { self_signed = true, verify_peer = true, fail_if_no_peer_cert = true, handshake_timeout = 0.3 }" })
    t.run { "curl", "-sk", ("https://127.0.0.1:%d/"):format(port) }
    t.connect(port):send("no TLS at all"):receive_end()
    t.connect(port):receive_end()
    server.sock:settimeout(0)
    assert.is_nil((server.sock:accept()))
    d:stop()
  end)

  it("verifies the server's certificate unless told otherwise", function()
    local tls = t.free_port()
    local port, d = start(('"tls://127.0.0.1:%d"'):format(tls),
      { more = ('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }'):format(tls) })
    t.connect(port):send("secret"):receive_end()
    d:wait_log("certificate verify failed")
  end)

  it("carries HTTP for curl to a web server", function()
    local web = t.free_port()
    t.write("www/file", pattern(3 << 20))
    local server = t.start { args = {}, wait = false, unchecked = true, counters = false, script = ([[
      local em = require "em"
      local Web = em.Connection:extend()
      function Web:receive_data(data)
        self.request = (self.request or "") .. data
        if self.request:find("\r\n\r\n", 1, true) then
          local file = assert(io.open(%q, "rb"))
          local body = file:read("a")
          file:close()
          self:send_data("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body)
          self:close_connection_after_writing()
        end
      end
      em.run(function() assert(em.start_server("127.0.0.1", %d, Web)); print "serving" end)
    ]]):format(t.path("www/file"), web) }
    server:wait_log("serving")
    local port = start(('"127.0.0.1", %d'):format(web), { scheme = "tls", listen = ", tls = { self_signed = true }" })
    local r = t.run { "curl", "-sSk", "-o", t.path("copy"), ("https://127.0.0.1:%d/file"):format(port) }
    assert.equal("", r.err)
    assert.equal(0, r.status)
    assert.is_true(t.read("copy") == t.read("www/file"))
  end)

  it("goes on after a reload, with the server's address of its time", function()
    local one, two = t.listen(), t.listen()
    local port = t.free_port()
    local function config(server)
      return ('listen "tcp://127.0.0.1:%d" { handler = "relay", args = { "127.0.0.1", %d } }\nhandlers = { %q }\n'):format(
        port, server.port, t.root .. "/handlers")
    end
    local d = t.start(config(one))
    local c1 = t.connect(port):send("a")
    local s1 = one:accept():expect("a")
    t.write("reactord.conf", config(two))
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    local c2 = t.connect(port):send("b")
    two:accept():expect("b")
    c1:send("c")
    s1:expect("c"):send("d")
    c1:expect("d")
    c2:close()
  end)
end)
