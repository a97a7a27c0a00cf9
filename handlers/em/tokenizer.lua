--- Bytes that come in pieces, cut into tokens at a delimiter: EventMachine's BufferedTokenizer.
-- What has no delimiter yet is kept in pieces and not looked at again, but for the last bytes, with which one may begin.

local class = require "em.class"

local BufferedTokenizer = {}

--- Lets go of everything.
local function clear(self)
  self.pieces, self.count, self.size, self.tail = {}, 0, 0, ""
end

--- Keeps a piece of a token.
local function keep(self, piece)
  if piece ~= "" then
    self.count = self.count + 1
    self.pieces[self.count] = piece
    self.size = self.size + #piece
  end
end

--- What extract says once a token is too long.
local function overlong(self, tokens)
  clear(self)
  self.failed = true
  return nil, ("token longer than %d bytes"):format(self.limit), "ELIMIT", tokens
end

--- tokenizer:extract(data) -> array of the tokens that are complete now, without their delimiters. Where one is longer than the limit
-- it returns nil, message, "ELIMIT", and an array of those before it; and so from then on, with none, until flush.
function BufferedTokenizer:extract(data)
  if type(data) ~= "string" then
    error(("bad argument #1 to 'extract' (string expected, got %s)"):format(type(data)), 2)
  end
  local tokens = {}
  if self.failed then
    return overlong(self, tokens)
  end
  local delimiter, limit = self.delimiter, self.limit
  local from = 1
  data = self.tail .. data
  local first, last = data:find(delimiter, 1, true)
  while first do
    if self.size + first - from > limit then
      return overlong(self, tokens)
    end
    local token = data:sub(from, first - 1)
    if self.count > 0 then
      keep(self, token)
      token = table.concat(self.pieces, "", 1, self.count)
      clear(self)
    end
    tokens[#tokens + 1] = token
    from = last + 1
    first, last = data:find(delimiter, from, true)
  end
  local tail = math.min(#delimiter - 1, #data - from + 1)
  keep(self, data:sub(from, #data - tail))
  self.tail = data:sub(#data - tail + 1)
  if self.size > limit then -- what is in the tail may be a delimiter's
    return overlong(self, tokens)
  end
  return tokens
end

--- tokenizer:flush() -> what has no delimiter yet; it begins anew.
function BufferedTokenizer:flush()
  keep(self, self.tail)
  local rest = table.concat(self.pieces, "", 1, self.count)
  clear(self)
  self.failed = false
  return rest
end

--- Is there nothing without a delimiter?
function BufferedTokenizer:empty()
  return self.size == 0 and self.tail == ""
end

local object = class("em.BufferedTokenizer", BufferedTokenizer)

--- em.BufferedTokenizer([delimiter[, limit]]): cuts at a string of any length, "\n" if not given; a token of more than `limit` bytes, its
-- delimiter not counted, is an error.
return function(delimiter, limit)
  delimiter = delimiter == nil and "\n" or delimiter
  if type(delimiter) ~= "string" or delimiter == "" then
    error("bad argument #1 to 'BufferedTokenizer' (delimiter expected, got "
      .. (delimiter == "" and "an empty string" or type(delimiter)) .. ")", 2)
  end
  if limit ~= nil and (math.type(limit) ~= "integer" or limit < 0) then
    error("bad argument #2 to 'BufferedTokenizer' (limit must be a number of bytes)", 2)
  end
  local self = object { delimiter = delimiter, limit = limit or math.huge, failed = false }
  clear(self)
  return self
end
