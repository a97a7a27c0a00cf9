-- A chat whose users talk on and on while the daemon is reloaded again and again: nobody notices. Every line reaches everyone else once, in
-- the order in which it was said, whatever process and whatever generation they are in.
local t = require "tests.support.harness"
local socket = require "socket"
local sys = t.sys

local users = t.full and 200 or 40
local reloads = t.full and 50 or 8
local least_lines = users * 10 -- that are said at least

describe(("a chat of %d users over 2 processes"):format(users), function()
  t.auto()

  local crowd, by_fd, said, heard

  -- Takes what a user has heard apart.
  local function hear(user, bytes)
    user.text = user.text .. bytes
    local from = 1
    for line, after in user.text:gmatch("([^\n]*)\n()") do
      from = after
      local speaker, number = line:match("^User #%d+ said: (%d+)/(%d+)$")
      if speaker then
        local expected = (user.heard[speaker] or 0) + 1
        if tonumber(number) ~= expected then
          error(("user %d heard line %s of user %s in the place of line %d"):format(user.index, number, speaker, expected), 0)
        end
        user.heard[speaker] = expected
        heard = heard + 1
      elseif line:find("^User #%d+ joined$") then
        user.arrivals = user.arrivals + 1
      else
        error(("user %d heard %q"):format(user.index, line:sub(1, 100)), 0)
      end
    end
    user.text = user.text:sub(from)
  end

  -- Everyone listens.
  local function listen(seconds)
    local fds = {}
    for fd in pairs(by_fd) do table.insert(fds, fd) end
    for _, fd in ipairs(sys.poll(fds, "r", seconds)) do
      local bytes, why = sys.recv(fd, 262144)
      if bytes == "" then error(("user %d was thrown out"):format(by_fd[fd].index), 0) end
      if bytes then hear(by_fd[fd], bytes) elseif why == "ECONNRESET" then error("a user was thrown out", 0) end
    end
  end

  -- Somebody says the next line, in two pieces now and then, so that reloads meet halves of lines.
  local function say()
    local user = crowd[math.random(users)]
    user.said, said = user.said + 1, said + 1
    local line = ("%d/%d\n"):format(user.index, user.said)
    if user.half then line = user.half .. line user.half = nil end
    if math.random(4) == 1 then
      line, user.half = line:sub(1, -2), "\n"
    end
    assert(user.sock:send(line))
  end

  -- Ends what was begun.
  local function end_lines()
    for _, user in ipairs(crowd) do
      if user.half then assert(user.sock:send(user.half)) user.half = nil end
    end
  end

  it(("goes through %d reloads, and nobody notices"):format(reloads), function()
    crowd, by_fd, said, heard = {}, {}, 0, 0
    local source = t.read(t.root .. "/handlers/chat.lua")
    t.write("chat.lua", source)
    local port = t.free_port()
    local d = t.start(('processes = 2\nlisten "tcp://127.0.0.1:%d" { handler = "chat" }'):format(port))
    for index = 1, users do
      local sock = socket.tcp4()
      sock:settimeout(t.limit)
      assert(sock:connect("127.0.0.1", port))
      sock:setoption("tcp-nodelay", true)
      crowd[index] = { index = index, sock = sock, text = "", heard = {}, said = 0, arrivals = 0 }
      by_fd[sock:getfd()] = crowd[index]
    end
    t.until_true(function()
      listen(0)
      return crowd[1].arrivals + 1 >= users
    end, 10, "everyone's arrival")

    for reload = 1, reloads do
      local mark = d:mark()
      t.write("chat.lua", source .. "\n-- " .. reload .. "\n")
      d:signal("HUP")
      repeat
        say()
        listen(0)
        assert.is_false(d:ended(), "the daemon has ended")
      until d:log():find("reloaded: generation %d+ serves", mark)
    end
    while said < least_lines do
      say()
      listen(0)
    end
    end_lines()
    t.until_true(function()
      listen(0.01)
      return heard == said * (users - 1)
    end, 30, "all lines with everyone")
    for _, user in ipairs(crowd) do user.sock:close() end
    d:stop()
    assert.equal(0, d:count_log("handler error"))
  end)
end)
