-- What handlers may use of the standard library, where require looks, and what `unsafe` and `reactord run` give back.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- What restricted handlers do without.
local missing = {
  "os.exit", "os.execute", "os.setlocale", "io.popen", "string.dump", "package.loadlib", "coroutine.close", "debug.debug",
  "debug.gethook", "debug.getinfo", "debug.getlocal", "debug.getmetatable", "debug.getregistry", "debug.getupvalue", "debug.getuservalue",
  "debug.setcstacklimit", "debug.sethook", "debug.setlocal", "debug.setmetatable", "debug.setupvalue", "debug.setuservalue",
  "debug.upvalueid", "debug.upvaluejoin",
}

-- What they have, less em's own.
local function present()
  local names = {}
  for name, value in pairs(_G) do
    if _VERSION == "Lua 5.4" and type(value) == "table" and package.loaded[name] == value and name ~= "_G" then
      for member in pairs(value) do table.insert(names, name .. "." .. member) end
    end
  end
  for _, name in ipairs { "assert", "collectgarbage", "dofile", "error", "getmetatable", "ipairs", "load", "loadfile", "next", "pairs",
    "pcall", "print", "rawequal", "rawget", "rawlen", "rawset", "require", "select", "setmetatable", "tonumber", "tostring", "type",
    "warn", "xpcall", "_VERSION", "_G" } do
    table.insert(names, name)
  end
  return names
end

local own = {} -- of the test's own Lua
for _, library in ipairs { "coroutine", "debug", "io", "math", "os", "package", "string", "table", "utf8" } do
  for member in pairs(_G[library]) do own[library .. "." .. member] = true end
end

describe("restricted handlers", function()
  t.auto()

  it("have all of the standard library but what would stop the loop or the daemon", function()
    local s = serve "return {}"
    for _, name in ipairs(missing) do
      assert.is_nil((s:eval("return type(%s) ~= 'nil' or nil", name)), name)
    end
    local without = {}
    for _, name in ipairs(missing) do without[name] = true end
    for _, name in ipairs(present()) do
      if not without[name] and not name:find("^busted") and (own[name] or not name:find(".", 1, true)) then
        assert.is_true(s:eval("return %s ~= nil", name), name)
      end
    end
    assert.equal("Lua 5.4", s:eval "return _VERSION")
    assert.matches("stack traceback:\n", s:eval "return debug.traceback()")
  end)

  it("find no way around it", function()
    local s = serve "return {}"
    for _, text in ipairs {
      "return require('debug').getinfo", "return package.loaded.debug.sethook", "return package.loaded.os.exit",
      "return package.loaded._G.os.execute", "return (''):dump and 1", "return getmetatable('').__index.dump",
      "return package.loaded.coroutine.close", "return package.preload.debug", "return require('io').popen",
      "return next(package.loaded['em.core'], nil) and package.loaded['em.core'].debug",
    } do
      local ok, result = pcall(s.eval, s, text)
      assert.is_true(not ok or result == nil, text)
    end
    -- what holds the daemon's own together is out of reach
    for _, text in ipairs {
      "return getmetatable(em.add_timer(0, print))", "x.t = em.add_timer(0, print) return pcall(setmetatable, x.t, {})",
    } do
      local result = s:eval(text)
      assert.is_true(result == "timer" or result == false, text)
    end
  end)

  it("load no bytecode, whatever way", function()
    local code = string.dump(function() return "loaded" end)
    t.write("byte.lua", code)
    t.write("text.lua", "return 'text', ...")
    local s = serve "return {}"
    s:eval("x.code = %q", code)
    for _, text in ipairs {
      "load(x.code)", "load(x.code, 'x', 'b')", "load(x.code, 'x', 'bt', {})", "load(x.code, nil, nil, nil)",
      "load(function() local c = x.code x.code = nil return c end)",
    } do
      s:eval("x.code = %q", code)
      local fn, why = s:eval("return %s", text)
      assert.is_nil(fn, text)
      assert.matches("attempt to load a binary chunk %(mode is 't'%)", why)
    end
    local fn, why = s:eval "return loadfile(x.path('byte.lua'))"
    assert.is_nil(fn)
    assert.matches("attempt to load a binary chunk", why)
    for _, text in ipairs { "loadfile(x.path('byte.lua'), 'b')", "loadfile(x.path('byte.lua'), 'bt', {})" } do
      assert.is_nil((s:eval("return %s", text)))
    end
    for _, text in ipairs { "dofile(x.path('byte.lua'))", "require('byte')", "em.start_server('127.0.0.1', 0, 'byte')" } do
      local ok, message = pcall(s.eval, s, "return %s", text)
      assert.is_false(ok, text)
      assert.matches("attempt to load a binary chunk", message)
    end
  end)

  it("load text as Lua does", function()
    t.write("text.lua", "return 'text', ...")
    t.write("env.lua", "y = 1 return x")
    local s = serve "return {}"
    assert.same({ 3 }, { s:eval "return load('return 1 + 2')()" })
    assert.same({ 7 }, { s:eval "return load('return v', 'name', 't', { v = 7 })()" })
    assert.same({ 8 }, { s:eval "return load('return v', 'name', nil, { v = 8 })()" })
    assert.same({ nil, "name:1: unexpected symbol near '='" }, { s:eval "return load('= 1', '=name')" })
    assert.same({ 5 }, { s:eval "local parts = { 'return ', '5' } return load(function() return table.remove(parts, 1) end)()" })
    assert.is_false(s:eval "return (pcall(load('return v.w', 'n', 't', nil)))") -- an env of nil is one
    assert.same({ "text" }, { s:eval "return dofile(x.path('text.lua'))" })
    assert.same({ "text", 1, 2 }, { s:eval "return loadfile(x.path('text.lua'))(1, 2)" })
    assert.same({ "e", 1 }, { s:eval "local env = { x = 'e' } return loadfile(x.path('env.lua'), 't', env)(), env.y" })
    assert.is_nil((s:eval "return loadfile(x.path('none.lua'))"))
    for call, pattern in pairs {
      ["load()"] = "bad argument #1 to 'load'", ["load(42, {})"] = "bad argument", ["dofile()"] = "bad argument #1 to 'dofile'",
      ["dofile(x.path('none.lua'))"] = "none%.lua",
    } do
      local ok, why = pcall(s.eval, s, "return %s", call)
      assert.is_false(ok, call)
      assert.matches(pattern, why)
    end
  end)

  it("may ask the collector for its count and a step", function()
    local s = serve "return {}"
    assert.is_true(s:eval "return collectgarbage('count') > 10")
    assert.equal("boolean", s:eval "return type(collectgarbage('step'))")
    for _, option in ipairs { "", "'collect'", "'stop'", "'restart'", "'incremental'", "'generational'", "'setpause', 100",
      "'isrunning'", "'x'" } do
      local ok, why = pcall(s.eval, s, "return collectgarbage(%s)", option)
      assert.is_false(ok, option)
      assert.matches("bad argument #1 to 'collectgarbage' %(handlers may only ask for", why)
    end
  end)

  it("add to what they share, and change nothing of it", function()
    local s = serve "return {}"
    for _, text in ipairs {
      "_G.print = nil", "_G.pairs = 1", "rawset(_G, 'type', print)", "string.format = nil", "rawset(string, 'rep', 1)",
      "table.insert = print",
      "em.add_timer = nil", "em.log.info = print", "em.Connection.send_data = nil", "require('em.core').next_tick = nil",
      "package.loaded.em = {}", "package.loaded.string = nil", "getmetatable('').__index = nil", "setmetatable(string, {})",
      "setmetatable(_G, { __newindex = print })", "setmetatable(em, nil)", "getmetatable(em).__index = {}", "em.EventEmitter.on = nil",
      "require('em.core').Server.stop = nil", "em.Deferrable.succeed = nil", "table.move({ 1 }, 1, 1, 'format', string)",
    } do
      local ok = pcall(s.eval, s, text)
      assert.is_false(ok, text)
    end
    local ok, why = pcall(s.eval, s, "string.format = nil")
    assert.is_false(ok)
    assert.matches("eval:1: 'format' is shared by all handlers and cannot be changed", why)
    -- all is as it was
    assert.same({ "5", 3, "x", "function", "string" }, { s:eval [[
      return ("%%d"):format(5), #table.pack(1, 2, 3), string.rep("x", 1), type(em.Connection.send_data), getmetatable("")]] })
    -- names of one's own are everybody's, as ever, and may change
    s:eval [[
      function string.twice(text) return text .. text end
      _G.mine, em.mine = 1, 2
      _G.mine = _G.mine + 1
      em.Connection.own = print
      package.loaded.own = { 7 }]]
    assert.same({ "abab", 2, 2, "function", 7 }, { s:eval [[
      return ("ab"):twice(), _G.mine, em.mine, type(em.Connection:extend().own), require("own")[1] ]] })
    assert.same({ true, true, true, true, 2, "function" }, { s:eval [[
      local seen = {}
      for _, t in ipairs { _G, string, em } do for name in pairs(t) do seen[name] = true end end
      return seen.print, seen.format and seen.twice, seen.add_timer, seen.mine, rawget(_G, "mine"), type(rawget(string, "rep"))]] })
    s:eval "_G.mine, em.mine, em.Connection.own, string.twice, package.loaded.own = nil"
    assert.is_nil((s:eval "return _G.mine or string.twice"))
  end)

  it("have no finalizers, and metatables otherwise", function()
    local s = serve "return {}"
    for _, value in ipairs { "print", "true", "false" } do
      local ok, why = pcall(s.eval, s, "return setmetatable({}, { __gc = %s })", value)
      assert.is_false(ok)
      assert.matches("bad argument #2 to 'setmetatable' %(handlers have no __gc%)", why)
    end
    assert.equal(5, s:eval "return setmetatable({}, { __index = { a = 5 } }).a")
    assert.equal("nil", s:eval "return type(getmetatable(setmetatable(setmetatable({}, {}), nil)))")
    -- added later it is none either
    s:eval "local m = {} setmetatable({}, m) m.__gc = function() say('GC') end"
    s:eval "for _ = 1, 200 do collectgarbage('step') end"
    assert.same({}, s:said())
    for call, pattern in pairs {
      ["setmetatable()"] = "bad argument #1 to 'setmetatable' %(table expected",
      ["setmetatable({}, 1)"] = "bad argument #2 to 'setmetatable' %(nil or table expected, got number%)",
      ["setmetatable(setmetatable({}, { __metatable = 1 }), {})"] = "cannot change a protected metatable",
    } do
      local ok, why = pcall(s.eval, s, "return %s", call)
      assert.is_false(ok)
      assert.matches(pattern, why)
    end
  end)

  it("are not let into C loops that nothing stops", function()
    local s = serve("return {}", { config = "callback_time = 0" })
    local began = t.now()
    assert.equal("", s:eval "return string.rep('', 1 << 50)")
    assert.equal("", s:eval "return (''):rep(1 << 62, '')")
    assert.equal("", s:eval "return string.rep('', 1 << 50, nil)")
    assert.equal("ababab", s:eval "return ('ab'):rep(3)")
    assert.equal("a-a-a", s:eval "return ('a'):rep(3, '-')")
    assert.equal("--", s:eval "return (''):rep(3, '-')")
    assert.equal("", s:eval "return ('a'):rep(-1)")
    for text, pattern in pairs {
      ["('a'):rep(1 << 62)"] = "resulting string too large",
      ["(''):rep(1 << 62, 'xx')"] = "resulting string too large",
      ["string.rep()"] = "bad argument #1 to '[%w_?.]*' %(string expected, got no value%)",
      ["string.rep('a', {})"] = "bad argument #2 to '[%w_?.]*' %(number expected, got table%)",
      ["string.rep('', {})"] = "bad argument #2 to '[%w_?.]*' %(number expected, got table%)",
      ["table.move({}, 1, 1 << 50, 2)"] = "bad argument #3 to 'move' %(too many elements to move%)",
      ["table.move({}, -(1 << 62), 1 << 62, 2)"] = "bad argument #3 to 'move' %(too many elements to move%)",
      ["table.move({}, math.mininteger, math.maxinteger, 1)"] = "bad argument #3 to 'move' %(too many elements to move%)",
      ["table.move({}, 1, 'x', 1)"] = "bad argument #3 to 'move' %(number expected, got string%)",
      ["table.concat({}, '', 1, 1 << 50)"] = "invalid value %(nil%) at index 1 in table for 'concat'",
      ["table.unpack({}, 1, 1 << 50)"] = "too many results to unpack",
      ["table.insert(setmetatable({}, { __len = function() return 1 << 50 end }), 1, 1)"] = "bad argument #1 to 'insert'",
      ["table.remove(setmetatable({}, { __len = function() return 1 << 50 end }), 1)"] = "bad argument #1 to 'remove'",
      ["table.sort(setmetatable({}, { __len = function() return 1 << 50 end }))"] = "array too big",
    } do
      local ok, why = pcall(s.eval, s, "return %s", text)
      assert.is_false(ok, text)
      assert.matches(pattern, why)
    end
    assert.equal(3, s:eval "return #table.move({ 1, 2, 3 }, 1, 3, 1, {})")
    assert.equal(2, s:eval "return table.move({ 1, 2, 3 }, 2, 3, 1)[1]")
    assert.equal(3, s:eval "return #table.move({ 1, 2, 3 }, 5, 1, 1)")
    assert.equal("1 2 3", s:eval "local l = { 1, 3 } table.insert(l, 2, 2) return table.concat(l, ' ')")
    assert.equal("1 3 1", s:eval "local l = { 1, 2, 3 } table.remove(l, 2) table.insert(l, 1) return table.concat(l, ' ')")
    assert.equal(3, s:eval "local l = { 1, 2, 3 } return table.remove(l)")
    assert.is_nil((s:eval "return table.remove({})"))
    assert.is_nil((s:eval "return table.remove({}, 1)"))
    assert.equal("b", s:eval "local l = { 'a' } l[2] = 'b' return table.remove(l, 2)")
    for _, text in ipairs { "table.remove({ 1 }, 3)", "table.remove({ 1 }, -1)", "table.insert({ 1 }, 3, 'x')",
      "table.insert({ 1 }, 0, 'x')" } do
      local ok, why = pcall(s.eval, s, "return %s", text)
      assert.is_false(ok)
      assert.matches("bad argument #2 to '%a+' %(position out of bounds%)", why)
    end
    assert.is_true(t.now() - began < t.seconds(5))
  end)

  it("have xpcall, pcall and coroutines as Lua has them", function()
    local s = serve "return {}"
    assert.same({ true, 1, nil, 3 }, { s:eval "return xpcall(function(...) return ... end, print, 1, nil, 3)" })
    assert.same({ false, "handled boom" }, { s:eval "return xpcall(error, function(e) return 'handled ' .. e end, 'boom', 0)" })
    assert.same({ true }, { s:eval "return xpcall(function() end, function() end)" })
    assert.same({ false, nil }, { s:eval "return xpcall(error, function(...) return select(2, ...) end)" })
    assert.matches("stack traceback", (select(2, s:eval "return xpcall(error, debug.traceback, 'x')")))
    assert.same({ true, 1, 2, true, "end" }, { s:eval [[
      local co = coroutine.wrap(function()
        local ok, a = xpcall(function(...) return coroutine.yield(...) end, print, 1)
        coroutine.yield(a)
        return ok, "end"
      end)
      return true, co(), co(2), co()]] })
    assert.same({ false, "caught after" }, { s:eval [[
      local co = coroutine.wrap(function()
        return xpcall(function() coroutine.yield() error("after", 0) end, function(e) return "caught " .. e end)
      end)
      co()
      return co()]] })
    for call, pattern in pairs {
      ["xpcall(print)"] = "bad argument #2 to 'xpcall' %(function expected, got no value%)",
      ["xpcall()"] = "bad argument #2 to 'xpcall'",
      ["coroutine.resume(1)"] = "bad argument #1 to 'resume' %(coroutine expected, got number%)",
      ["coroutine.wrap(1)"] = "bad argument #1 to 'wrap' %(function expected, got number%)",
      ["coroutine.wrap(error)('own', 0)"] = "own",
    } do
      local ok, why = pcall(s.eval, s, "return %s", call)
      assert.is_false(ok, call)
      assert.matches(pattern, why)
    end
    assert.same({ false, "cannot resume dead coroutine" }, { s:eval [[
      local co = coroutine.create(function() end)
      coroutine.resume(co)
      return coroutine.resume(co)]] })
    assert.same({ false, "cannot resume non-suspended coroutine" }, { s:eval "return coroutine.resume(coroutine.running())" })
    assert.same({ true, "closed" }, { s:eval [[
      local seen
      local ok = pcall(coroutine.wrap(function()
        local _ <close> = setmetatable({}, { __close = function() seen = "closed" end })
        error("x")
      end))
      return not ok, seen]] })
  end)
end)

describe("finalizers", function()
  t.auto()

  it("cannot be slipped in by metatables that are not the script's own", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        local meta = getmetatable(self)
        if type(meta) == "table" then meta.__gc = function() say("finalizer of a connection") end end
      end
      return H]]
    assert.equal("file", s:eval "return getmetatable(io.stdout)")
    for _ = 1, 20 do s:connect():close() end
    s:until_true "return em.connection_count() == 3"
    s:eval "for _ = 1, 500 do collectgarbage('step') end"
    s.d:stop()
    assert.same({}, s:said())
  end)

  it("of unsafe handlers start nothing that would outlive their VM", function()
    local s = serve([[
      x.lasts = setmetatable({}, { __gc = function()
        print("{{finalizer", pcall(em.add_timer, 0.05, print), pcall(em.next_tick, print), "}}")
      end })
      return {}]], { config = "unsafe = true" })
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s.d:wait_log("{{finalizer%sfalse")
    t.sys.sleep(0.2)
    assert.equal("Lua 5.4", s:eval "return _VERSION")
    s.d:stop()
  end)
end)

describe("unsafe = true", function()
  t.auto()

  it("gives back all but bytecode", function()
    local s = serve("return {}", { config = "unsafe = true" })
    for _, name in ipairs(missing) do
      if own[name] then assert.equal("function", (s:eval("return type(%s)", name)), name) end
    end
    assert.equal("out\n", s:eval "return io.popen('echo out'):read('a')")
    assert.equal(0, s:eval "return collectgarbage()")
    assert.is_true(s:eval "return collectgarbage('collect') == 0 and collectgarbage('isrunning')")
    s:eval "setmetatable({}, { __gc = function() say('collected') end }) collectgarbage()"
    s:waits_for("collected")
    local fn, why = s:eval "return load(string.dump(function() end))"
    assert.is_nil(fn)
    assert.matches("attempt to load a binary chunk", why)
  end)

  it("may come and go by a reload", function()
    local s = serve "return {}"
    assert.equal("nil", s:eval "return type(os.execute)")
    t.write("reactord.conf", t.read("reactord.conf") .. "\nunsafe = true\n")
    s.d:signal("HUP")
    s.d:wait_log("generation 2 serves")
    s.control:close()
    s.control = nil
    assert.equal("function", s:eval "return type(os.execute)")
  end)
end)

describe("reactord run", function()
  t.auto()

  it("gives all but bytecode, to scripts and to a handler", function()
    local list = {}
    for _, name in ipairs(missing) do
      if own[name] then table.insert(list, name) end
    end
    local check = ("for _, f in ipairs { %s } do assert(type(f) == 'function') end print(load(string.dump(function() end)))")
      :format(table.concat(list, ", "))
    local r = t.script(check)
    assert.equal("", r.err)
    assert.matches("^nil\tattempt to load a binary chunk", r.out)
    t.write("served.lua", check .. " require('em').next_tick(require('em').stop) return {}")
    r = t.reactord { "run", t.path("served.lua"), "-l", "tcp://127.0.0.1:" .. t.free_port() }
    assert.equal(0, r.status)
    assert.matches("nil\tattempt to load a binary chunk", r.out)
  end)

  it("arguments are in arg and ...", function()
    local r = t.script("print(#arg, arg[1], arg[2], arg[0]:match('script%-%d+%.lua$'), ...)", { "a b", "-x" })
    assert.matches("^2\ta b\t%-x\tscript%-%d+%.lua\ta b\t%-x\n$", r.out)
  end)
end)

describe("require", function()
  t.auto()

  -- Folders with modules that tell where they lie.
  local function folders(names)
    for _, name in ipairs(names) do
      t.write(name .. "/everywhere.lua", ("return %q"):format(name))
      t.write(name .. "/in_" .. name .. ".lua", ("return { %q, ... }"):format(name))
      t.write(name .. "/package_" .. name .. "/init.lua", ("return %q"):format(name .. "/init"))
    end
  end

  local function control() -- of tests.support.serve, for a daemon with a configuration of its own
    return [[handlers = { "one", "two" }
lua_path = "%s/path/?.lua;%s/path/?/init.lua"
listen "unix://%s" { handler = "ask" }]]
  end

  it("looks in the handlers' folders, lua_path, the library, in that order", function()
    folders { "one", "two", "path" }
    t.write("one/ask.lua", [[
      return { receive_data = function(self, name)
        local ok, what = pcall(require, name)
        if type(what) == "table" then what = what[1] and table.concat(what, " ", 1, 2) or "library" end
        self:send_data(tostring(what):gsub("\n", " ") .. "\n")
      end }]])
    local dir = t.dir()
    t.start { plain = true, config = control():format(dir, dir, dir .. "/s") }
    local c = t.connect(dir .. "/s")
    local function ask(name)
      c:send(name)
      return c:receive_line()
    end
    assert.equal("one", ask "everywhere")
    assert.equal("two in_two", ask "in_two")
    assert.equal("path in_path", ask "in_path")
    assert.equal("path/init", ask "package_path")
    assert.equal("two/init", ask "package_two")
    assert.equal("library", ask "em.event_emitter")
    t.write("two/late.lua", "return 'late'")
    assert.equal("late", ask "late")
    t.write("two/late.lua", "return 'changed'")
    assert.equal("late", ask "late") -- once in a generation
    local why = ask "nowhere"
    assert.matches("module 'nowhere' not found:", why)
    for _, place in ipairs { "/one/nowhere.lua", "/two/nowhere/init.lua", "/path/nowhere.lua", "/handlers/nowhere.lua" } do
      assert.is_truthy(why:find(place, 1, true), place)
    end
    assert.is_nil(why:find("/usr/", 1, true))
    t.write("two/broken.lua", "x = = 1")
    assert.matches("error loading module 'broken': .*broken%.lua:1: unexpected symbol", ask "broken")
  end)

  it("under run looks beside the script first", function()
    folders { "one" }
    t.write("beside.lua", "return 'beside'")
    t.write("sub/script.lua", "print((require('beside')), (require('deep.module')))")
    t.write("sub/beside.lua", "return 'sub'")
    t.write("sub/deep/module.lua", "return 'deep'")
    local r = t.reactord { "run", t.path("sub/script.lua") }
    assert.equal("sub\tdeep\n", r.out)
    r = t.reactord { "run", "script.lua", cwd = t.path("sub") }
    assert.equal("sub\tdeep\n", r.out)
  end)

  it("finds modules in C by lua_cpath, and refuses what is none", function()
    t.sys.chmod(t.dir(), "0755")
    local file = assert(io.open("build/tests/testsys.so", "rb"))
    t.write("c/sys_module.so", file:read("a"))
    file:close()
    t.write("c/no_module.so", "not a library")
    local s = serve("return {}", { config = ("lua_cpath = %q"):format(t.path("c/?.so")) })
    local _, why = pcall(s.eval, s, "return require('sys_module')")
    assert.matches("undefined symbol: luaopen_sys_module", why)
    _, why = pcall(s.eval, s, "return require('no_module')")
    assert.matches("error loading module 'no_module' from file", why)
    t.write("c/testsys.so", assert(t.read(t.path("c/sys_module.so"))))
    assert.equal("function", s:eval "return type(require('testsys').getpid)")
  end)

  it("restricted handlers cannot look elsewhere for modules in C", function()
    t.sys.chmod(t.dir(), "0755")
    local file = assert(io.open("build/tests/testsys.so", "rb"))
    t.write("elsewhere/testsys.so", file:read("a"))
    file:close()
    for _, option in ipairs { "", ("lua_cpath = %q"):format(t.path("none/?.so")) } do
      local s = serve("return {}", { config = option })
      local ok, why = pcall(s.eval, s, "package.cpath = %q return type(require('testsys'))", t.path("elsewhere/?.so"))
      assert.is_false(ok)
      assert.matches("module 'testsys' not found", why)
      assert.is_false((pcall(s.eval, s, [[
        for _, search in ipairs(package.searchers) do
          package.cpath = %q
          local found = search("testsys")
          if type(found) == "function" then return "found" end
        end
        error("not found")]], t.path("elsewhere/?.so"))))
      s.d:stop()
    end
  end)

  it("without lua_cpath finds none in the daemon", function()
    local s = serve "return {}"
    local ok, why = pcall(s.eval, s, "return require('socket.core')")
    assert.is_false(ok)
    assert.is_nil(why:find("%.so"))
    assert.equal("", s:eval "return package.cpath")
  end)
end)
