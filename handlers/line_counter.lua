--- Counts the lines of each connection and says good-bye after ten: the example that EventMachine's documentation begins with.
-- Bytes arrive cut in any way: half a line, or fifty lines at once. Only the ends of lines matter here, so nothing has to be kept, and
-- a line may be as long as it likes.

local em = require "em"

local MAX_LINES = 10

local LineCounter = em.Connection:extend()

function LineCounter:post_init()
  self.count = 0 -- self is a plain table: its fields are the connection's own
end

function LineCounter:receive_data(data)
  for _ in data:gmatch("\n") do
    self.count = self.count + 1
    self:send_data("received ", self.count, " lines so far\r\n")
    if self.count == MAX_LINES then
      -- Sends what is queued, then ends; what the peer still says is not looked at.
      self:close_connection_after_writing()
      return
    end
  end
end

--- A reload: the new code is told how far this connection has got, and goes on from there.
function LineCounter:handover()
  return self.count
end

function LineCounter:takeover(count)
  self.count = count
end

return LineCounter
