--- Step 9: a coroutine for each connection. It waits where a callback may not, while the loop goes on.
--   build/reactord run handlers/guide/9_coroutines.lua -l tcp://127.0.0.1:9000

local em = require "em"

local MAX_LINE = 200 -- bytes

local Interview = em.Connection:extend()

-- Asks for a line. There is no receive_data: the bytes wait for whoever reads them.
function Interview:ask(question)
  self:send_data(question, " ")
  return self:read_line(MAX_LINE) -- nil, why at the end of the stream; nil, message, "ELIMIT" for a line that is too long
end

function Interview:interview()
  local name = self:ask("Your name?")
  if not name then
    return
  end
  local seconds = tonumber(self:ask("How many seconds to think?")) or 1
  self:send_data("Let me think.\n")
  em.sleep(math.min(math.max(seconds, 0), 10)) -- this coroutine sleeps, and nobody else does
  local addresses, why = em.await(em.dns.resolve("localhost")) -- any deferrable
  self:send_data(("Good-bye, %s. I live at %s.\n"):format(name, addresses and addresses[1] or why))
end

function Interview:post_init()
  -- If the peer leaves, the coroutine ends where it waits; an error in it ends this connection alone.
  em.go(self.interview, self):callback(function()
    self:close_connection_after_writing()
  end)
end

return Interview
