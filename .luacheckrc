-- What luacheck takes as given: Lua 5.4, nothing global, callbacks may ignore their arguments.
std = "lua54"
max_line_length = 140
unused_args = false
self = false

files["tests/**/*_spec.lua"] = { std = "+busted" }
files["conf"] = { std = "+lua54" }
