--- Step 3: lines. Says each line backwards; "bye" ends the connection.
--   build/reactord run handlers/guide/3_lines.lua -l tcp://127.0.0.1:9000
-- TCP carries bytes, not messages: two lines may come in one piece, and one line in many. So what has no end yet is kept until it has.

local em = require "em"

-- Whatever a stranger may make us keep needs a bound.
local MAX_LINE = 1024

local Lines = em.Connection:extend()

function Lines:post_init()
  self.rest = ""
end

function Lines:receive_data(data)
  data = self.rest .. data
  local from = 1
  while true do
    local to = data:find("\n", from, true)
    if (to or #data + 1) - from > MAX_LINE then
      self:send_data("That line is too long.\n")
      return self:close_connection_after_writing()
    end
    if not to then
      break
    end
    self:receive_line((data:sub(from, to - 1):gsub("\r$", "")))
    from = to + 1
  end
  self.rest = data:sub(from)
end

-- A method of our own: the lines that receive_data has put together.
function Lines:receive_line(line)
  if line == "bye" then
    self:send_data("Good-bye.\n")
    -- close_connection() would drop what is still queued; this sends it first.
    self:close_connection_after_writing()
  else
    self:send_data(line:reverse(), "\n") -- after a close it sends nothing
  end
end

return Lines
