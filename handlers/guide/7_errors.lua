--- Step 7: what can go wrong. Understands three lines: "oops" raises an error, "flood" sends 64 MiB, "bye" ends.
--   build/reactord run handlers/guide/7_errors.lua -l tcp://127.0.0.1:9000
-- An error costs one connection: the log has it with the file's line, everyone else goes on. The same goes for a callback that never
-- returns (`callback_time`) and for a peer that never reads (`max_outbound`).

local em = require "em"
local Lines = require "guide.3_lines"

local PIECE = ("x"):rep(64 * 1024)
local PIECES = 1024

local Errors = Lines:extend()

function Errors:receive_line(line)
  if line == "oops" then
    error("something is wrong")
  elseif line == "flood" then
    self.left = PIECES
    self:flood()
  else
    Lines.receive_line(self, line)
  end
end

-- Sends as long as the peer keeps up, instead of all at once, which would be more than a connection may have unsent.
function Errors:flood()
  while self.left > 0 do
    self.left = self.left - 1
    if not self:send_data(PIECE) then
      return -- false: queued, but it is enough for now; nil: the connection is closing
    end
  end
end

-- After send_data has returned false: most of what was queued has gone.
function Errors:drained()
  self:flood()
end

-- Always called, once. err is nil for an orderly end ("eof", "closed", "stopped"), else a code: EHANDLER for an error of ours,
-- ECONNRESET, ETIMEDOUT, ELIMIT and so on. why says it in words.
function Errors:unbind(err, why)
  em.log.info("ended: %s (%s)", why, err or "no error")
end

return Errors
