-- em.Channel: what EventMachine's tests of it pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.Channel", function()
  local core, em, channel, got
  before_each(function()
    core = fake.install()
    em = require "em"
    channel = em.Channel()
    got = {}
  end)
  after_each(fake.remove)

  -- A function that notes its name and what it gets.
  local function getter(name)
    return function(item) table.insert(got, name .. tostring(item)) end
  end

  it("gives each item to every subscriber, in their order", function()
    channel:subscribe(getter "a")
    channel:subscribe(getter "b")
    assert.equal(0, select("#", channel:push(1, nil, 3)))
    assert.same({ "a1", "b1", "anil", "bnil", "a3", "b3" }, got)
    channel:push()
    assert.equal(6, #got)
  end)

  it("loses what nobody hears", function()
    channel:push(1)
    channel:subscribe(getter "a")
    assert.same({}, got)
  end)

  it("gives nothing to who has unsubscribed", function()
    local id = channel:subscribe(getter "a")
    assert.equal("integer", math.type(id))
    local other = channel:subscribe(getter "b")
    assert.not_equal(id, other)
    channel:unsubscribe(id)
    channel:unsubscribe(id)
    channel:unsubscribe(12345)
    channel:push(1)
    assert.same({ "b1" }, got)
    assert.equal(1, channel:num_subscribers())
    assert.is_true(channel:subscribe(print) > other)
  end)

  it("pops the next item only", function()
    channel:pop(getter "p")
    channel:pop(getter "q")
    channel:push(1, 2, 3)
    channel:push(4)
    assert.same({ "p1", "q1" }, got)
    assert.equal(0, channel:num_subscribers())
    channel:unsubscribe(channel:pop(getter "r"))
    channel:push(5)
    assert.equal(2, #got)
  end)

  it("counts its subscribers", function()
    assert.equal(0, channel:num_subscribers())
    local id = channel:subscribe(print)
    channel:subscribe(print)
    assert.equal(2, channel:num_subscribers())
    channel:unsubscribe(id)
    assert.equal(1, channel:num_subscribers())
  end)

  it("takes effect only when the loop runs, while handlers load", function()
    core.is_loading = true
    channel:subscribe(getter "a")
    local id = channel:subscribe(getter "b")
    channel:unsubscribe(id)
    channel:push(1, 2, 3)
    assert.same({}, got)
    assert.equal(0, channel:num_subscribers())
    core.is_loading = false
    core.turn()
    assert.same({ "a1", "a2", "a3" }, got)
  end)

  it("gives all subscribers items in the same order, also those that one of them pushes", function()
    channel:subscribe(function(item)
      getter "a"(item)
      if item < 20000 then channel:push(item + 1) end
    end)
    channel:subscribe(getter "b")
    channel:push(1)
    assert.equal(40000, #got)
    assert.same({ "a1", "b1", "a2", "b2" }, { table.unpack(got, 1, 4) })
    assert.same({}, core.errors)
  end)

  it("is not disturbed by subscribers that come and go", function()
    local ids = {}
    channel:subscribe(function(item)
      getter "a"(item)
      for _, id in ipairs(ids) do channel:unsubscribe(id) end
      if item == 1 then channel:subscribe(getter "new") end
    end)
    for i = 1, 3 do ids[i] = channel:subscribe(getter "gone") end
    channel:subscribe(getter "z")
    channel:push(1, 2)
    assert.same({ "a1", "z1", "a2", "z2", "new2" }, got)
  end)

  it("goes on after a subscriber that raises, whose error goes where a callback's does", function()
    channel:subscribe(function() error("boom", 0) end)
    channel:subscribe(getter "a")
    channel:push(1, 2)
    assert.same({ "a1", "a2" }, got)
    assert.same({ "boom", "boom" }, { core.errors[1].message, core.errors[2].message, core.errors[3] })
  end)

  it("has 20,000 subscribers come and go, first come first gone, beside one that stays", function()
    channel:subscribe(getter "a")
    local ids = {}
    for i = 1, 20000 do ids[i] = channel:subscribe(getter "gone") end
    for i = 1, 20000 do channel:unsubscribe(ids[i]) end
    collectgarbage()
    local before = collectgarbage("count")
    for _ = 1, 20000 do channel:unsubscribe(channel:subscribe(print)) end
    collectgarbage()
    assert.is_true(collectgarbage("count") - before < 100)
    channel:push(1)
    assert.same({ "a1" }, got)
    local weak = setmetatable({}, { __mode = "k" })
    for _ = 1, 100 do
      local fn = function() return weak end
      weak[fn] = true
      channel:unsubscribe(channel:subscribe(fn))
    end
    collectgarbage()
    collectgarbage()
    assert.is_nil(next(weak))
  end)

  it("names a wrong argument", function()
    for _, case in ipairs {
      { "subscribe", 1, "bad argument #1 to 'subscribe' (function expected, got number)" },
      { "pop", nil, "bad argument #1 to 'pop' (function expected, got nil)" },
      { "unsubscribe", nil, "bad argument #1 to 'unsubscribe' (id expected, got nil)" },
    } do
      local ok, why = pcall(function() channel[case[1]](channel, case[2]) end)
      assert.is_false(ok)
      assert.equal(case[3], (why:gsub("^.-channel_spec.lua:%d+: ", "")))
    end
  end)
end)
