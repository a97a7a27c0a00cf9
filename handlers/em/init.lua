--- The module em: EventMachine's functions for handlers and scripts.
-- What touches the loop is C and comes from em.core; what is only Lua stands beside this file, one object a file.

local callback = require "em.callback"
local core = require "em.core"
local EventEmitter = require "em.event_emitter"
local turn = require "em.turn"

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
em.DefaultDeferrable = em.Deferrable.new
em.BufferedTokenizer = require "em.tokenizer"
em.Callback = callback.Callback
em.Channel = require "em.channel"
em.Completion = require "em.completion"
em.Iterator = require "em.iterator"
em.Pool = require "em.pool"
em.Queue = require "em.queue"
em.TickLoop = require "em.tick_loop"
em.dns = require "em.dns"

local spawn = require "em.spawn"
em.spawn = spawn.spawn
em.yield = spawn.yield
em.yield_and_notify = spawn.yield_and_notify

--- em.TickLoop(fn), started.
function em.tick_loop(fn)
  callback.check(1, "tick_loop", fn)
  return em.TickLoop(fn):start()
end

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

--- Runs fn now if the loop runs, else with the loop's first turn.
function em.schedule(fn)
  callback.check(1, "schedule", fn)
  turn.schedule(fn)
end

--- Calls fn, suspends the script's body until em.stop, then calls tail. Inside a callback it calls fn and returns; while a handler's
-- file loads fn waits until the handler serves. Without fn it only waits.
function em.run(fn, tail)
  if fn ~= nil then
    callback.check(1, "run", fn)
  end
  if tail ~= nil then
    callback.check(2, "run", tail)
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
  callback.check(1, "run_block", fn)
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
