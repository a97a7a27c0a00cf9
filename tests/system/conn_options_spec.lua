-- Socket options.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local plain = "local H = {} function H:post_init() x.conn = self end "

-- Serves one connection and leaves it in x.conn.
local function serving(options)
  local s = serve(plain .. "return H", options)
  local c = s:connect()
  s:until_true("return x.conn ~= nil")
  return s, c
end

describe("keep-alive", function()
  t.auto()

  local read = [[
    local c = x.conn
    return c:get_sock_opt("socket", "keepalive"), c:get_sock_opt("tcp", "keepidle"), c:get_sock_opt("tcp", "keepintvl"),
      c:get_sock_opt("tcp", "keepcnt")]]

  it("with figures that the system refuses ends a connection as it comes up, also one that is to close", function()
    local s = serving "keepalive = false"
    s:eval [[
      em.connect({ url = "tcp://127.0.0.1:" .. x.port, linger_timeout = 0.1 }, {
        post_init = function(self)
          self:enable_keepalive(0, 0, 200)
          self:send_data("x")
          self:close_connection(true)
        end,
        unbind = function(_, err, why) say(err, why) em.add_timer(0.3, function() say("later") end) end,
      })]]
    s:expects { "EINVAL Invalid argument", "later" }
    s.d:stop()
  end)

  it("is set with its figures and switched off again", function()
    local s = serving()
    local was, idle, interval, count = s:eval(read)
    assert.is_false(was)
    assert.is_true(s:eval "return x.conn:enable_keepalive(5, 10, 15)")
    assert.same({ true, 5, 10, 15 }, { s:eval(read) })
    assert.is_true(s:eval "return x.conn:disable_keepalive()")
    assert.is_false((s:eval(read)))
    s:connect()
    s:until_true("return not x.conn:get_sock_opt('socket', 'keepalive') and x.conn:get_sock_opt('tcp', 'keepidle') == " .. idle)
    assert.is_true(s:eval "return x.conn:enable_keepalive()")
    assert.same({ true, idle, interval, count }, { s:eval(read) })
    assert.is_true(s:eval "return x.conn:enable_keepalive(nil, 7)")
    assert.same({ true, idle, 7, count }, { s:eval(read) })
    s.d:stop()
  end)

  it("of the config: on, or with a time", function()
    local s = serving("keepalive = true")
    assert.is_true((s:eval(read)))
    s.d:stop()
    s = serving("keepalive = 33")
    assert.same({ true, 33 }, table.move({ s:eval(read) }, 1, 2, 1, {}))
    s.d:stop()
  end)

  it("asked for while connecting is there when connected", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:post_init() self:enable_keepalive(5, 10, 15) x.conn = self end
      function C:connection_completed() say("completed") end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return {}]]):format(server.port))
    local c = server:accept()
    s:waits_for("completed")
    assert.same({ true, 5, 10, 15 }, { s:eval(read) })
    c:close()
    s.d:stop()
  end)

  it("raises for what is no number of seconds", function()
    local s = serving()
    for _, wrong in ipairs { "-1", "'x'", "1.5", "40000", "1, -1", "1, 1, {}" } do
      assert.is_false((s:eval("return pcall(x.conn.enable_keepalive, x.conn, %s)", wrong)), wrong)
    end
    s.d:stop()
  end)
end)

describe("get_sock_opt and set_sock_opt", function()
  t.auto()

  it("read and set options of each level; switches are booleans, the rest integers", function()
    local s = serving()
    local cases = {
      { "socket", "rcvbuf", 20000, 40000 }, { "socket", "sndbuf", 20000, 40000 }, { "socket", "keepalive", true },
      { "socket", "priority", 3 }, { "socket", "reuseaddr", false }, { "socket", "oobinline", true }, { "tcp", "nodelay", false },
      { "tcp", "cork", true },
      { "tcp", "keepidle", 77 }, { "tcp", "user_timeout", 1234 }, { "ip", "tos", 16 }, { "ip", "ttl", 33 },
    }
    for _, case in ipairs(cases) do
      local level, name, value, seen = table.unpack(case)
      assert.same({ name, true }, { name, s:eval("return x.conn:set_sock_opt(%q, %q, %s)", level, name, tostring(value)) })
      if seen == nil then seen = value end
      assert.same({ name, seen }, { name, (s:eval("return x.conn:get_sock_opt(%q, %q)", level, name)) })
    end
    assert.equal(0, s:eval "return x.conn:get_sock_opt('socket', 'error')")
    assert.equal(1, s:eval "return x.conn:get_sock_opt('socket', 'type')")
    assert.is_false(s:eval "return x.conn:get_sock_opt('socket', 'acceptconn')")
    assert.equal("boolean", s:eval "return type(x.conn:get_sock_opt('tcp', 'quickack'))")
    s.d:stop()
  end)

  it("take integers for switches, and booleans", function()
    local s = serving()
    assert.same({ true, false, true, true }, { s:eval [[
      local c = x.conn
      local a = c:set_sock_opt("tcp", "nodelay", 0)
      local b = c:get_sock_opt("tcp", "nodelay")
      return a, b, c:set_sock_opt("tcp", "nodelay", 1), c:get_sock_opt("tcp", "nodelay")]] })
    s.d:stop()
  end)

  it("raise for unknown names and wrong types", function()
    local s = serving()
    for _, wrong in ipairs { "'socket', 'colour'", "'tcp', 'rcvbuf'", "'Socket', 'rcvbuf'", "'socket'", "1, 2", "'', ''", "{}, 'x'" } do
      assert.is_false((s:eval("return pcall(x.conn.get_sock_opt, x.conn, %s)", wrong)), wrong)
      assert.is_false((s:eval("return pcall(x.conn.set_sock_opt, x.conn, %s, 1)", wrong)), wrong)
    end
    local _, message = s:eval "return pcall(x.conn.get_sock_opt, x.conn, 'socket', 'colour')"
    assert.matches("unknown socket option 'socket', 'colour'", message)
    for _, wrong in ipairs { "'x'", "nil", "1.5", "{}", "1 << 40" } do
      assert.is_false((s:eval("return pcall(x.conn.set_sock_opt, x.conn, 'socket', 'rcvbuf', %s)", wrong)), wrong)
    end
    s.d:stop()
  end)

  it("return what the system refuses", function()
    local s = serving()
    local ok, message, code = s:eval "return x.conn:set_sock_opt('ip', 'ttl', 1000)"
    assert.same({ nil, "Invalid argument", "EINVAL" }, { ok, message, code })
    ok, message, code = s:eval "return x.conn:set_sock_opt('socket', 'type', 1)"
    assert.is_nil(ok)
    assert.equal("string", type(message))
    assert.equal("ENOPROTOOPT", code)
    s.d:stop()
  end)

  it("on a Unix socket: what it has works, what it has not is refused", function()
    local s = serve(plain .. "em.next_tick(function() x.server = em.start_unix_domain_server(x.path 'u.sock', H) end) return H")
    s:eval "return 1"
    t.connect(t.path("u.sock"))
    s:until_true("return x.conn ~= nil")
    assert.is_true(s:eval "return x.conn:set_sock_opt('socket', 'sndbuf', 20000)")
    local ok, _, code = s:eval "return x.conn:get_sock_opt('tcp', 'nodelay')"
    assert.same({ nil, "EOPNOTSUPP" }, { ok, code })
    s.d:stop()
  end)
end)

describe("TCP_NODELAY", function()
  t.auto()

  it("is on by default on both sides", function()
    local server = t.listen()
    local s = serve(([[
      local C = {}
      function C:connection_completed() say(self:get_sock_opt("tcp", "nodelay")) end
      local H = {}
      function H:post_init() say(self:get_sock_opt("tcp", "nodelay")) end
      em.next_tick(function() em.connect("127.0.0.1", %d, C) end)
      return H]]):format(server.port))
    s:connect()
    s:expects { "true", "true" }
    server:accept():close()
    s.d:stop()
  end)

  it("can be switched off in the config", function()
    local s = serving("nodelay = false")
    assert.is_false(s:eval "return x.conn:get_sock_opt('tcp', 'nodelay')")
    s.d:stop()
  end)
end)

describe("error", function()
  t.auto()

  it("is nil while all is well, also while connecting", function()
    local s = serving()
    assert.same({}, { s:eval "return x.conn:error()" })
    s.d:stop()
  end)

  it("tells the pending error, as often as asked, and the end still hears of it", function()
    local s = serve(plain .. [[
      function H:receive_data()
        -- The peer resets in the meantime; the loop cannot see it before this callback has returned.
        local stop, code = os.clock() + 0.5, nil
        repeat code = self:error() until code or os.clock() > stop
        say(code, self:error(), self:get_sock_opt("socket", "error") ~= 0, self:send_data("x"))
      end
      function H:unbind(...) say(...) end
      return H]])
    local c = s:connect()
    s:until_true("return x.conn ~= nil")
    c:send("x")
    t.sys.sleep(0.02)
    c:reset()
    s:expects { "ECONNRESET ECONNRESET true nil closed ENOTCONN", "ECONNRESET Connection reset by peer" }
    s.d:stop()
  end)
end)
