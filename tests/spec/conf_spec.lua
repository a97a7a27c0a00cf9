-- The shipped configuration names every option with its default, and all files in conf/ are good.
local json = require "dkjson"
local lfs = require "lfs"
local t = require "tests.support.harness"

local scopes = { "listen", "connect" }

local function text_of(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

-- What `check` makes of a configuration.
local function dump(text)
  local result = t.reactord { "check", "--dump=json", "-c", t.write("dump.conf", text) }
  assert.equal("", result.err)
  assert.equal(0, result.status)
  return json.decode(result.out, 1, json.null)
end

-- The options' names of an object in the dump, without those that tell where it stands.
local function names(object, ...)
  local found, others = {}, {}
  for _, name in ipairs { ... } do others[name] = true end
  for name in pairs(object) do
    if not others[name] then table.insert(found, name) end
  end
  table.sort(found)
  return found
end

local minimal = [[
handlers = {}
listen "tcp://127.0.0.1:8085" { handler = "echo" }
connect "tcp://127.0.0.1:22" { handler = "banner" }
listen "tls://127.0.0.1:8443" { handler = "echo", tls = { self_signed = true } }
connect "tls://127.0.0.1:8443" { handler = "banner" }
]]

-- conf/reactord.conf with everything that it has in comments, and without what it sets. Also the options that were in comments by
-- scope, each with the help above it.
local function uncommented()
  local lines, options = {}, { top = {}, log = {}, listen = {}, connect = {}, tls = {} }
  local scope, help = "top", nil
  for line in text_of("conf/reactord.conf"):gmatch("([^\n]*)\n") do
    local content = line:match("^%-%- ?(.*)$")
    local opened = content and (content:match("^local (%l+) = {$") or content:match("^(%l+).*{$"))
    local option = content and content:match("^\t?([%l_]+) = [^\n]*[^{]$")
    if opened and options[opened] then
      scope = opened
      table.insert(lines, content)
    elseif content == "}" then
      scope = "top"
      table.insert(lines, content)
    elseif content and content:find('^%l+ "tls://[^"]*" {.*}$') then
      table.insert(lines, content)
    elseif option then
      options[scope][option] = help or ""
      table.insert(options[scope], option)
      if option == "handler" then content = ('handler = "%s",'):format(scope == "listen" and "echo" or "banner") end
      table.insert(lines, content)
    end
    help = content and content:match("^\t?%-?%-? ?(%u.*)%.$")
  end
  return table.concat(lines, "\n") .. "\n", options
end

describe("the shipped configuration", function()
  t.auto()

  it("has every option, each with its default", function()
    local expected = dump(minimal)
    local text, options = uncommented()
    local wanted = {
      top = names(expected, "file", "log", "listen", "connect"),
      log = names(expected.log),
      listen = names(expected.listen[1], "url", "file", "line"),
      connect = names(expected.connect[1], "url", "file", "line"),
      tls = names(expected.connect[2].tls),
    }
    for scope, list in pairs(wanted) do
      local found = { table.unpack(options[scope]) }
      table.sort(found)
      assert.same(list, found, "options of " .. scope)
      for _, name in ipairs(list) do assert.is_truthy(#options[scope][name] > 10, "no line about " .. name) end
    end
    local got = dump(text)
    for _, scope in ipairs(scopes) do
      assert.equal(2, #got[scope])
      for i = 1, 2 do
        got[scope][i].line, expected[scope][i].line = 0, 0
      end
    end
    assert.same(expected, got)
  end)

  it("says of each option what the program says", function()
    local _, options = uncommented()
    local schema = text_of("daemon/config_schema.c")
    local known = {}
    for help in schema:gmatch('%.help = "(.-[^\\])"') do known[help:gsub('\\"', '"') .. ""] = true end
    for _, scope in pairs(options) do
      for _, name in ipairs(scope) do assert.is_true(known[scope[name]], name .. ": " .. scope[name]) end
    end
  end)

  it("serves the handlers that `make run` promises", function()
    local result = t.reactord { "check", "--dump=json", "-c", "conf/reactord.conf" }
    local served = {}
    for _, block in ipairs(json.decode(result.out).listen) do served[block.url] = block.handler end
    local run = text_of("Makefile"):match("\nrun:.-\n\n")
    local count = 0
    for port, handler in run:gmatch("nc 127%.0%.0%.1 (%d+)   ([%l_]+):") do
      count = count + 1
      assert.equal(handler, served["tcp://127.0.0.1:" .. port])
    end
    assert.equal(4, count)
  end)

  for name in lfs.dir("conf") do
    if name:find("%.conf$") then
      it("is good: " .. name, function()
        -- Users of examples need not exist here: the one who tests will do.
        local user, group = t.run({ "id", "-u" }).out:match("%d+"), t.run({ "id", "-g" }).out:match("%d+")
        local arguments = { "-t", "-c", "conf/" .. name }
        if text_of("conf/" .. name):find("\nuser ") then
          for _, override in ipairs { "user=" .. user, "group=" .. group } do
            table.insert(arguments, "-s")
            table.insert(arguments, override)
          end
        end
        local result = t.reactord(arguments)
        assert.equal("", result.err)
        assert.equal(0, result.status)
      end)
    end
  end
end)
