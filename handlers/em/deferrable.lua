--- Something that will succeed or fail, and whoever wants to know: EventMachine's Deferrable.
-- A mixin: em.Deferrable.include(object), or em.DefaultDeferrable() for an object that is nothing else. Handlers run at once, in the
-- order in which they were added, each at most once. One of them may set the status anew: those after it get the new arguments, or, if
-- the outcome has changed, are dropped in favour of the other list. One that raises does not stop the others, nor whoever has set the
-- status: its error goes where a callback's does.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local fifo = require "em.fifo"
local turn = require "em.turn"

local Deferrable = {}

-- The key of an object's { status, args, succeeded, failed, timer }; the last but one are lists of functions. Not a weak table from objects
-- to these: the collector would take a time quadratic in the length of a chain of deferrables.
local STATE = {}

--- The state of an object, made when it is first asked for.
local function state_of(object)
  local state = rawget(object, STATE)
  if not state then
    state = { status = "unknown" }
    rawset(object, STATE, state)
  end
  return state
end

--- Calls those who wait for an outcome with the arguments of the moment, as long as it stays what it was; then drops those who wait for the
-- other.
local function announce(object, state, outcome)
  turn.bounded(function()
    local list = state[outcome]
    while list and list.size > 0 and state.status == outcome do
      core.protect(object, outcome, list:shift(), table.unpack(state.args, 1, state.args.n))
    end
    if state.status == outcome then
      state.succeeded, state.failed = nil, nil
    end
  end)
end

--- Has fn called at an outcome, at once where it is known; for the other outcome it is dropped.
local function add(object, name, fn, outcome)
  if not callback.is(fn) then
    error(("bad argument #1 to '%s' (function expected, got %s)"):format(name, type(fn)), 3)
  end
  local state = state_of(object)
  if state.status == outcome then
    turn.bounded(function()
      core.protect(object, outcome, fn, table.unpack(state.args, 1, state.args.n))
    end)
  elseif state.status == "unknown" then
    state[outcome] = state[outcome] or fifo()
    state[outcome]:push(fn)
  end
  return object
end

--- Takes fn back.
local function remove(object, fn, outcome)
  local list = state_of(object)[outcome]
  if list then
    list:remove(fn)
  end
end

--- deferrable:callback(fn) -> deferrable: calls fn(...) with what it succeeds with, at once where it has.
function Deferrable:callback(fn)
  return add(self, "callback", fn, "succeeded")
end

--- deferrable:errback(fn) -> deferrable: calls fn(...) with what it fails with, at once where it has.
function Deferrable:errback(fn)
  return add(self, "errback", fn, "failed")
end

--- Takes fn back from callback.
function Deferrable:cancel_callback(fn)
  remove(self, fn, "succeeded")
end

--- Takes fn back from errback.
function Deferrable:cancel_errback(fn)
  remove(self, fn, "failed")
end

--- Sets "succeeded", "failed" or "unknown", with what the functions get. Raises for anything else.
function Deferrable:set_deferred_status(status, ...)
  if status ~= "succeeded" and status ~= "failed" and status ~= "unknown" then
    error('bad argument #1 to \'set_deferred_status\' ("succeeded", "failed" or "unknown" expected)', 2)
  end
  local state = state_of(self)
  Deferrable.cancel_timeout(self)
  state.status = status
  state.args = table.pack(...)
  if status ~= "unknown" then
    announce(self, state, status)
  end
end

--- Sets "succeeded".
function Deferrable:succeed(...)
  Deferrable.set_deferred_status(self, "succeeded", ...)
end

--- Sets "failed".
function Deferrable:fail(...)
  Deferrable.set_deferred_status(self, "failed", ...)
end

Deferrable.set_deferred_success = Deferrable.succeed
Deferrable.set_deferred_failure = Deferrable.fail

--- Fails after that many seconds, unless the outcome is known before.
function Deferrable:timeout(seconds, ...)
  local state = state_of(self)
  local args = table.pack(...)
  Deferrable.cancel_timeout(self)
  state.timer = core.add_timer(seconds, function()
    state.timer = nil
    Deferrable.fail(self, table.unpack(args, 1, args.n))
  end)
  return self
end

--- It will not fail after a time.
function Deferrable:cancel_timeout()
  local state = state_of(self)
  if state.timer then
    state.timer:cancel()
    state.timer = nil
  end
end

local names = {
  "callback", "errback", "cancel_callback", "cancel_errback", "set_deferred_status", "succeed", "fail", "set_deferred_success",
  "set_deferred_failure", "timeout", "cancel_timeout",
}

--- Gives an object or class the methods; returns it.
function Deferrable.include(object)
  for _, name in ipairs(names) do
    object[name] = Deferrable[name]
  end
  return object
end

--- Is it something with callback and errback?
function Deferrable.is(object)
  return type(object) == "table" and object.callback ~= nil and object.errback ~= nil
end

--- Attaches cb and eb to arg if it is deferrable, or to what it returns if it can be called; returns that.
function Deferrable.future(arg, cb, eb)
  if callback.is(arg) then
    arg = arg()
  end
  if Deferrable.is(arg) then
    if cb then
      arg:callback(cb)
    end
    if eb then
      arg:errback(eb)
    end
  end
  return arg
end

local object = class("em.DefaultDeferrable", Deferrable.include {})

--- An object that is a deferrable and nothing else.
function Deferrable.new()
  return object {}
end

return Deferrable
