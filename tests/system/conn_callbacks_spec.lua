-- The callbacks of a connection: which, in what order, with what; and every kind of handler they may come from.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- A class that says what it is called with. Chunks are counted together where their borders do not matter.
local teller = [[
local Teller = em.Connection:extend()
function Teller:initialize(...) say(self.name or "-", "initialize", ...) end
function Teller:post_init() say(self.name or "-", "post_init", self:get_peername() and "known" or "unknown") end
function Teller:connection_completed() say(self.name or "-", "connection_completed", self:get_peername() and "known" or "unknown") end
function Teller:receive_data(data) say(self.name or "-", "receive_data", data) end
function Teller:unbind(...) say(self.name or "-", "unbind", ...) end
]]

describe("callbacks", function()
  t.auto()

  it("of an accepted connection come in order, with the arguments of the config", function()
    local s = serve(teller .. "return Teller", 'args = { "a", 2, false, { 3 } }')
    local c = s:connect()
    s:waits_for("- post_init known")
    c:send("hello")
    s:waits_for("- receive_data hello")
    c:close()
    s:waits_for("- unbind nil eof")
    s.d:stop()
    local said = s:said()
    assert.matches("^%- initialize a 2 false table: ", table.remove(said, 1))
    assert.same({ "- post_init known", "- receive_data hello", "- unbind nil eof" }, said)
  end)

  it("of an outgoing connection come in order; connect returns after post_init and the function", function()
    local s = serve(teller .. [[
      local Client = Teller:extend { name = "client" }
      local Server = Teller:extend { name = "server" }
      em.next_tick(function()
        local server = em.start_server("127.0.0.1", 0, Server, "s")
        local _, port = server:address()
        x.client = em.connect("127.0.0.1", port, Client, 1, nil, "three", nil)
        say("connect returned", x.client.name)
        x.client:send_data("hi")
      end)
      return Teller]])
    s:waits_for("server receive_data hi")
    s:eval "x.client:close_connection()"
    s:waits_for("server unbind nil eof")
    local said = s:said()
    local first = table.move(said, 1, 3, 1, {})
    assert.same({ "client initialize 1 nil three nil", "client post_init unknown", "connect returned client" }, first)
    table.sort(said)
    assert.same({
      "client connection_completed known", "client initialize 1 nil three nil", "client post_init unknown", "client unbind nil closed",
      "connect returned client", "server initialize s", "server post_init known", "server receive_data hi", "server unbind nil eof",
    }, said)
    s.d:stop()
  end)

  it("take every byte through unchanged, in order", function()
    local s = serve "local H = {} function H:receive_data(d) self:send_data(d) end return H"
    local all = {}
    for i = 0, 255 do all[i + 1] = string.char(i) end
    all = table.concat(all)
    local text = all:rep(4000) .. all:reverse():rep(1000)
    local c = s:connect()
    local back = {}
    for first = 1, #text, 64000 do
      local piece = text:sub(first, first + 63999)
      c:send(piece)
      back[#back + 1] = c:receive(#piece)
    end
    assert.is_true(table.concat(back) == text)
    s.d:stop()
  end)

  it("send_data takes several strings and numbers, checks them all before it queues one", function()
    local s = serve [[
      local H = {}
      function H:post_init()
        self:send_data("a", 1, "", -2.5, "b")
        say(pcall(self.send_data, self, "no", {}))
        say((pcall(self.send_data, self)))
        say((pcall(self.send_data, {}, "x")))
        say(self:write("c", "d"))
        say(self:send_data(""))
        self:close_connection_after_writing()
      end
      return H]]
    assert.equal("a1-2.5bcd", s:connect():receive_all())
    s:waits_for("true")
    local said = s:said()
    assert.matches("^false bad argument #%d to .* %(string expected, got table%)", table.remove(said, 1))
    assert.same({ "false", "false", "true", "true" }, said)
    s.d:stop()
  end)

  it("have a connection with a number that never comes again", function()
    local s = serve [[
      local H = {}
      function H:post_init() self:send_data(math.type(self.signature), " ", self.signature, "\n") end
      function H:unbind() say(self.signature) end
      return H]]
    local seen = {}
    for i = 1, 20 do
      local c = s:connect()
      local line = c:receive_line()
      assert.matches("^integer %d+$", line)
      assert.is_nil(seen[line])
      seen[line] = true
      c:close()
      t.until_true(function() return #s:said() == i end)
      assert.equal(line, "integer " .. s:said()[i])
    end
    s.d:stop()
  end)

  it("come with as much as was there, as soon as it is there", function()
    local s = serve "local H = {} function H:receive_data(d) self:send_data(#d, '\\n') end return H"
    local c = s:connect()
    for _, size in ipairs { 1, 100, 4097, 20000 } do
      c:send(("x"):rep(size))
      local sum = 0
      while sum < size do sum = sum + tonumber(c:receive_line()) end
      assert.equal(size, sum)
    end
    s.d:stop()
  end)

  it("of both ends in one process", function()
    local s = serve [[
      local Server, Client = {}, {}
      function Server:receive_data(d) self:send_data(d:upper()) end
      function Client:connection_completed() self:send_data("ping") end
      function Client:receive_data(d) say("client got", d) self:close_connection() end
      function Client:unbind(err, why) say("client", err, why) end
      em.next_tick(function()
        local _, port = em.start_server("127.0.0.1", 0, Server):address()
        for _ = 1, 3 do em.connect("127.0.0.1", port, Client) end
      end)
      return {}]]
    t.until_true(function() return #s:said() == 6 end)
    local said = s:said()
    table.sort(said)
    assert.equal(("client got PING\n"):rep(3) .. ("client nil closed\n"):rep(3), table.concat(said, "\n") .. "\n")
    s.d:stop()
  end)
end)

describe("a handler", function()
  t.auto()

  it("is a plain table", function()
    local s = serve [[
      local H = { greeting = "hi" }
      function H:post_init() self:send_data(self.greeting) self.own = true self:close_connection_after_writing() end
      function H:unbind() say(self.own, H.own, rawget(self, "greeting")) end
      return H]]
    local c = s:connect()
    assert.equal("hi", c:receive_all())
    c:close()
    s:expects { "true nil nil" }
    s.d:stop()
  end)

  it("is a chain of classes, looked up while it runs", function()
    local s = serve [[
      local Base = em.Connection:extend { colour = "red" }
      function Base:post_init() say("base", self.colour, self:shape()) end
      function Base:shape() return "none" end
      local Middle = Base:extend()
      function Middle:shape() return "middle of " .. Base.shape(self) end
      local Top = Middle:extend { colour = "blue" }
      function Top:post_init() Middle.post_init(self) x.Top = Top self:send_data("x") end
      function Top:receive_data(d) say("first", d) end
      return Top]]
    local c = s:connect()
    c:expect("x")
    s:expects { "base blue middle of none" }
    c:send("1")
    s:waits_for("first 1")
    s:eval "function x.Top:receive_data(d) say('second', d) end"
    c:send("2")
    s:waits_for("second 2")
    s.d:stop()
  end)

  it("may have a metatable of its own", function()
    local s = serve [[
      local methods = { post_init = function(self) self:send_data(self.anything) self:close_connection_after_writing() end }
      local H = setmetatable({}, { __index = function(_, name) return methods[name] or (name == "anything" and "goes" or nil) end })
      return H]]
    assert.equal("goes", s:connect():receive_all())
    s.d:stop()
  end)

  it("may be changed in one instance", function()
    local s = serve [[
      local H = {}
      local function body(self, d) say("body", d) self.receive_data = nil end
      function H:receive_data(d) say("head", d) self.receive_data = body self:send_data("x") end
      return H]]
    local c, other = s:connect(), s:connect()
    c:send("1"):expect("x")
    c:send("2")
    s:waits_for("body 2")
    other:send("3"):expect("x")
    c:send("4"):expect("x")
    s:expects { "head 1", "body 2", "head 3", "head 4" }
    s.d:stop()
  end)

  it("may be a function, called after post_init", function()
    local s = serve [[
      em.next_tick(function()
        function em.Connection:post_init() say("post_init") end
        x.server = em.start_server("127.0.0.1", 0, function(conn, ...)
          say("function", select("#", ...), (conn:get_peername()))
          conn.receive_data = function(self, d) self:send_data(d:rep(2)) end
        end)
        local _, port = x.server:address()
        em.Connection.post_init = nil
        x.client = em.connect("127.0.0.1", port, function(conn)
          say("client function", (conn:get_peername()))
          conn.receive_data = function(_, d) say("back", d) end
          conn:send_data("ab")
        end)
      end)
      return {}]]
    s:waits_for("back abab")
    s:expects { "client function nil", "function 0 127.0.0.1", "back abab" }
    s.d:stop()
  end)

  it("in a file may be a function too", function()
    local s = serve "return function(conn) conn:send_data('from a function') conn:close_connection_after_writing() end"
    assert.equal("from a function", s:connect():receive_all())
    s.d:stop()
  end)

  it("may be nil: a connection that only listens to events", function()
    local s = serve [[
      em.next_tick(function()
        x.server = em.start_server("127.0.0.1", 0)
        x.server:on("accept", function(conn) conn:on("data", function(d) say("data", d) conn:close_connection() end) end)
        local _, port = x.server:address()
        local c = em.connect("127.0.0.1", port, nil)
        c:on("close", function(err, why) say("close", err, why) end)
        c:send_data("x")
      end)
      return {}]]
    s:expects { "data x", "close nil eof" }
    s.d:stop()
  end)

  it("may be given by name, with arguments", function()
    local s = serve [[
      em.next_tick(function()
        local _, port = em.start_server("127.0.0.1", 0, "other", 1, "two"):address()
        x.client = em.connect("127.0.0.1", port)
      end)
      return {}]]
    s.d:stop()
    t.write("other.lua", [[
      local H = {} function H:initialize(...) require("shared").say("other", ...) end return H]])
    s = serve [[
      em.next_tick(function()
        local _, port = em.start_server("127.0.0.1", 0, "other", 1, "two"):address()
        x.client = em.connect("127.0.0.1", port)
      end)
      return {}]]
    s:expects { "other 1 two" }
    s.d:stop()
  end)

  it("must be one of these", function()
    local s = serve [[
      em.next_tick(function()
        for _, wrong in ipairs { 1, true, "no/such", "../x" } do
          say((select(2, pcall(em.start_server, "127.0.0.1", 0, wrong)):gsub("\n.*", "")))
        end
        local conn = em.connect("127.0.0.1", x.port)
        say((pcall(em.connect, "127.0.0.1", x.port, conn)))
        conn:close_connection()
      end)
      return {}]]
    t.until_true(function() return #s:said() == 5 end)
    local said = s:said()
    assert.matches("handler", said[1])
    assert.matches("handler", said[2])
    assert.matches("no such file", said[3])
    assert.matches("not a handler's name", said[4])
    assert.equal("false", said[5])
    s.d:stop()
  end)

  it("that has no callbacks at all takes and drops what comes", function()
    local s = serve "return {}"
    local c = s:connect()
    c:send(("x"):rep(500000))
    c:shutdown_write()
    c:expect_eof()
    s.d:stop()
  end)

  it("is warned about names that are nearly callbacks", function()
    local s = serve "local H = {} function H:recieve_data() end return H"
    s.d:wait_log("'recieve_data' is not a callback.*receive_data")
    s.d:stop()
  end)
end)

describe("an error in a callback", function()
  t.auto()

  local cases = {
    initialize = { "unbind EHANDLER handler error: " },
    post_init = { "initialize", "unbind EHANDLER handler error: " },
    receive_data = { "initialize", "post_init", "unbind EHANDLER handler error: " },
    unbind = { "initialize", "post_init", "receive_data" },
  }
  for name, lines in pairs(cases) do
    it("in " .. name .. " ends that connection alone, with EHANDLER", function()
      local s = serve([[
        local H = {}
        for _, name in ipairs { "initialize", "post_init", "receive_data", "unbind" } do
          H[name] = function(self, ...)
            if name == x.failing and not x.spare then error("oh no: " .. name) end
            say(name, ...)
          end
        end
        x.spare = true
        return H]])
      local good = s:connect()
      good:send("1")
      s:waits_for("receive_data 1")
      s:eval("x.spare = nil x.failing = %q", name)
      local before = #s:said()
      local bad = s:connect()
      if name == "receive_data" or name == "unbind" then
        bad:send("2")
        if name == "unbind" then
          s:waits_for("receive_data 2")
          bad:shutdown_write()
        end
      end
      bad:receive_end()
      s:until_true("return em.connection_count() == 2 + 2")
      local said = table.move(s:said(), before + 1, #s:said(), 1, {})
      assert.equal(#lines, #said)
      for i, line in ipairs(lines) do assert.equal(line, said[i]:sub(1, #line)) end
      if name ~= "unbind" then assert.matches("h%.lua:%d+: oh no: " .. name .. "$", said[#said]) end
      assert.equal(1, s.d:count_log(" error handler error: [^\n]*h%.lua:%d+: oh no: " .. name .. "[^\n]*\n"))
      s:eval("x.spare = true")
      good:send("3")
      s:waits_for("receive_data 3")
      s.d:stop()
    end)
  end

  it("goes to em.error_handler with traceback and connection, once", function()
    local s = serve [[
      em.error_handler(function(message, conn)
        say("handler", message:match("^[^\n]*h%.lua:%d+: (%w+)"), message:find("stack traceback:", 1, true) ~= nil, conn and conn.name)
      end)
      local H = {}
      function H:post_init() self.name = "me" end
      function H:receive_data() error("boom") end
      function H:unbind(err) say(err) end
      return H]]
    s:connect():send("x"):receive_end()
    s:expects { "handler boom true me", "EHANDLER" }
    s.d:stop()
  end)

  it("that is no string is told all the same", function()
    local s = serve [[
      local H = {}
      function H:post_init() error(setmetatable({}, { __tostring = function() return "my object" end })) end
      function H:unbind(err, why) say(err, why) end
      return H]]
    s:connect():expect_eof()
    s:expects { "EHANDLER handler error: my object" }
    s.d:stop()
  end)

  it("does not send what was queued", function()
    local s = serve [[
      local H = {}
      function H:receive_data() self:send_data(("x"):rep(100)) error("stop") end
      return H]]
    local bytes = s:connect():send("go"):receive_end()
    assert.equal("", bytes)
    s.d:stop()
  end)
end)
