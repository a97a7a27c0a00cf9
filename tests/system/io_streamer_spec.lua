-- em.IOStreamer and em.FileStreamer: deferrables that send a Lua file handle or a file.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"
local pattern = require "tests.support.pattern"

local handler = [[
local H = {}
function H:post_init() x.conn = self end
function H:drained() x.drained = (x.drained or 0) + 1 end
function H:unbind(err, why) say("unbind", err, why) end
function x.told(name, job)
  job:callback(function(...) say("sent", name, ...) end)
  job:errback(function(message, code) say("failed", name, message, code) end)
  return job
end
return H
]]

local function connect(s, options)
  s:eval "x.conn = nil"
  local c = s:connect(options)
  s:until_true "return x.conn ~= nil"
  return c
end

describe("em.IOStreamer", function()
  t.auto()

  it("sends what a file handle still has, and leaves it open", function()
    local s = serve(handler)
    t.write("file", pattern(40000))
    local c = connect(s)
    s:eval [[
      x.file = io.open(x.path "file", "rb")
      x.file:read(7)
      x.told("file", em.IOStreamer(x.conn, x.file))]]
    c:expect(pattern(40000):sub(8))
    s:expects { "sent file" }
    assert.equal("file", s:eval "return io.type(x.file)")
    s:eval "x.file:close()"
    s.d:stop()
  end)

  it("waits for a slow reader, and the handler has its drained all the same", function()
    local s = serve(handler)
    local text = pattern(20000000)
    t.write("file", text)
    local c = connect(s, { buffer = 8192 })
    s:eval [[x.told("file", em.IOStreamer(x.conn, io.open(x.path "file", "rb")))]]
    local most, parts, length = 0, {}, 0
    while length < #text do
      table.insert(parts, c:receive(500000))
      length = length + 500000
      most = math.max(most, s:eval "return x.conn:get_outbound_data_size()")
    end
    assert.is_true(table.concat(parts) == text)
    assert.is_true(most <= 1024 * 1024 + 16384, "queued: " .. most)
    s:expects { "sent file" }
    assert.is_true(s:eval "return x.drained" > 5)
    s.d:stop()
  end)

  it("frames HTTP chunks", function()
    local s = serve(handler)
    t.write("file", pattern(20000))
    t.write("empty", "")
    local c = connect(s)
    s:eval [[
      em.IOStreamer(x.conn, io.open(x.path "file", "rb"), { http_chunks = true })
      em.IOStreamer(x.conn, io.open(x.path "empty", "rb"), { http_chunks = true })]]
    c:expect("4000\r\n" .. pattern(16384) .. "\r\ne20\r\n" .. pattern(20000):sub(16385) .. "\r\n0\r\n\r\n0\r\n\r\n")
    s.d:stop()
  end)

  it("takes turns with other streams of the connection, files too", function()
    local s = serve(handler)
    local one, two = pattern(6000000), pattern(3000000)
    t.write("one", one)
    t.write("two", two)
    local c = connect(s, { buffer = 8192 })
    s:eval [[
      x.told("io one", em.IOStreamer(x.conn, io.open(x.path "one", "rb")))
      x.told("file two", x.conn:stream_file_data(x.path "two"))
      x.told("io two", em.IOStreamer(x.conn, io.open(x.path "two", "rb")))
      x.told("file one", em.FileStreamer(x.conn, x.path "one"))]]
    for _, text in ipairs { one, two, two, one } do assert.is_true(c:receive(#text) == text) end
    local said = {}
    t.until_true(function()
      said = s:said()
      return #said == 4
    end)
    table.sort(said)
    assert.same({ "sent file one", "sent file two", "sent io one", "sent io two" }, said)
    s.d:stop()
  end)

  it("fails when the connection ends, with all that waits behind it", function()
    local s = serve(handler)
    t.write("file", pattern(9000000))
    local c = connect(s, { buffer = 8192 })
    s:eval [[
      x.told("one", em.IOStreamer(x.conn, io.open(x.path "file", "rb")))
      x.told("two", em.FileStreamer(x.conn, x.path "file"))
      x.told("three", em.IOStreamer(x.conn, io.open(x.path "file", "rb")))]]
    c:receive(100000)
    s:eval "x.conn:close_connection()"
    s:expects { "unbind nil closed", "failed one closed ENOTCONN", "failed two closed ENOTCONN", "failed three closed ENOTCONN" }
    s.d:stop()
  end)

  it("fails when reading does", function()
    local s = serve(handler)
    connect(s)
    s:eval [[
      x.told("folder", em.IOStreamer(x.conn, io.open(x.path ".")))
      x.told("raises", em.IOStreamer(x.conn, { read = function() error("no more", 0) end }))]]
    s:expects { "failed folder Is a directory EIO", "failed raises no more EIO" }
    local ok, why = s:eval "return pcall(em.IOStreamer, x.conn, 'path')"
    assert.is_false(ok)
    assert.matches("bad argument #2 to 'IOStreamer' %(file expected, got string%)", why)
    s.d:stop()
  end)

  it("needs no connection of the loop's", function()
    t.write("file", "text of the file")
    local result = t.script([[
      local em = require "em"
      local sink = { send_data = function(self, ...) for _, s in ipairs { ... } do self.text = (self.text or "") .. s end return true end }
      em.IOStreamer(sink, io.open(arg[1]), { http_chunks = true }):callback(function() print(sink.text) end)
      local slow = { full = 0, send_data = function(self, data) self.full = self.full + 1 return false end }
      em.FileStreamer(slow, arg[1]):callback(function() print("slow", slow.full) end)
      em.FileStreamer(slow, arg[1] .. ".not"):errback(print)
    ]], { t.path "file" })
    assert.equal("10\r\ntext of the file\r\n0\r\n\r\n\nNo such file or directory\tENOENT\nslow\t1\n", result.out)
    assert.equal("", result.err)
  end)
end)

describe("em.FileStreamer", function()
  t.auto()

  it("is stream_file_data as a constructor, and fails on a connection that has ended", function()
    local s = serve(handler)
    t.write("file", pattern(100000))
    local c = connect(s)
    s:eval [[x.told("file", em.FileStreamer(x.conn, x.path "file"))]]
    c:expect(pattern(100000))
    s:expects { "sent file" }
    c:close()
    s:waits_for "unbind nil eof"
    s:eval [[x.told("late", em.FileStreamer(x.conn, x.path "file"))]]
    s:waits_for "failed late closed ENOTCONN"
    s.d:stop()
  end)
end)
