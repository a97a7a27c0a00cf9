-- The specs run under the Lua that the daemon has, whatever /usr/bin/lua is.
describe("the specs", function()
  it("run under Lua 5.4", function()
    assert.equal("Lua 5.4", _VERSION)
  end)
end)
