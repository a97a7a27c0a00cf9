-- Metrics: their format, what they count, and the handler that serves them by HTTP.

local t = require "tests.support.harness"

-- Reads the text format strictly: every line is a comment that announces a metric or a sample of the one announced last. Returns
-- samples by "name{labels}", the metrics' types, and histograms as { labels =, buckets = { { le, n } }, sum =, count = } by name.
local function parse(text)
  local samples, types, histograms, helped, current = {}, {}, {}, {}, nil
  assert.equal("\n", text:sub(-1))
  for line in text:gmatch "([^\n]*)\n" do
    local name = line:match "^# HELP ([%l_]+) .+$"
    if name then
      assert.is_nil(helped[name], name .. " is announced twice")
      helped[name], current = true, name
    elseif line:find "^# TYPE" then
      local kind
      name, kind = line:match "^# TYPE ([%l_]+) (%l+)$"
      assert.equal(current, name, line)
      assert.is_truthy(kind == "counter" or kind == "gauge" or kind == "histogram", line)
      assert.equal(kind == "counter", name:find "_total$" ~= nil, line)
      types[name] = kind
    else
      local labels, value
      name, labels, value = line:match "^([%l_]+)(%b{}) (%S+)$"
      if not name then name, value = line:match "^([%l_]+) (%S+)$" end
      assert.is_truthy(name, "no sample: " .. line:sub(1, 100))
      local key, number = name .. (labels or ""), assert(tonumber(value), line)
      assert.is_nil(samples[key], key .. " comes twice")
      samples[key] = number
      for label in (labels or "{}"):sub(2, -2):gsub('[%l_]+="[^"\\]*"', ""):gmatch "[^,]+" do error("no label: " .. label) end
      if types[current] == "histogram" then
        local part = name:sub(#current + 1)
        local plain = (labels or ""):gsub(',?le="[^"]*"', ""):gsub("^{}$", "")
        histograms[current] = histograms[current] or {}
        local h = histograms[current][plain] or { buckets = {} }
        histograms[current][plain] = h
        if part == "_bucket" then
          local limit = labels:match 'le="([^"]*)"'
          table.insert(h.buckets, { limit == "+Inf" and math.huge or tonumber(limit), number })
        else
          assert.is_truthy(part == "_sum" or part == "_count", line)
          h[part:sub(2)] = number
        end
      else
        assert.equal(current, name, line)
      end
    end
  end
  return samples, types, histograms
end

-- Limits ascend, counts too, the last bucket has all, and the sum fits between the buckets' limits.
local function check_histogram(name, h)
  local before, count, least, most = 0, 0, 0, 0
  assert.equal(14, #h.buckets, name)
  assert.equal(math.huge, h.buckets[14][1])
  for _, bucket in ipairs(h.buckets) do
    local limit, n = bucket[1], bucket[2]
    assert.is_true(limit > before and n >= count, name)
    if n > count then least, most = least + (n - count) * before, most + (n - count) * limit end
    before, count = limit, n
  end
  assert.equal(count, h.count, name)
  assert.is_true(h.sum >= least - 1e-9 and (h.count == 0 or h.sum <= most), ("%s: the sum is %g"):format(name, h.sum))
end

describe("metrics", function()
  t.auto()

  local port, http, path, d

  -- A daemon with an echo, the metrics by HTTP and a control socket.
  local function start(more, args)
    port, http, path = t.free_port(), t.free_port(), t.path "control.sock"
    d = t.start {
      config = ([[
        control = %q
        %s
        listen "tcp://127.0.0.1:%d" { handler = "echo" }
        listen "tcp://127.0.0.1:%d" { handler = "metrics", args = { %s } }
      ]]):format(path, more or "", port, http, args or ""),
    }
  end

  local function metrics()
    local result = t.reactord { "ctl", "-s", path, "metrics" }
    assert.equal(0, result.status, result.err)
    return result.out
  end

  -- One request as it is; the whole answer.
  local function request(text)
    local c = t.connect(http)
    c:send(text)
    local answer = c:receive_all()
    c:close()
    return answer
  end

  it("are in Prometheus' format", function()
    start()
    local samples, types, histograms = parse(metrics())
    assert.equal("counter", types.reactord_bytes_in_total)
    assert.equal("gauge", types.reactord_connections)
    assert.equal(2, samples.reactord_listeners)
    assert.equal(1, samples.reactord_generations)
    assert.equal(1, samples['reactord_process_generation{process="1"}'])
    assert.equal(1, samples.reactord_processes)
    assert.is_true(samples.reactord_lua_memory > 10000)
    assert.is_true(samples['reactord_loop_lag_seconds{process="1"}'] < 60)
    for name, series in pairs(histograms) do
      for labels, h in pairs(series) do check_histogram(name .. labels, h) end
    end
    d:stop()
  end)

  it("please promtool", function()
    if t.run({ "sh", "-c", "command -v promtool" }).status ~= 0 then return pending "promtool (package prometheus) is not here" end
    start()
    local c = t.connect(port)
    c:send "x"
    c:expect "x"
    local result = t.run { "promtool", "check", "metrics", input = metrics() }
    assert.equal("", result.err)
    assert.equal("", result.out)
    assert.equal(0, result.status)
    d:stop()
  end)

  it("bear any name of a listener", function()
    local odd = t.path '\xc3\x28\xff "\\\xc3\xbc.sock'
    port = t.free_port()
    d = t.start {
      config = ('listen "tcp://127.0.0.1:%d" { handler = "metrics" }\nlisten(%q) { handler = "echo" }\n'):format(port, "unix://" .. odd),
    }
    t.connect(odd):send("x"):expect "x"
    local text = t.connect(port):send("GET /metrics HTTP/1.0\r\n\r\n"):receive_all()
    assert.is_truthy(utf8.len(text))
    assert.is_truthy(text:find([[\\xc3(\\xff \"\\]] .. "\xc3\xbc.sock\",callback=\"receive_data\"", 1, true))
    d:stop()
  end)

  it("count known traffic, and not who looks", function()
    start()
    local before = parse(metrics())
    for i = 1, 3 do
      local c = t.connect(port)
      for _ = 1, 10 do
        c:send(("x"):rep(i))
        c:expect(("x"):rep(i))
      end
      if i == 1 then
        c:close()
      end
    end
    t.until_true(function() return parse(metrics()).reactord_connections == 2 end, 5, "two connections")
    local after, _, histograms = parse(metrics())
    local function more(name) return after["reactord_" .. name] - before["reactord_" .. name] end
    assert.equal(60, more "bytes_in_total")
    assert.equal(60, more "bytes_out_total")
    assert.equal(3, more "connections_accepted_total")
    assert.equal(1, more "connections_closed_total")
    assert.equal(0, more "handler_errors_total")
    local function calls(callback)
      return histograms.reactord_callback_seconds[('{listener="tcp://127.0.0.1:%d",callback="%s"}'):format(port, callback)].count
    end
    assert.equal(30, calls "receive_data")
    assert.equal(3, calls "post_init")
    assert.equal(1, calls "unbind")
    d:stop()
  end)

  it("put slow callbacks and turns where they belong", function()
    t.write("slow.lua", [[
      return {
        receive_data = function(self)
          local until_s = os.clock() + 0.15
          repeat until os.clock() > until_s
          self:send_data "done"
        end,
      }
    ]])
    local slow = t.free_port()
    start(('listen "tcp://127.0.0.1:%d" { handler = "slow" }'):format(slow))
    local c = t.connect(slow)
    c:send "x"
    c:expect "done"
    local samples, _, histograms = parse(metrics())
    local h = histograms.reactord_callback_seconds[('{listener="tcp://127.0.0.1:%d",callback="receive_data"}'):format(slow)]
    assert.equal(1, h.count)
    assert.is_true(h.sum >= 0.15)
    assert.equal(0, h.buckets[9][2]) -- 0.1 s and below
    assert.is_true(samples['reactord_loop_lag_seconds{process="1"}'] >= 0.15)
    assert.is_true(histograms.reactord_loop_turn_seconds[""].sum >= 0.15)
    d:stop()
  end)

  it("keep series of listeners that come and go, within bounds", function()
    start "control_eval = true\n"
    local script = [[
      local em = require "em"
      for i = 1, 400 do em.start_server("127.0.0.1", 0, {}):stop() end
      local s = em.start_server("127.0.0.1", 0, {})
      return select(2, s:address())
    ]]
    local result = t.reactord { "ctl", "-s", path, "eval", script }
    assert.equal(0, result.status, result.err)
    t.connect(tonumber(result.out)):close()
    t.until_true(function()
      local _, _, histograms = parse(metrics())
      local h = histograms.reactord_callback_seconds['{listener="other",callback="unbind"}']
      return h and h.count >= 1
    end, 5, "the series of others")
    d:stop()
  end)

  it("are those of all processes and never go back, also when one dies", function()
    start "processes = 2"
    for _ = 1, 10 do
      local c = t.connect(port)
      c:send "hello"
      c:expect "hello"
    end
    local before, _, histograms = parse(metrics())
    local series = ('{listener="tcp://127.0.0.1:%d",callback="receive_data"}'):format(port)
    assert.equal(50, before.reactord_bytes_in_total)
    assert.equal(10, before.reactord_connections)
    assert.equal(2, before.reactord_listeners)
    assert.equal(10, histograms.reactord_callback_seconds[series].count)
    assert.equal(10, before['reactord_process_connections{process="1"}'] + before['reactord_process_connections{process="2"}'])
    local started = {}
    for pid in t.reactord({ "ctl", "-s", path, "status" }).out:gmatch "\n +%d +(%d+)" do
      started[#started + 1] = pid
    end
    assert.equal(2, #started)
    for _, pid in ipairs(started) do assert(t.sys.kill(tonumber(pid), "KILL")) end
    d:wait_log "process 1 serves"
    d:wait_log "process 2 serves"
    local after
    after, _, histograms = parse(metrics())
    assert.equal(50, after.reactord_bytes_in_total)
    assert.equal(0, after.reactord_connections)
    assert.equal(2, after.reactord_listeners)
    assert.equal(10, histograms.reactord_callback_seconds[series].count)
    -- any process answers for all
    local get = "GET /metrics HTTP/1.0\r\n\r\n"
    assert.equal(50 + #get, parse(request(get):match "\r\n\r\n(.*)$").reactord_bytes_in_total)
    d:stop()
  end)

  it("count upgrades, of one process or many", function()
    for processes = 1, 2 do
      start("processes = " .. processes)
      local good = t.read(d.config:match "[^/]+$")
      t.write(d.config:match "[^/]+$", good .. "\nzebra = 1\n")
      d:signal "USR2"
      d:wait_log "upgrade refused: process"
      assert.equal(1, parse(metrics()).reactord_upgrades_refused_total)
      t.write(d.config:match "[^/]+$", good)
      local new = d:upgrade()
      d:wait()
      assert.equal(1, parse(metrics()).reactord_upgrades_total)
      new:stop()
    end
  end)

  it("are served by HTTP to curl", function()
    start()
    local url = ("http://127.0.0.1:%d"):format(http)
    local result = t.run { "curl", "-sS", "-D", t.path "head", url .. "/metrics?x=y" }
    assert.equal(0, result.status, result.err)
    local samples = parse(result.out)
    assert.equal(2, samples.reactord_listeners)
    local head = t.read "head"
    assert.is_truthy(head:find("^HTTP/1.0 200 OK\r\n"))
    assert.is_truthy(head:find("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n", 1, true))
    assert.is_truthy(head:find("\r\nContent-Length: " .. #result.out .. "\r\n", 1, true))
    for page, expected in pairs { ["/healthz"] = "alive\n200", ["/readyz"] = "ready\n200" } do
      assert.equal(expected, t.run({ "curl", "-sS", "-w", "%{http_code}", url .. page }).out)
    end
    assert.equal("404", t.run({ "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url .. "/" }).out)
    assert.equal("405", t.run({ "curl", "-sS", "-I", "-o", "/dev/null", "-w", "%{http_code}", url .. "/metrics" }).out)
    assert.equal("405", t.run({ "curl", "-sS", "-d", "a=b", "-o", "/dev/null", "-w", "%{http_code}", url .. "/metrics" }).out)
    d:stop()
  end)

  it("take a request in any pieces and refuse what is none", function()
    start()
    local c = t.connect(http)
    for byte in ("GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n"):gmatch "." do
      c:send(byte)
    end
    assert.is_truthy(c:receive_all():find("^HTTP/1.0 200 OK\r\n.*\r\n\r\nalive\n$"))
    assert.is_truthy(request("GET /healthz HTTP/1.0\n\n"):find "^HTTP/1.0 200 ")
    for text, status in pairs {
      ["GET /healthz\r\n\r\n"] = 400,
      ["GET healthz HTTP/1.0\r\n\r\n"] = 400,
      ["GET /healthz HTTP/2.0\r\n\r\n"] = 400,
      ["get /healthz HTTP/1.0\r\n\r\n"] = 400,
      ["\0\1\2\3"] = 400,
      ["POST /metrics HTTP/1.0\r\nContent-Length: 1\r\n\r\nx"] = 405,
      ["HEAD /metrics HTTP/1.0\r\n\r\n"] = 405,
      ["GET /../metrics HTTP/1.1\r\n\r\n"] = 404,
      ["GET /" .. ("x"):rep(9000)] = 431,
      ["GET / HTTP/1.1\r\n" .. ("Header: x\r\n"):rep(1000)] = 431,
    } do
      local answer = request(text)
      assert.equal(("HTTP/1.0 %d "):format(status), answer:sub(1, 13), text:sub(1, 40))
      if status == 405 then assert.is_truthy(answer:find("\r\nAllow: GET\r\n", 1, true)) end
    end
    d:stop()
  end)

  it("say not ready while the daemon drains", function()
    start "drain_timeout = 20"
    local c = t.connect(http)
    c:send "GET /readyz HTTP/1.0\r\n"
    t.until_true(function() return parse(metrics()).reactord_connections == 1 end, 5, "the connection")
    d:signal "TERM"
    d:wait_log "draining"
    c:send "\r\n"
    local answer = c:receive_all()
    assert.is_truthy(answer:find "^HTTP/1.0 503 Service Unavailable\r\n")
    assert.is_truthy(answer:find "\r\n\r\ndraining\n$")
    c:close()
    assert.equal(0, d:wait(10))
    d:check()
  end)

  it("say not ready after a turn that took too long", function()
    start("control_eval = true\n", "0.1")
    assert.is_truthy(request("GET /readyz HTTP/1.0\r\n\r\n"):find "^HTTP/1.0 200 ")
    local busy = "local e = os.clock() + 0.2 repeat until os.clock() > e"
    assert.equal(0, t.reactord({ "ctl", "-s", path, "eval", busy }).status)
    local answer = request "GET /readyz HTTP/1.0\r\n\r\n"
    assert.is_truthy(answer:find "^HTTP/1.0 503 ")
    assert.is_truthy(answer:find "\r\n\r\na turn of the loop took 0%.%d s\n$")
    assert.is_truthy(request("GET /healthz HTTP/1.0\r\n\r\n"):find "^HTTP/1.0 200 ")
    d:stop()
  end)
end)
