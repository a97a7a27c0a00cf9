-- TLS under bad peers: each ends with its cause, within its time, and nobody else notices.

local t = require "tests.support.harness"
local tls = require "tests.support.tls"

local ends = [[
local em = require "em"
local Ends = em.Connection:extend()
function Ends:receive_data(data) self:send_data(data) end
function Ends:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
return Ends
]]

describe("TLS with bad peers", function()
  t.auto()
  local d, port, good

  -- Starts the server and a client that is well throughout.
  local function start(options)
    t.write("ends.lua", ends)
    port = t.free_port()
    local config = 'listen "tls://127.0.0.1:%d" { handler = "ends", tls = { self_signed = true, %s } }'
    d = t.start { config = config:format(port, options or "") }
    good = assert(tls.connect(port))
    good:send("well"):expect("well")
  end

  -- Sees that the good one still is, and ends it all.
  local function finish()
    good:send("still well"):expect("still well")
    good:close()
    d:stop()
  end

  it("ends garbage with the reason", function()
    start()
    local c = t.connect(port)
    c:send "GET / HTTP/1.0\r\n\r\n"
    d:wait_log "end ETLS http request"
    c = t.connect(port)
    c:send(("\0\1\2\3"):rep(1000))
    d:wait_log "end ETLS wrong version number"
    finish()
  end)

  it("is counted: handshakes that succeed, and connections that TLS ends", function()
    start "handshake_timeout = 1"
    local function fault(send, pattern)
      local mark = d:mark()
      local c = t.connect(port)
      send(c)
      d:wait_log(pattern, 10, mark)
    end
    fault(function(c) c:send "GET / HTTP/1.0\r\n\r\n" end, "end ETLS http request")
    fault(function(c) c:close() end, "end ETLS the peer closed during the handshake")
    fault(function() end, "end ETIMEDOUT handshake timeout")
    fault(function(c) -- without a goodbye
      assert(tls.wrap(c))
      assert(t.sys.shutdown(c.sock:getfd()))
    end, "end ETLS tls truncated")
    fault(function(c) assert(tls.wrap(c)):close() end, "end nil eof")
    finish()
    assert.matches(" tls_handshakes=3 tls_failures=4 ", d:log())
  end)

  it("ends a handshake that the peer leaves, wherever it leaves it", function()
    start()
    -- A real first message, cut at many places.
    local sink = t.listen()
    local s = t.run { "sh", "-c", ("timeout 1 openssl s_client -connect 127.0.0.1:%d </dev/null >/dev/null 2>&1 & true"):format(sink.port) }
    assert.equal(0, s.status)
    local hello = sink:accept()
    hello:receive(5)
    hello:fill(t.sys.now() + 1)
    local bytes = "\22\3\1" .. string.pack(">s2", hello.buffer)
    hello:close()
    for cut = 1, #bytes - 1, 37 do
      local mark = d:mark()
      local c = t.connect(port)
      c:send(bytes:sub(1, cut))
      c:close()
      d:wait_log("end ETLS the peer closed during the handshake", 10, mark)
    end
    finish()
  end)

  it("bounds the handshake in all, however busy a trickler keeps it", function()
    start "handshake_timeout = 0.5"
    local begun = t.sys.now()
    local c = t.connect(port)
    c:send "\22\3\1\2\0\1\0"
    local closed = false
    while not closed and t.sys.now() < begun + t.seconds(5) do
      local sent = c:send_some "x"
      closed = not sent
      if not closed then closed = not c:fill(t.sys.now() + 0.02) and (c.eof or c.failed) and true or false end
    end
    assert.is_true(closed)
    assert.is_true(t.sys.now() - begun >= 0.5)
    d:wait_log "end ETIMEDOUT handshake timeout"
    local silent = t.connect(port)
    silent:receive_end()
    finish()
  end)

  it("tells an end without goodbye from one with it", function()
    start()
    local mark = d:mark()
    local c = assert(tls.connect(port))
    c:send("x"):expect("x")
    assert(t.sys.shutdown(c.sock:getfd()))
    d:wait_log("end ETLS tls truncated", 10, mark)
    c:close()
    mark = d:mark()
    c = assert(tls.connect(port))
    c:send("x"):expect("x")
    c:close()
    d:wait_log("end nil eof", 10, mark)
    finish()
  end)

  it("takes no end without goodbye for orderly because it has said goodbye itself", function()
    port = t.free_port()
    t.write("half.lua", [[
      local em = require "em"
      local Half = em.Connection:extend()
      function Half:ssl_handshake_completed() self:close_write() end
      function Half:receive_data(data) em.log.info("got %s", data) end
      function Half:receive_eof() self:close_connection_after_writing() end
      function Half:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
      return Half
    ]])
    d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "half", tls = { self_signed = true } }'):format(port) }
    local c = assert(tls.connect(port))
    c:send "the beginning"
    d:wait_log "got the beginning"
    assert(t.sys.shutdown(c.sock:getfd()))
    d:wait_log "end ETLS tls truncated"
    c:close()
    d:stop()
  end)

  it("ends at once when the peer leaves a handshake that a closing connection's last words wait for", function()
    port = t.free_port()
    t.write("hasty.lua", [[
      local em = require "em"
      local Hasty = em.Connection:extend()
      function Hasty:post_init() self:send_data("bye"); self:close_connection_after_writing() end
      function Hasty:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
      return Hasty
    ]])
    local limits = "tls = { self_signed = true, handshake_timeout = 600 }, linger_timeout = 600"
    d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "hasty", %s }'):format(port, limits) }
    t.connect(port):close()
    d:wait_log "end ETLS the peer closed during the handshake"
    d:stop()
  end)

  it("ends a stream that turns to garbage", function()
    start()
    local c = t.connect(port)
    local secure = assert(tls.wrap(c))
    secure:send("x"):expect("x")
    assert(t.sys.send(secure.sock:getfd(), "\23\3\3\0\100" .. ("g"):rep(100)))
    d:wait_log "end ETLS decryption failed or bad record mac"
    finish()
  end)

  it("keeps a reader who does not read within max_outbound", function()
    t.write("flood.lua", [[
      local em = require "em"
      local Flood = em.Connection:extend()
      function Flood:ssl_handshake_completed()
        self:add_periodic_timer(0.001, function() self:send_data(("f"):rep(100000)) end)
      end
      function Flood:unbind(err, why) em.log.info("flood %s %s", tostring(err), why) end
      return Flood
    ]])
    start()
    local flood = t.free_port()
    d:stop { keep_clients = false }
    local config = 'listen "tls://127.0.0.1:%d" { handler = "flood", max_outbound = 1000000, tls = { self_signed = true } }'
    d = t.start { config = config:format(flood) }
    local c = assert(tls.connect(flood))
    d:wait_log "flood ELIMIT outbound limit"
    c:close()
    d:stop()
  end)
end)
