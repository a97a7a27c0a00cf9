-- A TLS client for specs, by LuaSec: OpenSSL on the test's side as well, but none of ours.

local ssl = require "ssl"
local t = require "tests.support.harness"

local tls = {}

local Client = {}
Client.__index = Client

-- Does the handshake on a connected client of the harness. options: those of LuaSec (protocol, cafile, certificate, key, …), and name
-- (SNI). Returns the TLS client, or nil and what OpenSSL says.
function tls.wrap(plain, options)
  options = options or {}
  local params = { mode = "client", protocol = "any", verify = "none", options = "all" }
  for name, value in pairs(options) do params[name] = value end
  params.name = nil
  local sock = assert(ssl.wrap(plain.sock, params))
  plain.sock = sock -- what the harness closes at the end
  if options.name then sock:sni(options.name) end
  sock:settimeout(t.limit)
  local ok, why = sock:dohandshake()
  if not ok then return nil, why end
  return setmetatable({ sock = sock, plain = plain }, Client)
end

-- Connects and does the handshake.
function tls.connect(port, options)
  return tls.wrap(t.connect(port), options)
end

function Client:send(bytes)
  local first = 1
  while first <= #bytes do
    first = assert(self.sock:send(bytes, first)) + 1
  end
  return self
end

function Client:receive(count)
  local bytes, why, partial = self.sock:receive(count)
  if not bytes then error(("%d bytes were expected, then %s; seen: %q"):format(count, why, partial), 2) end
  return bytes
end

function Client:expect(text)
  local seen = self:receive(#text)
  if seen ~= text then error(("expected %q, got %q"):format(text, seen), 2) end
  return self
end

-- All bytes to the end, and how it came: "closed".
function Client:receive_all()
  local bytes, why, partial = self.sock:receive("*a")
  return bytes or partial, why
end

function Client:close()
  self.sock:close() -- says goodbye
end

return tls
