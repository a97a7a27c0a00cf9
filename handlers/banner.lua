--- A client: prints what a server says first, then hangs up. For connect blocks, see conf/client.conf.

local em = require "em"

local PATIENCE = 10    -- seconds without a byte
local MAX_BANNER = 512 -- bytes: a server that never ends its line is cut off here

local Banner = em.Connection:extend()

function Banner:post_init()
  self.banner = "" -- here the socket is still connecting
end

function Banner:connection_completed()
  self:set_comm_inactivity_timeout(PATIENCE)
end

--- The first line is complete, or enough.
function Banner:receive_data(data)
  self.banner = self.banner .. data
  if #self.banner >= MAX_BANNER or self.banner:find("\n", 1, true) then
    self:close_connection()
  end
end

--- Comes once at the end of every connection, also of one that was never made: err is nil or a code such as ECONNREFUSED, why says it in
-- words. The place to print, as the banner may also be ended by the server's good-bye.
function Banner:unbind(_, why)
  local line = self.banner:sub(1, MAX_BANNER):match("^[^\r\n]*")
  local host, port = self:get_peername() -- nil if it never came to a connection; a path and no port on a Unix socket
  local server = (host or "the server") .. (port and ":" .. port or "")
  if line ~= "" then
    print(server .. " says: " .. line:gsub("%c", "?")) -- it may be printed on a terminal
  else
    em.log.warn("%s says nothing: %s", server, why)
  end
end

return Banner
