-- em.Completion: what EventMachine's tests of it pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Completion", function()
  local core, em, c, said
  before_each(function()
    core = fake.install()
    em = require "em"
    c = em.Completion()
    said = {}
  end)
  after_each(fake.remove)

  -- A function that says its name and what it gets.
  local function teller(name)
    return function(...)
      table.insert(said, table.concat({ name, ... }, " "))
    end
  end

  it("is unknown at first, without a value", function()
    assert.equal("unknown", c:state())
    assert.equal(0, select("#", c:value()))
    assert.is_false(c:completed())
  end)

  it("succeeds", function()
    assert.equal(c, c:callback(teller "callback"))
    assert.equal(c, c:errback(teller "errback"))
    c:succeed("a", "b")
    assert.equal("succeeded", c:state())
    assert.same({ "a", "b" }, { c:value() })
    assert.same({ "callback a b" }, said)
  end)

  it("fails", function()
    c:callback(teller "callback"):errback(teller "errback")
    c:fail("a")
    assert.equal("failed", c:state())
    assert.same({ "errback a" }, said)
  end)

  it("keeps nil among its values", function()
    c:succeed(nil, 2, nil)
    assert.equal(3, select("#", c:value()))
  end)

  it("has states of any name", function()
    assert.equal(c, c:stateback("magic", teller "magic"))
    c:change_state("magic", 1)
    assert.same({ "magic 1" }, said)
    c:stateback("magic", teller "again")
    assert.same({ "magic 1", "again 1" }, said)
    assert.is_false(c:completed())
    c:change_state("magic")
    assert.equal(2, #said)
    c:callback(teller "callback")
    c:succeed()
    assert.equal("callback", said[3])
  end)

  it("queues nothing for another state once it is complete", function()
    core.is_loading = true
    c:callback(teller "callback")
    c:succeed()
    c:errback(teller "errback")
    c:fail()
    core.is_loading = false
    core.turns(10)
    assert.same({ "callback" }, said)
  end)

  it("is complete when it has succeeded or failed", function()
    c:succeed()
    assert.is_true(c:completed())
    c:fail()
    assert.is_true(c:completed())
    c:change_state("magic")
    assert.is_false(c:completed())
  end)

  it("lets a function change what those after it get", function()
    c:callback(function(v)
      teller "first"(v)
      c:succeed("two")
    end)
    c:callback(function(v)
      teller "second"(v)
      c:succeed("three")
    end)
    c:callback(teller "third")
    c:succeed("one")
    assert.same({ "first one", "second two", "third three" }, said)
  end)

  it("lets a function turn success into failure: those after it are dropped", function()
    c:callback(function() c:fail("after all") end):callback(teller "dropped"):errback(teller "errback"):completion(teller "end")
    c:succeed()
    assert.same({ "errback after all", "end after all" }, said)
  end)

  it("calls late comers at once", function()
    c:callback(teller "one")
    c:succeed()
    c:callback(teller "two")
    assert.same({ "one", "two" }, said)
  end)

  it("drops the others when it is complete", function()
    c:callback(teller "callback"):errback(teller "errback")
    c:succeed()
    c:fail()
    c:succeed()
    assert.same({ "callback" }, said)
    c = em.Completion()
    c:callback(teller "second")
    c:succeed()
    c:errback(teller "errback")
    c:fail()
    assert.same({ "callback", "second" }, said)
  end)

  it("tells of either end", function()
    assert.equal(c, c:completion(teller "end"))
    c:succeed(1)
    assert.same({ "end 1" }, said)
    c:completion(teller "late")
    assert.same({ "end 1", "late 1" }, said)
    c:change_state("unknown")
    c:completion(teller "other")
    assert.equal(2, #said)
    c:fail(2)
    assert.same({ "end 1", "late 1", "other 2" }, said)
  end)

  it("has completion states of its own where it says so", function()
    function c.completion_states() return { "done" } end
    c:callback(teller "callback"):stateback("done", teller "done"):completion(teller "end")
    c:succeed(1)
    assert.is_false(c:completed())
    assert.same({ "callback 1" }, said)
    c:change_state("done", 2)
    assert.is_true(c:completed())
    assert.same({ "callback 1", "done 2", "end 2" }, said)
    c:callback(teller "dropped")
    c:succeed()
    assert.equal(3, #said)
  end)

  it("fails after a time", function()
    assert.equal(c, c:timeout(0.5, 1, 2, 3))
    c:errback(teller "errback"):completion(teller "end")
    core.fire(0.4)
    assert.same({}, said)
    core.fire(0.1)
    assert.same({ "errback 1 2 3", "end 1 2 3" }, said)
  end)

  it("does not fail after a time once it is complete, or where that is taken back or set anew", function()
    c:timeout(1, "timeout"):errback(teller "errback")
    c:succeed()
    c:change_state("unknown")
    c:errback(teller "errback")
    core.fire(2)
    assert.same({}, said)
    c:timeout(1)
    c:cancel_timeout()
    core.fire(2)
    c:timeout(1, "one"):timeout(2, "two")
    c:change_state("magic")
    core.fire(1)
    assert.same({}, said)
    core.fire(1)
    assert.same({ "errback two" }, said)
    c = em.Completion():timeout(1, "late")
    core.is_loading = true
    c:succeed("in time")
    core.fire(2)
    assert.same({ "succeeded", "in time" }, { c:state(), c:value() })
  end)

  it("takes functions back", function()
    local a, e = teller "a", teller "e"
    c:callback(a):callback(teller "b"):callback(a):errback(e)
    c:cancel_callback(a)
    c:cancel_errback(e)
    c:succeed()
    em.Completion():cancel_callback(a)
    assert.same({ "b" }, said)
  end)

  it("calls nobody while handlers load", function()
    core.is_loading = true
    c:callback(teller "callback")
    c:succeed(1)
    assert.equal("succeeded", c:state())
    assert.same({}, said)
    core.is_loading = false
    core.turn()
    assert.same({ "callback 1" }, said)
  end)

  it("goes on after a function that raises, whose error goes where a callback's does", function()
    c:callback(function() error("boom", 0) end):callback(teller "after"):completion(teller "end")
    c:succeed()
    assert.same({ "after", "end" }, said)
    assert.same({ "boom" }, { core.errors[1].message, core.errors[2] })
  end)

  it("has EventMachine's names of a deferrable", function()
    c:callback(teller "a")
    c:set_deferred_success(1)
    c:set_deferred_failure(2)
    assert.equal("failed", c:state())
    c:set_deferred_status("magic")
    assert.equal("magic", c:state())
    assert.is_true(em.Deferrable.is(c))
    assert.equal(c, em.Deferrable.future(c, teller "b"))
  end)

  it("holds chains of any length", function()
    local last = c
    for _ = 1, 2000 do
      local following = em.Completion()
      last:callback(function(n) following:succeed(n + 1) end)
      last = following
    end
    last:callback(teller "end")
    c:succeed(0)
    core.turns(100)
    assert.same({ "end 2000" }, said)
    assert.same({}, core.errors)
  end)

  it("names a wrong argument", function()
    for _, case in ipairs {
      { "callback", 1, nil, "bad argument #1 to 'callback' (function expected, got number)" },
      { "errback", nil, nil, "bad argument #1 to 'errback' (function expected, got nil)" },
      { "completion", "x", nil, "bad argument #1 to 'completion' (function expected, got string)" },
      { "stateback", 1, print, "bad argument #1 to 'stateback' (state's name expected, got number)" },
      { "stateback", "x", 1, "bad argument #2 to 'stateback' (function expected, got number)" },
      { "change_state", nil, nil, "bad argument #1 to 'change_state' (state's name expected, got nil)" },
    } do
      local ok, why = pcall(function() c[case[1]](c, case[2], case[3]) end)
      assert.is_false(ok)
      assert.equal(case[4], (why:gsub("^.-completion_spec.lua:%d+: ", "")))
    end
  end)
end)
