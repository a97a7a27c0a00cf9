-- Starts real daemons for a test, talks to them, and leaves nothing behind: each test has a folder, ports and processes of its own,
-- waits by polling and never without a limit. The README beside this file lists the functions.

local socket = require "socket"
local lfs = require "lfs"
local sys = require "testsys"
socket.unix = require "socket.unix"

local t = { sys = sys }

t.root = lfs.currentdir()
t.full = os.getenv("REACTORD_FULL") ~= nil           -- full counts and heavy peers are asked for
t.sanitized = os.getenv("REACTORD_SANITIZED") ~= nil -- the daemon has sanitizers: slower, larger
t.slow = tonumber(os.getenv("REACTORD_SLOW") or 1)   -- factor of all time limits

-- The daemon under test.
t.binary = os.getenv("REACTORD") or "build/reactord"
if not t.binary:find("^/") then t.binary = t.root .. "/" .. t.binary end

-- What detaches itself (-d) becomes a child of ours again and can be waited for.
assert(sys.subreaper())

-- What the current test has made, to be undone by cleanup; newest last.
local function nothing()
  return { daemons = {}, clients = {}, servers = {}, told = {}, folder = nil }
end
local made = nothing()

-- A time limit in seconds, longer where the daemon is slowed down by sanitizers.
function t.seconds(n)
  return n * t.slow
end

t.limit = t.seconds(10) -- of everything that waits without a limit of its own
t.now = sys.now

-- Asks again and again until fn returns something true, which is returned; an error that says what was waited for otherwise.
function t.until_true(fn, seconds, what)
  local deadline = sys.now() + (seconds and t.seconds(seconds) or t.limit)
  while true do
    local result = fn()
    if result then return result end
    if sys.now() > deadline then
      error(("waited %g seconds in vain for %s"):format(seconds or 10, what or "a condition"), 2)
    end
    sys.sleep(0.005)
  end
end

-- Files ---------------------------------------------------------------------------------------------------------------

-- The test's private folder. Everyone may enter it, so that daemons that gave up their rights find their files.
function t.dir()
  if not made.folder then
    made.folder = assert(sys.mkdtemp((os.getenv("TMPDIR") or "/tmp") .. "/reactord-test.XXXXXX"))
    assert(sys.chmod(made.folder, "0755"))
  end
  return made.folder
end

-- The path of a file in the private folder.
function t.path(name)
  return name:find("^/") and name or t.dir() .. "/" .. name
end

-- Writes a file into the private folder and returns its path.
function t.write(name, text)
  local path = t.path(name)
  local at = #t.dir() + 1
  while true do
    at = path:find("/", at + 1, true)
    if not at then break end
    lfs.mkdir(path:sub(1, at - 1))
  end
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
  return path
end

-- The contents of a file, nil if there is none.
function t.read(name)
  local file = io.open(t.path(name), "rb")
  if not file then return nil end
  local text = file:read("a")
  file:close()
  return text
end

local function remove_tree(path)
  if lfs.symlinkattributes(path, "mode") == "directory" then
    for name in lfs.dir(path) do
      if name ~= "." and name ~= ".." then remove_tree(path .. "/" .. name) end
    end
  end
  os.remove(path)
end

-- A TCP port that nobody has: below the range of outgoing connections, and held against tests that run at the same time until this
-- process ends.
local next_port = 10000 + sys.getpid() * 37 % 20000
function t.free_port()
  for _ = 1, 20000 do
    local port = next_port
    next_port = next_port >= 29999 and 10000 or next_port + 1
    local held = sys.reserve("reactord-test-port-" .. port)
    if held then
      local probe = socket.tcp4()
      local free = probe:bind("*", port)
      probe:close()
      if free then return port end
      sys.close(held)
    end
  end
  error("no port is free")
end

-- Until the test's end the daemon is a copy in the private folder, shipped handlers included: other users may be unable to reach the
-- checkout.
function t.copy_daemon()
  local folder = t.path("copy")
  for _, name in ipairs { "", "/bin" } do assert(lfs.mkdir(folder .. name)) end
  local ok = os.execute(("cp %q %q && cp -r %q %q && chmod -R a+rX %q"):format(t.binary, folder .. "/bin/reactord", t.root .. "/handlers",
    folder, folder))
  assert(ok, "the daemon cannot be copied")
  made.binary = made.binary or t.binary
  t.binary = folder .. "/bin/reactord"
end

-- Processes -----------------------------------------------------------------------------------------------------------

-- Sanitizers report into the test's folder; their other options come from the environment of the run.
local function environment(more)
  local env = {}
  for _, name in ipairs { "ASAN_OPTIONS", "UBSAN_OPTIONS" } do
    local given = os.getenv(name)
    env[name] = (given and given .. ":" or "") .. "log_path=" .. t.dir() .. "/sanitizer"
  end
  env.REACTORD_SLOW_CALLBACK = "0" -- on a machine under load any callback may be slow; false: as the daemon has it
  for name, value in pairs(more or {}) do
    env[name] = type(value) == "number" and tostring(value) or value
  end
  return env
end

-- Everything that sanitizers reported in this test, nil if nothing. Each report is told once, so that it fails one test. Those on
-- undefined behaviour do not go where log_path says but to the process's output.
local function sanitizer_reports()
  local reports = {}
  if not made.folder then return nil end
  for name in lfs.dir(made.folder) do
    if name:find("^sanitizer%.") or name:find("^daemon%-%d+%.log$") or name:find("^run%-%d+%.") then
      local text = not made.told[name] and t.read(name)
      if text and (name:find("^sanitizer") or text:find(": runtime error: ", 1, true) or text:find("Sanitizer: ", 1, true)) then
        made.told[name] = true
        table.insert(reports, text)
      end
    end
  end
  return #reports > 0 and table.concat(reports, "\n") or nil
end

local function check_reports()
  local reports = sanitizer_reports()
  if reports then error("the daemon's sanitizers reported:\n" .. reports, 0) end
end

-- What a daemon says last must name nothing that is left.
local function check_counters(log)
  local line
  for found in log:gmatch("stopped: ([^\n]*)") do line = found end
  if not line then error("the daemon ended without its 'stopped:' line; its log:\n" .. log, 0) end
  for _, name in ipairs { "connections", "listeners", "timers", "references" } do
    local left = line:match("%f[%w_]" .. name .. "=(%d+)")
    if left ~= "0" then
      error(("%s %s left at the end: stopped: %s\nlog:\n%s"):format(left or "no count of", name, line, log), 0)
    end
  end
end

local Daemon = {}
Daemon.__index = Daemon

-- Its log so far.
function Daemon:log()
  return t.read(self.log_path) or ""
end

-- Waits until the log (from position "from" on) has a match of the pattern; returns the match or its captures. A daemon that ends
-- before that is an error.
function Daemon:wait_log(pattern, seconds, from)
  local deadline = sys.now() + (seconds and t.seconds(seconds) or t.limit)
  while true do
    local ended = self:ended()
    local log = self:log()
    if log:find(pattern, from) then return log:match(pattern, from) end
    if ended then error(("the daemon ended before '%s' was in its log:\n%s"):format(pattern, log), 2) end
    if sys.now() > deadline then error(("'%s' did not come up in the log:\n%s"):format(pattern, log), 2) end
    sys.sleep(0.005)
  end
end

-- How often the pattern is in the log.
function Daemon:count_log(pattern)
  return select(2, self:log():gsub(pattern, ""))
end

-- A mark for wait_log's "from": what comes after now.
function Daemon:mark()
  return #self:log() + 1
end

function Daemon:signal(name)
  assert(sys.kill(self.pid, name))
end

-- SIGUSR2: a new process takes over, and this one drains. Returns the new one as a daemon object.
function Daemon:upgrade()
  local mark = self:mark()
  self:signal("USR2")
  local pid = tonumber((self:wait_log("upgraded: process (%d+) serves", nil, mark)))
  local d = t.adopt(pid, self.log_path, { counters = self.counters })
  d:wait_log("ready: pid " .. pid)
  return d
end

-- Whether it has ended; how is in self.status (of an exit) or self.killed_by (a signal's number).
function Daemon:ended()
  if not self.status and not self.killed_by then
    local how, number = sys.waitpid(self.pid, true)
    if how == "exit" then self.status = number elseif how == "signal" then self.killed_by = number end
    -- Not our child, but that of a daemon that it has taken over from and that still drains: how it ended is not known.
    if not how and not sys.kill(self.pid, 0) then self.killed_by = 0 end
  end
  return self.status ~= nil or self.killed_by ~= nil
end

-- Waits for its end; returns its status, or nil and the signal's number.
function Daemon:wait(seconds)
  local deadline = sys.now() + (seconds and t.seconds(seconds) or t.limit)
  while not self:ended() do
    if sys.now() > deadline then error("the daemon does not end; its log:\n" .. self:log(), 2) end
    sys.sleep(0.005)
  end
  return self.status, self.killed_by
end

-- After its end: status 0, no sanitizer report, nothing left by its own account.
function Daemon:check()
  self.checked = true
  check_reports()
  if self.status ~= 0 then
    local how = self.status and "status " .. self.status or "signal " .. self.killed_by
    error(("the daemon ended with %s; its log:\n%s"):format(how, self:log()), 0)
  end
  if self.counters then check_counters(self:log()) end
end

-- Ends it as a service manager does, and checks how it ended. The test's connections are closed first (a drain would wait for them)
-- unless options.keep_clients.
function Daemon:stop(options)
  if not (options and options.keep_clients) then t.close_clients() end
  if not self:ended() then self:signal("TERM") end
  self:wait(30)
  self:check()
end

-- Ends it at once; nothing is checked.
function Daemon:kill()
  if not self:ended() then
    sys.kill(self.pid, "KILL")
    self:wait()
  end
  self.checked = true
end

-- Open descriptors.
function Daemon:fds()
  local count = 0
  for name in lfs.dir("/proc/" .. self.pid .. "/fd") do
    if name:find("^%d") then count = count + 1 end
  end
  return count
end

-- Resident memory in bytes.
function Daemon:rss()
  local file = assert(io.open("/proc/" .. self.pid .. "/statm"))
  local pages = file:read("a"):match("^%d+ (%d+)")
  file:close()
  return tonumber(pages) * sys.page()
end

-- Processor time so far, in seconds.
function Daemon:cpu()
  local file = assert(io.open("/proc/" .. self.pid .. "/stat"))
  local fields = {}
  for field in file:read("a"):gsub("^.*%) ", ""):gmatch("%S+") do table.insert(fields, field) end
  file:close()
  return (fields[12] + fields[13]) / sys.ticks()
end

-- Times that the kernel has put it to sleep and woken it up: an idle daemon's do not grow.
function Daemon:wakeups()
  local file = assert(io.open("/proc/" .. self.pid .. "/status"))
  local count = tonumber(file:read("a"):match("\nvoluntary_ctxt_switches:%s*(%d+)"))
  file:close()
  return count
end

-- A process that runs already (a daemon that detached itself) as a daemon object; it is ended with the test.
function t.adopt(pid, log_path, options)
  local d = setmetatable({ pid = pid, dir = t.dir(), log_path = log_path, counters = not (options and options.counters == false) }, Daemon)
  table.insert(made.daemons, d)
  return d
end

local function configuration(options)
  local text, name = options.config, options.name or "reactord.conf"
  if text:find("^/[^\n]*$") then return text end
  -- Handlers are looked for in the test's folder, then among the shipped ones; behind the text, so that its lines keep their numbers.
  if not options.plain and not ("\n" .. text):find("\n%s*handlers%s*=") then
    text = ("%s\nhandlers = { %q, %q }\n"):format(text, t.dir(), t.root .. "/handlers")
  end
  return t.write(name, text)
end

-- Starts a daemon. options: config (text, or the path of a file), script (text of a script to run instead), args (more arguments; without
-- config and script: all of them), env, limits, cwd, uid and gid, fds (descriptors that it gets as 3, 4, ...), name (of the config file),
-- log (path, where the daemon logs to a file), plain = true (config exactly as given), wait = pattern or false (what the log has to
-- say before start returns: "ready"), counters = false (no 'stopped:' line is expected), unchecked = true (any end will do).
local started = 0
function t.start(options)
  if type(options) == "string" then options = { config = options } end
  started = started + 1
  local argv = { t.binary }
  local config
  if options.config then
    config = configuration(options)
    table.insert(argv, "-c")
    table.insert(argv, config)
  elseif options.script then
    table.insert(argv, "run")
    table.insert(argv, t.write(options.name or "script.lua", options.script))
  end
  for _, argument in ipairs(options.args or {}) do table.insert(argv, tostring(argument)) end
  local output = t.path("daemon-" .. started .. ".log")
  t.write(output, "")
  if options.uid then assert(sys.chown(output, options.uid, options.gid)) end
  local pid = assert(sys.spawn(argv, {
    env = environment(options.env), cwd = options.cwd, limits = options.limits, fds = options.fds, uid = options.uid, gid = options.gid,
    stdin = options.stdin, stdout = output, stderr = output,
  }))
  local d = t.adopt(pid, options.log or output, { counters = options.counters })
  d.config, d.output_path = config, output
  d.unchecked = options.unchecked
  local wait = options.wait
  if wait == nil then wait = "%f[%w]ready%f[%W]" end
  if wait then d:wait_log(wait) end
  return d
end

-- Runs a command to its end: t.run{"sh", "-c", ...}; an argv that begins with an option or a word of the daemon's command line is for
-- t.reactord. Further fields: env, cwd, limits, uid, gid, input (text), seconds. Returns {status, signal, out, err}.
local ran = 0
function t.run(command)
  ran = ran + 1
  local name = "run-" .. ran
  local input
  if command.input then input = t.write(name .. ".in", command.input) end
  local argv = {}
  for i, argument in ipairs(command) do argv[i] = tostring(argument) end
  local pid = assert(sys.spawn(argv, {
    env = environment(command.env), cwd = command.cwd, limits = command.limits, uid = command.uid, gid = command.gid, stdin = input,
    stdout = t.path(name .. ".out"), stderr = t.path(name .. ".err"),
  }))
  local d = t.adopt(pid, t.path(name .. ".err"))
  d.unchecked = true
  local deadline = sys.now() + (command.seconds and t.seconds(command.seconds) or t.limit)
  while not d:ended() do
    if sys.now() > deadline then
      d:kill()
      error(("'%s' did not end; it said:\n%s%s"):format(table.concat(argv, " "), t.read(name .. ".out"), t.read(name .. ".err")), 2)
    end
    sys.sleep(0.002)
  end
  check_reports()
  return { status = d.status, signal = d.killed_by, out = t.read(name .. ".out") or "", err = t.read(name .. ".err") or "" }
end

-- Runs the daemon's binary to its end: t.reactord{"-t", "-c", file}.
function t.reactord(command)
  table.insert(command, 1, t.binary)
  return t.run(command)
end

-- Runs a script inside the loop ("reactord run") to its end. If its log tells what was left at the end, that must be nothing.
function t.script(text, args, options)
  local command = { "run", t.write("script-" .. ran + 1 .. ".lua", text) }
  for _, argument in ipairs(args or {}) do table.insert(command, argument) end
  for name, value in pairs(options or {}) do command[name] = value end
  local result = t.reactord(command)
  if result.err:find("stopped: ", 1, true) then check_counters(result.err) end
  return result
end

-- Connections ---------------------------------------------------------------------------------------------------------

local Client = {}
Client.__index = Client

-- Bytes for an error message: quoted, and cut where they are many.
local function show(bytes)
  if #bytes <= 300 then return ("%q"):format(bytes) end
  return ("%q ... %q (%d bytes)"):format(bytes:sub(1, 150), bytes:sub(-100), #bytes)
end

local function client(sock)
  local c = setmetatable({ sock = sock, fd = sock:getfd(), buffer = "" }, Client)
  made.clients[c] = true
  return c
end

-- Reads what is there, waiting until the deadline for something; false at the deadline. At the end: self.eof or self.failed (a code).
function Client:fill(deadline)
  if self.eof or self.failed then return false end
  while true do
    local bytes, _, code = sys.recv(self.fd, 65536)
    if bytes == "" then
      self.eof = true
      return false
    elseif bytes then
      self.buffer = self.buffer .. bytes
      return true
    elseif code ~= "EAGAIN" then
      self.failed = code
      return false
    end
    local left = deadline - sys.now()
    if left <= 0 then return false end
    sys.poll({ self.fd }, "r", left)
  end
end

function Client:state()
  return self.eof and "the peer closed" or self.failed or "nothing more came"
end

local function take(c, count)
  local bytes = c.buffer:sub(1, count)
  c.buffer = c.buffer:sub(count + 1)
  return bytes
end

-- Sends all of it.
function Client:send(bytes)
  local deadline = sys.now() + t.limit
  local first = 1
  while first <= #bytes do
    local sent, _, code = sys.send(self.fd, bytes, first)
    if sent then
      first = first + sent
    elseif code ~= "EAGAIN" then
      error(("sending failed with %s after %d of %d bytes"):format(code, first - 1, #bytes), 2)
    else
      local left = deadline - sys.now()
      if left <= 0 then error(("the peer took only %d of %d bytes"):format(first - 1, #bytes), 2) end
      sys.poll({ self.fd }, "w", left)
    end
  end
  return self
end

-- Sends what goes without waiting; returns how many bytes were taken, or nil and a code.
function Client:send_some(bytes)
  local sent, _, code = sys.send(self.fd, bytes)
  if not sent and code == "EAGAIN" then return 0 end
  return sent, code
end

-- Exactly that many bytes.
function Client:receive(count)
  local deadline = sys.now() + t.limit
  if #self.buffer < count then
    -- Gathered in a list: many bytes in small pieces would otherwise be copied over and over.
    local parts, length = { self.buffer }, #self.buffer
    self.buffer = ""
    while length < count and self:fill(deadline) do
      table.insert(parts, self.buffer)
      length = length + #self.buffer
      self.buffer = ""
    end
    self.buffer = table.concat(parts)
  end
  if #self.buffer < count then
    error(("%d bytes were expected, then %s; seen: %s"):format(count, self:state(), show(self.buffer)), 2)
  end
  return take(self, count)
end

-- The next line without its "\n".
function Client:receive_line()
  local deadline = sys.now() + t.limit
  while not self.buffer:find("\n", 1, true) do
    if not self:fill(deadline) then error(("a line was expected, then %s; seen: %s"):format(self:state(), show(self.buffer)), 2) end
  end
  return (take(self, self.buffer:find("\n", 1, true)):sub(1, -2))
end

-- All bytes until the peer's orderly end.
function Client:receive_all()
  local deadline = sys.now() + t.limit
  local parts = { self.buffer }
  self.buffer = ""
  while self:fill(deadline) do
    table.insert(parts, self.buffer)
    self.buffer = ""
  end
  local bytes = table.concat(parts)
  if not self.eof then error(("the peer's end was expected, then %s; seen: %s"):format(self:state(), show(bytes)), 2) end
  return bytes
end

-- Exactly this text comes next.
function Client:expect(text)
  local ok, seen = pcall(self.receive, self, #text)
  if not ok then error(("expected %s, but: %s"):format(show(text), seen), 2) end
  if seen ~= text then error(("expected %s, got %s"):format(show(text), show(seen .. self.buffer)), 2) end
  return self
end

-- The peer closes in an orderly way, without a further byte.
function Client:expect_eof()
  local seen = self:receive_all()
  if seen ~= "" then error("the peer's end was expected, but first came " .. show(seen), 2) end
  return self
end

-- The connection ends by a reset, or in an orderly way where either will do; returns the bytes before it and how ("EOF", "ECONNRESET").
function Client:receive_end()
  local deadline = sys.now() + t.limit
  while self:fill(deadline) do end
  if not (self.eof or self.failed) then error("an end was expected; seen: " .. show(self.buffer), 2) end
  return take(self, #self.buffer), self.eof and "EOF" or self.failed
end

-- Nothing comes for that long (a fraction of a second will do).
function Client:expect_silence(seconds)
  if #self.buffer > 0 or self:fill(sys.now() + seconds) then error("silence was expected, but there came " .. show(self.buffer), 2) end
  if self.eof or self.failed then error("silence was expected, but " .. self:state(), 2) end
  return self
end

-- No more will be sent from here.
function Client:shutdown_write()
  assert(sys.shutdown(self.fd))
  return self
end

function Client:close()
  if made.clients[self] then
    made.clients[self] = nil
    self.sock:close()
  end
end

-- Closes with RST.
function Client:reset()
  sys.reset(self.fd)
  self:close()
end

-- Connects to a port of 127.0.0.1 or a Unix socket's path. options: host, bind (local address), buffer (size of the kernel's buffers).
function t.connect(where, options)
  options = options or {}
  local sock, ok, why
  if type(where) == "string" then
    sock = assert(socket.unix.stream())
    sock:settimeout(t.limit)
    ok, why = sock:connect(where)
  else
    local host = options.host or "127.0.0.1"
    sock = assert(host:find(":", 1, true) and socket.tcp6() or socket.tcp4())
    if options.bind then assert(sock:bind(options.bind, 0)) end
    if options.buffer then assert(sys.buffers(sock:getfd(), options.buffer)) end
    sock:settimeout(t.limit)
    ok, why = sock:connect(host, where)
    if ok then sock:setoption("tcp-nodelay", true) end
  end
  if not ok then
    sock:close()
    error(("connecting to %s failed: %s"):format(where, why), 2)
  end
  return client(sock)
end

-- Closes all connections of the test.
function t.close_clients()
  local open = {}
  for c in pairs(made.clients) do table.insert(open, c) end
  for _, c in ipairs(open) do c:close() end
end

local Server = {}
Server.__index = Server

-- The next connection as a client object.
function Server:accept(seconds)
  self.sock:settimeout(seconds and t.seconds(seconds) or t.limit)
  local sock, why = self.sock:accept()
  if not sock then error("no connection came: " .. why, 2) end
  return client(sock)
end

function Server:close()
  self.sock:close()
end

-- A server of the test's own: on a port (a free one if nil) of 127.0.0.1, or on a path. It has .port or .path.
function t.listen(where, backlog)
  local s = setmetatable({}, Server)
  if type(where) == "string" then
    s.path = t.path(where)
    s.sock = assert(socket.unix.stream())
    assert(s.sock:bind(s.path))
  else
    s.port = where or t.free_port()
    s.sock = assert(socket.tcp4())
    assert(s.sock:setoption("reuseaddr", true))
    assert(s.sock:bind("127.0.0.1", s.port))
  end
  assert(s.sock:listen(backlog or 128))
  table.insert(made.servers, s)
  return s
end

-- The end -------------------------------------------------------------------------------------------------------------

-- Ends what a daemon has started to take its place and the test has not come to adopting. Orphans of ours are our children.
local function end_heirs(d)
  for pid in d:log():gmatch("upgrading: process (%d+) of") do
    local how, _, code = sys.waitpid(tonumber(pid), true)
    if not how and not code then
      sys.kill(tonumber(pid), "KILL")
      sys.waitpid(tonumber(pid))
    end
  end
end

-- Undoes all that the test made. Daemons that still run are stopped and checked like a service's end; the first fault is raised when
-- everything is gone.
function t.cleanup()
  local fault
  t.close_clients()
  for _, s in ipairs(made.servers) do s:close() end
  for i = #made.daemons, 1, -1 do
    local d = made.daemons[i]
    if not d:ended() and not d.unchecked then
      local ok, why = pcall(d.stop, d)
      if not ok then fault = fault or why end
    end
    d:kill()
  end
  for _, d in ipairs(made.daemons) do end_heirs(d) end
  local reports = sanitizer_reports()
  if reports then fault = fault or "the daemon's sanitizers reported:\n" .. reports end
  if made.binary then t.binary = made.binary end
  if made.folder then remove_tree(made.folder) end
  made = nothing()
  if fault then error(fault, 0) end
end

-- At the top of a spec: cleans up after each test, and shows the logs of a test that fails. t.auto("file") keeps what is made until
-- the whole block is done, for daemons that several tests share.
function t.auto(scope)
  local busted = require "busted"
  if not t.subscribed then
    t.subscribed = true
    busted.subscribe({ "failure", "it" }, t.show_logs)
    busted.subscribe({ "error", "it" }, t.show_logs)
  end
  if scope == "file" then
    busted.teardown(function() t.cleanup() end)
  else
    busted.after_each(function() t.cleanup() end)
  end
end

function t.show_logs()
  for _, d in ipairs(made.daemons) do
    local log = d:log()
    if #log > 8000 then log = log:sub(1, 3000) .. "\n...\n" .. log:sub(-5000) end
    if log ~= "" then io.stderr:write(("--- log of process %d\n%s---\n"):format(d.pid, log)) end
  end
  return nil, true -- the other subscribers want to hear of it too
end

return t
