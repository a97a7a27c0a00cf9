-- All kinds of connections at once: streams, TLS, relays, datagrams, children, files, watches, timers, names, channels, with reloads in
-- between, whose callbacks do whatever a script may do. Whatever happens, each object gets one unbind, last, and nothing is left.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"
local socket = require "socket"
local lfs = require "lfs"

local prelude = [[local em = require "em"; local x = require "shared"; local say = x.say; ]]

local handler = [[
local H = em.Connection:extend()
local random = math.random
local all, live, kids, servers = {}, 0, 0, {} -- all: a list, each with its index in it
local act

function x.over() local f = io.open(x.path("over")) if f then f:close() end return f end
local function any() return all[random(math.max(#all, 1))] end
local function act_on_any() local c = any() if c then act(c) end end

local Closer = em.Connection:extend()
function Closer:post_init() self:close_connection() end
-- What a script has detached is its own until it is attached again; an error or a limit may come in between, and it is lost.
local function attach(fd, handler)
  local c = em.attach(fd, handler)
  if c then say("given", fd) end
  return c
end
local function close_fd(fd) if fd then attach(fd, Closer) end end
local function detach(c)
  local fd = c:detach()
  if fd and not c.own_fd then say("taken", fd) end
  c.own_fd = nil
  return fd
end

local Reader, never = em.Connection:extend(), em.DefaultDeferrable() -- coroutines read from the one; the other keeps them waiting
local hosts = { "127.0.0.1", "127.0.0.1", "localhost", "::1", "nowhere.test", "not a name" }
local ports = { PORT, PORT, TLS, TLS, SCRIPT, 1 }
local names = { "localhost", "silent.test", "127.0.0.1", "", "other.test" }
local files = { "big", "small", "watched", "shrinks", "missing", "folder" }
local commands = {
  { "cat" }, { "cat" }, { "sh", "-c", "echo out; echo err >&2; exit 3" }, { "sh", "-c", "trap '' TERM; sleep 0.2" },
  { "head", "-c", "300000", "/dev/zero" }, { "true" }, { "/missing" }, { "sh", "-c", "exec >&-; sleep 0.1" }, { "sleep", "0.1" },
  { "sh", "-c", "sleep 0.2 & echo x" }, { "sh", "-c", "head -c 100000 /dev/zero >&2; cat" },
}
local channels = { "a", "b", "c", "d", "e", "f" }
local data = { true, 1, ('d'):rep(5000), { 1, 2, { x = 'y' } }, print, ('d'):rep(2000000), io.stdout }
local ids = {} -- channel -> id of a function
local signals = { "TERM", "KILL", "STOP", "CONT", "USR1" }

local function pick(list) return list[random(#list)] end
local function reader()
  local c = em.connect(pick(hosts), pick(ports), Reader)
  c:set_comm_inactivity_timeout(0.1)
  return c
end
local function file() return x.path(pick(files)) end
local function room() return live < 120 end
local function watch_for_end(job) if job then job:callback(act_on_any):errback(act_on_any) end end

-- Each is done now and then, in any callback, on any kind; the commoner ones stand here more often.
local acts = {
  function(c) c:send_data(("x"):rep(random(200000))) end,
  function(c) c:send_data("y") end, function(c) c:send_data("y") end, function(c) c:send_data("y") end,
  function(c) c:close_connection() end,
  function(c) c:close_connection_after_writing() end,
  function(c) c:close_write() end,
  function(c) c:pause() end, function(c) c:resume() end, function(c) c:resume() end, function(c) c:resume() end,
  function(c) c:set_comm_inactivity_timeout(random() / 10) end,
  function(c) c:set_watermarks(random(100), 100 + random(100000)) end,
  function(c) c:error() c:get_idle_time() c:get_peername() c:get_sockname() c:get_outbound_data_size() c:get_peer_cert_info() c:get_pid()
    c:get_status() c:get_cipher_name() c:get_sni_hostname() c:get_alpn_protocol() c:get_proxied_bytes() c:watch_only() c:paused() end,
  function(c) c:add_timer(random() / 50, act) end,
  function(c) c:on(pick { "data", "close", "drain", "connect" }, function() act(c) end) end,
  function() local other = any() if other then other:close_connection(random() < 0.5) end end,
  function() if room() then em.connect(pick(hosts), pick(ports), H) end end,
  function() if room() then em.connect({ url = "tls://127.0.0.1:" .. pick(ports), tls = { verify_peer = random() < 0.5 } }, H) end end,
  function() if room() then em.connect({ url = "tls://localhost:TLS", tls = { verify_peer = true } }, H) end end,
  function() if room() then em.connect_unix_domain(x.path("storm.sock"), H) end end,
  function(c) em.next_tick(function() act(c) end) end,
  function(c) em.go(function() local _ <close> = setmetatable({}, { __close = act_on_any }) em.sleep(random() / 50) act(c) end) end,
  function(c) em.go(function() local r = reader() repeat act(c) until not r:read(random(20000)) end):errback(act_on_any) end,
  function(c) em.go(function() reader():read_line(random(1000)) act(c) end) end,
  function() em.go(function() em.await(em.go(function() em.sleep(random() / 20) act_on_any() end)) end) end,
  function() em.go(function() reader():read_all() act_on_any() end) end,
  function(c) em.go(function() em.await(never) act(c) end) end,
  function() em.add_timer(random() / 20, act_on_any) end,
  function() error("on purpose") end,
  function() if random() < 0.03 then while true do end end end,
  function(c) c:start_tls { self_signed = true } end,
  function(c) c:start_tls { verify_peer = random() < 0.7, handshake_timeout = 0.1 } end,
  function(c) local fd = detach(c) if not (fd and random() < 0.5 and attach(fd, H)) then close_fd(fd) end end,
  function(c)
    local fd = detach(c)
    local watch = fd and em.watch(fd, H, fd)
    if watch then watch:notify_readable(true) watch:notify_writable(random() < 0.3) else close_fd(fd) end
  end,
  function(c) em.Connection.notify_readable(c, random() < 0.5) em.Connection.notify_writable(c, random() < 0.5) end,
  function(c) local other = any() if other then c:proxy_incoming_to(other) end end,
  function(c) local other = any() if other then c:proxy_incoming_to(other, random(20000), random(50000)) end end,
  function(c) local other = any() if other then em.enable_proxy(c, other) em.enable_proxy(other, c) end end,
  function(c) c:stop_proxying() end,
  function() if room() then em.open_datagram_socket("127.0.0.1", 0, H) end end,
  function() if room() then em.listen("udp://127.0.0.1:0", H) end end,
  function(c) c:send_datagram("d", "127.0.0.1", pick { UDP, UDP, UDP2, 1 }) end,
  function(c) c:send_datagram(("d"):rep(random(70000)), pick(hosts), pick { UDP, 1 }) end,
  function(c) for i = 1, 50 do c:send_datagram("d", pick(names) .. "x", UDP) end end,
  function() if room() and kids < 8 then em.popen(pick(commands), H, { stderr = pick { "inherit", "merge", "separate" } }) end end,
  function() if room() and kids < 8 then em.popen(pick(commands), H, { stderr = "separate", args = { nil, 2 } }) end end,
  function() if kids < 8 then em.system(pick(commands), act_on_any) end end,
  function() if kids < 8 then watch_for_end(em.DeferrableChildProcess.open(pick(commands))) end end,
  function(c) c:kill(pick(signals)) end, function(c) c:kill() end,
  function(c) if c:get_pid() and room() then em.watch_process(c:get_pid(), H) end end,
  function() if room() then em.watch_process(random(4000), H) end end,
  function(c) local job = c:stream_file_data(file(), { http_chunks = random() < 0.3 })
    if job then job:callback(function() act(c) end):errback(function() act(c) c:kill() end) end end,
  function(c) c:send_file_data(file()) end,
  function(c)
    local f = io.open(file())
    if f then em.IOStreamer(c, f):callback(function() act(c) f:close() end):errback(function() f:close() end) end
  end,
  function() if room() then em.watch_file(file(), H) end end, function() if room() then em.watch_file(x.path("watched"), H) end end,
  function(c) c:stop_watching() end,
  function() local f = io.open(x.path("watched"), "w") f:write("x") f:close() end,
  function() os.rename(x.path("watched"), x.path("folder/moved")) end,
  function()
    os.remove(x.path("folder/moved"))
    local f = io.open(x.path("folder/new"), "w")
    if f then f:close() end
    os.remove(x.path("folder/new"))
  end,
  function() local f = io.open(x.path("shrinks"), "w") f:write(("s"):rep(random(300000))) f:close() end,
  function() watch_for_end(em.dns.resolve(pick(names), { type = pick { "A", "AAAA" } })) end,
  function() watch_for_end(em.dns.resolve(pick(names))) end,
  function(c) c:subscribe(pick(channels)) end, function(c) c:subscribe(pick(channels)) end, function(c) c:unsubscribe(pick(channels)) end,
  function() em.channel(pick(channels)):push(pick(data)) end, function() em.channel(pick(channels)):push(random(100)) end,
  function()
    local name = pick(channels)
    if ids[name] then em.channel(name):unsubscribe(ids[name]) end
    ids[name] = em.channel(name):subscribe(act_on_any)
  end,
  function() em.shared(pick(channels)):set(pick(channels), pick(data), random() < 0.5 and 0.01 or nil) end,
  function() em.shared(pick(channels)):incr(pick(channels), random(10), random()) em.shared(pick(channels)):keys() end,
  function() em.shared(pick(channels)):get(pick(channels)) em.shared(pick(channels)):delete(pick(channels)) end,
  function() em.on_signal("WINCH", random() < 0.9 and act_on_any or nil) end,
  function()
    if #servers > 3 then table.remove(servers):stop() return end
    local s = em.start_server("127.0.0.1", 0, H)
    if s then
      servers[#servers + 1] = s
      s:on("accept", act):on("close", act_on_any)
      em.connect("127.0.0.1", select(2, s:address()), H)
    end
  end,
}
function act(self)
  if self.dead == "now" then say("bad", "called after unbind", self.signature) end
  if random() < 0.7 then pick(acts)(self) end
end

local function enter(self)
  all[#all + 1] = self
  self.index, self.dead, live = #all, nil, live + 1
  self:add_periodic_timer(0.2, function() if x.over() then self:close_connection() end end)
end
local function begin(self) say("+", self.signature) enter(self) end
function H:initialize(fd)
  begin(self)
  self.own_fd, self.is_child = fd, self:get_pid()
  if self.is_child then kids = kids + 1 end
  act(self)
end
for _, name in ipairs { "post_init", "receive_data", "drained", "ssl_handshake_completed", "send_error", "receive_stderr", "file_modified",
  "file_moved", "file_deleted", "process_exited", "notify_readable", "notify_writable", "receive_message",
  "proxy_target_unbound", "proxy_completed" } do
  H[name] = function(self)
    if self.dead then say("bad", name, self.signature) end
    act(self)
  end
end
function H:ssl_verify_peer() act(self) return random() < 0.9 end
function H:connection_completed() self.outgoing = true act(self) end
function H:receive_eof() act(self) if random() < 0.9 then self:close_connection_after_writing() end end
function H:unbind()
  say("-", self.signature)
  if self.dead then say("bad", "second unbind", self.signature) end
  local last = all[#all]
  all[self.index], last.index, all[#all] = last, self.index, nil
  live, self.dead = live - 1, true
  if self.is_child then kids = kids - 1 end
  local fd = self.own_fd
  if fd then em.next_tick(function() close_fd(fd) end) self.own_fd = nil end
  if self.outgoing and random() < 0.1 and room() then
    say("~", self.signature) -- the limit on time may end this before begin has said that it lives again
    if self:reconnect("127.0.0.1", PORT) then begin(self) end
  elseif random() < 0.5 then
    act(self)
  end
end

-- Reloads take those of the listen blocks along, unless one of the two fails: they begin once and end once, in whatever code.
function H:handover()
  if self.dead then say("bad", "handover", self.signature) end
  act(self)
  return { outgoing = self.outgoing, more = random() < 0.1 and print or { ("x"):rep(random(10000)) } }
end
function H:takeover(state)
  self.outgoing = state.outgoing
  act(self)
  enter(self)
  if random() < 0.1 then error("not this one") end
end
if random() < 0.2 then H.takeover = nil end

em.run(function()
  em.start_server("127.0.0.1", SCRIPT, H)
  em.listen("udp://127.0.0.1:UDP2", H)
  em.on_signal("WINCH", act_on_any)
  em.add_shutdown_hook(act_on_any)
  em.add_periodic_timer(0.01, act_on_any)
  em.add_periodic_timer(0.05, function() if room() then em.connect("127.0.0.1", TLS, H) end end)
  if random() < 0.7 then em.error_handler(function(_, c) if c then act(c) end end) end
end)
return H]]

local broken = { "error 'on purpose'", "return {", "em.connect('127.0.0.1', 1)", "while true do end" }
local calm = "local H = {} return H"

describe("a storm of all kinds", function()
  t.auto()

  local random = math.random
  local s, silent, ports, mark, clients

  -- What runs below the daemon, or was started by it.
  local function children()
    local found = {}
    for pid in lfs.dir("/proc") do
      local file = pid:find("^%d+$") and pid ~= tostring(s.d.pid) and io.open("/proc/" .. pid .. "/environ", "rb")
      if file then
        if (file:read("a") or ""):find(mark, 1, true) then
          local stat = t.read("/proc/" .. pid .. "/cmdline") or ""
          found[#found + 1] = pid .. " " .. stat:gsub("%z", " ")
        end
        file:close()
      end
    end
    return found
  end

  local function write_handler(text)
    t.write("h.lua", prelude .. text:gsub("%f[%w](%u+%d?)%f[%W]", function(name) return ports[name] end))
  end

  local function reload(text)
    local from = s.d:mark()
    write_handler(text)
    s.d:signal("HUP")
    local outcome = s.d:wait_log("reload( ?%a+): generation", 30, from)
    if s.control then s.control:close() end
    s.control = nil
    return outcome
  end

  before_each(function()
    silent = assert(socket.udp())
    assert(silent:setsockname("127.0.0.1", 0))
    ports = { TLS = t.free_port(), SCRIPT = t.free_port(), UDP = t.free_port(), UDP2 = t.free_port() }
    mark = "KINDS_STORM=" .. t.dir()
    lfs.mkdir(t.path("folder"))
    t.write("big", ("b"):rep(1000000))
    for _, name in ipairs { "small", "watched", "shrinks" } do t.write(name, ("s"):rep(1000)) end
    s = serve(calm, {
      listen = "linger_timeout = 0.2, idle_timeout = 1, max_outbound = '1 MiB', high_water = 100000, low_water = 1000",
      config = ([[
        max_queued = "8 MiB" reload_timeout = 0.5 generations = 3 callback_time = %g nameservers = { "127.0.0.1:%d" }
        listen "tls://127.0.0.1:%d" { handler = "h", tls = { self_signed = true }, linger_timeout = 0.2, idle_timeout = 1 }
        listen "udp://127.0.0.1:%d" { handler = "h" }
        listen "unix://%s" { handler = "h", linger_timeout = 0.2, idle_timeout = 1 }]])
        :format(t.seconds(0.1), select(2, silent:getsockname()), ports.TLS, ports.UDP, t.path("storm.sock")),
      env = { KINDS_STORM = t.dir() },
    })
    ports.PORT = s.port
    clients = {}
  end)

  after_each(function()
    silent:close()
  end)

  -- Clients do what peers may do, in between the daemon is reloaded and gets signals.
  local function rage(seconds)
    local stop, next_reload = t.now() + seconds, 0
    while t.now() < stop and not s.d:ended() do
      local i, act = random(30), random(14)
      local c = clients[i]
      if not c then
        clients[i] = t.connect(random() < 0.7 and s.port or ports.TLS, random() < 0.5 and { buffer = 4096 } or nil)
      elseif act <= 5 then
        c:send_some(("z"):rep(random(50000)))
      elseif act <= 8 then
        t.sys.recv(c.fd, 65536)
      elseif act <= 10 then
        pcall(c.shutdown_write, c)
      elseif act <= 12 then
        s.d:signal("WINCH")
      else
        c[act == 13 and "close" or "reset"](c)
        clients[i] = nil
      end
      if t.now() > next_reload then
        if next_reload > 0 and random(5) == 1 then -- the first one begins the storm
          assert.equal(" refused", reload(broken[random(#broken)]))
        else
          assert.equal("ed", reload(handler))
        end
        next_reload = t.now() + random() * 0.8
      end
    end
  end

  -- Of each object one begin and one end; nothing was called after its end.
  local function check_log()
    local log = s.d:log()
    local open, count = {}, 0
    local may_follow = { ["+"] = "[-~]", ["-"] = "+", ["~"] = "[+-]" }
    for sign, signature in log:gmatch("{{([+~-]) (%d+)}}") do
      local before = open[signature] or "~" -- the limit may have ended its initialize before it said anything
      assert.is_true(sign == "~" or sign:find(may_follow[before]) ~= nil, "object " .. signature .. " has " .. sign .. " after " .. before)
      open[signature] = sign
      count = count + (sign == "-" and 1 or 0)
    end
    for signature, last in pairs(open) do assert.not_equal("+", last, "object " .. signature .. " got no unbind") end
    assert.is_true(count > 50)
    assert.is_nil(log:match("{{bad [^\n]*"))
    assert.is_nil(log:match("internal error[^\n]*"))
    assert.equal("0", log:match("stopped: .*%f[%w]children=(%d+)"))
    t.until_true(function() return #children() == 0 end, 20, "an end of all children")
  end

  it("leaves nothing behind", function()
    s:eval [[ em.shared("a"):keys() ]] -- from now on the store is open
    local baseline, count = s.d:fds(), s:eval "return em.connection_count()"
    rage(t.full and 60 or 2.5)
    assert.equal("ed", reload(calm))
    t.write("over", "")
    for _, c in pairs(clients) do c:close() end
    local left
    local ended = pcall(t.until_true, function() left = s:eval "return em.connection_count()" - count return left == 0 end, 10)
    assert.is_true(ended, left .. " connections are left")
    t.until_true(function() return #children() == 0 end, 20, "an end of all children")
    local log = s.d:log()
    local lost = select(2, log:gsub("{{taken", "")) - select(2, log:gsub("{{given", ""))
    t.until_true(function() return s.d:fds() <= baseline + lost + 4 end, 30, "few descriptors") -- inotify, its event, what c-ares has open
    s.d:stop()
    check_log()
  end)

  it("may be stopped at any moment", function()
    rage(t.full and 20 or 1)
    s.d:signal("TERM")
    s.d:wait(30)
    s.d:check()
    check_log()
  end)
end)
