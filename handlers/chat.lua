--- A room: who comes, what is said and who leaves is told to all others.
-- Try it with `nc 127.0.0.1 8084` in two terminals. Everyone meets in the same room, by whatever listener and in whatever process of the
-- daemon: what is said goes by a named channel. A reload moves everyone to the new code, and nobody notices.

local em = require "em"

local MAX_LINE = 4096 -- bytes; who sends more without a line break has to go

local Chat = em.Connection:extend()

local room = em.channel "chat"
local numbers = em.shared "chat" -- counts users, for all processes

--- Says something in somebody's name to everyone else.
-- push only queues, and so does send_data in receive_message: nobody waits for a reader that is slow. What is queued for that one grows
-- until it is more than the listener's max_outbound (64 MiB unless set); then it is that reader's connection that ends.
function Chat:tell_others(text)
  if not room:push { from = self.name, text = text } then
    self:send_data("Nobody has heard that: too much is being said.\n")
  end
end

--- Somebody says something. The sender hears it too, as everyone who has subscribed.
function Chat:receive_message(_, said)
  if said.from ~= self.name then
    self:send_data(said.from, said.text, "\n")
  end
end

function Chat:post_init()
  self.name = "User #" .. assert(numbers:incr("users"))
  self.rest = "" -- the beginning of a line whose end has not come yet
  self:subscribe("chat")
  self:tell_others(" joined")
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
  self:tell_others(" said: " .. line)
end

--- Ends a connection that sends what is no line.
function Chat:refuse()
  self.rest = ""
  self:send_data("A line has at most ", MAX_LINE, " bytes.\n")
  self:close_connection_after_writing()
end

--- Called exactly once for everyone who has come, whatever the cause of the end.
function Chat:unbind()
  if self.name then
    self:tell_others(" left")
  end
end

--- A reload: all that the new code has to know of someone. The subscription goes along by itself.
function Chat:handover()
  return { name = self.name, rest = self.rest }
end

--- Someone comes from the old code.
function Chat:takeover(state)
  self.name = state.name
  self.rest = state.rest
end

return Chat
