-- Servers and clients that scripts open: every way to say where and with what, and what is refused how.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local function escape(text) return (text:gsub("%p", "%%%0")) end

-- A daemon whose VM has an echo class as x.Echo.
local function start()
  return serve [[
    x.Echo = em.Connection:extend()
    function x.Echo:initialize(...) self.args = table.pack(...) end
    function x.Echo:receive_data(data) self:send_data(data) end
    return x.Echo]]
end

local function raises(s, text, pattern)
  local ok, why = pcall(s.eval, s, "%s", text)
  assert.is_false(ok, text)
  assert.matches(pattern, why)
end

describe("em.start_server", function()
  t.auto()

  it("serves on a port that it picks, and tells it", function()
    local s = start()
    local host, port = s:eval "x.server = em.start_server('127.0.0.1', 0, x.Echo) return x.server:address()"
    assert.equal("127.0.0.1", host)
    assert.is_true(port > 0 and port < 65536)
    t.connect(port):send("hello"):expect("hello")
    assert.is_true(s:eval "return x.server:stop()")
    assert.is_false((pcall(t.connect, port)))
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:stop()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return em.stop_server(x.server)" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:pause()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:resume()" })
    assert.same({ "127.0.0.1", port }, { s:eval "return x.server:address()" })
  end)

  it("takes host and port, or a URL; a class, a plain table, a name, a function, or nothing", function()
    local s = start()
    t.write("named.lua", "return { receive_data = function(self, data) self:send_data('named ' .. data) end }")
    for handler, answer in pairs {
      ["x.Echo"] = "hello",
      ["{ receive_data = function(self, data) self:send_data('plain ' .. data) end }"] = "plain hello",
      ["'named'"] = "named hello",
      ["function(conn) conn.receive_data = function(self, data) self:send_data('function ' .. data) end end"] = "function hello",
      ["setmetatable({}, { __index = x.Echo })"] = "hello",
    } do
      for _, where in ipairs { "'127.0.0.1', 0", "'tcp://127.0.0.1:0'", "'localhost', 0" } do
        local _, port = s:eval("x.server = em.start_server(%s, %s) return x.server:address()", where, handler)
        t.connect(port):send("hello"):expect(answer)
        s:eval "x.server:stop()"
      end
    end
    local _, port = s:eval "x.server = em.start_server('127.0.0.1', 0) return x.server:address()"
    local c = t.connect(port)
    c:send("into the void"):shutdown_write():expect_eof()
    _, port = s:eval "x.server = em.start_server('127.0.0.1', 0, nil) return x.server:address()"
    t.connect(port):shutdown_write():expect_eof()
  end)

  it("listens on every address where the host is empty, and on IPv6", function()
    local s = start()
    local host, port = s:eval "return em.start_server('', 0, x.Echo):address()"
    assert.equal("0.0.0.0", host)
    t.connect(port):send("4"):expect("4")
    host, port = s:eval "return em.start_server('::1', 0, x.Echo):address()"
    if host then
      assert.equal("::1", host)
      t.connect(port, { host = "::1" }):send("6"):expect("6")
    end
  end)

  it("hands arguments on to initialize, nil among them", function()
    local s = start()
    local _, port = s:eval [[
      return em.start_server("127.0.0.1", 0, { initialize = function(self, ...)
        local a = table.pack(...)
        for i = 1, a.n do a[i] = tostring(a[i]) end
        self:send_data(a.n .. " " .. table.concat(a, " "))
      end }, "a", nil, 3.5, nil):address()]]
    t.connect(port):expect("4 a nil 3.5 nil")
    _, port = s:eval [[
      local function initialize(self, ...) self:send_data(select("#", ...) .. "") end
      return em.start_server("tcp://127.0.0.1:0", { initialize = initialize }):address()]]
    t.connect(port):expect("0")
  end)

  it("returns nil, a text and a code where the port is in use or the address is not ours", function()
    local s = start()
    local taken = t.listen()
    local url = "tcp://127.0.0.1:" .. taken.port
    for _, call in ipairs { "em.start_server('127.0.0.1', %d, x.Echo)", "em.start_server('tcp://127.0.0.1:%d', x.Echo)",
      "em.listen('tcp://127.0.0.1:%d', x.Echo)", "em.listen({ url = 'tcp://127.0.0.1:%d' }, x.Echo)" } do
      local server, why, code = s:eval("return " .. call, taken.port)
      assert.is_nil(server)
      assert.equal("listen " .. url .. ": Address already in use", why)
      assert.equal("EADDRINUSE", code)
    end
    local server, why, code = s:eval "return em.start_server('192.0.2.1', 4000, x.Echo)"
    assert.same({ nil, "listen tcp://192.0.2.1:4000: Cannot assign requested address", "EADDRNOTAVAIL" }, { server, why, code })
    server, why, code = s:eval "return em.start_server('no.such.host.invalid', 4000, x.Echo)"
    assert.is_nil(server)
    assert.matches("no%.such%.host%.invalid", why)
    assert.equal("EADDRNOTAVAIL", code)
    taken:close()
    assert.is_true(s:eval("x.server = em.start_server('127.0.0.1', %d, x.Echo) return x.server ~= nil", taken.port))
  end)

  it("serves again on the port of a server that was stopped; live connections stay", function()
    local s = start()
    local _, port = s:eval "x.server = em.start_server('127.0.0.1', 0, x.Echo) return x.server:address()"
    local c = t.connect(port)
    c:send("a"):expect("a")
    for _ = 1, 3 do
      assert.is_true(s:eval "return em.stop_server(x.server)")
      c:send("b"):expect("b")
      assert.is_true(s:eval("x.server = em.start_server('127.0.0.1', %d, x.Echo) return x.server ~= nil", port))
      t.connect(port):send("c"):expect("c")
    end
  end)

  it("pauses and resumes", function()
    local s = start()
    local _, port = s:eval "x.server = em.start_server('127.0.0.1', 0, x.Echo) return x.server:address()"
    assert.is_true(s:eval "return x.server:pause()")
    assert.is_true(s:eval "return x.server:pause()")
    local c = t.connect(port)
    c:send("waits")
    assert.equal(4, s:eval "return em.connection_count()") -- three listeners, and the one that asks
    assert.is_true(s:eval "return x.server:resume()")
    c:expect("waits")
  end)

  it("tells its listeners of each connection after post_init, and of its own end", function()
    local s = start()
    local _, port = s:eval [[
      x.server = em.start_server("127.0.0.1", 0, { post_init = function() say("post_init") end })
      say(x.server:on("accept", function(conn) say("accept", type(conn.signature)) conn:send_data("hi") end) == x.server)
      x.server:on("close", function(...) say("close", ...) end)
      return x.server:address()]]
    t.connect(port):expect("hi")
    s:eval "x.server:stop()"
    s:expects { "true", "post_init", "accept number", "close" }
  end)

  it("is kept by what it does, not by who holds it", function()
    local s = start()
    local _, port = s:eval "return em.start_server('127.0.0.1', 0, x.Echo):address()"
    s:eval "for _ = 1, 200 do collectgarbage('step') end"
    t.connect(port):send("still"):expect("still")
  end)

  it("may be called while handlers load, but not opened there", function()
    t.write("h.lua", "require('em').start_server('127.0.0.1', 0, {})\nreturn {}")
    for _, text in ipairs { "em.start_server('127.0.0.1', 0, {})", "em.listen('tcp://127.0.0.1:0')", "em.connect('127.0.0.1', 1)",
      "em.start_unix_domain_server('/tmp/x')", "em.connect_unix_domain('/tmp/x')", "em.bind_connect('127.0.0.1', 0, '127.0.0.1', 1)" } do
      t.write("h.lua", "local em = require 'em'\n" .. text .. "\nreturn {}")
      local r = t.reactord { "-t", "-c", t.write("c.conf", ("handlers = { %q }\nlisten %q { handler = 'h' }"):format(t.dir(),
        "tcp://127.0.0.1:" .. t.free_port())) }
      assert.equal(1, r.status)
      assert.matches("h%.lua:2: nothing can be opened while handlers load: do it in em%.next_tick", r.err)
    end
  end)

  it("names the argument that is wrong", function()
    local s = start()
    for text, pattern in pairs {
      ["em.start_server()"] = "bad argument #1 to 'start_server' %(string expected, got no value%)",
      ["em.start_server({}, 0)"] = "bad argument #1 to 'start_server' %(string expected, got table%)",
      ["em.start_server('127.0.0.1')"] = "bad argument #2 to 'start_server' %(number expected, got nil%)",
      ["em.start_server('127.0.0.1', 'x')"] = "bad argument #2 to 'start_server' %(number expected, got string%)",
      ["em.start_server('127.0.0.1', -1)"] = "bad argument #2 to 'start_server' %(must be from 0 to 65535%)",
      ["em.start_server('127.0.0.1', 65536)"] = "bad argument #2 to 'start_server' %(must be from 0 to 65535%)",
      ["em.start_server('127.0.0.1', 1.5)"] = "bad argument #2 to 'start_server' %(number has no integer representation%)",
      ["em.start_server('127.0.0.1', 0, 42)"] =
        "bad argument #3 to 'start_server' %(handler %(table, name or function%) expected, got number%)",
      ["em.start_server('127.0.0.1', 0, true)"] = "bad argument #3 to 'start_server' %(handler",
      ["em.start_server('127.0.0.1', 0, io.stdout)"] = "bad argument #3 to 'start_server' %(handler",
      ["em.start_server('127.0.0.1', 0, coroutine.create(print))"] = "bad argument #3 to 'start_server' %(handler",
      ["em.start_server('127.0.0.1', 0, em.connect('127.0.0.1', 1))"] =
        "bad argument #3 to 'start_server' %(handler expected, got connection%)",
      ["em.start_server('tcp://127.0.0.1:0', 42)"] = "bad argument #2 to 'start_server' %(handler",
      ["em.start_server('127.0.0.1', 0, 'no_such')"] = "no such file %(looked for .*/no_such%.lua",
      ["em.start_server('127.0.0.1', 0, '../h')"] = "'%.%./h' is not a handler's name",
      ["em.start_server('127.0.0.1', 0, '')"] = "'' is not a handler's name",
      ["em.start_server('tcp://127.0.0.1')"] = "bad argument #1 to 'start_server' %(.*has no port",
      ["em.start_server('http://127.0.0.1:1')"] = "bad argument #1 to 'start_server' %(.*there is no scheme 'http'",
      ["em.start_server('bad host', 0)"] = "bad argument #1 to 'start_server' %(.*is no host name",
      ["em.listen()"] = "bad argument #1 to 'listen' %(string expected, got no value%)",
      ["em.listen('127.0.0.1:1')"] = "bad argument #1 to 'listen' %(.*is no URL",
      ["em.listen('tcp://127.0.0.1:0', x.Echo, 42)"] = "bad argument #3 to 'listen' %(table expected, got number%)",
      ["em.listen('tcp://127.0.0.1:0', x.Echo, { backlog = 'x' })"] = "bad argument #3 to 'listen' %(.*backlog",
      ["em.listen('tcp://127.0.0.1:0', x.Echo, { backlgo = 1 })"] =
        "bad argument #3 to 'listen' %(.*unknown option 'backlgo'.*did you mean 'backlog'",
      ["em.listen('tcp://127.0.0.1:0', x.Echo, { args = print })"] = "bad argument #3 to 'listen' %(only nil, booleans",
      ["em.listen({}, x.Echo)"] = "bad argument #1 to 'listen' %(the table needs a url%)",
      ["em.listen({ url = 'tcp://127.0.0.1:0', backlgo = 1 }, x.Echo)"] = "bad argument #1 to 'listen' %(.*unknown option 'backlgo'",
      ["em.stop_server()"] = "bad argument #1 to 'stop_server' %(server expected, got no value%)",
      ["em.stop_server(42)"] = "bad argument #1 to 'stop_server' %(server expected, got number%)",
      ["em.start_unix_domain_server()"] = "bad argument #1 to 'start_unix_domain_server' %(string expected, got no value%)",
      ["em.start_unix_domain_server(x.path('s'), 42)"] = "bad argument #2 to 'start_unix_domain_server' %(handler",
      ["em.connect()"] = "bad argument #1 to 'connect' %(string expected, got no value%)",
      ["em.connect('127.0.0.1')"] = "bad argument #2 to 'connect' %(number expected, got nil%)",
      ["em.connect('127.0.0.1', 0)"] = "bad argument #2 to 'connect' %(must be from 1 to 65535%)",
      ["em.connect('127.0.0.1', 1, 42)"] = "bad argument #3 to 'connect' %(handler",
      ["em.connect('tcp://', x.Echo)"] = "bad argument #1 to 'connect' %(.*has no host",
      ["em.connect({ url = 'tcp://127.0.0.1:1', reconect = 1 }, x.Echo)"] = "bad argument #1 to 'connect' %(.*unknown option 'reconect'",
      ["em.connect({}, x.Echo)"] = "bad argument #1 to 'connect' %(the table needs a url%)",
      ["em.connect_unix_domain()"] = "bad argument #1 to 'connect_unix_domain' %(string expected, got no value%)",
      ["em.connect_unix_domain(x.path('s'), 42)"] = "bad argument #2 to 'connect_unix_domain' %(handler",
      ["em.bind_connect()"] = "bad argument #1 to 'bind_connect' %(string expected",
      ["em.bind_connect('127.0.0.1', 'x')"] = "bad argument #2 to 'bind_connect' %(number expected, got string%)",
      ["em.bind_connect('127.0.0.1', 0)"] = "bad argument #3 to 'bind_connect' %(string expected",
      ["em.bind_connect('127.0.0.1', 0, '127.0.0.1')"] = "bad argument #4 to 'bind_connect' %(number expected",
      ["em.bind_connect('127.0.0.1', 0, '127.0.0.1', 1, 42)"] = "bad argument #5 to 'bind_connect' %(handler",
      ["em.reconnect('127.0.0.1', 1)"] = "bad argument #3 to 'reconnect' %(connection expected, got no value%)",
      ["em.reconnect('127.0.0.1', 1, {})"] = "bad argument #3 to 'reconnect' %(connection expected, got table%)",
      ["em.reconnect(1)"] = "bad argument #2 to 'reconnect' %(number expected, got no value%)",
      ["em.Connection.send_data({}, 'x')"] = "bad argument #1 to 'send_data' %(connection expected, got table%)",
      ["em.Connection.send_data(nil, 'x')"] = "bad argument #1 to 'send_data' %(connection expected, got nil%)",
    } do
      raises(s, text, "eval:1: " .. pattern)
    end
    s:until_true "return em.connection_count() == 3" -- nothing was opened meanwhile, or has ended
    assert.equal(0, s:eval "return em.get_timer_count()")
  end)
end)

describe("a server that is stopped", function()
  t.auto()

  it("while the first callback of a connection is looked up hands out no arguments of others", function()
    local s = start()
    local _, port = s:eval [[
      x.server = em.start_server("127.0.0.1", 0, setmetatable({}, { __index = function(_, name)
        if name ~= "initialize" then return x.Echo[name] end
        x.server:stop()
        return function(_, ...) say(...) end
      end }), "a", "b")
      return x.server:address()]]
    t.connect(port):send("hello"):expect("hello")
    s:expects { "a b" }
  end)

  it("may open another one in its close listener, but not at a reload or a stop, which would never end", function()
    local s = serve [[
      local function open()
        local server, why, code = em.start_server("127.0.0.1", 0, {})
        say(server and "open" or why .. " " .. code)
        if server then server:on("close", open) end
        x.server = server
      end
      em.next_tick(open)
      return {}]]
    s:until_true "return x.server ~= nil"
    s:eval "x.server:stop()"
    s:expects { "open", "open" }
    s.d:signal("HUP")
    s:expects { "open", "open", "stopping ECANCELED", "open" }
    s.d:stop()
    s:expects { "open", "open", "stopping ECANCELED", "open", "stopping ECANCELED" }
  end)

  -- What unbinds open anew would never end.
  it("nothing of any kind, in what is called while the daemon ends", function()
    local s = serve([[
      local openers = {
        start_server = function() return em.start_server("127.0.0.1", 0) end,
        start_unix_domain_server = function() return em.start_unix_domain_server(x.path("late.sock")) end,
        listen = function() return em.listen("tcp://127.0.0.1:0") end,
        open_datagram_socket = function() return em.open_datagram_socket("127.0.0.1", 0) end,
        connect = function() return em.connect("127.0.0.1", 1) end,
        connect_unix_domain = function() return em.connect_unix_domain(x.path("late.sock")) end,
        bind_connect = function() return em.bind_connect("127.0.0.1", 0, "127.0.0.1", 1) end,
        popen = function() return em.popen("true") end,
        attach = function() return em.attach(0) end,
        attach_server = function() return em.attach_server(0) end,
        watch = function() return em.watch(0) end,
        watch_file = function() return em.watch_file(x.path("h.lua")) end,
        watch_process = function() return em.watch_process(1) end,
      }
      local H = {}
      function H:unbind()
        for name, open in pairs(openers) do
          local result, why, code = open()
          if result ~= nil or why ~= "stopping" or code ~= "ECANCELED" then say(name, result, why, code) end
        end
        say "asked"
      end
      return H]])
    s:connect():send("x")
    s:until_true "return em.connection_count() == 4"
    s.d:stop { keep_clients = true }
    s:expects { "asked" }
  end)
end)

describe("em.listen", function()
  t.auto()

  it("takes a URL, a handler and the options of the configuration", function()
    local s = start()
    local _, port = s:eval "return em.listen('tcp://127.0.0.1:0', x.Echo, { max_connections = 1, backlog = 5 }):address()"
    local a = t.connect(port)
    a:send("a"):expect("a")
    local b = t.connect(port)
    b:send("b"):expect_silence(0.05)
    a:close()
    b:expect("b")
    _, port = s:eval "return em.listen('tcp://127.0.0.1:0', x.Echo, { idle_timeout = 0.05 }):address()"
    t.connect(port):expect_eof()
    _, port = s:eval "return em.listen('tcp://127.0.0.1:0'):address()"
    t.connect(port):shutdown_write():expect_eof()
  end)

  it("takes all of that in one table, arguments follow the handler then", function()
    local s = start()
    local _, port = s:eval [[
      return em.listen({ url = "tcp://127.0.0.1:0", max_connections_per_address = 1 }, {
        initialize = function(self, a, b) self:send_data(a .. b) end }, "x", "y"):address()]]
    t.connect(port):expect("xy")
    local c = t.connect(port)
    assert.equal("", (c:receive_end()))
  end)

  it("may be a unix:// URL with a mode", function()
    local s = start()
    local path = t.path("listen.sock")
    assert.equal(path, s:eval("x.server = em.listen(%q, x.Echo, { mode = '0600' }) return x.server:address()", "unix://" .. path))
    assert.equal("rw-------", require("lfs").attributes(path, "permissions"))
    t.connect(path):send("u"):expect("u")
    s:eval "x.server:stop()"
    assert.is_nil(require("lfs").attributes(path))
  end)
end)

describe("em.start_unix_domain_server", function()
  t.auto()

  it("serves; the file goes with it; em.connect_unix_domain finds it", function()
    local s = start()
    local path = t.path("u.sock")
    assert.equal(path, s:eval("x.server = em.start_unix_domain_server(%q, x.Echo, 'arg') return x.server:address()", path))
    t.connect(path):send("hello"):expect("hello")
    s:eval([[em.connect_unix_domain(%q, { post_init = function(self) self:send_data("inside") end,
      receive_data = function(self, data) say(data, self:get_peername()) self:close_connection() end })]], path)
    s:waits_for("inside " .. path)
    s:eval "x.server:stop()"
    assert.is_nil(require("lfs").attributes(path))
    s:eval([[em.connect_unix_domain(%q, { unbind = function(_, err, why) say(err, why) end })]], path)
    s:waits_for("ENOENT No such file or directory")
  end)

  it("replaces a dead server's file, and leaves a live one's and other files alone", function()
    local s = start()
    local path = t.path("dead.sock")
    t.run { "sh", "-c", "exec lua5.4 -e 'local u = require(\"socket.unix\").stream() assert(u:bind(arg[1]))' x " .. path }
    local dead = t.listen("dead.sock.2")
    dead:close() -- the file stays
    assert.is_true(s:eval("return em.start_unix_domain_server(%q, x.Echo) ~= nil", dead.path))
    local live = t.listen("live.sock")
    local _
    local server, why, code = s:eval("return em.start_unix_domain_server(%q, x.Echo)", live.path)
    assert.same({ nil, ("listen unix://%s: in use by process %d"):format(live.path, t.sys.getpid()), "EADDRINUSE" }, { server, why, code })
    local file = t.write("file", "keep me")
    server, why = s:eval("return em.start_unix_domain_server(%q, x.Echo)", file)
    assert.is_nil(server)
    assert.matches(escape("listen unix://" .. file .. ": the path exists and is no socket"), why)
    assert.equal("keep me", t.read("file"))
    server, _, code = s:eval("return em.start_unix_domain_server(%q, x.Echo)", t.path("none/x.sock"))
    assert.is_nil(server)
    assert.equal("ENOENT", code)
    server, why, code = s:eval("return em.start_unix_domain_server(%q, x.Echo)", "/tmp/" .. ("x"):rep(120))
    assert.is_nil(server)
    assert.equal("ENAMETOOLONG", code)
    assert.matches("File name too long", why)
    s:eval("em.connect_unix_domain(%q, { unbind = function(_, err, text) say(err, text) end })", "/tmp/" .. ("x"):rep(120))
    s:waits_for("ENAMETOOLONG File name too long")
  end)
end)
