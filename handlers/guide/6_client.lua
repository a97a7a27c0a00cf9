--- Step 6: a client that stays connected. This one is a script: it runs by itself, without a listener.
--   build/reactord run handlers/guide/1_hello.lua -l tcp://127.0.0.1:9000
--   build/reactord run handlers/guide/6_client.lua 127.0.0.1 9000      in another terminal; then end and start the first one

local em = require "em"

local host, port = ... -- the arguments behind the script's name
host, port = host or "127.0.0.1", tonumber(port or 9000)

local FIRST_WAIT, LONGEST_WAIT = 0.5, 30 -- seconds

local Client = em.Connection:extend()

function Client:post_init()
  self.wait = FIRST_WAIT -- the socket is still on its way
end

function Client:connection_completed()
  print("connected")
  self.wait = FIRST_WAIT
  self:send_data("hello\n")
end

function Client:receive_data(data)
  io.write(data)
end

-- Also the end of a connection that could not be made: em.connect itself never fails.
function Client:unbind(err, why)
  print(("%s (%s), next try in %g s"):format(why, err or "no error", self.wait))
  -- A timer of nobody's: the connection's own ended with it.
  em.add_timer(self.wait, function()
    self:reconnect(host, port) -- the same object goes on; post_init is not called again
  end)
  self.wait = math.min(self.wait * 2, LONGEST_WAIT)
end

-- em.run turns the loop until em.stop, or until Ctrl-C.
em.run(function()
  em.connect(host, port, Client)
end)
