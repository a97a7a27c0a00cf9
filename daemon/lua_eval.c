/* Lua by hand: see lua_eval.h. */
#include "lua_eval.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"

/* What is to be run, and what came of it. */
struct eval {
	const char *code;
	char *result;
};

/* Writes the results down. */
static int eval_done(lua_State *L, int status, lua_KContext context)
{
	struct eval *e = (struct eval *)context;
	luaL_Buffer b;
	int count = lua_gettop(L);

	(void)status;
	luaL_buffinit(L, &b);
	for (int i = 2; i <= count; i++) {
		if (i > 2)
			luaL_addchar(&b, '\t');
		luaL_tolstring(L, i, NULL);
		luaL_addvalue(&b);
	}
	luaL_pushresult(&b);
	free(e->result);
	e->result = mem_strdup(lua_tostring(L, -1));
	return 0;
}

/* Loads it as an expression, or else as statements, and calls it. */
static int eval_body(lua_State *L)
{
	struct eval *e = lua_touserdata(L, 1);

	lua_pushfstring(L, "return %s", e->code);
	if (luaL_loadbufferx(L, lua_tostring(L, -1), lua_rawlen(L, -1), "=eval", "t") != LUA_OK) {
		lua_settop(L, 1);
		if (luaL_loadbufferx(L, e->code, strlen(e->code), "=eval", "t") != LUA_OK)
			return lua_error(L);
	} else {
		lua_remove(L, 2);
	}
	lua_callk(L, 0, LUA_MULTRET, (lua_KContext)e, eval_done);
	return eval_done(L, LUA_OK, (lua_KContext)e);
}

/* Runs it. */
bool lua_eval(struct vm *vm, const char *code, char **result)
{
	struct eval e = {.code = code};
	struct vm_call call = {.body = eval_body, .argument = &e, .callback = "eval"};
	bool ok = vm_try(vm, &call, result);

	if (ok)
		*result = e.result;
	else
		free(e.result);
	return ok;
}
