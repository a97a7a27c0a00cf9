-- reactord -t, reactord check: what it finds, that it opens nothing, and the configuration as JSON.
local t = require "tests.support.harness"
local json = require "dkjson"
local lfs = require "lfs"

local good = [[
local em = require "em"
em.next_tick(function() error "nothing runs in a check" end)
return em.Connection:extend()
]]

-- A file with a good handler beside it.
local function configuration(text)
  t.write("good.lua", good)
  return t.write("reactord.conf", text .. '\nhandlers = { "." }\n')
end

describe("reactord check", function()
  t.auto()

  it("finds nothing wrong with good files, and the shipped ones are good", function()
    local file = configuration 'listen "tcp://127.0.0.1:9" { handler = "good" }\nconnect "tcp://127.0.0.1:9" { handler = "good" }'
    for _, command in ipairs { { "-t", "-c", file }, { "check", "-c", file }, { "--check", "--config", file }, { "-c", file, "-t" } } do
      local r = t.reactord(command)
      assert.same({ 0, "" }, { r.status, r.err })
      assert.equal(file .. ": the configuration is good\n", r.out)
    end
    for name in lfs.dir(t.root .. "/conf") do
      if name:find("%.conf$") and name ~= "service.conf" then -- the last one names a user that may not exist
        local r = t.reactord { "-t", "-c", "conf/" .. name, cwd = t.root }
        assert.same({ 0, "" }, { r.status, r.err })
      end
    end
  end)

  it("opens nothing, and passes while the same daemon runs", function()
    local port = t.free_port()
    configuration ""
    t.write("good.lua", 'local em = require "em"\nreturn { post_init = function(c) c:send_data("hello\\n") end }')
    local d = t.start(([[listen "tcp://127.0.0.1:%d" { handler = "good" }
      listen "unix://x.sock" { handler = "good" }
      pid_file = "x.pid"]]):format(port))
    local file, pid = lfs.attributes(t.path("x.sock"), "ino"), t.read("x.pid")
    local r = t.reactord { "-t", "-c", d.config }
    assert.same({ 0, "" }, { r.status, r.err })
    assert.equal(file, lfs.attributes(t.path("x.sock"), "ino"))
    assert.equal(pid, t.read("x.pid"))
    t.connect(port):expect("hello\n")
    t.connect(t.path("x.sock")):expect("hello\n")
    d:stop()
    assert.is_nil(lfs.attributes(t.path("x.sock"), "ino"))
    assert.is_nil(t.read("x.pid"))
    assert.equal(0, t.reactord({ "-t", "-c", d.config }).status)
    assert.is_nil(lfs.attributes(t.path("x.sock"), "ino"))
    assert.is_nil(t.read("x.pid"))
  end)

  it("compiles every handler and tells all mistakes", function()
    t.write("a.lua", "local x =\n=")
    t.write("b.lua", 'error "not me"')
    t.write("c.lua", 'require "nowhere"')
    t.write("near.lua", "return { recieve_data = function() end }")
    local file = configuration [[
listen "tcp://127.0.0.1:1" { handler = "a" }
listen "tcp://127.0.0.1:2" { handler = "b" }
listen "tcp://127.0.0.1:3" { handler = "good" }
connect "tcp://127.0.0.1:4" { handler = "c" }
connect "tcp://127.0.0.1:5" { handler = "missing" }
connect "tcp://127.0.0.1:6" { handler = "a" }
connect "tcp://127.0.0.1:7" { handler = "near" }]]
    local r = t.reactord { "-t", "-c", file }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("reactord.conf:1: handler 'a': [^\n]*a.lua:2: unexpected symbol near '='\n", r.err)
    assert.matches("reactord.conf:2: handler 'b': [^\n]*b.lua:1: not me\n", r.err)
    assert.matches("reactord.conf:4: handler 'c': [^\n]*c.lua:1: module 'nowhere' not found", r.err)
    assert.matches("reactord.conf:5: handler 'missing': no such file %(looked for [^\n]*missing.lua", r.err)
    assert.is_nil(r.err:find("conf:6", 1, true)) -- told once
    assert.matches("near.lua: 'recieve_data' is not a callback %(did you mean 'receive_data'%?%)", r.err)
  end)

  it("lets handler files ask what a daemon's may ask while they load", function()
    t.write("asks.lua", [[
      local em = require "em"
      assert(em.stopping() == false and em.reactor_running() == false and em.connection_count() == 0)
      assert(em.get_timer_count() == 0 and em.process() == 1)
      em.add_shutdown_hook(function() error "no" end)
      em.error_handler(function() end)
      em.add_timer(0, function() error "no" end)
      return {}]])
    local r = t.reactord { "-t", "-c", configuration 'listen "unix://x" { handler = "asks" }' }
    assert.same({ 0, "" }, { r.status, r.err })
    t.write("asks.lua", 'require("em").stop()\nreturn {}')
    r = t.reactord { "-t", "-c", configuration 'listen "unix://x" { handler = "asks" }' }
    assert.equal(1, r.status)
    assert.matches("asks.lua:1: [^\n]*while handlers load", r.err)
    t.write("asks.lua", 'local all = {}\nwhile true do all[#all + 1] = ("x"):rep(10000) .. #all end')
    r = t.reactord { "-t", "-c", configuration 'listen "unix://x" { handler = "asks" }\nmemory_limit = "4 MiB"' }
    assert.equal(1, r.status)
    assert.matches("handler 'asks': [^\n]*not enough memory", r.err)
  end)

  it("tells all mistakes of the configuration", function()
    local r = t.reactord { "check", "-c", configuration "generations = 0\nlisten 'tcp://127.0.0.1' { handler = 5 }\nlog = { lvel = 1 }" }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("reactord.conf:1: 'generations' must be a whole number from 1 to 100, got 0\n", r.err)
    assert.matches("reactord.conf:2: ", r.err)
    assert.matches("reactord.conf:2: 'handler' in listen must be a text", r.err)
    assert.matches("reactord.conf:3: unknown option 'lvel' in log %(did you mean 'level'%?%)\n", r.err)
  end)

  it("finds what its user may not do", function()
    if t.sys.getuid() ~= 0 then pending("only root can change the user") end
    t.copy_daemon()
    local file = configuration 'listen "tcp://127.0.0.1:9" { handler = "secret" }\nuser = "nobody"'
    t.write("secret.lua", good)
    t.sys.chmod(t.path("secret.lua"), "0600")
    local r = t.reactord { "-t", "-c", file }
    assert.same({ 1, "" }, { r.status, r.out })
    assert.matches("handler 'secret': cannot open [^\n]*secret.lua", r.err)
    t.sys.chmod(t.path("secret.lua"), "0644")
    assert.equal(0, t.reactord({ "-t", "-c", file }).status)
    r = t.reactord { "-t", "-c", configuration 'user = "no-such-user"' }
    assert.same({ 1, "there is no user 'no-such-user'\n" }, { r.status, r.err })
  end)
end)

-- Compares values of JSON; an empty list is not null.
local function equal(expected, got, name)
  if expected == json.null or got == json.null or type(expected) ~= "table" then return assert.equal(expected, got, name) end
  assert.same(expected, setmetatable(got, nil), name)
end

describe("check --dump=json", function()
  t.auto()

  it("prints the whole configuration", function()
    local file = configuration [[
user = nil
drain_timeout = 1.5
memory_limit = "64 MiB"
log = { level = "warn" }
listen "tcp://127.0.0.1:9" { handler = "good", args = { "a", 2, { b = true } }, keepalive = 30 }
listen "unix://x.sock" { handler = "good", mode = "0660" }
connect "tcp://127.0.0.1:9" { handler = "good", reconnect = 5, bind = "127.0.0.1" }]]
    local r = t.reactord { "check", "--dump=json", "-c", file, "-s", "max_queued=65536", env = { REACTORD_GENERATIONS = "7" } }
    assert.same({ 0, "" }, { r.status, r.err })
    local all, _, why = json.decode(r.out, nil, json.null)
    assert.is_nil(why)
    assert.equal(file, all.file)
    assert.equal(1.5, all.drain_timeout)
    assert.equal(64 * 1024 * 1024, all.memory_limit)
    assert.equal(65536, all.max_queued)
    assert.equal(7, all.generations)
    assert.equal("warn", all.log.level)
    assert.same({ t.dir() .. "/." }, setmetatable(all.handlers, nil))
    assert.equal("tcp://127.0.0.1:9", all.listen[1].url)
    assert.same({ "a", 2, { b = true } }, all.listen[1].args)
    assert.equal(30, all.listen[1].keepalive)
    assert.equal(5, all.listen[1].line)
    assert.equal("unix://" .. t.path("x.sock"), all.listen[2].url)
    assert.equal("0660", all.listen[2].mode)
    assert.equal(5, all.connect[1].reconnect)
  end)

  it("has every default", function()
    local file = configuration 'listen "unix://x.sock" { handler = "good" }\nconnect "unix://x.sock" { handler = "good" }'
    local all = assert(json.decode(t.reactord({ "check", "--dump=json", "-c", file, env = { REACTORD_SLOW_CALLBACK = false } }).out, nil,
      json.null))
    -- What the shipped configuration says of them, as the table of options has it.
    local defaults = {
      top = {
        user = json.null, group = json.null, pid_file = json.null, control = json.null, control_eval = false, processes = 1,
        memory_limit = 1 << 30, max_queued = 1 << 30,
        callback_time = 1, drain_timeout = 30, reload_timeout = 3600, generations = 4, unsafe = false, lua_path = json.null,
        lua_cpath = json.null, nameservers = {}, channel_queue = 16 << 20, shared_size = 16 << 20, slow_callback = 0.1,
        hang_timeout = 10, upgrade_timeout = 60,
      },
      log = { level = "info", format = "auto", file = json.null, repeats = 10 },
      listen = {
        args = json.null, backlog = 4096, max_connections = 0, max_connections_per_address = 0, reuse_port = false, mode = json.null,
        proxy_protocol = {}, first_byte_timeout = 0,
      },
      connect = {
        args = json.null, each_process = false, connect_timeout = 20, reconnect = json.null, bind = json.null, proxy_protocol = "none",
      },
      both = {
        idle_timeout = 0, linger_timeout = 30, low_water = 65536, high_water = 1 << 20, max_outbound = 64 << 20, nodelay = true,
        keepalive = false, tls = json.null, log_level = "default",
      },
    }
    local function check(scope, object)
      for name, value in pairs(scope) do
        equal(value, object[name], name)
      end
    end
    check(defaults.top, all)
    check(defaults.log, all.log)
    for _, scope in ipairs { "listen", "connect" } do
      check(defaults[scope], all[scope][1])
      check(defaults.both, all[scope][1])
    end
    -- And nothing else: each option that is added is added here, with its default.
    local known = { handlers = true, file = true, log = true, listen = true, connect = true }
    for name in pairs(all) do assert.is_truthy(known[name] or defaults.top[name] ~= nil, name) end
    for name in pairs(all.log) do assert.is_truthy(defaults.log[name] ~= nil, name) end
    for _, scope in ipairs { "listen", "connect" } do
      for name in pairs(all[scope][1]) do
        local ours = name == "url" or name == "file" or name == "line" or name == "handler"
        assert.is_truthy(ours or defaults[scope][name] ~= nil or defaults.both[name] ~= nil, name)
      end
    end
  end)

  it("has the options of tls, where there is TLS", function()
    local file = configuration [[
listen "unix://x.sock" { handler = "good", tls = { self_signed = true, alpn = { "h2" } } }
connect "tls://localhost:9" { handler = "good" }
connect "tcp://localhost:9" { handler = "good", tls = { verify_hostname = false, verify_peer = true, handshake_timeout = 2.5 } }]]
    local r = t.reactord { "check", "--dump=json", "-c", file }
    assert.same({ 0, "" }, { r.status, r.err })
    local all = assert(json.decode(r.out, nil, json.null))
    local defaults = {
      certificate = json.null, private_key = json.null, private_key_pass = json.null, self_signed = false, verify_peer = json.null,
      verify_hostname = json.null, ca_file = json.null, ca_path = json.null, fail_if_no_peer_cert = false, sni_hostname = json.null,
      alpn = {}, sni = json.null, min_version = "default", max_version = "default", ssl_version = {}, cipher_list = json.null,
      ciphersuites = json.null, ecdh_curve = json.null, dhparam = json.null, handshake_timeout = 10,
    }
    for object, set in pairs {
      [all.listen[1].tls] = { self_signed = true, alpn = { "h2" } },
      [all.connect[1].tls] = {},
      [all.connect[2].tls] = { verify_hostname = false, verify_peer = true, handshake_timeout = 2.5 },
    } do
      for name, got in pairs(object) do
        local expected = set[name]
        if expected == nil then expected = defaults[name] end
        equal(expected, got, name)
      end
      for name in pairs(defaults) do assert.is_not_nil(object[name], name) end
    end
  end)

  it("ends with 1 when something is wrong", function()
    assert.equal(1, t.reactord({ "check", "--dump=json", "-c", configuration "x = 1" }).status)
    local r = t.reactord { "check", "--dump=json", "-c", configuration 'listen "unix://x" { handler = "missing" }' }
    assert.equal(1, r.status)
    assert.is_truthy(json.decode(r.out))
    assert.matches("handler 'missing': no such file", r.err)
  end)
end)
