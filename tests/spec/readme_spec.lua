-- The README may not drift from the program: what there is stands in it, what stands in it is there, and its examples run.
local json = require "dkjson"
local lfs = require "lfs"
local pki = require "tests.support.pki"
local t = require "tests.support.harness"
local tls = require "tests.support.tls"

local function text_of(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

local readme = text_of("README.md")

-- The text from a heading to the next one of the same depth or higher.
local function section(heading)
  local depth = heading:match("^#+")
  local from, to = readme:find("\n" .. heading .. "\n", 1, true)
  assert(from, "the README has no '" .. heading .. "'")
  local rest, text = readme:sub(to + 1), nil
  for level = #depth, 1, -1 do
    local stop = rest:find("\n" .. ("#"):rep(level) .. " ", 1, true)
    if stop then rest = rest:sub(1, stop) end
    text = rest
  end
  return text
end

-- Names in the first column of the tables of a text, with what follows in the row.
local function rows(text)
  local found = {}
  for first, rest in text:gmatch("\n| (`[^\n]-) | ([^\n]*) |%f[\n]") do
    for name in first:gmatch("`([^`]+)`") do found[name] = rest end
  end
  return found
end

-- Code blocks of that language.
local function blocks(language, text)
  local found = {}
  for block in text:gmatch("\n```" .. language .. "\n(.-)```") do table.insert(found, block) end
  return found
end

describe("the README", function()
  t.auto()

  it("has every option with its default, and no other", function()
    local config = 'handlers = {}\nlisten "tcp://127.0.0.1:1" { handler = "echo" }\nconnect "tcp://127.0.0.1:1" { handler = "echo" }\n'
      .. 'connect "tls://127.0.0.1:1" { handler = "echo" }\n'
    local result = t.reactord { "check", "--dump=json", "-c", t.write("minimal.conf", config) }
    local dump = json.decode(result.out, 1, json.null)
    local listen, connect, both = rows(section "### listen"), rows(section "### connect"), rows(section "### listen and connect")
    local top, secure = rows(section "### Top level"), rows(section "### TLS options")
    local function check(object, ...)
      for name in pairs(object) do
        local found
        for _, scope in ipairs { ... } do found = found or scope[name] end
        assert.is_string(found, "no option " .. name)
      end
    end
    for _, name in ipairs { "url", "file", "line" } do dump.listen[1][name], dump.connect[1][name] = nil, nil end
    check(dump.listen[1], listen, both)
    check(dump.connect[1], connect, both)
    check(dump.log, top)
    check(dump.connect[2].tls, secure)
    local known = {}
    for _, object in ipairs { dump.listen[1], dump.connect[1], dump.connect[2].tls, dump.log, dump } do
      for name in pairs(object) do known[name] = true end
    end
    dump.file, dump.listen, dump.connect, dump.log = nil, nil, nil, nil
    check(dump, top)
    -- The other way round; conf/reactord.conf, which is checked against the program, has the defaults and the words.
    local conf = text_of("conf/reactord.conf")
    for _, scope in ipairs { top, listen, connect, both, secure } do
      for name, row in pairs(scope) do
        assert.is_true(known[name], "there is no option " .. name)
        local default, help = row:match("^(.-)%s*| (.*)$")
        default, help = default:match("^`(.*)`$") or "nil", help:gsub(" %(%*restart%*%)$", "")
        local line = help .. ".\n-- \t" .. name .. " = " .. default .. ","
        if not conf:find(line, 1, true) then line = help .. ".\n-- " .. name .. " = " .. default .. "\n" end
        assert.is_truthy(conf:find(line, 1, true), name .. ": conf/reactord.conf says something else")
      end
    end
  end)

  it("says which options a reload may not change", function()
    for name, row in pairs(rows(section "### Top level")) do
      local definition = text_of("daemon/config_schema.c"):match('\n\t{"' .. name .. '",.-},\n')
      assert.equal(definition:find(".reloadable = true", 1, true) == nil, row:find("(*restart*)", 1, true) ~= nil, name)
    end
  end)

  it("has every counter", function()
    local counters, count = rows(section "## Logs and counters"), 0
    for name, help in text_of("include/stats.h"):gmatch('X%(([%l_]+), [%l_]+, "([^"]*)"%)') do
      count = count + 1
      assert.equal(help, counters[name], name)
    end
    assert.is_true(count > 10)
  end)

  it("has every command of the control socket, and no other", function()
    local commands, count = rows(section "## Control"), 0
    for name, argument, help in text_of("include/command.h"):gmatch('X%("([%l-]+)", "?([%u]+)"?, "([^"]*)"%)') do
      count = count + 1
      if argument ~= "NULL" then name = name .. " " .. argument end
      assert.equal(help, commands[name], name)
      commands[name] = nil
    end
    assert.is_true(count > 10)
    for name in pairs(commands) do assert.is_nil(name:match("^%l"), name .. " is no command") end
  end)

  it("has every function, method and callback, and no other", function()
    local result = t.script([[
      local em = require "em"
      for name in pairs(em) do print("em", name) end
      for name in pairs(em.log) do print("em", "log." .. name) end
      for name in pairs(em.Connection) do print("method", name) end
    ]])
    local there = { em = {}, method = { signature = true } }
    for kind, name in result.out:gmatch("(%l+)\t([^\n]+)\n") do
      there[kind][name] = true
      if kind == "em" then assert.is_truthy(readme:find("%f[%w_]em%." .. name .. "%f[^%w_]"), "no em." .. name) end
    end
    local methods = {}
    for code in section("### Methods"):gmatch("\n| (`[^\n]-) |") do
      for name in code:gmatch("`([%l_]+)%(") do methods[name] = true end
      for name in code:gmatch("[` ]([%l_]+)%(") do assert.is_true(there.method[name], "there is no method " .. name) end
    end
    for name in pairs(there.method) do
      assert.is_true(methods[name] or name:find("^__") ~= nil or name == "signature", "no method " .. name)
    end
    for name in readme:gmatch("%f[%w_]em%.([%a_]+)") do assert.is_true(there.em[name], "there is no em." .. name) end
    local callbacks = rows(section "### Callbacks")
    local listed = 0
    for name in text_of("daemon/lua_handler.c"):match("callbacks%[%] = (%b{})"):gmatch('"([%l_]+)"') do
      listed = listed + 1
      local found
      for row in pairs(callbacks) do found = found or row:match("^" .. name .. "%(self") end
      assert.is_truthy(found, "no callback " .. name)
    end
    assert.is_true(listed >= 7)
  end)

  it("has the command line as --help prints it", function()
    local help = t.reactord({ "--help" }).out:gsub("%(default [^)]*%)", "(default /etc/reactord/reactord.conf)")
    assert.is_truthy(readme:find("```\n" .. help .. "```\n", 1, true))
  end)

  it("leads to files that are there", function()
    for path in readme:gmatch("%]%(([^)#][^)]*)%)") do
      if not path:find("^https:") then assert.is_string(lfs.attributes(path, "mode"), path) end
    end
    for path in readme:gmatch("`(handlers/[%l_/]*)") do assert.is_truthy(lfs.attributes(path) or lfs.attributes(path .. ".lua"), path) end
    for anchor in readme:gmatch("%]%(#([^)]*)%)") do
      local found
      for heading in readme:gmatch("\n#+ ([^\n]*)") do
        found = found or heading:lower():gsub("[^%w %-]", ""):gsub(" ", "-") == anchor
      end
      assert.is_true(found, "#" .. anchor)
    end
  end)

  it("has a handler that serves", function()
    local code = blocks("lua", readme)[1]
    assert.equal(8, select(2, code:gsub("\n", "")))
    local port = t.free_port()
    t.start { args = { "run", t.write("eight_lines.lua", code), "-l", "tcp://127.0.0.1:" .. port } }
    t.connect(port):send("hello"):expect("hello")
  end)

  it("has a script that runs", function()
    local result = t.script(blocks("lua", section "## Scripts")[1])
    assert.equal("", result.err)
    assert.equal("hello\nafter the loop\n", result.out)
    assert.equal(0, result.status)
  end)

  it("has a configuration that is good", function()
    local user, group = t.run({ "id", "-u" }).out:match("%d+"), t.run({ "id", "-g" }).out:match("%d+")
    local config = t.write("example.conf", blocks("lua", section "## Configuration")[1])
    local result = t.reactord { "-t", "-c", config, "-s", "user=" .. user, "-s", "group=" .. group }
    assert.equal("", result.err)
    assert.equal(0, result.status)
  end)

  it("has TLS that works: a server's blocks, a client, STARTTLS", function()
    local ca = pki.authority "ca"
    pki.issue(ca, "server")
    local config, script, mail = table.unpack(blocks("lua", section "### TLS"))
    local port, smtp = tostring(t.free_port()), t.free_port()
    t.write("mail.lua", mail)
    local count
    config, count = config:gsub("8443", port)
    assert.equal(1, count)
    local d = t.start { config = config .. ('listen "tcp://127.0.0.1:%d" { handler = "mail" }\n'):format(smtp) }
    script, count = script:gsub("8443", port)
    assert.equal(1, count)
    script, count = script:gsub('"ca.pem"', function() return ("%q"):format(ca.cert) end)
    assert.equal(1, count)
    local result = t.script(script)
    assert.same({ "echo\nnil\tclosed\n", "", 0 }, { result.out, result.err, result.status })
    local c = assert(tls.wrap(t.connect(t.path "secure.sock")))
    c:send("hello"):expect("hello")
    c:close()
    c = t.connect(smtp)
    c:send("EHLO me\r\n"):expect("EHLO me\r\n")
    c:send("STARTTLS\r\n"):expect("220 go ahead\r\n")
    c = assert(tls.wrap(c))
    c:send("STARTTLS\r\n"):expect("STARTTLS\r\n")
    c:close()
    d:stop()
  end)
end)

describe("the tour of the sources", function()
  local tour = text_of("daemon/README.md")
  local sources = {}
  for _, folder in ipairs { "daemon/", "include/", "Makefile" } do
    if folder:find("/$") then
      for name in lfs.dir(folder) do
        if name:find("%.[ch]$") then table.insert(sources, text_of(folder .. name)) end
      end
    else
      table.insert(sources, text_of(folder))
    end
  end
  local all = table.concat(sources, "\n")

  it("comes by every file", function()
    local makefile = text_of("Makefile"):gsub("\\\n", " ")
    local count = 0
    for layer in makefile:match("\nLAYERS%s*=([^\n]*)"):gmatch("%u+") do
      for stem in makefile:match("\n" .. layer .. "%s*=([^\n]*)"):gmatch("%S+") do
        count = count + 1
        assert.is_truthy(tour:find("`" .. stem .. "`", 1, true), stem .. " is not in the tour")
      end
    end
    assert.is_true(count > 30)
  end)

  it("names what there is", function()
    for name in tour:gmatch("`([%l_]+%.[ch])`") do
      assert.is_truthy(lfs.attributes("daemon/" .. name) or lfs.attributes("include/" .. name), name)
    end
    for name in tour:gmatch("`([%a]+_[%a_]+)`") do
      assert.is_truthy(all:find("%f[%w_]" .. name .. "%f[^%w_]") or name:find("^EVENT_BASE_"), name .. " is nowhere in the sources")
    end
  end)
end)
