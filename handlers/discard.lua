--- Reads and forgets whatever it hears.
-- Good for seeing what the daemon itself costs, and the shortest handler there is: what has no method of its own comes from em.Connection.

local em = require "em"

local Discard = em.Connection:extend()

function Discard:receive_data() end

return Discard
