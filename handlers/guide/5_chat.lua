--- Step 5: one connection talks to others. handlers/chat.lua is the same with names and notices.
--   build/reactord run handlers/guide/5_chat.lua -l tcp://127.0.0.1:9000
--   nc 127.0.0.1 9000      in two terminals

-- require looks in the folders of `handlers`, then among the shipped handlers, where the guide is.
local Lines = require "guide.3_lines"

-- A class can be extended like em.Connection itself: this one inherits how bytes become lines.
local Chat = Lines:extend()

local room = {} -- connection -> true

function Chat:post_init()
  Lines.post_init(self) -- the base class has something to do here too
  room[self] = true
end

function Chat:receive_line(line)
  for other in pairs(room) do
    if other ~= self then
      other:send_data(line, "\n") -- only queues: nobody waits for a slow reader
    end
  end
end

-- Called exactly once, last, however the connection ends: the place to let go of it.
function Chat:unbind()
  room[self] = nil
end

return Chat
