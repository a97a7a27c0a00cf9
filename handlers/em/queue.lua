--- Items on one side, functions that wait for them on the other: EventMachine's Queue.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local fifo = require "em.fifo"
local turn = require "em.turn"

local Queue = {}

--- The first item goes to whoever has waited longest.
local function serve(self)
  if self.items.size == 0 or self.waiting.size == 0 then
    return false
  end
  core.protect(self, "pop", self.waiting:shift(), self.items:shift())
  return true
end

--- queue:push(...): adds items, nil among them, or hands them to those who wait.
function Queue:push(...)
  local items = table.pack(...)
  turn.schedule(function()
    for i = 1, items.n do
      self.items:push(items[i])
    end
    turn.pump(self, serve)
  end)
end

--- queue:pop(fn): calls fn(item) once, at once if there is an item, else when there is one; first come, first served. Within such a
-- function it is called after that has returned.
function Queue:pop(fn)
  callback.check(1, "pop", fn)
  turn.schedule(function()
    self.waiting:push(fn)
    turn.pump(self, serve)
  end)
end

--- Is there no item?
function Queue:empty()
  return self.items.size == 0
end

--- How many items are there?
function Queue:size()
  return self.items.size
end

--- How many functions wait for items?
function Queue:num_waiting()
  return self.waiting.size
end

local object = class("em.Queue", Queue)

--- em.Queue(): an empty queue. What is done with it while handlers load takes effect when the loop runs.
return function()
  return object { items = fifo(), waiting = fifo() }
end
