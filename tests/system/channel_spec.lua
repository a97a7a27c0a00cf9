-- Named channels: plain data to everyone who has subscribed, in order, over all generations.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- Says what it hears as a Lua literal, tables by their sorted fields.
local listener = [[
local H = em.Connection:extend()
function x.show(v)
  if type(v) ~= "table" then return (("%q"):format(v):gsub("\\\n", "\\n")) end
  local fields = {}
  for k, w in pairs(v) do fields[#fields + 1] = "[" .. x.show(k) .. "]=" .. x.show(w) end
  table.sort(fields)
  return "{" .. table.concat(fields, ",") .. "}"
end
function H:post_init() self:subscribe("news") end
function H:receive_message(name, data) self:send_data(name, " ", x.show(data), "\n") end
]]

-- A value, made in the daemon by that Lua, pushed there and shown by a subscriber, beside the same value shown without the journey.
local function journey(s, c, text)
  local shown = s:eval("local v = %s; assert(em.channel('news'):push(v)) return x.show(v)", text)
  assert.equal("news " .. shown, c:receive_line())
end

describe("a named channel", function()
  t.auto()

  it("calls functions and connections in the order of pushing, after the callback that pushed", function()
    local s = serve(listener .. "return H")
    local a, b = s:connect(), s:connect()
    s:until_true "return em.connection_count() >= 4"
    s:eval [[
      local news = em.channel("news")
      x.id = news:subscribe(function(n) say("heard", n) end)
      for i = 1, 1000 do assert(em.channel("news"):push(i)) end
      em.channel("other"):push(0)
      say("pushed")
    ]]
    local expected = {}
    for i = 1, 1000 do expected[i] = "news " .. i .. "\n" end
    expected = table.concat(expected)
    a:expect(expected)
    b:expect(expected)
    local said = s:said()
    assert.equal("pushed", said[1])
    for i = 1, 1000 do assert.equal("heard " .. i, said[i + 1]) end
    assert.equal(1001, #said)
    s:eval [[ assert(em.channel("news"):unsubscribe(x.id)) em.channel("news"):push("more") ]]
    a:expect('news "more"\n')
    assert.equal(1001, #s:said())
    s.d:stop()
    assert.is_truthy(s.d:log():find("messages_pushed=1002 messages_refused=0 messages_missed=0 messages_queued=0", 1, true))
  end)

  it("brings plain data as it was", function()
    local s = serve(listener .. "return H", { config = "callback_time = 30\n" })
    local c = s:connect()
    s:until_true "return em.connection_count() >= 3"
    for _, text in ipairs {
      "nil", "true", "false", "0", "-1", "127", "128", "255", "256", "65535", "65536", "-32", "-33", "-128", "-129", "-32769", "1 << 31",
      "1 << 32",
      "math.maxinteger", "math.mininteger", "math.maxinteger - 1", "2.0", "-0.0", "0.1", "1e308", "5e-324", "math.huge", "-math.huge", "''",
      [["\0\255\n\r nul"]], "('x'):rep(31)", "('x'):rep(32)", "('x'):rep(255)", "('x'):rep(256)", "('x'):rep(65536)", "{}", "{ {} }",
      "{ 1, 2, 3 }", "{ 1, nil, 3 }", "{ [0] = 0, 1, 2 }", "{ 1, 2, x = 3 }", "{ [1] = 1, [3] = 3, [4] = 4 }", "{ [-5] = 1 }",
      "{ [1.5] = 'f' }",
      "{ [true] = false, [false] = true }", "{ ['1'] = 'text', [1] = 'number' }", "{ [math.maxinteger] = math.mininteger }",
      "{ a = { b = { c = { 1, { 2 }, 'x' } } } }", "setmetatable({ 1 }, { __index = print })",
      "(function() local l = {} for i = 1, 70000 do l[i] = i end return l end)()",
      "(function() local l = {} for i = 1, 70000 do l['k' .. i] = -i end return l end)()",
    } do
      journey(s, c, text)
    end
    s:eval [[ em.channel("news"):push(0/0) ]]
    assert.is_truthy(c:receive_line():find("^news %(0/0%)$"))
    -- The types too: an array is one, an integer is no float.
    assert.equal("integer float 3 true", s:eval [[
      local out
      em.channel("types"):subscribe(function(v) x.types = { math.type(v[1]), math.type(v[2]), #v, getmetatable(v) == nil } end)
      em.channel("types"):push(setmetatable({ 7, 7.0, 7 }, {}))
    ]] or s:eval [[ for i = 1, 4 do x.types[i] = tostring(x.types[i]) end return table.concat(x.types, " ") ]])
  end)

  it("takes 32 levels and 1 MiB", function()
    local s = serve(listener .. "return H", { config = "callback_time = 30\n" })
    local c = s:connect()
    s:until_true "return em.connection_count() >= 3"
    local nested = "(function() local v = 'deep' for _ = 1, %d do v = { v } end return v end)()"
    journey(s, c, nested:format(32))
    journey(s, c, "{ a = {}, b = {}, " .. nested:format(31) .. " }")
    assert.equal(1048571, s:eval [[
      em.channel("big"):subscribe(function(v) x.length = #v end)
      assert(em.channel("big"):push(("x"):rep(1048571)))
    ]] or s:eval "return x.length")
    for what, text in pairs {
      ["data" .. ("[1]"):rep(32) .. " is nested too deeply (32 levels of tables at most)"] = nested:format(33),
      ["data is too much: encoded it takes more than 1 MiB"] = "('x'):rep(1048572)",
      ["data[21].list[1] is too much: encoded it takes more than 1 MiB"] =
        "(function() local l = {} for i = 1, 30 do l[i] = { list = { ('x'):rep(50000) } } end return l end)()",
      -- Two of each level within one another are four thousand million in all.
      ["is too much: encoded it takes more than 1 MiB"] = "(function() local v = {} for _ = 1, 31 do v = { v, v } end return v end)()",
    } do
      local ok, why = s:eval("return pcall(em.channel('news').push, em.channel('news'), %s)", text)
      assert.is_false(ok)
      assert.is_truthy(why:find(what, 1, true), why)
    end
  end)

  it("refuses what is no plain data, and says where it is", function()
    local s = serve(listener .. "return H")
    s:eval [[ x.loop = { a = { list = {} } } x.loop.a.list[2] = x.loop.a ]]
    for text, what in pairs {
      ["print"] = "bad argument #1 to 'push' (data is a function, which is not plain data)",
      ["{ 1, { f = print } }"] = "(data[2].f is a function, which is not plain data)",
      ["{ ['not a name'] = io.stdout }"] = [[(data["not a name"] is a userdata, which is not plain data)]],
      ["{ [2.5] = coroutine.create(print) }"] = "(data[2.5] is a coroutine, which is not plain data)",
      ["{ [true] = { [-1] = em.channel('x') } }"] = "(data[true][-1] is a userdata, which is not plain data)",
      ["{ [('k'):rep(100)] = print }"] = "(data." .. ("k"):rep(40) .. "... is a function",
      ["{ a = { [{}] = 1 } }"] = "(data.a has a key that is neither string, number nor boolean)",
      ["{ [print] = 1 }"] = "(data has a key that is neither string, number nor boolean)",
      ["x.loop"] = "(data.a.list[2] contains itself)",
      ["em.connect('127.0.0.1', x.port)"] = "(data",
    } do
      local ok, why = s:eval("return pcall(function() em.channel('news'):push(%s) end)", text)
      assert.is_false(ok, text)
      assert.is_truthy(why:find(what, 1, true), why)
    end
    assert.is_false((s:eval "return pcall(function() em.channel('news'):push() end)"))
    for _, text in ipairs { "em.channel()", "em.channel('')", "em.channel({})", "em.channel(('x'):rep(256))", "em.channel('x').push({}, 1)",
      "em.channel('x'):subscribe()", "em.channel('x'):subscribe('f')", "em.channel('x'):unsubscribe('id')",
      "em.channel('x').push(io.stdout, 1)" } do
      assert.is_false((s:eval("return pcall(function() %s end)", text)), text)
    end
    assert.is_true((s:eval "return em.channel(('x'):rep(255)):push(1)"))
  end)

  it("an error costs its own connection only", function()
    local s = serve(listener .. [[
      local count = 0
      function H:receive_message(name, data)
        if self.bad then error("bad ears") end
        self:send_data(name, " ", data, "\n")
      end
      function H:receive_data() self.bad = true self:send_data("ok\n") end
      function H:unbind(err, why) say(err, why) end
      return H]])
    local a, b, c = s:connect(), s:connect(), s:connect()
    b:send("x"):expect("ok\n")
    s:until_true "return em.connection_count() >= 5"
    s:eval [[
      local calls = 0
      em.channel("news"):subscribe(function() calls = calls + 1 error("bad function " .. calls) end)
      em.channel("news"):push(1) em.channel("news"):push(2)
    ]]
    for _, good in ipairs { a, c } do good:expect("news 1\nnews 2\n") end
    b:receive_end()
    s.d:wait_log("bad ears.*callback=receive_message")
    s.d:wait_log("bad function 2.*callback=channel")
    s:waits_for("EHANDLER handler error: " .. (s.d:log():match("handler error: ([^\n]-bad ears)")))
  end)

  it("may be left and joined from within a delivery", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:receive_message(_, data)
        if data == "leave" then
          say("left", self:unsubscribe("c"), self:unsubscribe("c"))
        elseif data == "again" then
          say("again", self:subscribe("c"), self:subscribe("c"))
        elseif data == "close" then
          for _, other in ipairs(x.all) do other:close_connection() end
          say("closed all")
        else
          say("conn", self.n, data)
        end
      end
      x.all = {}
      function H:post_init() x.all[#x.all + 1] = self self.n = #x.all self:subscribe("c") end
      return H]]
    local clients = { s:connect(), s:connect() }
    s:until_true "return #x.all == 2"
    s:eval [[
      local c = em.channel("c")
      local a, b
      a = c:subscribe(function(data)
        say("a", data)
        if data == 1 then c:unsubscribe(b) c:unsubscribe(a) c:subscribe(function(d) say("new", d) end) c:push(3) end
      end)
      b = c:subscribe(function(data) say("b", data) end)
      c:push(1) c:push(2)
    ]]
    s:waits_for("new 3")
    -- The connections hear first: they came first. Who joins in a delivery hears what is pushed from then on.
    assert.same({ "conn 1 1", "conn 2 1", "a 1", "conn 1 2", "conn 2 2", "conn 1 3", "conn 2 3", "new 3" }, s:said())
    s:eval [[ em.channel("c"):push("leave") em.channel("c"):push("unheard") ]]
    s:waits_for("new unheard")
    assert.same({ "left true false", "left true false", "new leave", "new unheard" }, { table.unpack(s:said(), 9) })
    s:eval [[ for _, c in ipairs(x.all) do c:subscribe("c") end em.channel("c"):push("close") em.channel("c"):push("late") ]]
    s:waits_for("new late")
    assert.same({ "new close", "closed all", "new late" }, { table.unpack(s:said(), 13) })
    for _, c in ipairs(clients) do c:expect_eof() end
    assert.equal("nil closed ENOTCONN", s:eval [[
      local words = table.pack(x.all[1]:subscribe("c"))
      return table.concat({ tostring(words[1]), words[2], words[3] }, " ") ]])
    s:eval [[ x.all = nil ]]
  end)

  it("ends with the connection, in whose unbind it is silent and closed", function()
    local s = serve [[
      local H = em.Connection:extend()
      function H:post_init() self:subscribe("c") self:subscribe("d") end
      function H:receive_message(_, data) say("heard", data) end
      function H:unbind() em.channel("c"):push("bye") say("unbind", self:subscribe("c")) say(self:unsubscribe("d")) end
      return H]]
    local a, b = s:connect(), s:connect()
    s:until_true "return em.connection_count() >= 4"
    a:close()
    s:expects { "unbind nil closed ENOTCONN", "nil closed ENOTCONN", "heard bye" }
    b:close()
  end)

  it("gives the subscribers of one generation one table", function()
    local s = serve "return {}"
    s:eval [[
      local first
      em.channel("c"):subscribe(function(v) first = v end)
      em.channel("c"):subscribe(function(v) say(rawequal(v, first), rawequal(v, x.sent), v.a) end)
      x.sent = { a = 1 }
      em.channel("c"):push(x.sent)
      x.sent.a = 2
    ]]
    s:expects { "true false 1" }
  end)

  it("has a bound, from which push says so", function()
    local s = serve("return {}", { config = "channel_queue = 65536\n" })
    local pushed, message, code = s:eval [[
      local c, n = em.channel("c"), 0
      c:subscribe(function(v) x.sum = (x.sum or 0) + #v end)
      em.channel("d"):push(("x"):rep(100000)) -- nobody hears that, so it does not wait
      while true do
        local ok, message, code = c:push(("x"):rep(1000))
        if not ok then return n, message, code end
        n = n + 1
      end
    ]]
    assert.same({ "too much waits to be delivered", "EAGAIN" }, { message, code })
    assert.is_true(pushed >= 55 and pushed <= 65, pushed)
    s:until_true(("return x.sum == %d"):format(pushed * 1000)) -- in as many turns as it takes
    -- One message always fits.
    s:eval [[ assert(em.channel("c"):push(("x"):rep(1000000))) assert(not em.channel("c"):push(1)) ]]
    s:until_true(("return x.sum == %d"):format(pushed * 1000 + 1000000))
    s.d:stop()
    assert.is_truthy(s.d:log():find("messages_refused=2 messages_missed=0 messages_queued=0", 1, true))
  end)

  it("delivers a long queue over several turns, so that others have theirs", function()
    local s = serve(listener .. "return H")
    s:eval [[
      local c, done = em.channel("c"), 0
      c:subscribe(function()
        local till = os.clock() + 0.001
        while os.clock() < till do end
        done = done + 1
        if done == 200 then say("all") end
      end)
      for i = 1, 200 do c:push(i) end
      x.done = function() return done end
    ]]
    local done = s:eval "return x.done()"
    assert.is_true(done < 200, done)
    s:waits_for("all")
  end)

  it("lets those of an old generation hear those of the new one, and the other way round; functions stop", function()
    local s = serve(listener .. [[
      function H:receive_data(d) em.channel("news"):push(d) end
      em.channel("news"):subscribe(function(v) say("old function", v) end)
      return H]])
    local old = s:connect()
    old:send("one"):expect('news "one"\n')
    s:waits_for("old function one")
    t.write("h.lua", [[local em = require "em"; local x = require "shared"; local say = x.say; ]] .. listener .. [[
      function H:receive_data(d) em.channel("news"):push(d) end
      function H:unbind() em.channel("news"):push("left") end
      em.channel("news"):subscribe(function(v) say("new function", v) end)
      return H]])
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    local new = s:connect()
    new:send("two"):expect('news "two"\n')
    old:expect('news "two"\n')
    old:send("three"):expect('news "three"\n')
    new:expect('news "three"\n')
    s:waits_for("new function three")
    assert.same({ "old function one", "new function two", "new function three" }, s:said())
    new:close()
    old:expect('news "left"\n')
    -- A reload that is refused has had no part in it.
    t.write("h.lua", [[local em = require "em"; em.channel("news"):subscribe(function(v) em.log.info("{{refused}}") end) error("no")]])
    s.d:signal("HUP")
    s.d:wait_log("reload refused")
    old:send("four"):expect('news "four"\n')
    s:waits_for("new function four")
    assert.equal(0, s.d:count_log("{{refused}}"))
    old:close()
  end)

  it("what waits at a reload is heard by the functions that are there then, once", function()
    local text = [[
      local heard = em.shared "heard"
      em.channel("news"):subscribe(function(v)
        assert(heard:add(tostring(v), %d)) -- nobody has heard it before
        if v == %d then em.log.info("{{all %%d}}", #heard:keys()) end
      end)
      return {}]]
    local count = 20000
    local s = serve(text:format(1, count))
    s:eval("for i = 1, %d do assert(em.channel('news'):push(i)) end", count)
    t.write("h.lua", [[local em = require "em"; ]] .. text:format(2, count))
    s.d:signal("HUP")
    s.d:wait_log("{{all ", 20)
    assert.equal(1, s.d:count_log("{{all " .. count .. "}}"))
    assert.equal("1,2", s:eval "local h = em.shared('heard') return h:get('1') .. ',' .. h:get('20000')")
    s.d:stop()
  end)

  it("loses and doubles nothing when connections are handed over", function()
    local text = [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:post_init() self.rest = "" self:subscribe("news") self:subscribe("other") end
      function H:receive_message(_, line) self:send_data(line, "\n") end
      function H:receive_data(data)
        self.rest = (self.rest .. data):gsub("([^\n]*)\n", function(line) em.channel("news"):push(line) return "" end)
      end
      -- What is pushed in these waits to be delivered while some have moved and others have not.
      function H:handover() em.channel("news"):push("going") return { rest = self.rest, broken = self.broken } end
      function H:takeover(state)
        self.rest = state.rest
        self:unsubscribe("other")
        em.channel("news"):push("gone")
        if BROKEN then error("broken takeover") end
      end
      return H]]
    local s = serve((text:gsub("BROKEN", "false")))
    local clients = {}
    for i = 1, 5 do clients[i] = s:connect() end
    s:until_true "return em.connection_count() >= 7"
    local rounds, sent = t.full and 100 or 10, 0
    for round = 1, rounds do
      t.write("h.lua", (text:gsub("BROKEN", round % 5 == 0 and "true" or "false")))
      local mark = s.d:mark()
      s.d:signal("HUP")
      repeat
        sent = sent + 1
        clients[sent % 5 + 1]:send(sent .. "\n")
      until s.d:log():sub(mark):find("generation %d+ serves")
    end
    for _, c in ipairs(clients) do
      local last, count, words = {}, 0, { going = 0, gone = 0 }
      while count < sent or words.going < rounds * 5 or words.gone < rounds * 5 do
        local line = c:receive_line()
        local n = math.tointeger(line)
        if n then -- in the order of each pusher, each once
          assert.equal(n, (last[n % 5] or (n % 5 == 0 and 0 or n % 5 - 5)) + 5)
          last[n % 5] = n
          count = count + 1
        else
          words[line] = words[line] + 1
        end
      end
      c:expect_silence(0.01)
      assert.same({ sent, rounds * 5, rounds * 5 }, { count, words.going, words.gone })
    end
    for _, c in ipairs(clients) do c:close() end
  end)

  it("nothing is pushed while a handler's file loads", function()
    t.write("early.lua", [[require("em").channel("x"):push(1) return {}]])
    local result = t.reactord { "-t", "-c", t.write("early.conf",
      ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "early" }\n'):format(t.dir(), t.free_port())) }
    assert.equal(1, result.status)
    assert.is_truthy(result.err:find("while handlers load", 1, true), result.err)
  end)

  if t.full then
    it("has a million subscribers in one generation at most", function()
      local s = serve("return {}", { config = "callback_time = 60\n" })
      assert.same({ 1000000, "too many subscriptions", "ELIMIT" }, { s:eval [[
        local c, n = em.channel("c"), 0
        while true do
          local id, message, code = c:subscribe(print)
          if not id then return n, message, code end
          n = n + 1
        end
      ]] })
    end)
  end

  it("costs no memory when its subscribers have gone", function()
    local s = serve "return {}"
    local function round(n)
      for _ = 1, n do
        s:eval [[
          local ids = {}
          for i = 1, 1000 do ids[i] = em.channel("c" .. i):subscribe(print) end
          for i = 1, 1000 do assert(em.channel("c" .. i):unsubscribe(ids[i])) assert(not em.channel("c" .. i):unsubscribe(ids[i])) end
          for i = 1, 100 do em.channel("news"):push(("x"):rep(1000)) end
        ]]
      end
      return s.d:rss()
    end
    s:eval [[ em.channel("news"):subscribe(function() end) ]]
    local before = round(20)
    local after = round(t.full and 200 or 40)
    assert.is_true(t.sanitized or after < before + 4 * 1024 * 1024, "it has grown") -- sanitizers keep freed memory and see leaks themselves
  end)
end)

describe("a named channel in a script", function()
  t.auto()

  it("keeps it alive as long as something waits to be delivered", function()
    local result = t.script [[
      local em = require "em"
      local c = em.channel("c")
      c:subscribe(function(n) print("heard", n) if n < 3 then c:push(n + 1) end end)
      c:push(1)
      print("pushed")
    ]]
    assert.same({ "pushed\nheard\t1\nheard\t2\nheard\t3\n", "", 0 }, { result.out, result.err, result.status })
  end)

  it("an uncaught error in a function ends the run", function()
    local result = t.script [[
      local em = require "em"
      em.run(function() em.channel("c"):subscribe(function() error("ouch") end) em.channel("c"):push(1) end)
    ]]
    assert.equal(1, result.status)
    assert.is_truthy(result.err:find("ouch", 1, true))
  end)
end)
