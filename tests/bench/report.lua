-- Turns the rounds of tests/bench/run into one table on stdout and one JSON file: report.lua ROUNDS RESULTS.json CONDITIONS.
-- ROUNDS has lines of "work TAB server TAB flat JSON of numbers"; the first server is what the others are compared to.

local rounds_path, json_path, conditions = table.unpack(arg)

-- The middle of a list of numbers.
local function median(list)
	local sorted = table.move(list, 1, #list, 1, {})
	table.sort(sorted)
	local half = #sorted // 2
	return #sorted % 2 == 1 and sorted[half + 1] or (sorted[half] + sorted[half + 1]) / 2
end

-- One field of every round of a row.
local function column(row, name)
	local list = {}
	for i, round in ipairs(row.rounds) do list[i] = round[name] end
	return list
end

-- The median of one field's ratio to another row, round by round.
local function ratio(row, base, name)
	local list = {}
	for i, round in ipairs(row.rounds) do list[i] = round[name] / base.rounds[i][name] end
	return median(list)
end

-- Reads the rounds into rows, in the order in which work and server first appear, the base's row first.
local function read_rows(path)
	local rows, by_key, base = {}, {}, nil
	for line in io.lines(path) do
		local work, server, fields = line:match("^([^\t]+)\t([^\t]+)\t(.+)$")
		local round, key = {}, work .. "\t" .. server
		for name, value in fields:gmatch('"([%w_]+)":([%d.]+)') do round[name] = tonumber(value) end
		assert(round.messages and round.messages > 0, "no message went round: " .. line)
		round.cpu_us = round.server_cpu_us / round.messages
		round.server_busy = round.server_cpu_us / round.seconds / 1e6
		round.generator_busy = round.generator_cpu_us / round.seconds / 1e6
		if not by_key[key] then
			by_key[key] = { work = work, server = server, rounds = {} }
			table.insert(rows, by_key[key])
		end
		table.insert(by_key[key].rounds, round)
		base = base or server
	end
	for _, row in ipairs(rows) do
		local base_row = by_key[row.work .. "\t" .. base]
		for _, name in ipairs { "rate", "cpu_us", "server_busy", "generator_busy" } do
			row[name] = median(column(row, name))
		end
		row.rate_ratio, row.cpu_ratio = ratio(row, base_row, "rate"), ratio(row, base_row, "cpu_us")
	end
	return rows, base
end

-- Writes plain data as JSON, keys in order; what is not a finite number (no CPU tick passed) becomes null.
local function json(value)
	if math.type(value) == "float" and (value ~= value or value == math.huge) then return "null" end
	if type(value) == "number" then return math.type(value) == "integer" and tostring(value) or ("%.6g"):format(value) end
	if type(value) == "string" then
		return '"' .. value:gsub('[%c"\\]', function(c) return ("\\u%04x"):format(c:byte()) end) .. '"'
	end
	local parts, keys = {}, {}
	if #value > 0 then
		for i, v in ipairs(value) do parts[i] = json(v) end
		return "[" .. table.concat(parts, ",") .. "]"
	end
	for key in pairs(value) do table.insert(keys, key) end
	table.sort(keys)
	for i, key in ipairs(keys) do parts[i] = json(key) .. ":" .. json(value[key]) end
	return "{" .. table.concat(parts, ",") .. "}"
end

local rows, base = read_rows(rounds_path)
print(conditions)
print(("%-28s %-10s %12s %8s %12s %8s %12s %14s"):format("work", "server", "messages/s", "ratio", "CPU us/op", "ratio",
	"server busy", "generator busy"))
for _, row in ipairs(rows) do
	print(("%-28s %-10s %12.0f %8.2f %12.2f %8.2f %11.0f%% %13.0f%%"):format(row.work, row.server, row.rate, row.rate_ratio,
		row.cpu_us, row.cpu_ratio, row.server_busy * 100, row.generator_busy * 100))
end
print("ratios: medians over the rounds of each round's ratio to " .. base
	.. "; a generator near 100% holds the faster server back")

local file, why = io.open(json_path, "w")
if not file then
	io.stderr:write("bench: ", why, "\n")
	os.exit(1)
end
assert(file:write(json { date = os.date("!%Y-%m-%dT%H:%M:%SZ"), conditions = conditions, base = base, rows = rows }, "\n"))
assert(file:close())
