-- em.TickLoop and em.tick_loop: what EventMachine's tests of them pin, and what happens at the edges.
local fake = require "tests.support.fake_core"

describe("em.TickLoop", function()
  local core, em, count, stops
  before_each(function()
    core = fake.install()
    em = require "em"
    count, stops = 0, 0
  end)
  after_each(fake.remove)

  local function stopped() stops = stops + 1 end
  local function work() count = count + 1 end
  local function work_once()
    count = count + 1
    return "stop"
  end

  it("calls its function in every turn", function()
    em.tick_loop(work)
    assert.equal(0, count)
    assert.equal(10, core.turns(10))
    assert.equal(10, count)
  end)

  it("ends when that returns \"stop\"", function()
    local loop = em.tick_loop(work_once)
    loop:on_stop(stopped)
    core.turns(10)
    assert.same({ 1, 1 }, { count, stops })
    assert.is_true(loop:stopped())
  end)

  it("starts again, and calls what was to be called at its stop once only", function()
    local loop = em.tick_loop(work_once)
    loop:on_stop(stopped)
    core.turns(10)
    assert.equal(loop, loop:start())
    core.turns(10)
    assert.same({ 2, 1 }, { count, stops })
  end)

  it("refuses a second start", function()
    local loop = em.tick_loop(work)
    local ok, why = pcall(function() loop:start() end)
    assert.is_false(ok)
    assert.matches("tick_loop_spec.lua:%d+: the tick loop runs already$", why)
    core.turns(3)
    assert.equal(3, count)
  end)

  it("stops when told to", function()
    local loop = em.tick_loop(work)
    loop:on_stop(stopped)
    core.turn()
    loop:stop()
    core.turns(10)
    assert.is_true(loop:stopped())
    assert.same({ 1, 1 }, { count, stops })
    loop:stop()
    assert.equal(1, stops)
  end)

  it("may stop, and start again, in its own function", function()
    local loop
    loop = em.TickLoop(function()
      count = count + 1
      loop:stop()
      if count < 3 then loop:start() end
      return "stop" -- of the run that has ended already
    end)
    loop:start()
    core.turns(10)
    assert.equal(3, count)
    assert.is_true(loop:stopped())
  end)

  it("runs once a turn when it has been stopped and started within one", function()
    local loop = em.tick_loop(work)
    loop:stop()
    loop:start()
    core.turns(5)
    assert.equal(5, count)
  end)

  it("calls at once what is to be called at the stop of one that does not run", function()
    local loop = em.TickLoop(work)
    assert.is_true(loop:stopped())
    loop:on_stop(stopped)
    loop:on_stop(stopped)
    assert.equal(2, stops)
    loop:start()
    assert.is_false(loop:stopped())
    loop:on_stop(stopped)
    assert.equal(2, stops)
  end)

  it("begins with the first turn where it is made while handlers load", function()
    core.is_loading = true
    em.tick_loop(work)
    assert.equal(0, count)
    core.is_loading = false
    core.turn()
    assert.equal(1, count)
  end)

  it("ends with an error, which goes where a callback's does", function()
    local loop = em.tick_loop(function() error("boom", 0) end)
    loop:on_stop(function() error("bang", 0) end)
    loop:on_stop(stopped)
    core.turns(10)
    assert.same({ "boom", "bang" }, { core.errors[1].message, core.errors[2].message, core.errors[3] })
    assert.equal(1, stops)
    assert.is_true(loop:stopped())
  end)

  it("names a wrong argument", function()
    for text, fn in pairs {
      ["bad argument #1 to 'TickLoop' (function expected, got nil)"] = function() em.TickLoop() end,
      ["bad argument #1 to 'tick_loop' (function expected, got number)"] = function() em.tick_loop(1) end,
      ["bad argument #1 to 'on_stop' (function expected, got nil)"] = function() em.TickLoop(print):on_stop() end,
    } do
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-tick_loop_spec.lua:%d+: ", "")))
    end
  end)
end)
