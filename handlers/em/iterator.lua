--- Work on the items of a list, some at a time, each taking its time: EventMachine's Iterator.

local class = require "em.class"
local callback = require "em.callback"
local core = require "em.core"

local Iterator = {}

-- What a function that gives items returns at their end, as well as nil.
local Stop = setmetatable({}, { __name = "em.Iterator.Stop", __metatable = "em.Iterator.Stop" })

--- Calls `after` when the last item is done.
local function finish(self)
  if self.ended and self.pending == 0 and self.after then
    core.protect(self, "after", self.after)
  end
end

local work

-- What a function gets with its item.
local Item = {}
local item_object = class("em.Iterator's item", Item)

--- iter:next(): the item is done. Raises the second time.
function Item:next()
  local iterator = self.iterator
  if self.failed then
    return
  elseif self.done then
    error("already completed this iteration", 2)
  end
  self.done = true
  iterator.pending = iterator.pending - 1
  if iterator.ended then
    finish(iterator)
  else
    core.next_tick(function()
      work(iterator)
    end)
  end
end

--- A worker takes the next item, or ends: where there is none, or where there are more workers than there should be.
function work(self)
  if self.ended or self.workers > self.limit then
    self.workers = self.workers - 1
    return
  end
  local item = Stop -- a source that raises is at its end
  core.protect(self, "source", function()
    item = self.source()
  end)
  if item == nil or item == Stop then
    self.ended = true
    finish(self)
    return
  end
  self.pending = self.pending + 1
  local iter = item_object { iterator = self }
  if not core.protect(self, "foreach", self.foreach, item, iter) and not iter.done then
    iter:next() -- nobody else might
    iter.failed = true
  end
end

--- Starts workers, one a turn, until there are as many as there should be.
local function start_workers(self)
  core.next_tick(function()
    if self.workers < self.limit and not self.ended then
      self.workers = self.workers + 1
      work(self)
      start_workers(self)
    end
  end)
end

--- Begins.
local function begin(self, foreach, after)
  if self.foreach then
    error("cannot iterate over an iterator more than once", 3)
  end
  self.foreach, self.after = foreach, after
  start_workers(self)
  return self
end

--- iterator:each(foreach, after) -> iterator: calls foreach(item, iter) for each item; iter:next() says that it is done and lets another
-- one begin. after() is called when all are. An item whose function raises counts as done. Raises the second time.
function Iterator:each(foreach, after)
  callback.check(1, "each", foreach)
  if after ~= nil then
    callback.check(2, "each", after)
  end
  return begin(self, foreach, after)
end

-- What the functions of map and inject get with their items.
local Value = {}
local value_object = class("em.Iterator's value", Value)

--- iter:return_value(value): the item is done, with this result. Raises the second time.
function Value:return_value(value)
  if self.returned then
    error("already returned a value for this iteration", 2)
  end
  self.returned = true
  if not self.iter.failed then
    self.set(value)
    self.iter:next()
  end
end

--- Raises: the result is wanted.
function Value:next()
  error("must call return_value on a map or inject iterator", 2)
end

--- iterator:map(foreach, after) -> iterator: foreach(item, iter) ends with iter:return_value(value); after(results) gets the values in the
-- order of their items, and their number in results.n.
function Iterator:map(foreach, after)
  callback.check(1, "map", foreach)
  callback.check(2, "map", after)
  local results = { n = 0 }
  return begin(self, function(item, iter)
    local index = results.n + 1
    results.n = index
    foreach(item, value_object { iter = iter, set = function(value)
      results[index] = value
    end })
  end, function()
    after(results)
  end)
end

--- iterator:inject(value, foreach, after) -> iterator: foreach(value, item, iter) ends with iter:return_value(value), which the next one
-- gets; after(value) gets the last.
function Iterator:inject(value, foreach, after)
  callback.check(2, "inject", foreach)
  callback.check(3, "inject", after)
  return begin(self, function(item, iter)
    foreach(value, item, value_object { iter = iter, set = function(new)
      value = new
    end })
  end, function()
    after(value)
  end)
end

--- Raises, in the name of the caller's caller, unless it is a number of items.
local function check_limit(number, name, limit)
  if type(limit) ~= "number" or limit < 1 or limit ~= limit then
    error(("bad argument #%d to '%s' (concurrency must be at least 1)"):format(number, name), 3)
  end
end

--- iterator:concurrency([n]) -> how many items are worked on at a time; n changes it, also on the way.
function Iterator:concurrency(limit)
  if limit ~= nil then
    check_limit(1, "concurrency", limit)
    self.limit = limit
    if self.foreach then
      start_workers(self)
    end
  end
  return self.limit
end

--- A function that gives the items of a copy of a list.
local function items_of(list)
  local copy, i = table.move(list, 1, #list, 1, {}), 0
  return function()
    i = i + 1
    local item = copy[i]
    copy[i] = nil
    return item
  end
end

local object = class("em.Iterator", Iterator)

--- em.Iterator(list or function[, concurrency]): over a list, or what a function returns until that is nil or em.Iterator.Stop.
local function new(_, source, limit)
  local is_function = callback.is(source)
  if not is_function and type(source) ~= "table" then
    error(("bad argument #1 to 'Iterator' (list or function expected, got %s)"):format(type(source)), 2)
  end
  limit = limit == nil and 1 or limit
  check_limit(2, "Iterator", limit)
  return object { source = is_function and source or items_of(source), limit = limit, workers = 0, pending = 0 }
end

return setmetatable({}, {
  __call = new,
  __index = { Stop = Stop },
  __newindex = function()
    error("em.Iterator is shared by all handlers and cannot be changed", 2)
  end,
  __metatable = "em.Iterator",
})
