-- Giving up rights: bind as root, serve as somebody else, with the same rights at the start and at each reload.
local t = require "tests.support.harness"
local lfs = require "lfs"
local socket = require "socket"

local is_root = t.sys.getuid() == 0
local nobody, nogroup = 65534, 65534

-- A port below 1024 that is free; nil where such ports are like others.
local function low_port()
  local first = tonumber(t.read("/proc/sys/net/ipv4/ip_unprivileged_port_start") or "1024")
  for port = 600 + t.sys.getpid() % 300, first - 1 do
    local probe = socket.tcp4()
    local free = not is_root or probe:bind("127.0.0.1", port) -- only root can try
    probe:close()
    if free and t.sys.reserve("reactord-test-port-" .. port) then return port end
  end
end

-- A folder that user nobody may write to.
local function open_folder(name)
  assert(lfs.mkdir(t.path(name)))
  assert(t.sys.chown(t.path(name), nobody, nogroup))
  return t.path(name)
end

local function status_field(d, name)
  local text = t.read("/proc/" .. d.pid .. "/status"):match("\n" .. name .. ":%s*([^\n]*)")
  return (text:gsub("%s+", " "):gsub(" $", ""))
end

-- Tells what it may do.
local handler = [[
local em = require "em"
local H = em.Connection:extend()
function H:receive_data(path)
  local file, why = io.open((path:gsub("\n", "")))
  self:send_data(file and "open" or why, "\n")
end
return H
]]

describe("as root with `user`", function()
  t.auto()

  local function prepare()
    if not is_root then pending("only root can change the user") end
    t.copy_daemon()
    t.write("opens.lua", handler)
  end

  local function start(text, more)
    more = more or {}
    more.config = text .. ("\nhandlers = { %q }\n"):format(t.dir())
    return t.start(more)
  end

  it("all of user, group and supplementary groups are those of the user", function()
    prepare()
    local port = t.free_port()
    t.write("secret", "x")
    t.sys.chmod(t.path("secret"), "0600")
    local d = start(('listen "tcp://127.0.0.1:%d" { handler = "opens" }\nuser = "nobody"'):format(port))
    assert.equal("65534 65534 65534 65534", status_field(d, "Uid"))
    assert.equal("65534 65534 65534 65534", status_field(d, "Gid"))
    assert.equal("65534", status_field(d, "Groups"))
    for _, name in ipairs { "CapEff", "CapPrm", "CapInh", "CapAmb" } do assert.matches("^0+$", status_field(d, name)) end
    t.connect(port):send(t.path("secret") .. "\n"):expect(t.path("secret") .. ": Permission denied\n")
    t.connect(port):send(t.path("opens.lua") .. "\n"):expect("open\n")
  end)

  it("user and group may be numbers, and the group another one", function()
    prepare()
    local port = t.free_port()
    local text = 'listen "tcp://127.0.0.1:%d" { handler = "opens" }\nuser = "%s"\ngroup = "%s"'
    for _, case in ipairs {
      { "65534", "1", "65534", "1" }, { "61234", "61235", "61234", "61235" }, { "nobody", "daemon", "65534", "1" },
    } do
      local d = start(text:format(port, case[1], case[2]))
      assert.equal(("%s "):rep(3):format(case[3], case[3], case[3]) .. case[3], status_field(d, "Uid"))
      assert.equal(("%s "):rep(3):format(case[4], case[4], case[4]) .. case[4], status_field(d, "Gid"))
      assert.equal(case[4], status_field(d, "Groups"))
      d:stop()
    end
  end)

  it("unknown users and groups are errors", function()
    prepare()
    for text, message in pairs {
      ['user = "no-such-user"'] = "there is no user 'no-such-user'",
      ['user = "nobody" group = "no-such-group"'] = "there is no group 'no-such-group'",
      ['user = "61234"'] = "user 61234 has no entry in the user database: name a group too",
    } do
      local r = t.reactord { "-c", t.write("reactord.conf", text) }
      assert.equal(1, r.status)
      assert.matches("error " .. message:gsub("%p", "%%%0") .. "\n$", r.err)
    end
  end)

  it("ports below 1024 are bound before; a reload keeps them, and refuses new ones with the reason", function()
    prepare()
    local low, other, high = low_port(), low_port(), t.free_port()
    if not low then pending("all ports may be bound by everyone here") end
    local text = 'listen "tcp://127.0.0.1:%d" { handler = "opens" }\nuser = "nobody"\n'
    local d = start(text:format(low))
    local function reload(more)
      t.write("reactord.conf", text:format(low) .. more .. ("\nhandlers = { %q }\n"):format(t.dir()))
      local mark = d:mark()
      d:signal("HUP")
      d:wait_log("generation %d+ serves", nil, mark)
      return d:log():sub(mark)
    end
    local c = t.connect(low)
    assert.matches("reloaded", reload(('listen "tcp://127.0.0.1:%d" { handler = "opens" }'):format(high)))
    t.connect(high):send(t.path("opens.lua")):expect("open\n")
    local said = reload(('listen "tcp://127.0.0.1:%d" { handler = "opens" }'):format(other))
    assert.matches(("reload refused: [^\n]*reactord.conf:3: listen tcp://127.0.0.1:%d: Permission denied"):format(other), said)
    assert.matches("Permission denied %(ports below 1024 [^\n]*: the daemon has given up its rights, restart it\n", said)
    t.connect(low):send(t.path("opens.lua")):expect("open\n")
    c:send(t.path("opens.lua")):expect("open\n")
  end)

  it("handlers that the user cannot read are an error, at the start and in a reload", function()
    prepare()
    local port = t.free_port()
    local text = ('listen "tcp://127.0.0.1:%d" { handler = "opens" }\nuser = "nobody"'):format(port)
    t.sys.chmod(t.path("opens.lua"), "0600")
    local r = t.reactord { "-c", t.write("reactord.conf", text .. '\nhandlers = { "." }') }
    assert.equal(1, r.status)
    assert.matches("error [^\n]*reactord.conf:1: handler 'opens': cannot open [^\n]*opens.lua", r.err)
    t.sys.chmod(t.path("opens.lua"), "0644")
    local d = start(text)
    t.sys.chmod(t.path("opens.lua"), "0600")
    d:signal("HUP")
    d:wait_log("reload refused: [^\n]*handler 'opens': cannot open [^\n]*opens.lua")
    d:wait_log("generation 1 serves on")
    t.connect(port):send(t.path("opens.lua")):expect(t.path("opens.lua") .. ": Permission denied\n")
    t.sys.chmod(t.path("opens.lua"), "0644")
    d:signal("HUP")
    d:wait_log("generation 2 serves")
  end)

  it("sockets, log and pid file are handed over, as far as folders allow", function()
    prepare()
    local folder = open_folder("run")
    local d = start(('listen "unix://run/x.sock" { handler = "opens", mode = "0600" }\nuser = "nobody"\npid_file = "run/x.pid"\n'
      .. 'log = { file = "run/x.log" }'), { log = folder .. "/x.log" })
    assert.equal(nobody, lfs.attributes(folder .. "/x.sock", "uid"))
    assert.equal(nobody, lfs.attributes(folder .. "/x.log", "uid"))
    t.connect(folder .. "/x.sock"):send(folder .. "/x.log"):expect("open\n")
    assert(os.rename(folder .. "/x.log", folder .. "/old.log"))
    d:signal("USR1")
    t.until_true(function() return t.read("run/x.log") end)
    d:signal("HUP")
    d:wait_log("generation 2 serves")
    d:stop()
    assert.is_nil(lfs.attributes(folder .. "/x.sock", "mode"))
    assert.is_nil(lfs.attributes(folder .. "/x.pid", "mode"))
    -- In a folder of root's they stay behind, and the next start takes them for what they are.
    for _ = 1, 2 do
      d = start('listen "unix://x.sock" { handler = "opens" }\nuser = "nobody"\npid_file = "x.pid"')
      t.connect(t.path("x.sock")):send(t.path("opens.lua")):expect("open\n")
      d:stop()
      assert.equal(d.pid .. "\n", t.read("x.pid"))
    end
  end)
end)

describe("as root, in a folder of somebody else's", function()
  t.auto()

  before_each(function()
    if not is_root then pending("only root can change the user") end
    t.copy_daemon()
    open_folder("run")
    t.write("victim", "mine\n")
  end)

  local function start(text)
    return t.start { config = ('listen "unix://%s" { handler = "echo" }\nuser = "nobody"\n%s\nhandlers = { %q }'):format(
      t.path("run/x.sock"), text, t.path("copy/handlers")), wait = false }
  end

  it("a log file that is another file, by whatever link, is not written to: the start is refused", function()
    t.write("victim", "as it was\n")
    assert(lfs.link("../victim", t.path("run/symbolic.log"), true))
    assert(lfs.link(t.path("victim"), t.path("run/hard.log")))
    assert(lfs.link("..", t.path("run/folder"), true))
    for name, why in pairs {
      ["symbolic.log"] = "Too many levels of symbolic links: there is a symbolic link in this path, which root does not follow here",
      ["hard.log"] = "Too many links: the file has several names, of which root trusts none",
      ["folder/new.log"] = "Too many levels of symbolic links: ",
    } do
      local d = start(('log = { file = "run/%s" }'):format(name))
      d.unchecked = true
      assert.equal(1, (d:wait()))
      assert.is_truthy(d:log():find(name .. ": " .. why, 1, true), name .. ": " .. d:log())
    end
    assert.equal("as it was\n", t.read("victim"))
    assert.is_nil(t.read("new.log"))
  end)

  it("the log may be what the system links to in /dev", function()
    local d = start 'log = { file = "/dev/stderr" }'
    d:wait_log("ready")
    d:kill()
  end)

  it("a pid file that is a pipe does not hold up the start", function()
    assert.equal(0, t.run { "mkfifo", t.path("run/x.pid") }.status)
    local d = start 'pid_file = "run/x.pid"'
    d.unchecked = true
    assert.equal(1, (d:wait()))
    assert.matches("pid file [^\n]*x.pid: not a regular file\n", d:log())
  end)
end)

describe("without root", function()
  t.auto()
  local uid = is_root and nobody or t.sys.getuid()

  before_each(function()
    if is_root then t.copy_daemon() end
    t.write("opens.lua", handler)
  end)

  it("another user cannot be had, and the message says why", function()
    local other = uid == 1 and "2" or "1"
    local config = t.write("reactord.conf", ('user = "%s"\ngroup = "%s"\nhandlers = { "." }'):format(other, other))
    local ids = is_root and nobody or nil
    local r = t.reactord { "-c", config, uid = ids, gid = ids }
    assert.equal(1, r.status)
    local message = ("cannot become user '%s': only root can, and this process runs as uid %d\n"):format(other, uid)
    assert.equal(message, r.err:match("error ([^\n]*\n)$"))
    r = t.reactord { "-t", "-c", config, uid = ids, gid = ids }
    assert.same({ 1, message }, { r.status, r.err })
  end)

  it("the user that runs it already may be named", function()
    if not is_root then pending("needs a user whose group is known") end
    local port = t.free_port()
    local d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "opens" }\nuser = "nobody"\nhandlers = { %q }'):format(port, t.dir()),
      uid = nobody, gid = nogroup,
    }
    t.connect(port):send(t.path("opens.lua")):expect("open\n")
    d:signal("HUP")
    d:wait_log("generation 2 serves")
  end)

  it("a port below 1024 is refused, and the message says what it takes", function()
    local low = low_port()
    if not low then pending("all ports may be bound by everyone here") end
    local config = t.write("reactord.conf", ('listen "tcp://127.0.0.1:%d" { handler = "opens" }\nhandlers = { "." }'):format(low))
    local ids = is_root and nobody or nil
    local r = t.reactord { "-c", config, uid = ids, gid = ids }
    assert.equal(1, r.status)
    assert.matches(("reactord.conf:1: listen tcp://127.0.0.1:%d: Permission denied %%(ports below 1024 "):format(low), r.err)
  end)
end)
