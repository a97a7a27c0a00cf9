--- Names to addresses, without waiting: the hosts file first, then the name servers of the configuration or the system.

local core = require "em.core"
local Deferrable = require "em.deferrable"

local dns = {}

local known = { type = "string", nameserver = "string" }

--- A deferrable that succeeds with a list of addresses in order of preference, or fails with an error text and a code ("EAI_NONAME",
-- "EAI_AGAIN", …). Options: type, "A" or "AAAA" (both if not given); nameserver, "address" or "address:port", to ask in the place of the
-- configured ones.
function dns.resolve(host, options)
  if type(host) ~= "string" then
    error("bad argument #1 to 'resolve' (string expected, got " .. type(host) .. ")", 2)
  end
  if options ~= nil and type(options) ~= "table" then
    error("bad argument #2 to 'resolve' (table expected, got " .. type(options) .. ")", 2)
  end
  for name, value in pairs(options or {}) do
    if not known[name] then
      error("bad argument #2 to 'resolve' (unknown option '" .. tostring(name) .. "')", 2)
    elseif type(value) ~= known[name] then
      error("bad argument #2 to 'resolve' (" .. name .. " must be a " .. known[name] .. ")", 2)
    end
  end
  local deferrable = Deferrable.new()
  core.resolve(host, options and options.type, options and options.nameserver, function(addresses, why, code)
    if addresses then
      deferrable:succeed(addresses)
    else
      deferrable:fail(why, code)
    end
  end)
  return deferrable
end

return dns
