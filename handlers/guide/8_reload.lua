--- Step 8: new code without losing a connection. Answers each piece of data with a greeting.
-- See README.md beside this file for the configuration that goes with it. Change the next line, then: kill -HUP PID.

local PUNCTUATION = "!"

local em = require "em"

local Reload = em.Connection:extend()

-- Gets what the listen block has in `args`.
function Reload:initialize(greeting)
  self.greeting = greeting or "Hello"
end

function Reload:receive_data()
  self:send_data(self.greeting, PUNCTUATION, "\n")
end

return Reload
