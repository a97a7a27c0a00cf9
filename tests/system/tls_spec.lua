-- TLS on listeners and outgoing connections: certificates, names, versions, what a script learns, every mistake told.

local json = require "dkjson"
local pki = require "tests.support.pki"
local t = require "tests.support.harness"
local tls = require "tests.support.tls"

-- A handler file that answers each line "NAME" with what the method NAME returns, as JSON-less text.
local asker = [[
local em = require "em"
local Asker = em.Connection:extend()
function Asker:ssl_handshake_completed() self.up = (self.up or 0) + 1 end
function Asker:receive_data(name)
  name = name:match "%S+"
  if name == "up" then return self:send_data(tostring(self.up) .. "\n") end
  local info = self[name](self)
  if type(info) == "table" then
    info = ("%s|%s|%s|%d|%d|%d"):format(info.subject, info.issuer, table.concat(info.names, ","), info.not_before, info.not_after,
      #info.fingerprint)
  end
  self:send_data(tostring(info) .. "\n")
end
return Asker
]]

-- The text of a listen block with those options of tls.
local function listen(port, handler, options)
  return ('listen "tls://127.0.0.1:%d" { handler = "%s", tls = { %s } }\n'):format(port, handler, options)
end

-- Asks a question of the asker.
local function ask(c, name)
  c:send(name .. "\n")
  return (c.sock:receive "*l")
end

describe("TLS", function()
  t.auto()

  it("serves with certificate and key from files, relative to the configuration, and from one file", function()
    local ca = pki.authority "ca"
    local made = pki.issue(ca, "server")
    t.write("both.pem", t.read "server.pem" .. t.read "server.key")
    local one, two = t.free_port(), t.free_port()
    local d = t.start {
      config = listen(one, "echo", 'certificate = "server.pem", private_key = "server.key"')
        .. listen(two, "echo", 'certificate = "both.pem"'),
    }
    for _, port in ipairs { one, two } do
      local c = assert(tls.connect(port, { verify = "peer", cafile = ca.cert }))
      c:send("hello"):expect("hello")
      c:close()
    end
    assert.is_truthy(made)
    d:stop()
  end)

  it("takes PEM text, encrypted keys, and EventMachine's names for the options", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "plain")
    pki.issue(ca, "locked", { password = "sesame" })
    local one, two = t.free_port(), t.free_port()
    local d = t.start {
      config = ("local cert, key = [[%s]], [[%s]]\n"):format(t.read "plain.pem", t.read "plain.key")
        .. listen(one, "echo", "cert = cert, private_key = key")
        .. listen(two, "echo", 'cert_chain_file = "locked.pem", private_key_file = "locked.key", private_key_pass = "sesame"'),
    }
    for _, port in ipairs { one, two } do
      local c = assert(tls.connect(port, { verify = "peer", cafile = ca.cert }))
      c:send("x"):expect("x")
      c:close()
    end
    d:stop()
  end)

  it("makes a certificate in memory for self_signed", function()
    local port = t.free_port()
    local d = t.start { config = listen(port, "echo", "self_signed = true") }
    local r = t.run { "openssl", "s_client", "-connect", "127.0.0.1:" .. port, "-servername", "localhost", "-verify_hostname", "localhost",
      input = "" }
    assert.matches("CN = localhost", r.out)
    assert.matches("self%-signed certificate", r.out .. r.err)
    d:stop()
  end)

  it("tells the script of the session, and nothing before the handshake", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local client = pki.issue(ca, "client", { names = "DNS:client.test,email:a@b.test" })
    t.write("asker.lua", asker)
    local port, plain = t.free_port(), t.free_port()
    local d = t.start {
      config = listen(port, "asker",
        'certificate = "server.pem", private_key = "server.key", verify_peer = true, ca_file = "ca.pem", alpn = { "h2", "echo" }')
        .. ('listen "tcp://127.0.0.1:%d" { handler = "asker" }'):format(plain),
    }
    local c = assert(tls.connect(port, { certificate = client.cert, key = client.key, alpn = { "echo", "x" }, name = "some.test" }))
    assert.equal("1", ask(c, "up"))
    assert.equal("TLSv1.3", ask(c, "get_cipher_protocol"))
    assert.matches("^TLS_", ask(c, "get_cipher_name"))
    assert.matches("^%d+$", ask(c, "get_cipher_bits"))
    assert.equal("some.test", ask(c, "get_sni_hostname"))
    assert.equal("echo", ask(c, "get_alpn_protocol"))
    assert.equal("false", ask(c, "session_reused"))
    assert.matches("^CN=client|CN=ca|client.test,a@b.test|%d+|%d+|64$", ask(c, "get_peer_cert_info"))
    c:send "get_peer_cert\n"
    local pem = c:receive(#t.read "client.pem")
    assert.equal(t.read "client.pem", pem)
    c:close()
    local p = t.connect(plain)
    for _, name in ipairs { "get_peer_cert", "get_peer_cert_info", "get_cipher_name", "get_cipher_bits", "get_cipher_protocol",
      "get_sni_hostname", "get_alpn_protocol" } do
      p:send(name .. "\n")
      assert.equal("nil", p:receive_line())
    end
    d:stop()
  end)

  it("picks the certificate by the name that the client asks for", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "default")
    pki.issue(ca, "one", { names = "DNS:one.test" })
    pki.issue(ca, "wild", { names = "DNS:*.wild.test" })
    local port = t.free_port()
    local d = t.start {
      config = listen(port, "echo", [[certificate = "default.pem", private_key = "default.key", sni = {
        ["one.test"] = { certificate = "one.pem", private_key = "one.key" },
        ["*.wild.test"] = { certificate = "wild.pem", private_key = "wild.key" },
        ["one.wild.test"] = { certificate = "one.pem", private_key = "one.key" } } ]]),
    }
    for name, subject in pairs { ["one.test"] = "one", ["a.wild.test"] = "wild", ["one.wild.test"] = "one",
      ["wild.test"] = "default", ["a.b.wild.test"] = "default", ["other.test"] = "default", ["ONE.test"] = "one" } do
      local c = assert(tls.connect(port, { name = name }))
      assert.equal(subject, c.sock:getpeercertificate():subject()[1].value)
      c:close()
    end
    local c = assert(tls.connect(port))
    assert.equal("default", c.sock:getpeercertificate():subject()[1].value)
    d:stop()
  end)

  it("speaks TLS 1.2 and 1.3 with AEAD suites only, and nothing older, unless told to", function()
    local port, old, new = t.free_port(), t.free_port(), t.free_port()
    local d = t.start {
      config = listen(port, "echo", "self_signed = true") .. listen(old, "echo", 'self_signed = true, max_version = "TLSv1.2"')
        .. listen(new, "echo", 'self_signed = true, ssl_version = { "TLSv1_3" }'),
    }
    local function connect(to, protocol, more)
      local params = { protocol = protocol }
      for name, value in pairs(more or {}) do params[name] = value end
      local c, why = tls.connect(to, params)
      if c then c:close() end
      return c and true or false, why
    end
    assert.is_true(connect(port, "tlsv1_2"))
    assert.is_true(connect(port, "tlsv1_3"))
    assert.is_false(connect(port, "tlsv1_1", { ciphers = "ALL:@SECLEVEL=0" }))
    assert.is_false(connect(port, "tlsv1", { ciphers = "ALL:@SECLEVEL=0" }))
    assert.is_true(connect(old, "tlsv1_2"))
    assert.is_false(connect(old, "tlsv1_3"))
    assert.is_false(connect(new, "tlsv1_2"))
    for _, weak in ipairs { "AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "aNULL:eNULL@SECLEVEL=0" } do
      assert.is_false(connect(port, "tlsv1_2", { ciphers = weak }), weak)
    end
    d:stop()
  end)

  it("does the handshake also where one side has closed for writing before it", function()
    assert.equal("got greeting\nserver nil eof\nclient nil eof\n", t.script([[
      local em = require "em"
      em.run(function()
        local server = em.listen("tls://127.0.0.1:0", {
          ssl_handshake_completed = function(self) self:send_data "greeting" end,
          unbind = function(_, err, why) print("server " .. tostring(err) .. " " .. why) end,
        }, { tls = { self_signed = true } })
        em.connect({ url = "tls://127.0.0.1:" .. select(2, server:address()), tls = { verify_peer = false } }, {
          post_init = function(self) self:close_write() end,
          receive_data = function(_, data) print("got " .. data) end,
          unbind = function(_, err, why) print("client " .. tostring(err) .. " " .. why); em.stop() end,
        })
      end)
    ]]).out)
  end)

  it("says goodbye readably to a peer, however early it closes", function()
    for _, version in ipairs { "TLSv1.2", "TLSv1.3" } do
      local out = t.script(([[
        local em = require "em"
        em.run(function()
          local server = em.listen("tls://127.0.0.1:0", {
            ssl_handshake_completed = function() print "up" end,
            unbind = function(_, err, why) print("server " .. tostring(err) .. " " .. why); em.stop() end,
          }, { tls = { self_signed = true, max_version = "%s" } })
          em.connect({ url = "tls://127.0.0.1:" .. select(2, server:address()), tls = { verify_peer = false } }, {
            ssl_handshake_completed = function(self) self:send_data "dropped"; self:close_connection() end,
          })
        end)
      ]]):format(version)).out
      assert.equal("up\nserver nil eof\n", out)
    end
  end)

  it("delivers nothing while paused, also what came with the handshake's end", function()
    assert.equal("up\nresuming\ngot early\nend nil eof\n", t.script([[
      local em = require "em"
      em.run(function()
        local server = em.listen("tls://127.0.0.1:0", {
          ssl_handshake_completed = function(self)
            print "up"
            self:pause()
            self:add_timer(0.2, function() print "resuming"; self:resume() end)
          end,
          receive_data = function(_, data) print("got " .. data) end,
          unbind = function(_, err, why) print("end " .. tostring(err) .. " " .. why); em.stop() end,
        }, { tls = { self_signed = true } })
        em.connect({ url = "tls://127.0.0.1:" .. select(2, server:address()), tls = { verify_peer = false } }, {
          post_init = function(self) self:send_data "early"; self:close_connection_after_writing() end,
        })
      end)
    ]]).out)
  end)

  it("refuses renegotiation", function()
    local port = t.free_port()
    local d = t.start { config = listen(port, "echo", "self_signed = true") }
    local r = t.run { "openssl", "s_client", "-connect", "127.0.0.1:" .. port, "-tls1_2", input = "R\n" }
    assert.matches("no renegotiation", r.out .. r.err)
    d:stop()
  end)

  it("resumes sessions by tickets, also after a reload", function()
    t.write("reused.lua", [[
      local Reused = require "em".Connection:extend()
      function Reused:receive_data()
        self:send_data(tostring(self:session_reused()))
        self:close_connection_after_writing()
      end
      return Reused
    ]])
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port = t.free_port()
    local d = t.start { config = listen(port, "reused", 'certificate = "server.pem", private_key = "server.key"') }
    local session = t.path "session"
    for _, version in ipairs { "-tls1_2", "-tls1_3" } do
      local function connect(flag)
        local address = "127.0.0.1:" .. port
        return t.run { "openssl", "s_client", "-connect", address, version, flag, session, "-ign_eof", "-quiet", input = "are you?\n" }
      end
      assert.equal("false", connect("-sess_out").out, version)
      local from = d:mark()
      d:signal "HUP"
      d:wait_log("reloaded", 10, from)
      assert.equal("true", connect("-sess_in").out, version)
    end
    d:stop()
  end)

  it("tells every mistake in the configuration with its place, and does not start", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "a")
    pki.issue(ca, "b")
    pki.issue(ca, "locked", { password = "sesame" })
    t.write("garbage.pem", "not a certificate\n")
    local function fault(options, pattern)
      t.write("bad.conf", ('handlers = { "%s" }\n'):format("handlers") .. listen(1, "echo", options))
      t.run { "ln", "-sfn", t.read and (os.getenv "PWD" or ".") .. "/handlers", t.path "handlers" }
      local r = t.reactord { "-t", "-c", t.path "bad.conf" }
      assert.equal(1, r.status)
      assert.matches(pattern, r.err)
      assert.matches("bad.conf:2: ", r.err)
    end
    fault("", "a server needs a certificate %(or self_signed = true%)")
    fault('certificate = "none.pem"', "certificate .*none.pem: No such file or directory")
    fault('certificate = "garbage.pem"', "certificate .*garbage.pem: no start line")
    fault('certificate = "a.pem", private_key = "b.key"', "private_key .*b.key: .*mismatch")
    fault('certificate = "a.pem", private_key = "none.key"', "private_key .*none.key: No such file")
    fault('certificate = "locked.pem", private_key = "locked.key"', "private_key .*locked.key: ")
    fault('certificate = "locked.pem", private_key = "locked.key", private_key_pass = "wrong"', "private_key .*locked.key: ")
    fault('private_key = "a.key"', "private_key without certificate")
    fault('self_signed = true, cipher_list = "NOSUCH"', "cipher_list NOSUCH: no cipher match")
    fault('self_signed = true, ciphersuites = "NOSUCH"', "ciphersuites NOSUCH")
    fault('self_signed = true, ecdh_curve = "nosuch"', "ecdh_curve nosuch")
    fault('self_signed = true, min_version = "TLSv9"', "'min_version' in tls must be one of")
    fault('self_signed = true, min_version = "TLSv1.3", max_version = "TLSv1.2"', "'min_version' in tls is newer than max_version")
    fault('self_signed = true, ssl_version = { "SSLv9" }', "unknown version \"SSLv9\"")
    fault('self_signed = true, verify_peer = true, ca_file = "none.pem"', "ca_file .*none.pem: No such file")
    fault('self_signed = true, verify_peer = true, ca_path = "/nonexistent"', "ca_path /nonexistent: No such file")
    fault('self_signed = true, certifcate = "x"', "unknown option 'certifcate' in tls %(did you mean 'certificate'%?%)")
    fault('certificate = "a.pem", cert = "b.pem"', "'cert' in tls says the same as 'certificate'")
    fault('self_signed = true, sni = { ["x.test"] = {} }', '"x.test" needs a certificate')
    fault('self_signed = true, sni = { ["x.test"] = { certificate = "none.pem" } }', 'sni "x.test": certificate .*none.pem: No such file')
    fault("self_signed = 1", "'self_signed' in tls must be true or false, got 1")
  end)

  it("dumps the options of tls with their defaults", function()
    t.write("c.conf", 'listen "tls://127.0.0.1:1" { handler = "echo", tls = { self_signed = true } }\n')
    local r = t.reactord { "check", "--dump=json", "-c", t.path "c.conf" }
    local dumped = assert(json.decode(r.out)).listen[1].tls
    assert.is_true(dumped.self_signed)
    assert.equal(10, dumped.handshake_timeout)
  end)
end)
