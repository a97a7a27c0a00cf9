-- em.open_keyboard: standard input as a connection, whatever it is.
local t = require "tests.support.harness"

local keyboard = [[
local em = require "em"
local out = assert(io.open(arg[1], "w"))
local function nonblocking()
  local flags = io.open("/proc/self/fdinfo/0"):read("a"):match("flags:%s*(%d+)")
  return tonumber(flags, 8) & 2048 ~= 0
end
local K = em.Connection:extend()
function K:receive_data(data)
  self.text = (self.text or "") .. data
  out:write(("%q %s\n"):format(data, nonblocking()))
  if data:find "quit" then em.stop() end
end
function K:unbind(err, why) out:write(("unbind %s %s\n"):format(err, why)) out:close() end
assert(em.open_keyboard(K))
assert(select(3, em.open_keyboard(K)) == "EEXIST")
em.run()
]]

describe("em.open_keyboard", function()
  t.auto()

  it("reads a terminal line by line and leaves its flags alone", function()
    if t.run({ "script", "-qec", "true", "/dev/null" }).status ~= 0 then return pending("this system gives no pseudo-terminal") end
    local path = t.write("keyboard.lua", keyboard)
    local command = ("%s run %s %s; stty -a >%s; cat /proc/self/fdinfo/0 >%s"):format(t.binary, path, t.path "out", t.path "stty",
      t.path "fdinfo")
    local result = t.run { "script", "-qec", command, "/dev/null", input = "hello\nquit\n" }
    assert.equal(0, result.status)
    local said = t.read "out"
    -- Two lines, which a terminal may also give in one go to who is late.
    local apart, together = '"hello\\\n" false\n"quit\\\n" false\nunbind nil stopped\n', '"hello\\\nquit\\\n" false\nunbind nil stopped\n'
    assert.is_true(said == apart or said == together, said)
    assert.matches(" icanon", t.read "stty")
    assert.equal(0, tonumber(t.read("fdinfo"):match "flags:%s*(%d+)", 8) & 2048)
  end)

  it("reads a pipe, which others may have, without a change to it", function()
    local path = t.write("keyboard.lua", keyboard)
    local command = "(echo hello; echo quit) | { %s run %s %s; cat /proc/self/fdinfo/0; }"
    local result = t.run { "sh", "-c", command:format(t.binary, path, t.path "out") }
    assert.matches('quit\\\n" false\nunbind nil stopped\n$', t.read "out")
    assert.equal(0, tonumber(result.out:match "flags:%s*(%d+)", 8) & 2048)
  end)

  it("reads a file and /dev/null to their ends", function()
    local path = t.write("keyboard.lua", (keyboard:gsub("em%.run%(%)", "")))
    t.reactord { "run", path, t.path "out", input = ("text\n"):rep(3) }
    assert.equal('"text\\\ntext\\\ntext\\\n" false\nunbind nil eof\n', t.read "out")
    t.reactord { "run", path, t.path "out" }
    assert.equal("unbind nil eof\n", t.read "out")
  end)
end)
