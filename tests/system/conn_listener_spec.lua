-- Listeners: where they listen, whom they let in, what they do when there is no room.
local t = require "tests.support.harness"
local lfs = require "lfs"
local serve = require "tests.support.serve"

-- Says begin and end of each connection, and answers.
local greeter = [[
local H = {}
x.begun, x.ended = 0, 0
function H:post_init() x.begun = x.begun + 1 self:send_data("hello\n") end
function H:receive_data(d) self:send_data(d) end
function H:unbind() x.ended = x.ended + 1 end
]]

describe("max_connections", function()
  t.auto()

  it("lets newcomers wait in the backlog until one of the others has ended", function()
    local s = serve(greeter .. "return H", "max_connections = 2")
    local a, b, c, d = s:connect(), s:connect(), s:connect(), s:connect()
    a:expect("hello\n") b:expect("hello\n")
    c:expect_silence(0.05)
    assert.equal(2, s:eval "return x.begun")
    a:close()
    c:expect("hello\n")
    d:expect_silence(0.05)
    b:send("still here"):expect("still here")
    b:reset()
    d:expect("hello\n")
    c:close() d:close()
    s:until_true("return x.ended == 4")
    s.d:stop()
  end)

  it("is quiet while it waits", function()
    local s = serve(greeter .. "return H", "max_connections = 1")
    s:connect():expect("hello\n")
    s:connect():expect_silence(0.02)
    local wakeups = s.d:wakeups()
    t.sys.sleep(0.2)
    assert.is_true(s.d:wakeups() - wakeups <= 1)
    s.d:stop()
  end)

  it("of a script's listener", function()
    local s = serve(greeter .. [[
      em.next_tick(function()
        x.server = em.listen("tcp://127.0.0.1:0", H, { max_connections = 1 })
        x.listens_on = select(2, x.server:address())
      end)
      return {}]])
    s:until_true("return x.listens_on ~= nil")
    local port = s:eval "return x.listens_on"
    local a = t.connect(port):expect("hello\n")
    local b = t.connect(port):expect_silence(0.05)
    a:close()
    b:expect("hello\n")
    s.d:stop()
  end)

  it("counts those that end in their first callback", function()
    local s = serve("local H = {} function H:post_init() self:close_connection() end return H", "max_connections = 1")
    for _ = 1, 20 do s:connect():expect_eof() end
    s.d:stop()
  end)
end)

describe("max_connections_per_address", function()
  t.auto()

  it("closes what is too many of one host, and only of that one", function()
    local s = serve(greeter .. "return H", "max_connections_per_address = 2")
    local a = s:connect():expect("hello\n")
    s:connect():expect("hello\n")
    local third = s:connect()
    assert.equal("", (third:receive_end()))
    s:connect { bind = "127.0.0.2" }:expect("hello\n")
    assert.equal(3, s:eval "return x.begun")
    a:close()
    s:until_true("return x.ended == 1")
    s:connect():expect("hello\n")
    assert.equal("", (s:connect():receive_end()))
    s.d:stop()
  end)

  it("forgets hosts that are gone", function()
    local s = serve(greeter .. "return H", "max_connections_per_address = 1")
    for i = 1, 60 do
      local c = s:connect { bind = "127.0.1." .. i }:expect("hello\n")
      c:close()
      s:until_true("return x.ended == " .. i)
    end
    s:connect { bind = "127.0.1.7" }:expect("hello\n")
    s.d:stop()
  end)
end)

describe("a server of a script", function()
  t.auto()

  -- Starts a daemon that has em.start_server's result in x.server.
  local function with_server(arguments, more)
    local text = "em.next_tick(function() x.server = em.start_server(%s) %s end) return {}"
    local s = serve(greeter .. text:format(arguments, more or ""))
    s:until_true("return x.server ~= nil")
    return s
  end

  it("on port 0 gets one; address tells, also when it has been stopped", function()
    local s = with_server("'127.0.0.1', 0, H")
    local host, port = s:eval "return x.server:address()"
    assert.equal("127.0.0.1", host)
    assert.is_true(port > 1024)
    t.connect(port):expect("hello\n")
    s:eval "x.server:stop()"
    assert.same({ host, port }, { s:eval "return x.server:address()" })
    s.d:stop()
  end)

  it("on the empty host listens everywhere", function()
    local s = with_server("'', 0, H")
    local host, port = s:eval "return x.server:address()"
    assert.equal("0.0.0.0", host)
    t.connect(port, { host = "127.0.0.9" }):expect("hello\n")
    s.d:stop()
  end)

  it("on a name of the hosts file", function()
    local s = with_server("'localhost', 0, H")
    local host = s:eval "return x.server:address()"
    assert.is_true(host == "127.0.0.1" or host == "::1")
    s.d:stop()
  end)

  it("stopped takes no more; live connections stay; the port is free again", function()
    local s = with_server("'127.0.0.1', 0, H")
    local port = select(2, s:eval "return x.server:address()")
    local c = t.connect(port):expect("hello\n")
    assert.same({ true }, { s:eval "return x.server:stop()" })
    assert.has_error(function() t.connect(port) end)
    c:send("x"):expect("x")
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:stop()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return em.stop_server(x.server)" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:pause()" })
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.server:resume()" })
    for _ = 1, 2 do
      assert.equal("userdata", (s:eval("x.server = em.start_server('127.0.0.1', %d) return type(x.server)", port)))
      s:eval "em.stop_server(x.server)"
    end
    s.d:stop()
  end)

  it("paused leaves newcomers in the backlog; resume lets them in", function()
    local s = with_server("'127.0.0.1', 0, H")
    local port = select(2, s:eval "return x.server:address()")
    assert.same({ true }, { s:eval "return x.server:pause()" })
    local c = t.connect(port):expect_silence(0.05)
    assert.same({ true }, { s:eval "return x.server:resume()" })
    c:expect("hello\n")
    s.d:stop()
  end)

  it("may be paused and stopped inside of accept", function()
    local s = with_server("'127.0.0.1', 0, H", "x.server:on('accept', function() x.server[x.what or 'resume'](x.server) end)")
    local port = select(2, s:eval "return x.server:address()")
    s:eval "x.what = 'pause'"
    local a, b = t.connect(port), t.connect(port)
    a:expect("hello\n")
    b:expect_silence(0.05)
    s:eval "x.what = 'stop' x.server:resume()"
    b:expect("hello\n")
    a:send("x"):expect("x")
    assert.has_error(function() t.connect(port) end)
    s.d:stop()
  end)

  it("reports what the system refuses: nil, message, code", function()
    local s = with_server("'127.0.0.1', 0, H")
    local port = select(2, s:eval "return x.server:address()")
    assert.same({ nil, ("listen tcp://127.0.0.1:%d: Address already in use"):format(port), "EADDRINUSE" },
      { s:eval("return em.start_server('127.0.0.1', %d)", port) })
    local ok, why, code = s:eval "return em.start_server('192.0.2.1', 0)"
    assert.same({ nil, "listen tcp://192.0.2.1:0: Cannot assign requested address", "EADDRNOTAVAIL" }, { ok, why, code })
    ok, why, code = s:eval "return em.start_server('no-such-name', 0)"
    assert.same({ nil, "EADDRNOTAVAIL" }, { ok, code })
    assert.matches("no%-such%-name", why)
    assert.equal(4, s:eval "return em.connection_count()") -- two of the config, this one, the test's line to the daemon
    s.d:stop()
  end)

  it("raises for wrong arguments", function()
    local s = with_server("'127.0.0.1', 0, H")
    for _, wrong in ipairs { "nil", "'127.0.0.1'", "'127.0.0.1', -1", "'127.0.0.1', 65536", "'127.0.0.1', 'x'", "'ftp://127.0.0.1:1'",
      "{}, 1", "'127.0.0.1', 0, 5" } do
      assert.is_false((s:eval("return pcall(em.start_server, %s)", wrong)), wrong)
    end
    for _, wrong in ipairs { "nil", "5", "{}", "'tcp://127.0.0.1:0', {}, { colour = 1 }", "'tcp://127.0.0.1:0', {}, { backlog = 0 }",
      "{ url = 'tcp://127.0.0.1:0', mode = 'x' }", "'tcp://127.0.0.1:0', {}, 5" } do
      assert.is_false((s:eval("return pcall(em.listen, %s)", wrong)), wrong)
    end
    assert.is_false((s:eval "return pcall(em.stop_server, {})"))
    assert.equal(4, s:eval "return em.connection_count()")
    s.d:stop()
  end)

  it("takes every option of the config, as URL and table too, and arguments for initialize", function()
    local s = serve [[
      local H = {}
      function H:initialize(...) say(self:get_comm_inactivity_timeout(), ...) end
      em.next_tick(function()
        local options = { idle_timeout = 4, backlog = 5, nodelay = false, high_water = 10, low_water = 5 }
        x.a = em.listen("tcp://127.0.0.1:0", H, options)
        options.url = "tcp://127.0.0.1:0"
        x.b = em.listen(options, H, "one", 2)
        x.c = em.start_server("tcp://127.0.0.1:0", H, "three")
        x.up = true
      end)
      return {}]]
    s:until_true("return x.up")
    for _, name in ipairs { "a", "b", "c" } do
      t.connect((select(2, s:eval("return x.%s:address()", name))))
      t.until_true(function() return #s:said() == name:byte() - 96 end)
    end
    s:expects { "4.0", "4.0 one 2", "0.0 three" }
    s.d:stop()
  end)

  it("reads the backlog from its options", function()
    local s = serve [[
      em.next_tick(function()
        x.server = em.listen("tcp://127.0.0.1:0", {}, { backlog = 7 })
        x.server:pause()
      end)
      return {}]]
    s:until_true("return x.server ~= nil")
    local port = select(2, s:eval "return x.server:address()")
    local ss = t.run { "sh", "-c", "command -v ss >/dev/null || exit 77; ss -Hltn sport = :" .. port }
    if ss.status ~= 77 then assert.equal("7", ss.out:match("^LISTEN%s+%d+%s+(%d+)")) end
    s.d:stop()
  end)
end)

describe("a Unix listener", function()
  t.auto()

  -- Starts a daemon and asks for a server on a path of the test's folder.
  local function asking(options)
    local s = serve(greeter .. "x.H = H return {}", options)
    return s, function(path, more)
      return s:eval([[
        local r = table.pack(em.listen(%q, x.H, %s))
        x.server = r[1] or x.server
        return r[1] and true, r[2], r[3] ]], "unix://" .. path, more or "nil")
    end
  end

  it("serves, names itself, and is removed at stop", function()
    local s, listen = asking()
    local path = t.path("u.sock")
    assert.is_true(listen(path))
    t.connect(path):expect("hello\n")
    assert.same({ path }, { s:eval "return x.server:address()" })
    s:eval "x.server:stop()"
    assert.is_nil(lfs.symlinkattributes(path))
    assert.is_true((s:eval("return em.start_unix_domain_server(%q, x.H) and true", path)))
    t.connect(path):expect("hello\n")
    s.d:stop()
    assert.is_nil(lfs.symlinkattributes(path))
    assert.is_nil(lfs.symlinkattributes(s.control_path))
  end)

  it("replaces the socket file of a server that is gone", function()
    local s, listen = asking()
    local server = t.listen("stale.sock")
    server:close()
    assert.equal("socket", lfs.symlinkattributes(server.path, "mode"))
    assert.is_true(listen(server.path))
    t.connect(server.path):expect("hello\n")
    s.d:stop()
  end)

  it("refuses the path of a live server, and leaves it alone", function()
    local s, listen = asking()
    local server = t.listen("live.sock")
    assert.same({ nil, ("listen unix://%s: in use by process %d"):format(server.path, t.sys.getpid()), "EADDRINUSE" },
      { listen(server.path) })
    local c = t.connect(server.path)
    server:accept()
    c:close()
    s.d:stop()
  end)

  it("refuses the path of a live server whose backlog is full", function()
    local s, listen = asking()
    local server = t.listen("full.sock", 0)
    local held = {}
    for i = 1, 3 do
      held[i] = require("socket.unix").stream()
      held[i]:settimeout(0)
      held[i]:connect(server.path)
    end
    local _, _, code = listen(server.path)
    assert.equal("EADDRINUSE", code)
    for i = 1, 3 do held[i]:close() end
    s.d:stop()
  end)

  it("refuses a path that is something else, and leaves it alone", function()
    local s, listen = asking()
    local file = t.write("file", "precious")
    local ok, why, code = listen(file)
    assert.same({ nil, "EEXIST" }, { ok, code })
    assert.matches("the path exists and is no socket", why)
    assert.equal("precious", t.read("file"))
    assert.is_nil((listen(t.dir())))
    t.run { "ln", "-s", "file", t.path("link") }
    assert.is_nil((listen(t.path("link"))))
    assert.equal("precious", t.read("file"))
    ok, why, code = listen(t.path("no/such/folder"))
    assert.same({ nil, "ENOENT" }, { ok, code })
    assert.matches("No such file or directory", why)
    s.d:stop()
  end)

  it("refuses a path that is too long", function()
    local s, listen = asking()
    local ok, _, code = listen("/tmp/" .. ("x"):rep(150))
    assert.same({ nil, "ENAMETOOLONG" }, { ok, code })
    ok, _, code = s:eval "return em.start_unix_domain_server('/tmp/' .. ('x'):rep(150))"
    assert.same({ nil, "ENAMETOOLONG" }, { ok, code })
    s.d:stop()
  end)

  it("has the mode asked for", function()
    local s, listen = asking()
    assert.is_true(listen(t.path("m.sock"), "{ mode = '0600' }"))
    assert.equal("rw-------", lfs.symlinkattributes(t.path("m.sock"), "permissions"))
    assert.is_true(listen(t.path("n.sock"), "{ mode = '0666' }"))
    assert.equal("rw-rw-rw-", lfs.symlinkattributes(t.path("n.sock"), "permissions"))
    s.d:stop()
  end)

  it("does not remove a file that is not its own any more", function()
    local s, listen = asking()
    local path = t.path("u.sock")
    assert.is_true(listen(path))
    os.remove(path)
    local other = t.listen("u.sock")
    s:eval "x.server:stop()"
    assert.equal("socket", lfs.symlinkattributes(path, "mode"))
    local c = t.connect(path)
    other:accept()
    c:close()
    s.d:stop()
  end)

  it("may have an abstract name", function()
    local name = "@reactord-test-" .. t.free_port()
    local s = serve(greeter .. ([[
      em.next_tick(function()
        x.server = em.start_unix_domain_server(%q, H)
        em.connect_unix_domain(%q, { receive_data = function(self, d) say(d:sub(1, -2), self:get_peername()) self:close_connection() end })
        say(select(3, em.start_unix_domain_server(%q, H)), x.server:address())
      end)
      return {}]]):format(name, name, name))
    s:expects { "EADDRINUSE " .. name, "hello " .. name }
    s.d:stop()
  end)

  it("does not know the peer's name, and counts no addresses", function()
    local s = serve [[
      local H = {}
      function H:post_init() say(self:get_peername(), self:get_sockname()) end
      em.next_tick(function() x.server = em.listen("unix://" .. x.path "u.sock", H, { max_connections_per_address = 1 }) end)
      return {}]]
    s:until_true("return x.server ~= nil")
    local path = t.path("u.sock")
    t.connect(path)
    t.connect(path)
    s:expects { "nil " .. path, "nil " .. path }
    s.d:stop()
  end)
end)

describe("accepting without descriptors", function()
  t.auto()

  it("pauses with one line a second and little work, serves on, and resumes by itself", function()
    local s = serve(greeter .. "return H", { limits = { nofile = 40 } })
    local list = {}
    for i = 1, 60 do list[i] = s:connect() end
    s.d:wait_log("accepting pauses: Too many open files")
    list[1]:expect("hello\n"):send("x"):expect("x")
    local cpu, from = s.d:cpu(), t.now()
    t.sys.sleep(1.3)
    local share = (s.d:cpu() - cpu) / (t.now() - from)
    assert.is_true(share < 0.2, share)
    local lines = s.d:count_log("accepting pauses")
    assert.is_true(lines >= 2 and lines <= 2 + (t.now() - from), lines)
    list[1]:send("y"):expect("y")
    for i = 1, 30 do list[i]:close() end
    for i = 31, 60 do list[i]:expect("hello\n") end
    assert.equal(60, s:eval "return x.begun")
    s.d:stop()
  end)
end)

describe("a flood of connections", function()
  t.auto()

  it("is taken in batches: others get their turn; all are served", function()
    local s = serve(greeter .. "return H")
    local list = {}
    for i = 1, 400 do list[i] = s:connect() end
    for i = 1, 400 do list[i]:expect("hello\n") end
    assert.equal(400, s:eval "return x.begun - x.ended")
    s.d:stop()
  end)
end)
