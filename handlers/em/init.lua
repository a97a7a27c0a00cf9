--- The module em: EventMachine's functions for handlers and scripts.
-- What touches the loop is C and comes from em.core; what is only Lua stands beside this file, one object a file.

local core = require "em.core"
local EventEmitter = require "em.event_emitter"

local em = {}

-- Functions of the core that scripts see under the same name.
for _, name in ipairs {
  "Connection", "PeriodicTimer", "Timer", "VERSION", "add_periodic_timer", "add_shutdown_hook", "add_timer", "attach",
  "attach_server", "bind_connect", "cancel_timer", "channel", "connect", "connect_unix_domain", "connection_count", "current_time",
  "disable_proxy", "enable_proxy", "error_handler", "get_timer_count", "listen", "log", "next_tick", "on_signal",
  "open_datagram_socket", "open_keyboard", "popen", "process", "reactor_running", "reconnect", "set_descriptor_table_size",
  "set_effective_user", "shared", "ssl", "start_server", "start_unix_domain_server", "stop", "stop_event_loop", "stop_server", "stopping",
  "uuid", "watch", "watch_file", "watch_process",
} do
  em[name] = core[name]
end

em.EventEmitter = EventEmitter
em.Deferrable = require "em.deferrable"
em.dns = require "em.dns"
em.DefaultDeferrable = em.Deferrable.new

--- Makes a class that inherits from self: em.Connection:extend(), Base:extend { members }.
function em.Connection:extend(members)
  local class = members or {}
  class.__index = class
  return setmetatable(class, { __index = self })
end

local child = require "em.child"
em.system = child.system
em.DeferrableChildProcess = child.DeferrableChildProcess

-- on, once, off and emit on connections and servers.
EventEmitter.include(em.Connection)
EventEmitter.include(core.Server)

core.set_emit(EventEmitter.emit)

require "em.streamer" (em)
require "em.coroutine" (em)

-- Bases of file and process watches, as EventMachine has them.
em.FileWatch = em.Connection:extend()
em.ProcessWatch = em.Connection:extend()

--- Raises, in the name of em's own caller, unless fn can be called.
local function want_function(number, name, fn)
  local meta = getmetatable(fn)
  if type(fn) ~= "function" and not (type(meta) == "table" and meta.__call) then
    error(("bad argument #%d to '%s' (function expected, got %s)"):format(number, name, type(fn)), 3)
  end
end

--- Runs fn now if the loop runs, else with the loop's first turn.
function em.schedule(fn)
  want_function(1, "schedule", fn)
  if core.loading() then
    core.next_tick(fn)
  else
    fn()
  end
end

--- Calls fn, suspends the script's body until em.stop, then calls tail. Inside a callback it calls fn and returns; while a handler's
-- file loads fn waits until the handler serves. Without fn it only waits.
function em.run(fn, tail)
  if fn ~= nil then
    want_function(1, "run", fn)
  end
  if tail ~= nil then
    want_function(2, "run", tail)
  end
  if core.loading() then
    if fn then
      core.next_tick(fn)
    end
    return
  end
  if not core.waitable() then
    if fn then
      fn()
    end
    return
  end
  core.set_run(true)
  local _ <close> = setmetatable({}, {
    __close = function()
      core.set_run(false)
    end,
  })
  if fn then
    fn()
  end
  core.wait_stop()
  core.set_run(false)
  if tail then
    tail()
  end
end

--- Runs the loop for one call of fn.
function em.run_block(fn)
  want_function(1, "run_block", fn)
  em.run(function()
    fn()
    em.stop()
  end)
end

--- "libevent".
function em.library_type()
  return "libevent"
end

require "em.compat" (em)

return em
