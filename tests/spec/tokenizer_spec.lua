-- em.BufferedTokenizer: each case whole, byte by byte, and split at every position; what came before a limit is the same each way.
local fake = require "tests.support.fake_core"

describe("em.BufferedTokenizer", function()
  local em
  before_each(function()
    fake.install()
    em = require "em"
  end)
  after_each(fake.remove)

  -- Gives pieces to a tokenizer; returns all tokens, what flush returns, and a failure's message and code.
  local function feed(pieces, delimiter, limit)
    local tokenizer = em.BufferedTokenizer(delimiter, limit)
    local all, why, code = {}, nil, nil
    for _, piece in ipairs(pieces) do
      local tokens, message, symbol, before = tokenizer:extract(piece)
      if not tokens then
        why, code, tokens = message, symbol, before
      end
      table.move(tokens, 1, #tokens, #all + 1, all)
    end
    return { tokens = all, rest = tokenizer:flush(), why = why, code = code }
  end

  -- All ways to cut a text: whole, into bytes, into two, into three with an empty piece between.
  local function ways(text)
    local found = { { text }, {} }
    for i = 1, #text do found[2][i] = text:sub(i, i) end
    for i = 0, #text do
      table.insert(found, { text:sub(1, i), text:sub(i + 1) })
      table.insert(found, { text:sub(1, i), "", text:sub(i + 1) })
      table.insert(found, { text:sub(1, i // 2), text:sub(i // 2 + 1, i), text:sub(i + 1) })
    end
    return found
  end

  for _, case in ipairs {
    { "lines", "aaa\nbbb\r\nccc\n", nil, { "aaa", "bbb\r", "ccc" }, "" },
    { "lines and a rest", "aaa\nbbb", nil, { "aaa" }, "bbb" },
    { "empty lines", "\n\na\n\n", nil, { "", "", "a", "" }, "" },
    { "nothing", "", nil, {}, "" },
    { "no delimiter", "abc", nil, {}, "abc" },
    { "one of two bytes", "foo\r\nbar\r\n\r\nbaz\r", "\r\n", { "foo", "bar", "" }, "baz\r" },
    { "halves of it within", "\r\r\n\n\r\n\ra", "\r\n", { "\r", "\n" }, "\ra" },
    { "a long one", "one<BOUNDARY>two<BOUNDARY><BOUNDARY>three<BOUND", "<BOUNDARY>", { "one", "two", "" }, "three<BOUND" },
    { "one that begins again in itself", "aaabaabab", "aab", { "a", "" }, "ab" },
    { "one of equal bytes", "xaaaaaay", "aaa", { "x", "" }, "y" },
    { "one more of equal bytes", "aaaaa", "aaaa", { "" }, "a" },
    { "any bytes", "a\0\0b\0\0\255\0", "\0\0", { "a", "b" }, "\255\0" },
    { "what is special in patterns", "a.b%c.%d", ".%", { "a.b%c" }, "d" },
  } do
    local name, text, delimiter, tokens, rest = table.unpack(case, 1, 5)
    it("cuts: " .. name, function()
      for _, pieces in ipairs(ways(text)) do
        assert.same({ tokens = tokens, rest = rest }, feed(pieces, delimiter))
      end
    end)
  end

  it("cuts random texts of few letters as one would by hand", function()
    math.randomseed(42)
    local function random(letters, length)
      local text = {}
      for i = 1, length do text[i] = letters:sub(math.random(#letters)):sub(1, 1) end
      return table.concat(text)
    end
    for _ = 1, 100 do
      local text, delimiter = random("ab", 20), random("ab", math.random(4))
      local tokens, from = {}, 1
      while text:find(delimiter, from, true) do
        local first, last = text:find(delimiter, from, true)
        table.insert(tokens, text:sub(from, first - 1))
        from = last + 1
      end
      for _, pieces in ipairs(ways(text)) do
        assert.same({ tokens = tokens, rest = text:sub(from) }, feed(pieces, delimiter))
      end
    end
  end)

  for _, case in ipairs {
    { "tokens as long as it", "abc\nabc\n", "\n", 3, { "abc", "abc" }, "" },
    { "a rest as long as it", "abc\nabc", "\n", 3, { "abc" }, "abc" },
    { "a rest that may be a delimiter's", "abc\r\nabc\r", "\r\n", 3, { "abc" }, "abc\r" },
    { "empty tokens only", "\n\n", "\n", 0, { "", "" }, "" },
  } do
    local name, text, delimiter, limit, tokens, rest = table.unpack(case, 1, 6)
    it("has a limit that allows " .. name, function()
      for _, pieces in ipairs(ways(text)) do
        assert.same({ tokens = tokens, rest = rest }, feed(pieces, delimiter, limit))
      end
    end)
  end

  for _, case in ipairs {
    { "a longer token", "ab\nabcd\nab\n", "\n", { "ab" } },
    { "a longer rest", "ab\nabcd", "\n", { "ab" } },
    { "a longer first token", "abcd\n", "\n", {} },
    { "a longer token before a long delimiter", "ab<->abc<abcd<->ab", "<->", { "ab" } },
    { "a longer token, by one byte, before a long delimiter", "abcd<->", "<->", {} },
  } do
    local name, text, delimiter, tokens = table.unpack(case, 1, 4)
    it("has a limit that refuses " .. name .. ", and gives those before it", function()
      for _, pieces in ipairs(ways(text)) do
        assert.same({ tokens = tokens, rest = "", why = "token longer than 3 bytes", code = "ELIMIT" }, feed(pieces, delimiter, 3))
      end
    end)
  end

  it("stays at its limit until flush", function()
    local tokenizer = em.BufferedTokenizer("\n", 3)
    assert.is_nil((tokenizer:extract "abcdef"))
    assert.is_true(tokenizer:empty())
    assert.same({ nil, "token longer than 3 bytes", "ELIMIT", {} }, { tokenizer:extract "gh\nab\n" })
    assert.equal("", tokenizer:flush())
    assert.same({ "ab" }, tokenizer:extract "ab\nc")
  end)

  it("does not keep more than its limit, and a delimiter less one byte", function()
    local tokenizer = em.BufferedTokenizer("<->", 1000)
    local bytes = 0
    repeat bytes = bytes + 1 until not tokenizer:extract "x"
    assert.equal(1003, bytes)
  end)

  it("flushes what has no delimiter yet, and says whether there is any", function()
    local tokenizer = em.BufferedTokenizer "\r\n"
    assert.is_true(tokenizer:empty())
    assert.same({}, tokenizer:extract "\r")
    assert.is_false(tokenizer:empty())
    assert.equal("\r", tokenizer:flush())
    assert.is_true(tokenizer:empty())
    assert.same({}, tokenizer:extract "\n")
    assert.same({ "\nabc" }, tokenizer:extract "abc\r\n")
    assert.is_true(tokenizer:empty())
    assert.equal("", tokenizer:flush())
  end)

  it("takes a time that is linear in the bytes, however they come", function()
    local function seconds(text, delimiter, count)
      local tokenizer = em.BufferedTokenizer(delimiter)
      local began = os.clock()
      for _ = 1, count do tokenizer:extract(text) end
      tokenizer:extract(delimiter)
      return os.clock() - began
    end
    for _, delimiter in ipairs { "\n", "\r\n", "<BOUNDARY>" } do
      local few, many = seconds("x", delimiter, 50000), seconds("x", delimiter, 500000)
      assert.is_true(many < 40 * few + 1, "10 times as many bytes take " .. many .. " s in the place of " .. few)
      few, many = seconds(("x"):rep(1000) .. delimiter, delimiter, 1000), seconds((("x"):rep(1000) .. delimiter):rep(1000), delimiter, 10)
      assert.is_true(many < 40 * few + 1, "10 times as many tokens take " .. many .. " s in the place of " .. few)
    end
  end)

  it("names a wrong argument", function()
    for text, fn in pairs {
      ["bad argument #1 to 'BufferedTokenizer' (delimiter expected, got an empty string)"] = function() em.BufferedTokenizer "" end,
      ["bad argument #1 to 'BufferedTokenizer' (delimiter expected, got number)"] = function() em.BufferedTokenizer(10) end,
      ["bad argument #2 to 'BufferedTokenizer' (limit must be a number of bytes)"] = function() em.BufferedTokenizer("\n", -1) end,
      ["bad argument #1 to 'extract' (string expected, got nil)"] = function() em.BufferedTokenizer():extract() end,
    } do
      local ok, why = pcall(fn)
      assert.is_false(ok)
      assert.equal(text, (why:gsub("^.-tokenizer_spec.lua:%d+: ", "")))
    end
  end)
end)
