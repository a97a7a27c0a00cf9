-- Reload by SIGHUP: what is new, what stays, what ends, and that a reload that is refused has changed nothing.
local t = require "tests.support.harness"
local lfs = require "lfs"

-- A handler that greets with a word, says back what it hears behind it, and logs how it ends.
local function greeter(word)
  return ([[
local em = require "em"
local H = em.Connection:extend()
function H:post_init() self:send_data("%s\n") end
function H:receive_data(data) self:send_data("%s " .. data) end
function H:unbind(err, why) em.log.info("%s ends: %%s %%s", tostring(err), why) end
return H
]]):format(word, word, word)
end

-- Reloads; returns the number of the generation that serves now.
local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  return tonumber(d:wait_log("reloaded: generation (%d+) serves", nil, mark))
end

-- Reloads, which must be refused; returns what the log says about it.
local function reload_refused(d)
  local mark = d:mark()
  d:signal("HUP")
  d:wait_log("reload refused: generation %d+ serves on", nil, mark)
  return d:log():sub(mark)
end

-- Writes the daemon's configuration anew, with the same folders of handlers.
local function configure(text)
  t.write("reactord.conf", ("%s\nhandlers = { %q }\n"):format(text, t.dir()))
end

-- The number of the socket that listens on a port.
local function listening_inode(port)
  local wanted = (":%04X"):format(port)
  for line in io.lines("/proc/net/tcp") do
    local address, state, inode = line:match("^%s*%d+: %x+(:%x+) %x+:%x+ (%x+) %S+ %S+ %S+%s+%d+%s+%d+ (%d+)")
    if address == wanted and state == "0A" then return inode end
  end
end

local function refuses(port)
  return not pcall(t.connect, port)
end

-- A counter of the daemon's last line.
local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

describe("a reload", function()
  t.auto()

  it("gives new connections the new code and leaves open ones the old", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "one")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port))
    local old = t.connect(port):expect("one\n")
    t.write("greet.lua", greeter "two")
    assert.equal(2, reload(d))
    local new = t.connect(port):expect("two\n")
    old:send("a"):expect("one a")
    new:send("b"):expect("two b")
    d:stop()
    assert.equal(1, counter(d, "reloads"))
    assert.equal(0, counter(d, "reloads_refused"))
  end)

  it("does not touch listeners that have not changed, nor who waits in their backlog", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "one")
    local text = [[listen "tcp://127.0.0.1:%d" { handler = "greet", max_connections = 1 }
      listen "unix://%s" { handler = "greet" }]]
    local d = t.start(text:format(port, t.path("x.sock")))
    local first = t.connect(port):expect("one\n")
    local waiting = t.connect(port) -- not accepted yet
    local inode, file = listening_inode(port), lfs.attributes(t.path("x.sock"), "ino")
    assert.is_truthy(inode)
    t.write("greet.lua", greeter "two")
    for _ = 1, 3 do reload(d) end
    assert.equal(inode, listening_inode(port))
    assert.equal(file, lfs.attributes(t.path("x.sock"), "ino"))
    first:send("a"):expect("one a")
    waiting:expect_silence(0.02)
    first:close()
    waiting:expect("two\n")
    t.connect(t.path("x.sock")):expect("two\n")
    d:stop()
    assert.is_nil(lfs.attributes(t.path("x.sock"), "ino"))
  end)

  it("adds and removes listeners; connections of removed ones stay", function()
    local a, b, path = t.free_port(), t.free_port(), t.path("a.sock")
    t.write("greet.lua", greeter "hello")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "greet" }\nlisten "unix://%s" { handler = "greet" }'):format(a, path))
    local tcp, unix = t.connect(a):expect("hello\n"), t.connect(path):expect("hello\n")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "greet" }\nlisten "unix://b.sock" { handler = "greet" }'):format(b))
    local mark = d:mark()
    reload(d)
    d:wait_log("listening on tcp://127.0.0.1:" .. b, nil, mark)
    d:wait_log("no longer listening on tcp://127.0.0.1:" .. a, nil, mark)
    assert.is_true(refuses(a))
    assert.is_nil(lfs.attributes(path, "mode"))
    t.connect(b):expect("hello\n")
    t.connect(t.path("b.sock")):expect("hello\n")
    tcp:send("1"):expect("hello 1")
    unix:send("2"):expect("hello 2")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(a))
    reload(d)
    t.connect(a):expect("hello\n")
    assert.is_true(refuses(b))
    tcp:send("3"):expect("hello 3")
  end)

  it("brings changed options, arguments and handlers to a listener that stays", function()
    local port = t.free_port()
    t.write("args.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:initialize(...) self.words = table.concat({ ... }, ",") end
      function H:post_init() self:send_data(self.words .. "\n") end
      return H]])
    t.write("greet.lua", greeter "greet")
    local d = t.start(([[listen "tcp://127.0.0.1:%d" { handler = "args", args = { "a", 1 }, max_connections = 1 }
      listen "unix://x.sock" { handler = "args", mode = "0600" }]]):format(port))
    local inode = listening_inode(port)
    t.connect(port):expect("a,1\n")
    assert.equal("rw-------", lfs.attributes(t.path("x.sock"), "permissions"))
    local second = t.connect(port):expect_silence(0.02)
    configure(([[listen "tcp://127.0.0.1:%d" { handler = "args", args = { "b" }, max_connections = 3, backlog = 5, idle_timeout = 0.05 }
      listen "unix://x.sock" { handler = "args", mode = "0666" }]]):format(port))
    reload(d)
    second:expect("b\n"):expect_eof()
    t.connect(port):expect("b\n")
    assert.equal("rw-rw-rw-", lfs.attributes(t.path("x.sock"), "permissions"))
    configure(('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port))
    reload(d)
    t.connect(port):expect("greet\n")
    assert.equal(inode, listening_inode(port))
  end)

  it("counts the connections of an address that were there before there was a limit", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "one")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port))
    local a, b, c = t.connect(port):expect("one\n"), t.connect(port):expect("one\n"), t.connect(port):expect("one\n")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "greet", max_connections_per_address = 2 }'):format(port))
    reload(d)
    t.connect(port):expect_eof()
    a:close()
    b:close()
    d:wait_log("one ends.*one ends")
    a = t.connect(port):expect("one\n")
    t.connect(port):expect_eof()
    a:close()
    c:close()
    d:wait_log("one ends.*one ends.*one ends.*one ends")
    t.connect(port):expect("one\n")
    d:stop()
    assert.equal(2, counter(d, "connections_refused"))
  end)

  it("reads included files, and options of the log and of limits, anew", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "hello")
    local d = t.start('include "conf.d/*.conf"\nlog = { level = "info" }\nhandlers = { "." }')
    t.write("conf.d/one.conf", ('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port))
    t.write("reactord.conf", 'include "conf.d/*.conf"\nlog = { level = "debug" }\nhandlers = { "." }')
    reload(d)
    t.connect(port):expect("hello\n")
    reload(d)
    d:wait_log("debug generation %d has ended")
  end)
end)

describe("the end of a generation", function()
  t.auto()

  -- A daemon with a debug log whose handler says what the file says.
  local function start(options)
    local port = t.free_port()
    t.write("greet.lua", greeter "1")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "greet" }\nlog = { level = "debug" }\n%s'):format(port, options or ""))
    return d, port
  end

  it("comes with its last connection", function()
    local d, port = start()
    local a, b = t.connect(port):expect("1\n"), t.connect(port):expect("1\n")
    reload(d)
    reload(d) -- nothing is connected to the second
    d:wait_log("generation 2 has ended")
    a:close()
    t.connect(port):expect("1\n")
    assert.is_nil(d:log():find("generation 1 has ended", 1, true))
    b:close()
    d:wait_log("generation 1 has ended")
    d:stop()
    assert.equal(0, counter(d, "generations"))
  end)

  it("comes with reload_timeout, and its connections end with the reason", function()
    local d, port = start("reload_timeout = 0.1")
    local old = t.connect(port):expect("1\n")
    reload(d)
    local new = t.connect(port):expect("1\n")
    old:expect_eof()
    d:wait_log("1 ends: nil reloaded")
    d:wait_log("generation 1 has ended")
    new:send("x"):expect("1 x"):expect_silence(0.15)
  end)

  it("comes with the reload_timeout of the new configuration", function()
    local d, port = start()
    local old = t.connect(port):expect("1\n")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "greet" }\nreload_timeout = 0.05'):format(port))
    reload(d)
    old:expect_eof()
  end)

  it("comes when there are more than `generations`", function()
    local d, port = start("generations = 2")
    local first = t.connect(port):expect("1\n")
    reload(d)
    local second = t.connect(port):expect("1\n")
    first:send("x"):expect("1 x")
    reload(d)
    first:expect_eof()
    d:wait_log("1 ends: nil reloaded")
    second:send("x"):expect("1 x")
    d:wait_log("generation 1 has ended")
  end)

  it("stops timers that belong to no connection, and no others", function()
    local port = t.free_port()
    local function handler(word)
      t.write("timers.lua", ([[
        local em = require "em"
        local H = em.Connection:extend()
        function H:post_init() self:add_periodic_timer(0.01, function(c) c:send_data("%s") end) end
        em.run(function()
          em.add_periodic_timer(0.01, function() em.log.info("beat of %s") end)
          em.add_timer(0.05, function() em.log.info("once of %s") end)
        end)
        return H]]):format(word, word, word))
    end
    handler "A"
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "timers" }'):format(port))
    local c = t.connect(port):expect("AA")
    d:wait_log("beat of A")
    handler "B"
    local mark = d:mark()
    reload(d)
    d:wait_log("once of B", nil, mark)
    local after = d:log():match("reloaded: generation 2.*")
    assert.is_nil(after:find("beat of A", 1, true))
    assert.is_truthy(after:find("beat of B", 1, true))
    c.buffer = ""
    c:expect("AAAA")
  end)
end)

describe("connect blocks over a reload", function()
  t.auto()

  it("keep their connection when they have not changed; the next one uses the new code", function()
    local s = t.listen()
    t.write("greet.lua", greeter "one")
    local d = t.start(('connect "tcp://127.0.0.1:%d" { handler = "greet", reconnect = 0.05 }'):format(s.port))
    local c = s:accept():expect("one\n")
    t.write("greet.lua", greeter "two")
    reload(d)
    reload(d)
    c:send("a"):expect("one a"):expect_silence(0.1)
    c:close()
    c = s:accept():expect("two\n")
    d:wait_log("one ends: nil eof")
    t.write("greet.lua", greeter "three")
    reload(d)
    c:send("b"):expect("two b")
    c:reset()
    s:accept():expect("three\n")
  end)

  it("end with the reason when they have changed or gone", function()
    local s, other = t.listen(), t.listen()
    t.write("greet.lua", greeter "hello")
    local text = [[connect "tcp://127.0.0.1:%d" { handler = "greet", args = { %d }, reconnect = 0.05 }]]
    local d = t.start(text:format(s.port, 1))
    local c = s:accept():expect("hello\n")
    configure(text:format(s.port, 2))
    local mark = d:mark()
    reload(d)
    c:expect_eof()
    d:wait_log("hello ends: nil reloaded", nil, mark)
    c = s:accept():expect("hello\n")
    configure(text:format(other.port, 2))
    reload(d)
    c:expect_eof()
    c = other:accept():expect("hello\n")
    configure("")
    reload(d)
    c:expect_eof()
    s.sock:settimeout(0.1)
    assert.is_nil((s.sock:accept()))
    other.sock:settimeout(0)
    assert.is_nil((other.sock:accept()))
  end)

  it("go on waiting for their next attempt, or not, as the new block says", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "hello")
    local text = [[connect "tcp://127.0.0.1:%d" { handler = "greet"%s }]]
    local d = t.start(text:format(port, ", reconnect = 1000"))
    d:wait_log("hello ends: ECONNREFUSED")
    configure(text:format(port, ", reconnect = 0.02"))
    reload(d)
    local s = t.listen(port)
    s:accept():expect("hello\n"):close()
    s:close()
    local mark = d:mark()
    d:wait_log("hello ends: ECONNREFUSED", nil, mark)
    configure(text:format(port, ""))
    reload(d)
    s = t.listen(port)
    s.sock:settimeout(0.1)
    assert.is_nil((s.sock:accept()))
    configure(text:format(port, ", reconnect = 0.02"))
    reload(d) -- has had no connection, and is to have one
    s:accept():expect("hello\n")
  end)
end)

describe("a name that is being looked up during a reload", function()
  t.auto()

  it("is not given up", function() -- whether anybody answers here or not
    local port = t.free_port()
    t.write("asks.lua", [[
      local em = require "em"
      return { unbind = function(_, err, why) em.log.info("asked: %s %s", tostring(err), why) end }]])
    local text = ('connect "tcp://name.invalid:7" { handler = "asks" }\nlisten "tcp://127.0.0.1:%d" { handler = "echo" }'):format(port)
    local d = t.start(text)
    reload(d)
    t.connect(port):send("x"):expect("x")
    d:stop()
    assert.matches("asked: ", d:log())
    assert.is_nil(d:log():find("look-up cancelled", 1, true))
  end)
end)

describe("handler files while they load", function()
  t.auto()

  it("have next_tick and em.run wait until they serve", function()
    local port = t.free_port()
    local function handler(word, rest)
      t.write("ticks.lua", ([[
        local em = require "em"
        assert(not em.reactor_running())
        em.next_tick(function() em.log.info("tick of %s %%s", tostring(em.reactor_running())) end)
        em.run(function() em.log.info("run of %s") end)
        em.schedule(function() em.log.info("scheduled of %s") end)
        em.log.info("loading %s")
        %s
        return {}]]):format(word, word, word, word, rest or ""))
    end
    handler "A"
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "ticks" }'):format(port))
    d:wait_log("loading A.*tick of A true.*run of A.*scheduled of A")
    handler("B", "error('not today')")
    local said = reload_refused(d)
    assert.matches("ticks.lua:7: not today", said)
    assert.matches("loading B", said)
    handler "C"
    local mark = d:mark()
    reload(d)
    d:wait_log("loading C.*tick of C.*run of C.*scheduled of C", nil, mark)
    assert.is_nil(d:log():find("[kn] of B"))
    assert.equal(1, d:count_log("tick of A"))
  end)

  it("may not open anything directly", function()
    local port = t.free_port()
    for _, call in ipairs {
      'em.start_server("127.0.0.1", 0)', 'em.listen("tcp://127.0.0.1:0")', 'em.connect("127.0.0.1", 1)',
      'em.start_unix_domain_server("x.sock")', 'em.connect_unix_domain("x.sock")', 'em.bind_connect("127.0.0.1", 0, "127.0.0.1", 1)',
    } do
      t.write("opens.lua", ('local em = require "em"\n%s\nreturn {}'):format(call))
      local config = t.write("c.conf", ('listen "tcp://127.0.0.1:%d" { handler = "opens" }\nhandlers = { "." }'):format(port))
      local r = t.reactord { "-c", config }
      assert.equal(1, r.status)
      assert.matches("opens.lua:2: nothing can be opened while handlers load: do it in em.next_tick%(fn%) or em.run%(fn%)", r.err)
    end
    t.write("opens.lua", greeter "fine")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "opens" }'):format(port))
    t.write("opens.lua", ('local em = require "em"\n\nem.start_server("127.0.0.1", 0)\nreturn {}'):format(port))
    assert.matches("opens.lua:3: nothing can be opened while handlers load", reload_refused(d))
    t.connect(port):expect("fine\n")
  end)

  it("are stopped when they take too long", function()
    local port = t.free_port()
    t.write("greet.lua", greeter "one")
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "greet" }\ncallback_time = 0.1'):format(port))
    t.write("greet.lua", "while true do end")
    assert.matches("greet.lua:1", reload_refused(d))
    t.connect(port):expect("one\n")
  end)
end)

describe("servers that handlers have opened", function()
  t.auto()

  -- Writes a handler that opens a server as soon as it serves.
  local function opener(port, word)
    t.write("opener.lua", ([[
      local em = require "em"
      local H = em.Connection:extend()
      function H:post_init() self:send_data("%s\n") end
      function H:receive_data(data) self:send_data("%s " .. data) end
      em.run(function()
        local server, why = em.start_server("127.0.0.1", %d, H)
        em.log.info("opened %%s", why or "%s")
      end)
      return H]]):format(word, word, port, word))
  end

  it("go to the next generation's server on the same address, and nobody is refused", function()
    local port = t.free_port()
    opener(port, "1")
    local d = t.start(('listen "unix://x.sock" { handler = "opener" }'):format())
    d:wait_log("opened 1")
    local inode = listening_inode(port)
    local first = t.connect(port):expect("1\n")
    local late
    for generation = 2, 5 do
      opener(port, generation)
      d:signal("HUP")
      late = nil
      t.until_true(function()
        late = t.connect(port)
        return tonumber(late:receive_line()) == generation
      end)
    end
    assert.equal(inode, listening_inode(port))
    late:send("x"):expect("5 x")
    first:close()
  end)

  it("are closed when the next generation does not want them; their connections stay", function()
    local port = t.free_port()
    opener(port, "1")
    local d = t.start(('listen "unix://x.sock" { handler = "opener" }'):format())
    d:wait_log("opened 1")
    local c = t.connect(port):expect("1\n")
    t.write("opener.lua", greeter "2")
    reload(d)
    t.until_true(function() return refuses(port) end)
    c:send("x"):expect("1 x")
  end)
end)

describe("a reload is refused and changes nothing", function()
  t.auto()

  -- A daemon with one good handler.
  local function start()
    local port = t.free_port()
    t.write("greet.lua", greeter "one")
    local text = ('listen "tcp://127.0.0.1:%d" { handler = "greet" }'):format(port)
    return t.start(text), port, text
  end

  -- What must hold after each refusal: old code, for old connections and new ones.
  local function check(d, port, old, refusals)
    old:send("x"):expect("one x")
    t.connect(port):expect("one\n")
    assert.is_nil(d:log():find("generation 2", 1, true))
    d:stop()
    assert.equal(refusals or 1, counter(d, "reloads_refused"))
    assert.equal(0, counter(d, "reloads"))
  end

  it("for handlers that do not compile, fail, return nothing, or are not there", function()
    local d, port = start()
    local c = t.connect(port):expect("one\n")
    t.write("greet.lua", "local em = require 'em'\n\nlocal H = = 1\n")
    assert.matches("reload refused: [^\n]*reactord.conf:1: handler 'greet': [^\n]*greet.lua:3: unexpected symbol near '='",
      reload_refused(d))
    t.write("greet.lua", "local em = require 'em'\nlocal x = nil + 1\n")
    assert.matches("greet.lua:2: attempt to perform arithmetic on a nil value", reload_refused(d))
    t.write("greet.lua", "local em = require 'em'\n")
    assert.matches("greet.lua must return a handler %(a table or a function%), it returned nothing", reload_refused(d))
    t.write("greet.lua", "return 5\n")
    assert.matches("greet.lua must return a handler %(a table or a function%), it returned number", reload_refused(d))
    os.remove(t.path("greet.lua"))
    assert.matches("handler 'greet': no such file %(looked for [^\n]*/greet.lua", reload_refused(d))
    check(d, port, c, 5)
  end)

  it("for the handler of one block among good ones", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    t.write("greet.lua", greeter "two")
    t.write("bad.lua", "x =")
    configure(text .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "bad" }'):format(t.free_port()))
    assert.matches("reactord.conf:2: handler 'bad': [^\n]*bad.lua:1:", reload_refused(d))
    check(d, port, c)
  end)

  it("for mistakes in the configuration, all of which are told", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    configure(text .. '\ndrain_timeout = "long"\nlisten "tcp://127.0.0.1:1" { handlr = "greet", idle_timeot = 1 }')
    local said = reload_refused(d)
    assert.matches("reload refused: [^\n]*reactord.conf:2: 'drain_timeout' must be a number of seconds", said)
    assert.matches("reload refused: [^\n]*reactord.conf:3: unknown option 'handlr' in listen %(did you mean 'handler'%?%)", said)
    assert.matches("reload refused: [^\n]*reactord.conf:3: unknown option 'idle_timeot' in listen %(did you mean 'idle_timeout'%?%)", said)
    assert.matches("reload refused: [^\n]*reactord.conf:3: listen \"tcp://127.0.0.1:1\" needs a handler", said)
    t.write("reactord.conf", "listen")
    assert.matches("reactord.conf:1: ", reload_refused(d))
    os.remove(t.path("reactord.conf"))
    assert.matches("reactord.conf: No such file or directory", reload_refused(d))
    check(d, port, c, 3)
  end)

  it("for a port in use, and what was opened is closed again", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    local s, free = t.listen(), t.free_port()
    configure(text .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "greet" }\nlisten "tcp://127.0.0.1:%d" { handler = "greet" }')
      :format(free, s.port))
    local fds = d:fds()
    local said = reload_refused(d)
    assert.matches(("reload refused: [^\n]*reactord.conf:3: listen tcp://127.0.0.1:%d: Address already in use"):format(s.port), said)
    assert.is_true(refuses(free))
    assert.equal(fds, d:fds())
    check(d, port, c)
  end)

  it("and tells of ports and handlers in one go", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    local s = t.listen()
    t.write("bad.lua", "x =")
    configure(text .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "bad" }\nlisten "unix://x" { handler = "missing" }'):format(s.port))
    local said = reload_refused(d)
    assert.matches("bad.lua:1:", said)
    assert.matches("handler 'missing': no such file", said)
    assert.matches("Address already in use", said)
    assert.is_nil(lfs.attributes(t.path("x"), "mode"))
    check(d, port, c)
  end)

  it("for options that need a restart", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    configure(text .. '\nuser = "nobody"\npid_file = "x.pid"')
    local said = reload_refused(d)
    assert.matches("reactord.conf: 'user' cannot change in a reload: restart the daemon", said)
    assert.matches("reactord.conf: 'pid_file' cannot change in a reload: restart the daemon", said)
    check(d, port, c)
  end)

  it("for a log file that cannot be opened", function()
    local d, port, text = start()
    local c = t.connect(port):expect("one\n")
    configure(text .. '\nlog = { file = "no/such/folder/x.log" }')
    assert.matches("cannot open log file [^\n]*/no/such/folder/x.log: No such file or directory", reload_refused(d))
    check(d, port, c)
  end)

  it("and the next good one is carried out", function()
    local d, port = start()
    t.write("greet.lua", "x =")
    reload_refused(d)
    t.write("greet.lua", greeter "two")
    assert.equal(2, reload(d))
    t.connect(port):expect("two\n")
  end)
end)
