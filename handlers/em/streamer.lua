--- Files and Lua file handles on their way into connections: stream_file_data, FileStreamer, IOStreamer.
-- Each is a deferrable: it succeeds when all has been sent, and fails with a message and a code. Several on one connection go one after
-- the other, in the order in which they were asked for.

local core = require "em.core"
local Deferrable = require "em.deferrable"

local CHUNK <const> = 16384 -- bytes of one read and of one of HTTP's chunks, as EventMachine's

-- connection -> list of functions that start what waits for the handle that is being sent; no list: nothing is being sent.
local waiting = setmetatable({}, { __mode = "k" })

--- Begins now, or when what the connection is busy with has ended.
local function in_turn(conn, start)
  local list = waiting[conn]
  if list then
    list[#list + 1] = start
  else
    start()
  end
end

--- The next ones begin, up to and including a handle.
local function go_on(conn)
  local list = waiting[conn]
  waiting[conn] = nil
  for i, start in ipairs(list or {}) do
    if waiting[conn] then -- the one before has taken the connection
      waiting[conn] = table.move(list, i, #list, 1, {})
      return
    end
    start()
  end
end

--- What http_chunks of an options table says.
local function wants_chunks(options, name)
  if options == nil then
    return false
  end
  if type(options) ~= "table" then
    error(("bad argument #3 to '%s' (table expected, got %s)"):format(name, type(options)), 3)
  end
  for key in pairs(options) do
    if key ~= "http_chunks" then
      error(("bad argument #3 to '%s' (unknown option '%s')"):format(name, tostring(key)), 3)
    end
  end
  return options.http_chunks and true or false
end

--- Streams a file on a connection of the core's.
local function stream_file(conn, path, chunks)
  local job = Deferrable.new()
  in_turn(conn, function()
    local ok, message, code = core.stream_file(conn, path, chunks, function(why, symbol)
      if why then
        job:fail(why, symbol)
      else
        job:succeed()
      end
    end)
    if not ok then
      job:fail(message, code)
    end
  end)
  return job
end

--- conn:stream_file_data(path[, {http_chunks = false}]): a deferrable.
local function stream_file_data(conn, path, options)
  local chunks = wants_chunks(options, "stream_file_data")
  if type(path) ~= "string" then
    error(("bad argument #1 to 'stream_file_data' (string expected, got %s)"):format(type(path)), 2)
  end
  if not conn:get_idle_time() then -- as every method of a connection that has ended
    return nil, "closed", "ENOTCONN"
  end
  return stream_file(conn, path, chunks)
end

--- Sends what `file` (a Lua file handle, or anything with read) still has, a piece at a time, as fast as the peer takes it. What the
-- script sends meanwhile comes in between. The handle stays open and is the caller's.
local function IOStreamer(conn, file, options)
  local chunks = wants_chunks(options, "IOStreamer")
  if (type(file) ~= "userdata" and type(file) ~= "table") or not file.read then
    error(("bad argument #2 to 'IOStreamer' (file expected, got %s)"):format(type(file)), 2)
  end
  local job = Deferrable.new()
  local has_events = type(conn.on) == "function"
  local ended, go

  local function on_close(err, why)
    go(why or "closed", err or "ENOTCONN")
  end

  local function finish(message, code)
    if ended then
      return
    end
    ended = true
    if has_events then
      conn:off("drained", go)
      conn:off("close", on_close)
    end
    if message then
      job:fail(message, code)
    else
      job:succeed()
    end
    go_on(conn)
  end

  --- Reads and sends until the connection has enough; called again when it has room.
  function go(failure, failure_code)
    while not ended do
      if failure then
        return finish(failure, failure_code)
      end
      local ok, bytes, message = pcall(file.read, file, CHUNK)
      if not ok or not bytes and message then
        return finish(ok and message or bytes, "EIO")
      end
      local more, why, code
      if not bytes then
        if chunks then
          more, why, code = conn:send_data("0\r\n\r\n")
        end
        return finish(more == nil and why or nil, code)
      elseif chunks then
        more, why, code = conn:send_data(("%x\r\n"):format(#bytes), bytes, "\r\n")
      else
        more, why, code = conn:send_data(bytes)
      end
      if more == nil and why then
        return finish(why, code)
      elseif more == false then
        if not has_events then
          core.next_tick(go)
        end
        return
      end
    end
  end

  in_turn(conn, function()
    waiting[conn] = {}
    if has_events then
      conn:on("drained", go)
      conn:on("close", on_close)
    end
    go()
  end)
  return job
end

--- Streams a file on a connection; an object that only has send_data gets it by way of a handle.
local function FileStreamer(conn, path, options)
  if conn.stream_file_data then
    local job, message, code = conn:stream_file_data(path, options)
    if not job then
      job = Deferrable.new()
      job:fail(message, code)
    end
    return job
  end
  local file, message = io.open(path, "rb")
  if not file then
    local job = Deferrable.new()
    job:fail((message:gsub("^.*: ", "")), message:find("No such file") and "ENOENT" or "EIO")
    return job
  end
  local function close()
    file:close()
  end
  return IOStreamer(conn, file, options):callback(close):errback(close)
end

return function(em)
  em.Connection.stream_file_data = stream_file_data
  em.FileStreamer = FileStreamer
  em.IOStreamer = IOStreamer
end
