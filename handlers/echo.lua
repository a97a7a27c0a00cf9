--- Says back whatever it hears. A peer that does not read is closed by the listener's max_outbound.

local em = require "em"

local Echo = em.Connection:extend()

function Echo:receive_data(data)
  self:send_data(data)
end

return Echo
