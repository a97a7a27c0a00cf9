-- stream_file_data: files of any size, as fast as the peer takes them, without filling the memory.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"
local tls = require "tests.support.tls"

local mib = 1024 * 1024

-- A handler whose connection is x.conn; x.stream(name, options) streams a file and says how that ended, tagged.
local handler = [[
local H = {}
function H:post_init() x.conn = self end
function H:receive_eof() end
function H:drained() say("drained") end
function H:unbind(err, why) say("unbind", err, why) end
function x.stream(name, options)
  local job = x.conn:stream_file_data(x.path(name), options)
  job:callback(function(...) say("sent", name, ...) end)
  job:errback(function(message, code) say("failed", name, message, code) end)
  return job
end
return H
]]

local block = {}
for i = 1, 4096 do block[i] = ("%015d\n"):format(i) end
block = table.concat(block) -- 64 KiB
local block_size <const> = 65536

-- A file of that many blocks, which all differ in their first bytes.
local function write_blocks(name, count)
  local file = assert(io.open(t.path(name), "wb"))
  for i = 1, count do file:write(("%015d\n"):format(i), block:sub(17)) end
  file:close()
end

-- Receives such a file; between(i) is called after each block.
local function expect_blocks(c, first, last, between)
  for i = first, last do
    local bytes = c:receive(block_size)
    assert.is_true(bytes == ("%015d\n"):format(i) .. block:sub(17), "block " .. i)
    if between then between(i) end
  end
end

local function connect(s, options)
  s:eval "x.conn = nil"
  local c = s:connect(options)
  s:until_true "return x.conn ~= nil"
  return c
end

-- The handler, also on a port with TLS, which is the second result.
local function serve_tls()
  local port = t.free_port()
  return serve(handler, { config = ('listen "tls://127.0.0.1:%d" { handler = "h", tls = { self_signed = true } }'):format(port) }), port
end

local bytes = ("0123456789abcdef"):rep(6250) -- 100,000

describe("stream_file_data", function()
  t.auto()

  it("sends 50 MB to a slow reader with flat memory, what is sent before and after around it, and then closes", function()
    local s = serve(handler)
    local count = 800
    write_blocks("large", count)
    local c = connect(s, { buffer = 65536 })
    local before = s.d:rss()
    local a, b, closed = s:eval [[
      local a = x.conn:send_data("head\n")
      x.stream "large"
      return a, x.conn:send_data("tail\n"), x.conn:close_connection_after_writing()]]
    assert.same({ true, true, true }, { a, b, closed })
    c:expect("head\n")
    local most, queued = 0, 0
    expect_blocks(c, 1, count, function(i)
      if i % 40 ~= 0 then return end
      t.sys.sleep(0.005)
      most = math.max(most, s.d:rss() - before)
      if i < count / 2 then queued = math.max(queued, s:eval "return x.conn:get_outbound_data_size()") end
    end)
    c:expect("tail\n"):expect_eof()
    assert.is_true(queued <= 256 * 1024 + 5, "queued: " .. queued)
    if not t.sanitized then assert.is_true(most < 4 * mib, "grown by " .. most) end
    c:close()
    s:expects { "sent large", "unbind nil closed" }
    s.d:stop()
  end)

  it("does so over TLS", function()
    local s, port = serve_tls()
    local count = 320
    write_blocks("large", count)
    local c = assert(tls.connect(port))
    s:until_true "return x.conn ~= nil"
    local before, most = s.d:rss(), 0
    s:eval [[x.conn:send_data("head\n") x.stream "large" x.conn:send_data("tail\n") x.conn:close_connection_after_writing()]]
    c:expect("head\n")
    expect_blocks(c, 1, count, function(i)
      if i % 20 ~= 0 then return end
      t.sys.sleep(0.005)
      most = math.max(most, s.d:rss() - before)
    end)
    assert.equal("tail\n", (c:receive_all()))
    if not t.sanitized then assert.is_true(most < 4 * mib, "grown by " .. most) end
    c:close()
    s:waits_for "sent large"
    s.d:stop()
  end)

  it("sends several in the order in which they were asked for, and what was sent between them", function()
    local s = serve(handler)
    write_blocks("one", 20)
    t.write("empty", "")
    t.write("two", "two")
    local c = connect(s, { buffer = 8192 })
    s:eval [[
      x.stream "one" x.conn:send_data("<1>") x.stream "empty" x.stream "two" x.conn:send_data("<2>") x.stream "one"
      x.conn:send_file_data(x.path "two")]]
    expect_blocks(c, 1, 20)
    c:expect("<1>two<2>")
    expect_blocks(c, 1, 20)
    c:expect("two")
    s:expects { "sent one", "sent empty", "sent two", "sent one" }
    s.d:stop()
  end)

  it("frames HTTP chunks as EventMachine does", function()
    local s = serve(handler)
    t.write("small", bytes:sub(1, 1000))
    t.write("large", bytes)
    t.write("empty", "")
    local c = connect(s)
    s:eval [[
      x.stream("small", { http_chunks = true }) x.conn:send_data("|") x.stream("empty", { http_chunks = true }) x.conn:send_data("|")
      x.stream("large", { http_chunks = true }) x.conn:send_data("|") x.stream("small", { http_chunks = false })]]
    c:expect("3e8\r\n" .. bytes:sub(1, 1000) .. "\r\n0\r\n\r\n|0\r\n\r\n|")
    for i = 0, 5 do c:expect("4000\r\n" .. bytes:sub(i * 16384 + 1, (i + 1) * 16384) .. "\r\n") end
    c:expect("6a0\r\n" .. bytes:sub(6 * 16384 + 1) .. "\r\n0\r\n\r\n|" .. bytes:sub(1, 1000))
    s.d:stop()
  end)

  it("sends large chunks to a slow reader", function()
    local s = serve(handler)
    write_blocks("large", 100)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.stream("large", { http_chunks = true }) x.conn:close_connection_after_writing()]]
    local all = c:receive_all()
    local at, parts = 1, {}
    while true do
      local length, stop = all:match("^(%x+)\r\n()", at)
      length = tonumber(length, 16)
      if length == 0 then break end
      assert.equal("\r\n", all:sub(stop + length, stop + length + 1))
      table.insert(parts, all:sub(stop, stop + length - 1))
      at = stop + length + 2
    end
    assert.equal("0\r\n\r\n", all:sub(at))
    assert.is_true(table.concat(parts) == t.read "large")
    s.d:stop()
  end)

  it("fails for what cannot be opened, and the connection goes on", function()
    local s = serve(handler)
    t.write("file", "x")
    t.run { "mkfifo", t.path "fifo" }
    t.run { "mkdir", t.path "folder" }
    local c = connect(s)
    s:eval [[x.stream "nothing" x.stream "folder" x.stream "fifo" x.stream "file/below" x.conn:send_data("alive")]]
    c:expect("alive")
    s:expects {
      "failed nothing No such file or directory ENOENT", "failed folder Is a directory EISDIR", "failed fifo Invalid argument EINVAL",
      "failed file/below Not a directory ENOTDIR",
    }
    s.d:stop()
  end)

  it("raises for wrong arguments", function()
    local s = serve(handler)
    connect(s)
    for call, message in pairs {
      ["x.conn:stream_file_data()"] = "bad argument #1 to 'stream_file_data' %(string expected, got nil%)",
      ["x.conn:stream_file_data('f', 1)"] = "table expected",
      ["x.conn:stream_file_data('f', { chunks = true })"] = "unknown option 'chunks'",
    } do
      local ok, why = s:eval("return pcall(function() return %s end)", call)
      assert.is_false(ok)
      assert.matches(message, why)
    end
    s.d:stop()
  end)

  it("fails when the connection ends, and closes the file", function()
    local s = serve(handler)
    write_blocks("large", 800)
    local idle = s.d:fds()
    local function ends(how, failure)
      local c = connect(s, { buffer = 8192 })
      s:eval [[x.stream "large" x.stream "large"]]
      expect_blocks(c, 1, 2)
      local mark = #s:said()
      how(c)
      t.until_true(function() return #s:said() == mark + 3 end)
      local said = s:said()
      assert.equal("failed large " .. failure, said[mark + 1])
      assert.equal("failed large " .. failure, said[mark + 2])
      assert.matches("^unbind ", said[mark + 3])
      c:close()
    end
    ends(function(c) c:reset() end, "Connection reset by peer ECONNRESET")
    ends(function() s:eval "x.conn:close_connection()" end, "closed ENOTCONN")
    ends(function() s:eval "x.conn:set_comm_inactivity_timeout(0.05)" end, "idle timeout ETIMEDOUT")
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval [[return x.conn:stream_file_data(x.path "large")]] })
    t.until_true(function() return s.d:fds() <= idle + 1 end) -- one is the control connection
    s.d:stop()
  end)

  it("fails on a connection that is closed for writing", function()
    local s = serve(handler)
    t.write("file", "x")
    connect(s)
    s:eval [[x.conn:close_write() x.stream "file"]]
    s:expects { "failed file closed for writing EPIPE" }
    s.d:stop()
  end)

  -- The length that was promised cannot be kept: the peer must not take what comes next for the rest of the file.
  it("ends the connection when the file is cut short, and tells why", function()
    local s = serve(handler)
    write_blocks("large", 800)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.stream "large" x.conn:send_data("tail")]]
    expect_blocks(c, 1, 2)
    t.run { "truncate", "-s", "200000", t.path "large" }
    local rest = c:receive_end()
    assert.is_nil(rest:find("tail", 1, true))
    s:expects { "failed large a file was cut short while it was streamed EIO", "unbind EIO a file was cut short while it was streamed" }
    s.d:stop()
  end)

  it("does so over TLS, without a SIGBUS", function()
    local s, port = serve_tls()
    write_blocks("large", 800)
    local c = assert(tls.connect(port))
    s:until_true "return x.conn ~= nil"
    s:eval [[x.stream "large"]]
    expect_blocks(c, 1, 2)
    t.run { "truncate", "-s", "200000", t.path "large" }
    c:receive_all()
    s:expects { "failed large a file was cut short while it was streamed EIO", "unbind EIO a file was cut short while it was streamed" }
    s.d:stop()
  end)

  it("sends no more of a file that grows than there was at the call", function()
    local s = serve(handler)
    write_blocks("large", 200)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.stream "large"]]
    expect_blocks(c, 1, 2)
    local file = assert(io.open(t.path "large", "ab"))
    file:write("more")
    file:close()
    expect_blocks(c, 3, 200)
    s:expects { "sent large" }
    s:eval [[x.conn:send_data("next")]]
    c:expect("next")
    s.d:stop()
  end)

  it("stands still while the connection is paused", function()
    local s = serve(handler)
    write_blocks("large", 400)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.conn:set_sock_opt("socket", "sndbuf", 16384) x.stream "large"]]
    expect_blocks(c, 1, 10)
    s:eval "x.conn:pause()"
    local drained = 0
    while c:fill(t.now() + t.seconds(0.1)) do
      drained = drained + #c.buffer
      assert.is_true(drained < 20 * mib)
      if drained > 2 * mib then break end
    end
    assert.is_true(drained < 2 * mib, "went on")
    s:eval "x.conn:resume()"
    local rest = t.read("large"):sub(10 * block_size + 1)
    assert.is_true(c:receive(#rest) == rest)
    s:expects { "sent large" }
    s.d:stop()
  end)

  it("counts against no limit on output, and what is sent behind it does", function()
    local s = serve(handler, "low_water = 1000, high_water = 50000, max_outbound = 100000")
    write_blocks("large", 100)
    local c = connect(s, { buffer = 8192 })
    local a, b = s:eval [[x.stream "large" return x.conn:send_data(("a"):rep(40000)), x.conn:send_data(("b"):rep(59000))]]
    assert.same({ true, false }, { a, b })
    expect_blocks(c, 1, 100)
    c:expect(("a"):rep(40000) .. ("b"):rep(59000))
    s:expects { "sent large", "drained" }
    s:eval [[x.stream "large" x.conn:send_data(("c"):rep(100001))]]
    s:waits_for "unbind ELIMIT outbound limit"
    s.d:stop()
  end)

  it("is bounded by the linger time only where nothing moves", function()
    local s = serve(handler, "linger_timeout = 0.5")
    write_blocks("large", 64)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.conn:set_sock_opt("socket", "sndbuf", 16384) x.stream "large" x.conn:close_connection_after_writing()]]
    local started = t.now()
    expect_blocks(c, 1, 64, function() t.sys.sleep(0.02) end)
    c:expect_eof()
    assert.is_true(t.now() - started > 1)
    c:close()
    s:expects { "sent large", "unbind nil closed" }
    connect(s, { buffer = 8192 })
    s:eval [[x.stream "large" x.conn:set_sock_opt("socket", "sndbuf", 16384) x.conn:close_connection_after_writing()]]
    s:waits_for "failed large linger timeout ETIMEDOUT"
    s:waits_for "unbind ETIMEDOUT linger timeout"
    s.d:stop()
  end)

  it("keeps STARTTLS waiting", function()
    local s = serve(handler)
    write_blocks("large", 100)
    local c = connect(s, { buffer = 8192 })
    local result, _, code = s:eval [[x.stream "large" return x.conn:start_tls { self_signed = true }]]
    assert.same({ nil, "EBUSY" }, { result, code })
    expect_blocks(c, 1, 100)
    s.d:stop()
  end)

  it("goes on when the peer has closed its side, and on a connection that is not connected yet", function()
    local s = serve(handler)
    write_blocks("large", 100)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.stream "large"]]
    c:shutdown_write()
    expect_blocks(c, 1, 100)
    local server = t.listen()
    s:eval([[x.conn = em.connect("127.0.0.1", %d) x.stream "large" x.conn:close_connection_after_writing()]], server.port)
    local there = server:accept()
    expect_blocks(there, 1, 100)
    there:expect_eof()
    s:expects { "sent large", "sent large" }
    s.d:stop()
  end)
end)
