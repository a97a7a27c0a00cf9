--- Something that passes from state to state, and whoever wants to know of one: EventMachine's Completion.
-- A deferrable whose states may have any name; in those that completion_states() lists it is complete.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local fifo = require "em.fifo"
local turn = require "em.turn"

local Completion = {}

--- Calls the functions of a state, with the values of the moment.
local function call_all(self, state)
  local list = self.callbacks[state]
  while list and list.size > 0 do
    core.protect(self, "callback", list:shift(), self:value())
    list = self.callbacks[state] -- gone where one of them has changed the state
  end
end

--- Calls those of the state it is in, and where it is complete "completed"'s; then nothing else will come of it.
local function announce(self)
  turn.bounded(function()
    call_all(self, self.now)
    if self:completed() then
      call_all(self, "completed")
      for _, state in ipairs(self:completion_states()) do
        self.callbacks[state] = nil
      end
      self:cancel_timeout()
    end
  end)
end

--- Raises, in the name of the caller's caller, unless it is a state's name.
local function check_state(name, state)
  if type(state) ~= "string" then
    error(("bad argument #1 to '%s' (state's name expected, got %s)"):format(name, type(state)), 3)
  end
end

--- Adds a function to a state's, unless it is complete in another one.
local function add(self, state, fn)
  if state == "completed" or state == self.now or not self:completed() then
    local list = self.callbacks[state] or fifo()
    self.callbacks[state] = list
    list:push(fn)
  end
  announce(self)
  return self
end

--- Removes a function from a state's.
local function remove(self, state, fn)
  local list = self.callbacks[state]
  if list then
    list:remove(fn)
  end
end

--- completion:stateback(state, fn) -> completion: calls fn(values of the state) once, when it comes into that state, at once where it is in
-- it. Where it is complete in another one fn is dropped.
function Completion:stateback(state, fn)
  check_state("stateback", state)
  callback.check(2, "stateback", fn)
  return add(self, state, fn)
end

--- completion:callback(fn) -> completion: stateback of "succeeded".
function Completion:callback(fn)
  callback.check(1, "callback", fn)
  return add(self, "succeeded", fn)
end

--- completion:errback(fn) -> completion: stateback of "failed".
function Completion:errback(fn)
  callback.check(1, "errback", fn)
  return add(self, "failed", fn)
end

--- completion:completion(fn) -> completion: fn is called when it is complete, however that is.
function Completion:completion(fn)
  callback.check(1, "completion", fn)
  return add(self, "completed", fn)
end

--- Takes fn back from callback.
function Completion:cancel_callback(fn)
  remove(self, "succeeded", fn)
end

--- Takes fn back from errback.
function Completion:cancel_errback(fn)
  remove(self, "failed", fn)
end

--- completion:change_state(state, ...): comes into a state, with values for its functions.
function Completion:change_state(state, ...)
  check_state("change_state", state)
  self.now, self.values = state, table.pack(...)
  turn.schedule(function()
    announce(self)
  end)
end

Completion.set_deferred_status = Completion.change_state

--- completion:succeed(...): change_state("succeeded", ...)
function Completion:succeed(...)
  self:change_state("succeeded", ...)
end

--- completion:fail(...): change_state("failed", ...)
function Completion:fail(...)
  self:change_state("failed", ...)
end

Completion.set_deferred_success = Completion.succeed
Completion.set_deferred_failure = Completion.fail

--- The state it is in, "unknown" at first.
function Completion:state()
  return self.now
end

--- The values of the state it is in.
function Completion:value()
  return table.unpack(self.values, 1, self.values.n)
end

--- Is it in one of the completion states?
function Completion:completed()
  for _, state in ipairs(self:completion_states()) do
    if state == self.now then
      return true
    end
  end
  return false
end

--- The states in which it is complete. An object may have a function of its own for this.
function Completion:completion_states()
  return { "succeeded", "failed" }
end

--- completion:timeout(seconds, ...) -> completion: fails after that many seconds unless it is complete by then.
function Completion:timeout(seconds, ...)
  local values = table.pack(...)
  self:cancel_timeout()
  self.timer = core.add_timer(seconds, function()
    self.timer = nil
    if not self:completed() then
      self:fail(table.unpack(values, 1, values.n))
    end
  end)
  return self
end

--- It will not fail after a time.
function Completion:cancel_timeout()
  if self.timer then
    self.timer:cancel()
    self.timer = nil
  end
end

local object = class("em.Completion", Completion)

--- em.Completion(): one in the state "unknown". Functions are called at once, while handlers load when the loop runs.
return function()
  return object { now = "unknown", values = { n = 0 }, callbacks = {} }
end
