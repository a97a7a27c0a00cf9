--- Something that will succeed or fail, and whoever wants to know: EventMachine's Deferrable.
-- A mixin: em.Deferrable.include(object), or em.DefaultDeferrable() for an object that is nothing else. Handlers run at once, in the
-- order in which they were added, each at most once. One of them may set the status anew: those after it get the new arguments, or, if
-- the outcome has changed, are dropped in favour of the other list.

local core = require "em.core"

local Deferrable = {}

-- object -> { status, args, callbacks, errbacks, timer }; apart from the object, whose fields are the script's own.
local states = setmetatable({}, { __mode = "k" })

--- The state of an object, made when it is first asked for.
local function state_of(object)
  local state = states[object]
  if not state then
    state = { status = "unknown", callbacks = {}, errbacks = {} }
    states[object] = state
  end
  return state
end

--- Runs a list with the arguments of the moment, as long as the outcome stays what it was.
local function run(state, list, status)
  while state.status == status and #list > 0 do
    table.remove(list, 1)(table.unpack(state.args, 1, state.args.n))
  end
end

--- Adds fn to a list, or calls it at once where the outcome is known; for the other outcome it is dropped.
local function add(object, fn, list, status)
  if type(fn) ~= "function" then
    error("bad argument #1 (function expected, got " .. type(fn) .. ")", 3)
  end
  local state = state_of(object)
  if state.status == status then
    fn(table.unpack(state.args, 1, state.args.n))
  elseif state.status == "unknown" then
    local fns = state[list]
    fns[#fns + 1] = fn
  end
  return object
end

--- Removes fn from a list.
local function remove(object, fn, list)
  local fns = state_of(object)[list]
  for i = #fns, 1, -1 do
    if fns[i] == fn then
      table.remove(fns, i)
      break
    end
  end
end

--- Adds a function for success; returns the object.
function Deferrable:callback(fn)
  return add(self, fn, "callbacks", "succeeded")
end

--- Adds a function for failure; returns the object.
function Deferrable:errback(fn)
  return add(self, fn, "errbacks", "failed")
end

function Deferrable:cancel_callback(fn)
  remove(self, fn, "callbacks")
end

function Deferrable:cancel_errback(fn)
  remove(self, fn, "errbacks")
end

--- Sets "succeeded", "failed" or "unknown", with what the functions get.
function Deferrable:set_deferred_status(status, ...)
  if status ~= "succeeded" and status ~= "failed" and status ~= "unknown" then
    error('bad argument #1 to \'set_deferred_status\' ("succeeded", "failed" or "unknown" expected)', 2)
  end
  local state = state_of(self)
  Deferrable.cancel_timeout(self)
  state.status = status
  state.args = table.pack(...)
  if status == "succeeded" then
    run(state, state.callbacks, status)
    if state.status == status then
      state.errbacks = {}
    end
  elseif status == "failed" then
    run(state, state.errbacks, status)
    if state.status == status then
      state.callbacks = {}
    end
  end
end

function Deferrable:succeed(...)
  Deferrable.set_deferred_status(self, "succeeded", ...)
end

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

--- Attaches cb and eb to arg if it is deferrable, or to what it returns if it is a function; returns that.
function Deferrable.future(arg, cb, eb)
  if type(arg) == "function" then
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

local Default = Deferrable.include {}
Default.__index = Default

--- An object that is a deferrable and nothing else.
function Deferrable.new()
  return setmetatable({}, Default)
end

return Deferrable
