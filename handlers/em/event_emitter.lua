--- Objects that tell listeners of events: on, once, off, emit.
-- Listeners are called in the order in which they were added. One that raises does not stop the others; its error goes where a
-- callback's does. The list is replaced, never changed, when a listener comes or goes, so that an emit under way is not disturbed.

local callback = require "em.callback"
local core = require "em.core"

local EventEmitter = {}

-- object -> { event -> array of listeners }. Kept apart from the object: its fields are the script's own.
local all = setmetatable({}, { __mode = "k" })

--- The listeners of an event as a new array, with room for one more.
local function copy(list)
  return list and table.move(list, 1, #list, 1, {}) or {}
end

--- Raises, in the name of the caller's caller, unless these are an event's name and something that can be called.
local function check(method, event, listener)
  if type(event) ~= "string" then
    error(("bad argument #1 to '%s' (event name expected, got %s)"):format(method, type(event)), 3)
  end
  if not callback.is(listener) then
    error(("bad argument #2 to '%s' (function expected, got %s)"):format(method, type(listener)), 3)
  end
end

--- Lets go of an object that nobody listens to any more.
local function forget_if_idle(object, events)
  if next(events) == nil then
    all[object] = nil
    core.listening(object, false)
  end
end

--- Adds a listener; returns the object.
function EventEmitter:on(event, listener)
  check("on", event, listener)
  local events = all[self]
  if not events then
    events = {}
    all[self] = events
    core.listening(self)
  end
  local list = copy(events[event])
  list[#list + 1] = listener
  events[event] = list
  return self
end

--- Adds a listener that is called once at most.
function EventEmitter:once(event, listener)
  check("once", event, listener)
  local function wrapper(...)
    EventEmitter.off(self, event, wrapper)
    return listener(...)
  end
  all[wrapper] = listener -- off finds it by the function that was given
  return EventEmitter.on(self, event, wrapper)
end

--- Removes a listener, or all of an event's.
function EventEmitter:off(event, listener)
  local events = all[self]
  local list = events and events[event]
  if not list then
    return self
  end
  if listener == nil then
    events[event] = nil
    forget_if_idle(self, events)
    return self
  end
  for i = #list, 1, -1 do
    if list[i] == listener or all[list[i]] == listener then
      list = copy(list)
      table.remove(list, i)
      events[event] = #list > 0 and list or nil
      forget_if_idle(self, events)
      break
    end
  end
  return self
end

--- Calls the listeners of an event. True if there were any.
function EventEmitter:emit(event, ...)
  local events = all[self]
  local list = events and events[event]
  if not list then
    return false
  end
  for i = 1, #list do
    core.protect(self, event, list[i], ...)
  end
  return true
end

--- Has the event listeners?
function EventEmitter.listens(object, event)
  local events = all[object]
  return events ~= nil and events[event] ~= nil
end

--- Gives an object or class the four methods.
function EventEmitter.include(object)
  object.on = EventEmitter.on
  object.once = EventEmitter.once
  object.off = EventEmitter.off
  object.emit = EventEmitter.emit
  return object
end

return EventEmitter
