-- Ruby EventMachine, OpenSSL's command and curl as peers, byte for byte, in both roles.

local pki = require "tests.support.pki"
local t = require "tests.support.harness"

-- Runs a Ruby script to its end.
local function ruby(text, ...)
  t.write("peer.rb", text)
  local r = t.run { "ruby", t.path "peer.rb", ... }
  assert.equal(0, r.status, r.err)
  return r.out
end

-- What every EventMachine client of these specs does: sends DATA, collects as much, compares, tells.
local em_client = [[
require 'eventmachine'
DATA_OUT = (0...200_000).map { |i| (i * 7 % 256).chr }.join.b
class Client < EM::Connection
  def go; @in = ''.b; send_data DATA_OUT; end
  def receive_data(d)
    @in << d
    if @in.size >= DATA_OUT.size then puts(@in == DATA_OUT ? 'same' : 'different'); close_connection_after_writing end
  end
  def unbind(reason = nil); puts "unbound #{reason.inspect}"; EM.stop; end
end
]]

describe("with Ruby EventMachine", function()
  t.auto()

  it("our echo serves its plain client", function()
    local port = t.free_port()
    local d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "echo" }'):format(port) }
    assert.equal("same\nunbound nil\n", ruby(em_client .. [[
      class Client; def post_init; go; end; end
      EM.run { EM.connect '127.0.0.1', ARGV[0].to_i, Client }
    ]], tostring(port)))
    d:stop()
  end)

  it("our TLS echo serves its TLS client, under TLS 1.2 and 1.3", function()
    local port = t.free_port()
    local d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }'):format(port) }
    for _, version in ipairs { "tlsv1_2", "tlsv1_3" } do
      assert.equal("same\nunbound nil\n", ruby(em_client .. [[
        class Client
          def post_init; start_tls(ssl_version: Array(ARGV[1])); end
          def ssl_handshake_completed; go; end
        end
        EM.run { EM.connect '127.0.0.1', ARGV[0].to_i, Client }
      ]], tostring(port), version))
    end
    d:stop()
  end)

  it("our server switches by STARTTLS with its client", function()
    t.write("smtp.lua", [[
      local Smtp = require "em".Connection:extend()
      function Smtp:post_init() self:send_data "220 ready\r\n" end
      function Smtp:receive_data(data)
        if not self.secure and data == "STARTTLS\r\n" then
          self.secure = true
          self:send_data "220 go ahead\r\n"
          self:start_tls { self_signed = true }
        else
          self:send_data(data)
        end
      end
      return Smtp
    ]])
    local port = t.free_port()
    local d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "smtp" }'):format(port) }
    assert.equal("same\nunbound nil\n", ruby(em_client .. [[
      class Starter < Client
        def receive_data(d)
          return super if @secure
          @clear = (@clear || '') + d
          if @clear == "220 ready\r\n" then send_data "STARTTLS\r\n"
          elsif @clear == "220 ready\r\n220 go ahead\r\n" then @secure = true; start_tls end
        end
        def ssl_handshake_completed; go; end
      end
      EM.run { EM.connect '127.0.0.1', ARGV[0].to_i, Starter }
    ]], tostring(port)))
    d:stop()
  end)

  it("our client talks to its plain and TLS servers", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port, secure = t.free_port(), t.free_port()
    t.write("server.rb", [[
      require 'eventmachine'
      class Plain < EM::Connection
        def receive_data(d); send_data d; end
      end
      class Secure < Plain
        def post_init; start_tls(private_key_file: ARGV[3], cert_chain_file: ARGV[2], ssl_version: %w(TLSv1_2 TLSv1_3)); end
      end
      EM.run {
        EM.start_server '127.0.0.1', ARGV[0].to_i, Plain
        EM.start_server '127.0.0.1', ARGV[1].to_i, Secure
        $stdout.puts 'up'; $stdout.flush
      }
    ]])
    local server = t.sys.spawn({ "ruby", t.path "server.rb", tostring(port), tostring(secure), t.path "server.pem", t.path "server.key" },
      { stdout = t.path "server.out", stderr = t.path "server.err" })
    finally(function()
      t.sys.kill(server, "KILL")
      t.sys.waitpid(server)
    end)
    t.until_true(function() return t.read "server.out" == "up\n" end, 10, "EventMachine's servers")
    for url, options in pairs { ["tcp://127.0.0.1:" .. port] = "", ["tls://localhost:" .. secure] = ('ca_file = "%s"'):format(ca.cert) } do
      local r = t.script(([[
        local em = require "em"
        local bytes = {}
        for i = 0, 255 do bytes[#bytes + 1] = string.char(i) end
        local out = table.concat(bytes):rep(1000)
        local Client = em.Connection:extend()
        function Client:post_init() self.seen = {}; self.count = 0; self:send_data(out) end
        function Client:receive_data(data)
          table.insert(self.seen, data)
          self.count = self.count + #data
          if self.count >= #out then print(table.concat(self.seen) == out); self:close_connection_after_writing() end
        end
        function Client:unbind(err, why) print(err, why) end
        em.connect({ url = "%s"%s }, Client)
      ]]):format(url, options ~= "" and ", tls = { " .. options .. " }" or ""))
      assert.equal("true\nnil\tclosed\n", r.out)
    end
  end)
end)

describe("with OpenSSL and curl", function()
  t.auto()

  it("our client talks to openssl s_server", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port = t.free_port()
    local server = t.sys.spawn({ "openssl", "s_server", "-accept", tostring(port), "-cert", t.path "server.pem",
      "-key", t.path "server.key", "-rev", "-quiet" }, { stdout = t.path "s.out", stderr = t.path "s.err" })
    finally(function()
      t.sys.kill(server, "KILL")
      t.sys.waitpid(server)
    end)
    local out = ""
    t.until_true(function()
      out = t.script(([[
        local em = require "em"
        em.connect({ url = "tls://localhost:%d", tls = { ca_file = "%s" } }, {
          post_init = function(self) self:send_data "stressed\n" end,
          receive_data = function(self, data) print(data); self:close_connection() end,
          unbind = function(_, err, why) print(err, why) end,
        })
      ]]):format(port, ca.cert)).out
      return not out:find "ECONNREFUSED"
    end, 10, "s_server")
    assert.equal("desserts\n\nnil\tclosed\n", out)
  end)

  it("curl reads a page that ends with the connection, over TLS with ALPN", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    t.write("page.lua", [[
      local Page = require "em".Connection:extend()
      function Page:receive_data(data)
        self.head = (self.head or "") .. data
        if self.head:find("\r\n\r\n", 1, true) then
          self:send_data("HTTP/1.0 200 OK\r\n\r\n", ("page "):rep(100000))
          self:close_connection_after_writing()
        end
      end
      return Page
    ]])
    local port = t.free_port()
    local d = t.start {
      config = ('listen "tls://127.0.0.1:%d" { handler = "page", '
        .. 'tls = { certificate = "server.pem", private_key = "server.key", alpn = { "http/1.1" } } }')
        :format(port),
    }
    local r = t.run { "curl", "-sS", "--cacert", ca.cert, "--http1.1", "https://localhost:" .. port .. "/" }
    assert.equal(0, r.status, r.err)
    assert.equal(500000, #r.out)
    d:stop()
  end)
end)
