-- The shipped handlers, each driven over real connections.
local t = require "tests.support.harness"

-- Starts a daemon with one listener for the handler; options are further text of its block. Returns the daemon and the port.
local function serve(handler, options)
  local port = t.free_port()
  return t.start(('listen "tcp://127.0.0.1:%d" { handler = "%s", %s }'):format(port, handler, options or "")), port
end

-- Sends the text byte by byte, each in a packet of its own as far as that can be had.
local function trickle(c, text)
  for i = 1, #text do
    c:send(text:sub(i, i))
    if i % 7 == 0 then t.sys.sleep(0.001) end
  end
end

describe("echo", function()
  t.auto()

  it("says back what it hears, and closes with its peer", function()
    local _, port = serve "echo"
    local c = t.connect(port)
    local bytes = ("\0\1\2\r\n\255"):rep(100000)
    c:send("a"):expect("a")
    c:send(bytes:sub(1, 1000)):expect(bytes:sub(1, 1000))
    c:shutdown_write():expect_eof()
  end)
end)

describe("discard", function()
  t.auto()

  it("takes everything and says nothing", function()
    local d, port = serve "discard"
    local c = t.connect(port)
    c:send(("x"):rep(4 * 1024 * 1024))
    c:expect_silence(0.05)
    c:shutdown_write():expect_eof()
    d:stop()
    assert.matches("bytes_in=4194304%f[%D]", d:log())
    assert.matches("bytes_out=0%f[%D]", d:log())
  end)
end)

describe("line_counter", function()
  t.auto()

  local ten = ""
  for i = 1, 10 do ten = ten .. ("received %d lines so far\r\n"):format(i) end

  it("answers each line and closes after ten, in one chunk", function()
    local _, port = serve "line_counter"
    local c = t.connect(port)
    c:send(("line\n"):rep(9) .. "the last one\r\n" .. "one more\n")
    c:expect(ten):expect_eof()
  end)

  it("counts the same byte by byte", function()
    local _, port = serve "line_counter"
    local c = t.connect(port)
    trickle(c, ("ab\n\n"):rep(4) .. "c\n")
    c:expect(ten:sub(1, select(2, ten:find("received 9 [^\n]*\n"))))
    c:expect_silence(0.02)
    trickle(c, "half a line")
    c:expect_silence(0.02)
    c:send("\n"):expect("received 10 lines so far\r\n"):expect_eof()
  end)

  it("counts for each connection by itself", function()
    local _, port = serve "line_counter"
    local a, b = t.connect(port), t.connect(port)
    a:send("1\n2\n"):expect("received 1 lines so far\r\nreceived 2 lines so far\r\n")
    b:send("1\n"):expect("received 1 lines so far\r\n")
    a:send("3\n"):expect("received 3 lines so far\r\n")
  end)

  it("keeps nothing of a line without end", function()
    local d, port = serve "line_counter"
    local c = t.connect(port)
    c:send("\n"):receive_line()
    local before = d:rss()
    local piece = ("x"):rep(1024 * 1024)
    for _ = 1, 50 do c:send(piece) end
    c:send("\n"):expect("received 2 lines so far\r\n")
    if not t.sanitized then assert.is_true(d:rss() - before < 16 * 1024 * 1024) end
  end)
end)

describe("chat", function()
  t.auto()

  -- A user who has come; those who are there already hear of it.
  local function join(port, name, ...)
    local c = t.connect(port)
    for _, other in ipairs { ... } do other:expect(name .. " joined\n") end
    return c
  end

  it("tells all others who comes, what is said and who leaves", function()
    local _, port = serve "chat"
    local a = t.connect(port)
    a:send("is anybody here?\n")
    a:expect_silence(0.05)
    local b = join(port, "User #2", a)
    local c = join(port, "User #3", a, b)
    a:send("hello\n")
    b:expect("User #1 said: hello\n")
    c:expect("User #1 said: hello\n")
    c:send("one\ntwo\r\n\nthree\n")
    for _, other in ipairs { a, b } do
      other:expect("User #3 said: one\nUser #3 said: two\nUser #3 said: \nUser #3 said: three\n")
    end
    b:close()
    a:expect("User #2 left\n")
    c:expect("User #2 left\n")
    a:reset()
    c:expect("User #1 left\n")
    c:expect_silence(0.02)
  end)

  it("understands lines however they are cut", function()
    local _, port = serve "chat"
    local a = t.connect(port)
    local b = join(port, "User #2", a)
    local said, heard = "", ""
    for i = 1, 50 do
      local line = ("é%d "):rep(i % 9):format(i, i, i, i, i, i, i, i, i)
      said = said .. line .. (i % 2 == 0 and "\r\n" or "\n")
      heard = heard .. "User #1 said: " .. line .. "\n"
    end
    trickle(a, said)
    b:expect(heard)
    a:send(said)
    b:expect(heard)
  end)

  it("does not keep what is no line", function()
    local _, port = serve "chat"
    local a = t.connect(port)
    local b = join(port, "User #2", a)
    b:send(("x"):rep(4096) .. "\n")
    a:expect("User #2 said: " .. ("x"):rep(4096) .. "\n")
    b:send(("y"):rep(4097))
    b:expect("A line has at most 4096 bytes.\n"):expect_eof()
    b:close()
    a:expect("User #2 left\n")
    local c = join(port, "User #3", a)
    c:send("before\n" .. ("z"):rep(5000) .. "\nafter\n")
    c:expect("A line has at most 4096 bytes.\n"):expect_eof()
    c:close()
    a:expect("User #3 said: before\nUser #3 left\n")
  end)

  it("ends the user who does not read, and holds up nobody else", function()
    local d, port = serve("chat", 'high_water = "64 KiB", max_outbound = "256 KiB"')
    local a = t.connect(port)
    local deaf = join(port, "User #2", a)
    local b = join(port, "User #3", a, deaf)
    local line = ("x"):rep(4000)
    local heard = "User #1 said: " .. line .. "\n"
    local said = heard:sub(1, -2)
    for _ = 1, 10000 do
      a:send(line .. "\n")
      local got = b:receive_line() -- at once, whatever the deaf one does
      if got ~= said then
        assert.equal("User #2 left", got)
        b:expect(heard)
        break
      end
    end
    a:expect("User #2 left\n")
    b:send("still here\n")
    a:expect("User #3 said: still here\n")
    deaf:close()
    d:stop()
    assert.matches("limits_met=1%f[%D]", d:log())
    assert.matches("handler_errors=0%f[%D]", d:log())
  end)

  it("is one room for all listeners", function()
    local port, path = t.free_port(), t.path("chat.sock")
    t.start(('listen "tcp://127.0.0.1:%d" { handler = "chat" }\nlisten "unix://%s" { handler = "chat" }'):format(port, path))
    local a = t.connect(port)
    local b = t.connect(path)
    a:expect("User #2 joined\n")
    b:send("hello\n")
    a:expect("User #2 said: hello\n")
  end)
end)

describe("banner", function()
  t.auto()

  -- A connect block to where a server of the test listens.
  local function connect(where, options)
    return t.start(('connect "%s" { handler = "banner", %s }'):format(where, options or ""))
  end

  it("prints what the server says first, and closes", function()
    local s = t.listen()
    local d = connect("tcp://127.0.0.1:" .. s.port)
    local c = s:accept()
    c:send("220 mail.example"):expect_silence(0.02)
    c:send(" ready\r\n250 more\r\n")
    c:expect_eof()
    d:wait_log("127%.0%.0%.1:" .. s.port .. " says: 220 mail%.example ready ")
    assert.is_nil(d:log():find("250 more", 1, true))
  end)

  it("takes a banner without an end as it is", function()
    local s = t.listen()
    local d = connect("tcp://127.0.0.1:" .. s.port, "reconnect = 0.05")
    local c = s:accept()
    c:send("short"):close()
    d:wait_log("says: short ")
    c = s:accept() -- again, as the block says
    c:send(("\27[2J"):rep(1000))
    c:receive_end()
    d:wait_log("says: %?%[2J") -- nothing that would move a terminal's cursor
    s:close()
  end)

  it("says why when there is nothing", function()
    local s = t.listen("server.sock")
    local d = connect("unix://" .. s.path)
    s:accept():close()
    d:wait_log("server%.sock says nothing: eof")
    s:close()
    d = connect("tcp://127.0.0.1:" .. t.free_port())
    d:wait_log("the server says nothing: Connection refused")
  end)
end)

describe("skeleton", function()
  t.auto()

  it("greets, echoes and ends orderly", function()
    local d, port = serve "skeleton"
    local c = t.connect(port)
    c:expect("hello\n")
    c:send("some words"):expect("some words")
    c:shutdown_write():expect_eof()
    assert.is_nil(d:log():find("connection ended by", 1, true))
  end)

  it("takes its greeting from args, and knows of a reset", function()
    local d, port = serve("skeleton", 'args = { "good morning" }')
    local a, b = t.connect(port), t.connect(port)
    a:expect("good morning\n")
    b:expect("good morning\n")
    a:reset()
    local fields = d:wait_log("connection ended by ECONNRESET: [^\n]*; 1 left %[(.-)%]\n")
    assert.matches("^listener=tcp://127%.0%.0%.1:" .. port .. " peer=127%.0%.0%.1:%d+ handler=skeleton ", fields)
    assert.matches("skeleton%.lua:%d+ connection=%d+$", fields)
  end)

  it("does for a client too", function()
    local s = t.listen()
    local d = t.start(('connect "tcp://127.0.0.1:%d" { handler = "skeleton" }'):format(s.port))
    local c = s:accept()
    c:expect("hello\n")
    c:send("x"):expect("x")
    d:wait_log("connected to 127%.0%.0%.1 " .. s.port)
  end)

  it("has every callback there is", function()
    local Skeleton = { extend = function() return {} end }
    local chunk = assert(loadfile("handlers/skeleton.lua", "t", { require = function() return { Connection = Skeleton } end }))
    local found = chunk()
    local file = assert(io.open("daemon/lua_handler.c"))
    local names = file:read("a"):match("callbacks%[%] = (%b{})")
    file:close()
    for name in names:gmatch('"([%w_]+)"') do assert.is_function(found[name], name) end
  end)
end)

describe("every shipped handler", function()
  t.auto()

  it("compiles and is used by nothing it should not have", function()
    local config = ""
    for _, folder in ipairs { "handlers", "handlers/guide" } do
      for name in require("lfs").dir(t.root .. "/" .. folder) do
        local handler = name:match("^(.*)%.lua$")
        if handler and handler ~= "6_client" then -- a script
          config = ('%slisten "unix://%s" { handler = "%s" }\n'):format(config, t.path(handler .. ".sock"),
            (folder == "handlers" and "" or "guide/") .. handler)
        end
      end
    end
    local result = t.reactord { "-t", "-c", t.write("all.conf", config) }
    assert.equal("", result.err)
    assert.equal(0, result.status)
  end)
end)

describe("a handler run by its file", function()
  t.auto()

  it("finds what is beside it", function()
    t.write("beside.lua", 'return { greeting = "hello from beside\\n" }')
    local file = t.write("own.lua", [[
local beside = require "beside"
return { post_init = function(self) self:send_data(beside.greeting) end }
]])
    for _, path in ipairs { file, "own.lua" } do
      local port = t.free_port()
      local d = t.start { args = { "run", path, "-l", "tcp://127.0.0.1:" .. port }, cwd = t.dir() }
      t.connect(port):expect("hello from beside\n")
      d:stop()
    end
  end)
end)
