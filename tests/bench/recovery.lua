-- How long clients of a killed process's slot wait: recovery.lua PORT PID kills PID, then connects to 127.0.0.1:PORT again and again, each
-- time for one echo, and prints the longest that one took, in milliseconds. Nobody may be refused.
local socket = require "socket"
local port, pid = tonumber(arg[1]), arg[2]

local longest = 0
assert(os.execute("kill -KILL " .. pid))
for _ = 1, 40 do
  local before = socket.gettime()
  local client = assert(socket.connect("127.0.0.1", port))
  client:settimeout(10)
  assert(client:send("x"))
  assert(client:receive(1) == "x", "no echo")
  client:close()
  longest = math.max(longest, socket.gettime() - before)
end
print(("%.1f"):format(longest * 1000))
