-- Certificates for TLS specs, made by OpenSSL's command in the test's folder: an authority, and what it signs.

local t = require "tests.support.harness"

local pki = {}

-- Runs openssl; its output is shown when it fails.
local function openssl(...)
  local r = t.run { "openssl", ... }
  assert(r.status == 0, r.err .. r.out)
  return r.out
end

-- An authority: ca.cert, ca.key (paths).
function pki.authority(name)
  local ca = { cert = t.path(name .. ".pem"), key = t.path(name .. ".key") }
  openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", ca.key, "-out", ca.cert,
    "-subj", "/CN=" .. name, "-days", "30")
  return ca
end

-- A certificate of the authority: {cert, key}. options: names ("DNS:localhost,IP:127.0.0.1"), days (negative: expired), password, rsa.
function pki.issue(ca, name, options)
  options = options or {}
  local made = { cert = t.path(name .. ".pem"), key = t.path(name .. ".key") }
  local request, extensions = t.path(name .. ".csr"), t.path(name .. ".ext")
  local kind = options.rsa and { "-newkey", "rsa:2048" } or { "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256" }
  local protect = options.password and { "-passout", "pass:" .. options.password } or { "-nodes" }
  local words = { "req", "-new" }
  table.move(kind, 1, #kind, #words + 1, words)
  table.move(protect, 1, #protect, #words + 1, words)
  for _, word in ipairs { "-keyout", made.key, "-out", request, "-subj", "/CN=" .. name } do table.insert(words, word) end
  openssl(table.unpack(words))
  t.write(name .. ".ext", "subjectAltName=" .. (options.names or "DNS:localhost,IP:127.0.0.1") .. "\n")
  words = { "x509", "-req", "-in", request, "-CA", ca.cert, "-CAkey", ca.key, "-CAcreateserial", "-out", made.cert, "-extfile", extensions }
  for _, word in ipairs { "-days", tostring(options.days or 30) } do table.insert(words, word) end
  openssl(table.unpack(words))
  return made
end

return pki
