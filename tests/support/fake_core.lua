-- em.core without a daemon, for specs of what is pure Lua under handlers/em/. install() puts a fresh one in the place of "em.core" and
-- makes em's modules load anew; it returns the core, whose lists say what was asked of it:
--
--   core.errors     { object =, name =, message = } of each error that protect has caught
--   core.listened   objects that listening was called with
--   core.ticks      functions queued by next_tick; core.turn() calls those that are there
--   core.timers     { seconds =, fn =, cancelled = }; core.fire(seconds) lets time pass
--
-- core.is_loading = true says that handlers load. core.turns(n) makes up to n turns, as long as there is something to do.

local fake = {}

-- A core of its own.
local function new()
  local core = { errors = {}, listened = {}, ticks = {}, timers = {}, now = 0, Connection = {}, Server = {} }

  function core.protect(object, name, fn, ...)
    local ok, message = xpcall(fn, function(e) return e end, ...)
    if not ok then table.insert(core.errors, { object = object, name = name, message = message }) end
    return ok
  end

  function core.listening(object)
    table.insert(core.listened, object)
  end

  function core.next_tick(fn)
    table.insert(core.ticks, fn)
  end

  -- A turn: what is queued now; what is added meanwhile waits.
  function core.turn()
    local ticks = core.ticks
    core.ticks = {}
    for _, fn in ipairs(ticks) do core.protect(nil, "next_tick", fn) end
    return #ticks
  end

  function core.turns(most)
    for i = 1, most do
      if core.turn() == 0 then return i - 1 end
    end
    return most
  end

  function core.current_time()
    return core.now
  end

  function core.add_timer(seconds, fn)
    local timer = { due = core.now + seconds, seconds = seconds, fn = fn }
    function timer.cancel(self) self.cancelled = true end
    table.insert(core.timers, timer)
    return timer
  end

  -- Time passes; timers that are due fire in the order of their due times.
  function core.fire(seconds)
    core.now = core.now + seconds
    table.sort(core.timers, function(a, b) return a.due < b.due end)
    while core.timers[1] and core.timers[1].due <= core.now do
      local timer = table.remove(core.timers, 1)
      if not timer.cancelled then core.protect(nil, "timer", timer.fn) end
    end
  end

  function core.set_emit(emit)
    core.emit = emit
  end

  function core.set_reader(receive, over)
    core.receive, core.over = receive, over
  end

  function core.loading()
    return core.is_loading or false
  end

  function core.waitable()
    return false
  end

  return core
end

-- Makes a core the "em.core" of what is required from now on.
function fake.install()
  for name in pairs(package.loaded) do
    if name == "em" or name:find("^em%.") then package.loaded[name] = nil end
  end
  local core = new()
  package.loaded["em.core"] = core
  return core
end

-- Takes it all away again.
function fake.remove()
  for name in pairs(package.loaded) do
    if name == "em" or name:find("^em%.") then package.loaded[name] = nil end
  end
end

return fake
