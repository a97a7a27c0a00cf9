-- Hand-over of connections that hang together with something else: what ties one to the code that it has, servers and connect blocks,
-- what listeners and drains count, subscriptions of channels, the shipped handlers.
local socket = require "socket"
local t = require "tests.support.harness"

-- A handler that says its word with what it hears. more: lines behind it, which may change it.
local function says(word, more)
  return ([[
local em = require "em"
local H = em.Connection:extend()
local WORD = "%s"
function H:post_init() self:send_data("hello\n") end
function H:receive_data(data) self:send_data(WORD, " ", data) end
function H:unbind(err, why) em.log.info("%%s ends: %%s %%s", WORD, tostring(err), why) end
function H:handover() return {} end
function H:takeover() end
%s
return H
]]):format(word, more or "")
end

local function reload(d)
  local mark = d:mark()
  d:signal("HUP")
  d:wait_log("reloaded: generation %d+ serves", nil, mark)
  return d:log():sub(mark)
end

local function reload_with(d, text)
  t.write("h.lua", text)
  return reload(d)
end

local function start(text, options, config)
  local port = t.free_port()
  t.write("h.lua", text)
  local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "h" %s }\n%s'):format(port, options and ", " .. options or "", config or ""))
  return d, port
end

local function configure(text)
  t.write("reactord.conf", ("%s\nhandlers = { %q }\n"):format(text, t.dir()))
end

local function counter(d, name)
  return tonumber(d:log():match("stopped: [^\n]*%f[%w_]" .. name .. "=(%d+)"))
end

describe("what ties a connection to its code", function()
  t.auto()

  it("is a listener of its events", function()
    local d, port = start(says("one", [[
      function H:receive_data(data)
        if data == "on" then self:on("data", function() em.log.info("heard") end) end
        if data == "off" then self:off("data") end
        self:send_data(WORD, " ", data)
      end]]))
    local a, b = t.connect(port):expect("hello\n"), t.connect(port):expect("hello\n")
    a:send("on"):expect("one on")
    assert.matches("stays on generation 1: it has listeners of its events", reload_with(d, says "two"))
    a:send("x"):expect("one x")
    b:send("x"):expect("two x")
    d:wait_log("heard")
    a:send("off"):expect("one off")
    reload(d)
    a:send("x"):expect("two x")
  end)

  it("is a file that is being streamed to it, until that is through", function()
    t.write("big", ("f"):rep(8 * 1024 * 1024))
    local stream = ([[function H:receive_data(data)
      if data ~= "file" then return self:send_data(WORD, " ", data) end
      self:stream_file_data(%q):callback(function() em.log.info("streamed by %%s", WORD) end)
    end]]):format(t.path "big")
    local d, port = start(says("one", stream))
    local c = t.connect(port, { buffer = 4096 }):expect("hello\n")
    c:send("file"):receive(1000)
    assert.matches("stays on generation 1: a file is being streamed", reload_with(d, says("two", stream)))
    c:receive(8 * 1024 * 1024 - 1000)
    d:wait_log("streamed by one")
    c:send("x"):expect("one x")
    reload(d)
    c:send("x"):expect("two x")
  end)

  it("is a relay, on either side", function()
    local relay = [[
      local first
      function H:receive_data(data)
        if data == "first" then first = self elseif data == "relay" then em.log.info("relays") return self:proxy_incoming_to(first) end
        self:send_data(WORD, " ", data)
      end]]
    local d, port = start(says("one", relay))
    local first = t.connect(port):expect("hello\n"):send("first"):expect("one first")
    local from, other = t.connect(port):expect("hello\n"), t.connect(port):expect("hello\n")
    from:send("relay")
    d:wait_log("relays")
    from:send("y")
    first:expect("y")
    local said = reload_with(d, says "two")
    local _, count = said:gsub("stays on generation 1: it is relayed", "")
    assert.equal(2, count)
    from:send("z")
    first:expect("z"):send("x"):expect("one x")
    other:send("x"):expect("two x")
    from:reset()
    d:wait_log("one ends: ECONNRESET")
    reload(d)
    first:send("x"):expect("two x")
  end)

  it("is that it is still connecting, is a child, a datagram socket, or has no handler's name", function()
    local silent = assert(socket.udp())
    assert(silent:setsockname("127.0.0.1", 0))
    local d, port = start(says("one", [[
      em.run(function()
        em.connect("name.test", 9, "h")
        em.popen({ "sleep", "1000" }, "h")
        em.open_datagram_socket("127.0.0.1", 0, "h")
        local s = em.start_server("127.0.0.1", 0, H)
        em.log.info("inline on %d", select(2, s:address()))
      end)]]), nil, ('nameservers = { "127.0.0.1:%d" }'):format(select(2, silent:getsockname())))
    local inline = t.connect(tonumber(d:wait_log("inline on (%d+)"))):expect("hello\n")
    local said = reload_with(d, says "two")
    assert.matches("stays on generation 1: its handler was not given by name", said)
    assert.matches("stays on generation 1: it is a child process's", said)
    assert.matches("stays on generation 1: it is a datagram socket", said)
    assert.matches("stays on generation 1: it is still connecting", said)
    silent:close()
    inline:send("x"):expect("one x")
    t.connect(port):expect("hello\n"):send("x"):expect("two x")
  end)

  it("is nothing to speak of where the old handler has no handover", function()
    local d, port = start(says("one", "H.handover = nil"))
    local c = t.connect(port):expect("hello\n")
    local said = reload_with(d, says "two")
    assert.is_nil(said:find("stays on", 1, true))
    c:send("x"):expect("one x")
  end)

  it("is that takeover has begun what cannot be taken back before it failed", function()
    t.write("small", "file")
    local d, port = start(says "one")
    local a = t.connect(port):expect("hello\n")
    reload_with(d, says("two", ("function H:takeover() self:stream_file_data(%q) error('late') end"):format(t.path "small")))
    a:expect_eof()
    d:wait_log("two ends: EHANDLER handler error: takeover failed: [^\n]*late")
    d:stop()
    assert.is_nil(d:log():find("one ends", 1, true))
  end)
end)

describe("the handler of a connection", function()
  t.auto()

  it("is found by its name also when no block uses it any more, and when a script has named it", function()
    local script_port = t.free_port()
    local d, port = start(says("one", ([[
      em.run(function() em.start_server("127.0.0.1", %d, "h") em.log.info("opened") end)]]):format(script_port)))
    d:wait_log("opened")
    local a, b = t.connect(port):expect("hello\n"), t.connect(script_port):expect("hello\n")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "echo" }'):format(port))
    assert.matches("generation 2 has taken over 2 connection", reload_with(d, says "two"))
    a:send("x"):expect("two x")
    b:send("x"):expect("two x")
    t.connect(port):send("x"):expect("x")
  end)

  it("may be gone, or be broken, and the connection stays", function()
    local d, port = start(says "one")
    local a, b = t.connect(port):expect("hello\n"), t.connect(port):expect("hello\n")
    configure(('listen "tcp://127.0.0.1:%d" { handler = "echo" }'):format(port))
    os.remove(t.path "h.lua")
    local said = reload(d)
    local _, count = said:gsub("stays on generation 1: handler 'h': no such file", "")
    assert.equal(2, count)
    assert.matches("stays on generation 1: handler 'h': [^\n]*h.lua:1: ", reload_with(d, "x ="))
    a:send("x"):expect("one x")
    reload_with(d, says "two")
    a:send("x"):expect("two x")
    b:send("x"):expect("two x")
  end)
end)

describe("a connect block's connection", function()
  t.auto()

  it("moves, and is still the block's: the next one comes after it, changes end it", function()
    local s = t.listen()
    t.write("h.lua", says "one")
    local text = 'connect "tcp://127.0.0.1:%d" { handler = "h", reconnect = 0.03, args = { %d } }'
    local d = t.start(text:format(s.port, 1))
    local c = s:accept():expect("hello\n")
    reload_with(d, says "two")
    c:send("x"):expect("two x")
    reload_with(d, says "three")
    c:send("x"):expect("three x"):close()
    d:wait_log("three ends: nil eof")
    c = s:accept():expect("hello\n"):send("x"):expect("three x")
    configure(text:format(s.port, 2))
    reload_with(d, says "four")
    c:expect_eof()
    d:wait_log("three ends: nil reloaded")
    c = s:accept():expect("hello\n"):send("x"):expect("four x")
    reload_with(d, says("five", "function H:takeover() self:close_connection() end"))
    c:expect_eof()
    d:wait_log("five ends: nil closed")
    s:accept():expect("hello\n"):send("x"):expect("five x")
    d:stop()
    assert.is_nil(d:log():find("one ends", 1, true))
    assert.is_nil(d:log():find("two ends", 1, true))
  end)

  it("that a script has opened moves too, and can reconnect from there", function()
    local s = t.listen()
    local reconnects = ("function H:unbind() em.log.info('%%s unbound', WORD) self:reconnect('127.0.0.1', %d) end"):format(s.port)
    local d = start(says("one", reconnects .. (" em.run(function() em.connect('127.0.0.1', %d, 'h') end)"):format(s.port)))
    local c = s:accept():expect("hello\n")
    reload_with(d, says("two", reconnects))
    c:send("x"):expect("two x"):close()
    d:wait_log("two unbound")
    s:accept():send("x"):expect("two x")
  end)
end)

describe("an outgoing TLS connection", function()
  t.auto()

  it("moves, and is one also when it reconnects from the new code", function()
    local port = t.free_port()
    local function client(word, more)
      return says(word, ([[
        function H:post_init() end
        function H:ssl_handshake_completed() self:send_data("from ", WORD) end
        function H:takeover() self:add_timer(0.01, function() self:close_connection_after_writing() end) end
        function H:unbind() self:reconnect("127.0.0.1", %d) end
        ]]):format(port) .. (more or ""))
    end
    t.write("server.lua", [[
      local em = require "em"
      return { receive_data = function(self, data) em.log.info("heard %s by %s", data, self:get_cipher_protocol()) end }]])
    t.write("h.lua", client("one", ([[
      em.run(function() em.connect({ url = "tls://127.0.0.1:%d", tls = { verify_peer = false } }, "h") end)]]):format(port)))
    local d = t.start(([[
      listen "tls://127.0.0.1:%d" { handler = "server", tls = { self_signed = true } }
      listen "unix://x.sock" { handler = "h" }
      drain_timeout = 0.1]]):format(port))
    d:wait_log("heard from one by TLSv1.3")
    reload_with(d, client "two")
    d:wait_log("heard from two by TLSv1.3")
    d:stop()
    assert.equal(0, counter(d, "tls_failures"))
  end)
end)

describe("what is counted of a connection that has moved", function()
  t.auto()

  it("are the limits of its listener, which are freed by its end", function()
    local d, port = start(says "one", "max_connections_per_address = 2")
    local a, b = t.connect(port):expect("hello\n"), t.connect(port):expect("hello\n")
    reload_with(d, says "two")
    t.connect(port):expect_eof()
    a:close()
    d:wait_log("two ends")
    a = t.connect(port):expect("hello\n")
    t.connect(port):expect_eof()
    b:close()
    a:close()
    d:wait_log("two ends.*two ends.*two ends")
    t.connect(port):expect("hello\n")
    configure("") -- its listener goes, and is freed with the last of its connections
    a = t.connect(port):expect("hello\n")
    reload_with(d, says "three")
    a:send("x"):expect("three x"):close()
    d:wait_log("three ends")
  end)

  it("are its listener's name and no more, which the handle of before does not keep", function()
    local d, port = start(says("one", [[
      local left
      function H:handover() left = self return {} end
      function H:receive_data(data)
        if data == "tie" then self:on("data", function() end) end
        if data == "raise" then left:on("boom", function() error("on purpose") end) left:emit("boom") end
        self:send_data(data)
      end]]), nil, 'listen "unix://x.sock" { handler = "h" }')
    local a, b = t.connect(port):expect("hello\n"), t.connect(t.path("x.sock")):expect("hello\n")
    b:send("tie"):expect("tie")
    configure('listen "unix://x.sock" { handler = "h" }')
    reload_with(d, says "two")
    a:send("x"):expect("two x"):close()
    d:wait_log("two ends")
    b:send("raise"):expect("raise")
    local line = d:wait_log("([^\n]*handler error: [^\n]*on purpose[^\n]*)")
    assert.is_nil(d:log():match("handler error: [^\n]*on purpose[^\n]*listener="), line)
  end)

  it("is that a drain waits for it", function()
    local d, port = start(says "one", nil, "drain_timeout = 100")
    local a = t.connect(port):expect("hello\n")
    reload_with(d, says "two")
    d:signal("TERM")
    d:wait_log("draining: 1 connection%(s%) may go on")
    a:send("x"):expect("two x"):close()
    assert.equal(0, d:wait())
    d:check()
  end)
end)

describe("subscriptions of a connection", function()
  t.auto()

  it("go along with what was pushed before, which comes once, and return where takeover fails", function()
    local channels = [[
      function H:post_init() self:subscribe("news") self:subscribe("more") self:send_data("hello\n") end
      function H:receive_message(name, data) self:send_data(WORD, " ", name, " ", data, "\n") end
      function H:receive_data(data) for i = 1, 3 do em.channel("news"):push(data .. i) end end
      function H:handover() em.channel("news"):push("last words") return {} end]]
    local d, port = start(says("one", channels))
    local c = t.connect(port):expect("hello\n")
    c:send("a"):expect("one news a1\none news a2\none news a3\n")
    reload_with(d, says("two", channels .. [[

      function H:takeover()
        self:subscribe("news") -- it is already
        self:unsubscribe("more")
        em.channel("more"):push("unheard")
        em.channel("news"):push("first words")
      end]]))
    c:expect("two news last words\ntwo news first words\n")
    c:send("b"):expect("two news b1\ntwo news b2\ntwo news b3\n")
    reload_with(d, says("three", channels .. "\nfunction H:takeover() self:subscribe('x') error('no') end"))
    c:expect("two news last words\n")
    c:send("c"):expect("two news c1\ntwo news c2\ntwo news c3\n"):expect_silence(0.02)
    reload_with(d, says("three", channels .. "\nfunction H:takeover() self:unsubscribe('news') self:subscribe('x') error('no') end"))
    c:expect("two news last words\n")
    c:send("d"):expect("two news d1\ntwo news d2\ntwo news d3\n")
    reload_with(d, says("four", channels .. "\nfunction H:takeover() em.channel('x'):push('unheard') em.channel('news'):push('x') end"))
    c:expect("four news last words\nfour news x\n")
  end)
end)

describe("several processes", function()
  t.auto()

  it("hand their connections over, each its own", function()
    local d, port = start(says "one", nil, "processes = 2")
    local clients = {}
    for i = 1, 20 do clients[i] = t.connect(port):expect("hello\n") end
    reload_with(d, says "two")
    for i = 1, 20 do clients[i]:send("x"):expect("two x") end
    t.write("h.lua", says "three" .. "end")
    d:signal("HUP")
    d:wait_log("reload refused")
    for i = 1, 20 do clients[i]:send("x"):expect("two x") end
  end)
end)

describe("shipped handlers", function()
  t.auto()

  it("take their users along: line_counter goes on counting, chat goes on talking, in the middle of a line", function()
    local lines, chat = t.free_port(), t.free_port()
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "line_counter" }\nlisten "tcp://127.0.0.1:%d" { handler = "chat" }')
      :format(lines, chat))
    local l = t.connect(lines):send("a\nb\nc"):expect("received 1 lines so far\r\nreceived 2 lines so far\r\n")
    local a = t.connect(chat)
    a:send("x") -- the beginning of a line
    local b = t.connect(chat)
    a:expect("User #2 joined\n")
    assert.matches("generation 2 has taken over 3 connection", reload(d))
    l:send("\n"):expect("received 3 lines so far\r\n")
    a:send("yz\n")
    b:expect("User #1 said: xyz\n")
    local c = t.connect(chat)
    a:expect("User #3 joined\n")
    b:expect("User #3 joined\n"):close()
    a:expect("User #2 left\n")
    c:expect("User #2 left\n")
    d:stop()
    assert.equal(0, counter(d, "handler_errors"))
  end)
end)
