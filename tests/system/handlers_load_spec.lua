-- Loading handlers: what is one, where it is looked for, and what is said of those that are none.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- Checks a configuration with one handler; returns status and what was said.
local function check(handler, name)
  if handler then t.write((name or "h") .. ".lua", handler) end
  local r = t.reactord { "-t", "-c", t.write("c.conf", ("handlers = { %q }\n\nlisten %q { handler = %q }"):format(t.dir(),
    "tcp://127.0.0.1:" .. t.free_port(), name or "h")) }
  return r.status, r.err .. r.out
end

describe("a handler's file that", function()
  t.auto()

  for what, case in pairs {
    ["does not compile"] = { "local x = 1\nlocal = 2", "h%.lua:2: <name> expected near '='" },
    ["is not finished"] = { "return {", "h%.lua:1: unexpected symbol near <eof>" },
    ["raises"] = { "\nerror('boom')", "h%.lua:2: boom\nstack traceback:\n" },
    ["raises a table"] = { "error({})", "%(error object is a table value%)" },
    ["raises nothing"] = { "error()", "%(error object is a nil value%)" },
    ["returns nothing"] = { "local H = {}", "h%.lua must return a handler %(a table or a function%), it returned nothing" },
    ["returns nil"] = { "return nil", "h%.lua must return a handler %(a table or a function%), it returned nothing" },
    ["returns a number"] = { "return 42", "h%.lua must return a handler %(a table or a function%), it returned number" },
    ["returns false"] = { "return false", "it returned boolean" },
    ["returns a string"] = { "return 'h'", "it returned string" },
    ["returns a coroutine"] = { "return coroutine.create(print)", "it returned thread" },
    ["is empty"] = { "", "it returned nothing" },
    ["is bytecode"] = { string.dump(function() return {} end), "attempt to load a binary chunk %(mode is 't'%)" },
    ["needs what is not there"] = { "require 'nowhere'", "module 'nowhere' not found" },
    ["yields"] = { "coroutine.yield()", "attempt to yield across a C%-call boundary" },
    ["uses what it may not"] = { "os.exit(0)", "attempt to call a nil value %(field 'exit'%)" },
  } do
    it(what .. " is refused with file and line, at the check, the start and the reload", function()
      local status, said = check(case[1])
      assert.equal(1, status)
      assert.matches("c%.conf:3: handler 'h': ", said)
      assert.matches(case[2], said)
      local r = t.reactord { "-c", t.path("c.conf") }
      assert.equal(1, r.status)
      assert.matches("error [^\n]*c%.conf:3: handler 'h': ", r.err)
      assert.matches(case[2], (r.err:gsub("\n\t", "\n")))
      local s = serve "return { receive_data = function(self, data) self:send_data(data) end }"
      t.write("h.lua", case[1])
      s.d:signal("HUP")
      s.d:wait_log("error reload refused: [^\n]*reactord%.conf:1: handler 'h': ")
      s:connect():send("old"):expect("old")
    end)
  end

  it("is not there is told with all the places", function()
    local status, said = check(nil, "nowhere")
    assert.equal(1, status)
    assert.is_truthy(said:find("c.conf:3: handler 'nowhere': no such file (looked for " .. t.dir() .. "/nowhere.lua, " .. t.root
      .. "/handlers/nowhere.lua)", 1, true), said)
  end)

  it("cannot be read is told so", function()
    if t.sys.getuid() == 0 then
      require("lfs").mkdir(t.path("h.lua")) -- root may read everything but a folder
      local status, said = check(nil, "h")
      assert.equal(1, status)
      assert.matches("cannot read [^\n]*h%.lua", said)
    else
      t.sys.chmod(t.write("h.lua", "return {}"), "0000")
      local status, said = check(nil, "h")
      assert.equal(1, status)
      assert.matches("cannot open [^\n]*h%.lua", said)
    end
  end)

  it("has no proper name is not looked for", function()
    t.write("h.lua", "return {}")
    for _, name in ipairs { "../h", "/h", "a//h", "a/../h", ".h", "", "./h" } do
      local status, said = check(nil, name)
      assert.equal(1, status, name)
      assert.matches("c%.conf:3: ", said)
    end
    assert.equal(0, (check("return {}", "sub/folder/h")))
    assert.equal(0, (check("return {}", "with-dash_and.dot")))
  end)

  it("is one of several bad ones is told with the others", function()
    t.write("a.lua", "x = = 1")
    t.write("b.lua", "error('in b')")
    t.write("c.lua", "return {}")
    local lines = {}
    for _, name in ipairs { "a", "b", "c", "d" } do
      table.insert(lines, ("listen %q { handler = %q }"):format("tcp://127.0.0.1:" .. t.free_port(), name))
    end
    local r = t.reactord { "-t", "-c", t.write("c.conf", ("handlers = { %q }\n"):format(t.dir()) .. table.concat(lines, "\n")) }
    assert.equal(1, r.status)
    assert.matches("c%.conf:2: handler 'a': [^\n]*a%.lua:1: unexpected symbol", r.err)
    assert.matches("c%.conf:3: handler 'b': [^\n]*b%.lua:1: in b", r.err)
    assert.matches("c%.conf:5: handler 'd': no such file", r.err)
    assert.is_nil(r.err:find("c.conf:4", 1, true))
  end)
end)

describe("a callback with a name that is nearly one", function()
  t.auto()

  for wrong, right in pairs {
    recieve_data = "receive_data", recive_data = "receive_data", receive_date = "receive_data", receivedata = "receive_data",
    postinit = "post_init", post_int = "post_init", unbound = "unbind", un_bind = "unbind", initialise = "initialize",
    drain = "drained", receive_oef = "receive_eof", connection_complete = "connection_completed",
    ssl_handshake_complete = "ssl_handshake_completed", ssl_verify_peers = "ssl_verify_peer",
  } do
    it(("(%s) is warned of, with the name it may mean"):format(wrong), function()
      local s = serve(("return { %s = function() end }"):format(wrong))
      s.d:wait_log(("warn [^\n]*h%%.lua: '%s' is not a callback %%(did you mean '%s'%%?%%)"):format(wrong, right))
      s.d:stop()
      assert.equal(1, s.d:count_log("is not a callback"))
    end)
  end

  it("is not seen where there is none", function()
    local s = serve [[
      local H = em.Connection:extend()
      for _, name in ipairs { "initialize", "post_init", "connection_completed", "receive_data", "receive_eof", "drained", "unbind",
        "ssl_handshake_completed", "ssl_verify_peer", "proxy_target_unbound", "proxy_completed", "notify_readable", "notify_writable",
        "receive_message", "handover", "takeover", "receive_line", "send_line", "on_data", "run", "data", "x", "receive" } do
        H[name] = function() end
      end
      H.recieve_data = "no function"
      H[1] = function() end
      return H]]
    s.d:stop()
    assert.equal(0, s.d:count_log("is not a callback"))
    assert.equal(0, s.d:count_log("warn"))
  end)

  it("is said by the check too, which passes", function()
    local status, said = check("return { recieve_data = function() end }")
    assert.equal(0, status)
    assert.matches("'recieve_data' is not a callback %(did you mean 'receive_data'%?%)", said)
  end)
end)

describe("handlers are", function()
  t.auto()

  it("loaded once, whoever names them, and share what they hold", function()
    t.write("shared_by_two.lua", [[
      local em = require "em"
      em.log.info("LOADED " .. ...)
      local count = 0
      return { post_init = function(self) count = count + 1 self:send_data(count .. "\n") end }]])
    local a, b = t.free_port(), t.free_port()
    local d = t.start { config = ([[
      listen "tcp://127.0.0.1:%d" { handler = "shared_by_two" }
      listen "tcp://127.0.0.1:%d" { handler = "shared_by_two" }]]):format(a, b) }
    t.connect(a):expect("1\n")
    t.connect(b):expect("2\n")
    d:stop()
    assert.equal(1, d:count_log("LOADED shared_by_two"))
  end)

  it("apart from each other's globals only as far as they keep to locals", function()
    t.write("one.lua", "GLOBAL = 'from one' return {}")
    t.write("two.lua", "return { post_init = function(self) self:send_data(tostring(GLOBAL)) end }")
    local port = t.free_port()
    t.start { config = ([[
      listen "tcp://127.0.0.1:%d" { handler = "one" }
      listen "tcp://127.0.0.1:%d" { handler = "two" }]]):format(t.free_port(), port) }
    t.connect(port):expect("from one")
  end)

  it("not mixed up with modules of the same name", function()
    t.write("h2.lua", "return { post_init = function(self) self:send_data('handler') end }")
    local s = serve("x.module = require('h2') return { post_init = function(self) self:send_data(type(x.module)) end }")
    s:connect():expect("table")
  end)

  it("classes at any depth, with their bases", function()
    local s = serve [[
      local A = em.Connection:extend { a = "a" }
      function A:hello() return self.a .. self.b end
      local B = A:extend { b = "b" }
      function B:post_init() self:send_data(self:hello(), " ", tostring(self.send_data == em.Connection.send_data)) end
      function x.new() return A:extend() end
      return B:extend()]]
    s:connect():expect("ab true")
    assert.is_true(s:eval "return getmetatable(x.new()) ~= nil")
  end)

  it("found by the file's path under run, wherever that is", function()
    local port = t.free_port()
    t.write("deep/h.lua", "local m = require 'beside' return { post_init = function(self) self:send_data(m) end }")
    t.write("deep/beside.lua", "return 'beside'")
    local d = t.start { args = { "run", t.path("deep/h.lua"), "-l", "tcp://127.0.0.1:" .. port } }
    t.connect(port):expect("beside")
    d:stop()
    local r = t.reactord { "run", t.path("deep/none.lua"), "-l", "tcp://127.0.0.1:" .. port }
    assert.equal(1, r.status)
    assert.matches("none%.lua", r.err)
  end)
end)
