--- Says every datagram back to its sender. Senders with a low port are services themselves: they get no answer, so that nobody can set
-- two of them on each other by a forged sender.

local em = require "em"

local Echo = em.Connection:extend()

function Echo:receive_data(data, _, port)
  if port >= 1024 then
    self:send_data(data)
  end
end

return Echo
