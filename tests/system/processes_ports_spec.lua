-- All kinds of listeners in several processes: those of which each has one of its own, and those that all share.
local t = require "tests.support.harness"
local P = require "tests.support.processes"
local pki = require "tests.support.pki"
local tls = require "tests.support.tls"
local socket = require "socket"

-- How many of the processes answer on a number of connections.
local function spread(where, count)
  local counts = { 0, 0 }
  for _ = 1, count do
    local c = P.connect(where)
    counts[c.process] = counts[c.process] + 1
  end
  t.close_clients()
  return counts
end

describe("listeners of several processes", function()
  t.auto()

  before_each(function() t.write("who.lua", P.handler) end)

  it("are one Unix socket for all", function()
    local path = t.path "who.sock"
    local d = t.start { config = ('processes = 2\nlisten "unix://%s" { handler = "who", mode = "0600" }'):format(path) }
    P.connect_to(path, 1)
    P.connect_to(path, 2)
    local pid = P.pids(d)[1]
    P.kill(pid, "KILL")
    P.connect(path)
    P.replaced(d, 1, pid)
    P.connect_to(path, 1)
    d:stop()
    assert.is_nil((require "lfs".attributes(path)))
  end)

  it("are sockets that the daemon was started with", function()
    local server = assert(socket.bind("127.0.0.1", 0, 128))
    local port = tonumber((select(2, server:getsockname())))
    local d = t.start {
      config = 'processes = 2\nlisten "fd://3" { handler = "who" }', fds = { server:getfd() },
    }
    server:close()
    P.connect_to(port, 1)
    P.connect_to(port, 2)
    local pid = P.pids(d)[2]
    P.kill(pid, "KILL")
    P.replaced(d, 2, pid)
    P.connect(port)
    d:signal "HUP"
    d:wait_log "reloaded"
    P.connect(port)
    d:stop()
  end)

  it("receive datagrams in all of them", function()
    t.write("where.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:receive_data(data) self:send_data(("%d %s"):format(em.process(), data)) end
      return H
    ]])
    local port = t.free_port()
    local d = t.start { config = ('processes = 2\nlisten "udp://127.0.0.1:%d" { handler = "where" }'):format(port) }
    local function ask()
      local s = socket.udp()
      s:settimeout(t.seconds(5))
      s:setpeername("127.0.0.1", port)
      s:send "hello"
      local answer = s:receive()
      s:close()
      return tonumber(assert(answer):match "^(%d) hello$")
    end
    local counts = { 0, 0 }
    for _ = 1, 100 do
      local index = ask()
      counts[index] = counts[index] + 1
    end
    assert.is_true(counts[1] > 10 and counts[2] > 10, counts[1] .. " to " .. counts[2])
    local pid = P.pids(d)[2]
    P.kill(pid, "KILL")
    for _ = 1, 20 do ask() end -- those in between wait in the socket
    P.replaced(d, 2, pid)
    d:stop()
  end)

  it("pick one free port for all", function()
    local d = t.start { config = 'processes = 2\nlisten "tcp://127.0.0.1:0" { handler = "who" }' }
    local port = tonumber(d:log():match "listening on tcp://127.0.0.1:(%d+)")
    local counts = spread(port, 60)
    assert.is_true(counts[1] > 5 and counts[2] > 5, counts[1] .. " to " .. counts[2])
    d:stop()
  end)

  it("may have one address by several blocks", function()
    local port = t.free_port()
    local block = ('listen "tcp://127.0.0.1:%d" { handler = "who", reuse_port = true }\n'):format(port)
    local d = t.start { config = "processes = 2\n" .. block .. block }
    local counts = spread(port, 60)
    assert.is_true(counts[1] > 5 and counts[2] > 5, counts[1] .. " to " .. counts[2])
    d:stop()
  end)

  it("resume TLS sessions that another process has begun", function()
    local ca = pki.authority "ca"
    local pair = pki.issue(ca, "server", { names = "DNS:localhost" })
    t.write("reused.lua", [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:receive_data() self:send_data(("%d %s\n"):format(em.process(), self:session_reused())) self:close_connection(true) end
      return H
    ]])
    local port = t.free_port()
    local d = t.start { config = ([[
      processes = 2
      listen "tls://127.0.0.1:%d" { handler = "reused", tls = { certificate = %q, private_key = %q } }
    ]]):format(port, pair.cert, pair.key) }
    local session = t.path "session"
    local function ask(flag)
      local r = t.run { "openssl", "s_client", "-connect", "127.0.0.1:" .. port, flag, session, "-ign_eof", "-quiet", input = "are you?\n" }
      local index, reused = r.out:match "(%d) (%a+)\n"
      return index, reused
    end
    local first, reused = ask "-sess_out"
    assert.equal("false", reused)
    local others = 0
    for _ = 1, 30 do
      local index, again = ask "-sess_in"
      assert.equal("true", again)
      if index ~= first then others = others + 1 end
      if others == 2 then break end
    end
    assert.equal(2, others)
    d:stop()
  end)

  it("have the certificates that were loaded with the code, whatever has become of the files", function()
    local ca = pki.authority "ca"
    local pair = pki.issue(ca, "server", { names = "DNS:localhost" })
    local port = t.free_port()
    local d = t.start { config = ([[
      processes = 2
      listen "tls://127.0.0.1:%d" { handler = "who", tls = { certificate = %q, private_key = %q, ca_file = %q } }
    ]]):format(port, pair.cert, pair.key, ca.cert) }
    for _, path in ipairs { pair.cert, pair.key, ca.cert } do t.write(path:match "[^/]+$", "gone") end
    local pids = P.pids(d)
    for index = 1, 2 do
      P.kill(pids[index], "KILL")
      d:wait_log("process " .. index .. " serves")
    end
    local c = tls.connect(port, { verify = "none" })
    assert.truthy(c:receive(7):match "^%d of 2\n$")
    local mark = d:mark()
    d:signal "HUP" -- which reads them
    d:wait_log("reload refused: .*server.pem", 10, mark)
    d:stop()
  end)

  it("are as many as there are cores with auto", function()
    local port = t.free_port()
    local d = t.start { config = ('processes = "auto"\nlisten "tcp://127.0.0.1:%d" { handler = "who" }'):format(port) }
    local cores = tonumber(t.run { "nproc" }.out)
    assert.equal(cores, P.connect(port).count)
    d:stop()
  end)
end)
