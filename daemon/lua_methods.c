/*
 * The methods of em.Connection, each a thin face of a conn_ function. On a connection that has ended they return nil, "closed",
 * "ENOTCONN" and do nothing.
 */
#include "lua_methods.h"

#include <errno.h>
#include <sys/socket.h>

#include "lua_arg.h"
#include "lua_conn.h"
#include "sock.h"

/* What every method returns after the end. */
static int closed(lua_State *L)
{
	return arg_failure(L, "ENOTCONN", "closed");
}

/* The connection of self; NULL once it has ended. During unbind it is still there, until reconnect has made the next one. */
static struct conn *self_conn(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	return lc->again ? lc->again : lc->c;
}

/* The same, but NULL also from the moment on in which it was closed. */
static struct conn *usable_conn(lua_State *L)
{
	struct conn *c = self_conn(L);

	return c && c->state != CONN_ENDING ? c : NULL;
}

/* What a method of streams returns on what is none. */
static int no_stream(lua_State *L)
{
	return arg_failure(L, "EOPNOTSUPP", "not on a datagram socket or a watch");
}

/* Method results that say "done". */
static int done(lua_State *L)
{
	lua_pushboolean(L, true);
	return 1;
}

/* send_data on a datagram socket: the arguments are one datagram, for the sender of the one that is being handled. */
static int answer(lua_State *L, struct conn *c, int top)
{
	size_t length;

	if (!c->peer.length)
		return arg_failure(L, "EDESTADDRREQ", "there is no datagram to answer: use send_datagram");
	lua_concat(L, top - 1);
	const char *bytes = lua_tolstring(L, -1, &length);
	enum send_result result = udp_send(c, bytes, length, &c->peer);
	if (result == SEND_CLOSED)
		return closed(L);
	lua_pushboolean(L, result == SEND_OK);
	return 1;
}

/* send_data(data, ...): strings and numbers. All arguments are checked before the first is queued. */
static int l_send_data(lua_State *L)
{
	struct conn *c = self_conn(L);
	int top = lua_gettop(L);
	enum send_result result = SEND_OK;

	for (int i = 2; i <= top; i++)
		luaL_checkstring(L, i);
	if (top < 2)
		return luaL_argerror(L, 2, "string expected, got no value");
	if (!c)
		return closed(L);
	if (udp_is(c))
		return conn_usable(c) ? answer(L, c, top) : closed(L);
	for (int i = 2; i <= top && result <= SEND_FULL; i++) {
		size_t length;
		const char *bytes = lua_tolstring(L, i, &length);
		result = conn_send(c, bytes, length);
	}
	return lua_conn_push_sent(L, result);
}

/* close_connection([after_writing]) */
static int l_close_connection(lua_State *L)
{
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	if (lua_toboolean(L, 2))
		conn_finish(c, NULL, "closed");
	else
		conn_end(c, NULL, "closed");
	return done(L);
}

/* close_connection_after_writing(): by way of close_connection, so that an overridden one hears of it. */
static int l_close_connection_after_writing(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	lua_settop(L, 1);
	lua_getfield(L, 1, "close_connection");
	lua_pushvalue(L, 1);
	lua_pushboolean(L, true);
	lua_call(L, 2, LUA_MULTRET);
	return lua_gettop(L) - 1;
}

/* close_write() */
static int l_close_write(lua_State *L)
{
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	if (c->transport || c->watch_only)
		return no_stream(L);
	conn_shut(c);
	return done(L);
}

/* get_outbound_data_size() */
static int l_get_outbound_data_size(lua_State *L)
{
	struct conn *c = self_conn(L);

	if (!c)
		return closed(L);
	lua_pushinteger(L, (lua_Integer)c->queued);
	return 1;
}

/* set_watermarks(low, high) */
static int l_set_watermarks(lua_State *L)
{
	lua_Integer low = arg_integer(L, 2, 0, LUA_MAXINTEGER), high = arg_integer(L, 3, 0, LUA_MAXINTEGER);
	struct conn *c = usable_conn(L);

	luaL_argcheck(L, low <= high, 3, "the high-water mark must not be below the low one");
	if (!c)
		return closed(L);
	if (!conn_set_watermarks(c, (size_t)low, (size_t)high))
		return luaL_argerror(L, 3, "the high-water mark must not be above max_outbound");
	return done(L);
}

/* pause() */
static int l_pause(lua_State *L)
{
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	if (c->watch_only)
		return no_stream(L);
	conn_pause(c);
	return done(L);
}

/* resume() */
static int l_resume(lua_State *L)
{
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	if (c->watch_only)
		return no_stream(L);
	conn_resume(c);
	return done(L);
}

/* paused() */
static int l_paused(lua_State *L)
{
	struct conn *c = self_conn(L);

	if (!c)
		return closed(L);
	lua_pushboolean(L, c->paused);
	return 1;
}

/* get_peername() */
static int l_get_peername(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	static const struct addr none = {0};

	return arg_push_addr(L, lc->c ? &lc->c->peer : lc->names ? &lc->names->peer : &none);
}

/* get_sockname() */
static int l_get_sockname(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	struct addr local = {0};

	if (lc->c && lc->c->fd >= 0)
		(void)!conn_local(lc->c, &local);
	else if (lc->names && (!lc->c || lc->c->state == CONN_ENDING)) /* it has ended, or was detached */
		local = lc->names->local;
	return arg_push_addr(L, &local);
}

/* set_comm_inactivity_timeout(s) */
static int l_set_comm_inactivity_timeout(lua_State *L)
{
	uint64_t ns = arg_seconds(L, 2);
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	conn_set_idle_timeout(c, ns);
	return done(L);
}

/* get_comm_inactivity_timeout() */
static int l_get_comm_inactivity_timeout(lua_State *L)
{
	struct conn *c = self_conn(L);

	if (!c)
		return closed(L);
	arg_push_seconds(L, c->flow.idle_timeout_ns);
	return 1;
}

/* set_pending_connect_timeout(s) */
static int l_set_pending_connect_timeout(lua_State *L)
{
	uint64_t ns = arg_seconds(L, 2);
	struct lua_conn *lc = lua_conn_check(L, 1);

	struct conn *c = usable_conn(L);

	luaL_argcheck(L, ns > 0, 2, "must be above 0");
	if (!c)
		return closed(L);
	lc->connect_timeout_ns = ns;
	conn_set_connect_timeout(c, ns);
	return done(L);
}

/* get_pending_connect_timeout() */
static int l_get_pending_connect_timeout(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->c)
		return closed(L);
	arg_push_seconds(L, lc->connect_timeout_ns);
	return 1;
}

/* get_idle_time() */
static int l_get_idle_time(lua_State *L)
{
	struct conn *c = self_conn(L);

	if (!c)
		return closed(L);
	arg_push_seconds(L, loop_now(c->conns->loop) - c->last_io_ns);
	return 1;
}

/* enable_keepalive([idle, interval, count]): whole seconds. Before the connection is up it is remembered. */
static int l_enable_keepalive(lua_State *L)
{
	int figures[3];
	struct conn *c = usable_conn(L);

	for (int i = 0; i < 3; i++)
		figures[i] = lua_isnoneornil(L, i + 2) ? 0 : (int)arg_integer(L, i + 2, 0, 32767);
	if (!c)
		return closed(L);
	if (c->transport || c->watch_only)
		return no_stream(L);
	c->flow.keepalive = figures[0];
	c->flow.keepalive_interval = figures[1];
	c->flow.keepalive_count = figures[2];
	if (c->fd >= 0 && sock_keepalive(c->fd, true, figures[0], figures[1], figures[2]) < 0)
		return arg_failure_errno(L, errno);
	return done(L);
}

/* disable_keepalive() */
static int l_disable_keepalive(lua_State *L)
{
	struct conn *c = usable_conn(L);

	if (!c)
		return closed(L);
	if (c->transport || c->watch_only)
		return no_stream(L);
	c->flow.keepalive = -1;
	if (c->fd >= 0 && sock_keepalive(c->fd, false, 0, 0, 0) < 0)
		return arg_failure_errno(L, errno);
	return done(L);
}

/* What a method returns that needs the socket itself when there is none: not yet, or not any more. */
static int no_socket(lua_State *L, const struct conn *c)
{
	return c ? arg_failure(L, "ENOTCONN", "not connected yet") : closed(L);
}

/* The option that arguments 2 and 3 name. */
static const struct sock_option *check_option(lua_State *L)
{
	const char *level = luaL_checkstring(L, 2), *name = luaL_checkstring(L, 3);
	const struct sock_option *option = sock_option(level, name);

	if (!option)
		luaL_argerror(L, 3, lua_pushfstring(L, "unknown socket option '%s', '%s'", level, name));
	return option;
}

/* set_sock_opt(level, name, value) */
static int l_set_sock_opt(lua_State *L)
{
	const struct sock_option *option = check_option(L);
	int value = lua_isboolean(L, 4) ? lua_toboolean(L, 4) : (int)arg_integer(L, 4, INT32_MIN, INT32_MAX);
	struct conn *c = usable_conn(L);

	if (!c || c->fd < 0)
		return no_socket(L, c);
	if (sock_option_set(c->fd, option, value) < 0)
		return arg_failure_errno(L, errno);
	return done(L);
}

/* get_sock_opt(level, name): a boolean for a switch, else an integer. */
static int l_get_sock_opt(lua_State *L)
{
	const struct sock_option *option = check_option(L);
	struct conn *c = self_conn(L);
	int value;

	if (!c || c->fd < 0)
		return no_socket(L, c);
	if (option->level_number == SOL_SOCKET && option->number == SO_ERROR)
		value = conn_error(c);
	else if (sock_option_get(c->fd, option, &value) < 0)
		return arg_failure_errno(L, errno);
	if (option->is_switch)
		lua_pushboolean(L, value != 0);
	else
		lua_pushinteger(L, value);
	return 1;
}

/* error(): the socket's pending error. */
static int l_error(lua_State *L)
{
	struct conn *c = self_conn(L);

	if (!c)
		return closed(L);
	int error = conn_error(c);
	if (error)
		lua_pushstring(L, errno_code(error));
	else
		lua_pushnil(L);
	return 1;
}

static const luaL_Reg methods[] = {
	{"send_data", l_send_data},
	{"write", l_send_data},
	{"close_connection", l_close_connection},
	{"close_connection_after_writing", l_close_connection_after_writing},
	{"close_write", l_close_write},
	{"get_outbound_data_size", l_get_outbound_data_size},
	{"set_watermarks", l_set_watermarks},
	{"pause", l_pause},
	{"resume", l_resume},
	{"paused", l_paused},
	{"get_peername", l_get_peername},
	{"get_sockname", l_get_sockname},
	{"set_comm_inactivity_timeout", l_set_comm_inactivity_timeout},
	{"get_comm_inactivity_timeout", l_get_comm_inactivity_timeout},
	{"set_pending_connect_timeout", l_set_pending_connect_timeout},
	{"get_pending_connect_timeout", l_get_pending_connect_timeout},
	{"get_idle_time", l_get_idle_time},
	{"enable_keepalive", l_enable_keepalive},
	{"disable_keepalive", l_disable_keepalive},
	{"set_sock_opt", l_set_sock_opt},
	{"get_sock_opt", l_get_sock_opt},
	{"error", l_error},
	{NULL, NULL},
};

/* Registers the methods. */
void lua_methods_open(lua_State *L)
{
	luaL_setfuncs(L, methods, 0);
}
