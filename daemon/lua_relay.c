/* Relays for scripts: see lua_relay.h. */
#include "lua_relay.h"

#include "lua_arg.h"
#include "lua_conn.h"
#include "relay.h"

/* proxy_target_unbound(self). A source whose own peer has ended already, and whose handler does not care, has nothing more to wait for. */
static void on_target_end(struct conn *c)
{
	struct lua_conn *lc = c->user;

	lua_conn_call(lc, "proxy_target_unbound");
	if (lc->eof_unheard && !c->relay)
		conn_finish(c, NULL, "eof");
}

/* proxy_completed(self) */
static void on_complete(struct conn *c)
{
	lua_conn_call(c->user, "proxy_completed");
}

static const struct relay_events events = {.on_target_end = on_target_end, .on_complete = on_complete};

/* proxy_incoming_to(target[, bufsize[, length]]): sizes in bytes, 0 and nil: the target's high-water mark, and no limit. True, or nil,
 * message, code: "ENOTCONN" where either has ended, "EPIPE" where the target is closed for writing, "EBUSY" where another connection
 * feeds it, "EOPNOTSUPP" where either carries no stream. Also em.enable_proxy(from, to[, bufsize[, length]]). */
static int l_proxy_incoming_to(lua_State *L)
{
	struct lua_conn *from = lua_conn_check(L, 1), *to = lua_conn_check(L, 2);
	lua_Integer bufsize = lua_isnoneornil(L, 3) ? 0 : arg_integer(L, 3, 0, LUA_MAXINTEGER);
	lua_Integer length = lua_isnoneornil(L, 4) ? 0 : arg_integer(L, 4, 0, LUA_MAXINTEGER);
	const char *code, *why;

	if (!from->c || !to->c)
		return arg_failure(L, "ENOTCONN", from->c ? "the target is closed" : "closed");
	if (from->c->watch_only || to->c->watch_only)
		return arg_failure(L, "EOPNOTSUPP", "not on a watch");
	if (!relay_start(from->c, to->c, (size_t)bufsize, (uint64_t)length, &events, &code, &why))
		return arg_failure(L, code, "%s", why);
	lua_pushboolean(L, true);
	return 1;
}

/* stop_proxying(): what comes in goes to receive_data again. True also where nothing was relayed. Also em.disable_proxy(from). */
static int l_stop_proxying(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->c)
		return arg_failure(L, "ENOTCONN", "closed");
	relay_stop(lc->c);
	lua_pushboolean(L, true);
	return 1;
}

/* get_proxied_bytes(): passed on since the last proxy_incoming_to; known in unbind and afterwards too. */
static int l_get_proxied_bytes(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	lua_pushinteger(L, (lua_Integer)(lc->c ? lc->c->relayed : lc->relayed));
	return 1;
}

static const luaL_Reg methods[] = {
	{"proxy_incoming_to", l_proxy_incoming_to},
	{"stop_proxying", l_stop_proxying},
	{"get_proxied_bytes", l_get_proxied_bytes},
	{NULL, NULL},
};

static const luaL_Reg functions[] = {
	{"enable_proxy", l_proxy_incoming_to},
	{"disable_proxy", l_stop_proxying},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_relay_open(lua_State *L)
{
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, methods, 0);
	lua_pop(L, 1);
	lua_pushvalue(L, 1);
	luaL_setfuncs(L, functions, 0);
	lua_pop(L, 1);
}
