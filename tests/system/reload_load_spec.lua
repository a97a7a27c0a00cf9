-- Reloads under load: while 100 connections have every byte checked and others come and go, the daemon is told to reload over and over,
-- one time in five with a broken handler. No byte may be lost, nobody refused, and neither descriptors nor memory may grow.
local t = require "tests.support.harness"
local socket = require "socket"
local sys = t.sys

local connections = 100
local reloads = t.full and 1000 or 50
local longest_life = t.full and 80 or 8 -- good reloads that a connection sees at most; `generations` is more
local window = 12000                    -- bytes on their way in one connection

-- Handlers that work, each a bit different, and such that do not.
local function good_handler(number, port)
  return ([[
local em = require "em"
local Echo = em.Connection:extend()
local words = {}
for i = 1, %d do words[i] = "word " .. i end
function Echo:post_init() self.beat = self:add_periodic_timer(0.05, function(c) c.beats = (c.beats or 0) + 1 end) end
function Echo:receive_data(data) self:send_data(data) end
em.run(function()
  em.add_periodic_timer(0.05, function() words[1] = "beat" end)
  assert(em.start_server("127.0.0.1", %d, Echo))
end)
return Echo
]]):format(number % 50 + 1, port)
end

local broken_handlers = {
  "local em = = 1", 'error "not today"', "", "return 5", 'local em = require "em"\nem.start_server("127.0.0.1", 0)\nreturn {}',
}

-- What all connections send: each begins elsewhere in it. Its length is prime, so that nothing shifted looks right.
local period = 65521
local pattern
do
  local bytes, x = {}, 2463534242
  for i = 1, period do
    x = x ~ (x << 13) & 0xffffffff
    x = x ~ (x >> 17)
    x = x ~ (x << 5) & 0xffffffff
    bytes[i] = string.char(x >> 8 & 0xff)
  end
  pattern = table.concat(bytes)
  pattern = pattern .. pattern .. pattern
end

-- All of the load: checked connections by descriptor, and what has happened so far.
local load

local function fail(format, ...)
  error(("after %d reloads: " .. format):format(load.done, ...), 0)
end

local function connect(port)
  local sock = socket.tcp4()
  sock:settimeout(t.limit)
  local ok, why = sock:connect("127.0.0.1", port)
  if not ok then fail("a connection was not accepted: %s", why) end
  sock:setoption("tcp-nodelay", true)
  load.connected = load.connected + 1
  return sock
end

-- Sends until enough is on its way.
local function top_up(c)
  while not c.closing and c.sent - c.received < window do
    local from = (c.start + c.sent) % period + 1
    local length = 1 + (c.sent * 7 + c.start) % 5000
    local taken, _, code = sys.send(c.fd, pattern:sub(from, from + length - 1))
    if not taken then
      if code ~= "EAGAIN" then fail("sending failed: %s", code) end
      return
    end
    c.sent = c.sent + taken
  end
end

local function open_checked()
  local sock = connect(load.ports[1 + load.connected % 2])
  local life = 1 + load.connected * 31 % longest_life
  local c = { sock = sock, fd = sock:getfd(), start = load.connected * 1009 % period, sent = 0, received = 0, ends = load.good + life }
  load.open[c.fd] = c
  top_up(c)
end

-- Takes what has come and checks it; false at the end, which must be the one that we asked for.
local function check(c)
  local bytes, _, code = sys.recv(c.fd, 65536)
  if not bytes then
    if code == "EAGAIN" then return true end
    fail("a connection has failed: %s", code)
  end
  if bytes == "" then
    if not c.closing then fail("a connection was closed by the daemon") end
    if c.received ~= c.sent then fail("%d bytes did not come back", c.sent - c.received) end
    return false
  end
  local from = (c.start + c.received) % period + 1
  if bytes ~= pattern:sub(from, from + #bytes - 1) then fail("wrong bytes came back") end
  c.received = c.received + #bytes
  load.bytes = load.bytes + #bytes
  return true
end

-- Reads from all that have something for us. Connections whose time has come end in an orderly way, others take their place.
local function pump(seconds)
  local fds = {}
  for fd in pairs(load.open) do table.insert(fds, fd) end
  for _, fd in ipairs(sys.poll(fds, "r", seconds)) do
    local c = load.open[fd]
    if not check(c) then
      c.sock:close()
      load.open[fd] = nil
      if not load.ending then open_checked() end
    elseif not c.closing and (load.ending or load.good >= c.ends) then
      c.closing = true
      assert(sys.shutdown(fd))
    else
      top_up(c)
    end
  end
end

-- One that comes and goes: closes at once, or after an answer, or with a reset.
local function visit(number)
  local sock = connect(load.ports[1 + number % 2])
  if number % 3 > 0 then
    assert(sock:send("visit"))
    local answer, why = sock:receive(5)
    if answer ~= "visit" then fail("a visitor got no answer: %s", why or answer) end
  end
  if number % 3 == 2 then sys.reset(sock:getfd()) end
  sock:close()
end

-- Ends all connections and waits until only one generation is left.
local function settle(d)
  load.ending = true
  local deadline = t.now() + t.limit
  while next(load.open) do
    pump(0.01)
    if t.now() > deadline then fail("the connections did not end") end
  end
  t.until_true(function() return d:count_log("debug generation %d+ has ended") == load.good end, 10, "the end of old generations")
  load.ending = false
end

describe(("%d reloads under load"):format(reloads), function()
  t.auto()

  it("lose no byte, refuse nobody, and leave nothing behind", function()
    load = { open = {}, ports = { t.free_port(), t.free_port() }, connected = 0, bytes = 0, good = 0, done = 0 }
    t.write("echo.lua", good_handler(0, load.ports[2]))
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "echo" }\ngenerations = 100\nlog = { level = "debug" }')
      :format(load.ports[1]))
    local log = assert(io.open(d.log_path))
    log:seek("end")
    t.until_true(function() return pcall(connect, load.ports[2]) end)

    local function begin()
      for _ = 1, connections do open_checked() end
    end

    local samples = {}
    local function sample()
      settle(d)
      table.insert(samples, { fds = d:fds(), rss = d:rss() / 1024 })
    end

    local started, visits = t.now(), 0
    begin()
    for number = 1, reloads do
      local broken = number % 5 == 0
      t.write("echo.lua", broken and broken_handlers[number // 5 % #broken_handlers + 1] or good_handler(number, load.ports[2]))
      d:signal("HUP")
      local deadline, said, rounds = t.now() + t.limit, "", 0
      repeat
        pump(0.001)
        visits, rounds = visits + 1, rounds + 1
        visit(visits)
        said = said .. (log:read("a") or "")
        if t.now() > deadline then fail("no reload; the log: %s", said) end
      until rounds >= 10 and (said:find("reloaded: generation %d+ serves\n") or said:find("reload refused: generation %d+ serves on\n"))
      if broken ~= (said:find("reload refused", 1, true) ~= nil) then fail("%s", said) end
      load.done = number
      if not broken then load.good = load.good + 1 end
      if number == reloads // 5 or (number == reloads // 2 and t.full) then
        sample()
        begin()
      end
    end
    sample()
    log:close()
    local took = t.now() - started
    d:stop()
    assert.matches(("reloads=%d reloads_refused=%d"):format(load.good, reloads // 5), d:log())
    assert.matches(("connections_accepted=%d "):format(load.connected), d:log())
    assert.matches("handler_errors=0 ", d:log())

    local first, last = samples[1], samples[#samples]
    local figures = {}
    for _, s in ipairs(samples) do table.insert(figures, ("%d descriptors, %d KiB"):format(s.fds, s.rss)) end
    local told = ("%d reloads in %.1f s, %d connections, %d KiB echoed; %s"):format(reloads, took, load.connected, load.bytes // 1024,
      table.concat(figures, "; "))
    if t.full or os.getenv("REACTORD_FIGURES") then io.stderr:write(told, "\n") end
    assert.equal(first.fds, last.fds, told)
    if not t.sanitized then assert.is_true(last.rss <= first.rss * 1.1 + 1024, told) end
  end)
end)
