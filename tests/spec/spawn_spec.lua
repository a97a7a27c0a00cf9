-- em.spawn, em.yield, em.yield_and_notify: what EventMachine's tests of spawned processes pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.spawn", function()
  local core, em
  before_each(function()
    core = fake.install()
    em = require "em"
  end)
  after_each(fake.remove)

  it("calls its function with what it is notified of, after the code that runs", function()
    local x, got = 0, nil
    local process = em.spawn(function(...)
      x = x * 2
      got = table.pack(...)
    end)
    assert.equal(0, select("#", process:notify(3, nil, 4, nil)))
    x = 2
    core.turn()
    assert.equal(4, x)
    assert.same({ 3, nil, 4, nil, n = 4 }, got)
  end)

  it("is also resumed, and run", function()
    local count = 0
    local process = em.spawn(function(by) count = count + by end)
    process:resume(1)
    process:run(10)
    core.turn()
    assert.equal(11, count)
  end)

  it("takes notifications in their order", function()
    local x, y = 1, 1
    local process = em.spawn(function() x, y = y, x + y end)
    for _ = 1, 25 do process:notify() end
    core.turns(100)
    assert.same({ 121393, 196418 }, { x, y })
    x, y = 1, 1
    for _ = 1, 25 do em.spawn(function() x, y = y, x + y end):notify() end
    core.turns(100)
    assert.same({ 121393, 196418 }, { x, y })
  end)

  it("passes on from one to the next", function()
    local a, b
    local following = em.spawn(function(x, y) a, b = x, y end)
    for _ = 1, 25 do
      local after = following
      following = em.spawn(function(x, y) after:notify(y, x + y) end)
    end
    following:notify(1, 1)
    core.turns(100)
    assert.same({ 121393, 196418 }, { a, b })
  end)

  it("goes on with the function that it yields", function()
    local a = 0
    local process = em.spawn(function()
      a = a + 10
      return em.yield(function()
        a = a + 20
        return em.yield(function(more) a = a + more end)
      end)
    end)
    process:notify()
    core.turns(10)
    assert.equal(10, a)
    process:notify()
    process:notify(30)
    core.turns(10)
    assert.equal(60, a)
    process:notify(40)
    core.turns(10)
    assert.equal(100, a)
  end)

  it("goes on by itself where it yields and notifies", function()
    local a = 0
    em.spawn(function()
      a = a + 10
      return em.yield_and_notify(function()
        a = a + 20
        return em.yield_and_notify(function() a = a + 30 end)
      end)
    end):notify()
    core.turn()
    assert.equal(10, a)
    core.turns(10)
    assert.equal(60, a)
  end)

  it("plays ping-pong", function()
    local pongs, done = 0, nil
    local pong = em.spawn(function(x, ping)
      pongs = pongs + 1
      ping:notify(x - 1)
    end)
    local ping
    ping = em.spawn(function(x)
      if x > 0 then pong:notify(x, ping) else done = true end
    end)
    ping:notify(3)
    core.turns(100)
    assert.same({ 3, true }, { pongs, done })
  end)

  it("may notify itself", function()
    local n, process = 0, nil
    process = em.spawn(function(x)
      n = n + x
      if x > 0 then process:notify(x - 1) end
    end)
    process:notify(3)
    core.turns(100)
    assert.equal(6, n)
  end)

  it("goes on after an error, which goes where a callback's does, and ignores what else is returned", function()
    local got = {}
    local process = em.spawn(function(x)
      if x == "bad" then error("boom", 0) end
      table.insert(got, x)
      return x
    end)
    for _, x in ipairs { 1, "bad", {}, "text" } do process:notify(x) end
    process:notify(0 / 0)
    core.turns(10)
    assert.equal(4, #got)
    assert.same({ "boom" }, { core.errors[1].message, core.errors[2] })
  end)

  it("names a wrong argument", function()
    for _, name in ipairs { "spawn", "yield", "yield_and_notify" } do
      local ok, why = pcall(function() em[name](1) end)
      assert.is_false(ok)
      assert.matches("spawn_spec.lua:%d+: bad argument #1 to '" .. name .. "' %(function expected, got number%)$", why)
    end
  end)
end)
