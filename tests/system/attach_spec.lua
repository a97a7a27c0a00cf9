-- Descriptors that were not opened by the loop: em.attach, em.watch, em.attach_server, detach.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"

-- Two ends of a connection: the first is to be given away.
local function pair()
  local server = t.listen()
  local here = t.connect(server.port)
  return server:accept(), here
end

-- A script that has a socket as descriptor 3; returns the daemon object and our end. print goes to its log.
local function start(text)
  local there, here = pair()
  local d = t.start {
    script = 'local em = require "em"\nlocal out = function(...) em.log.info("{{%s}}", table.concat({ ... }, " ")) end\n' .. text,
    fds = { there.fd }, wait = false, unchecked = true,
  }
  there:close()
  return d, here
end

-- The status flags of a descriptor, as text for scripts that are not restricted.
local flags = [[
local function nonblocking(fd)
  local flags = io.open("/proc/self/fdinfo/" .. fd):read("a"):match("flags:%s*(%d+)")
  return tonumber(flags, 8) & 2048 ~= 0
end
]]

describe("em.attach", function()
  t.auto()

  it("makes a connection of a socket", function()
    local d, c = start [[
      local H = em.Connection:extend()
      function H:initialize(greeting) self:send_data(greeting) end
      function H:receive_data(data) self:send_data(data:upper()) end
      function H:unbind(err, why) out("unbind", tostring(err), why) end
      local conn = assert(em.attach(3, H, "hello "))
      local host, port = conn:get_peername()
      out("peer", host, tostring(math.type(port)), tostring(conn:watch_only()), tostring(em.connection_count()))
      out("again", tostring(select(3, em.attach(3, H))))]]
    c:expect("hello "):send("text"):expect("TEXT")
    d:wait_log "{{peer 127.0.0.1 integer false 1}}"
    d:wait_log "{{again EEXIST}}"
    c:shutdown_write():expect_eof()
    d:wait_log "{{unbind nil eof}}"
    assert.equal(0, d:wait())
  end)

  it("reads and writes pipes, and learns that nobody reads", function()
    local result = t.script([[
      local em = require "em"
      local path = arg[1]
      local R = em.Connection:extend()
      function R:receive_data(data) self.text = (self.text or "") .. data end
      function R:unbind(err, why) print("read", self.text, err, why) print(select(3, self:send_data "x")) end
      local conn = em.attach(io.popen("echo from a pipe"), R)
      print(select(3, conn:send_data "x"))
      local W = em.Connection:extend()
      function W:unbind(err, why) print("wrote", err, why) end
      local file = io.popen("cat >" .. path, "w")
      local writer = em.attach(file, W)
      print(writer:send_data(("x"):rep(500000)), writer:close_connection_after_writing())
      local G = em.Connection:extend()
      function G:unbind(err, why) print("gone", err) end
      em.attach(io.popen("exec true", "w"), G)
      em.add_shutdown_hook(function() file:close() end)
    ]], { t.path "out" })
    local lines = {}
    for line in result.out:gmatch "[^\n]+" do table.insert(lines, line) end
    table.sort(lines)
    assert.same({ "ENOTCONN", "EPIPE", "gone\tEPIPE", "read\tfrom a pipe", "true\ttrue", "wrote\tnil\tclosed", "\tnil\teof" },
      { lines[2], lines[3], lines[4], lines[5], lines[6], lines[7], lines[1] })
    t.until_true(function() return #(t.read "out" or "") == 500000 end)
  end)

  it("reads what epoll refuses: files, /dev/null, /dev/zero", function()
    t.write("file", ("line\n"):rep(200000))
    local result = t.script([[
      local em = require "em"
      local R = em.Connection:extend()
      function R:initialize(name) self.name, self.count = name, 0 end
      function R:receive_data(data) self.count = self.count + #data end
      function R:unbind(err, why) print(self.name, self.count, err, why) end
      em.attach(io.open(arg[1]), R, "file")
      em.attach(io.open("/dev/null"), R, "null")
      local Z = R:extend()
      function Z:receive_data(data)
        R.receive_data(self, data)
        self.turns = (self.turns or 0) + 1
        if self.turns == 3 then
          self:pause()
          local seen = self.count
          em.add_timer(0.02, function() print("paused", self.count == seen) self:resume() end)
        elseif self.turns == 10 then
          self:close_connection()
        end
      end
      function Z:unbind(err, why) print("zero", self.count > 0, err, why) end
      em.attach(io.open("/dev/zero"), Z, "zero")
      local W = em.attach(io.open(arg[2], "w"), R, "written")
      print(W:send_data(("y"):rep(3000000)), W:close_connection_after_writing())
    ]], { t.path "file", t.path "written" })
    local lines = {}
    for line in result.out:gmatch "[^\n]+" do table.insert(lines, line) end
    table.sort(lines)
    assert.same({ "false\ttrue", "file\t1000000\tnil\teof", "null\t0\tnil\teof", "paused\ttrue", "written\t0\tnil\tclosed",
      "zero\ttrue\tnil\tclosed" }, lines)
    assert.equal(("y"):rep(3000000), t.read "written")
    assert.equal("", result.err)
  end)

  it("uses no time while what it reads is paused or has nothing", function()
    local s = serve [[
      local H = em.Connection:extend()
      x.conn = nil
      em.next_tick(function() x.conn = em.attach(io.open("/dev/zero"), H) x.conn:pause() end)
      return {}]]
    s:until_true "return x.conn ~= nil"
    s.control:close()
    s.control = nil
    t.sys.sleep(0.05)
    local before = s.d:wakeups()
    t.sys.sleep(0.3)
    assert.is_true(s.d:wakeups() - before <= 2)
    s.d:stop()
  end)

  it("says what it cannot take", function()
    local s = serve [[ return {} ]]
    t.run { "mkdir", t.path "folder" }
    for argument, code in pairs {
      ["12345"] = "EBADF", ["-1"] = "EBADF", ["io.open(x.path 'folder')"] = "EISDIR",
    } do
      for _, fn in ipairs { "attach", "watch", "attach_server" } do
        if code == "EBADF" or fn == "attach" then
          local result, message, symbol = s:eval("return em.%s(%s, {})", fn, argument)
          assert.same({ nil, code }, { result, symbol }, fn .. " " .. argument)
          assert.is_string(message)
        end
      end
    end
    for _, bad in ipairs { "nil", "'3'", "1.5", "{}", "1 << 40" } do
      local ok, why = s:eval("return pcall(function() em.attach(%s, {}) end)", bad)
      assert.is_false(ok, bad)
      assert.matches("bad argument #1", why)
    end
    local ok, why = s:eval "local f = io.open '/dev/null' f:close() return pcall(function() em.attach(f, {}) end)"
    assert.is_false(ok)
    assert.matches("the file is closed", why)
    s.d:stop()
  end)

  it("raises while handlers load", function()
    for _, call in ipairs { "attach(0)", "watch(0)", "attach_server(0)", "open_keyboard()", "watch_file('/')", "watch_process(1)" } do
      t.write("h.lua", ("local em = require 'em'\nem.%s\nreturn {}"):format(call))
      local config = t.write("c.conf", ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "h" }'):format(t.dir(), t.free_port()))
      local result = t.reactord { "-t", "-c", config }
      assert.equal(1, result.status)
      assert.matches("nothing can be opened while handlers load", result.err .. result.out)
    end
  end)
end)

describe("detach", function()
  t.auto()

  it("gives the descriptor back as it was, open, and unbinds", function()
    local d, c = start(flags .. [[
      local H = em.Connection:extend()
      function H:receive_data() error "not any more" end
      function H:unbind(err, why) out("unbind", tostring(err), why, (self:get_peername())) end
      out("before", tostring(nonblocking(3)))
      local conn = em.attach(3, H)
      out("attached", tostring(nonblocking(3)))
      conn:send_data("dropped")
      out("detached", tostring(conn:detach()), tostring(nonblocking(3)), tostring(select(3, conn:detach())))
      local Echo = em.Connection:extend()
      function Echo:receive_data(data) self:send_data(data) end
      assert(em.attach(3, Echo))]])
    d:wait_log "{{before %l+}}"
    local before = d:log():match "{{before (%l+)}}"
    d:wait_log "{{attached true}}"
    d:wait_log("{{detached 3 " .. before .. " ENOTCONN}}")
    d:wait_log "{{unbind nil detached 127.0.0.1}}"
    c:send("x"):expect("x")
    c:close()
    assert.equal(0, d:wait())
  end)

  it("takes an accepted connection out, for another handler", function()
    local s = serve [[
      local H = em.Connection:extend()
      local Second = em.Connection:extend()
      function Second:receive_data(data) self:send_data("second: " .. data) end
      function Second:unbind(err, why) say("second", err, why) end
      function H:receive_data(data)
        self:send_data("never sent")
        local fd = self:detach()
        say("detached", math.type(fd))
        em.attach(fd, Second):send_data("taken\n")
      end
      function H:unbind(err, why) say("first", err, why) end
      return H]]
    local fds = s.d:fds()
    local c = s:connect()
    c:send("x"):expect("taken\n"):send("y"):expect("second: y")
    c:close()
    s:expects { "detached integer", "first nil detached", "second nil eof" }
    t.until_true(function() return s.d:fds() == fds end)
    s.d:stop()
  end)

  it("is refused where there is nothing to take out", function()
    local s = serve [[
      local H = {}
      function H:post_init() x.conn = self end
      return H]]
    local server = t.listen()
    assert.equal("ENOTCONN", select(3, s:eval("return em.connect('127.0.0.1', %d):detach()", server.port)))
    local c = s:connect()
    s:until_true "return x.conn ~= nil"
    s:eval "x.conn:start_tls { self_signed = true }"
    assert.equal("EOPNOTSUPP", select(3, s:eval "return x.conn:detach()"))
    c:close()
    s.d:stop()
  end)
end)

describe("em.watch", function()
  t.auto()

  it("tells of readiness, again and again, for what is asked", function()
    local d, c = start [[
      local H = em.Connection:extend()
      function H:notify_readable()
        self.count = (self.count or 0) + 1
        if self.count < 3 then return end
        out("readable", tostring(self.count), tostring(self:notify_readable()), tostring(self:notify_writable()))
        self:notify_readable(false)
        self:notify_writable(true)
      end
      function H:notify_writable()
        out("writable", tostring(self:notify_readable()), tostring(self:notify_writable()))
        self:notify_writable(false)
        em.add_timer(0.01, function() self:close_connection() end)
      end
      function H:receive_data() out("received") end
      function H:unbind(err, why) out("unbind", tostring(err), why) end
      local w = assert(em.watch(3, H))
      out("watching", tostring(w:watch_only()), tostring(w:notify_readable()), tostring(w:notify_writable()))
      w:notify_readable(true)
      out("sent", select(3, w:send_data("x")), select(3, w:close_write()), select(3, w:pause()))
      out("again", select(3, em.watch(3, H)), select(3, em.attach(3, H)))
      em.add_shutdown_hook(function()
        local kind = io.popen("ls -l /proc/$PPID/fd/3"):read("a")
        out("open", tostring(kind:find("socket") ~= nil))
      end)]]
    d:wait_log "{{watching true false false}}"
    d:wait_log "{{sent EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP}}"
    d:wait_log "{{again EEXIST EEXIST}}"
    assert.equal(0, d:count_log "{{readable")
    c:send("x")
    d:wait_log "{{readable 3 true false}}"
    d:wait_log "{{writable false true}}"
    d:wait_log "{{unbind nil closed}}"
    d:wait_log "{{open true}}"
    assert.equal(0, d:wait())
    assert.equal(0, d:count_log "{{received")
  end)

  it("lets instances have callbacks of their own, and needs none", function()
    local d, c = start [[
      local w = em.watch(3)
      em.Connection.notify_readable(w, true)
      em.add_timer(0.05, function()
        out("off", tostring(w:notify_readable())) -- nobody would have taken it
        function w:notify_readable() out("own") self:detach() em.stop() end
        em.Connection.notify_readable(w, true)
      end)]]
    c:send("x")
    d:wait_log "{{off false}}"
    d:wait_log "{{own}}"
    assert.equal(0, d:wait())
  end)

  it("gives the number back by detach and leaves the descriptor alone", function()
    local result = t.script(flags .. [[
      local em = require "em"
      local pipe = io.popen("echo one; echo two")
      local H = em.Connection:extend()
      function H:notify_readable()
        print(pipe:read "l")
        print(math.type(self:detach()))
        print(pipe:read "l", pipe:close())
      end
      function H:unbind(err, why) print("unbind", err, why) end
      em.watch(pipe, H):notify_readable(true)
      em.add_timer(0.01, collectgarbage)
    ]])
    assert.equal("one\ninteger\ntwo\ttrue\texit\t0\nunbind\tnil\tdetached\n", result.out)
    assert.equal("", result.err)
  end)

  it("finds files always ready", function()
    local result = t.script [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:notify_readable() self.r = (self.r or 0) + 1 self:check() end
      function H:notify_writable() self.w = (self.w or 0) + 1 self:check() end
      function H:check() if self.r and self.w and self.r > 3 and self.w > 3 then self:close_connection() print "both" end end
      local w = em.watch(io.open(arg[0]), H)
      w:notify_readable(true)
      w:notify_writable(true)
    ]]
    assert.equal("both\n", result.out)
  end)

  it("tells of a hang-up what was asked for", function()
    local d, c = start [[
      local H = em.Connection:extend()
      function H:notify_readable() out("readable") self:close_connection() end
      em.watch(3, H):notify_readable(true)]]
    c:reset()
    d:wait_log "{{readable}}"
    assert.equal(0, d:wait())
  end)

  it("may be turned off, or closed, from another one's callback", function()
    local a, here_a = pair()
    local b, here_b = pair()
    here_a:send("x")
    here_b:send("x")
    local d = t.start {
      script = [[
        local em = require "em"
        local H = em.Connection:extend()
        local watches = {}
        function H:notify_readable()
          em.log.info("{{called}}")
          for _, w in ipairs(watches) do w:notify_readable(false) end
          for _, w in ipairs(watches) do if w ~= self then w:close_connection() end end
          em.add_timer(0.02, function() self:close_connection() end)
        end
        watches = { em.watch(3, H), em.watch(4, H) }
        for _, w in ipairs(watches) do w:notify_readable(true) end]],
      fds = { a.fd, b.fd }, wait = false, unchecked = true,
    }
    assert.equal(0, d:wait())
    assert.equal(1, d:count_log "{{called}}")
  end)

  it("calls the class of a restricted handler, and asks no more where there is no callback", function()
    local s = serve [[
      local W = {}
      function W:notify_readable() say("readable") self:close_connection() end
      local H = {}
      function H:receive_data(data)
        x.watch = em.watch(self:detach(), data == "none" and {} or W)
        x.watch:notify_readable(true)
        say("watches")
      end
      return H]]
    local a, b = s:connect(), s:connect()
    a:send("x")
    s:waits_for("watches")
    a:send("y")
    s:expects { "watches", "readable" }
    b:send("none")
    s:expects { "watches", "readable", "watches" }
    b:send("y")
    t.until_true(function() return s:eval "return x.watch:notify_readable()" == false end)
    s:eval "x.watch:close_connection()"
  end)
end)

describe("em.attach_server", function()
  t.auto()

  it("serves on a descriptor that listens already", function()
    local server = t.listen()
    local d = t.start {
      script = [[
        local em = require "em"
        local Echo = em.Connection:extend()
        function Echo:initialize(prefix) self.prefix = prefix end
        function Echo:receive_data(data) self:send_data(self.prefix, data) if data == "stop" then self.server:stop() end end
        local server
        server = assert(em.attach_server(3, Echo, "> "))
        server:on("accept", function(conn) conn.server = server end)
        local host, port = server:address()
        em.log.info("{{%s %d}}", host, port)
        em.log.info("{{%s}}", select(3, em.attach_server(3, Echo)))]],
      fds = { server.sock:getfd() }, wait = false, unchecked = true,
    }
    server:close()
    d:wait_log("{{127.0.0.1 " .. server.port .. "}}")
    d:wait_log "{{EEXIST}}"
    t.connect(server.port):send("one"):expect("> one"):close()
    t.connect(server.port):send("stop"):expect("> stop"):close()
    assert.equal(0, d:wait())
    assert.is_false((pcall(t.connect, server.port)))
  end)

  it("serves on a Unix socket, whose file stays", function()
    local server = t.listen("a.sock")
    local d = t.start {
      script = [[
        local em = require "em"
        local H = em.Connection:extend()
        function H:receive_data(data) self:send_data(data) em.stop { drain = 1 } end
        em.log.info("{{%s}}", assert(em.attach_server(3, H)):address())]],
      fds = { server.sock:getfd() }, wait = false, unchecked = true,
    }
    d:wait_log("{{.*/a%.sock}}")
    t.connect(server.path):send("x"):expect("x"):close()
    assert.equal(0, d:wait())
    assert.is_truthy(t.run({ "test", "-S", server.path }).status == 0)
  end)

  it("refuses what does not listen", function()
    local d = start [[
      out(tostring(select(3, em.attach_server(3))), tostring(select(3, em.attach_server(io.open("/dev/null")))))
      em.stop()]]
    d:wait_log "{{EINVAL ENOTSOCK}}"
    d:wait()
  end)

  it("is taken over by the next generation", function()
    local server = t.listen()
    local text = [[
      local em = require "em"
      local H = em.Connection:extend()
      function H:receive_data(data) self:send_data("%s") end
      em.next_tick(function() em.log.info("{{%s %%s}}", assert(em.attach_server(3, H))) end)
      return {}]]
    t.write("h.lua", text:format("one", "one"))
    local d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "h" }'):format(t.free_port()), fds = { server.sock:getfd() },
    }
    server:close()
    d:wait_log "{{one server"
    t.connect(server.port):send("x"):expect("one")
    t.write("h.lua", text:format("two", "two"))
    d:signal "HUP"
    d:wait_log "{{two server"
    t.connect(server.port):send("x"):expect("two")
    d:stop()
  end)
end)
