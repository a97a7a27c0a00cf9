--- Step 2: what a connection remembers, and what all of them share.
--   build/reactord run handlers/guide/2_state.lua -l tcp://127.0.0.1:9000

local em = require "em"

local State = em.Connection:extend()

-- A local of the file: one for all connections. Everything runs on one thread, callback after callback, so it needs no lock.
local visitors = 0

function State:post_init()
  visitors = visitors + 1
  -- A field of self: this connection's own. self is a plain table, any name will do that no method has.
  self.bytes = 0
  self:send_data("You are visitor ", visitors, ".\n")
end

function State:receive_data(data)
  self.bytes = self.bytes + #data
  self:send_data("You have sent ", self.bytes, " bytes.\n")
end

return State
