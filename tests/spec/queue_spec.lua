-- em.Queue: what EventMachine's tests of it pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Queue", function()
  local core, em, q, got
  before_each(function()
    core = fake.install()
    em = require "em"
    q = em.Queue()
    got = {}
  end)
  after_each(fake.remove)

  local function get(item) table.insert(got, item) end

  it("holds what is pushed", function()
    assert.is_true(q:empty())
    assert.equal(0, q:size())
    q:push(1)
    assert.equal(1, q:size())
    q:push(2, 3)
    q:push()
    assert.equal(3, q:size())
    assert.is_false(q:empty())
  end)

  it("gives items in their order, at once where there are any", function()
    q:push(1, 2, 3)
    for _ = 1, 3 do assert.equal(0, select("#", q:pop(get))) end
    assert.same({ 1, 2, 3 }, got)
    assert.is_true(q:empty())
  end)

  it("gives items to those who wait in their order, each one", function()
    for i = 1, 3 do
      q:pop(function(item) get(i .. item) end)
    end
    assert.equal(3, q:num_waiting())
    q:push("a", "b")
    assert.equal(1, q:num_waiting())
    assert.equal(0, q:size())
    q:push("c", "d")
    assert.same({ "1a", "2b", "3c" }, got)
    assert.equal(0, q:num_waiting())
    assert.equal(1, q:size())
  end)

  it("holds nil and false", function()
    q:push(nil, false, nil)
    assert.equal(3, q:size())
    local count = 0
    for _ = 1, 3 do
      q:pop(function(item) count = count + (item == false and 10 or 1) end)
    end
    assert.equal(12, count)
  end)

  it("takes effect only when the loop runs, while handlers load", function()
    core.is_loading = true
    q:push(1, 2, 3)
    q:pop(get)
    assert.is_true(q:empty())
    assert.same({}, got)
    core.is_loading = false
    core.turn()
    assert.same({ 1 }, got)
    assert.equal(2, q:size())
  end)

  it("serves whoever pops or pushes again meanwhile, without recursion", function()
    local function again(item)
      get(item)
      if item < 20000 then q:push(item + 1) end
      q:pop(again)
    end
    q:push(1)
    q:pop(again)
    assert.equal(20000, #got)
    assert.equal(20000, got[20000])
    assert.same({}, core.errors)
    assert.equal(1, q:num_waiting())
  end)

  it("goes on after a function that raises, whose error goes where a callback's does", function()
    q:pop(function() error("boom", 0) end)
    q:pop(get)
    q:push(1, 2)
    assert.same({ 2 }, got)
    assert.same({ "boom" }, { core.errors[1].message, core.errors[2] })
  end)

  it("is not held up by a coroutine that waits in its function, or was stopped there", function()
    q:push(1, 2, 3)
    local waiting = coroutine.create(function()
      q:pop(function(item)
        get(item)
        coroutine.yield()
        get("back")
      end)
      q:pop(get)
    end)
    -- a protected call that can be waited in, as the daemon's
    core.protect = function(_, _, fn, ...) return pcall(fn, ...) end
    assert(coroutine.resume(waiting))
    q:pop(get)
    assert.same({ 1, 2 }, got)
    assert(coroutine.resume(waiting))
    assert.same({ 1, 2, "back", 3 }, got)
    -- something that is no error of a function's ends it in between
    core.protect = function() error("stopped", 0) end
    q:push(4)
    assert.is_false(pcall(q.pop, q, get))
    core.protect = function(_, _, fn, ...) return pcall(fn, ...) end
    core.now = core.now + 1
    q:push(5)
    q:pop(get)
    assert.equal(5, got[#got])
  end)

  -- Seconds of processor time.
  local function seconds(fn)
    local began = os.clock()
    fn()
    return os.clock() - began
  end

  it("takes two million items with pops between", function()
    local items = {}
    for i = 1, 1001 do items[i] = i - 1 end
    local wrong = 0
    for i = 0, 1999 do
      q:push(table.unpack(items))
      q:pop(function(item) if item ~= i % 1001 then wrong = wrong + 1 end end)
    end
    q:pop(get)
    assert.equal(0, wrong)
    assert.equal(1999999, q:size())
  end)

  it("takes a time that is linear in their number, and gives their memory back", function()
    local function fill_and_drain(n)
      local function keep(item) got[1] = item end
      return seconds(function()
        for i = 1, n do q:push(i) end
        for _ = 1, n do q:pop(keep) end
      end)
    end
    local few = fill_and_drain(50000)
    local many = fill_and_drain(500000)
    assert.is_true(many < 40 * few + 1, "10 times as many take " .. many .. " s in the place of " .. few)
    assert.equal(500000, got[1])
    -- a short queue through which much goes stays short
    collectgarbage()
    local before = collectgarbage("count")
    for i = 1, 1000 do q:push(i) end
    for i = 1, 100000 do
      q:push(i)
      q:pop(function() end)
    end
    for _ = 1, 990 do q:pop(function() end) end
    collectgarbage()
    assert.equal(10, q:size())
    assert.is_true(collectgarbage("count") - before < 100)
  end)

  it("keeps nothing of what it has given", function()
    local weak = setmetatable({}, { __mode = "k" })
    for _ = 1, 10 do
      local item = {}
      weak[item] = true
      q:push(item)
    end
    q:push("last")
    for _ = 1, 10 do q:pop(function() end) end
    collectgarbage()
    assert.is_nil(next(weak))
    assert.equal(1, q:size())
  end)

  it("names a wrong argument", function()
    local ok, why = pcall(function() q:pop(1) end)
    assert.is_false(ok)
    assert.matches("queue_spec.lua:%d+: bad argument #1 to 'pop' %(function expected, got number%)$", why)
    assert.equal("em.Queue", getmetatable(q))
  end)
end)
