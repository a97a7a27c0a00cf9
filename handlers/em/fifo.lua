--- A list that grows at one end and shrinks at the other, both at once, for any number of values, nil among them.
-- It is a chain of blocks, so that neither a long list is moved when one value goes, nor kept when most of its values have gone.

local BLOCK <const> = 256 -- values

local Fifo = {}
Fifo.__index = Fifo

--- An empty list; its `size` may be read.
local function new()
  local block = {}
  return setmetatable({ size = 0, head = block, first = 1, tail = block, last = 0 }, Fifo)
end

--- Adds a value at the end.
function Fifo:push(value)
  if self.last == BLOCK then
    local block = {}
    self.tail.next = block
    self.tail, self.last = block, 0
  end
  self.last = self.last + 1
  self.tail[self.last] = value
  self.size = self.size + 1
end

--- Takes the first value; nil where there is none.
function Fifo:shift()
  if self.size == 0 then
    return nil
  end
  local block, i = self.head, self.first
  local value = block[i]
  block[i] = nil
  self.size = self.size - 1
  if self.size == 0 then
    self.head, self.first, self.last = self.tail, 1, 0
  elseif i == BLOCK then
    self.head, self.first = block.next, 1
  else
    self.first = i + 1
  end
  return value
end

--- Removes a value wherever it is in the list.
function Fifo:remove(value)
  for _ = 1, self.size do
    local other = self:shift()
    if other ~= value then
      self:push(other)
    end
  end
end

return new
