-- start_tls in mid-stream: no byte lost or doubled, nothing clear accepted after the switch, queued data encrypted.

local t = require "tests.support.harness"
local tls = require "tests.support.tls"

-- A server that switches when it hears STARTTLS and echoes otherwise.
local switcher = [[
local em = require "em"
local Switcher = em.Connection:extend()
function Switcher:post_init() self.state = "clear"; self:send_data("220 hello\n") end
function Switcher:receive_data(data)
  if self.state == "clear" and data:find "^STARTTLS\n" then
    self.state = "tls"
    self:send_data("220 go ahead\n")
    self:start_tls { self_signed = true }
    self:send_data("first words under TLS\n")
  else
    self:send_data(self.state .. ":" .. data)
  end
end
function Switcher:ssl_handshake_completed() em.log.info("switched") end
function Switcher:unbind(err, why) em.log.info("end %s %s", tostring(err), why) end
return Switcher
]]

describe("start_tls", function()
  t.auto()
  local d, port

  local function start()
    t.write("switcher.lua", switcher)
    port = t.free_port()
    d = t.start { config = ('listen "tcp://127.0.0.1:%d" { handler = "switcher" }'):format(port) }
  end

  it("switches a server in mid-stream; what was sent before is clear, what after is encrypted", function()
    start()
    local c = t.connect(port)
    c:expect "220 hello\n"
    c:send("clear words\n"):expect "clear:clear words\n"
    c:send("STARTTLS\n"):expect "220 go ahead\n"
    local secure = assert(tls.wrap(c))
    secure:expect "first words under TLS\n"
    secure:send("secret\n"):expect "tls:secret\n"
    secure:close()
    d:wait_log "end nil eof"
    d:stop()
  end)

  it("takes clear words after the switch for what they are: no TLS", function()
    start()
    local c = t.connect(port)
    c:expect "220 hello\n"
    c:send("STARTTLS\n"):expect "220 go ahead\n"
    c:send "MAIL FROM:<injected>\n"
    d:wait_log "end ETLS "
    local seen = c:receive_end()
    assert.is_nil(seen:find("tls:", 1, true))
    d:stop()
  end)

  it("switches a client, on its own word, with all data queued before the handshake sent after it", function()
    start()
    local r = t.script(([[
      local em = require "em"
      local Client = em.Connection:extend()
      function Client:receive_data(data)
        self.seen = (self.seen or "") .. data
        if not self.started and self.seen:find "220 go ahead\n" then
          self.started = true
          assert(self:start_tls { verify_peer = false })
          assert(self:send_data("queued " .. ("x"):rep(100000) .. "\n"))
        elseif self.seen == "220 hello\n" then
          self:send_data "STARTTLS\n"
        elseif self.seen:find("x\n$") then
          print(#self.seen, self.seen:find("first words under TLS\ntls:queued x", 1, true) ~= nil)
          self:close_connection_after_writing()
        end
      end
      function Client:unbind(err, why) print(err, why) end
      em.connect("127.0.0.1", %d, Client)
    ]]):format(port))
    assert.matches("\ttrue\nnil\tclosed\n$", r.out)
    d:stop()
  end)

  it("is refused where either direction has ended, and on a closing connection", function()
    local out = t.script([[
      local em = require "em"
      local options = { self_signed = true }
      em.run(function()
        local left = 3
        local function serve(name, act)
          local server = em.listen("tcp://127.0.0.1:0", {
            receive_data = function(self) act(self); self.seen = true end,
            receive_eof = function(self)
              if name == "eof" then print(name, self:start_tls(options)) end
              self:close_connection_after_writing()
            end,
            unbind = function() left = left - 1; if left == 0 then em.stop() end end,
          })
          local client = { connection_completed = function(self) self:send_data("x"); self:close_write() end }
          em.connect("127.0.0.1", select(2, server:address()), client)
        end
        serve("eof", function() end)
        serve("write", function(self) self:close_write(); print("write", self:start_tls(options)) end)
        serve("closing", function(self) self:close_connection_after_writing(); print("closing", self:start_tls(options)) end)
      end)
    ]]).out
    local lines = {}
    for line in out:gmatch "[^\n]+" do lines[#lines + 1] = line end
    table.sort(lines)
    assert.same({
      "closing\tnil\tclosed\tENOTCONN", "eof\tnil\tthe peer sends no more\tEPIPE", "write\tnil\tclosed for writing\tEPIPE",
    }, lines)
  end)

  it("sends what was queued before the handshake also when close_connection_after_writing follows at once", function()
    t.write("brief.lua", [[
      local Brief = require "em".Connection:extend()
      function Brief:post_init() self:send_data(("farewell "):rep(20000)); self:close_connection_after_writing() end
      return Brief
    ]])
    port = t.free_port()
    d = t.start { config = ('listen "tls://127.0.0.1:%d" { handler = "brief", tls = { self_signed = true } }'):format(port) }
    local c = assert(tls.connect(port))
    local bytes = c:receive_all()
    assert.equal(180000, #bytes)
    assert.is_true(bytes == ("farewell "):rep(20000))
    c:close()
    d:stop()
  end)
end)
