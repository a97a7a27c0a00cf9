--- Children whose output is wanted as a whole: em.system and em.DeferrableChildProcess, on top of em.popen.

local callback = require "em.callback"
local core = require "em.core"
local Deferrable = require "em.deferrable"

local MAX_OUTPUT = 64 * 1024 * 1024 -- bytes kept of one child's output, unless max_output says otherwise

-- A connection that gathers its child's output, in pieces: strings are not joined before the end.
local Collector = core.Connection:extend()

function Collector:initialize(max_output)
  self.pieces, self.size, self.max_output = {}, 0, max_output
end

function Collector:receive_data(data)
  local room = self.max_output - self.size
  if #data > room then
    data = data:sub(1, room)
    self.over = true
    self:close_connection()
  end
  self.size = self.size + #data
  self.pieces[#self.pieces + 1] = data
end

--- Everything that was gathered, and how the child ended: get_status()'s table, with error = "ELIMIT" where it was ended for saying too
-- much, else with the code of what broke the connection off, if anything did.
function Collector:unbind(err)
  local status = self:get_status() or {}
  status.error = self.over and "ELIMIT" or err
  local output = table.concat(self.pieces)
  self.pieces = {}
  self:finished(output, status)
end

--- Takes max_output out of a copy of the options; the rest is popen's.
local function split_options(options)
  local popen_options, max_output = {}, MAX_OUTPUT
  for name, value in pairs(options or {}) do
    if name == "max_output" then
      if math.type(value) ~= "integer" or value < 0 then
        error("max_output must be a number of bytes", 3)
      elseif value > 0 then
        max_output = value
      end
    else
      popen_options[name] = value
    end
  end
  popen_options.args = { max_output }
  return popen_options
end

local System = Collector:extend()

function System:finished(output, status)
  if self.callback then
    self.callback(output, status)
  end
end

--- em.system(command, ...[, options][, init][, fn]) -> pid: runs a command and calls fn(output, status) at its end. command is a line
-- to be split as popen does, a table of words, or a program whose arguments follow. init(conn) may feed its input and close_write() it;
-- without init there is none. options: popen's, and max_output in bytes (64 MiB): who says more is ended. A command that cannot be executed
-- returns nil, message, code, and fn is not called.
local function system(command, ...)
  local rest = table.pack(...)
  local init, fn
  if rest.n > 0 and callback.is(rest[rest.n]) then
    fn, rest.n = rest[rest.n], rest.n - 1
  elseif rest.n > 0 and rest[rest.n] == nil then
    rest.n = rest.n - 1
  end
  if rest.n > 0 and callback.is(rest[rest.n]) then
    init, rest.n = rest[rest.n], rest.n - 1
  end
  local options
  if rest.n > 0 and type(rest[rest.n]) == "table" then
    options, rest.n = rest[rest.n], rest.n - 1
  end
  if rest.n > 0 then
    if type(command) == "table" then
      error("bad argument #2 to 'system' (arguments follow a program's name, not a table)", 2)
    end
    command = { command, table.unpack(rest, 1, rest.n) }
  end
  local conn, message, code = core.popen(command, System, split_options(options))
  if not conn then
    return nil, message, code
  end
  conn.callback = fn
  if init then
    core.protect(conn, "init", init, conn)
  else
    conn:close_write()
  end
  return conn:get_pid()
end

local DeferrableChildProcess = Deferrable.include(Collector:extend())

function DeferrableChildProcess:finished(output, status)
  if status.error then
    self:fail(status.error == "ELIMIT" and "output limit" or status.error, status.error)
  else
    self:succeed(output, status)
  end
end

--- DeferrableChildProcess.open(command[, options]) -> a deferrable, also the child's connection, that succeeds with (output, status) when
-- the child has ended, whatever its status is. It fails with (message, code) where the command cannot be executed or says too much.
function DeferrableChildProcess.open(command, options)
  local child, message, code = core.popen(command, DeferrableChildProcess, split_options(options))
  if child then
    child:close_write()
    return child
  end
  local failed = Deferrable.new()
  failed:fail(message, code)
  return failed
end

return { system = system, DeferrableChildProcess = DeferrableChildProcess }
