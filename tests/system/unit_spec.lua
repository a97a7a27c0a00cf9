-- The systemd unit, and what "make install" puts where.
local t = require "tests.support.harness"
local lfs = require "lfs"

local function has_analyze()
  return os.execute("command -v systemd-analyze >/dev/null 2>&1")
end

-- Installs without building; the build under test is taken.
local function make(target, variables)
  local command = { "make", "--no-print-directory", target, "BUILD=" .. (os.getenv("REACTORD_BUILD") or "build"), cwd = t.root }
  for name, value in pairs(variables) do table.insert(command, name .. "=" .. value) end
  local result = t.run(command)
  assert.equal(0, result.status, result.err)
  return result.out
end

-- All files below a folder, as a sorted list of relative paths.
local function tree(folder, under, found)
  found = found or {}
  for name in lfs.dir(folder .. "/" .. (under or "")) do
    local path = (under and under .. "/" or "") .. name
    if name ~= "." and name ~= ".." then
      if lfs.attributes(folder .. "/" .. path, "mode") == "directory" then tree(folder, path, found) else table.insert(found, path) end
    end
  end
  table.sort(found)
  return found
end

describe("make install", function()
  t.auto()

  it("puts every file in its place, and uninstall takes them away", function()
    local root = t.path("root")
    make("install-files", { DESTDIR = root, PREFIX = "/usr" })
    local found = {}
    for _, path in ipairs(tree(root)) do found[path] = true end
    local expected = { "usr/bin/reactord", "usr/bin/reactorctl", "usr/lib/systemd/system/reactord.service",
      "usr/lib/systemd/system/reactord@.service", "usr/lib/systemd/system/reactord.socket",
      "usr/lib/sysusers.d/reactord.conf", "usr/lib/tmpfiles.d/reactord.conf", "etc/reactord/reactord.conf" }
    for _, path in ipairs(tree(t.root .. "/handlers")) do
      if path:find("%.lua$") or path:find("%.md$") then table.insert(expected, "usr/share/reactord/handlers/" .. path) end
    end
    for _, path in ipairs(expected) do
      assert.is_true(found[path], path .. " is missing")
      found[path] = nil
    end
    assert.is_nil(next(found))
    local unit = t.read(root .. "/usr/lib/systemd/system/reactord.service")
    assert.matches("\nExecStart=/usr/bin/reactord %-c /etc/reactord/reactord%.conf\n", unit)
    assert.is_nil(unit:find("@%u+@"))
    assert.matches('"/usr/share/reactord/handlers"', t.read(root .. "/etc/reactord/reactord.conf"))
    local version = t.run { root .. "/usr/bin/reactord", "--version" }
    assert.equal(0, version.status)
    assert.matches("%d+%.%d+%.%d+", version.out)

    make("uninstall", { DESTDIR = root, PREFIX = "/usr" })
    assert.same({}, tree(root))
  end)

  it("keeps a configuration that is there", function()
    local root = t.path("root")
    t.write("root/etc/reactord/reactord.conf", "-- mine\n")
    assert.matches("kept", make("install-files", { DESTDIR = root, PREFIX = "/usr" }))
    assert.equal("-- mine\n", t.read("root/etc/reactord/reactord.conf"))
    assert.matches("kept", make("uninstall", { DESTDIR = root, PREFIX = "/usr" }))
    assert.same({ "etc/reactord/reactord.conf" }, tree(root))
  end)
end)

describe("the units", function()
  t.auto()

  it("for instances differ from the one in names alone", function()
    local function lines(name)
      local text = {}
      for line in t.read(t.root .. "/systemd/" .. name):gmatch("[^\n]+") do
        line = line:gsub("reactord%-%%i", "reactord"):gsub("reactord%-NAME", "reactord"):gsub("/%%i%.conf", "/reactord.conf")
          :gsub(" %(%%i%)", ""):gsub("ctl %-s /run/reactord/control%.sock reload", "ctl -c @SYSCONFDIR@/reactord/reactord.conf reload")
        if not line:find("^#") and not line:find("^Environment=REACTORD_CONTROL=") then table.insert(text, line) end
      end
      return text
    end
    assert.same(lines "reactord.service", lines "reactord@.service")
  end)

  it("are valid and well fenced in", function()
    if not has_analyze() then pending("systemd-analyze is not installed") end
    make("install-files", { PREFIX = t.path("usr"), SYSCONFDIR = t.path("etc") })
    for _, name in ipairs { "reactord.service", "reactord@.service", "reactord.socket" } do
      local unit = t.path("usr/lib/systemd/system/" .. name)
      if name:find "@" then -- systemd verifies an instance
        local instance = unit:gsub("@", "@one")
        t.write(instance, t.read(unit))
        unit = instance
      end
      local result = t.run { "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit }
      assert.equal(0, result.status, result.err)
      assert.is_nil(result.err:find("reactord[@%w]*%.s", 1), result.err)
      if name:find "service" then
        result = t.run { "systemd-analyze", "security", "--offline=true", "--threshold=15", unit }
        assert.equal(0, result.status, result.out)
      end
    end
  end)

  it("comes with a user and a folder that systemd's own tools accept", function()
    if not os.execute("command -v systemd-sysusers >/dev/null 2>&1") then pending("systemd-sysusers is not installed") end
    local root = t.path("root")
    make("install-files", { DESTDIR = root, PREFIX = "/usr" })
    local result = t.run { "systemd-sysusers", "--root=" .. root, "--dry-run" }
    assert.equal(0, result.status, result.err)
    assert.matches("reactord", result.out .. result.err)
  end)
end)
