-- em.shared: plain data that the whole daemon shares, in a folder in memory.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"
local lfs = require "lfs"

local MIB = 1048576

-- The stores in a folder.
local function stores(folder)
  local found = {}
  for name in lfs.dir(folder or t.dir()) do
    if name:find("^reactord%-shared%-") then found[#found + 1] = name end
  end
  return found
end

-- A daemon with its store in the test's folder.
local function start(config, text)
  return serve(text or "return {}", { config = config, env = { RUNTIME_DIRECTORY = t.dir() .. ":/nowhere" } })
end

describe("em.shared", function()
  t.auto()

  it("keeps what was set, apart by name, and nothing else", function()
    local s = start()
    assert.same({}, stores())
    s:eval [[
      local a, b = em.shared("a"), em.shared("b")
      assert(a:get("k") == nil and a:delete("k") == false and #a:keys() == 0)
      assert(a:set("k", 1) == true and b:get("k") == nil and em.shared("a"):get("k") == 1)
      assert(b:set("k", 2) and a:get("k") == 1 and b:get("k") == 2)
      local v = { list = { 1, 2.0, "x\0y", { true } }, [7] = math.mininteger, ["2^63-1"] = math.maxinteger, e = {} }
      assert(a:set("table", v))
      v.e.late = true
      local got = a:get("table")
      assert(got ~= v and #got.list == 4 and math.type(got.list[2]) == "float" and got.list[3] == "x\0y" and got.list[4][1] == true)
      assert(got[7] == math.mininteger and got["2^63-1"] == math.maxinteger and next(got.e) == nil)
      assert(a:set("f", false) and a:get("f") == false)
      assert(a:add("k", 9) == false and a:get("k") == 1 and a:add("new", 9) == true and a:get("new") == 9)
      assert(a:set("k", nil) == true and a:get("k") == nil and a:set("k", nil) == true)
      assert(a:delete("new") == true and a:delete("new") == false and a:add("new", "again") and a:get("new") == "again")
      local key = ("\xff"):rep(255)
      assert(a:set(key, ("v"):rep(1048571)) and #a:get(key) == 1048571)
      assert(em.shared(("n"):rep(255)):set(key, 1))
      assert(table.concat(a:keys(), " ") == "f new table " .. key and #b:keys() == 1)
      assert(em.shared("ab"):set("x", 1) and em.shared("a"):get("bx") == nil and #em.shared("aa"):keys() == 0)
    ]]
    assert.equal(1, #stores())
    local folder = t.path(stores()[1])
    assert.equal("rwx------", lfs.attributes(folder, "permissions"))
    s.d:stop()
    assert.same({}, stores())
  end)

  it("adds numbers as Lua does", function()
    local s = start()
    s:eval [[
      local c = em.shared("c")
      assert(c:incr("n") == 1 and c:incr("n") == 2 and c:incr("n", 40) == 42 and c:incr("n", -50) == -8 and c:get("n") == -8)
      assert(c:incr("from", 1, 100) == 101 and c:incr("from", 1, 100) == 102)
      assert(c:incr("f", 0.5) == 0.5 and c:incr("f", 1) == 1.5 and math.type(c:incr("f", 0.5)) == "float")
      assert(c:set("big", math.maxinteger) and c:incr("big") == math.mininteger and c:incr("big", -1) == math.maxinteger)
      assert(math.type(c:incr("n", 0)) == "integer" and math.type(c:get("n")) == "integer")
      for _, v in ipairs { "1", ("long"):rep(100), true, { 1 }, { } } do
        c:set("other", v)
        local n, message, code = c:incr("other")
        assert(n == nil and message == "the value is not a number" and code == "EINVAL")
      end
      assert(type(c:get("other")) == "table")
    ]]
  end)

  it("raises for what is no plain data, and for wrong arguments", function()
    local s = start()
    for text, what in pairs {
      ["s:set('k', print)"] = "bad argument #2 to 'set' (value is a function",
      ["s:add('k', { x = io.stdout })"] = "bad argument #2 to 'add' (value.x is a userdata",
      ["s:set('k', ('x'):rep(1048572))"] = "value is too much: encoded it takes more than 1 MiB",
      ["s:add('k', nil)"] = "bad argument #2 to 'add'",
      ["s:add('k')"] = "bad argument #2 to 'add'",
      ["s:set('k')"] = "bad argument #2 to 'set'",
      ["s:set()"] = "bad argument #",
      ["s:get()"] = "bad argument #1 to 'get'",
      ["s:get({})"] = "bad argument #1 to 'get'",
      ["s:get('')"] = "a key has 1 to 255 bytes",
      ["s:get(('x'):rep(256))"] = "a key has 1 to 255 bytes",
      ["s:incr('k', '1')"] = "bad argument #2 to 'incr' (number expected",
      ["s:incr('k', 1, {})"] = "bad argument #3 to 'incr' (number expected",
      ["s:set('k', 1, 0)"] = "bad argument #3 to 'set'",
      ["s:set('k', 1, -1)"] = "bad argument #3 to 'set'",
      ["s:set('k', 1, 'x')"] = "bad argument #3 to 'set'",
      ["em.shared()"] = "bad argument #1 to 'shared'",
      ["em.shared('')"] = "a name has 1 to 255 bytes",
      ["em.shared(('x'):rep(256))"] = "a name has 1 to 255 bytes",
      ["s.get({}, 'k')"] = "bad argument #1 to 'get' (shared data expected",
      ["s.get(em.channel('x'), 'k')"] = "(shared data expected, got channel)",
    } do
      local ok, why = s:eval("local s = em.shared('s') return pcall(function() %s end)", text)
      assert.is_false(ok, text)
      assert.is_truthy(why:find(what, 1, true), why)
    end
    assert.equal(0, s:eval "return #em.shared('s'):keys()")
  end)

  it("forgets at its time", function()
    local s = start()
    s:eval [[
      local c = em.shared("c")
      assert(c:set("short", 1, 0.05) and c:set("long", 1, 1000) and c:set("ever", 1))
      assert(c:set("renewed", 1, 0.05) and c:set("kept", 1, 0.05))
      assert(c:set("renewed", 2, 1000) and c:set("kept", 2) and c:incr("count", 1) and c:add("counted", 0, 0.05) and c:incr("counted") == 1)
      assert(c:get("short") == 1 and c:add("short", 2) == false)
    ]]
    s:until_true [[ local c = em.shared("c") return c:get("short") == nil and c:get("counted") == nil ]]
    s:eval [[
      local c = em.shared("c")
      assert(table.concat(c:keys(), " ") == "count ever kept long renewed")
      assert(c:delete("short") == false and c:incr("counted") == 1 and c:add("short", 3) == true and c:get("short") == 3)
      assert(c:get("renewed") == 2 and c:get("kept") == 2)
    ]]
  end)

  it("is bounded; what has ended makes room", function()
    local s = start "shared_size = '1 MiB' callback_time = 30\n"
    local count, message, code = s:eval [[
      local c, n = em.shared("c"), 0
      while true do
        local ok, message, code = c:set("k" .. n, ("x"):rep(3000))
        if not ok then return n, message, code end
        n = n + 1
      end
    ]]
    assert.same({ "the store is full", "ENOSPC" }, { message, code })
    assert.is_true(count > 200 and count < 350, count)
    s:eval(([[
      local c = em.shared("c")
      assert(#c:keys() == %d)
      for i = 1, 20 do
        assert(not c:set("another", ("x"):rep(3000)))
        assert(c:set("k1", ("y"):rep(3000)), "what is there may be replaced")
        assert(c:delete("k2") and c:set("k2", ("z"):rep(3000)), "room is used again")
      end
      assert(not c:set("k1", ("y"):rep(1000000)) and c:get("k1") == ("y"):rep(3000))
      assert(c:incr("k1") == nil)
      for _, key in ipairs(c:keys()) do assert(c:delete(key)) end
      -- Large ones: each again and again in the place of the one before.
      for i = 1, 50 do assert(c:set("big", ("b"):rep(500000 + i * 1000))) end
      assert(c:delete("big"))
      -- What ends, and what comes in its place.
      local n = 0
      while n < 50000 and c:set("t" .. n, ("x"):rep(100), 1) do n = n + 1 end
      assert(n > 2000 and n < 50000)
      x.n = n
    ]]):format(count))
    s:until_true [[ return em.shared("c"):get("t" .. x.n - 1) == nil ]]
    s:eval [[
      local c = em.shared("c")
      assert(#c:keys() == 0)
      for i = 1, x.n * 0.9 do assert(c:set("u" .. i, ("x"):rep(100))) end
    ]]
  end)

  it("holds a storm of short lives without growing", function()
    local s = start "shared_size = '1 MiB' callback_time = 30\n"
    s:eval [[
      x.i = 0
      function x.round()
        for _ = 1, 200 do
          x.i = x.i + 1
          assert(em.shared("c"):set("k" .. x.i, ("x"):rep(100), 0.001))
        end
      end
    ]]
    for _ = 1, t.full and 1000 or 100 do s:eval "x.round()" end
    assert.is_true(lfs.attributes(t.path(stores()[1] .. "/data.mdb"), "size") < MIB)
  end)

  it("is the same after a reload, and for those who stay on old code", function()
    local text = [[
      local H = em.Connection:extend()
      function H:receive_data() self:send_data(%q, em.shared("c"):incr("n"), "\n") end
      return H]]
    local s = start(nil, text:format "old ")
    local old = s:connect()
    old:send("x"):expect("old 1\n")
    t.write("h.lua", [[local em = require "em"; ]] .. text:format "new ")
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    local new = s:connect()
    new:send("x"):expect("new 2\n")
    old:send("x"):expect("old 3\n")
    new:send("x"):expect("new 4\n")
    assert.equal(1, #stores())
    old:close()
    new:close()
  end)

  it("goes over to the process of an upgrade, whose predecessor may end when it likes", function()
    local port = t.free_port()
    t.write("h.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:receive_data() self:send_data(em.shared("c"):incr("n"), "\n") end
      return H]])
    local d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "h" }\npid_file = "x.pid"\n'):format(port),
      env = { RUNTIME_DIRECTORY = t.dir() } }
    local old = t.connect(port)
    old:send("x"):expect("1\n")
    local mark = d:mark()
    d:signal("USR2")
    d:wait_log("upgraded", nil, mark)
    local pid = t.until_true(function()
      local now = tonumber(t.read("x.pid"))
      return now ~= d.pid and now
    end)
    local heir = t.adopt(pid, d.log_path)
    old:send("x"):expect("2\n")
    local new = t.connect(port)
    old:close() -- with it the old process goes, before the new one has used the store
    d:wait()
    assert.equal(1, #stores())
    new:send("x"):expect("3\n")
    new:close()
    heir:stop()
    assert.same({}, stores())
  end)

  it("does nothing while a handler's file loads", function()
    for _, text in ipairs { "set('k', 1)", "get('k')", "keys()", "incr('k')", "delete('k')", "add('k', 1)" } do
      t.write("early.lua", ("require('em').shared('x'):%s return {}"):format(text))
      local result = t.reactord { "-t", "-c", t.write("early.conf",
        ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "early" }\n'):format(t.dir(), t.free_port())) }
      assert.equal(1, result.status)
      assert.is_truthy(result.err:find("while handlers load", 1, true), result.err)
    end
    t.write("early.lua", "local s = require('em').shared('x') return {}")
    assert.equal(0, t.reactord { "-t", "-c", t.path("early.conf") }.status)
  end)

  it("what a killed daemon has left is removed by the next one; what is in use is not", function()
    local killed = start()
    killed:eval [[ em.shared("c"):set("k", "killed") ]]
    lfs.mkdir(t.path("other"))
    t.write("reactord-shared-no-folder", "")
    lfs.mkdir(t.path("reactord-shared-for-all"))
    local left = stores()
    assert.equal(3, #left)
    killed.d:kill()
    assert.equal(3, #stores())
    local script = [[
      local em = require "em"
      assert(em.shared("c"):get("k") == nil and em.shared("c"):set("k", "mine"))
      em.run(function() print("set") em.on_signal("USR1", function() print(em.shared("c"):get("k")) end) end)
    ]]
    local other = t.start { script = script, env = { RUNTIME_DIRECTORY = t.dir() }, wait = "set" }
    assert.equal(3, #stores())
    local third = t.start { script = script, env = { RUNTIME_DIRECTORY = t.dir() }, wait = "set" }
    assert.equal(4, #stores())
    other:signal("USR1")
    other:wait_log("mine")
    third:signal("INT")
    third:wait()
    other:signal("INT")
    other:wait()
    local now = stores()
    table.sort(now)
    assert.same({ "reactord-shared-for-all", "reactord-shared-no-folder" }, now)
  end)

  it("falls back to other folders, and says what is wrong where there is none", function()
    local script = [[
      local em = require "em"
      print(em.shared("c"):set("k", 1), em.shared("c"):get("k"))
    ]]
    local result = t.script(script, {}, { env = { RUNTIME_DIRECTORY = "/nowhere" } })
    assert.same({ "true\t1\n", "", 0 }, { result.out, result.err, result.status })
  end)

  it("leaves no descriptor to children", function()
    local s = start()
    s:eval [[
      em.shared("c"):set("k", 1)
      em.system("ls", "-l", "/proc/self/fd", function(output)
        say("stores", select(2, output:gsub("reactord.shared", "")), #output > 0)
      end)
    ]]
    s:expects { "stores 0 true" }
  end)

  it("two scripts have two stores", function()
    local script = [[ local em = require "em" print(em.shared("c"):incr("n")) ]]
    for _ = 1, 2 do assert.equal("1\n", t.script(script).out) end
  end)
end)
