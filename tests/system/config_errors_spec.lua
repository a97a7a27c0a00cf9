-- Mistakes that keep the daemon from starting: an exact message for each, all of them at once, status 1, and nothing left behind.
local t = require "tests.support.harness"
local lfs = require "lfs"

-- Starts with that configuration, which must fail; returns what it said, less the times and the name of the folder.
local function fails(text, more)
  t.write("good.lua", "return {}")
  local command = { "-c", t.write("reactord.conf", text), cwd = t.dir() }
  for name, value in pairs(more or {}) do command[name] = value end
  local r = t.reactord(command)
  assert.equal(1, r.status)
  assert.equal("", r.out)
  return (r.err:gsub("%d+%-%d+%-%d+T[%d:.]+Z ", ""):gsub(t.dir():gsub("%p", "%%%0") .. "/", ""):gsub("%f[%w%.]%./", ""))
end

local handlers = '\nhandlers = { "." }\n'

describe("the daemon does not start", function()
  t.auto()

  it("with unknown options, whose neighbours it names", function()
    assert.equal("error reactord.conf:2: unknown option 'drian_timeout' (did you mean 'drain_timeout'?)\n",
      fails "\ndrian_timeout = 5\n")
    assert.equal("error reactord.conf:3: unknown option 'idle_timeot' in listen (did you mean 'idle_timeout'?)\n",
      fails(handlers .. 'listen "tcp://127.0.0.1:9" { handler = "good", idle_timeot = 5 }\n'))
    assert.equal("error reactord.conf:5: unknown option 'zebra' in connect\n",
      fails(handlers .. 'connect "tcp://127.0.0.1:9" {\n  handler = "good",\n  zebra = 1 }\n'))
    assert.equal("error reactord.conf:1: unknown option 'x' (a variable of your own begins with local)\n", fails "x = 1")
  end)

  it("with values of the wrong type or out of bounds", function()
    for text, message in pairs {
      ["drain_timeout = true"] = "'drain_timeout' must be a number of seconds from 0 to 315360000, got true",
      ["drain_timeout = -1"] = "'drain_timeout' must be a number of seconds from 0 to 315360000, got -1",
      ["generations = 1.5"] = "'generations' must be a whole number from 1 to 100, got 1.5",
      ["unsafe = 1"] = "'unsafe' must be true or false, got 1",
      ["processes = 257"] = "'processes' must be a whole number from 1 to 256, or \"auto\", got 257",
      ['processes = "all"'] = "'processes' must be a whole number from 1 to 256, or \"auto\", got \"all\"",
      ["log = 5"] = "'log' must be a table such as { level = \"info\" }",
      ["log = { level = 'loud' }"] = "'level' in log must be one of \"error\", \"warn\", \"info\", \"debug\", got \"loud\"",
      ["group = 'nogroup'"] = false,
    } do
      local said = fails(text)
      if message then
        assert.equal("error reactord.conf:1: " .. message .. "\n", said)
      else
        assert.equal("error reactord.conf: 'group' needs 'user' as well\n", said)
      end
    end
    assert.matches("^error reactord.conf:1: 'memory_limit' must be a whole number of bytes from 1048576 to 1099511627776, or a text",
      fails "memory_limit = 5")
    assert.equal("error reactord.conf:1: 'handlers' must be a list of folders such as { \"handlers\" }: each item a text\n",
      fails "handlers = { 1 }")
  end)

  it("with a file that is no configuration", function()
    assert.matches("^error reactord.conf:2: [^\n]*near", fails "\nlisten {")
    assert.matches("^error reactord.conf:1: ", fails 'error "x"')
    assert.matches("^error reactord.conf:[12]: ", fails "while true do\nend")
    assert.matches("^error reactord.conf: ", fails("\27Lua"))
  end)

  it("with blocks that make no sense", function()
    local said = fails(handlers .. [[
listen "tcp://127.0.0.1:9" {}
listen "ftp://127.0.0.1:9" { handler = "good" }
listen "tcp://127.0.0.1:9" { handler = "good" }
listen "tcp://127.0.0.1:10" { handler = "good", mode = "0660" }
connect "tcp://127.0.0.1:0" { handler = "good" }
listen "tcp://127.0.0.1:11" { handler = "good", low_water = 10, high_water = 5 }
]])
    assert.matches('reactord.conf:3: listen "tcp://127.0.0.1:9" needs a handler', said)
    assert.matches('reactord.conf:4: [^\n]*ftp://127.0.0.1:9', said)
    assert.matches('reactord.conf:5: listen "tcp://127.0.0.1:9" stands already at reactord.conf:3', said)
    assert.matches("reactord.conf:6: 'mode' in listen \"tcp://127.0.0.1:10\": only a unix:// socket has permissions", said)
    assert.matches('reactord.conf:7: "tcp://127.0.0.1:0": the port to connect to must be a number from 1 to 65535', said)
    assert.matches("reactord.conf:8: 'low_water' in listen %(10%) must not be above high_water %(5%)", said)
    assert.equal(6, select(2, said:gsub("\n", "")))
  end)

  it("with mistakes in included files, by their names", function()
    t.write("conf.d/a.conf", "\ndrian_timeout = 1")
    t.write("conf.d/b.conf", 'listen "unix://x" { handler = "good" }\n}')
    local said = fails 'include "conf.d/*.conf"\nzebra = 1'
    assert.matches("error conf.d/a.conf:2: unknown option 'drian_timeout'", said)
    assert.matches("error conf.d/b.conf:2: ", said)
    assert.matches("error reactord.conf:2: unknown option 'zebra'", said)
  end)

  it("when a port is in use, and says so for each one", function()
    local a, b, free = t.listen(), t.listen(), t.free_port()
    local said = fails(([[listen "tcp://127.0.0.1:%d" { handler = "good" }
listen "tcp://127.0.0.1:%d" { handler = "good" }
listen "tcp://127.0.0.1:%d" { handler = "good" }
listen "unix://new.sock" { handler = "good" }]]):format(a.port, free, b.port) .. handlers)
    assert.equal(([[
error reactord.conf:1: listen tcp://127.0.0.1:%d: Address already in use
error reactord.conf:3: listen tcp://127.0.0.1:%d: Address already in use
]]):format(a.port, b.port), said)
    assert.is_nil(lfs.attributes(t.path("new.sock"), "mode"))
    local c = t.connect(a.port) -- the one who has it is not disturbed
    a:accept():send("x")
    c:expect("x")
  end)

  it("when an address is not ours, a path is taken or cannot be", function()
    t.write("file", "not a socket")
    local s = t.listen("live.sock")
    local said = fails([[listen "tcp://192.0.2.1:9" { handler = "good" }
listen "tcp://no-such-name.invalid:9" { handler = "good" }
listen "unix://file" { handler = "good" }
listen "unix://live.sock" { handler = "good" }
listen "unix://no/folder/x" { handler = "good" }]] .. handlers)
    assert.matches("error reactord.conf:1: listen tcp://192.0.2.1:9: Cannot assign requested address\n", said)
    assert.matches("error reactord.conf:2: listen tcp://no%-such%-name.invalid:9: 'no%-such%-name.invalid' is neither an address of this "
      .. "machine nor a name in /etc/hosts\n", said)
    assert.matches("error reactord.conf:3: listen unix://file: the path exists and is no socket\n", said)
    assert.matches(("error reactord.conf:4: listen unix://live.sock: in use by process %d\n"):format(t.sys.getpid()), said)
    assert.matches("error reactord.conf:5: listen unix://no/folder/x: No such file or directory\n", said)
    assert.equal("not a socket", t.read("file"))
    t.connect(s.path)
    s:accept()
  end)

  it("when a handler is missing, does not compile, fails or is none, and tells of ports with it", function()
    t.write("syntax.lua", "return {\n  x = = 1\n}")
    t.write("fails.lua", 'local em = require "em"\nem.no_such_function()')
    t.write("nothing.lua", "")
    t.write("number.lua", "return 5")
    local s = t.listen()
    local said = fails(([[listen "unix://1" { handler = "missing" }
listen "unix://2" { handler = "syntax" }
listen "unix://3" { handler = "fails" }
listen "unix://4" { handler = "nothing" }
listen "unix://5" { handler = "number" }
listen "unix://6" { handler = "../good" }
listen "unix://7" { handler = "good" }
listen "tcp://127.0.0.1:%d" { handler = "good" }]]):format(s.port) .. handlers)
    assert.matches("error reactord.conf:1: handler 'missing': no such file %(looked for missing.lua, [^\n]*/handlers/missing.lua%)\n", said)
    assert.matches("error reactord.conf:2: handler 'syntax': syntax.lua:2: unexpected symbol near '='\n", said)
    assert.matches("error reactord.conf:3: handler 'fails': fails.lua:2: attempt to call a nil value %(field 'no_such_function'%)\n", said)
    assert.matches("error reactord.conf:4: handler 'nothing': nothing.lua must return a handler [^\n]*, it returned nothing\n", said)
    assert.matches("error reactord.conf:5: handler 'number': number.lua must return a handler [^\n]*, it returned number\n", said)
    assert.matches("error reactord.conf:6: handler '../good': '../good' is not a handler's name\n", said)
    assert.matches("error reactord.conf:8: listen tcp://127.0.0.1:%d+: Address already in use\n", said)
    for i = 1, 7 do assert.is_nil(lfs.attributes(t.path(tostring(i)), "mode")) end
  end)

  it("when a handler is bytecode", function()
    t.write("binary.lua", string.dump(function() return {} end))
    assert.matches("handler 'binary': [^\n]*attempt to load a binary chunk", fails('listen "unix://1" { handler = "binary" }' .. handlers))
  end)

  it("when its log file or pid file cannot be written, and says so on standard error", function()
    assert.equal("error log: cannot open log file no/x.log: No such file or directory\n", fails('log = { file = "no/x.log" }'))
    assert.equal("error pid file no/x.pid: No such file or directory\n", fails('pid_file = "no/x.pid"'))
    -- The log file has it, and so has whoever has started the daemon.
    assert.matches("^error reactord.conf:1: handler 'missing': no such file",
      fails('listen "unix://1" { handler = "missing" }\nlog = { file = "x.log" }' .. handlers))
    assert.matches(" error [^\n]*handler 'missing': no such file", t.read("x.log"))
  end)

  it("when a file may not be read", function()
    t.write("good.lua", "return {}")
    t.write("secret.lua", "return {}")
    t.sys.chmod(t.path("secret.lua"), "0000")
    t.write("a.conf", 'handlers = { "." }\nlisten "unix://@reactord-test-' .. t.sys.getpid() .. '" { handler = "secret" }')
    t.write("b.conf", "")
    t.sys.chmod(t.path("b.conf"), "0000")
    local as = t.sys.getuid() == 0 and 65534 or nil
    if as then t.copy_daemon() end
    local r = t.reactord { "-c", t.path("a.conf"), uid = as, gid = as }
    assert.equal(1, r.status)
    assert.matches("a.conf:2: handler 'secret': cannot open [^\n]*secret.lua", r.err)
    r = t.reactord { "-c", t.path("b.conf"), uid = as, gid = as }
    assert.equal(1, r.status)
    assert.matches("b.conf: Permission denied\n$", r.err)
  end)
end)
