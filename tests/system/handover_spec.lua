-- Hand-over at a reload: connections whose handler has handover and takeover go on with the new code, with nothing lost; whatever cannot
-- move, or fails to, stays where it is and works on, and the log says why.
local t = require "tests.support.harness"
local tls = require "tests.support.tls"
local serve = require "tests.support.serve"

-- A handler whose state is the number of bytes that it has heard. It says its word with each answer, and logs how it ends. more: lines
-- behind it, which may change it.
local function counter_of(word, more)
  return ([[
local em = require "em"
local H = em.Connection:extend()
local WORD = "%s"
function H:initialize() em.log.info("%%s initialize", WORD) end
function H:post_init() em.log.info("%%s post_init", WORD) self.bytes = 0 self:send_data("hello\n") end
function H:receive_data(data) self.bytes = self.bytes + #data self:send_data(WORD, " ", self.bytes, "\n") end
function H:unbind(err, why) em.log.info("%%s ends: %%s %%s", WORD, tostring(err), why) end
function H:handover() return { bytes = self.bytes } end
function H:takeover(state) self.bytes = state.bytes end
%s
return H
]]):format(word, more or "")
end

-- Reloads; returns what was logged meanwhile.
local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  d:wait_log("reloaded: generation %d+ serves", nil, mark)
  return d:log():sub(mark)
end

-- Writes the handler h anew and reloads.
local function reload_with(d, text)
  t.write("h.lua", text)
  return reload(d)
end

local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

-- Writes the handler h, and starts a daemon that serves it on a port and on the Unix socket x.sock.
local function start(text, options, config)
  local port = t.free_port()
  t.write("h.lua", text)
  local d = t.start(([[listen "tcp://127.0.0.1:%d" { handler = "h" %s }
    listen "unix://x.sock" { handler = "h" }
    %s
    log = { level = "debug", repeats = 0 }
    %s]]):format(port, options and ", " .. options or "",
    (config or ""):find("callback_time") and "" or "callback_time = " .. t.seconds(0.1), config or ""))
  return d, port
end

describe("a hand-over", function()
  t.auto()

  it("takes connections to the new code with their state, without unbind, initialize and post_init", function()
    local d, port = start(counter_of "one")
    local tcp, unix = t.connect(port):expect("hello\n"), t.connect(t.path("x.sock")):expect("hello\n")
    tcp:send("abc"):expect("one 3\n")
    assert.matches("generation 2 has taken over 2 connection%(s%), 0 stay", reload_with(d, counter_of "two"))
    tcp:send("de"):expect("two 5\n")
    unix:send("x"):expect("two 1\n")
    d:wait_log("generation 1 has ended")
    reload_with(d, counter_of "three")
    tcp:send("f"):expect("three 6\n")
    tcp:close()
    d:wait_log("three ends: nil eof")
    assert.is_nil(d:log():find("two initialize", 1, true))
    assert.is_nil(d:log():find("two post_init", 1, true))
    unix:close()
    d:stop()
    assert.is_nil(d:log():find("one ends", 1, true))
    assert.is_nil(d:log():find("two ends", 1, true))
    assert.equal(2, d:count_log("three ends"))
    assert.equal(4, counter(d, "handovers"))
    assert.equal(0, counter(d, "handovers_failed"))
  end)

  it("copies any plain data, keeps the signature and the address, and calls takeover with working methods", function()
    local function handler(word)
      return counter_of(word, [[
        function H:handover()
          return {
            nested = { { 1, 2.5, "\0\xff", true }, deep = { x = "y" } }, [3] = false, [1.5] = math.mininteger, signature = self.signature,
          }
        end
        function H:takeover(s)
          local n = s.nested
          local same = n[1][1] == 1 and math.type(n[1][1]) == "integer" and n[1][2] == 2.5 and n[1][3] == "\0\xff" and n[1][4] == true
            and n.deep.x == "y" and s[3] == false and s[1.5] == math.mininteger and s.signature == self.signature
          local host, port = self:get_peername()
          self.bytes = 0
          self:send_data(tostring(same), " ", host, " ", port, " ", tostring(self:paused()), "\n")
        end]])
    end
    local d, port = start(handler "one")
    local c = t.connect(port):expect("hello\n")
    reload_with(d, handler "two")
    local _, own_port = c.sock:getsockname()
    c:expect(("true 127.0.0.1 %d false\n"):format(own_port))
    reload_with(d, counter_of("three", "function H:handover() end function H:takeover() end"))
    reload_with(d, counter_of("four", "function H:takeover(...) self.bytes = select('#', ...) == 1 and (...) == nil and 7 end"))
    c:send("x"):expect("four 8\n")
  end)

  it("leaves what the old code kept of them behind: handles that are closed, timers that are cancelled", function()
    local function handler(word)
      return ([[
        local H = em.Connection:extend()
        x.all = x.all or {}
        function H:post_init()
          x.all[#x.all + 1] = self
          self.timer = self:add_timer(1000, function() end)
          self:add_periodic_timer(0.005, function(c) c:send_data("%s") end)
        end
        function H:unbind() say("unbound") end
        function H:handover() return 1 end
        function H:takeover() x.all[#x.all + 1] = self self:add_periodic_timer(0.005, function(c) c:send_data("%s") end) end
        return H]]):format(word, word)
    end
    local s = serve(handler "A")
    local c = s:connect():expect("AA")
    assert.equal(1, s:eval "return #x.all")
    t.write("h.lua", 'local em = require "em"; local x = require "shared"; local say = x.say; ' .. handler "B")
    reload(s.d)
    repeat until c:receive(1) == "B"
    c:expect("BBB")
    -- eval's connection has stayed on the old code
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1]:send_data('x')" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1]:close_connection()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1]:reconnect('127.0.0.1', 1)" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1]:subscribe('x')" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1].timer:restart()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.all[1]:add_timer(1, print)" })
    assert.equal("127.0.0.1", s:eval "return (x.all[1]:get_peername())")
    assert.equal(0, s:eval "return em.get_timer_count()")
    c:close()
    s:waits_for "unbound"
    assert.equal(1, #s:said())
  end)

  it("takes unread input, paused or not, and does not resume it", function()
    local d, port = start(counter_of("one", "function H:post_init() self.bytes = 0 self:pause() em.log.info('pauses') end"))
    local c = t.connect(port):send("abc")
    d:wait_log("pauses")
    reload_with(d, counter_of("two", [[
      function H:takeover(state)
        self.bytes = state.bytes
        assert(self:paused())
        self:add_timer(0.05, function() em.log.info("resumes") self:resume() end)
      end]]))
    c:send("de"):expect_silence(0.02):expect("two 5\n")
    d:wait_log("resumes")
  end)

  it("takes megabytes of unsent output, watermarks, and the `drained` that is owed", function()
    local size = 8 * 1024 * 1024
    local text = counter_of("one", ([[
      function H:receive_data() self:set_watermarks(1000, 2000) assert(self:send_data(("abcdefgh"):rep(%d)) == false) end
      function H:drained() self:send_data("drained ", WORD, "\n") end
      function H:takeover() em.log.info("takes over with %%d bytes to send", self:get_outbound_data_size()) end]]):format(size // 8))
    local d, port = start(text, nil, "callback_time = 5")
    local c = t.connect(port, { buffer = 4096 }):expect("hello\n")
    c:send("go")
    local got = c:receive(100000)
    local said = reload_with(d, (text:gsub('"one"', '"two"')))
    assert.is_true(tonumber(said:match("takes over with (%d+) bytes")) > 1024 * 1024)
    got = got .. c:receive(size - #got)
    assert.is_true(got == ("abcdefgh"):rep(size // 8))
    c:expect("drained two\n")
  end)

  it("keeps an idle deadline where it was, and none of the listener's new options apply", function()
    local d, port = start(counter_of "one", "idle_timeout = 0.3")
    local began = t.now()
    local c = t.connect(port):expect("hello\n")
    t.write("reactord.conf", ('listen "tcp://127.0.0.1:%d" { handler = "h", idle_timeout = 100 }\nhandlers = { "." }'):format(port))
    t.until_true(function() return t.now() - began > 0.15 end)
    reload_with(d, counter_of "two")
    c:expect_eof()
    local took = t.now() - began
    assert.is_true(took >= 0.29 and took < t.seconds(0.45), took)
    d:wait_log("two ends: ETIMEDOUT idle timeout")
  end)

  it("takes half-closed ones, whose end comes to the new code", function()
    local more = "function H:receive_eof() self.bytes = self.bytes + 1000 end"
    local d, port = start(counter_of("one", more))
    local a, b = t.connect(port):expect("hello\n"), t.connect(port):expect("hello\n")
    a:send("x"):expect("one 1\n"):shutdown_write()
    reload_with(d, counter_of("two", more .. [[
      function H:takeover(state) self.bytes = state.bytes self:add_timer(0.01, function() self:send_data(self.bytes, "\n") end) end]]))
    a:expect("1001\n")
    b:shutdown_write():expect("0\n")
    reload_with(d, counter_of("three", [[
      function H:takeover(state) self:send_data("bye ", state.bytes) self:close_connection_after_writing() end]]))
    a:expect("bye 1001"):expect_eof()
    b:expect("bye 1000"):expect_eof()
    d:wait_log("three ends: nil closed.*three ends: nil closed")
  end)

  it("happens to a connection that closes in takeover in the new code, in handover in the old one", function()
    local d, port = start(counter_of "one")
    local c = t.connect(port):expect("hello\n")
    reload_with(d, counter_of("two", "function H:takeover() self:close_connection() end"))
    c:expect_eof()
    d:wait_log("two ends: nil closed")
    c = t.connect(port):expect("hello\n")
    reload_with(d, counter_of("three", "function H:handover() self:close_connection() return {} end"))
    c:send("x"):expect("three 1\n")
    assert.matches("stays on generation 3: it was closed in handover", reload_with(d, counter_of "four"))
    c:expect_eof()
    d:wait_log("three ends: nil closed")
    d:stop()
    assert.equal(2, d:count_log("ends:"))
  end)

  it("is none where the reload is refused", function()
    local d, port = start(counter_of "one")
    local c = t.connect(port):expect("hello\n")
    t.write("h.lua", counter_of "two" .. "x")
    d:signal("HUP")
    d:wait_log("reload refused: generation 1 serves on")
    c:send("a"):expect("one 1\n")
    d:stop()
    assert.equal(0, counter(d, "handovers"))
  end)

  it("brings those of several generations to the newest", function()
    local d, port = start(counter_of("1", "H.handover = nil"))
    local clients = { t.connect(port):expect("hello\n") }
    for i = 2, 3 do
      reload_with(d, counter_of(i, "function H:takeover() error('not yet') end"))
      table.insert(clients, t.connect(port):expect("hello\n"))
    end
    clients[1]:send("a"):expect("1 1\n")
    clients[2]:send("a"):expect("2 1\n")
    clients[3]:send("a"):expect("3 1\n")
    assert.matches("generation 4 has taken over 2 connection%(s%)", reload_with(d, counter_of "4"))
    clients[1]:send("b"):expect("1 2\n")
    clients[2]:send("b"):expect("4 2\n")
    clients[3]:send("b"):expect("4 2\n")
  end)
end)

describe("hand-overs that take too long", function()
  t.auto()

  it("are tried once for a handler, not for each of its connections", function()
    local d, port = start(counter_of("one", "function H:handover() while true do end end"))
    local clients = {}
    for i = 1, 30 do clients[i] = t.connect(port):expect("hello\n") end
    local began = t.now()
    local said = reload_with(d, counter_of "two")
    assert.is_true(t.now() - began < t.seconds(1))
    local _, count = said:gsub("stays on generation 1: the hand%-over of another connection of handler 'h' was stopped", "")
    assert.equal(29, count)
    for i = 1, 30 do clients[i]:send("x"):expect("one 1\n") end
  end)
end)

describe("TLS connections", function()
  t.auto()

  local function start_tls(text)
    local port = t.free_port()
    t.write("h.lua", text)
    return t.start(('listen "tls://127.0.0.1:%d" { handler = "h", tls = { self_signed = true } }'):format(port)), port
  end

  it("move in mid-stream, with data in flight both ways", function()
    local function echo(word)
      return ([[
        local em = require "em"
        local H = em.Connection:extend()
        function H:receive_data(data) self:send_data(data) end
        function H:handover() return 0 end
        function H:takeover() em.log.info("%s takes over, %%d bytes to send", self:get_outbound_data_size()) end
        function H:unbind(err, why) em.log.info("%s ends: %%s %%s", tostring(err), why) end
        return H]]):format(word, word)
    end
    local d, port = start_tls(echo "1")
    local c = tls.connect(port)
    local sent, heard = {}, 0
    local total = 0
    for round = 1, 6 do
      local piece = {}
      for i = 1, 40000 do piece[i] = ("%d.%d "):format(round, i) end
      piece = table.concat(piece):sub(1, 150000)
      sent[#sent + 1] = piece
      c:send(piece)
      total = total + #piece
      t.write("h.lua", echo(round + 1))
      d:signal("HUP")
      if round % 2 == 0 then
        local expected = table.concat(sent):sub(heard + 1, heard + 100000)
        assert.is_true(c:receive(#expected) == expected)
        heard = heard + #expected
      end
      d:wait_log(("reloaded: generation %d serves"):format(round + 1))
    end
    local rest = table.concat(sent):sub(heard + 1)
    assert.is_true(c:receive(#rest) == rest)
    c:close()
    d:wait_log("7 ends: nil eof")
    d:stop()
    assert.equal(6, counter(d, "handovers"))
    assert.equal(0, counter(d, "tls_failures"))
  end)

  it("move while they are paused with decrypted bytes waiting, and while their handshake is under way", function()
    local text = counter_of("one", [[
      function H:post_init() self.bytes = 0 em.log.info("begun") end
      function H:receive_data(data) self.bytes = self.bytes + #data self:pause() em.log.info("paused with %d", self.bytes) end
      function H:ssl_handshake_completed() em.log.info("%s up", WORD) end]])
    local d, port = start_tls(text)
    local c, early = tls.connect(port), t.connect(port)
    t.until_true(function() return d:count_log("begun") == 2 end)
    d:wait_log("one up")
    c:send(("x"):rep(100)):send(("y"):rep(50000))
    d:wait_log("paused with %d+")
    local had = tonumber(d:log():match("paused with (%d+)"))
    local said = reload_with(d, counter_of("two", [[
      function H:ssl_handshake_completed() em.log.info("%s up", WORD) end
      function H:takeover(state) self.bytes = state.bytes self:resume() end]]))
    assert.matches("taken over 2 connection", said)
    if had < 50100 then
      local last
      repeat
        last = c.sock:receive("*l")
      until not last or last == "two 50100"
      assert.equal("two 50100", last)
    end
    early = assert(tls.wrap(early))
    d:wait_log("two up")
    early:send("abc"):expect("two 3\n")
  end)
end)

describe("a connection stays where it is, works on, and the log says why, when", function()
  t.auto()

  -- The lines in the handlers of the old and the new code, what the log says; errors: how many are counted, with the second try.
  local cases = {
    ["handover raises"] = {
      old = "function H:handover() error('no way') end",
      log = "handover failed: [^\n]*h.lua:%d+: no way", errors = 2,
    },
    ["handover raises a table"] = {
      old = "function H:handover() error({}) end",
      log = "handover failed: %(error object is a table value%)", errors = 2,
    },
    ["the look-up of handover raises"] = {
      old = [[
        H.handover = nil
        setmetatable(H, { __index = function(_, name) if name == "handover" then error("gone") end return em.Connection[name] end })]],
      log = "handover failed: [^\n]*gone", errors = 2,
    },
    ["the state has a function"] = {
      old = "function H:handover() return { a = { print } } end",
      log = "the state%.a%[1%] is a function, which is not plain data",
    },
    ["the state is the connection"] = {
      old = "function H:handover() return self end",
      log = "the state has a key that is neither string, number nor boolean",
    },
    ["the state has a userdata"] = {
      old = "function H:handover() return { timer = em.add_timer(1, print) } end",
      log = "the state.timer is a userdata",
    },
    ["the state contains itself"] = {
      old = "function H:handover() local s = {} s.s = { s } return s end",
      log = "the state%.s%[1%] contains itself",
    },
    ["the state is deeper than 32 tables"] = {
      old = "function H:handover() local s = {} for _ = 1, 32 do s = { s } end return s end",
      log = "the state[%[1%]]+ is nested too deeply %(32 levels of tables at most%)",
    },
    ["the state is larger than 1 MiB"] = {
      old = "function H:handover() return ('x'):rep(1024 * 1024) end",
      log = "the state is too much: encoded it takes more than 1 MiB",
    },
    ["handover takes too long"] = {
      old = "function H:handover() while true do end end",
      log = "handover failed: callback stopped: it ran longer than", errors = 2,
    },
    ["handover catches all errors and takes too long"] = {
      old = "function H:handover() while true do pcall(function() while true do end end) end end",
      log = "handover failed: callback stopped", errors = 2,
    },
    ["handover yields"] = {
      old = "function H:handover() coroutine.yield() end",
      log = "handover failed: attempt to yield from outside a coroutine", errors = 2,
    },
    ["takeover raises"] = {
      new = "function H:takeover() error('not me') end",
      log = "takeover failed: [^\n]*h.lua:%d+: not me", errors = 1,
    },
    ["takeover takes too long"] = {
      new = "function H:takeover() while true do end end",
      log = "takeover failed: callback stopped", errors = 1,
    },
    ["takeover raises after it has changed the connection"] = {
      new = [[
        function H:takeover()
          self:pause()
          self:set_watermarks(1, 2)
          self:set_comm_inactivity_timeout(0.01)
          self:add_timer(0, function() em.log.info("timer of the new") end)
          error("not me")
        end]],
      log = "takeover failed: [^\n]*not me", errors = 1,
    },
    ["an error handler hears of takeover's"] = {
      new = [[
        em.error_handler(function(message, c) em.log.info("heard of %s", c.signature) end)
        function H:takeover() error("not me") end]],
      log = "heard of 1[^\n]*\n[^\n]*stays on generation 1: takeover failed", errors = 1, whole = true,
    },
    ["the new code has no takeover"] = {
      new = "H.takeover = nil",
      log = "the new code of handler 'h' has no takeover",
    },
    ["the new code's memory is full"] = {
      config = 'memory_limit = "4 MiB"',
      new = "function H:takeover() local all while true do all = { all } end end",
      log = "takeover failed: .*not enough memory", errors = 1,
    },
  }

  for title, case in pairs(cases) do
    it(title, function()
      local d, port = start(counter_of("one", case.old), nil, case.config)
      local c = t.connect(port):expect("hello\n")
      c:send("abc"):expect("one 3\n")
      local said = reload_with(d, counter_of("two", case.new))
      assert.matches(case.whole and case.log or "stays on generation 1: " .. case.log, said)
      local who = "listener=tcp://127.0.0.1:" .. port .. " peer=[^\n]* handler=h [^\n]*connection=1"
      assert.matches("stays on generation 1: [^\n]*%[" .. who .. "%]", said)
      c:send("de"):expect("one 5\n"):expect_silence(0.02)
      t.connect(port):expect("hello\n"):send("x"):expect("two 1\n")
      assert.is_nil(d:log():find("timer of the new", 1, true))
      reload_with(d, counter_of "three") -- it tries again; what was wrong with the new code is mended
      c:send("f"):expect(case.old and "one 6\n" or "three 6\n"):close()
      d:wait_log("ends: nil eof")
      d:stop()
      assert.equal(case.errors or 0, counter(d, "handler_errors"))
    end)
  end
end)
