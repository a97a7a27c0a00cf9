-- What a script may change of its whole process: the number of descriptors, the user.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

local is_root = t.sys.getuid() == 0

describe("set_descriptor_table_size", function()
  t.auto()

  it("asks, sets, and says what the system refuses", function()
    local options = { limits = { nofile = 500 } }
    if is_root then
      options.uid, options.gid = 65534, 65534
      t.copy_daemon()
    end
    local result = t.script([[
      local em = require "em"
      print(em.set_descriptor_table_size())
      print(em.set_descriptor_table_size(300))
      print(em.set_descriptor_table_size())
      print(em.set_descriptor_table_size(500))
      print(em.set_descriptor_table_size(5000))
      print(em.set_descriptor_table_size())
      print(pcall(em.set_descriptor_table_size, 0))
      print(pcall(em.set_descriptor_table_size, "x"))
    ]], nil, options)
    local lines = {}
    for line in result.out:gmatch("[^\n]+") do table.insert(lines, line) end
    assert.same({ "500", "300", "300", "500", "nil\tOperation not permitted\tEPERM", "500" }, { table.unpack(lines, 1, 6) })
    assert.is_truthy(lines[7]:find("^false\t.*must be from 1"), lines[7])
    assert.is_truthy(lines[8]:find("^false\t"), lines[8])
  end)

  it("raises the hard limit where that is allowed", function()
    local can = t.run { "sh", "-c", "ulimit -n 600", limits = { nofile = 500 } }
    if can.status ~= 0 then pending("this user cannot raise a hard limit") return end
    local result = t.script("print(require('em').set_descriptor_table_size(600))", nil, { limits = { nofile = 500 } })
    assert.equal("600\n", result.out, result.err)
  end)

  it("is met: what needs a descriptor more says so", function()
    local result = t.script([[
      local em = require "em"
      em.set_descriptor_table_size(20)
      local codes = {}
      for i = 1, 20 do
        local child, message, code = em.popen("cat", nil, { stderr = "separate" })
        if not child then print(code, message) break end
      end
      print(em.system("true"))
      em.run(function() em.stop() end)
    ]])
    assert.is_truthy(result.out:find("^EMFILE\tpopen: cannot execute 'cat': Too many open files\n"), result.out .. result.err)
    assert.equal(0, result.status)
  end)
end)

describe("set_effective_user", function()
  t.auto()

  it("takes user, group and supplementary groups, for good", function()
    if not is_root then pending("only root can become somebody else") return end
    local result = t.script([[
      local em = require "em"
      print(em.set_effective_user("nobody"))
      for line in io.lines("/proc/self/status") do
        local name, value = line:match("^(%a+):%s*(.-)%s*$")
        if ({ Uid = 1, Gid = 1, Groups = 1, CapEff = 1, CapPrm = 1 })[name] then print(name, (value:gsub("%s+", " "))) end
      end
      print(pcall(em.set_effective_user, "root"))
      print(em.set_effective_user("nobody"))
      em.system("id", "-u", function(output) print("child " .. output) end)
    ]])
    assert.equal(0, result.status, result.err)
    local out = result.out
    assert.is_truthy(out:find("^true\nUid\t65534 65534 65534 65534\nGid\t65534 65534 65534 65534\nGroups\t65534\n"), out)
    assert.is_truthy(out:find("CapPrm\t0000000000000000\nCapEff\t0000000000000000\n", 1, true), out)
    assert.is_truthy(out:find("false\t[^\n]*cannot become user 'root': only root can, and this process runs as uid 65534\n"), out)
    assert.is_truthy(out:find("\ntrue\nchild 65534\n", 1, true), out)
  end)

  it("takes a group by name or number, a user without an entry with one", function()
    if not is_root then pending("only root can become somebody else") return end
    local show = [[ for line in io.lines("/proc/self/status") do if line:find("^[UG]id:") then print((line:gsub("%s+", " "))) end end ]]
    local result = t.script('require("em").set_effective_user("nobody", "daemon")' .. show)
    assert.equal("Uid: 65534 65534 65534 65534\nGid: 1 1 1 1\n", result.out, result.err)
    result = t.script('require("em").set_effective_user("4242424", "4242425")' .. show)
    assert.equal("Uid: 4242424 4242424 4242424 4242424\nGid: 4242425 4242425 4242425 4242425\n", result.out, result.err)
  end)

  it("raises where it cannot be done, and changes nothing", function()
    local result = t.script([[
      local em = require "em"
      print(pcall(em.set_effective_user, "no-such-user"))
      print(pcall(em.set_effective_user, "root", "no-such-group"))
      print(pcall(em.set_effective_user, {}))
      print(pcall(em.set_effective_user))
    ]])
    assert.is_truthy(result.out:find("there is no user 'no-such-user'", 1, true), result.out)
    assert.is_truthy(result.out:find("there is no group 'no-such-group'", 1, true), result.out)
    assert.equal(4, select(2, result.out:gsub("false\t", "")))
  end)

  it("may not be called while a handler's file loads; later it changes the daemon", function()
    if not is_root then pending("only root can become somebody else") return end
    t.write("early.lua", [[require("em").set_effective_user("nobody") return {}]])
    local result = t.reactord { "-t", "-c", t.write("early.conf",
      ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "early" }\n'):format(t.dir(), t.free_port())) }
    assert.is_truthy(result.err:find("nothing can be opened while handlers load", 1, true), result.err)
    local s = serve "return {}"
    assert.is_true(s:eval [[ return em.set_effective_user("nobody") ]])
    assert.is_truthy(t.read("/proc/" .. s.d.pid .. "/status"):find("\nUid:\t65534\t65534\t65534\t65534\n", 1, true))
  end)
end)
