-- The VM and the rest of em: what belongs to no connection and no timer, what scripts could break, and that nothing is left over.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

describe("em", function()
  t.auto()

  it("makes random UUIDs", function()
    local s = serve "return {}"
    local seen = {}
    for _ = 1, 5 do
      for uuid in s:eval("local l = {} for i = 1, 100 do l[i] = em.uuid() end return table.concat(l, ' ')"):gmatch("%S+") do
        assert.matches("^%x%x%x%x%x%x%x%x%-%x%x%x%x%-4%x%x%x%-[89ab]%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$", uuid)
        assert.is_nil(seen[uuid])
        seen[uuid] = true
      end
    end
  end)

  it("has EventMachine's knobs, which remember and limit nothing", function()
    local s = serve "return {}"
    assert.equal(100000, s:eval "return em.get_max_timers()")
    assert.equal(150000, s:eval "return em.set_max_timers(150000)")
    assert.equal(150000, s:eval "return em.get_max_timers()")
    assert.equal(100, s:eval "em.set_max_timers(100) for _ = 1, 200 do em.add_timer(60, print) end return em.get_max_timers()")
    assert.equal(90, s:eval "return em.set_quantum()")
    assert.equal(10, s:eval "return em.set_quantum(10)")
    assert.equal(10, s:eval "return em.set_quantum()")
    assert.equal(2, s:eval "return em.heartbeat_interval()")
    assert.equal(5, s:eval "return em.heartbeat_interval(5)")
    assert.is_true(s:eval "return em.epoll()")
    assert.is_false(s:eval "return em.epoll(false)")
    assert.is_false(s:eval "return em.epoll()")
    assert.is_false(s:eval "return em.kqueue()")
    assert.equal("libevent", s:eval "return em.library_type()")
    assert.equal(t.reactord({ "--version" }).out:match("%d[%d.]*"), s:eval "return em.VERSION")
    assert.same({ 1, 1 }, { s:eval "return em.process()" })
  end)

  it("is one module, and nothing of it is global", function()
    local s = serve "return {}"
    assert.is_true(s:eval "return require('em') == em and em == package.loaded.em")
    assert.is_true(s:eval "return rawget(_G, 'em') == nil")
    local names = s:eval [[
      local l = {}
      for name in pairs(_G) do
        if not (" _G _VERSION assert collectgarbage coroutine debug dofile error getmetatable io ipairs load loadfile math next os package "
          .. "pairs pcall print rawequal rawget rawlen rawset require select setmetatable string table tonumber tostring type utf8 "
          .. "warn xpcall ")
          :find(" " .. name .. " ", 1, true) then
          table.insert(l, name)
        end
      end
      return table.concat(l, " ")]]
    assert.equal("", names)
  end)

  it("in a new generation has forgotten what was set", function()
    local s = serve [[
      local function boom() error("boom") end
      function x.boom() em.next_tick(boom) end
      return {}]]
    s:eval "em.error_handler(function() say('handled') end) em.set_quantum(11) GLOBAL = 1"
    s:eval "x.boom()"
    s:waits_for("handled")
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s.control:close()
    s.control = nil
    assert.equal(90, s:eval "return em.set_quantum()")
    assert.is_nil((s:eval "return GLOBAL"))
    s:eval "x.boom()"
    t.until_true(function() return s.d:count_log("boom %[") == 2 end)
    assert.same({ "handled" }, s:said())
  end)
end)

describe("a connection's table", function()
  t.auto()

  it("is the script's: its fields stay, its methods are looked up anew each time", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_data(data)
        self:send_data("first ", data)
        self.receive_data = function(me, more)
          me:send_data("own ", more)
          me.receive_data = nil
          function H:receive_data(last) self:send_data("class ", last) end
        end
      end
      return H]]
    local c = s:connect()
    c:send("a"):expect("first a")
    c:send("b"):expect("own b")
    c:send("c"):expect("class c")
  end)

  it("emptied, copied, without a metatable, or with a hostile one does no harm", function()
    local s = serve [[
      local H = em.Connection:extend()
      local acts = {}
      function acts.empty(self) for k in next, self do rawset(self, k, nil) end x.gone = self end
      function acts.bare(self) setmetatable(self, nil) end
      function acts.copy(self)
        local copy = setmetatable({}, getmetatable(self))
        for k, v in next, self do rawset(copy, k, v) end
        x.copy = copy
        copy:send_data("by a copy")
      end
      function acts.index(self) setmetatable(self, { __index = function(_, k) error("no " .. k) end }) end
      function acts.string(self) self.unbind = 42 self.receive_data = "x" end
      function acts.mixed(self)
        for k, v in next, self do if type(k) == "userdata" then self[k] = x.copy or io.stdout end end
      end
      function H:receive_data(word)
        if acts[word] then say(word) acts[word](self) end
        for _ = 1, 50 do collectgarbage("step") end
      end
      return H]]
    for _ = 1, 2 do
      for _, word in ipairs { "copy", "empty", "bare", "index", "string", "mixed" } do
        local c = s:connect()
        local before = #s:said()
        c:send(word)
        t.until_true(function() return #s:said() > before end)
        if word == "copy" then c:expect("by a copy") end
        c:send("more")
        s:eval "for _ = 1, 300 do collectgarbage('step') end"
        if word == "empty" then
          s:until_true "return x.gone"
          local ok, why = pcall(s.eval, s, "em.Connection.send_data(x.gone, 'x')")
          assert.is_false(ok)
          assert.matches("connection expected", why)
        end
        c:close()
        s:until_true "return em.connection_count() == 3"
        if word == "copy" then
          assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.copy:send_data('late')" })
        end
        s:eval "for _ = 1, 300 do collectgarbage('step') end"
      end
    end
    assert.matches("h%.lua:11: no receive_data", s.d:log())
    assert.matches("attempt to call a string value", s.d:log())
  end)

  it("has a signature that is never given twice", function()
    local s = serve "return { post_init = function(self) self:send_data(self.signature .. '\\n') end }"
    local seen = {}
    for _ = 1, 50 do
      local c = s:connect()
      local n = tonumber(c:receive_line())
      assert.is_nil(seen[n])
      seen[n] = true
      c:close()
    end
  end)
end)

describe("what holds em together", function()
  t.auto()

  it("may be called in any wrong way", function()
    local s = serve "return {}"
    for _, text in ipairs {
      "require('em.core').wait_stop()", "require('em.core').protect()", "require('em.core').protect(nil, nil, nil)",
      "require('em.core').protect(1, 'x', 2)", "require('em.core').protect({}, 'x', error, 'boom')", "require('em.core').listening()",
      "require('em.core').listening(io.stdout)", "require('em.core').set_emit()", "require('em.core').set_run(true)",
      "require('em.core').waitable()", "em.Connection.on(nil, 'x', print)", "em.Connection.on({}, 'x', print)",
      "em.Connection.extend()", "em.Connection:extend(1)", "em.EventEmitter.emit(nil, 'x')",
    } do
      local mark = s.d:mark()
      local ok = pcall(s.eval, s, "%s return 1", text)
      if not ok then s:eval "return 1" end
      assert.is_false(s.d:ended(), text)
      assert.is_nil(s.d:log():find("internal error", mark, true), text)
    end
    s.d:stop()
  end)

  it("may be replaced by an unsafe script without harm to the daemon", function()
    local s = serve([[
      local core = require "em.core"
      local H = em.Connection:extend()
      function H:receive_data(word)
        if word == "emit" then
          core.set_emit(function() error("mine") end)
          self:on("data", print)
        end
        if word == "tables" then
          for k in pairs(em) do em[k] = nil end
          for k in pairs(core) do core[k] = nil end
          for k in pairs(package.loaded) do package.loaded[k] = nil end
          for k in pairs(string) do string[k] = nil end
          package.searchers, package.path, package.searchpath = nil, 42, 42
          self:send_data("done")
        end
      end
      return H]], { config = "unsafe = true" })
    s:connect():send("emit"):receive_end()
    s:connect():send("tables"):expect("done")
    s:connect():close()
    s.d:stop()
  end)
end)

describe("references", function()
  t.auto()

  it("are given back however a connection, a server, a timer or a listener ends", function()
    local s = serve [[
      local H = em.Connection:extend()
      function x.round()
        local server = em.start_server("127.0.0.1", 0, H, "a", {})
        server:on("accept", function() end)
        local _, port = server:address()
        for i = 1, 20 do
          local c = em.connect("127.0.0.1", port, H, i, {})
          c:on("close", function() end)
          if i % 4 == 1 then c:close_connection() end
          if i % 4 == 2 then c:add_timer(0, function() error("boom") end) end
          if i % 4 == 3 then c:add_periodic_timer(60, function() end) end
          em.connect("127.0.0.1", 1, function() end)
          pcall(em.connect, "127.0.0.1", port, 42)
          pcall(em.start_server, "127.0.0.1", 0, 42, "x")
          em.start_server("127.0.0.1", port, H, "in use", {})
          em.add_timer(0, function() end):cancel()
          pcall(em.add_timer, 0, 42)
        end
        em.add_timer(0.02, function() server:stop() x.left = true end)
        em.add_timer(0.04, function() for _, c in ipairs(x.open) do c:close_connection() end x.open = {} end)
      end
      x.open = {}
      function H:connection_completed() table.insert(x.open, self) end
      return H]]
    for _ = 1, 5 do
      s:eval "x.left = nil x.round()"
      s:until_true "return x.left and em.connection_count() == 3 and em.get_timer_count() == 0"
    end
    s:eval "x.round()" -- and in the middle of it
    s.d:signal("INT")
    s.d:wait()
    s.d:check()
  end)

  it("are given back when memory runs out in the midst of anything", function()
    local s = serve([[
      local H = em.Connection:extend()
      function H:receive_data()
        local hoard = {}
        pcall(function() while true do hoard[#hoard + 1] = ("x"):rep(10000) .. #hoard end end)
        pcall(function() while true do hoard[#hoard + 1] = {} end end)
        for _ = 1, 30 do
          pcall(em.connect, "127.0.0.1", x.port, H, 1, {}, {})
          pcall(em.start_server, "127.0.0.1", 0, H, 1, {}, {})
          pcall(em.add_timer, 0, function() end)
          pcall(self.add_timer, self, 0, function() end)
          pcall(self.on, self, "data", function() end)
          pcall(em.next_tick, function() end)
          pcall(em.error_handler, function() end)
          pcall(em.add_shutdown_hook, function() end)
          hoard[#hoard] = nil
        end
        local s = ("x"):rep(1 << 30)
      end
      return H]], { config = "memory_limit = '4 MiB'\ncallback_time = 30" })
    for _ = 1, 3 do
      local c = s:connect()
      c:send("x")
      c:receive_end()
    end
    s.d:signal("INT")
    s.d:wait()
    s.d:check()
  end)
end)
