-- em.Pool: what EventMachine's tests of it pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Pool", function()
  local core, em, pool, deferrable, performed
  before_each(function()
    core = fake.install()
    em = require "em"
    pool = em.Pool()
    deferrable = em.DefaultDeferrable()
    performed = {}
  end)
  after_each(fake.remove)

  -- Work that notes its resource and goes on as long as the deferrable of the test.
  local function work(resource)
    table.insert(performed, resource)
    return deferrable
  end

  local function failed(...)
    local job = em.DefaultDeferrable()
    job:fail(...)
    return job
  end

  it("has work wait for resources, first come, first served", function()
    local order = {}
    for i = 1, 3 do
      pool:perform(function(resource)
        table.insert(order, i .. resource)
        return em.DefaultDeferrable()
      end)
    end
    assert.equal(3, pool:num_waiting())
    pool:add "a"
    pool:add "b"
    assert.same({ "1a", "2b" }, order)
    assert.equal(1, pool:num_waiting())
  end)

  it("uses a resource again when its work has succeeded", function()
    pool:add "res"
    pool:perform(work)
    pool:perform(work)
    assert.same({ "res" }, performed)
    deferrable:succeed()
    assert.same({ "res", "res" }, performed)
  end)

  it("uses a resource again when its work has failed, unless on_error is set", function()
    pool:add "res"
    pool:perform(work)
    deferrable:fail()
    pool:perform(work)
    assert.same({ "res", "res" }, performed)
  end)

  it("gives a resource whose work has failed to on_error", function()
    local got = {}
    pool:on_error(function(resource) table.insert(got, resource) end)
    pool:add "res"
    pool:perform(work)
    pool:perform(work)
    deferrable:fail()
    assert.same({ "res" }, got)
    assert.same({ "res" }, performed)
    assert.same({}, pool:contents())
    assert.equal(1, pool:num_waiting())
  end)

  it("lets on_error add the resource again, or another", function()
    pool:on_error(function(resource) pool:add(resource .. "'") end)
    pool:add "res"
    local got = {}
    for _ = 1, 3 do
      pool:perform(function(resource)
        table.insert(got, resource)
        return failed()
      end)
    end
    assert.same({ "res", "res'", "res''" }, got)
    assert.same({ "res'''" }, pool:contents())
  end)

  it("does not use what has been removed, not even while it is in use", function()
    pool:add "res"
    deferrable:succeed()
    for _ = 1, 2 do
      pool:perform(function(resource)
        pool:remove(resource)
        return work(resource)
      end)
    end
    assert.same({ "res" }, performed)
    assert.same({}, pool:contents())
    pool:add "other"
    assert.same({ "res", "other" }, performed)
  end)

  it("says what has been removed until it has let go of it", function()
    pool:add "res"
    assert.is_false(pool:removed "res")
    pool:remove "res"
    pool:remove "res"
    assert.is_true(pool:removed "res")
    pool:add "res"
    pool:perform(work)
    assert.is_false(pool:removed "res")
    assert.same({ "res" }, performed)
    pool:add "twice"
    pool:add "twice"
    pool:remove "twice"
    deferrable:succeed()
    pool:perform(work)
    assert.same({ "res", "res" }, performed)
    assert.is_false(pool:removed "twice")
    pool:remove "never"
    assert.is_false(pool:removed "never")
  end)

  it("does not keep what was removed after an error", function()
    pool:on_error(function(resource) pool:remove(resource) end)
    pool:add "res"
    pool:perform(function(resource)
      pool:remove(resource)
      return failed()
    end)
    assert.is_false(pool:removed "res")
    assert.same({}, pool:contents())
  end)

  it("tells its contents in a list of one's own", function()
    pool:add "res"
    assert.same({ "res" }, pool:contents())
    table.remove(pool:contents())
    assert.same({ "res" }, pool:contents())
    pool:perform(function() return failed() end)
    assert.same({ "res" }, pool:contents())
    pool:on_error(function() end)
    pool:perform(function() return failed "foo" end)
    assert.same({}, pool:contents())
  end)

  it("counts the work that waits", function()
    pool:add "res"
    assert.equal(0, pool:num_waiting())
    pool:perform(work)
    assert.equal(0, pool:num_waiting())
    for _ = 1, 10 do pool:perform(work) end
    assert.equal(10, pool:num_waiting())
  end)

  it("takes an error in the work for a failure, and it goes where a callback's does", function()
    local got
    pool:on_error(function(resource) got = resource end)
    pool:add "res"
    pool:perform(function() error("boom", 0) end)
    assert.equal("res", got)
    assert.same({}, pool:contents())
    assert.same({ "boom" }, { core.errors[1].message, core.errors[2] })
  end)

  it("takes work that returns no deferrable for a failure", function()
    pool:add "res"
    pool:perform(function() return {} end)
    assert.equal("perform's function must return a deferrable", core.errors[1].message)
    pool:perform(work)
    assert.same({ "res" }, performed)
  end)

  it("takes completions and other deferrables, and does much work in a row", function()
    pool:add "res"
    for i = 1, 10000 do
      pool:perform(function()
        local job = i % 2 == 0 and em.Completion() or em.DefaultDeferrable()
        table.insert(performed, i)
        if i % 3 == 0 then job:fail() else job:succeed() end
        return job
      end)
    end
    assert.equal(10000, #performed)
    assert.same({}, core.errors)
  end)

  it("holds any kind of resource", function()
    local resource = {}
    pool:add(resource)
    pool:add(false)
    pool:perform(work)
    pool:perform(work)
    assert.equal(resource, performed[1])
    assert.is_false(performed[2])
    pool:remove(false)
    assert.equal(1, #pool:contents())
  end)

  it("names a wrong argument", function()
    for text, fn in pairs {
      ["bad argument #1 to 'add' (resource expected, got nil)"] = function() pool:add() end,
      ["bad argument #1 to 'perform' (function expected, got nil)"] = function() pool:perform() end,
      ["bad argument #1 to 'on_error' (function expected, got number)"] = function() pool:on_error(1) end,
    } do
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-pool_spec.lua:%d+: ", "")))
    end
  end)
end)
