--- A function that is called in every turn: EventMachine's TickLoop.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local fifo = require "em.fifo"

local TickLoop = {}

--- Calls the function in the next turn, as long as it is this run that goes on.
local function schedule(self, run)
  core.next_tick(function()
    if self.run ~= run then
      return
    end
    local answer = "stop" -- also after an error: a loop that fails in every turn helps nobody
    core.protect(self, "tick_loop", function()
      answer = self.work()
    end)
    if self.run ~= run then
      return
    elseif answer == "stop" then
      self:stop()
    else
      schedule(self, run)
    end
  end)
end

--- loop:start() -> loop: begins with the next turn. Raises where it runs.
function TickLoop:start()
  if self.run then
    error("the tick loop runs already", 2)
  end
  self.run = {}
  schedule(self, self.run)
  return self
end

--- loop:stop(): ends it, and calls what on_stop has added.
function TickLoop:stop()
  self.run = nil
  while self.stops.size > 0 do
    core.protect(self, "on_stop", self.stops:shift())
  end
end

--- Has it stopped, or never started?
function TickLoop:stopped()
  return not self.run
end

--- loop:on_stop(fn): calls fn once, when the loop ends; at once where it does not run.
function TickLoop:on_stop(fn)
  callback.check(1, "on_stop", fn)
  if self.run then
    self.stops:push(fn)
  else
    core.protect(self, "on_stop", fn)
  end
end

local object = class("em.TickLoop", TickLoop)

--- em.TickLoop(fn): calls fn() in every turn from start() on, until it returns "stop", raises, or stop() is called.
return function(fn)
  callback.check(1, "TickLoop", fn)
  return object { work = fn, stops = fifo() }
end
