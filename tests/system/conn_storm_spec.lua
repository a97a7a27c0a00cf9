-- Everything at once: connections in both directions whose callbacks do whatever a script may do, with clients that do whatever a peer
-- may do. Whatever happens, each object gets one unbind, last, and nothing is left.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local handler = [[
local H = em.Connection:extend()
local random = math.random
x.H, x.all, x.live, x.unbound, x.bad = H, {}, 0, 0, 0

-- Each is done now and then, in any callback; the commoner ones stand here twice.
local acts = {
  function(c) c:send_data(("x"):rep(random(200000))) end,
  function(c) c:send_data("y") end, function(c) c:send_data("y") end,
  function(c) c:close_connection() end,
  function(c) c:close_connection_after_writing() end,
  function(c) c:close_write() end,
  function(c) c:pause() end, function(c) c:resume() end, function(c) c:resume() end, function(c) c:resume() end,
  function(c) c:set_comm_inactivity_timeout(random() / 10) end,
  function(c) c:set_watermarks(random(100), 100 + random(100000)) end,
  function(c) c:error() c:get_idle_time() c:get_peername() c:get_outbound_data_size() end,
  function(c) c:add_timer(random() / 50, function(self) self:send_data("tick") end) end,
  function(c) c:on("data", function() if random() < 0.1 then c:close_connection() end end) end,
  function(c) local other = next(x.all) if other then other:close_connection(random() < 0.5) end end,
  function(c) if x.live < 200 then em.connect("127.0.0.1", x.port, H) end end,
  function(c) em.next_tick(function() c:send_data("next") end) end,
  function() error("on purpose") end,
}
local function act(self)
  if self.dead then x.bad = x.bad + 1 end
  if random() < 0.7 then acts[random(#acts)](self) end
end
local function begin(self)
  x.live, x.all[self], self.dead = x.live + 1, true, nil
end
function H:initialize() begin(self) act(self) end
H.post_init, H.receive_data, H.drained = act, act, act
function H:connection_completed() self.outgoing = true act(self) end
function H:receive_eof() act(self) self:close_connection_after_writing() end
function H:unbind()
  if self.dead then x.bad = x.bad + 1 end
  x.live, x.unbound, x.all[self], self.dead = x.live - 1, x.unbound + 1, nil, true
  if self.outgoing and random() < 0.1 and x.live < 200 then
    self:reconnect("127.0.0.1", x.port)
    begin(self)
  end
end
return H]]

describe("a storm", function()
  t.auto()

  it("of everything leaves nothing behind, and one unbind for each", function()
    local s = serve(handler, {
      listen = "linger_timeout = 0.2, idle_timeout = 1, max_outbound = '1 MiB', high_water = 100000, low_water = 1000",
      config = 'max_queued = "8 MiB"',
    })
    local clients, stop = {}, t.now() + (t.full and 60 or 2)
    local random = math.random
    while t.now() < stop do
      local i, act = random(30), random(12)
      local c = clients[i]
      if not c then
        clients[i] = s:connect(random() < 0.5 and { buffer = 4096 } or nil)
      elseif act <= 5 then
        c:send_some(("z"):rep(random(50000)))
      elseif act <= 8 then
        t.sys.recv(c.fd, 65536)
      elseif act <= 10 then
        pcall(c.shutdown_write, c)
      else
        c[act == 11 and "close" or "reset"](c)
        clients[i] = nil
      end
    end
    assert.is_true(s:eval "return x.unbound" > 100)
    s:eval "x.port = 1" -- no more of them
    for _, c in pairs(clients) do c:close() end
    s:until_true("for c in pairs(x.all) do c:close_connection() end return x.live == 0")
    s:until_true("return em.connection_count() == 3")
    assert.equal(0, s:eval "return x.bad")
    s.d:stop()
  end)
end)
