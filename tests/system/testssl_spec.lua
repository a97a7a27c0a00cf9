-- An independent judge of the TLS that we offer by default: testssl.sh, which takes minutes and so belongs to the full run.

local pki = require "tests.support.pki"
local t = require "tests.support.harness"

describe("testssl", function()
  t.auto()

  it("finds nothing wrong but the test's certificate", function()
    if not t.full then return pending("part of make test-all") end
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local port = t.free_port()
    local d = t.start {
      config = ('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { certificate = "server.pem", private_key = "server.key" } }')
        :format(port),
    }
    local r = t.run { "testssl", "--color", "0", "--quiet", "--nodns", "none", "-p", "-s", "-f", "-P", "-S", "-U", "127.0.0.1:" .. port,
      seconds = 300 }
    assert.matches("TLS 1.3 +offered %(OK%)", r.out)
    for line in r.out:gmatch "[^\n]+" do
      local known = line:find("Chain of trust", 1, true) or line:find("neither CRL nor OCSP", 1, true)
      assert.is_true(known ~= nil or not (line:find("NOT ok", 1, true) or line:find "^ .*%f[%w]VULNERABLE"), line)
    end
    d:stop()
  end)
end)
