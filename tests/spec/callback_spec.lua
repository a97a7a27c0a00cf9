-- em.Callback: what can be called, made from what there is.
local fake = require "tests.support.fake_core"

describe("em.Callback", function()
  local em
  before_each(function()
    fake.install()
    em = require "em"
  end)
  after_each(fake.remove)

  it("is what can be called itself", function()
    local callable = setmetatable({}, { __call = print })
    assert.equal(print, em.Callback(print))
    assert.equal(callable, em.Callback(callable))
  end)

  it("calls a method by its name, the one that is there then", function()
    local object = { sum = 1 }
    local add = em.Callback(object, "add")
    function object:add(a, b) self.sum = self.sum + a + b return self.sum, nil, "more" end
    assert.same({ 6, nil, "more" }, { add(2, 3) })
    function object.add() return "another" end
    assert.equal("another", add())
  end)

  it("calls a function with an object before its arguments", function()
    local object = {}
    assert.same({ object, 1, 2 }, { em.Callback(object, function(...) return ... end)(1, 2) })
    assert.equal(3, em.Callback(1, math.max)(3))
  end)

  it("names a wrong argument", function()
    for text, fn in pairs {
      ["bad argument #1 to 'Callback' (function expected, got nil)"] = function() em.Callback() end,
      ["bad argument #1 to 'Callback' (function expected, got table)"] = function() em.Callback {} end,
      ["bad argument #2 to 'Callback' (function or name expected, got number)"] = function() em.Callback({}, 1) end,
      ["bad argument #1 to 'Callback' (object expected, got nil)"] = function() em.Callback(nil, "name") end,
    } do
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-callback_spec.lua:%d+: ", "")))
    end
  end)
end)
