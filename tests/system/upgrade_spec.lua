-- SIGUSR2: another process takes the listeners over, and nobody is refused.
local t = require "tests.support.harness"
local lfs = require "lfs"
local socket = require "socket"
local tls = require "tests.support.tls"
socket.unix = require "socket.unix"

local is_root = t.sys.getuid() == 0

local function exact(text)
  return (text:gsub("%p", "%%%0"))
end

-- A connection's worth of work on an echo: what comes back must be what was sent.
local served = 0
local function echo(connection)
  served = served + 1
  local text = ("%d: "):format(served) .. ("x"):rep(served % 2000) .. "\n"
  connection:send(text):expect(text)
  connection:close()
end

-- Connects in all ways, again and again, until done returns something true. Returns that and how often.
local function load_until(done, ways)
  local deadline, count = t.now() + t.limit, 0
  while true do
    for _, connect in ipairs(ways) do echo(connect()) end
    count = count + 1
    local result = done()
    if result then return result, count end
    assert(t.now() < deadline, "the load went on in vain")
  end
end

-- What runs on a machine with a real systemd: the unit as it is installed.
local on_systemd = [=[
set -u
check() { # check NAME EXPECTED SEEN
	if [[ $3 == $2 ]]; then echo "ok $1"; else echo "failed $1: expected '$2', seen '$3'"; fi
}
show() { systemctl show -P "$1" reactord; }
wait_for() { # wait_for PATTERN COMMAND...: until its output matches, 10 s at most
	local seen
	for _ in {1..200}; do
		seen=$("${@:2}" 2>&1)
		[[ $seen != $1 ]] || break
		sleep 0.05
	done
	echo "$seen"
}
say() { echo "$2" | nc -N 127.0.0.1 "$1"; }

systemd-sysusers /usr/local/lib/sysusers.d/reactord.conf
echo 'listen "tcp://127.0.0.1:7" { handler = "echo" }' >>/etc/reactord/reactord.conf
systemctl daemon-reload
systemctl start reactord
check 'starts' 0 $?
old=$(show MainPID)
exec 5<>/dev/tcp/127.0.0.1/7
echo word >&5
read -r -t 5 line <&5
cp /usr/local/bin/reactord /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/reactord
kill -USR2 "$old"
for _ in {1..200}; do
	new=$(show MainPID)
	[ "$new" = "$old" ] || break
	sleep 0.05
done
[ "$new" != "$old" ]
check 'has another main process' 0 $?
check 'which runs the new binary' /usr/local/bin/reactord "$(readlink "/proc/$new/exe")"
check 'is active' active/running "$(show ActiveState)/$(show SubState)"
check 'tells its status' 'Serving, generation 1' "$(show StatusText)"
check 'serves' hello "$(say 7 hello)"
echo more >&5
read -r -t 5 line <&5
check 'keeps an open connection in the old process' more "$line"
exec 5>&-
wait_for '*No such process*' kill -0 "$old" >/dev/null
check 'is active without the old process' active "$(show ActiveState)"
check 'has started nothing anew' 0 "$(show NRestarts)"
echo 'zebra = 1' >>/etc/reactord/reactord.conf
kill -USR2 "$new"
check 'tells of a refusal' 'Upgrade refused: *zebra*' "$(wait_for 'Upgrade refused*' show StatusText)"
check 'is active all the same' "active/running/$new" "$(show ActiveState)/$(show SubState)/$(show MainPID)"
sed -i '$d' /etc/reactord/reactord.conf
kill -HUP "$new"
check 'reloads' 'Serving, generation 2' "$(wait_for 'Serving, generation 2' show StatusText)"
kill -KILL "$new"
check 'is started again after a crash' 1 "$(wait_for 1 show NRestarts)"
check 'serves again' hello "$(wait_for hello say 7 hello)"
systemctl stop reactord
check 'stops well' inactive/success "$(show ActiveState)/$(show Result)"
check 'was heard by systemd' '' "$(journalctl -q -u reactord -o cat --no-pager | grep -i 'notification message\|not our child')"
echo 'the end'
]=]

describe("an upgrade", function()
  t.auto()

  local port, path, config

  -- A daemon with an echo on a port and on a path, a pid file, and more lines.
  local function start(more, options)
    port, path = t.free_port(), t.path("x.sock")
    options = options or {}
    options.config = ('listen "tcp://127.0.0.1:%d" { handler = "echo" }\nlisten "unix://%s" { handler = "echo" }\npid_file = "x.pid"\n%s')
      :format(port, path, more or "")
    config = options.config
    return t.start(options)
  end

  -- Another version of the file.
  local function configure(text)
    t.write("reactord.conf", text .. ("\nhandlers = { %q, %q }\n"):format(t.dir(), t.root .. "/handlers"))
  end

  local function plain() return t.connect(port) end
  local function by_path() return t.connect(path) end

  -- An upgrade that must not be.
  local function refused(d, ...)
    local mark = d:mark()
    d:signal("USR2")
    d:wait_log(("upgrade refused: process %d serves on"):format(d.pid), nil, mark)
    local said = d:log():sub(mark)
    for _, pattern in ipairs { ... } do assert.matches(pattern, said) end
    assert.equal(d.pid .. "\n", t.read("x.pid"))
    echo(plain())
    echo(by_path())
    return said
  end

  it("refuses no connection and loses no byte, three times in a row: plain, by TLS, on a Unix socket", function()
    local tls_port = t.free_port()
    local ways = { plain, by_path, function() return assert(tls.connect(tls_port)) end }
    local d = start(('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }'):format(tls_port))
    local held, olds = {}, {}
    for round = 1, 3 do
      held[round] = { plain(), by_path(), (assert(tls.connect(tls_port))) }
      for _, c in ipairs(held[round]) do c:send("mine"):expect("mine") end
      local mark, before = d:mark(), t.now()
      d:signal("USR2")
      local pid = load_until(function() return d:log():match("upgraded: process (%d+) serves", mark) end, ways)
      local new = t.adopt(tonumber(pid), d.log_path)
      load_until(function() return t.now() > before + 0.3 end, ways)
      new:wait_log("ready: pid " .. pid)
      assert.equal(pid .. "\n", t.read("x.pid"))
      for i = 1, round do
        for _, c in ipairs(held[i]) do c:send("still"):expect("still") end
      end
      table.insert(olds, d)
      for _, old in ipairs(olds) do assert.is_false(old:ended()) end
      d = new
    end
    for round, cs in ipairs(held) do
      for _, c in ipairs(cs) do c:close() end
      load_until(function() return olds[round]:ended() end, ways)
      assert.equal(0, olds[round].status)
    end
    assert.equal("socket", lfs.attributes(path, "mode"))
    assert.equal(d.pid .. "\n", t.read("x.pid"))
    d:stop()
    assert.matches("upgrades=3", d:log():match("[^\n]*\n$"))
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("is to the binary that is now at the path, and with the configuration of now", function()
    t.copy_daemon()
    local d = start()
    assert(os.execute(("cp %q %q"):format(t.binary, t.binary .. ".new")))
    local inode = lfs.attributes(t.binary .. ".new", "ino")
    assert(os.rename(t.binary .. ".new", t.binary))
    local other = t.free_port()
    configure(config .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "line_counter" }'):format(other))
    local new = d:upgrade()
    assert.equal(0, (d:wait()))
    assert.equal(inode, lfs.attributes("/proc/" .. new.pid .. "/exe", "ino"))
    assert.matches("1", t.connect(other):send("one\n"):receive_line())
    echo(plain())
    -- and once more, from a process whose own binary was a replacement
    assert(os.execute(("cp %q %q && mv %q %q"):format(t.binary, t.binary .. ".new", t.binary .. ".new", t.binary)))
    configure(config)
    t.close_clients()
    local last = new:upgrade()
    assert.equal(0, (new:wait()))
    last:wait_log("no longer listening on tcp://127.0.0.1:" .. other)
    assert.is_nil((socket.connect("127.0.0.1", other)))
    echo(by_path())
    last:stop()
  end)

  it("is refused for a bad configuration or handler, with every reason, and the files stay whose they were", function()
    local d = start()
    local c = plain()
    configure(config .. "\nzebra = 1\nlion = 2")
    refused(d, "upgrade refused: [^\n]*reactord.conf:%d+: unknown option 'zebra'", "upgrade refused: [^\n]*unknown option 'lion'")
    local s = t.listen()
    t.write("broken.lua", "x = = 1")
    configure(config .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "broken" }'):format(s.port))
    local said = refused(d, "upgrade refused: [^\n]*broken.lua:1: ", "upgrade refused: [^\n]*Address already in use")
    assert.equal(2, select(2, said:gsub("broken.lua:1: ", "")) + select(2, said:gsub("Address already in use", "")), said)
    c:send("x"):expect("x")
    configure(config)
    local new = d:upgrade()
    t.close_clients()
    d:wait()
    echo(by_path())
    new:stop()
    assert.matches("upgrades=1 upgrades_refused=2", d:log())
    assert.is_nil(lfs.attributes(path, "mode"))
  end)

  it("is refused when the new binary crashes, ends, hangs, or cannot be started", function()
    t.copy_daemon()
    local d = start(("upgrade_timeout = %g"):format(t.seconds(0.4)))
    local function replace(text)
      t.write("copy/bin/new", text)
      assert(t.sys.chmod(t.path("copy/bin/new"), "0755"))
      assert(os.rename(t.path("copy/bin/new"), t.binary))
    end
    assert(os.rename(t.binary, t.binary .. ".good"))
    refused(d, "upgrade refused: cannot start " .. exact(t.binary) .. ": No such file or directory")
    replace "#!/bin/sh\nkill -SEGV $$"
    refused(d, "upgrade refused: process %d+ was ended by signal 11 %(Segmentation fault%) before it served")
    replace "#!/bin/sh\nexit 3"
    refused(d, "upgrade refused: process %d+ ended with status 3 before it served")
    replace "#!/bin/sh\nexec sleep 600"
    local said = refused(d, "upgrade refused: process %d+ took too long to get ready")
    assert.is_nil(t.sys.kill(tonumber(said:match("process (%d+) took")), 0))
    replace "not a program"
    refused(d, "upgrade refused: cannot start [^\n]*: Exec format error")
    assert(os.rename(t.binary .. ".good", t.binary))
    local new = d:upgrade()
    d:wait()
    new:stop()
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("goes one at a time; a reload waits for it, a stop ends it", function()
    t.copy_daemon()
    local d = start("upgrade_timeout = 600")
    assert(os.rename(t.binary, t.binary .. ".good"))
    t.write("copy/bin/reactord", "#!/bin/sh\nwhile [ ! -e go ]; do sleep 0.02; done\nexec copy/bin/reactord.good \"$@\"")
    assert(t.sys.chmod(t.binary, "0755"))
    -- its own folder is where the new process looks for "go": d was started where the specs are
    t.write("copy/bin/reactord", (t.read("copy/bin/reactord"):gsub("%f[%w]go%f[%W]", t.path("go")):gsub("copy/bin", t.path("copy/bin"))))
    d:signal("USR2")
    d:wait_log("upgrading: process %d+ of " .. exact(t.binary) .. " gets ready")
    d:signal("USR2")
    d:wait_log("upgrade refused: process %d+ is about to take over")
    d:signal("HUP")
    echo(plain())
    t.write("go", "")
    local pid = tonumber((d:wait_log("upgraded: process (%d+) serves")))
    local new = t.adopt(pid, d.log_path)
    new:wait_log("ready: pid " .. pid)
    new:wait_log("generation 2 serves")
    d:wait()
    assert(os.rename(t.binary .. ".good", t.binary .. ".best"))
    t.write("copy/bin/reactord.good", "#!/bin/sh\nexec sleep 600")
    assert(t.sys.chmod(t.binary .. ".good", "0755"))
    local mark = new:mark()
    new:signal("USR2")
    local hanging = tonumber((new:wait_log("upgrading: process (%d+) of", nil, mark)))
    new:stop()
    assert.is_nil(t.sys.kill(hanging, 0))
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("ends the old process after drain_timeout, and at once where nothing is connected", function()
    local d = start("drain_timeout = 0.3")
    local c = plain():send("x"):expect("x")
    local new = d:upgrade()
    assert.equal(0, (d:wait()))
    c:expect_eof()
    local last = new:upgrade()
    assert.equal(0, (new:wait()))
    last:stop()
  end)

  it("tells the service manager whose process it is now", function()
    local manager = assert(socket.unix.dgram())
    assert(manager:bind(t.path("notify")))
    manager:settimeout(t.limit)
    local function message()
      local fields = {}
      for name, value in assert(manager:receive()):gmatch("([%u_]+)=([^\n]*)") do fields[name] = value end
      return fields
    end
    local d = start(nil, { env = { NOTIFY_SOCKET = t.path("notify") } })
    assert.equal("1", message().READY)
    local new = d:upgrade()
    local m = message()
    assert.same({ "1", "Upgrading" }, { m.RELOADING, m.STATUS })
    assert.matches("^%d+$", m.MONOTONIC_USEC)
    assert.same({ READY = "1", STATUS = "Serving, generation 1", MAINPID = tostring(new.pid) }, message())
    d:wait()
    new:signal("HUP")
    assert.equal("1", message().RELOADING)
    assert.same({ READY = "1", STATUS = "Serving, generation 2", MAINPID = tostring(new.pid) }, message())
    configure("zebra = 1")
    new:signal("USR2")
    assert.equal("1", message().RELOADING)
    m = message()
    assert.same({ "1", tostring(new.pid) }, { m.READY, m.MAINPID })
    assert.matches("^Upgrade refused: [^\n]*zebra", m.STATUS)
    new:stop()
    assert.equal("1", message().STOPPING)
    manager:settimeout(0)
    assert.is_nil((manager:receive()))
    manager:close()
  end)

  it("leaves the word to the new process: the old one says nothing more, not even to a watchdog", function()
    local manager = assert(socket.unix.dgram())
    assert(manager:bind(t.path("notify")))
    manager:settimeout(t.limit)
    local d = start(nil, { env = { NOTIFY_SOCKET = t.path("notify"), WATCHDOG_USEC = "60000" } })
    local held = plain():send("x"):expect("x")
    while assert(manager:receive()) ~= "WATCHDOG=1" do end
    local new = d:upgrade()
    while not assert(manager:receive()):find("MAINPID=" .. new.pid, 1, true) do end
    assert.equal("WATCHDOG=1", (manager:receive())) -- the new one's
    new:kill()
    d:wait_log("process " .. new.pid .. ", which has taken over, has ended")
    manager:settimeout(0)
    while manager:receive() do end
    manager:settimeout(0.2)
    assert.is_nil((manager:receive()))
    held:send("x"):expect("x"):close()
    assert.equal(0, (d:wait()))
    manager:close()
    os.remove(path) -- nobody was left to do it
  end)

  it("goes on when the old process is killed before the new one is ready", function()
    t.copy_daemon()
    local d = start('control = "control.sock"', { unchecked = true })
    assert(os.rename(t.binary, t.binary .. ".good"))
    t.write("copy/bin/reactord", ("#!/bin/sh\nwhile [ ! -e %s ]; do sleep 0.02; done\nexec %s.good \"$@\""):format(t.path("go"), t.binary))
    assert(t.sys.chmod(t.binary, "0755"))
    d:signal("USR2")
    local pid = tonumber((d:wait_log("upgrading: process (%d+) of")))
    d:kill()
    local waiting = { plain(), by_path() } -- in the backlog
    for _, c in ipairs(waiting) do c:send("patience") end
    t.write("go", "")
    local new = t.adopt(pid, d.log_path)
    new:wait_log("ready: pid " .. pid)
    for _, c in ipairs(waiting) do c:expect("patience") end
    assert.equal(pid .. "\n", t.read("x.pid"))
    assert.equal(0, t.reactord { "ctl", "-s", t.path("control.sock"), "status" }.status)
    new:stop()
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("works where the daemon has detached itself", function()
    port, path = t.free_port(), t.path("x.sock")
    local file = t.write("reactord.conf", ([[
      listen "tcp://127.0.0.1:%d" { handler = "echo" }
      listen "unix://%s" { handler = "echo" }
      log = { file = "daemon.log" }
      handlers = { %q }]]):format(port, path, t.root .. "/handlers"))
    local r = t.reactord { "-d", "--pid-file=" .. t.path("x.pid"), "--set", "drain_timeout=20", "-c", file }
    assert.equal("", r.err)
    local d = t.adopt(tonumber(t.read("x.pid")), t.path("daemon.log"))
    t.write("reactord.conf", t.read("reactord.conf") .. "\nzebra = 1")
    refused(d, "unknown option 'zebra'")
    t.write("reactord.conf", (t.read("reactord.conf"):gsub("zebra = 1", "")))
    local new = d:upgrade()
    assert.equal(0, (d:wait()))
    assert.equal(new.pid .. "\n", t.read("x.pid"))
    echo(plain())
    echo(by_path())
    new:stop()
    assert.is_nil(t.read("x.pid"))
  end)

  it("keeps the sockets that the process was started with, by name and by number", function()
    local named, bare = t.listen(), t.listen("bare.sock")
    local text = 'listen "fd://web" { handler = "echo" }\nlisten "fd://4" { handler = "echo" }\nhandlers = { %q }'
    local file = t.write("reactord.conf", text:format(t.root .. "/handlers"))
    local log = t.write("activated.log", "")
    local activate = 'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec "$0" "$@"'
    local d = t.adopt(assert(t.sys.spawn({ "sh", "-c", activate, t.binary, "-c", file },
      { stdout = log, stderr = log, fds = { named.sock:getfd(), bare.sock:getfd() } })), log)
    d:wait_log("ready")
    named:close()
    bare:close()
    port, path = named.port, bare.path
    for _ = 1, 2 do
      local mark = d:mark()
      d:signal("USR2")
      local pid = load_until(function() return d:log():match("upgraded: process (%d+) serves", mark) end, { plain, by_path })
      assert.equal(0, (d:wait()))
      d = t.adopt(tonumber(pid), log)
      load_until(function() return d:log():find("ready: pid " .. pid) end, { plain, by_path })
    end
    d:stop()
    assert.equal("socket", lfs.attributes(path, "mode"))
  end)

  it("leaves what scripts listen on to the scripts of the new process", function()
    local other, other_path, datagrams = t.free_port(), t.path("script.sock"), t.free_port()
    t.write("servers.lua", ([[
      local em = require "em"
      local Echo = { receive_data = function(c, data) c:send_data(data) end }
      em.next_tick(function()
        assert(em.start_server("127.0.0.1", %d, Echo))
        assert(em.start_unix_domain_server(%q, Echo))
        assert(em.open_datagram_socket("127.0.0.1", %d, { receive_data = function(c, data, h, p) c:send_datagram(data, h, p) end }))
      end)
      return Echo
    ]]):format(other, other_path, datagrams))
    local block = t.free_port()
    local d = start(('listen "udp://127.0.0.1:%d" { handler = "datagram_echo" }\nlisten "tcp://127.0.0.1:%d" { handler = "servers" }')
      :format(block, t.free_port()))
    local udp, got = assert(socket.udp()), 0
    assert(udp:setsockname("127.0.0.1", 0))
    udp:settimeout(0)
    local sent, missing = 0, {}
    local function exchange()
      for _, to in ipairs { datagrams, block } do
        sent = sent + 1
        missing[tostring(sent)] = true
        assert(udp:sendto(tostring(sent), "127.0.0.1", to))
      end
      local bytes = udp:receivefrom()
      while bytes do
        assert(missing[bytes], "a datagram was answered twice")
        missing[bytes], got = nil, got + 1
        bytes = udp:receivefrom()
      end
    end
    local ways = { function() return t.connect(other) end, function() return t.connect(other_path) end,
      function() exchange() return plain() end }
    d:wait_log("ready")
    for _ = 1, 2 do
      local mark = d:mark()
      d:signal("USR2")
      local pid = load_until(function() return d:log():match("upgraded: process (%d+) serves", mark) end, ways)
      assert.equal(0, (d:wait()))
      d = t.adopt(tonumber(pid), d.log_path)
      load_until(function() return d:log():find("ready: pid " .. pid) end, ways)
    end
    t.until_true(function() exchange() return got >= sent - 4 end, 5, "all datagrams")
    udp:close()
    d:stop()
    assert.is_nil(lfs.attributes(other_path, "mode"))
    assert.is_nil(d:log():match("handler_errors=[1-9]"))
  end)

  it("lets a connection that waits for its PROXY header have its say to the old process", function()
    local proxied = t.free_port()
    local d = start(('listen "tcp://127.0.0.1:%d" { handler = "echo", proxy_protocol = { "127.0.0.1" } }'):format(proxied))
    local c = t.connect(proxied):send("PROXY TCP4 192.0.2.1 ")
    echo(plain())
    local new = d:upgrade()
    assert.is_false(d:ended())
    c:send("198.51.100.2 56324 443\r\nhello"):expect("hello")
    c:close()
    assert.equal(0, (d:wait()))
    new:stop()
  end)

  it("hands the control socket over, and is a command of it, which waits and tells every reason", function()
    t.copy_daemon()
    local d = start('control = "control.sock"')
    local function ctl(...) return t.reactord { "ctl", "-s", t.path("control.sock"), ... } end
    local function pid() return tonumber(ctl("status", "--json").out:match('"pid": ?(%d+)')) end
    assert.equal(d.pid, pid())
    local held = plain():send("x"):expect("x")
    local r = ctl "upgrade"
    assert.equal("", r.err)
    assert.equal(0, r.status)
    local new = t.adopt(tonumber(r.out:match("pid: (%d+)")), d.log_path)
    assert.equal(new.pid, pid())
    held:close()
    assert.equal(0, (d:wait()))
    assert.equal(new.pid, pid())
    configure(config .. '\ncontrol = "control.sock"\nzebra = 1\nlion = 2')
    r = ctl "upgrade"
    assert.equal(1, r.status)
    assert.matches("unknown option 'zebra'.*unknown option 'lion'", r.err)
    assert.equal(new.pid, pid())
    configure(config)
    t.write("sleeps", "#!/bin/sh\nexec sleep 600")
    assert(os.execute(("chmod 755 %q && mv %q %q"):format(t.path("sleeps"), t.binary, t.binary .. ".good")))
    assert(os.rename(t.path("sleeps"), t.binary))
    new:signal("USR2")
    new:wait_log("upgrading: process %d+ of", nil, #new:log():match("^.*unknown option"))
    t.binary = t.binary .. ".good"
    r = ctl "upgrade"
    assert.same({ 1, "an upgrade is under way" }, { r.status, r.err:match("an upgrade is under way") })
    new:stop()
    assert.is_nil(lfs.attributes(t.path("control.sock"), "mode"))
  end)

  it("may move the pid file and the control socket", function()
    local d = start('control = "control.sock"')
    configure((config:gsub("x.pid", "y.pid"):gsub("control.sock", "other.sock")))
    local held = plain():send("x"):expect("x")
    local new = d:upgrade()
    assert.equal(new.pid .. "\n", t.read("y.pid"))
    assert.equal(0, t.reactord { "ctl", "-s", t.path("other.sock"), "status" }.status)
    new:wait_log("no longer listening on unix://" .. exact(t.path("control.sock")))
    assert.is_nil(lfs.attributes(t.path("control.sock"), "mode"))
    held:close()
    assert.equal(0, (d:wait()))
    assert.is_nil(t.read("x.pid"))
    new:stop()
    assert.is_nil(t.read("y.pid"))
    assert.is_nil(lfs.attributes(t.path("other.sock"), "mode"))
  end)

  it("is one of many processes, which may be more or fewer", function()
    local tls_port, datagrams = t.free_port(), t.free_port()
    local text = ('control = "control.sock"\nlisten "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }\n'
      .. 'listen "udp://127.0.0.1:%d" { handler = "datagram_echo" }\nprocesses = 1'):format(tls_port, datagrams)
    local d = start(text)
    local ways = { plain, by_path, function() return assert(tls.connect(tls_port)) end }
    local held = {}
    for i = 1, 6 do held[i] = ways[i % 3 + 1]():send("mine"):expect("mine") end
    local udp = assert(socket.udp())
    udp:settimeout(t.limit)
    assert(udp:setpeername("127.0.0.1", datagrams))
    for _, count in ipairs { 3, 1, 2, 2 } do
      configure((config:gsub("processes = %d", "processes = " .. count)))
      local mark = d:mark()
      d:signal("USR2")
      local pid = load_until(function() return d:log():match("upgraded: process (%d+) serves", mark) end, ways)
      local new = t.adopt(tonumber(pid), d.log_path)
      load_until(function() return new:log():find("ready: pid " .. pid) end, ways)
      assert.equal(pid .. "\n", t.read("x.pid"))
      if #held > 0 then
        for _, c in ipairs(held) do c:send("still"):expect("still") end
        assert.is_false(d:ended())
        for _, c in ipairs(held) do c:close() end
        held = {}
      end
      load_until(function() return d:ended() end, ways)
      assert.equal(0, d.status)
      local status = t.reactord { "ctl", "-s", t.path("control.sock"), "status", "--json" }.out
      assert.equal(pid, status:match('"pid": ?(%d+)'))
      assert.equal("socket", lfs.attributes(path, "mode"))
      for i = 1, 10 do
        assert(udp:send("datagram " .. i))
        assert.equal("datagram " .. i, (udp:receive()))
      end
      d = new
    end
    udp:close()
    configure(config .. "\nzebra = 1")
    refused(d, "upgrade refused: [^\n]*unknown option 'zebra'")
    t.write("broken.lua", "x = = 1")
    configure(config .. ('\nlisten "tcp://127.0.0.1:%d" { handler = "broken" }'):format(t.free_port()))
    refused(d, "upgrade refused: [^\n]*broken.lua:1: ")
    d:stop()
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(lfs.attributes(t.path("control.sock"), "mode"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("leaves what scripts listen on in one of many processes to that process of the new ones", function()
    local other, other_path, datagrams = t.free_port(), t.path("script.sock"), t.free_port()
    t.write("servers.lua", ([[
      local em = require "em"
      local Echo = { receive_data = function(c, data) c:send_data(data) end }
      if em.process() == 1 then
        em.next_tick(function()
          assert(em.start_server("127.0.0.1", %d, Echo))
          assert(em.start_unix_domain_server(%q, Echo))
          assert(em.open_datagram_socket("127.0.0.1", %d, { receive_data = function(c, data, h, p) c:send_datagram(data, h, p) end }))
        end)
      end
      return Echo
    ]]):format(other, other_path, datagrams))
    local d = start(('listen "tcp://127.0.0.1:%d" { handler = "servers" }\nprocesses = 2'):format(t.free_port()))
    local ways = { plain, function() return t.connect(other) end, function() return t.connect(other_path) end }
    t.until_true(function() return lfs.attributes(other_path, "mode") and pcall(t.connect, other) end, 5, "the scripts' servers")
    local udp = assert(socket.udp())
    udp:settimeout(t.limit)
    assert(udp:setpeername("127.0.0.1", datagrams))
    t.close_clients()
    for _, count in ipairs { 2, 3, 1, 2 } do
      configure((config:gsub("processes = %d", "processes = " .. count)))
      local mark = d:mark()
      d:signal("USR2")
      local pid = load_until(function() return d:log():match("upgraded: process (%d+) serves", mark) end, ways)
      load_until(function() return d:ended() end, ways)
      assert.equal(0, d.status)
      d = t.adopt(tonumber(pid), d.log_path)
      load_until(function() return d:log():find("ready: pid " .. pid) end, ways)
      assert(udp:send("datagram"))
      assert.equal("datagram", (udp:receive()))
    end
    configure(config .. "\nzebra = 1")
    refused(d, "unknown option 'zebra'")
    udp:close()
    d:stop()
    assert.is_nil(lfs.attributes(other_path, "mode"))
    assert.is_nil(d:log():match("handler_errors=[1-9]"))
  end)

  it("lets TLS clients go on with their sessions", function()
    local tls_port = t.free_port()
    local d = start(('listen "tls://127.0.0.1:%d" { handler = "echo", tls = { self_signed = true } }'):format(tls_port))
    local function reused(option)
      local command = "echo Q | openssl s_client -tls1_2 -connect 127.0.0.1:%d %s %s"
      return t.run { "sh", "-c", command:format(tls_port, option, t.path("session")) }.out:find("\nReused, ", 1, true) ~= nil
    end
    assert.is_false(reused "-sess_out")
    assert.is_true(reused "-sess_in")
    for _, count in ipairs { 1, 2, 2, 1 } do
      configure(config .. "\nprocesses = " .. count)
      local new = d:upgrade()
      assert.equal(0, (d:wait()))
      d = new
      assert.is_true(reused "-sess_in")
    end
    d:stop()
  end)

  it("ends the connect blocks of the old process, and the new one has its own", function()
    local s = t.listen()
    t.write("talks.lua", 'return { post_init = function(c) c:send_data("hello\\n") end }')
    local d = start(('connect "tcp://127.0.0.1:%d" { handler = "talks", reconnect = 0.05 }'):format(s.port))
    local first = s:accept():expect("hello\n")
    local new = d:upgrade()
    local second = s:accept():expect("hello\n")
    first:expect_eof()
    d:wait()
    second:expect_silence(0.1)
    new:stop()
  end)

  it("goes on with the rights that the daemon has: a low port, another user", function()
    if not is_root then pending("only root can change the user") end
    t.copy_daemon()
    local low
    for candidate = 600 + t.sys.getpid() % 300, 1023 do
      local probe = socket.tcp4()
      low = probe:bind("127.0.0.1", candidate) and t.sys.reserve("reactord-test-port-" .. candidate) and candidate
      probe:close()
      if low then break end
    end
    assert(lfs.mkdir(t.path("run")))
    assert(t.sys.chown(t.path("run"), 65534, 65534))
    local d = t.start(('user = "nobody"\npid_file = "run/x.pid"\nlisten "tcp://127.0.0.1:%d" { handler = "echo" }\n'
      .. 'listen "unix://run/x.sock" { handler = "echo", mode = "0600" }\nhandlers = { %q }'):format(low, t.path("copy/handlers")))
    port, path = low, t.path("run/x.sock")
    for _ = 1, 2 do
      local new = d:upgrade()
      assert.equal(0, (d:wait()))
      d = new
      assert.matches("\nUid:%s+65534%s+65534%s+65534", t.read("/proc/" .. d.pid .. "/status"))
      echo(plain())
      echo(by_path())
      assert.equal(d.pid .. "\n", t.read("run/x.pid"))
      assert.equal("rw-------", lfs.attributes(path, "permissions"))
    end
    d:stop()
    assert.is_nil(lfs.attributes(path, "mode"))
    assert.is_nil(t.read("run/x.pid"))
  end)

  it("is one for a real systemd", function()
    if t.sanitized then pending("the unit's fences are not for sanitizers") end
    local install = ("make -s --no-print-directory -C %q install-files BUILD=%q >/dev/null || exit 1\n")
      :format(t.root, os.getenv("REACTORD_BUILD") or "build")
    local r = t.run {
      "tests/support/with-systemd.sh", t.write("script", install .. on_systemd), t.root,
      cwd = t.root, seconds = 60, env = { TMPDIR = false },
    }
    if r.status == 77 then pending(r.err:match("[^\n]*\n?$")) end
    assert.equal(0, r.status, r.out .. r.err)
    assert.is_nil(("\n" .. r.out):find("\nfailed ", 1, true), r.out)
    assert.matches("the end\n$", r.out)
  end)
end)
