--- Step 4: timers. Counts seconds, and ends a connection that is silent for ten of them.
--   build/reactord run handlers/guide/4_timers.lua -l tcp://127.0.0.1:9000
-- Nothing ever waits here: to sleep would stop everybody else. A timer calls back instead.

local em = require "em"

local TICK = 1      -- seconds; fractions will do
local PATIENCE = 10

local Timers = em.Connection:extend()

function Timers:post_init()
  local ticks = 0
  -- Timers of a connection end with it. em.add_timer and em.add_periodic_timer make some that belong to nobody.
  self:add_periodic_timer(TICK, function()
    ticks = ticks + 1
    self:send_data("tick ", ticks, "\n")
  end)
  self.silence = self:add_timer(PATIENCE, function()
    self:send_data("You say nothing.\n")
    self:close_connection_after_writing()
  end)
end

function Timers:receive_data()
  self.silence:restart() -- from now; cancel() would end it
end

return Timers
