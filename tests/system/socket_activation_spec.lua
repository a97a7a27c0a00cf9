-- Sockets that the daemon is started with: by systemd's protocol (systemd-socket-activate, or the variables made by a shell), and bare
-- descriptors by their number.
local t = require "tests.support.harness"
local lfs = require "lfs"
local sys = t.sys

local handlers = ("\nhandlers = { %q, %q }\n"):format("%s", t.root .. "/handlers")

local function config_file(text)
  return t.write("reactord.conf", text .. handlers:format(t.dir()))
end

-- Starts the daemon by a command in front of it; options as for sys.spawn.
local function start(command, config, options)
  options = options or {}
  local argv = {}
  for _, word in ipairs(command) do table.insert(argv, word) end
  for _, word in ipairs { t.binary, "-c", config_file(config) } do table.insert(argv, word) end
  local log = t.path("activated.log")
  t.write(log, "")
  options.stdout, options.stderr = log, log
  local d = t.adopt(assert(sys.spawn(argv, options)), log)
  if options.wait ~= false then d:wait_log(options.wait or "%f[%w]ready%f[%W]") end
  return d
end

-- What systemd's own tool does, once a client has come.
local function socket_activate(listen, names)
  local argv = { "systemd-socket-activate" }
  for _, address in ipairs(listen) do
    table.insert(argv, "-l")
    table.insert(argv, address)
  end
  if names then table.insert(argv, "--fdname=" .. names) end
  for _, name in ipairs { "ASAN_OPTIONS", "UBSAN_OPTIONS" } do
    table.insert(argv, ("-E%s=%s:log_path=%s/sanitizer"):format(name, os.getenv(name) or "", t.dir()))
  end
  return argv
end

-- The same protocol by a shell; the descriptors come in options.fds.
local function by_shell(count, names)
  return { "sh", "-c", ('LISTEN_PID=$$ LISTEN_FDS=%d %s exec "$0" "$@"'):format(count, names and "LISTEN_FDNAMES=" .. names or "") }
end

local function connect_soon(where)
  return t.until_true(function()
    local ok, c = pcall(t.connect, where)
    return ok and c
  end, 5, "a socket at " .. where)
end

local function echo(where)
  return t.connect(where):send("hello\n"):expect("hello\n")
end

describe("socket activation", function()
  t.auto()

  it("serves sockets by the names that systemd gives them", function()
    local port, path = t.free_port(), t.path("web.sock")
    local d = start(socket_activate({ "127.0.0.1:" .. port, path }, "web:local"), [[
      listen "fd://local" { handler = "echo" }
      listen "fd://web" { handler = "line_counter" }
    ]], { wait = "Listening on .*sock" })
    local first = connect_soon(port) -- starts the daemon
    d:wait_log("listening on unix://" .. path:gsub("%p", "%%%0"))
    d:wait_log("listening on tcp://127.0.0.1:" .. port)
    first:send("one\n")
    assert.matches("1", first:receive_line())
    echo(path)
    d:stop()
    assert.equal("socket", lfs.attributes(path, "mode"), "the socket's file was removed")
  end)

  it("keeps them over reloads: nobody is refused, and one that was let go can be taken again", function()
    local port, other = t.free_port(), t.free_port()
    local with = 'generations = 10\nlisten "fd://web" { handler = "echo" }\n'
    local d = start(socket_activate({ "127.0.0.1:" .. port }, "web"), with, { wait = "Listening on" })
    local c = connect_soon(port):send("x"):expect("x")
    d:wait_log("ready")
    for generation = 2, 3 do
      local more = generation % 2 == 1 and "" or ('listen "tcp://127.0.0.1:%d" { handler = "echo" }'):format(other)
      config_file(with .. more)
      d:signal("HUP")
      d:wait_log("generation " .. generation .. " serves")
      echo(port)
    end
    config_file(('generations = 10\nlisten "tcp://127.0.0.1:%d" { handler = "echo" }'):format(other))
    d:signal("HUP")
    d:wait_log("generation 4 serves")
    local waits = t.connect(port):send("patience"):expect_silence(0.05)
    config_file(with)
    d:signal("HUP")
    d:wait_log("generation 5 serves")
    waits:expect("patience")
    c:send("y"):expect("y")
    d:stop()
  end)

  it("has TLS on such a socket", function()
    local port = t.free_port()
    local s = t.listen(port)
    start(by_shell(1, "secure"), 'listen "fd://secure" { handler = "echo", tls = { self_signed = true } }', { fds = { s.sock:getfd() } })
    s:close()
    local r = t.run { "sh", "-c", ("(echo hello; sleep 0.3) | openssl s_client -quiet -no_ign_eof -connect 127.0.0.1:%d"):format(port) }
    assert.matches("hello", r.out)
  end)

  it("takes descriptors by number, announced or not", function()
    local one, two = t.listen(), t.listen("two.sock")
    local d = t.start { fds = { one.sock:getfd(), two.sock:getfd() }, config = [[
      listen "fd://3" { handler = "echo" }
      listen "fd://4" { handler = "echo" }
    ]] }
    one:close()
    two:close()
    echo(one.port)
    echo(two.path)
    d:stop()
    assert.equal("socket", lfs.attributes(two.path, "mode"))
  end)

  it("takes them from scripts too", function()
    local s = t.listen()
    local d = t.start { fds = { s.sock:getfd() }, wait = "serving", counters = false, unchecked = true, script = [[
      local em = require "em"
      em.run(function()
        local function try(url)
          local server, message, code = em.listen(url, "echo")
          print(url, server and "listens" or message, code)
          return server
        end
        try "fd://nobody"
        local first = try "fd://3"
        try "fd://3"
        try "fd://99"
        try "fd://1"
        first:stop()
        local second = try "fd://3"
        print(second:address())
        print "serving"
      end)
    ]] }
    echo(s.port)
    local log = d:log()
    assert.matches("fd://nobody\tlisten fd://nobody: no socket of the name 'nobody' was passed to the daemon, nor any other by name\tENO",
      log)
    assert.matches("fd://3\tlistens\tnil\nfd://3\tlisten fd://3: descriptor 3 has a listener already\tEBUSY\n", log)
    assert.matches("fd://99\tlisten fd://99: descriptor 99 is not open\tEBADF", log)
    assert.matches("fd://1\tlisten fd://1: descriptor 1 is not a listening socket that was passed to the daemon\tEINVAL", log)
    assert.matches("\n127.0.0.1\t" .. s.port .. "\n", log)
  end)

  it("says which names there are when one is missing", function()
    local a, b = t.listen(), t.listen()
    local d = start(by_shell(2, "web:admin"), 'listen "fd://wen" { handler = "echo" }',
      { fds = { a.sock:getfd(), b.sock:getfd() }, wait = false })
    d.unchecked = true
    assert.equal(1, (d:wait()))
    assert.matches("reactord.conf:1: listen fd://wen: no socket of the name 'wen' was passed to the daemon %(there are: web, admin%)",
      d:log())
  end)

  it("says when a name is not of one listening socket", function()
    local a, b = t.listen(), t.listen()
    local c = t.connect(a.port)
    local d = start(by_shell(3, "twice:twice:client"),
      'listen "fd://twice" { handler = "echo" }\nlisten "fd://client" { handler = "echo" }',
      { fds = { a.sock:getfd(), b.sock:getfd(), c.fd }, wait = false })
    d.unchecked = true
    assert.equal(1, (d:wait()))
    assert.matches("reactord.conf:1: listen fd://twice: several sockets have the name 'twice' %(3 and 4%): use the number", d:log())
    assert.matches("reactord.conf:2: listen fd://client: descriptor 5 is not a listening stream socket", d:log())
  end)

  it("tells of sockets that nobody wants", function()
    local a, b = t.listen(), t.listen()
    local d = start(by_shell(2, "web:admin"), 'listen "fd://web" { handler = "echo" }', { fds = { a.sock:getfd(), b.sock:getfd() } })
    d:wait_log("nobody listens on the socket 'admin' that was passed as descriptor 4 %(127.0.0.1:" .. b.port .. "%)")
    d:stop()
  end)

  it("believes LISTEN_FDS only where it is meant for this process, and hands it to nobody", function()
    local s = t.listen()
    local d = t.start { fds = { s.sock:getfd() }, env = { LISTEN_PID = "1", LISTEN_FDS = "1", LISTEN_FDNAMES = "web" },
      config = 'listen "fd://web" { handler = "echo" }', wait = false, unchecked = true }
    assert.equal(1, (d:wait()))
    assert.matches("no socket of the name 'web' was passed to the daemon, nor any other by name", d:log())
    t.write("env.lua", [[
      local em = require "em"
      em.next_tick(function()
        em.log.info("variables: %s %s %s", os.getenv "LISTEN_FDS", os.getenv "LISTEN_PID", os.getenv "LISTEN_FDNAMES")
      end)
      return {}
    ]])
    d = start(by_shell(1, "web"), 'listen "fd://web" { handler = "env" }', { fds = { s.sock:getfd() } })
    d:wait_log("variables: nil nil nil")
    d:stop()
  end)

  it("does not take what would have been an option of the socket's maker", function()
    for _, option in ipairs { "backlog = 5", 'mode = "0660"', "reuse_port = true" } do
      local r = t.reactord { "-t", "-c", config_file(('listen "fd://web" { handler = "echo", %s }'):format(option)) }
      assert.equal(1, r.status)
      assert.matches("'" .. option:match("^%S+") .. "' in listen \"fd://web\": the socket is open already", r.err)
    end
    local r = t.reactord { "-t", "-c", config_file 'listen "fd://web" { handler = "echo" }' }
    assert.equal("", r.err)
    assert.equal(0, r.status)
    r = t.reactord { "-t", "-c", config_file 'connect "fd://web" { handler = "echo" }' }
    assert.equal(1, r.status)
    assert.matches("cannot connect to \"fd://web\"", r.err)
  end)
end)
