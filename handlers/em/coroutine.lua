--- Straight-line code on the loop: em.go, em.await, em.sleep, and reading from connections in it.
-- The core runs the coroutines and wakes them; what they wait for, and the bytes that they read, are kept here.

local core = require "em.core"
local Deferrable = require "em.deferrable"
local EventEmitter = require "em.event_emitter"

local ROOM = 64 * 1024 -- bytes that wait while nobody reads; the connection is held above that
local MAX_LINE = 1024 * 1024 -- bytes of a line
local MAX_ALL = 16 * 1024 * 1024 -- bytes of read_all

--- The function of a coroutine; state.deferrable gets what it returns.
local function body(state, fn, ...)
  local results = table.pack(fn(...))
  state.ended = true
  state.deferrable:succeed(table.unpack(results, 1, results.n))
end

--- It has failed or was ended.
local function failed(state, message)
  if not state.ended then
    state.ended = true
    state.deferrable:fail(message)
  end
end

--- Runs fn(...) in a coroutine, at once up to where it first waits. A deferrable of its results.
local function go(fn, ...)
  local meta = getmetatable(fn)
  if type(fn) ~= "function" and not (type(meta) == "table" and meta.__call) then
    error(("bad argument #1 to 'go' (function expected, got %s)"):format(type(fn)), 2)
  end
  local deferrable = Deferrable.new()
  core.go(body, failed, { deferrable = deferrable }, fn, ...)
  return deferrable
end

--- Waits for a deferrable: its values, or nil and those of its failure.
local function await(deferrable)
  if not Deferrable.is(deferrable) then
    error(("bad argument #1 to 'await' (deferrable expected, got %s)"):format(type(deferrable)), 2)
  end
  local task, results = core.current("em.await"), nil
  local function settle(...)
    if not results then
      results = table.pack(...)
      core.wake(task)
    end
  end
  local function succeeded(...)
    settle(...)
  end
  local function fail(...)
    settle(nil, ...)
  end
  deferrable:callback(succeeded)
  deferrable:errback(fail)
  if not results then
    local _ <close> = setmetatable({}, { -- a coroutine that is ended leaves nothing behind
      __close = function()
        if not results and deferrable.cancel_callback and deferrable.cancel_errback then
          deferrable:cancel_callback(succeeded)
          deferrable:cancel_errback(fail)
        end
      end,
    })
    repeat
      core.suspend()
    until results
  end
  return table.unpack(results, 1, results.n)
end

-- connection -> what has come and was not read. head from `at` on, then the texts of tail; size: bytes of both; eof: no more come;
-- over: the connection has ended; why, code: of that; held: it does not read for want of room; task: who waits, for `need` bytes, or
-- for a line.
local buffers = setmetatable({}, { __mode = "k" })

--- The bytes of a connection.
local function buffer_of(conn)
  local b = buffers[conn]
  if not b then
    b = { head = "", at = 1, tail = {}, size = 0 }
    buffers[conn] = b
  end
  return b
end

--- The same where the connection lives: what is left of one that was there before a reconnect goes.
local function live_buffer_of(conn)
  local b = buffers[conn]
  if b and b.over then
    buffers[conn] = nil
  end
  return buffer_of(conn)
end

--- Has who waits go on.
local function wake(b)
  local task = b.task
  b.task = nil
  if task then
    core.wake(task)
  end
end

--- Bytes for a connection whose handler has no receive_data. Until somebody reads, listeners of "data" may be meant.
local function receive(conn, data)
  local b = buffers[conn]
  if (not b or b.over) and EventEmitter.listens(conn, "data") then
    return
  end
  b = live_buffer_of(conn)
  b.tail[#b.tail + 1] = data
  b.size = b.size + #data
  if b.task and core.waits(b.task) then
    if b.size >= b.need or (b.line and data:find("\n", 1, true)) then
      wake(b)
    end
  elseif b.size > ROOM and not b.held then
    b.held = true
    core.hold(conn, true)
  end
end

--- No more bytes come: for good, or from the peer.
local function over(conn, for_good, code, why)
  local b = buffer_of(conn)
  b.eof = true
  if for_good then
    b.over = true
  end
  if code or not b.why then
    b.why, b.code = why, code
  end
  wake(b)
end

core.set_reader(receive, over)

--- Makes one text of all that is there.
local function join(b)
  if #b.tail > 0 then
    b.head = b.head:sub(b.at) .. table.concat(b.tail)
    b.at, b.tail = 1, {}
  end
end

--- Takes n bytes, which are there.
local function take(conn, b, n)
  if #b.head - b.at + 1 < n then
    join(b)
  end
  local data = b.head:sub(b.at, b.at + n - 1)
  b.at = b.at + n
  b.size = b.size - n
  if b.at > #b.head then
    b.head, b.at = "", 1
  end
  if b.held and b.size <= ROOM / 2 then
    b.held = nil
    core.hold(conn, false)
  end
  return data
end

--- The last byte that has come, of one or more.
local function last_byte(b)
  return (b.tail[#b.tail] or b.head):byte(-1)
end

--- Where the next newline is in head, nil: there is none in all that is there.
local function find_line(b)
  local at = b.head:find("\n", b.at, true)
  if not at and #b.tail > 0 then
    join(b)
    at = b.head:find("\n", b.at, true)
  end
  return at
end

--- The bytes of a connection, for one of the three methods called `name`.
local function begin(conn, name)
  core.current(name)
  local alive = core.reads(conn)
  if conn.receive_data ~= nil then
    error(name .. " and a receive_data do not go together: the bytes are the callback's", 3)
  end
  local b = alive and live_buffer_of(conn) or buffer_of(conn)
  if not alive and not b.over then
    b.eof, b.over, b.why, b.code = true, true, "closed", "ENOTCONN"
  end
  if b.task and core.waits(b.task) then
    error("another coroutine reads from this connection", 3)
  end
  return b
end

--- Waits for that many bytes, for a line if line is set, or for the end.
local function wait(conn, b, name, need, line)
  b.task, b.need, b.line = core.current(name), need, line
  if b.held then
    b.held = nil
    core.hold(conn, false)
  end
  core.suspend()
end

--- n bytes; at the end of the stream what is left, then nil, why[, code].
local function read(conn, n)
  if math.type(n) ~= "integer" and not (type(n) == "number" and math.tointeger(n)) then
    error(("bad argument #1 to 'read' (whole number expected, got %s)"):format(math.type(n) or type(n)), 2)
  elseif n < 0 then
    error("bad argument #1 to 'read' (must not be negative)", 2)
  end
  local b = begin(conn, "read")
  while b.size < n and not b.eof do
    wait(conn, b, "read", n)
  end
  if b.size == 0 and n > 0 then
    return nil, b.why, b.code
  end
  return take(conn, b, math.min(math.tointeger(n), b.size))
end

--- Checks a limit.
local function limit(name, max, default)
  if max == nil then
    return default
  elseif type(max) ~= "number" or not math.tointeger(max) or max < 0 then
    error(("bad argument #1 to '%s' (whole number from 0 on expected)"):format(name), 3)
  end
  return math.tointeger(max)
end

--- The next line without its end; at the end of the stream what is left, then nil, why[, code]. A longer one than max bytes stays where
-- it is: nil, message, "ELIMIT".
local function read_line(conn, max)
  max = limit("read_line", max, MAX_LINE)
  local b = begin(conn, "read_line")
  local at = find_line(b)
  while not at and not b.eof and (b.size <= max or (b.size == max + 1 and last_byte(b) == 13)) do
    wait(conn, b, "read_line", b.size <= max and max + 1 or max + 2, true)
    at = find_line(b)
  end
  local length = at and at - b.at or b.size
  if at and length > 0 and b.head:byte(at - 1) == 13 then
    length = length - 1
  end
  if length > max then
    return nil, ("a line of more than %d bytes"):format(max), "ELIMIT"
  elseif not at and b.size == 0 then
    return nil, b.why, b.code
  end
  local whole = at and at - b.at + 1 or length
  return (take(conn, b, whole):sub(1, length))
end

--- All up to the end of the stream. Above max bytes nil, message, "ELIMIT"; what has come by then stays where it is.
local function read_all(conn, max)
  max = limit("read_all", max, MAX_ALL)
  local b = begin(conn, "read_all")
  while not b.eof and b.size <= max do
    wait(conn, b, "read_all", max + 1)
  end
  if b.size > max then
    return nil, ("more than %d bytes"):format(max), "ELIMIT"
  elseif b.size == 0 and b.why ~= "eof" then
    return nil, b.why, b.code
  end
  return take(conn, b, b.size)
end

--- Gives em and connections the functions.
return function(em)
  em.go, em.await, em.sleep = go, await, core.sleep
  em.Connection.read, em.Connection.read_line, em.Connection.read_all = read, read_line, read_all
end
