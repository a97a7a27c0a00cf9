/* Files of Lua: see lua_source.h. */
#include "lua_source.h"

#include <errno.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lua_vm.h"
#include "sources.h"

/* Pushes the contents of a file; false when it cannot be read, as luaL_loadfilex will say better. */
static bool push_file(lua_State *L, const char *path)
{
	FILE *file = fopen(path, "re");
	luaL_Buffer b;
	size_t n;

	if (!file)
		return false;
	luaL_buffinit(L, &b);
	do {
		char *room = luaL_prepbuffsize(&b, BUFSIZ);
		n = fread(room, 1, BUFSIZ, file);
		luaL_addsize(&b, n);
	} while (n);
	bool good = !ferror(file);
	fclose(file);
	luaL_pushresult(&b);
	if (!good)
		lua_pop(L, 1);
	return good;
}

/* Skips what may stand before a program: a byte order mark, a first line that begins with '#', whose line break stays for the numbers of
 * the lines. */
static const char *skip_lead(const char *text, const char *end)
{
	if (end - text >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0)
		text += 3;
	if (text < end && *text == '#')
		while (text < end && *text != '\n')
			text++;
	return text;
}

/* Where files come from now; NULL: from the disk. What a script wants later is read when it is wanted. */
static struct sources *sources_of(lua_State *L)
{
	struct vm *vm = vm_of(L);

	return vm->loading ? vm->options.sources : NULL;
}

/* Loads a file. */
int lua_source_load(lua_State *L, const char *path)
{
	struct sources *sources = sources_of(L);
	size_t length;

	if (!sources)
		return luaL_loadfilex(L, path, "t");
	const char *text = sources_find(sources, path, &length);
	lua_pushfstring(L, "@%s", path);
	if (text) {
		lua_pushlstring(L, text, length); /* the text's life is Lua's business now */
	} else {
		if (!push_file(L, path)) {
			lua_pop(L, 1);
			return luaL_loadfilex(L, path, "t");
		}
		text = lua_tolstring(L, -1, &length);
		sources_add(sources, path, text, length);
	}
	text = lua_tolstring(L, -1, &length);
	const char *begin = skip_lead(text, text + length);
	int status = luaL_loadbufferx(L, begin, (size_t)(text + length - begin), lua_tostring(L, -2), "t");
	lua_remove(L, -2);
	lua_remove(L, -2);
	return status;
}

/* Looks at both. */
bool lua_source_exists(lua_State *L, const char *path)
{
	const struct sources *sources = sources_of(L);
	size_t length;

	return (sources && sources_find(sources, path, &length)) || access(path, F_OK) == 0;
}

/* Looks a module up. */
bool lua_source_search(lua_State *L, const char *name, const char *templates)
{
	const struct sources *sources = sources_of(L);
	size_t length;

	if (!sources)
		return false;
	const char *file = luaL_gsub(L, name, ".", "/");
	while (*templates) {
		size_t size = strcspn(templates, ";");
		lua_pushlstring(L, templates, size);
		const char *path = luaL_gsub(L, lua_tostring(L, -1), "?", file);
		if (sources_find(sources, path, &length)) {
			lua_insert(L, -3);
			lua_pop(L, 2);
			return true;
		}
		lua_pop(L, 2);
		templates += size + (templates[size] == ';');
	}
	lua_pop(L, 1);
	return false;
}
