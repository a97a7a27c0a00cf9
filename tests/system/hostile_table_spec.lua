-- Hostile handlers, one a row: whatever one of them does costs its own connection at most. Meanwhile a neighbour, another handler on
-- another connection of the same daemon, has its bytes answered as ever. hostile_spec.lua has loops in every callback one by one.
local t = require "tests.support.harness"

local LIMIT = t.sanitized and 0.5 or 0.15 -- callback_time
local TIMES = t.full and 5 or 1           -- how often each is done in one daemon

-- What a handler finds: em, self, x (a table of the handler's), port (its own listener's), forever.
-- { what, code [, options] }: options.prelude stands before the handler; fate = "ends" (the default: the connection ends), "back" (it comes
-- back and nothing ends), "any" (the one or the other), "killed" (a C function that nothing in the process can stop: the watchdog's).
local rows = {
  -- loops, and ways to hide them
  { "a loop", "while true do end" },
  { "a loop in a coroutine of a coroutine", "coroutine.wrap(function() coroutine.wrap(forever)() end)()" },
  { "a loop that catches everything", "while true do pcall(forever) end" },
  { "a loop under xpcall whose handler loops", "while true do xpcall(forever, forever) end" },
  { "pcalls nested a hundred deep around a loop", "local function f(n) if n == 0 then forever() end pcall(f, n - 1) forever() end f(100)" },
  { "a loop in __index", "return setmetatable({}, { __index = forever }).x" },
  { "a loop in __newindex", "setmetatable({}, { __newindex = forever }).x = 1" },
  { "a loop in __close", "local x <close> = setmetatable({}, { __close = forever })" },
  { "a loop in __close, after an error", "local x <close> = setmetatable({}, { __close = forever }) error('then')" },
  { "a loop in __tostring", "tostring(setmetatable({}, { __tostring = forever }))" },
  { "a loop in __len", "return #setmetatable({}, { __len = forever })" },
  { "a loop in __concat", "return setmetatable({}, { __concat = forever }) .. ''" },
  { "a loop in __lt", "return setmetatable({}, { __lt = forever }) < 1" },
  { "a loop in __call", "setmetatable({}, { __call = forever })()" },
  { "a loop in __pairs", "for _ in pairs(setmetatable({}, { __pairs = forever })) do end" },
  { "a loop in __gc", "setmetatable({}, { __gc = forever })" },
  { "a loop in __gc that is set later",
    "local m = {} setmetatable({}, m) m.__gc = forever for _ = 1, 9 do collectgarbage('step') end",
    { fate = "back" } },
  { "a loop in an error's __tostring", "error(setmetatable({}, { __tostring = forever }))" },
  { "a loop in a callback of string.gsub", "string.gsub('x', '.', forever)" },
  { "a loop in a comparator", "table.sort({ 1, 2, 3 }, forever)" },
  { "a comparator without sense", "local l = {} for i = 1, 1000 do l[i] = i end table.sort(l, function() return true end)",
    { fate = "any" } },
  { "a loop in a reader of load", "load(forever)" },
  { "a loop in a module", "require 'endless'", { prelude = "package.preload.endless = forever" } },
  { "a loop in the error handler", "error('x')", { prelude = "em.error_handler(forever)" } },
  { "a loop in a coroutine that is resumed for ever", "local co = coroutine.create(forever) while true do coroutine.resume(co) end" },
  -- yields
  { "a yield", "coroutine.yield()" },
  { "a yield in pcall", "pcall(coroutine.yield) forever()" },
  { "a yield in a comparator", "table.sort({ 1, 2, 3 }, coroutine.yield)" },
  { "a yield in a metamethod", "return setmetatable({}, { __index = coroutine.yield }).x" },
  { "a yield in __close", "local x <close> = setmetatable({}, { __close = coroutine.yield }) error('x')" },
  { "a yield in an error handler", "xpcall(error, coroutine.yield)" , { fate = "any" } },
  -- C functions with much to do
  { "string.rep of nothing", "for _ = 1, 10 do (''):rep(1 << 50) end", { fate = "back" } },
  { "string.rep of too much", "('x'):rep(1 << 50)" },
  { "string.rep with a separator of too much", "(''):rep(1 << 40, 'x')" },
  { "table.move of nothing", "table.move({}, 1, 1 << 50, 2)" },
  { "table.concat of nothing", "table.concat({}, '', 1, 1 << 50)" },
  { "table.concat of what loops", "table.concat(setmetatable({}, { __index = function() return '' end }), '', 1, 1 << 50)" },
  { "table.unpack of too much", "table.unpack({}, 1, 1 << 30)" },
  { "table.insert into what claims to be long", "table.insert(setmetatable({}, { __len = function() return 1 << 60 end }), 1, 1)" },
  { "table.remove from what claims to be long", "table.remove(setmetatable({}, { __len = function() return 1 << 60 end }), 1)" },
  { "string.format of too much", "('%99999d'):format(1)" },
  { "string.char of what is none", "string.char(1 << 40)" },
  { "utf8.char of much", "utf8.char(table.unpack({}, 1, 200))" },
  { "string.pack of too much", "string.pack('!16 s' .. ('i16'):rep(1000) , 1)" },
  { "a pattern that recurses", "(('('):rep(300)):find((('%b()'):rep(300)))", { fate = "any" } },
  { "a pattern with too many captures", "('x'):rep(100):find(('(.)'):rep(100))" },
  { "a pattern with a deep stack", "('x'):rep(300000):find(('x?'):rep(300000) .. 'b')" },
  { "a catastrophic pattern", "(('a'):rep(3000)):find(('.-'):rep(8) .. 'b')", { fate = "killed" } },
  { "reading from what never writes", "io.open(x.fifo):read()", { fate = "killed" } },
  -- memory
  { "a string that doubles", "local s = 'x' while true do s = s .. s end" },
  { "tables without end", "local l = {} while true do l = { l } end" },
  { "a table that grows", "local l = {} for i = 1, 1 << 40 do l[i] = i end" },
  { "coroutines without end", "local l = {} while true do l[#l + 1] = coroutine.create(print) end" },
  { "closures without end", "local f = print while true do local g = f f = function() return g() end end" },
  { "a hoard in a global", "hoard = {} for i = 1, 1 << 40 do hoard[i] = { i } end", { replaced = true } },
  { "a hoard in a global, under pcall", "hoard = {} pcall(function() for i = 1, 1 << 40 do hoard[i] = { i } end end) ('x'):rep(1 << 40)",
    { replaced = true } },
  { "a source of great size", "assert(load('return {' .. ('{},'):rep(9000000) .. '}'))" },
  -- recursion
  { "recursion", "local function f() return 1 + f() end f()" },
  { "recursion through C", "local function f() return (('x'):gsub('x', f)) end f()" },
  { "recursion through pcall", "local function f() assert(pcall(f)) end f()" },
  { "recursion through coroutines", "local function f() coroutine.wrap(f)() end f()" },
  { "recursion through metamethods", "local m = {} m.__index = function(l, k) return l[k + 1] end return setmetatable({}, m)[1]" },
  { "recursion through tostring", "local m = {} m.__tostring = function(v) return tostring(v) end tostring(setmetatable({}, m))" },
  { "recursion through error handlers", "local function f() xpcall(error, f) end f() error('end')" },
  { "recursion through load", "local function f() load(f) end f() error('end')" },
  { "a source nested too deep", "assert(load(('('):rep(100000) .. '1' .. (')'):rep(100000)))" },
  { "connections that connect", [[
    local C = {}
    function C:post_init() em.connect('127.0.0.1', 1, C) end
    em.connect('127.0.0.1', 1, C)
    error('x')]] },
  -- error objects
  { "an error that is nil", "error(nil)" },
  { "an error that is a table", "error({})" },
  { "an error that is a function", "error(print)" },
  { "an error that is a boolean", "error(false)" },
  { "an error that is a connection", "error(self)" },
  { "an error that is a coroutine", "error(coroutine.create(print))" },
  { "an error whose __tostring raises", "error(setmetatable({}, { __tostring = function() error('again') end }))" },
  { "an error whose __tostring returns a number", "error(setmetatable({}, { __tostring = function() return 5 end }))" },
  { "an error whose __tostring yields", "error(setmetatable({}, { __tostring = coroutine.yield }))" },
  { "an error with a long text", "error(('x'):rep(1000000))" },
  { "an error of other bytes", "error('\\0\\255\\n2000-01-01 forged')" },
  { "an error in the error handler", "error('x')", { prelude = "em.error_handler(error)" } },
  { "an error in unbind", "self.unbind = error error('x')" },
  { "an error in each callback", [[
    local C = setmetatable({}, { __index = function() error('look-up') end })
    pcall(em.connect, '127.0.0.1', port, C)
    error('x')]] },
  -- storms
  { "a storm of next_ticks", "for _ = 1, 100000 do em.next_tick(function() end) end", { fate = "back" } },
  { "next_ticks without end", "local function again() if not x.enough then em.next_tick(again) end end again()", { fate = "back" } },
  { "a million timers", "for i = 1, 1000000 do em.add_timer(1000 + i, print) end", { fate = "any", replaced = true, slow = true } },
  { "timers that are due at once", "for _ = 1, 20000 do em.add_timer(0, function() end) end", { fate = "any" } },
  { "a storm of connections", "for _ = 1, 300 do em.connect('127.0.0.1', port, {}) end", { fate = "any", nofile = 200 } },
  { "a storm of children", "for _ = 1, 200 do em.popen('true', {}) end", { fate = "any", nofile = 200 } },
  { "a storm of servers", "for _ = 1, 300 do em.start_server('127.0.0.1', 0, {}) end", { fate = "any", nofile = 200 } },
  { "a storm of open files", "for i = 1, 300 do x[i] = io.open('/dev/null') end", { fate = "any", nofile = 200 } },
  { "more output than is allowed", "local s = ('x'):rep(1 << 20) while self:send_data(s) ~= nil do end", { fate = "ends" } },
  { "small writes without end", "while true do self:send_data('x') end" },
  { "listeners that emit", "self:on('x', function() self:emit('x') end) self:emit('x')" },
  { "a log that floods", "while true do em.log.info('flood') end" },
  { "a log of other lines that floods", "local i = 0 while true do i = i + 1 em.log.debug('flood %d', i) end" },
  -- others' things
  { "closing itself twice and on",
    "self:close_connection() self:close_connection(true) self:close_write() self:pause() self:resume() self:detach()", { fate = "any" } },
  { "emptying itself", "for k in pairs(self) do self[k] = nil end setmetatable(self, nil) error('x')" },
  { "an instance without its metatable", "setmetatable(self, {}) self.signature = nil", { fate = "any" } },
  { "a closed standard error", "io.stderr:close() io.output():close() io.stdout:close()", { fate = "any" } },
  { "another default output", "io.output('/dev/full') io.write(('x'):rep(100000)) io.output():flush()", { fate = "any" } },
  { "leaving the process", "os.exit(1)" },
  { "running a program", "os.execute('kill -9 $PPID')" },
  { "the debug library", "debug.sethook() debug.setmetatable('', nil) debug.getregistry()[1] = nil" },
  { "bytecode", "assert(load('\\27Lua\\x54\\0\\x19\\x93\\r\\n\\x1a\\n'))" },
  { "coroutine.close", "coroutine.close(coroutine.create(print))" },
  { "no collector any more", "collectgarbage('stop')" },
  { "a string metatable with a loop", "getmetatable('').__index = forever" },
  { "a string metatable replaced", "setmetatable('', {})" },
  { "the string library", "for k in pairs(string) do string[k] = nil end" },
  { "the string library, raw", "for k in pairs(string) do rawset(string, k, forever) end" },
  { "the globals", "for k in pairs(_G) do _G[k] = nil end" },
  { "a metatable for the globals", "setmetatable(_G, { __index = forever, __newindex = forever })" },
  { "em's functions", "for k in pairs(em) do em[k] = forever end" },
  { "em's base of all connections", "for k in pairs(em.Connection) do em.Connection[k] = forever end" },
  { "a metatable for em", "setmetatable(em, { __index = forever })" },
  { "em's insides", "for k in pairs(require 'em.core') do require('em.core')[k] = forever end" },
  { "loaded modules", "for k in pairs(package.loaded) do package.loaded[k] = nil end" },
  { "paths and searchers", "package.path = 42 package.searchers = {} package.preload = nil", { fate = "any" } },
  { "another's emit", "require('em.core').set_emit(forever)", { fate = "any" } },
}

-- The neighbour uses what others might have broken.
local neighbour = [[
local em = require "em"
local H = em.Connection:extend()
function H:receive_data(data)
  if ("%s"):format(data):upper() == "DIE" then error("never") end
  local list = {}
  for part in data:gmatch("[^ ]+") do table.insert(list, (string.reverse(part))) end
  em.next_tick(function() self:send_data(table.concat(list, " "), "\n") end)
end
return H]]

local function neighbour_is_well(c)
  c:send("neb thgir")
  c:expect("ben right\n")
end

describe("a hostile handler costs its own connection at most:", function()
  t.auto()

  assert(#rows >= 60)
  for _, row in ipairs(rows) do
    local name, code, options = row[1], row[2], row[3] or {}
    local fate = options.fate or "ends"
    if fate == "killed" then goto continue end

    it(name, function()
      local port, other = t.free_port(), t.free_port()
      t.write("neighbour.lua", neighbour)
      t.write("hostile.lua", ([[
        local em = require "em"
        local x, port = {}, %d
        local function forever() while true do end end
        %s
        local H = em.Connection:extend()
        function H:receive_data(word)
          if word == "ok" then x.enough = true return self:send_data("ok") end
          local function act() %s end
          act()
          self:send_data("came back")
        end
        return H]]):format(port, options.prelude or "", code))
      local d = t.start {
        config = ([[
          callback_time, memory_limit, drain_timeout = %g, "24 MiB", 0.2
          listen "tcp://127.0.0.1:%d" { handler = "hostile", max_outbound = "8 MiB", high_water = "1 MiB" }
          listen "tcp://127.0.0.1:%d" { handler = "neighbour" }]]):format(options.slow and t.seconds(10) or LIMIT, port, other),
        limits = options.nofile and { nofile = options.nofile } or nil,
      }
      local beside = t.connect(other)
      neighbour_is_well(beside)
      for _ = 1, TIMES do
        local c = t.connect(port)
        c:send("act")
        if fate == "back" then
          c:expect("came back")
        elseif fate == "ends" then
          c:receive_end()
        else
          pcall(c.receive, c, 9) -- what it says, if it says so, or its end
        end
        if options.replaced then -- its memory was full: all connections of the VM may have ended, and new ones are served
          t.until_true(function()
            local ok, again = pcall(t.connect, other)
            return ok and pcall(neighbour_is_well, again)
          end)
        else
          neighbour_is_well(beside)
          if not options.nofile then neighbour_is_well(t.connect(other)) end -- descriptors are the process's
        end
        if fate ~= "any" then t.until_true(function() return pcall(function() t.connect(port):send("ok"):expect("ok") end) end) end
      end
      assert.is_false(d:ended())
      d:stop()
      assert.is_nil(d:log():find("internal error", 1, true))
    end)

    ::continue::
  end
end)

-- What nothing in a process can stop ends with it: the process is killed and replaced, the others never notice.
describe("a hostile handler that hangs in C is killed in time, and its process replaced:", function()
  t.auto()

  for _, row in ipairs(rows) do
    local name, code = row[1], row[2]
    if (row[3] or {}).fate ~= "killed" then goto continue end

    it(name, function()
      local port, other = t.free_port(), t.free_port()
      assert.equal(0, t.run { "mkfifo", t.path("fifo") }.status)
      t.write("neighbour.lua", neighbour)
      t.write("hostile.lua", ([[
        local x = { fifo = %q }
        return { receive_data = function(self, word)
          local function act() %s end
          act()
          self:send_data("came back")
        end }]]):format(t.path("fifo"), code))
      local hang = t.seconds(0.5)
      local d = t.start {
        config = ([[
          processes, callback_time, hang_timeout, drain_timeout = 2, %g, %g, 0.2
          listen "tcp://127.0.0.1:%d" { handler = "hostile" }
          listen "tcp://127.0.0.1:%d" { handler = "neighbour" }]]):format(LIMIT, hang, port, other),
      }
      local beside, well = {}, 0
      for i = 1, 20 do -- in both processes
        beside[i] = t.connect(other)
        neighbour_is_well(beside[i])
      end
      local c = t.connect(port)
      local began = t.now()
      c:send("act")
      c:receive_end()
      local took = t.now() - began
      assert.is_true(took < t.seconds(LIMIT + hang + 3), ("killed after %g s"):format(took))
      d:wait_log("hangs")
      for i = 1, 20 do
        if pcall(neighbour_is_well, beside[i]) then well = well + 1 end
      end
      assert.is_true(well > 0, "nobody has survived")
      for _ = 1, 20 do neighbour_is_well(t.connect(other)) end -- nobody is refused
      assert.is_false(d:ended())
      d:stop()
    end)

    ::continue::
  end
end)
