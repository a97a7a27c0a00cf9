--- A TCP proxy: what a client sends goes to another server, what that answers comes back. The bytes do not enter Lua; a side that reads
-- slowly slows the other one down; an end of sending is passed on, and the other direction lives until its own end.
--
--   listen "tcp://*:8080"           { handler = "relay", args = { "127.0.0.1", 80 }, idle_timeout = 300 }
--   listen "tls://*:8443"           { handler = "relay", args = { "unix:///run/app.sock" }, tls = { certificate = "…" } }
--   listen "unix:///run/relay.sock" { handler = "relay", args = { "tls://example.org:443", { alpn = { "http/1.1" } } } }
--
-- args: host and port, or a URL and the options of TLS; then, where wanted, a table with options of em.connect, such as connect_timeout,
-- idle_timeout, bind, or proxy_protocol = "v2", which tells the server who its client is.

local em = require "em"

--- The connection to the server; it begins and ends with its client's.
local Upstream = em.Connection:extend()

function Upstream:initialize(client)
  self.client = client
end

--- Relays both ways at once: until the server is there, the client's bytes wait in our queue, up to its high-water mark.
function Upstream:post_init()
  self.client:proxy_incoming_to(self)
  self:proxy_incoming_to(self.client)
end

function Upstream:connection_completed()
  self.connected = true
end

function Upstream:unbind(err, why)
  if err then
    em.log.warn(self.connected and "the server's connection ended: %s" or "cannot connect: %s", why)
  end
  self.client:close_connection_after_writing()
end

--- The connection of a client.
local Relay = em.Connection:extend()

--- The table that em.connect wants, made of a block's args.
local function target(host, port, options)
  local t = {}
  for name, value in pairs(options or {}) do
    t[name] = value
  end
  if math.type(port) == "integer" then
    t.url = (host:find(":", 1, true) and "tcp://[%s]:%d" or "tcp://%s:%d"):format(host, port)
  else
    t.url = host
    t.tls = port
  end
  return t
end

function Relay:initialize(host, port, options)
  if type(host) ~= "string" or not (math.type(port) == "integer" or host:find("://", 1, true)) then
    error("relay needs args = { HOST, PORT } or { URL, { options of TLS } }")
  end
  local to = target(host, port, options)
  if to.proxy_protocol then
    to.proxy_for = self
  end
  self.to = to
end

--- A client with TLS must have shown who it is, where that is asked for, before its server hears of it.
function Relay:post_init()
  if not self:uses_tls() then
    self:dial()
  end
end

function Relay:ssl_handshake_completed()
  self:dial()
end

function Relay:dial()
  local upstream, why = em.connect(self.to, Upstream, self)
  if not upstream then
    em.log.error("%s", why)
    self:close_connection()
  end
  self.upstream = upstream
end

function Relay:unbind(err)
  if self.upstream then
    self.upstream:close_connection(not err) -- what an orderly client has sent still arrives
  end
end

return Relay
