-- Reloads under load: while plain, TLS and Unix connections have every byte checked and others come and go, the daemon is told to reload
-- over and over, one time in five with a broken handler. No byte may be lost, nobody refused, and neither descriptors nor memory may grow.
local t = require "tests.support.harness"
local pattern = require "tests.support.pattern"
local pki = require "tests.support.pki"
local tls = require "tests.support.tls"
local socket = require "socket"
local sys = t.sys

local kinds = { -- how many of each; of the plain ones half are on the port of a script
  { name = "plain", count = t.full and 300 or 60 },
  { name = "tls", count = t.full and 100 or 20 },
  { name = "unix", count = t.full and 50 or 10 },
}
local reloads = t.full and 1000 or 50
local longest_life = t.full and 80 or 8 -- good reloads that a connection sees at most; `generations` is more
local window = 12000                    -- bytes on their way in one connection

-- All of the load: checked connections by descriptor, and what has happened so far.
local load

-- Handlers that work, each a bit different, and such that do not.
local function good_handler(number)
  return ([[
local em = require "em"
local Echo = em.Connection:extend()
local words = {}
for i = 1, %d do words[i] = "word " .. i end
function Echo:post_init() self.beat = self:add_periodic_timer(0.05, function(c) c.beats = (c.beats or 0) + 1 end) end
function Echo:receive_data(data) self:send_data(data) end
em.run(function()
  em.add_periodic_timer(0.05, function() words[1] = "beat" end)
  assert(em.start_server("127.0.0.1", %d, "echo"))
end)
return Echo
]]):format(number % 50 + 1, load.ports[2])
end

local broken_handlers = {
  "local em = = 1", 'error "not today"', "", "return 5", 'local em = require "em"\nem.start_server("127.0.0.1", 0)\nreturn {}',
}

-- What all connections send: each begins elsewhere in it.
local period = pattern.period
local stream = pattern(3 * period)

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

local function connect_unix()
  local sock = socket.unix()
  if not sock:connect(load.path) then fail("a connection was not accepted") end
  load.connected = load.connected + 1
  return sock
end

-- What the kinds of connections do in their own ways: send and receive answer like those of sys.
local methods = {
  plain = {
    connect = function() return connect(load.ports[1 + load.connected % 2]) end,
    send = function(c, bytes) return sys.send(c.fd, bytes) end,
    receive = function(c) return sys.recv(c.fd, 65536) end,
    finish = function(c) assert(sys.shutdown(c.fd)) end,
  },
  tls = {
    connect = function()
      load.connected = load.connected + 1
      local sock = assert(tls.connect(load.tls_port, { cafile = load.ca.cert, verify = "peer" })).sock
      sock:settimeout(0)
      return sock
    end,
    send = function(c, bytes)
      local taken, why, before = c.sock:send(bytes)
      taken = taken or before
      if taken and taken > 0 then return taken end
      return nil, why, (why == "wantwrite" or why == "timeout") and "EAGAIN" or why
    end,
    receive = function(c)
      local bytes, why, part = c.sock:receive(16384)
      bytes = bytes or part
      if bytes and bytes ~= "" then return bytes end
      if why == "closed" then return "" end
      return nil, why, (why == "wantread" or why == "timeout") and "EAGAIN" or why
    end,
  },
}
methods.unix = setmetatable({ connect = connect_unix }, { __index = methods.plain })

-- Sends until enough is on its way.
local function top_up(c)
  while not c.closing and c.sent - c.received < window do
    local from = (c.start + c.sent) % period + 1
    local length = 1 + (c.sent * 7 + c.start) % 5000
    local taken, _, code = c:send(stream:sub(from, from + length - 1))
    if not taken then
      if code ~= "EAGAIN" then fail("sending failed: %s", code) end
      return
    end
    c.sent = c.sent + taken
  end
end

local function open_checked(kind)
  local sock = methods[kind].connect()
  local life = 1 + load.connected * 31 % longest_life
  local c = setmetatable({ kind = kind, sock = sock, fd = sock:getfd(), start = load.connected * 1009 % period, sent = 0, received = 0,
    ends = load.good + life }, { __index = methods[kind] })
  load.open[c.fd] = c
  top_up(c)
end

-- One that has no half-close of its own is closed when all has come back.
local function drop(c)
  c.sock:close()
  load.open[c.fd] = nil
  if not load.ending then open_checked(c.kind) end
end

-- Takes what has come and checks it; false at the end, which must be the one that we asked for.
local function check(c)
  while true do
    local bytes, _, code = c:receive()
    if not bytes then
      if code == "EAGAIN" then return true end
      fail("a connection has failed: %s", code)
    end
    if bytes == "" then
      if not c.closing then fail("a %s connection was closed by the daemon", c.kind) end
      if c.received ~= c.sent then fail("%d bytes did not come back", c.sent - c.received) end
      return false
    end
    local from = (c.start + c.received) % period + 1
    if bytes ~= stream:sub(from, from + #bytes - 1) then fail("wrong bytes came back") end
    c.received = c.received + #bytes
    load.bytes = load.bytes + #bytes
    if c.kind ~= "tls" then return true end -- that one may have more in memory
  end
end

-- Reads from all that have something for us. Connections whose time has come end in an orderly way, others take their place.
local function pump(seconds)
  local fds = {}
  for fd in pairs(load.open) do table.insert(fds, fd) end
  for _, fd in ipairs(sys.poll(fds, "r", seconds)) do
    local c = load.open[fd]
    if not check(c) then
      drop(c)
    elseif c.closing and not c.finish and c.received == c.sent then
      drop(c)
    elseif not c.closing and (load.ending or load.good >= c.ends) then
      c.closing = true
      if c.finish then c:finish() elseif c.received == c.sent then drop(c) end
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
    load = { open = {}, ports = { t.free_port(), t.free_port() }, tls_port = t.free_port(), path = t.path("load.sock"), connected = 0,
      bytes = 0, good = 0, done = 0, ca = pki.authority "ca" }
    pki.issue(load.ca, "server")
    t.write("echo.lua", good_handler(0))
    local d = t.start(([[
      listen "tcp://127.0.0.1:%d" { handler = "echo" }
      listen "tls://127.0.0.1:%d" { handler = "echo", tls = { certificate = "server.pem", private_key = "server.key" } }
      listen "unix://load.sock" { handler = "echo" }
      generations = 100
      log = { level = "debug" }]]):format(load.ports[1], load.tls_port))
    local log = assert(io.open(d.log_path))
    log:seek("end")
    t.until_true(function() return pcall(connect, load.ports[2]) end)

    local function begin()
      for _, kind in ipairs(kinds) do
        for _ = 1, kind.count do open_checked(kind.name) end
      end
    end

    local samples = {}
    local function sample()
      settle(d)
      -- the last visitors' descriptors may take a moment
      pcall(t.until_true, function() return #samples > 0 and d:fds() == samples[1].fds end, #samples > 0 and 5 or 0.1)
      table.insert(samples, { fds = d:fds(), rss = d:rss() / 1024 })
    end

    local started, visits = t.now(), 0
    begin()
    for number = 1, reloads do
      local broken = number % 5 == 0
      t.write("echo.lua", broken and broken_handlers[number // 5 % #broken_handlers + 1] or good_handler(number))
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
