-- Bytes for specs that check what has come through: they look random, are the same in every run, and repeat after a prime number of them,
-- so that nothing shifted looks right. pattern(length) are the first of them.

local period = 65521

local once
do
  local bytes, x = {}, 2463534242
  for i = 1, period do
    x = x ~ (x << 13) & 0xffffffff
    x = x ~ (x >> 17)
    x = x ~ (x << 5) & 0xffffffff
    bytes[i] = string.char(x >> 8 & 0xff)
  end
  once = table.concat(bytes)
end

return setmetatable({ period = period }, {
  __call = function(_, length) return once:rep(length // period + 1):sub(1, length) end,
})
