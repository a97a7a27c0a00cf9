--- Objects that share methods which no handler can get at and change for the others.

--- class(name, methods) -> a function that makes a table such an object and returns it; getmetatable says its name.
return function(name, methods)
  local meta = { __index = methods, __name = name, __metatable = name }
  return function(object)
    return setmetatable(object, meta)
  end
end
