--- Knobs of EventMachine's that have nothing to turn here: each remembers what it was set to and returns it.

local knobs = {
  heartbeat_interval = 2,
  quantum = 90,
  epoll = true,
  kqueue = false,
  max_timers = 100000,
}

--- A function that sets with an argument and gets without.
local function knob(name)
  return function(value)
    if value ~= nil then
      knobs[name] = value
    end
    return knobs[name]
  end
end

return function(em)
  em.heartbeat_interval = knob "heartbeat_interval"
  em.set_quantum = knob "quantum"
  em.epoll = knob "epoll"
  em.kqueue = knob "kqueue"
  em.set_max_timers = knob "max_timers"
  em.get_max_timers = knob "max_timers"
end
