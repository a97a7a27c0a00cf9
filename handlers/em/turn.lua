--- When things run: now, in the next turn, after one another.

local core = require "em.core"

local MAX_NESTED <const> = 100 -- calls; Lua has room for about 190 protected calls in each other

local turn = {}

--- Calls fn now if the loop runs; while handlers load, with the loop's first turn.
function turn.schedule(fn)
  if core.loading() then
    core.next_tick(fn)
  else
    fn()
  end
end

local nested = setmetatable({}, { __mode = "k" }) -- coroutine -> calls that are in each other there

--- Calls fn, which does not raise, now; with the next turn where too many of these are in each other: chains of deferrables may have any
-- length.
function turn.bounded(fn)
  local me = coroutine.running()
  local depth = nested[me] or 0
  if depth == MAX_NESTED then
    core.next_tick(fn)
    return
  end
  nested[me] = depth + 1
  fn()
  nested[me] = depth > 0 and depth or nil
end

--- Calls step(object) until it returns false. Within a step it does nothing: the one outside goes on, so that what a step adds
-- comes after it, without recursion. A coroutine that waits in a step holds nobody up, nor does one that was stopped there: whoever
-- comes next in another coroutine or turn takes over.
function turn.pump(object, step)
  local me, now = coroutine.running(), core.current_time()
  if object.pumper == me and object.pumped_at == now then
    return
  end
  object.pumper, object.pumped_at = me, now
  while step(object) do end
  if object.pumper == me then
    object.pumper = nil
  end
end

return turn
