-- em.EventEmitter: listeners of any object.
local fake = require "tests.support.fake_core"

describe("em.EventEmitter", function()
  local core, EventEmitter, object, said
  before_each(function()
    core = fake.install()
    EventEmitter = require "em.event_emitter"
    object = EventEmitter.include {}
    said = {}
  end)
  after_each(fake.remove)

  -- A listener that says its name and what it gets.
  local function teller(name)
    return function(...)
      local words = table.pack(...)
      for i = 1, words.n do words[i] = tostring(words[i]) end
      table.insert(said, table.concat({ name, table.unpack(words, 1, words.n) }, " "))
    end
  end

  it("calls all listeners of an event in order, with all arguments", function()
    object:on("x", teller "a"):on("x", teller "b"):on("y", teller "c")
    assert.is_true(object:emit("x", 1, nil, "three", nil))
    assert.same({ "a 1 nil three nil", "b 1 nil three nil" }, said)
    assert.is_true(object:emit("y"))
    assert.same({ "a 1 nil three nil", "b 1 nil three nil", "c" }, said)
  end)

  it("says whether there was a listener", function()
    assert.is_false(object:emit("x"))
    object:on("x", print):off("x", print)
    assert.is_false(object:emit("x"))
    object:on("x", function() end)
    assert.is_true(object:emit("x"))
    assert.is_false(object:emit("y"))
  end)

  it("calls a listener as often as it was added", function()
    local f = teller "f"
    object:on("x", f):on("x", f)
    object:emit("x")
    assert.same({ "f", "f" }, said)
    object:off("x", f)
    object:emit("x")
    assert.same({ "f", "f", "f" }, said)
  end)

  it("once calls once, also when the event comes again meanwhile", function()
    object:once("x", function()
      table.insert(said, "once")
      object:emit("x")
    end)
    object:on("x", teller "on")
    object:emit("x")
    assert.same({ "once", "on", "on" }, said)
    object:emit("x")
    assert.same({ "once", "on", "on", "on" }, said)
    assert.equal(object, object:once("y", print))
  end)

  it("off removes one, the last added; or one added by once; or all of an event", function()
    local a, b = teller "a", teller "b"
    object:on("x", a):on("x", b):on("x", a):off("x", a)
    object:emit("x")
    assert.same({ "a", "b" }, said)
    object:once("x", b):off("x", b)
    object:emit("x")
    assert.same({ "a", "b", "a", "b" }, said)
    object:off("x")
    assert.is_false(object:emit("x"))
    assert.equal(object, object:off("x"))
    assert.equal(object, object:off("x", a))
    assert.equal(object, object:off("never", a))
  end)

  it("is not disturbed by listeners that come and go during an emit", function()
    local late = teller "late"
    local gone = teller "gone"
    object:on("x", function()
      table.insert(said, "first")
      object:on("x", late)
      object:off("x", gone)
    end)
    object:on("x", gone)
    object:emit("x")
    assert.same({ "first", "gone" }, said) -- of those who listened when it began
    said = {}
    object:emit("x")
    assert.same({ "first", "late" }, said)
    said = {}
    object:off("x")
    object:on("x", function() object:off("x") end):on("x", teller "still")
    object:emit("x")
    assert.same({ "still" }, said)
    assert.is_false(object:emit("x"))
  end)

  it("goes on after a listener that raises, whose error goes where a callback's does", function()
    object:on("x", function() error("boom", 0) end):on("x", teller "after")
    object:once("x", function() error("once", 0) end)
    assert.is_true(object:emit("x", 1))
    assert.same({ "after 1" }, said)
    assert.equal(2, #core.errors)
    assert.same({ "boom", "x", true }, { core.errors[1].message, core.errors[1].name, core.errors[1].object == object })
    assert.equal("once", core.errors[2].message)
    object:emit("x")
    assert.equal(3, #core.errors)
  end)

  it("keeps nothing in the object, and nothing of one that is gone", function()
    local plain = {}
    EventEmitter.on(plain, "x", teller "x")
    assert.is_nil(next(plain))
    EventEmitter.emit(plain, "x")
    assert.same({ "x" }, said)
    local weak = setmetatable({}, { __mode = "k" })
    local function make()
      local o = EventEmitter.include {}
      o:on("x", function() return o end)
      o:once("y", function() return o end)
      weak[o] = true
    end
    for _ = 1, 100 do make() end
    core.listened = {}
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(weak))
  end)

  it("is mixed into a class once for all of its objects, which listen apart", function()
    local Class = EventEmitter.include {}
    Class.__index = Class
    local a, b = setmetatable({}, Class), setmetatable({}, Class)
    a:on("x", teller "a")
    b:on("x", teller "b")
    a:emit("x")
    assert.same({ "a" }, said)
    assert.is_false(Class:emit("x"))
    assert.equal(Class, EventEmitter.include(Class))
  end)

  it("tells the core once for each object that it is listened to", function()
    object:on("x", print):on("y", print):once("z", print)
    assert.equal(1, #core.listened)
    assert.equal(object, core.listened[1])
  end)

  it("takes any object that can be called, and names a wrong argument", function()
    object:on("x", setmetatable({}, { __call = function(_, ...) teller("callable")(...) end }))
    object:once("x", setmetatable({}, { __call = function(_, ...) teller("once")(...) end }))
    object:emit("x", 1)
    assert.same({ "callable 1", "once 1" }, said)
    for _, case in ipairs {
      { "on", nil, print, "bad argument #1 to 'on' (event name expected, got nil)" },
      { "on", 1, print, "bad argument #1 to 'on' (event name expected, got number)" },
      { "on", "x", nil, "bad argument #2 to 'on' (function expected, got nil)" },
      { "on", "x", {}, "bad argument #2 to 'on' (function expected, got table)" },
      { "once", {}, print, "bad argument #1 to 'once' (event name expected, got table)" },
      { "once", "x", "print", "bad argument #2 to 'once' (function expected, got string)" },
    } do
      local ok, why = pcall(object[case[1]], object, case[2], case[3])
      assert.is_false(ok)
      assert.equal(case[4], (why:gsub("^[^:]*:%d+: ", "")))
    end
  end)

  it("holds 2,000 listeners", function()
    local count = 0
    for _ = 1, 2000 do object:on("x", function() count = count + 1 end) end
    object:emit("x")
    assert.equal(2000, count)
  end)
end)
