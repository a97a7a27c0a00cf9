-- em.popen: what a child is started with, what goes in and out, how it ends.
local t = require "tests.support.harness"
local serve = require "tests.support.serve"

-- In front of the scripts: a handler that gathers what it is told and prints its end; options of popen follow the command.
local head = [[
local em = require "em"
local H = em.Connection:extend()
function H:receive_data(data) self.out = (self.out or "") .. data end
function H:receive_stderr(data) self.err = (self.err or "") .. data end
function H:unbind(err, why)
  local status = self:get_status() or {}
  print(("%s out=%q err=%q %s %s exited=%s signaled=%s"):format(self.name or "child", self.out or "", self.err or "", tostring(err), why,
    status.exited, status.signaled))
end
local function run(name, command, options)
  local child, message, code = em.popen(command, H, options)
  if child then child.name = name else print(name, message, code) end
  return child
end
]]

-- Runs a script to its end; returns its lines, which come in any order, as a set of strings, and the output.
local function lines_of(script, options)
  local result = t.script(head .. script, nil, options)
  assert.equal(0, result.status, result.err)
  local set = {}
  for line in result.out:gmatch("([^\n]*)\n") do set[line] = true end
  return set, result.out, result.err
end

local function has(lines, out, wanted)
  assert.is_true(lines[wanted] or false, ("'%s' is missing in:\n%s"):format(wanted, out))
end

describe("popen", function()
  t.auto()

  it("splits a line as a shell does, and leaves alone what only a shell knows", function()
    local lines, out = lines_of [=[
      run("words", [[printf "[%s]" one  'two words' "th\"ree \$x \n" fo\ ur '' "" a'b'"c" \'quoted\']])
      run("plain", "printf %s\\\\n $HOME * | ; > # ~")
      run("table", { "printf", "[%s]", "two words", "", 7, "$x 'y'" })
      run("blanks", "\t printf  %s\n x ")
    ]=]
    has(lines, out, [[words out="[one][two words][th\"ree $x \\n][fo ur][][][abc]['quoted']" err="" nil eof exited=0 signaled=nil]])
    assert.is_truthy(out:find('plain out="$HOME\\\n*\\\n|\\\n;\\\n>\\\n#\\\n~\\\n"', 1, true), out)
    has(lines, out, [[table out="[two words][][7][$x 'y']" err="" nil eof exited=0 signaled=nil]])
    has(lines, out, [[blanks out="x" err="" nil eof exited=0 signaled=nil]])
  end)

  it("raises for commands and options that cannot be meant", function()
    local _, out = lines_of [[
      for _, arguments in ipairs {
        { "" }, { " \t\n" }, { "a 'b" }, { 'a "b' }, { {} }, { { "a", false } }, { { "a\0b" } }, { "a\0b" }, { 12 }, { nil }, { true },
        { "true", nil, 7 }, { "true", nil, { envv = {} } }, { "true", nil, { env = 1 } }, { "true", nil, { env = { x = true } } },
        { "true", nil, { env = { ["a=b"] = "x" } } }, { "true", nil, { env = { "x" } } }, { "true", nil, { stderr = "both" } },
        { "true", nil, { cwd = {} } }, { "true", nil, { args = 1 } }, { "true", 12 }, { "true", nil, { user = false } },
      } do
        local ok, why = pcall(em.popen, table.unpack(arguments, 1, 3))
        print(ok, (tostring(why):gsub("^.-argument (#%d) to '[%w.]+'", "%1")))
      end
    ]]
    assert.equal(table.concat({
      "false\t#1 (the command is empty)",
      "false\t#1 (the command is empty)",
      "false\t#1 (a quote is not closed)",
      "false\t#1 (a quote is not closed)",
      "false\t#1 (the command is empty)",
      "false\t#1 (word 2 of the command must be a string, not boolean)",
      "false\t#1 (word 1 of the command contains a NUL)",
      "false\t#1 (the command contains a NUL)",
    }, "\n"), out:match(("[^\n]*\n"):rep(8)):sub(1, -2))
    assert.is_truthy(out:find("(the command is empty)", 1, true))
    assert.is_truthy(out:find("(unknown option 'envv' (did you mean 'env'?))", 1, true), out)
    assert.is_truthy(out:find("(env must be a table)", 1, true), out)
    assert.is_truthy(out:find("(env.x must be a string, not boolean)", 1, true), out)
    assert.is_truthy(out:find("('a=b' cannot be the name of a variable)", 1, true), out)
    assert.is_truthy(out:find("(the names in env must be strings)", 1, true), out)
    assert.is_truthy(out:find('(stderr must be "inherit", "merge" or "separate")', 1, true), out)
    assert.is_truthy(out:find("(cwd must be a string, not table)", 1, true), out)
    assert.is_truthy(out:find("(args must be a table)", 1, true), out)
  end)

  it("gives the handler its arguments, works with functions, names and without any", function()
    t.write("named.lua", [[
      return { initialize = function(self, ...) self.given = table.concat({ ... }, ",") end,
        unbind = function(self) print("named", self.given) end }]])
    local lines, out = lines_of(([[
      em.popen("true", %q, { args = { "a", 2, "c" } })
      em.popen("true", function(child) print("function", child:get_pid() > 0) end)
      print("none", em.popen("true"):get_pid() > 0)
      local order = {}
      local C = em.Connection:extend()
      function C:initialize(...) table.insert(order, "initialize") table.insert(order, select("#", ...)) end
      function C:post_init() table.insert(order, "post_init") end
      function C:connection_completed() table.insert(order, "connection_completed") end
      function C:unbind() table.insert(order, "unbind") print(table.concat(order, " ")) end
      em.popen("true", C)
    ]]):format(t.path("named.lua")))
    has(lines, out, "named\ta,2,c")
    has(lines, out, "function\ttrue")
    has(lines, out, "none\ttrue")
    has(lines, out, "initialize 0 post_init unbind")
  end)

  it("talks both ways; close_write ends the child's input", function()
    local lines, out = lines_of [[
      local cat = run("cat", "cat")
      cat:send_data("one ", 2)
      function cat:receive_data(data)
        H.receive_data(self, data)
        if self.out == "one 2" then self:send_data(" three") self:close_write() end
      end
      local sort = run("sort", "sort")
      sort:send_data("b\na\nc\n")
      sort:close_connection_after_writing() -- what it says then is not wanted
      local wc = run("wc", "wc -c")
      wc:send_data(("x"):rep(5000000))
      wc:close_write()
      print("after", wc:send_data("y"))
    ]]
    has(lines, out, 'cat out="one 2 three" err="" nil eof exited=0 signaled=nil')
    has(lines, out, 'sort out="" err="" nil closed exited=0 signaled=nil')
    assert.is_truthy(out:find('wc out="5000000\\\n" err="" nil eof exited=0 signaled=nil', 1, true), out)
    has(lines, out, "after\tnil\tclosed for writing\tEPIPE")
  end)

  it("says exactly how a child has ended, in unbind and afterwards", function()
    local lines, out = lines_of [[
      local three = run("three", "sh -c 'exit 3'")
      print("before", three:get_status())
      run("high", "sh -c 'exit 255'")
      run("own", { "sh", "-c", "kill -USR1 $$" })
      local killed = run("killed", "sleep 1000")
      print(killed:kill("KILL"))
      local default = run("default", "sleep 1000")
      print(default:kill())
      run("number", "sleep 1000"):kill(2)
      run("prefix", "sleep 1000"):kill("SIGQUIT")
      function three:unbind(...)
        H.unbind(self, ...)
        print("gone", self:kill())
        em.next_tick(function()
          print("later", self:get_status().exited, math.type(self:get_pid()), self:kill())
          print("fresh", self:get_status() ~= self:get_status())
        end)
      end
      print("not a child", em.connect("127.0.0.1", 1):kill())
      print("nor", em.connect("127.0.0.1", 1):get_pid(), em.connect("127.0.0.1", 1):get_status())
      print(pcall(killed.kill, killed, "NONE"))
      print(pcall(killed.kill, killed, 65))
    ]]
    has(lines, out, 'three out="" err="" nil eof exited=3 signaled=nil')
    has(lines, out, 'high out="" err="" nil eof exited=255 signaled=nil')
    has(lines, out, 'own out="" err="" nil eof exited=nil signaled=10')
    has(lines, out, 'killed out="" err="" nil eof exited=nil signaled=9')
    has(lines, out, 'default out="" err="" nil eof exited=nil signaled=15')
    has(lines, out, 'number out="" err="" nil eof exited=nil signaled=2')
    has(lines, out, 'prefix out="" err="" nil eof exited=nil signaled=3')
    has(lines, out, "before\tnil")
    has(lines, out, "gone\tnil\tNo such process\tESRCH")
    has(lines, out, "later\t3\tinteger\tnil\tclosed\tENOTCONN")
    has(lines, out, "fresh\ttrue")
    has(lines, out, "not a child\tnil\tnot the connection of a child process\tECHILD")
    has(lines, out, "nor\tnil\tnil")
    assert.is_truthy(out:find("there is no signal 'NONE'", 1, true), out)
    assert.is_truthy(out:find("must be from 1 to 64", 1, true), out)
  end)

  it("env adds to ours, false removes; cwd is where it runs", function()
    t.write("here/prog", "#!/bin/sh\necho prog in $(pwd)\n")
    assert(t.sys.chmod(t.path("here/prog"), "0755"))
    local lines, out = lines_of(([[
      run("env", { "sh", "-c", "echo $GIVEN $TAKEN $OURS $GONE." }, { env = { GIVEN = "given", TAKEN = 5, GONE = false } })
      run("ours", "printenv OURS")
      run("cwd", "pwd", { cwd = "/usr" })
      run("relative", "./prog", { cwd = %q })
      run("path", "prog", { env = { PATH = "/nowhere:" .. %q } })
      run("nul", "true", { env = { EMPTY = "" } })
      run("service", { "sh", "-c", "echo $NOTIFY_SOCKET$LISTEN_FDS$LISTEN_PID$WATCHDOG_USEC." })
    ]]):format(t.path("here"), t.path("here")), { env = { OURS = "ours", GONE = "gone", NOTIFY_SOCKET = "@x", LISTEN_FDS = "0",
      LISTEN_PID = "1", WATCHDOG_USEC = "1" } })
    for _, wanted in ipairs {
      'env out="given 5 ours .\\', 'ours out="ours\\', 'cwd out="/usr\\', 'service out=".\\',
      'relative out="prog in ' .. t.path("here") .. "\\",
    } do
      has(lines, out, wanted)
    end
    assert.is_truthy(out:find('path out="prog in ', 1, true), out)
  end)

  it("reports what cannot be executed at the call, and calls no handler", function()
    t.write("text", "not a program\n")
    t.write("noexec", "#!/bin/sh\n")
    t.write("badexec", "#!/no/such/interpreter\n")
    t.write("garbage", "\1\2\3")
    for _, name in ipairs { "badexec", "garbage" } do assert(t.sys.chmod(t.path(name), "0755")) end
    local result = t.script(([[
      local em = require "em"
      local H = em.Connection:extend()
      function H:initialize() print("initialize") end
      function H:unbind() print("unbind") end
      local dir = %q
      print(em.popen("no-such-program-here x", H))
      print(em.popen("/no/such/program", H))
      print(em.popen({ "" }, H))
      print(em.popen(dir .. "/noexec", H))
      print(em.popen(dir, H))
      print(em.popen(dir .. "/badexec", H))
      print(em.popen(dir .. "/garbage", H))
      print(em.popen("/etc/passwd/x", H))
      print(em.popen("true", H, { cwd = "/no/such" }))
      print(em.popen("true", H, { cwd = "/etc/passwd" }))
      print(em.popen("true", H, { user = "no-such-user" }))
      local long = {"true"} for i = 1, 100 do long[i + 1] = ("x"):rep(100000) end
      print(select(3, em.popen(long, H)))
      print(em.connection_count())
    ]]):format(t.dir()))
    assert.equal(([[
nil	popen: cannot execute 'no-such-program-here': No such file or directory	ENOENT
nil	popen: cannot execute '/no/such/program': No such file or directory	ENOENT
nil	popen: cannot execute '': No such file or directory	ENOENT
nil	popen: cannot execute '@DIR@/noexec': Permission denied	EACCES
nil	popen: cannot execute '@DIR@': Permission denied	EACCES
nil	popen: cannot execute '@DIR@/badexec': No such file or directory	ENOENT
nil	popen: cannot execute '@DIR@/garbage': Exec format error	ENOEXEC
nil	popen: cannot execute '/etc/passwd/x': Not a directory	ENOTDIR
nil	popen: cannot enter '/no/such' for 'true': No such file or directory	ENOENT
nil	popen: cannot enter '/etc/passwd' for 'true': Not a directory	ENOTDIR
nil	popen: there is no user 'no-such-user'	ENOENT
E2BIG
0
]]):gsub("@DIR@", (t.dir():gsub("%%", "%%%%"))), result.out)
    assert.equal("", result.err)
  end)

  it("gives standard error its own way: inherited, merged, apart", function()
    local both = [[{ "sh", "-c", "echo out; echo err >&2; echo more; exit 4" }]]
    local lines, out, err = lines_of(([[
      run("inherit", %s)
      run("merge", %s, { stderr = "merge" })
      run("separate", %s, { stderr = "separate" })
      run("only", { "sh", "-c", "exec >/dev/null; head -c 3000000 /dev/zero >&2" }, { stderr = "separate" }).receive_stderr =
        function(self, data) self.count = (self.count or 0) + #data self.out = tostring(self.count) end
      em.popen(%s, { unbind = function() print("unwanted") end }, { stderr = "separate" })
    ]]):format(both, both, both, both))
    has(lines, (out:gsub("\\\n", "|")), "unwanted")
    local joined = out:gsub("\\\n", "|")
    assert.is_truthy(joined:find('inherit out="out|more|" err="" nil eof exited=4', 1, true), joined)
    assert.equal("err\n", err)
    assert.is_truthy(joined:find('merge out="out|err|more|" err="" nil eof exited=4', 1, true), joined)
    assert.is_truthy(joined:find('separate out="out|more|" err="err|" nil eof exited=4', 1, true), joined)
    assert.is_truthy(joined:find('only out="3000000" err="" nil eof exited=0', 1, true), joined)
  end)

  it("a child of a handler: errors in its callbacks end it alone, and name it", function()
    local s = serve([[
      local H = {}
      function H:receive_data(data)
        local child = em.popen("cat", {
          receive_data = function() error("bad child") end,
          unbind = function(self, err, why) local st = self:get_status() say("child", err, why, st.exited or st.signaled) end })
        child:send_data("x")
      end
      return H
    ]])
    local c = s:connect()
    c:send("go")
    s:waits_for("child EHANDLER handler error: " .. t.path("h.lua") .. ":4: bad child 0")
    assert.is_truthy(s.d:log():find("exec:cat", 1, true), s.d:log())
    assert.equal(0, s:eval "return 0")
    c:expect_silence(0.01)
  end)

  it("nothing is started while a handler's file loads", function()
    t.write("early.lua", [[require("em").popen("touch ]] .. t.path("touched") .. [[") return {}]])
    local result = t.reactord { "-t", "-c", t.write("early.conf",
      ('handlers = { %q }\nlisten "tcp://127.0.0.1:%d" { handler = "early" }\n'):format(t.dir(), t.free_port())) }
    assert.equal(1, result.status)
    assert.is_truthy(result.err:find("nothing can be opened while handlers load", 1, true), result.err)
    assert.is_nil(t.read("touched"))
  end)

  it("a child inherits no descriptor, no blocked or ignored signal, not our descriptor limit", function()
    local soft, hard = t.sys.getrlimit("nofile")
    assert(t.sys.setrlimit("nofile", 123))
    local s = serve([[ return {} ]])
    assert(t.sys.setrlimit("nofile", soft))
    local held = s:connect()
    s:eval [[
      x.pieces = {}
      local function keep(self, data) x.pieces[#x.pieces + 1] = data end
      em.popen({ "sh", "-c", "ls -l /proc/self/fd; cat /proc/self/status; ulimit -Sn; ulimit -Hn" },
        { receive_data = keep, unbind = function() x.done = true end })
      return true]]
    s:until_true "return x.done"
    local text = s:eval "return table.concat(x.pieces)"
    local fds = {}
    for fd, target in text:gmatch(" (%d+) %-> ([^\n]*)") do fds[tonumber(fd)] = target end
    assert.is_truthy(fds[0]:find("^socket:"), text)
    assert.equal(fds[0], fds[1])
    fds[0], fds[1], fds[2] = nil, nil, nil
    for fd, target in pairs(fds) do -- ls has the folder itself open
      assert.is_truthy(target:find("^/proc/"), fd .. " is " .. target)
    end
    for _, name in ipairs { "SigBlk", "SigIgn", "SigCgt" } do
      assert.equal("0000000000000000", text:match(name .. ":%s*(%x+)"), name)
    end
    assert.equal(("123\n%d\n"):format(hard), text:match("%d+\n%d+\n$"))
    held:close()
  end)

  it("the one who detaches itself has children like any other", function()
    local port, path = t.free_port(), t.path("detached.pid")
    t.write("once.lua", ([[
      local em = require "em"
      em.run(function()
        em.popen({ "sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls -l /proc/self/fd;" ..
            "cut -d ' ' -f 5 /proc/$PPID/stat /proc/$$/stat" },
          { receive_data = function(self, data) self.all = (self.all or "") .. data end,
            unbind = function(self) local f = io.open(%q, "w") f:write(self.all) f:close() em.log.info("child done") end },
          { stderr = "merge" })
      end)
      return {}]]):format(t.path("said")))
    local config = t.write("detached.conf", ('handlers = { %q }\nlog = { file = %q }\nlisten "tcp://127.0.0.1:%d" { handler = "once" }\n')
      :format(t.dir(), t.path("detached.log"), port))
    assert.equal(0, t.reactord { "-d", "-p", path, "-c", config }.status)
    local d = t.adopt(tonumber(t.read(path)), t.path("detached.log"))
    d:wait_log("child done")
    local said = t.read("said")
    assert.is_truthy(said:find("SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n", 1, true), said)
    assert.is_nil(said:find("eventpoll", 1, true), said)
    local ours, its = said:match("%s(%d+)%s+(%d+)%s*$")
    assert.equal(ours, its)
    d:stop()
  end)

  it("user becomes somebody else for good, with that user's groups", function()
    if t.sys.getuid() ~= 0 then pending("only root can start children as somebody else") return end
    local _, out = lines_of [[
      run("nobody", { "sh", "-c", "id -u; id -ru; id -g; id -G; grep -E '^(Cap(Eff|Prm)|Uid|Gid)' /proc/self/status; cat /etc/shadow" },
        { user = "nobody", stderr = "merge", cwd = "/" })
      print(em.popen("true", H, { user = "nobody", cwd = "/root" }))
      run("same", "id -u", { user = "root" })
    ]]
    out = out:gsub("\\\n", "|")
    assert.is_truthy(out:find('nobody out="65534|65534|65534|65534|', 1, true), out)
    assert.is_truthy(out:find("CapPrm:\\0090000000000000000|", 1, true), out)
    assert.is_truthy(out:find("Uid:\\00965534\\00965534\\00965534\\00965534|", 1, true), out)
    assert.is_truthy(out:find("Permission denied", 1, true), out)
    assert.is_truthy(out:find('same out="0|"', 1, true), out)
    assert.is_truthy(out:find("cannot enter '/root' for 'true': Permission denied\tEACCES", 1, true), out)
  end)

  it("without the right to become somebody else the call says so", function()
    if t.sys.getuid() ~= 0 then pending("needs root to take rights away") return end
    t.copy_daemon()
    local result = t.script([[
      local em = require "em"
      print(em.popen("true", nil, { user = "root" }))
      em.popen("id -u", { receive_data = function(_, data) io.write(data) end }, { user = "nobody" })
    ]], nil, { uid = 65534, gid = 65534 })
    assert.equal("nil\tpopen: cannot become uid 0 for 'true': Operation not permitted\tEPERM\n65534\n", result.out)
  end)
end)
