-- The architecture is the Makefile's list of objects: a source includes only headers of rows before its own, within a row only of
-- files to its left. This keeps the code as it is drawn there.
local lfs = require "lfs"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("a")
  file:close()
  return text
end

-- Rows of the Makefile: place[stem] is the row's number and the place in it.
local function layers()
  local makefile = read("Makefile"):gsub("\\\n", " ")
  local place, count = {}, 0
  local row = 0
  for name in makefile:match("\nLAYERS%s*=%s*([^\n]*)"):gmatch("%S+") do
    row = row + 1
    local column = 0
    for stem in makefile:match("\n" .. name .. "%s*=%s*([^\n]*)"):gmatch("%S+") do
      assert(not place[stem], stem .. " stands twice in the Makefile")
      column = column + 1
      place[stem] = { row = row, column = column, layer = name }
      count = count + 1
    end
  end
  return place, count
end

local function files(folder, ending)
  local found = {}
  for name in lfs.dir(folder) do
    if name:find("%." .. ending .. "$") and not name:find("^%.") then table.insert(found, name) end
  end
  table.sort(found)
  return found
end

local function exists(path)
  return lfs.attributes(path, "mode") == "file"
end

-- The part of a name that a family of files shares: lua_conn -> lua.
local function family(stem)
  return stem:match("^[^_]+")
end

-- A file without a public header is a part of the one whose name it extends (config_dump: config) and counts as that.
local function whole(stem)
  local name = stem
  while name and not exists("include/" .. name .. ".h") do name = name:match("^(.+)_[^_]*$") end
  return name or stem
end

-- The place of the family's first file.
local function first_of(place, name)
  local first
  for stem, at in pairs(place) do
    if family(stem) == name and (not first or at.row < first.row or at.row == first.row and at.column < first.column) then first = at end
  end
  return first
end

-- Why "stem" may not include "header", nil if it may.
local function objection(place, stem, header)
  local other = header:gsub("%.h$", "")
  if exists("daemon/" .. header) then
    -- A header beside the sources is private to the family.
    return family(stem) ~= family(other) and "is private to the family " .. family(other) or nil
  end
  stem, other = whole(stem), whole(other)
  if other == stem then return nil end
  local mine, theirs = place[stem] or first_of(place, family(stem)), place[other]
  if not theirs then return "belongs to no file of the Makefile's list" end
  if not mine then return "is included by a file that is not in the Makefile's list" end
  if theirs.row > mine.row then return ("is of %s, above %s"):format(theirs.layer, mine.layer) end
  if theirs.row == mine.row and theirs.column > mine.column then return "stands to the right in " .. mine.layer end
  return nil
end

describe("the layers", function()
  local place, count = layers()

  it("are found in the Makefile", function()
    assert.is_true(count >= 20)
    assert.equal(1, place.mem.row)
    assert.equal(place.main.layer, "MAIN")
  end)

  it("name every source, and a header for each but main", function()
    for _, file in ipairs(files("daemon", "c")) do
      local stem = file:gsub("%.c$", "")
      assert.is_truthy(place[stem], "daemon/" .. file .. " is not in the Makefile's list")
      assert.is_true(stem == "main" or exists("include/" .. whole(stem) .. ".h"), "daemon/" .. file .. " has no header")
    end
    for _, file in ipairs(files("include", "h")) do
      assert.is_truthy(exists("daemon/" .. file:gsub("%.h$", ".c")), "include/" .. file .. " has no source")
    end
  end)

  it("include only what is below them or to their left", function()
    local wrong = {}
    for folder, endings in pairs { daemon = { "c", "h" }, include = { "h" } } do
      for _, ending in ipairs(endings) do
        for _, file in ipairs(files(folder, ending)) do
          local path = folder .. "/" .. file
          for header in ("\n" .. read(path)):gmatch('\n%s*#%s*include%s*"([^"]+)"') do
            local why = objection(place, file:gsub("%.%w$", ""), header)
            if why then table.insert(wrong, ("%s: %s %s"):format(path, header, why)) end
          end
        end
      end
    end
    assert.equal("", table.concat(wrong, "\n"))
  end)

  it("are told from what breaks them", function()
    assert.is_nil(objection(place, "conn", "sock.h"))
    assert.is_nil(objection(place, "conn", "mem.h"))
    assert.matches("to the right", objection(place, "sock", "conn.h"))
    assert.matches("above", objection(place, "mem", "loop.h"))
    assert.matches("no file", objection(place, "mem", "nothing.h"))
  end)
end)
