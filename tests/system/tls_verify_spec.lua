-- Who is believed: clients check chain and name by default, servers ask for certificates where they are told to, scripts may decide.

local pki = require "tests.support.pki"
local t = require "tests.support.harness"
local tls = require "tests.support.tls"

-- Runs a script that connects once and prints how that ends; options: the text of tls, handler: more members.
local function connect(port, options, handler, host)
  return t.script(([[
    local em = require "em"
    local handler = { %s }
    handler.ssl_handshake_completed = function(self) print("up"); self:send_data("hello") end
    handler.receive_data = function(self, data) print("got " .. data); self:close_connection_after_writing() end
    handler.unbind = function(_, err, why) print("end " .. tostring(err) .. " " .. why) end
    em.connect({ url = "tls://%s:%d", tls = { %s } }, handler)
  ]]):format(handler or "", host or "localhost", port, options or "")).out
end

-- Serves echo with that certificate; more: options of tls.
local function serve(port, name, more)
  return t.start {
    config = ('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { certificate = "%s.pem", private_key = "%s.key", %s } }'):format(port,
      name, name, more or ""),
  }
end

describe("a TLS client", function()
  t.auto()

  it("checks chain and name by default, against the system's store or that of its options", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port = t.free_port()
    local d = serve(port, "server")
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, 'ca_file = "' .. ca.cert .. '"'))
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, "ca_file = [[" .. t.read "ca.pem" .. "]]"))
    assert.matches("^end ETLS certificate verify failed: unable to get local issuer certificate\n$", connect(port))
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, "verify_peer = false"))
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, 'ca_file = "' .. ca.cert .. '"', nil, "127.0.0.1"))
    t.run { "mkdir", t.path "hashed" }
    t.run { "cp", ca.cert, t.path "hashed" }
    t.run { "openssl", "rehash", t.path "hashed" }
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, 'ca_path = "' .. t.path "hashed" .. '"'))
    d:stop()
  end)

  it("refuses a wrong name, an expired certificate, a foreign authority", function()
    local ca = pki.authority "ca"
    local other = pki.authority "other"
    pki.issue(ca, "named", { names = "DNS:somebody.else" })
    pki.issue(ca, "expired", { days = -1 })
    local trust = 'ca_file = "' .. ca.cert .. '"'
    local port = t.free_port()
    local d = serve(port, "named")
    assert.equal("end ETLS certificate verify failed: hostname mismatch\n", connect(port, trust))
    assert.equal("end ETLS certificate verify failed: IP address mismatch\n", connect(port, trust, nil, "127.0.0.1"))
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, trust .. ', verify_hostname = "somebody.else"'))
    assert.equal("up\ngot hello\nend nil closed\n", connect(port, trust .. ", verify_hostname = false"))
    assert.equal("end ETLS certificate verify failed: unable to get local issuer certificate\n",
      connect(port, 'ca_file = "' .. other.cert .. '"'))
    d:stop()
    port = t.free_port()
    d = serve(port, "expired")
    assert.equal("end ETLS certificate verify failed: certificate has expired\n", connect(port, trust))
    d:stop()
  end)

  it("asks for the name it was given, or for another", function()
    t.write("names.lua", [[
      local Names = require "em".Connection:extend()
      function Names:receive_data() self:send_data(tostring(self:get_sni_hostname())) end
      return Names
    ]])
    local port = t.free_port()
    local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "names", tls = { self_signed = true } }'):format(port) }
    assert.matches("got localhost\n", connect(port, "verify_peer = false"))
    assert.matches("got some.name\n", connect(port, 'verify_peer = false, sni_hostname = "some.name"'))
    assert.matches("got nil\n", connect(port, "verify_peer = false", nil, "127.0.0.1"))
    d:stop()
  end)

  it("asks for and verifies the host of a reconnect, not the first one", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server", { names = "DNS:localhost" })
    local port = t.free_port()
    local d = serve(port, "server")
    assert.equal("up localhost\nnil closed\nETLS certificate verify failed: IP address mismatch\nup localhost\nnil closed\n", t.script(([[
      local em = require "em"
      local hosts = { "127.0.0.1", "localhost" }
      em.connect({ url = "tls://localhost:%d", tls = { ca_file = "%s" } }, {
        ssl_handshake_completed = function(self) print("up " .. tostring(self:get_sni_hostname())); self:close_connection() end,
        unbind = function(self, err, why)
          print(tostring(err) .. " " .. why)
          if hosts[1] then self:reconnect(table.remove(hosts, 1), %d) end
        end,
      })
    ]]):format(port, ca.cert, port)).out)
    d:stop()
  end)

  it("does not mind the dot at the end of a whole name", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server", { names = "DNS:localhost" })
    local port = t.free_port()
    local d = serve(port, "server")
    assert.equal("up\ngot hello\nend nil closed\n",
      connect(port, ('ca_file = "%s", verify_hostname = "localhost.", sni_hostname = "localhost."'):format(ca.cert), nil, "127.0.0.1"))
    d:stop()
  end)

  it("leaves the verdict to ssl_verify_peer, which sees every certificate with OpenSSL's opinion", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port = t.free_port()
    local d = serve(port, "server")
    local show = [[ssl_verify_peer = function(_, pem, preverified, depth, reason)
      print(pem:match("^%%S+"), preverified, depth, reason); return RESULT end]]
    local trust = 'ca_file = "' .. ca.cert .. '"'
    local seen = connect(port, trust, (show:gsub("RESULT", "true"):gsub("%%%%", "%%")))
    assert.matches("true\t1\tok\n", seen)
    assert.matches("true\t0\tok\n", seen)
    assert.matches("up\ngot hello\n", seen)
    seen = connect(port, trust, (show:gsub("RESULT", "false"):gsub("%%%%", "%%")))
    assert.matches("end ETLS certificate verify failed: application verification failure\n$", seen)
    seen = connect(port, "", (show:gsub("RESULT", "true"):gsub("%%%%", "%%")))
    assert.matches("false\t0\tunable to get local issuer certificate\n", seen)
    assert.matches("up\ngot hello\n", seen)
    seen = connect(port, trust, (show:gsub("RESULT", "error 'oops'"):gsub("%%%%", "%%")))
    assert.matches("end EHANDLER handler error: .*oops", seen)
    d:stop()
  end)

  it("returns nil for files that cannot be used, and raises for options that there are not", function()
    local r = t.script([[
      local em = require "em"
      print(em.connect({ url = "tls://127.0.0.1:1", tls = { ca_file = "/nonexistent/x.pem" } }))
      print(em.connect({ url = "tls://127.0.0.1:1", tls = { certificate = "/nonexistent/x.pem" } }))
      print(em.listen("tls://127.0.0.1:0", nil, { tls = {} }))
      print(pcall(em.connect, { url = "tls://127.0.0.1:1", tls = { min_version = "SSLv2" } }))
      local c = em.connect("127.0.0.1", 1)
      print(c:start_tls { certificate = "/nonexistent/x.pem" })
      print(pcall(c.start_tls, c, { nosuch = 1 }))
      print(c:start_tls { verify_peer = false })
      print(c:start_tls { verify_peer = false })
    ]])
    local lines = {}
    for line in r.out:gmatch "[^\n]+" do table.insert(lines, line) end
    assert.matches("^nil\tconnect tls://127.0.0.1:1: ca_file /nonexistent/x.pem: No such file or directory\tENOENT$", lines[1])
    assert.matches("^nil\tconnect tls://127.0.0.1:1: certificate /nonexistent/x.pem: No such file or directory\tENOENT$", lines[2])
    assert.matches("^nil\tlisten tls://127.0.0.1:0: a server needs a certificate .*\tETLS$", lines[3])
    assert.matches("^false\t.*'min_version' in tls must be one of", lines[4])
    assert.matches("^nil\tcertificate /nonexistent/x.pem: No such file or directory\tENOENT$", lines[5])
    assert.matches("^false\tbad argument #2 to .* %(unknown option 'nosuch' in tls", lines[6])
    assert.equal("true", lines[7])
    assert.matches("^nil\t.*\tEALREADY$", lines[8])
  end)
end)

describe("a TLS server", function()
  t.auto()

  it("asks for certificates with verify_peer, and insists with fail_if_no_peer_cert", function()
    local ca = pki.authority "ca"
    local other = pki.authority "other"
    pki.issue(ca, "server")
    local good, bad = pki.issue(ca, "good"), pki.issue(other, "bad")
    t.write("ends.lua", [[
      local em = require "em"
      local Ends = em.Connection:extend()
      function Ends:receive_data(data) self:send_data(data) end
      function Ends:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
      return Ends
    ]])
    local port, strict = t.free_port(), t.free_port()
    local config = ""
    for at, more in pairs { [port] = "", [strict] = "fail_if_no_peer_cert = true" } do
      config = config .. ('listen "tls://127.0.0.1:%d" { handler = "ends", tls = { certificate = "server.pem", private_key = "server.key", '
        .. 'verify_peer = true, ca_file = "ca.pem", %s } }\n'):format(at, more)
    end
    local d = t.start { config = config }
    for _, to in ipairs { port, strict } do
      local c = assert(tls.connect(to, { certificate = good.cert, key = good.key }))
      c:send("x"):expect("x")
      c:close()
      local mark = d:mark()
      c = tls.connect(to, { certificate = bad.cert, key = bad.key }) -- under TLS 1.3 the client hears of it later
      if c then c.sock:receive(1) c:close() end
      d:wait_log("end ETLS certificate verify failed: unable to get local issuer certificate", 10, mark)
    end
    local c = assert(tls.connect(port))
    c:send("x"):expect("x")
    c:close()
    local mark = d:mark()
    c = tls.connect(strict)
    if c then c.sock:receive(1) c:close() end
    d:wait_log("end ETLS peer did not return a certificate", 10, mark)
    d:stop()
  end)

  it("uses new certificates after SIGHUP, and goes on with the old where the new are bad", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "first")
    pki.issue(ca, "second")
    local function install(name)
      t.write("current.pem", t.read(name .. ".pem"))
      t.write("current.key", t.read(name .. ".key"))
    end
    install "first"
    local port = t.free_port()
    local d = serve(port, "current")
    local function subject()
      local c = assert(tls.connect(port))
      local name = c.sock:getpeercertificate():subject()[1].value
      c:close()
      return name
    end
    assert.equal("first", subject())
    local open = assert(tls.connect(port))
    install "second"
    local mark = d:mark()
    d:signal "HUP"
    d:wait_log("reloaded", 10, mark)
    assert.equal("second", subject())
    open:send("still here"):expect("still here")
    t.write("current.pem", "broken\n")
    mark = d:mark()
    d:signal "HUP"
    d:wait_log("reload refused: .*current.pem: no start line", 10, mark)
    assert.equal("second", subject())
    open:close()
    d:stop()
  end)
end)

describe("a resumed session", function()
  t.auto()

  it("opens no listener that demands more of a client than the one where it began", function()
    local ca, other = pki.authority "ca", pki.authority "other"
    pki.issue(ca, "server")
    local known, foreign = pki.issue(ca, "known"), pki.issue(other, "foreign")
    local ports = { open = t.free_port(), strict = t.free_port(), again = t.free_port(), other = t.free_port() }
    local config = ""
    local function listen(name, options)
      local line = 'listen "tls://127.0.0.1:%d" { handler = "echo", '
        .. 'tls = { certificate = "server.pem", private_key = "server.key", %s } }\n'
      config = config .. line:format(ports[name], options)
    end
    listen("open", "")
    listen("strict", 'verify_peer = true, fail_if_no_peer_cert = true, ca_file = "ca.pem"')
    listen("again", 'verify_peer = true, fail_if_no_peer_cert = true, ca_file = "ca.pem", alpn = { "x" }')
    listen("other", 'verify_peer = true, fail_if_no_peer_cert = true, ca_file = "other.pem"')
    local d = t.start { config = config }
    -- Connects with openssl, which sends a line and waits for its echo; more: arguments. True if it came, and whether by resumption.
    local function visit(name, version, certificate, ...)
      local words = { "openssl", "s_client", "-" .. version, "-connect", "127.0.0.1:" .. ports[name], ... }
      if certificate then
        table.move({ "-cert", certificate.cert, "-key", certificate.key }, 1, 4, #words + 1, words)
      end
      local out = t.run { "sh", "-c", '(echo hello-there; sleep 0.3) | "$0" "$@" 2>&1', table.unpack(words) }.out
      return out:find("\nhello-there\n", 1, true) ~= nil, out:find("\nReused, ", 1, true) ~= nil
    end
    for _, version in ipairs { "tls1_3", "tls1_2" } do
      local kept = t.path(version)
      assert.same({ true, false }, { visit("open", version, nil, "-sess_out", kept) })
      assert.same({ true, true }, { visit("open", version, nil, "-sess_in", kept) })
      assert.is_false((visit("strict", version, nil, "-sess_in", kept)))
      assert.same({ true, false }, { visit("strict", version, known, "-sess_out", kept) })
      assert.same({ true, true }, { visit("again", version, nil, "-sess_in", kept) })
      assert.is_false((visit("other", version, nil, "-sess_in", kept)))
      assert.same({ true, false }, { visit("other", version, foreign, "-sess_out", kept) })
      assert.is_false((visit("strict", version, nil, "-sess_in", kept)))
    end
    d:stop()
  end)

  -- Connects to itself three times, as the members of the client say; returns what was printed.
  local function thrice(server_tls, client_tls, members)
    return t.script(([[
      local em = require "em"
      em.run(function()
        local server = em.listen("tls://127.0.0.1:0", { receive_data = function(self, data) self:send_data(data) end }, { tls = { %s } })
        local _, port = server:address()
        local n = 0
        local function again()
          n = n + 1
          local client = { %s }
          function client:ssl_handshake_completed() print("reused " .. tostring(self:session_reused())); self:send_data("x") end
          function client:receive_data() self:close_connection_after_writing() end
          function client:unbind(err, why) print(err, why); if n < 3 then again() else em.stop() end end
          em.connect({ url = "tls://localhost:" .. port, tls = { %s } }, client)
        end
        again()
      end)
    ]]):format(server_tls, members or "", client_tls)).out
  end

  it("is what a client's second connection to a server has", function()
    assert.equal("reused false\nnil\tclosed\nreused true\nnil\tclosed\nreused true\nnil\tclosed\n",
      thrice("self_signed = true", "verify_peer = false"))
    assert.equal("reused false\nnil\tclosed\nreused true\nnil\tclosed\nreused true\nnil\tclosed\n",
      thrice("self_signed = true", 'verify_peer = false, max_version = "TLSv1.2"'))
  end)

  it("is not made of what only a script's word has accepted", function()
    local seen = thrice("self_signed = true", "", 'ssl_verify_peer = function() print "asked"; return true end')
    local _, handshakes = seen:gsub("asked\nreused false\nnil\tclosed\n", "")
    assert.equal(3, handshakes)
  end)

  it("is never made where a script has its say about certificates: it is asked about all of them each time", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local seen = thrice(('certificate = "%s", private_key = "%s"'):format(t.path "server.pem", t.path "server.key"),
      ('ca_file = "%s"'):format(ca.cert), "ssl_verify_peer = function(_, _, ok, depth) print(ok, depth); return depth == 0 or n < 3 end")
    assert.equal(("true\t1\ntrue\t0\nreused false\nnil\tclosed\n"):rep(2)
      .. "true\t1\nETLS\tcertificate verify failed: application verification failure\n", seen)
  end)

  it("of a listener without a say is not resumed on one that has it", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local client = pki.issue(ca, "client")
    t.write("strict.lua", [[
      local em = require "em"
      local Strict = em.Connection:extend()
      function Strict:ssl_verify_peer(_, _, depth) em.log.info("asked %d", depth); return depth == 0 end
      return Strict
    ]])
    t.write("lax.lua", "return { receive_data = function(self, data) self:send_data(data) self:close_connection_after_writing() end }")
    local lax, strict = t.free_port(), t.free_port()
    local config = ""
    for port, handler in pairs { [lax] = "lax", [strict] = "strict" } do
      config = config .. ('listen "tls://127.0.0.1:%d" { handler = "%s", tls = { certificate = "server.pem", private_key = "server.key", '
        .. 'verify_peer = true, fail_if_no_peer_cert = true, ca_file = "ca.pem" } }\n'):format(port, handler)
    end
    local d = t.start { config = config }
    for _, version in ipairs { "-tls1_2", "-tls1_3" } do
      local function resume(port, flag)
        local command = ("echo hello | timeout 20 openssl s_client -connect 127.0.0.1:%d %s -cert %s -key %s %s %s -ign_eof -quiet"):format(
          port, version, client.cert, client.key, flag, t.path("session" .. version))
        return t.run({ "sh", "-c", command }).out
      end
      assert.matches("hello", resume(lax, "-sess_out"))
      assert.matches("hello", resume(lax, "-sess_in"))
      local mark = d:mark()
      assert.is_nil(resume(strict, "-sess_in"):find("hello", 1, true), version)
      d:wait_log("asked 1", 10, mark)
    end
    d:stop()
  end)
end)
