-- The ends that a time brings: reload_timeout, `generations`, drain_timeout. Connections end one after the other in the last part of the
-- time, after what is queued for them was sent, and none later than its end.
local t = require "tests.support.harness"

-- Logs the time of each unbind, and answers "flood" with megabytes.
local handler = [[
local em = require "em"
local H = em.Connection:extend()
function H:post_init() self:send_data("hello\n") end
function H:receive_data(data)
  if data == "flood" then self:send_data(("x"):rep(4000000)) else self:send_data(data) end
end
function H:unbind(err, why) em.log.info("ends %s %s at %.4f", tostring(err), why, em.current_time()) end
return H]]

local function start(config)
  local port = t.free_port()
  t.write("h.lua", handler)
  return t.start(([[
    listen "tcp://127.0.0.1:%d" { handler = "h", linger_timeout = 0.3 }
    log = { level = "debug", repeats = 0 }
    %s]]):format(port, config)), port
end

local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  d:wait_log("reloaded: generation %d+ serves", nil, mark)
end

-- Connects that many.
local function crowd(port, count)
  local clients = {}
  for i = 1, count do clients[i] = t.connect(port):expect("hello\n") end
  return clients
end

-- Waits for the ends of all, each of which is answered at once. Returns when the first and the last came, and at how many moments.
local function see_ends(clients)
  local open, first, last, moments = {}, nil, nil, 0
  for _, c in ipairs(clients) do open[c.fd] = c end
  local deadline = t.now() + t.limit
  while next(open) do
    local fds = {}
    for fd in pairs(open) do fds[#fds + 1] = fd end
    local ready, now = t.sys.poll(fds, "r", 1), t.now()
    for _, fd in ipairs(ready) do
      local bytes = t.sys.recv(fd, 65536)
      assert(bytes == "" or bytes == nil, "more came than an end")
      open[fd]:close()
      open[fd] = nil
      first = first or now
    end
    if #ready > 0 and now - (last or 0) > 0.005 then last, moments = now, moments + 1 end
    assert(now < deadline, "not all of them have ended")
  end
  return first, last, moments
end

local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

describe("the end of a generation by time", function()
  t.auto()

  it("is spread over the last tenth of reload_timeout at most, and over by its end", function()
    local d, port = start("reload_timeout = 1.5")
    local clients = crowd(port, 300)
    for _, c in ipairs(clients) do c:send("x") end
    for i = 1, 300 do clients[i]:expect("x") end
    local began = t.now()
    reload(d)
    local reloaded = t.now()
    local first, last, moments = see_ends(clients)
    assert.is_true(first - began > 1.3 and last - reloaded < t.seconds(1.6), ("from %f to %f"):format(first - began, last - reloaded))
    d:wait_log("generation 1 has ended")
    assert.equal(300, d:count_log("ends nil reloaded"))
    if not t.sanitized then assert.is_true(moments >= 8 and last - first > 0.08, ("%d moments in %f s"):format(moments, last - first)) end
  end)

  it("lets a peer that reads have what is queued, and does not wait for one that does not", function()
    local d, port = start("reload_timeout = 1")
    local clients = crowd(port, 100) -- those that are there make some time for the end
    local reads, sleeps = t.connect(port):expect("hello\n"), t.connect(port, { buffer = 4096 }):expect("hello\n")
    sleeps:send("flood")
    reload(d)
    reads:send("flood")
    assert.equal(4000000, #reads:receive_all())
    d:wait_log("generation 1 has ended")
    assert.equal(102, d:count_log("ends nil reloaded"))
    for _, c in ipairs(clients) do c:expect_eof() end
    sleeps:close()
  end)

  it("comes soon, one after the other, when there are more than `generations` with connections", function()
    local d, port = start("generations = 2")
    local clients = crowd(port, 100)
    reload(d)
    reload(d) -- nothing is connected to the second: it does not count
    clients[1]:send("a"):expect("a")
    local second = t.connect(port):expect("hello\n")
    local mark = d:mark()
    reload(d)
    local first, last, moments = see_ends(clients)
    assert.is_true(moments >= 3 and last - first < t.seconds(0.3), ("%d moments in %f s"):format(moments, last - first))
    d:wait_log("generation 1 has ended", nil, mark)
    second:send("x"):expect("x")
  end)

  it("ends also what old code opens in its last moments", function()
    local port = t.free_port()
    t.write("h.lua", ([[
      local em = require "em"
      local H = em.Connection:extend()
      function H:unbind(_, why) em.log.info("ends %%s", why) if why == "reloaded" then em.connect("127.0.0.1", %d, H) end end
      return H]]):format(port))
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "h" }\nreload_timeout = 0.2\nlog = { level = "debug", repeats = 0 }')
      :format(port))
    t.connect(port)
    t.write("h.lua", "return {}")
    reload(d)
    d:wait_log("generation 1 has ended")
  end)
end)

describe("the end of a drain", function()
  t.auto()

  it("is spread too, and no end of those that go by themselves", function()
    local d, port = start("drain_timeout = 1.5")
    local clients = crowd(port, 200)
    d:signal("TERM")
    d:wait_log("draining: 200 connection")
    local began = t.now()
    clients[1]:send("x"):expect("x"):close()
    local first, last, moments = see_ends(table.move(clients, 2, 200, 1, {}))
    assert.equal(0, d:wait())
    assert.is_true(first - began > 1.3 and last - began < t.seconds(1.6), ("from %f to %f"):format(first - began, last - began))
    assert.equal(199, d:count_log("ends nil stopped"))
    if not t.sanitized then assert.is_true(moments >= 8, ("%d moments in %f s"):format(moments, last - first)) end
    d:check()
  end)

  it("is the end of a daemon whose last connections do not end", function()
    local d, port = start("drain_timeout = 0.3")
    local clients = crowd(port, 3)
    clients[2]:send("flood")
    d:signal("TERM")
    assert.equal(0, d:wait())
    assert.equal(3, d:count_log("ends nil stopped"))
    assert.equal(0, counter(d, "connections"))
    d:check()
  end)
end)
