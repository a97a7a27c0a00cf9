--- Items that go to every subscriber, within one process and generation: EventMachine's Channel. em.channel(name) goes further.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local fifo = require "em.fifo"
local turn = require "em.turn"

local Channel = {}

--- Hands one item to all who are subscribed; those who come meanwhile hear from the next one on.
local function deliver(self)
  if self.items.size == 0 then
    return false
  end
  local item, list = self.items:shift(), self.list
  for i = 1, #list do
    local fn = list[i].fn
    if fn then
      core.protect(self, "subscribe", fn, item)
    end
  end
  return true
end

--- channel:subscribe(fn) -> id: calls fn(item) for each item that is pushed from now on.
function Channel:subscribe(fn)
  callback.check(1, "subscribe", fn)
  self.last_id = self.last_id + 1
  local id = self.last_id
  turn.schedule(function()
    local entry = { fn = fn }
    self.entries[id] = entry
    self.list[#self.list + 1] = entry
    self.count = self.count + 1
  end)
  return id
end

--- channel:unsubscribe(id): fn gets nothing any more, not even what is being delivered. What is nobody's id is ignored.
function Channel:unsubscribe(id)
  if math.type(id) ~= "integer" then
    error(("bad argument #1 to 'unsubscribe' (id expected, got %s)"):format(type(id)), 2)
  end
  turn.schedule(function()
    local entry = self.entries[id]
    if not entry then
      return
    end
    self.entries[id], entry.fn = nil, nil
    self.count = self.count - 1
    if self.count <= #self.list // 2 then -- a list of its own for those who are left: a delivery may be on its way through the other
      local left = {}
      for _, other in ipairs(self.list) do
        if other.fn then
          left[#left + 1] = other
        end
      end
      self.list = left
    end
  end)
end

--- channel:push(...): hands each item to all subscribers, in their order. What a subscriber pushes comes after the items that are there.
function Channel:push(...)
  local items = table.pack(...)
  turn.schedule(function()
    for i = 1, items.n do
      self.items:push(items[i])
    end
    turn.pump(self, deliver)
  end)
end

--- channel:pop(fn) -> id: calls fn with the next item only.
function Channel:pop(fn)
  callback.check(1, "pop", fn)
  local id
  id = self:subscribe(function(item)
    self:unsubscribe(id)
    fn(item)
  end)
  return id
end

--- How many are subscribed?
function Channel:num_subscribers()
  return self.count
end

local object = class("em.Channel", Channel)

--- em.Channel(): a channel without subscribers. What is done with it while handlers load takes effect when the loop runs.
return function()
  return object { items = fifo(), entries = {}, list = {}, count = 0, last_id = 0 }
end
