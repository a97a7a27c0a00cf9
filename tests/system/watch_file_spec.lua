-- em.watch_file: what happens to files and folders.
local serve = require "tests.support.serve"
local t = require "tests.support.harness"

-- x.watch(name, tag) watches a file of the test's folder and says what it is told; many modifications in a row are said once.
local handler = [[
local W = em.Connection:extend()
function W:initialize(tag) self.tag = tag end
function W:post_init() say(self.tag, "watching", self.path == x.path(self.name or self.tag) or self.path) end
function W:say(...)
  local line = table.concat({ ... }, " ")
  if line == self.last and line:find("^modified") then return end
  self.last = line
  say(self.tag, line)
end
function W:file_modified(name) self:say("modified", name) end
function W:file_moved() self:say("moved") end
function W:file_deleted() self:say("deleted") end
function W:unbind(err, why) say(self.tag, "unbind", err, why) end
x.W = W
function x.watch(name, tag, quiet)
  local class = W:extend { name = name }
  if quiet then function class:post_init() end end
  return em.watch_file(x.path(name), class, tag or name)
end
function x.append(name, text) local f = assert(io.open(x.path(name), "a")) f:write(text) f:close() end
local H = {}
return H
]]

describe("em.watch_file", function()
  t.auto()

  it("tells of changes, moves and the deletion of a file, which ends the watch", function()
    local s = serve(handler)
    t.write("f", "one")
    assert.equal(true, s:eval [[x.w = x.watch "f" return x.w.path == x.path "f"]])
    s:expects { "f watching true" }
    s:eval [[x.append("f", "two")]]
    s:waits_for "f modified"
    s:eval [[os.rename(x.path "f", x.path "g")]]
    s:waits_for "f moved"
    assert.equal(t.path "f", s:eval "return x.w.path")
    s:eval [[x.append("g", "three")]]
    s:expects { "f watching true", "f modified", "f moved", "f modified" }
    s:eval [[os.remove(x.path "g")]]
    s:expects { "f watching true", "f modified", "f moved", "f modified", "f deleted", "f unbind nil deleted" }
    assert.same({ nil, "closed", "ENOTCONN" }, { s:eval "return x.w:stop_watching()" })
    s.d:stop()
  end)

  it("tells of a deletion though somebody still has the file open, and of a file that took its place", function()
    local s = serve(handler)
    t.write("open", "x")
    t.write("old", "x")
    t.write("new", "y")
    local open = assert(io.open(t.path "open"))
    s:eval [[x.watch("open", nil, true) x.watch("old", nil, true)]]
    os.remove(t.path "open")
    s:expects { "open deleted", "open unbind nil deleted" }
    os.rename(t.path "new", t.path "old")
    s:expects { "open deleted", "open unbind nil deleted", "old deleted", "old unbind nil deleted" }
    open:close()
    s.d:stop()
  end)

  it("keeps still about rights and reading", function()
    local s = serve(handler)
    t.write("f", "x")
    s:eval [[x.watch("f", nil, true)]]
    t.run { "chmod", "600", t.path "f" }
    t.run { "cat", t.path "f" }
    s:eval [[x.append("f", "end")]]
    s:waits_for "f modified"
    assert.same({ "f modified" }, s:said())
    s.d:stop()
  end)

  -- In EventMachine the second watch on a file breaks the first (EM#512).
  it("keeps two watches on one file apart", function()
    local s = serve(handler)
    t.write("f", "x")
    s:eval [[x.one = x.watch("f", "one", true) x.two = x.watch("f", "two", true) x.append("f", "1")]]
    s:waits_for "one modified"
    s:waits_for "two modified"
    assert.is_true(s:eval "return x.one:stop_watching()")
    s:waits_for "one unbind nil closed"
    s:eval [[x.two.last = nil x.append("f", "2")]]
    t.until_true(function() return #s:said() == 4 end)
    assert.equal("two modified", s:said()[4])
    s:eval [[x.three = x.watch("f", "three", true) x.two:stop_watching() x.append("f", "3")]]
    s:waits_for "three modified"
    os.remove(t.path "f")
    s:waits_for "three unbind nil deleted"
    assert.equal(8, #s:said())
    s.d:stop()
  end)

  it("names the entries of a folder", function()
    local s = serve(handler)
    t.run { "mkdir", t.path "folder" }
    s:eval [[x.watch("folder", nil, true)]]
    t.write("folder/made", "x")
    s:expects { "folder modified made" }
    t.run { "mkdir", t.path "folder/below" }
    s:expects { "folder modified made", "folder modified below" }
    os.rename(t.path "folder/made", t.path "folder/other")
    s:waits_for "folder modified other"
    os.remove(t.path "folder/other")
    os.remove(t.path "folder/below")
    os.remove(t.path "folder")
    s:waits_for "folder deleted"
    s:waits_for "folder unbind nil deleted"
    s.d:stop()
  end)

  it("reports lost events as modified", function()
    local s = serve(handler)
    local file = assert(io.open("/proc/sys/fs/inotify/max_queued_events"))
    local most = file:read "n"
    file:close()
    t.run { "mkdir", t.path "folder" }
    t.write("other", "x")
    s:eval([[
      x.watch("folder", nil, true) x.watch("other", nil, true)
      local a, b = io.open(x.path "folder/a", "w"), io.open(x.path "folder/b", "w")
      a:setvbuf "no" b:setvbuf "no"
      for i = 1, %d do a:write("x") b:write("x") end
      os.remove(x.path "other")]], most // 2 + 10)
    s:waits_for "folder modified"
    s:waits_for "other modified"
    s:waits_for "other deleted"
    s.d:stop()
  end)

  it("may be stopped, and started anew, from its own callbacks", function()
    local s = serve(handler)
    t.write("f", "x")
    s:eval [[
      x.count = 0
      local function again()
        local class = x.W:extend()
        function class:post_init() end
        function class:file_modified()
          x.count = x.count + 1
          for _, w in ipairs(x.all) do w:stop_watching() end
          x.all = { again(), again() }
        end
        return em.watch_file(x.path "f", class, "again")
      end
      x.all = { again(), again(), again() }
      x.append("f", "1")]]
    s:until_true "return x.count == 1"
    s:eval [[x.append("f", "2")]]
    s:until_true "return x.count == 2"
    s:eval [[for _, w in ipairs(x.all) do w:stop_watching() end]]
    t.until_true(function() return #s:said() == 7 end)
    s.d:stop()
  end)

  it("is a connection without bytes: counted, refusing to send, and told of the end", function()
    local s = serve(handler)
    t.write("f", "x")
    local before = s:eval "return em.connection_count()"
    s:eval [[x.w = x.watch("f", nil, true)]]
    assert.equal(before + 1, s:eval "return em.connection_count()")
    for _, call in ipairs { "send_data('x')", "send_file_data('/etc/passwd')", "close_write()", "pause()", "resume()", "start_tls()",
      "notify_readable(true)", "proxy_incoming_to(x.w)" } do
      local result, message, code = s:eval("return x.w:%s", call)
      assert.same({ nil, "EOPNOTSUPP" }, { result, code }, call)
      assert.is_string(message)
    end
    assert.is_true(s:eval "return x.w:watch_only()")
    assert.same({ nil, "there is no descriptor", "ENOTCONN" }, { s:eval "return x.w:detach()" })
    s:eval "x.w:close_connection()"
    s:expects { "f unbind nil closed" }
    assert.equal(before, s:eval "return em.connection_count()")
    s:eval [[x.watch("f", nil, true)]]
    s.d:stop()
    assert.equal("f unbind nil stopped", s:said()[2])
  end)

  it("says why a path cannot be watched", function()
    local s = serve(handler)
    local result, message, code = s:eval [[return em.watch_file(x.path "nothing", x.W)]]
    assert.same({ nil, "watch " .. t.path "nothing" .. ": No such file or directory", "ENOENT" }, { result, message, code })
    local ok, why = s:eval "return pcall(function() em.watch_file({}, x.W) end)"
    assert.is_false(ok)
    assert.matches("bad argument #1", why)
    s.d:stop()
  end)

  it("ends one connection's worth by an error in a callback", function()
    local s = serve(handler)
    t.write("f", "x")
    s:eval [[
      local bad = x.W:extend()
      function bad:post_init() end
      function bad:file_modified() error "oh" end
      em.watch_file(x.path "f", bad, "bad")
      x.watch("f", "good", true)
      x.append("f", "1")]]
    s:waits_for "good modified"
    t.until_true(function() return s.d:log():find("{{bad unbind EHANDLER handler error: .*oh}}") end)
    s.d:stop()
  end)

  it("ends with its generation; the next one watches anew", function()
    t.write("f", "x")
    local text = [[
      local em = require "em"
      local W = em.FileWatch:extend()
      function W:file_modified() em.log.info("{{%s modified}}", VERSION) end
      function W:unbind(err, why) em.log.info("{{%s unbind %s %s}}", VERSION, err, why) end
      em.next_tick(function() assert(em.watch_file(PATH, W)) em.log.info("{{%s there}}", VERSION) end)
      return {}]]
    local function write(version)
      t.write("h.lua", (text:gsub("VERSION", ("%q"):format(version)):gsub("PATH", ("%q"):format(t.path "f"))))
    end
    write "one"
    local d = t.start(('listen "tcp://127.0.0.1:%d" { handler = "h" }'):format(t.free_port()))
    d:wait_log "{{one there}}"
    write "two"
    d:signal "HUP"
    d:wait_log "{{one unbind nil reloaded}}"
    d:wait_log "{{two there}}"
    t.write("f", "y")
    d:wait_log "{{two modified}}"
    d:stop()
    assert.equal(0, d:count_log "{{one modified}}")
  end)

  it("keeps a script running until it ends", function()
    local path = t.write("f", "x")
    local result = t.script([[
      local em = require "em"
      local W = em.FileWatch:extend()
      function W:file_deleted() print("deleted", self.path == arg[1]) end
      function W:unbind(err, why) print("unbind", err, why) end
      assert(em.watch_file(arg[1], W))
      em.add_timer(0.05, function() os.remove(arg[1]) end)
    ]], { path })
    assert.equal("deleted\ttrue\nunbind\tnil\tdeleted\n", result.out)
    assert.equal(0, result.status)
  end)
end)
