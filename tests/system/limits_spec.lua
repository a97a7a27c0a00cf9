-- What many peers at once may cost: memory of those that never read, work at the limit of descriptors.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local KIB = 1024

describe("peers that never read", function()
  t.auto()

  -- Each queue is filled up to its cap, in pieces of that size, by an echo of what the peers send or by the handler alone.
  for _, piece in ipairs { 200, 16 * KIB } do
    it(("cost their cap and 64 KiB each at most, when sent pieces of %d bytes"):format(piece), function()
      if t.sanitized then pending("sanitizers have memory of their own") end
      local count, cap = t.full and 1000 or 50, 256 * KIB
      local s = serve(([[
        local H = {}
        local piece = ("x"):rep(%d)
        x.full = 0
        function H:post_init()
          self:set_sock_opt("socket", "sndbuf", 4096)
          local same = 0 -- beats since the system has taken anything
          self:add_periodic_timer(0.02, function(conn)
            same = same + 1
            while conn:get_outbound_data_size() + #piece <= %d do
              if conn:send_data(piece) == nil then say("cannot send", conn:get_outbound_data_size(), conn:error()) return end
              same = 0
            end
            if same == 5 then x.full = x.full + 1 end
          end)
        end
        return H]]):format(piece, cap),
        { listen = ("max_outbound = %d, high_water = %d"):format(cap, cap), limits = { nofile = count + 100 } })
      s:connect():close() -- what the first one costs is there
      local before, list = s.d:rss(), {}
      for i = 1, count do list[i] = s:connect { buffer = 4096 } end
      local ok = pcall(s.until_true, s, ("return x.full >= %d"):format(count), 60)
      local each = (s.d:rss() - before) / count
      assert.same({}, s:said())
      assert.is_true(ok, ("%s queues are full"):format(s:eval "return x.full"))
      assert.is_true(each <= cap + 64 * KIB, ("%.0f bytes each beyond the cap"):format(each - cap))
      assert.equal(count, s:eval "return em.connection_count() - 3") -- two listeners and this one
      for i = 1, count do list[i]:reset() end
      s:until_true "return em.connection_count() == 3"
      s.d:stop()
    end)
  end

  it("end at their cap, each by itself, and cost nothing more", function()
    local count = t.full and 200 or 10
    local s = serve([[
      local H = {}
      local piece = ("x"):rep(65536)
      x.ended = 0
      function H:post_init() while self:send_data(piece) ~= nil do end end
      function H:unbind(err, why)
        if err == "ELIMIT" and why == "outbound limit" then x.ended = x.ended + 1 end
      end
      return H]], 'max_outbound = "1 MiB", high_water = "1 MiB"')
    local before = s.d:rss()
    for _ = 1, count do s:connect { buffer = 4096 } end
    s:until_true(("return x.ended == %d"):format(count))
    assert.is_true(t.sanitized or s.d:rss() - before < 16 * 1024 * KIB)
    s.d:stop()
  end)
end)

describe("at the limit of descriptors", function()
  t.auto()

  it("the daemon works less than a twentieth of the time, and logs one line a second", function()
    local s = serve([[
      local H = {}
      function H:receive_data(data) self:send_data(data) end
      return H]], { limits = { nofile = 60 } })
    local list = {}
    for i = 1, 100 do list[i] = s:connect() end
    s.d:wait_log("accepting pauses: Too many open files")
    local seconds = t.full and 10 or 2.5
    local cpu, from, lines = s.d:cpu(), t.now(), s.d:count_log("accepting pauses")
    t.sys.sleep(seconds)
    local took = t.now() - from
    local share = (s.d:cpu() - cpu) / took
    assert.is_true(share < 0.05, ("%.1f %% of a CPU"):format(share * 100))
    local told = s.d:count_log("accepting pauses") - lines
    assert.is_true(told >= took - 1.5 and told <= took + 1, ("%d lines in %.1f s"):format(told, took))
    list[1]:send("x"):expect("x") -- who is in is served,
    for i = 1, 60 do list[i]:close() end
    for i = 61, 100 do list[i]:send("x"):expect("x") end -- and who waits as soon as there is room
    s.d:stop()
  end)
end)
