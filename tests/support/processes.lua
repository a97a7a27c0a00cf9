-- Daemons of several processes, for specs: who they are, and connections to each of them.
local t = require "tests.support.harness"
local sys = t.sys

local P = {}

-- Says on connecting which process it is; then it obeys the lines that it gets: "pid", "stop", "stop 3", "hang", and says back others.
P.handler = [[
local em = require "em"
local H = em.Connection:extend()
function H:post_init() self:send_data(("%d of %d\n"):format(em.process())) end
function H:receive_data(data)
  local word, argument = data:match("^(%a+) ?(%d*)\n")
  if word == "stop" then em.stop { status = tonumber(argument) }
  elseif word == "hang" then string.rep("a", 50):find(string.rep("a?", 50) .. string.rep("a", 50))
  else self:send_data(data) end
end
return H
]]

-- The line that a process begins the numbered lines of its file with.
local function read_line(path)
  local file = io.open(path)
  local text = file and file:read("l")
  if file then file:close() end
  return text
end

-- The processes of a daemon that are there now: pids by their number.
function P.pids(d)
  local pids = {}
  for pid in (read_line(("/proc/%d/task/%d/children"):format(d.pid, d.pid)) or ""):gmatch("%d+") do
    local index = (read_line("/proc/" .. pid .. "/comm") or ""):match("^reactord/(%d+)$")
    if index then pids[tonumber(index)] = tonumber(pid) end
  end
  return pids
end

-- Waits until a process has another pid than that one; returns it.
function P.replaced(d, index, pid)
  return t.until_true(function()
    local now = P.pids(d)[index]
    return now and now ~= pid and now
  end, 10, "another process " .. index)
end

-- Connects; the client's field "process" is the number of the process that has accepted it.
function P.connect(where)
  local c = t.connect(where)
  local index, count = c:receive_line():match("^(%d+) of (%d+)$")
  c.process, c.count = tonumber(index), tonumber(count)
  return c
end

-- A connection to that process.
function P.connect_to(where, index)
  return t.until_true(function()
    local c = P.connect(where)
    if c.process == index then return c end
    c:close()
  end, 10, "a connection to process " .. index)
end

-- Is it still there?
function P.echoes(c, text)
  c:send(text .. "\n")
  c:expect(text .. "\n")
end

-- Has a process ended?
function P.gone(pid)
  local stat = read_line("/proc/" .. pid .. "/stat")
  return not stat or stat:match("%) (%a)") == "Z"
end

P.kill = sys.kill

return P
