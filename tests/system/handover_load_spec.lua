-- Hand-overs under load: plain, TLS and Unix connections with every byte checked go from one generation to the next, some of them by way of
-- a hand-over that fails, and one reload in five is refused. No byte is lost, doubled or out of order, the state of each is what it should
-- be, and nothing grows.
local ssl = require "ssl"
local t = require "tests.support.harness"
local pattern = require "tests.support.pattern"
local sys = t.sys

local reloads = t.full and 1000 or 50
local kinds = t.full and { plain = 300, tls = 100, unix = 50 } or { plain = 30, tls = 10, unix = 5 }

-- Echoes and counts, and pauses now and then. Of every four generations one has a handover that fails for some, and one such a takeover.
local function handler(number)
  return ([[
local em = require "em"
local H = em.Connection:extend()
local NUMBER = %d
local function beat(self)
  self:add_periodic_timer(0.004, function(c)
    if c:paused() then c:resume() elseif math.random(4) == 1 then c:pause() end
  end)
end
function H:post_init() self.count = 0 beat(self) end
function H:receive_data(data) self.count = self.count + #data self:send_data(data) end
function H:handover()
  if NUMBER %% 4 == 3 and math.random(4) == 1 then error("stays this time") end
  return { count = self.count, padding = ("p"):rep(math.random(3000)) }
end
function H:takeover(state)
  self.count = state.count
  beat(self)
  if NUMBER %% 4 == 1 and math.random(4) == 1 then error("goes back") end
end
function H:unbind(err) em.log.info("has counted %%d %%s", self.count, tostring(err)) end
return H]]):format(number)
end

-- What all connections send: each begins elsewhere in it.
local period = pattern.period
local stream = pattern(3 * period)

-- A checked connection: what it has sent and received, and how. slow: reads now and then only.
local Checked = {}
Checked.__index = Checked

local function open(where, number)
  local client = t.connect(where.address, number % 5 == 0 and { buffer = 4096 } or nil)
  local c = setmetatable({ client = client, sent = 0, received = 0, start = number * 977, slow = number % 5 == 0 }, Checked)
  if where.tls then
    c.ssl = assert(ssl.wrap(client.sock, { mode = "client", protocol = "any", verify = "none", options = "all" }))
    client.sock = c.ssl
    c.ssl:settimeout(t.limit)
    assert(c.ssl:dohandshake())
    c.ssl:settimeout(0)
  end
  return c
end

local function part(c, position, length)
  local from = (c.start + position) % period + 1
  return stream:sub(from, from + length - 1)
end

-- Sends some, as long as not too much is on its way.
function Checked:send()
  if self.sent - self.received > 60000 then return end
  local bytes = self.pending or part(self, self.sent, 1 + (self.sent * 7 + self.start) % 5000)
  if self.ssl then
    local last, why, partial = self.ssl:send(bytes)
    if not last and why ~= "wantread" and why ~= "wantwrite" and why ~= "timeout" then error("TLS: sending failed: " .. why) end
    local taken = last or partial
    self.sent = self.sent + taken
    self.pending = taken < #bytes and bytes:sub(taken + 1) or nil -- OpenSSL wants the same bytes again
  else
    local taken, why = self.client:send_some(bytes)
    if not taken then error("sending failed: " .. why) end
    self.sent = self.sent + taken
  end
end

-- Receives some and compares.
function Checked:receive()
  if self.slow and math.random(10) > 1 then return end
  local bytes
  if self.ssl then
    local all, why, partial = self.ssl:receive(16384)
    if why == "closed" then error("the peer has closed") end
    bytes = all or partial
  else
    local some, _, code = sys.recv(self.client.fd, 65536)
    if some == "" then error("the peer has closed") elseif not some and code ~= "EAGAIN" then error("receiving failed: " .. code) end
    bytes = some or ""
  end
  if bytes ~= part(self, self.received, #bytes) then error(("wrong bytes behind %d"):format(self.received)) end
  self.received = self.received + #bytes
end

local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  return mark
end

local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

describe(("%d reloads under load"):format(reloads), function()
  t.auto()

  it("lose no byte of any connection, and nothing grows", function()
    local port, secure = t.free_port(), t.free_port()
    t.write("h.lua", handler(0))
    local d = t.start(([[
      listen "tcp://127.0.0.1:%d" { handler = "h" }
      listen "tls://127.0.0.1:%d" { handler = "h", tls = { self_signed = true } }
      listen "unix://x.sock" { handler = "h" }
      generations = 100
      log = { repeats = 0 }]]):format(port, secure))
    local wheres = { plain = { address = port }, tls = { address = secure, tls = true }, unix = { address = t.path "x.sock" } }
    local all, fds, rss, good = {}, nil, nil, 0
    local log, deadline = assert(io.open(d.log_path)), t.now() + t.seconds(t.full and 600 or 20)
    for kind, count in pairs(kinds) do
      for _ = 1, count do all[#all + 1] = open(wheres[kind], #all + 1) end
    end
    for number = 1, reloads do
      local broken = number % 5 == 4
      t.write("h.lua", handler(good + 1) .. (broken and " end" or ""))
      local said, rounds = "", 0
      log:seek("end")
      d:signal("HUP")
      repeat
        for _, c in ipairs(all) do
          c:send()
          c:receive()
        end
        rounds = rounds + 1
        said = said .. log:read("a")
        if t.now() > deadline then error("no end after " .. number .. " reloads") end
      until rounds >= 5 and said:find(broken and "reload refused: generation" or "reloaded: generation %d+ serves")
      if not broken then good = good + 1 end
      if number == reloads // 2 then fds, rss = d:fds(), d:rss() end
    end
    log:close()
    local grown = ("%d and %d descriptors, %d KiB more"):format(fds, d:fds(), (d:rss() - rss) // 1024)
    assert.equal(fds, d:fds(), grown)
    if not t.sanitized then assert.is_true(d:rss() < rss * 1.1 + 4 * 1024 * 1024, grown) end
    local total = 0
    t.until_true(function()
      local waiting = false
      for _, c in ipairs(all) do
        if c.pending then c:send() end
        c.slow = false
        c:receive()
        waiting = waiting or c.pending or c.received < c.sent
      end
      return not waiting
    end)
    for _, c in ipairs(all) do
      total = total + c.sent
      if c.ssl then c.ssl:close() else c.client:close() end
    end
    t.until_true(function() return d:count_log("has counted %d+") == #all end, 10, "all unbinds")
    d:stop()
    local counted, bad = 0, nil
    for count, err in d:log():gmatch("has counted (%d+) (%S+)") do
      counted = counted + tonumber(count)
      if err ~= "nil" then bad = err end
    end
    assert.is_nil(bad)
    assert.equal(total, counted)
    assert.equal(counter(d, "handovers_failed"), counter(d, "handler_errors"))
    assert.equal(good, counter(d, "reloads"))
    assert.is_true(counter(d, "handovers") > good * #all // 2)
    assert.is_true(counter(d, "handovers_failed") > 0)
  end)
end)

describe("200 reloads with 50 connections that move", function()
  t.auto()

  it("keep memory and descriptors flat", function()
    local port = t.free_port()
    t.write("h.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:post_init() self.n = 0 self:add_timer(1000, print) self:subscribe("room") self:send_data("+") end
      function H:receive_data(data) self:send_data(data) end
      function H:receive_message() self.n = self.n + 1 end
      function H:handover() em.channel("room"):push(1) return { n = self.n, name = ("x"):rep(1000) } end
      function H:takeover(s) self.n = s.n self.name = s.name self:add_timer(1000, print) end
      return H]])
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "h" }'):format(port))
    local clients = {}
    for i = 1, 50 do clients[i] = t.connect(port):expect("+") end
    local function reload_times(n)
      for _ = 1, n do
        local mark = reload(d)
        d:wait_log("reloaded: generation %d+ serves", nil, mark)
      end
      for _, c in ipairs(clients) do c:send("x"):expect("x") end
    end
    reload_times(50)
    local fds, rss = d:fds(), d:rss()
    reload_times(150)
    assert.equal(fds, d:fds())
    local grown = (d:rss() - rss) / 1024
    if not t.sanitized then assert.is_true(grown < 1024, ("%d KiB more"):format(grown)) end
    for _, c in ipairs(clients) do c:close() end
    d:stop()
    assert.equal(200 * 50, counter(d, "handovers"))
    assert.equal(0, counter(d, "handovers_failed"))
  end)
end)
