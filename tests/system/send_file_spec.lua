-- send_file_data: a small file's bytes, queued at once.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"
local tls = require "tests.support.tls"

local function bytes(length)
  return ("0123456789abcdef\n\0\255"):rep(length // 19 + 1):sub(1, length)
end

local handler = [[
local H = {}
function H:post_init() x.conn = self end
function H:unbind(...) say("unbind", ...) end
return H
]]

describe("send_file_data", function()
  t.auto()

  it("sends all bytes of a file, in its place among what is sent", function()
    local s = serve(handler)
    for _, size in ipairs { 0, 1, 5000, 32768 } do
      t.write("file", bytes(size))
      local c = s:connect()
      s:until_true "return x.conn ~= nil"
      local a, result, b = s:eval [[return x.conn:send_data("<"), x.conn:send_file_data(x.path "file"), x.conn:send_data(">")]]
      assert.same({ true, true, true }, { a, result, b })
      c:expect("<" .. bytes(size) .. ">")
      s:eval "x.conn = nil"
      c:close()
    end
    s.d:stop()
  end)

  it("answers as send_data does above the high-water mark", function()
    local s = serve(handler, "low_water = 10, high_water = 100")
    t.write("file", bytes(1000))
    local c = s:connect()
    s:until_true "return x.conn ~= nil"
    assert.is_false(s:eval [[return x.conn:send_file_data(x.path "file")]])
    c:expect(bytes(1000))
    s.d:stop()
  end)

  it("queues the file as it is now", function()
    local s = serve(handler)
    t.write("file", "before")
    local c = s:connect()
    s:until_true "return x.conn ~= nil"
    s:eval [[x.conn:send_file_data(x.path "file") os.remove(x.path "file")]]
    c:expect("before")
    s.d:stop()
  end)

  it("says why a file cannot be sent, and sends nothing of it", function()
    local s = serve(handler)
    t.write("large", bytes(32769))
    t.run { "mkfifo", t.path "fifo" }
    t.run { "mkdir", t.path "folder" }
    local c = s:connect()
    s:until_true "return x.conn ~= nil"
    local function refused(name)
      local result, message, code = s:eval([[return x.conn:send_file_data(x.path %q)]], name)
      assert.is_nil(result)
      assert.matches(name, message)
      return code
    end
    assert.equal("EFBIG", refused "large")
    assert.equal("ENOENT", refused "nothing")
    assert.equal("ENOTDIR", refused "large/file")
    assert.equal("EISDIR", refused "folder")
    assert.equal("EINVAL", refused "fifo")
    s:eval [[x.conn:send_data("after")]]
    c:expect("after")
    s.d:stop()
  end)

  it("raises for what is no path, and is refused on a connection that has ended", function()
    local s = serve(handler)
    t.write("file", "x")
    local c = s:connect()
    s:until_true "return x.conn ~= nil"
    assert.matches("bad argument #1 to 'send_file_data'", select(2, s:eval [[return pcall(function() x.conn:send_file_data({}) end)]]))
    s:eval [[x.conn:close_write()]]
    assert.same({ nil, "closed for writing", "EPIPE" }, { s:eval [[return x.conn:send_file_data(x.path "file")]] })
    c:close()
    s:expects { "unbind nil eof" }
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval [[return x.conn:send_file_data(x.path "file")]] })
    s.d:stop()
  end)

  it("goes encrypted over TLS", function()
    local port = t.free_port()
    t.write("file", bytes(30000))
    t.write("h.lua", ([[
      local H = {}
      function H:post_init() self:send_file_data(%q) self:close_connection_after_writing() end
      return H]]):format(t.path "file"))
    local d = t.start(('listen "tls://127.0.0.1:%d" { handler = "h", tls = { self_signed = true } }'):format(port))
    local c = assert(tls.connect(port))
    assert.equal(bytes(30000), c:receive_all())
    d:stop()
  end)
end)
