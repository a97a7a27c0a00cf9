--- Step 1: a server that greets, and says back what it hears.
--   build/reactord run handlers/guide/1_hello.lua -l tcp://127.0.0.1:9000
--   nc 127.0.0.1 9000

local em = require "em"

-- A handler is a class. Each connection is an object of it.
local Hello = em.Connection:extend()

-- Called once, when the connection is there.
function Hello:post_init()
  self:send_data("Hello! Say something.\n")
end

-- Called whenever bytes have come.
function Hello:receive_data(data)
  self:send_data(data)
end

-- The file of a handler returns it.
return Hello
