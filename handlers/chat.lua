--- A room: who comes, what is said and who leaves is told to all others.
-- Try it with `nc 127.0.0.1 8084` in two terminals. All connections of one listener, or of several, meet in the same room: handlers of
-- a process share the locals of their file. A reload moves everyone to the new code's room, and nobody notices.

local em = require "em"

local MAX_LINE = 4096 -- bytes; who sends more without a line break has to go

local Chat = em.Connection:extend()

local room = {}    -- connection -> true
local last_id = 0

--- Says something to everyone in the room but one.
-- send_data only queues, so nobody waits for a reader that is slow. What is queued for that one grows until it is more than the
-- listener's max_outbound (64 MiB unless set); then it is that reader's connection that ends.
local function tell_others(one, ...)
  for connection in pairs(room) do
    if connection ~= one then
      connection:send_data(...)
    end
  end
end

function Chat:post_init()
  last_id = last_id + 1
  self.name = "User #" .. last_id
  self.rest = "" -- the beginning of a line whose end has not come yet
  room[self] = true
  tell_others(self, self.name, " joined\n")
end

--- Cuts what comes into lines, however it was cut on its way.
function Chat:receive_data(data)
  data = self.rest .. data
  local from = 1
  while true do
    local to = data:find("\n", from, true)
    if (to or #data + 1) - from > MAX_LINE then
      return self:refuse()
    end
    if not to then
      break
    end
    self:receive_line((data:sub(from, to - 1):gsub("\r$", "")))
    from = to + 1
  end
  self.rest = data:sub(from)
end

function Chat:receive_line(line)
  tell_others(self, self.name, " said: ", line, "\n")
end

--- Ends a connection that sends what is no line.
function Chat:refuse()
  self.rest = ""
  self:send_data("A line has at most ", MAX_LINE, " bytes.\n")
  self:close_connection_after_writing()
end

--- Called exactly once for everyone who has come, whatever the cause of the end.
function Chat:unbind()
  room[self] = nil
  tell_others(self, self.name, " left\n")
end

--- A reload: all that the new code has to know of someone. The room is the same: everyone moves in the same moment.
function Chat:handover()
  return { name = self.name, rest = self.rest, last_id = last_id }
end

--- Someone comes from the old code's room into this one.
function Chat:takeover(state)
  self.name = state.name
  self.rest = state.rest
  last_id = math.max(last_id, state.last_id) -- no number is given twice
  room[self] = true
end

return Chat
