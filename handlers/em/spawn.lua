--- Functions that are sent messages: EventMachine's spawned processes.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"

local Process = {}

local SUCCESSOR = {} -- the key under which what em.yield returns has its function

--- process:notify(...): calls the process's function with these arguments, after the code that runs now and after earlier ones.
function Process:notify(...)
  local args = table.pack(...)
  core.next_tick(function()
    local answer = self.body(table.unpack(args, 1, args.n))
    local successor = type(answer) == "table" and answer[SUCCESSOR]
    if successor then
      self.body = successor
      if answer.notify then
        self:notify()
      end
    end
  end)
end

Process.resume = Process.notify
Process.run = Process.notify

local object = class("em.spawn", Process)

local spawn = {}

--- em.spawn(fn) -> process: something whose notify, resume and run call fn, in order and never at once.
function spawn.spawn(fn)
  callback.check(1, "spawn", fn)
  return object { body = fn }
end

--- return em.yield(fn) in a process's function: fn takes its place from the next notify on.
function spawn.yield(fn)
  callback.check(1, "yield", fn)
  return { [SUCCESSOR] = fn }
end

--- return em.yield_and_notify(fn): the same, and notifies it.
function spawn.yield_and_notify(fn)
  callback.check(1, "yield_and_notify", fn)
  return { [SUCCESSOR] = fn, notify = true }
end

return spawn
