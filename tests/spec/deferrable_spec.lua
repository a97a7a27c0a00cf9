-- em.Deferrable and em.DefaultDeferrable: what EventMachine's tests of deferrables and futures pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Deferrable", function()
  local core, em, d, said
  before_each(function()
    core = fake.install()
    em = require "em"
    d = em.DefaultDeferrable()
    said = {}
  end)
  after_each(fake.remove)

  -- A function that says its name and what it gets.
  local function teller(name)
    return function(...)
      table.insert(said, { name, ... })
    end
  end

  it("calls who waits for success, in order and once, with what it succeeds with", function()
    assert.equal(d, d:callback(teller "a"))
    assert.equal(d, d:errback(teller "e"))
    d:callback(teller "b")
    d:succeed(1, nil, 3)
    d:fail("no")
    d:succeed(2)
    assert.same({ { "a", 1, nil, 3 }, { "b", 1, nil, 3 } }, said)
  end)

  it("calls who waits for failure", function()
    d:callback(teller "a"):errback(teller "e"):errback(teller "f")
    d:fail("no", "ENO")
    d:succeed()
    assert.same({ { "e", "no", "ENO" }, { "f", "no", "ENO" } }, said)
  end)

  it("calls late comers at once, and drops those of the other outcome", function()
    d:callback(teller "early")
    d:succeed(1)
    d:callback(teller "late")
    d:errback(teller "never")
    assert.same({ { "early", 1 }, { "late", 1 } }, said)
    d:fail(2)
    assert.equal(2, #said)
    d:errback(teller "failed now")
    assert.same({ "failed now", 2 }, said[3])
  end)

  it("lets a function change what those after it get", function()
    d:callback(function(...)
      teller "first"(...)
      d:set_deferred_status("succeeded", 101, 101)
    end)
    d:callback(function(...)
      teller "second"(...)
      d:set_deferred_status("succeeded", 102, 102, 102)
    end)
    d:callback(teller "third")
    d:set_deferred_status("succeeded", 100)
    assert.same({ { "first", 100 }, { "second", 101, 101 }, { "third", 102, 102, 102 } }, said)
  end)

  it("lets a function turn success into failure", function()
    d:callback(function() d:fail("after all") end):callback(teller "dropped")
    d:errback(teller "e")
    d:succeed()
    assert.same({ { "e", "after all" } }, said)
    d:succeed()
    assert.equal(1, #said)
  end)

  it("calls at once what a function adds, before those that were there", function()
    d:callback(function() d:callback(teller "added") end):callback(teller "second")
    d:succeed(1)
    assert.same({ { "added", 1 }, { "second", 1 } }, said)
  end)

  it("has EventMachine's other names for succeed and fail", function()
    d:callback(teller "a"):errback(teller "e")
    d:set_deferred_success(100)
    d:set_deferred_failure(200)
    d:errback(teller "late")
    assert.same({ { "a", 100 }, { "late", 200 } }, said)
  end)

  it("may become unknown again, and wait for another outcome", function()
    d:succeed(1)
    d:set_deferred_status("unknown")
    d:callback(teller "a")
    assert.same({}, said)
    d:succeed(2)
    assert.same({ { "a", 2 } }, said)
  end)

  it("takes functions back, everywhere they stand", function()
    local a, e = teller "a", teller "e"
    d:callback(a):callback(teller "b"):callback(a):errback(e):errback(teller "f")
    d:cancel_callback(a)
    d:cancel_errback(e)
    d:cancel_errback(print)
    d:succeed(1)
    assert.same({ { "b", 1 } }, said)
    local other = em.DefaultDeferrable()
    other:cancel_callback(a)
    other:callback(function() other:cancel_callback(a) end):callback(a)
    other:succeed()
    assert.equal(1, #said)
  end)

  it("fails after a time, with or without values", function()
    assert.equal(d, d:timeout(0))
    d:errback(teller "e")
    assert.same({}, said)
    core.fire(0)
    assert.same({ { "e" } }, said)
    local other = em.DefaultDeferrable()
    other:timeout(1.5, "timeout", nil, "foo")
    other:errback(teller "o")
    core.fire(1)
    assert.equal(1, #said)
    core.fire(0.5)
    assert.same({ "o", "timeout", nil, "foo" }, said[2])
  end)

  it("does not fail after a time once anything is known, or where that is taken back or set anew", function()
    for _, act in ipairs {
      function(it) it:succeed() end, function(it) it:fail() end, function(it) it:set_deferred_status("unknown") end,
      function(it) it:cancel_timeout() end,
    } do
      local it = em.DefaultDeferrable()
      it:timeout(1)
      act(it)
      it:set_deferred_status("unknown")
      it:errback(teller "e")
      core.fire(2)
    end
    assert.same({}, said)
    d:timeout(1, "first"):timeout(2, "second"):errback(teller "e")
    core.fire(1)
    assert.same({}, said)
    core.fire(1)
    assert.same({ { "e", "second" } }, said)
  end)

  it("goes on after a function that raises, whose error goes where a callback's does", function()
    d:callback(function() error("boom", 0) end):callback(teller "after")
    d:succeed(1)
    assert.same({ { "after", 1 } }, said)
    d:callback(function() error("late", 0) end)
    assert.same({ "boom", "late" }, { core.errors[1].message, core.errors[2].message })
    assert.equal(d, core.errors[1].object)
  end)

  it("holds chains of any length, without recursion and without work for the collector", function()
    local first = em.DefaultDeferrable()
    local last = first
    for _ = 1, 100000 do
      local following = em.DefaultDeferrable()
      last:callback(function(n) following:succeed(n + 1) end)
      last = following
    end
    last:callback(teller "end")
    local began = os.clock()
    collectgarbage()
    assert.is_true(os.clock() - began < 5)
    first:succeed(0)
    core.turns(100000)
    assert.same({ { "end", 100000 } }, said)
    assert.same({}, core.errors)
    assert.equal(first, first:callback(teller "again")) -- and at the end nothing is nested
    assert.equal(2, #said)
  end)

  it("keeps nothing of 100,000 that are gone", function()
    local weak = setmetatable({}, { __mode = "k" })
    for i = 1, 100000 do
      local one = em.DefaultDeferrable()
      weak[one] = true
      one:callback(function() return one end):errback(function() return one end)
      if i % 3 == 0 then one:timeout(60) end
      if i % 2 == 0 then one:succeed(one) else one:fail(one) end
    end
    local waiting = 0
    for _, timer in ipairs(core.timers) do waiting = waiting + (timer.cancelled and 0 or 1) end
    assert.equal(0, waiting)
    core.timers = {}
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(weak))
  end)

  it("is mixed into objects and classes, whose fields stay their own", function()
    local plain = em.Deferrable.include { status = "mine" }
    plain:callback(teller "plain"):succeed(1)
    assert.equal("mine", plain.status)
    local Class = em.Deferrable.include {}
    Class.__index = Class
    local a, b = setmetatable({}, Class), setmetatable({}, Class)
    Class:succeed("class")
    a:callback(teller "a")
    b:callback(teller "b")
    a:succeed(1)
    assert.same({ { "plain", 1 }, { "a", 1 } }, said)
    for key in pairs(a) do assert.not_equal("string", type(key)) end
    assert.is_true(em.Deferrable.is(a))
    assert.is_true(em.Deferrable.is(em.Completion()))
    assert.is_false(em.Deferrable.is {})
    assert.is_false(em.Deferrable.is(1))
  end)

  it("cannot be changed for others by way of one", function()
    assert.equal("em.DefaultDeferrable", getmetatable(d))
    assert.is_nil(d.__index)
  end)

  it("takes any object that can be called, and names a wrong argument", function()
    d:callback(setmetatable({}, { __call = function(_, ...) teller "callable"(...) end })):succeed(1)
    assert.same({ { "callable", 1 } }, said)
    for _, case in ipairs {
      { "callback", 1, "bad argument #1 to 'callback' (function expected, got number)" },
      { "errback", nil, "bad argument #1 to 'errback' (function expected, got nil)" },
      { "set_deferred_status", "maybe", "bad argument #1 to 'set_deferred_status' (\"succeeded\", \"failed\" or \"unknown\" expected)" },
    } do
      local ok, why = pcall(function() d[case[1]](d, case[2]) end)
      assert.is_false(ok)
      assert.equal(case[3], (why:gsub("^.-deferrable_spec.lua:%d+: ", "")))
    end
  end)

  describe("future", function()
    it("returns a value, or what a function returns", function()
      assert.equal(100, em.Deferrable.future(100))
      assert.equal(101, em.Deferrable.future(function() return 101 end, teller "never"))
      assert.equal(102, em.Deferrable.future(setmetatable({}, { __call = function() return 102 end })))
      assert.same({}, said)
    end)

    it("attaches functions to a deferrable, or to one that is returned", function()
      local good, bad = em.DefaultDeferrable(), em.DefaultDeferrable()
      good:succeed(40)
      bad:fail(41)
      assert.equal(good, em.Deferrable.future(good, teller "a"))
      assert.equal(bad, em.Deferrable.future(bad, nil, teller "e"))
      assert.equal(good, em.Deferrable.future(function() return good end, teller "b", teller "never"))
      assert.same({ { "a", 40 }, { "e", 41 }, { "b", 40 } }, said)
    end)
  end)
end)
