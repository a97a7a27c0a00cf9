--- A number of resources and any amount of work that needs one of them: EventMachine's Pool.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"
local Deferrable = require "em.deferrable"
local Queue = require "em.queue"

local Pool = {}

--- Takes every one that is this resource from the contents; how many there were.
local function forget(self, resource)
  local count = 0
  for i = #self.resources, 1, -1 do
    if self.resources[i] == resource then
      table.remove(self.resources, i)
      count = count + 1
    end
  end
  return count
end

--- The work that had the resource has failed.
local function failure(self, resource)
  if not self.handler then
    self.free:push(resource)
    return
  end
  forget(self, resource)
  core.protect(self, "on_error", self.handler, resource)
  self.gone[resource] = nil
end

--- Lets a function work with a resource.
local function process(self, work, resource)
  local job
  local ok = core.protect(self, "perform", function()
    job = work(resource)
    if not Deferrable.is(job) then
      error("perform's function must return a deferrable", 0)
    end
  end)
  if not ok then
    failure(self, resource)
    return
  end
  job:callback(function()
    self.free:push(resource)
  end)
  job:errback(function()
    failure(self, resource)
  end)
end

--- pool:add(resource): it is there to be used.
function Pool:add(resource)
  if resource == nil then
    error("bad argument #1 to 'add' (resource expected, got nil)", 2)
  end
  self.resources[#self.resources + 1] = resource
  self.free:push(resource)
end

--- pool:remove(resource): it is not given to any more work.
function Pool:remove(resource)
  local count = forget(self, resource)
  if count > 0 then
    self.gone[resource] = (self.gone[resource] or 0) + count
  end
end

--- pool:removed(resource): has it been removed, without the pool having let go of it?
function Pool:removed(resource)
  return self.gone[resource] ~= nil
end

--- The resources, in a list of its own.
function Pool:contents()
  return table.move(self.resources, 1, #self.resources, 1, {})
end

--- pool:on_error(fn): a resource whose work fails leaves the pool and goes to fn(resource), which may add it again, or another. Without
-- it such a resource is used on.
function Pool:on_error(fn)
  callback.check(1, "on_error", fn)
  self.handler = fn
end

--- pool:perform(fn): calls fn(resource) when one is free, first come, first served. It returns a deferrable; when that succeeds or fails
-- the resource is free again. Where fn raises, or returns something else, the error is reported and the work has failed.
function Pool:perform(fn)
  callback.check(1, "perform", fn)
  self.free:pop(function(resource)
    local count = self.gone[resource]
    if count then
      self.gone[resource] = count > 1 and count - 1 or nil
      self:perform(fn)
    else
      process(self, fn, resource)
    end
  end)
end

Pool.reschedule = Pool.perform

--- How much work waits for a resource?
function Pool:num_waiting()
  return self.free:num_waiting()
end

local object = class("em.Pool", Pool)

--- em.Pool(): an empty pool.
return function()
  return object { resources = {}, free = Queue(), gone = {} }
end
