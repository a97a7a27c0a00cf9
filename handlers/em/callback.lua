--- What can be called: functions, and objects whose metatable says so.

local callback = {}

--- Can it be called?
function callback.is(value)
  if type(value) == "function" then
    return true
  end
  local meta = getmetatable(value)
  return type(meta) == "table" and meta.__call ~= nil
end

--- Raises, in the name of the caller's caller, unless the argument with that number can be called.
function callback.check(number, name, value)
  if not callback.is(value) then
    error(("bad argument #%d to '%s' (function expected, got %s)"):format(number, name, type(value)), 3)
  end
end

--- em.Callback(fn) -> fn. em.Callback(object, method) -> a function that calls the method on the object with its arguments: a
-- function, or a name that is looked up anew at each call. Raises for anything else.
function callback.Callback(object, method)
  if method == nil then
    callback.check(1, "Callback", object)
    return object
  elseif callback.is(method) then
    return function(...)
      return method(object, ...)
    end
  elseif type(method) ~= "string" then
    error(("bad argument #2 to 'Callback' (function or name expected, got %s)"):format(type(method)), 2)
  elseif type(object) ~= "table" and type(object) ~= "userdata" then
    error(("bad argument #1 to 'Callback' (object expected, got %s)"):format(type(object)), 2)
  end
  return function(...)
    return object[method](object, ...)
  end
end

return callback
