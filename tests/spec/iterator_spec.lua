-- em.Iterator: what EventMachine's tests of it pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Iterator", function()
  local core, em, started, ended
  before_each(function()
    core = fake.install()
    em = require "em"
    started, ended = {}, 0
  end)
  after_each(fake.remove)

  -- The whole numbers from one to another.
  local function range(from, to)
    local list = {}
    for i = from, to do table.insert(list, i) end
    return list
  end

  -- Calls the turns' functions and lets time pass, a hundredth of a second a step.
  local function go(seconds)
    for _ = 1, seconds * 100 do
      core.turns(50)
      core.fire(0.01)
    end
  end

  -- A function for each that notes its item with the time, and takes a while.
  local function slow(seconds)
    return function(item, iter)
      local time = ("%.1f"):format(core.now)
      started[time] = started[time] or {}
      table.insert(started[time], item)
      core.add_timer(seconds, function() iter:next() end)
    end
  end

  local function after() ended = ended + 1 end

  -- How many times, and all items in their order.
  local function times()
    local count, items = 0, {}
    for _, list in pairs(started) do
      count = count + 1
      table.move(list, 1, #list, #items + 1, items)
    end
    table.sort(items)
    return count, items
  end

  it("works on one item at a time", function()
    local iterator = em.Iterator(range(1, 10))
    assert.equal(iterator, iterator:each(slow(0.2), after))
    assert.same({}, started)
    go(1.9)
    assert.equal(0, ended)
    go(1)
    local count, items = times()
    assert.equal(10, count)
    assert.same(range(1, 10), items)
    assert.equal(1, ended)
  end)

  it("takes items from a function until it returns Stop, or nil", function()
    for _, stop in ipairs { em.Iterator.Stop, false } do
      local list = range(1, 10)
      started, ended = {}, 0
      em.Iterator(function() return table.remove(list) or stop or nil end):each(slow(0.2), after)
      go(4)
      local count, items = times()
      assert.equal(10, count)
      assert.same(range(1, 10), items)
      assert.equal(1, ended)
    end
    em.Iterator(setmetatable({}, { __call = function() end })):each(print, after)
    go(1)
    assert.equal(2, ended)
  end)

  it("works on all items at once where there are fewer than it may", function()
    em.Iterator({ 1, 2, 3 }, 10):each(slow(1), after)
    core.turns(50)
    local count, items = times()
    assert.equal(1, count)
    assert.same({ 1, 2, 3 }, items)
    go(2)
    assert.equal(1, ended)
  end)

  it("works on so many at a time and no more", function()
    local now, most = 0, 0
    em.Iterator(range(1, 20), 4):each(function(_, iter)
      now = now + 1
      most = math.max(most, now)
      core.add_timer(0.1, function()
        now = now - 1
        iter:next()
      end)
    end, after)
    go(2)
    assert.equal(4, most)
    assert.equal(1, ended)
  end)

  it("may work on more, or fewer, on the way", function()
    local seen = 0
    local iterator = em.Iterator(range(1, 25), 1)
    assert.equal(1, iterator:concurrency())
    local work = slow(0.2)
    iterator:each(function(item, iter)
      seen = seen + 1
      if seen == 5 then assert.equal(10, iterator:concurrency(10)) end
      work(item, iter)
    end, after)
    go(3)
    local count, items = times()
    assert.is_true(count >= 6 and count <= 8, count .. " times")
    assert.same(range(1, 25), items)
    assert.equal(1, ended)

    started, ended = {}, 0
    iterator = em.Iterator(range(1, 12), 4)
    iterator:each(slow(0.2), after)
    core.turns(50)
    iterator:concurrency(1)
    go(3)
    count = times()
    assert.equal(9, count) -- four, then eight times one
    assert.equal(1, ended)
  end)

  it("maps, in the order of the items", function()
    local results
    local iterator = em.Iterator(range(100, 150), 5)
    assert.equal(iterator, iterator:map(function(n, iter)
      core.add_timer((n * 7 % 5) / 100, function() iter:return_value(n + 1) end)
    end, function(values) results = values end))
    go(3)
    local wanted = range(101, 151)
    wanted.n = 51
    assert.same(wanted, results)
  end)

  it("maps to nil too", function()
    local results
    em.Iterator({ 1, 2, 3 }):map(function(n, iter) iter:return_value(n == 2 and n or nil) end, function(values) results = values end)
    core.turns(50)
    assert.same({ [2] = 2, n = 3 }, results)
  end)

  it("injects", function()
    local result
    em.Iterator({ "pwd", "uptime", "uname", "date" }, 2):inject({}, function(hash, command, iter)
      core.add_timer(0.1, function()
        hash[command] = #command
        iter:return_value(hash)
      end)
    end, function(hash) result = hash end)
    go(1)
    assert.same({ pwd = 3, uptime = 6, uname = 5, date = 4 }, result)
    em.Iterator(range(1, 4)):inject(0, function(sum, n, iter) iter:return_value(sum + n) end, function(sum) result = sum end)
    core.turns(50)
    assert.equal(10, result)
  end)

  it("ends an empty list at once, whatever it is for", function()
    local results, result
    em.Iterator({}, 3):each(error, after)
    em.Iterator({}):map(error, function(values) results = values end)
    em.Iterator({}):inject("start", error, function(value) result = value end)
    assert.equal(0, ended)
    core.turns(50)
    assert.same({ 1, { n = 0 }, "start" }, { ended, results, result })
    em.Iterator({ 1 }):each(function(_, iter) iter:next() end)
    core.turns(50)
    assert.same({}, core.errors)
  end)

  it("has a list of its own", function()
    local list = { 1, 2, 3 }
    em.Iterator(list):each(function(item, iter)
      table.insert(started, item)
      iter:next()
    end)
    list[2] = nil
    list[3] = nil
    core.turns(50)
    assert.same({ 1, 2, 3 }, started)
    assert.same({ 1 }, list)
  end)

  it("goes through 100,000 items that are done at once, without recursion", function()
    local count = 0
    em.Iterator(range(1, 100000)):each(function(_, iter)
      count = count + 1
      iter:next()
    end, after)
    core.turns(200000)
    assert.same({ 100000, 1 }, { count, ended })
    assert.same({}, core.errors)
  end)

  it("is done with an item whose function raises, and with all when its source does", function()
    em.Iterator(range(1, 3)):each(function(item, iter)
      table.insert(started, item)
      core.add_timer(0.1, function() iter:next() end)
      if item == 2 then error("boom", 0) end
    end, after)
    go(1)
    assert.same({ 1, 2, 3 }, started)
    assert.equal(1, ended)
    assert.same({ "boom" }, { core.errors[1].message, core.errors[2] })
    em.Iterator({ 1, 2 }):each(function(_, iter)
      iter:next()
      error("done", 0)
    end, after)
    core.turns(50)
    assert.equal(2, ended)
    assert.same({ "done", "done" }, { core.errors[2].message, core.errors[3].message, core.errors[4] })
    core.errors = {}
    local results
    em.Iterator({ 1, 2, 3 }):map(function(n, iter)
      core.add_timer(0.1, function() iter:return_value(n) end)
      if n == 2 then error("bang", 0) end
    end, function(values) results = values end)
    go(1)
    assert.same({ 1, nil, 3, n = 3 }, results)
    assert.same({ "bang" }, { core.errors[1].message, core.errors[2] })
    local first = true
    em.Iterator(function()
      if first then
        first = false
        return 1
      end
      error("dry", 0)
    end):each(function(_, iter) iter:next() end, after)
    core.turns(50)
    assert.equal(3, ended)
    assert.same({ "dry" }, { core.errors[2].message, core.errors[3] })
  end)

  it("refuses a second run, a second answer, and an answer of the wrong kind", function()
    local kept = {}
    local function keep(_, iter) table.insert(kept, iter) end
    local iterator = em.Iterator({ 1 }):each(keep)
    em.Iterator({ 1 }):map(keep, print)
    em.Iterator({ 1 }):inject(0, function(_, item, iter) keep(item, iter) end, function() end)
    core.turns(50)
    local each, map, inject = table.unpack(kept)
    each:next()
    local function refuses(text, fn)
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-iterator_spec.lua:%d+: ", "")))
    end
    refuses("already completed this iteration", function() each:next() end)
    refuses("must call return_value on a map or inject iterator", function() map:next() end)
    refuses("must call return_value on a map or inject iterator", function() inject:next() end)
    inject:return_value(1)
    refuses("already returned a value for this iteration", function() inject:return_value(1) end)
    refuses("cannot iterate over an iterator more than once", function() iterator:each(print) end)
    refuses("cannot iterate over an iterator more than once", function() iterator:map(print, print) end)
    core.turns(50)
    refuses("cannot iterate over an iterator more than once", function() iterator:inject(0, print, print) end)
    assert.is_nil(each.return_value)
  end)

  it("names a wrong argument", function()
    for text, fn in pairs {
      ["bad argument #2 to 'Iterator' (concurrency must be at least 1)"] = function() em.Iterator({ 1 }, 0) end,
      ["bad argument #1 to 'Iterator' (list or function expected, got number)"] = function() em.Iterator(1) end,
      ["bad argument #1 to 'Iterator' (list or function expected, got nil)"] = function() em.Iterator() end,
      ["bad argument #1 to 'concurrency' (concurrency must be at least 1)"] = function() em.Iterator({}):concurrency(0 / 0) end,
      ["bad argument #1 to 'each' (function expected, got nil)"] = function() em.Iterator({}):each() end,
      ["bad argument #2 to 'each' (function expected, got number)"] = function() em.Iterator({}):each(print, 1) end,
      ["bad argument #2 to 'map' (function expected, got nil)"] = function() em.Iterator({}):map(print) end,
      ["bad argument #2 to 'inject' (function expected, got nil)"] = function() em.Iterator({}):inject(0) end,
      ["em.Iterator is shared by all handlers and cannot be changed"] = function() em.Iterator.Stop = nil end,
    } do
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-iterator_spec.lua:%d+: ", "")))
    end
  end)
end)
