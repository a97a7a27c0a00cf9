/* The log, print, identifiers: see lua_sys.h. */
#include "lua_sys.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>

#include "log.h"
#include "lua_arg.h"
#include "metrics.h"
#include "privs.h"

/* Writes the message at the top of the stack with the callback in which it was logged, its connection and the place of the call. */
static void write_line(lua_State *L, enum log_level level)
{
	const struct vm_call *call = vm_of(L)->call;
	struct vm_subject *subject = call ? call->subject : NULL;
	struct log_context context = {.callback = call ? call->callback : NULL};
	lua_Debug place;
	char source[sizeof place.short_src + 16], peer[ADDR_TEXT_SIZE];

	if (subject)
		subject->describe(subject, &context, peer);
	if (lua_getstack(L, 1, &place) && lua_getinfo(L, "Sl", &place) && place.currentline > 0) {
		snprintf(source, sizeof source, "%s:%d", place.short_src, place.currentline);
		context.source = source;
	}
	log_event(level, &context, "%s", lua_tostring(L, -1));
}

/* em.log.<level>(fmt, ...): as string.format; with one argument it is taken as it is. The level is an upvalue. */
static int l_log(lua_State *L)
{
	int count = lua_gettop(L);

	luaL_checkany(L, 1);
	if (count > 1) {
		luaL_checkstring(L, 1);
		lua_pushvalue(L, lua_upvalueindex(2)); /* string.format */
		lua_insert(L, 1);
		lua_call(L, count, 1);
	} else {
		luaL_tolstring(L, 1, NULL);
	}
	write_line(L, (enum log_level)lua_tointeger(L, lua_upvalueindex(1)));
	return 0;
}

/* print(...): to the log in the daemon, to standard output in a script that is run. */
static int l_print(lua_State *L)
{
	int count = lua_gettop(L);
	bool is_script = vm_of(L)->options.is_script;
	luaL_Buffer line;

	luaL_buffinit(L, &line);
	for (int i = 1; i <= count; i++) {
		if (i > 1)
			luaL_addchar(&line, '\t');
		luaL_tolstring(L, i, NULL);
		luaL_addvalue(&line);
	}
	luaL_pushresult(&line);
	if (!is_script) {
		write_line(L, LEVEL_INFO);
		return 0;
	}
	size_t length;
	const char *text = lua_tolstring(L, -1, &length);
	fwrite(text, 1, length, stdout);
	fputc('\n', stdout);
	return 0;
}

/* uuid(): a random (version 4) UUID. */
static int l_uuid(lua_State *L)
{
	unsigned char b[16];
	char text[37];

	if (getrandom(b, sizeof b, 0) != sizeof b)
		return luaL_error(L, "the system has no random numbers");
	b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
	b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
	snprintf(text, sizeof text, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5],
	         b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
	lua_pushstring(L, text);
	return 1;
}

/* set_descriptor_table_size([n]): sets how many descriptors the process may have, the hard limit too where n is above it; returns the
 * limit. */
static int l_set_descriptor_table_size(lua_State *L)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return arg_failure_errno(L, errno);
	if (!lua_isnoneornil(L, 1)) {
		limit.rlim_cur = (rlim_t)arg_integer(L, 1, 1, INT32_MAX);
		vm_check_open(L);
		if (limit.rlim_cur > limit.rlim_max)
			limit.rlim_max = limit.rlim_cur;
		if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
			return arg_failure_errno(L, errno);
	}
	lua_pushinteger(L, (lua_Integer)limit.rlim_cur);
	return 1;
}

/* set_effective_user(user[, group]): by name or number. User, group and supplementary groups of the process for good, or an error: what
 * goes on with more rights than it believes to have is worse than what ends. */
static int l_set_effective_user(lua_State *L)
{
	const char *user = luaL_checkstring(L, 1), *group = luaL_optstring(L, 2, NULL);
	char *why = NULL;

	vm_check_open(L);
	if (!privs_drop(user, group, &why)) {
		lua_pushstring(L, why);
		free(why);
		luaL_where(L, 1);
		lua_insert(L, -2);
		lua_concat(L, 2);
		return lua_error(L);
	}
	lua_pushboolean(L, true);
	return 1;
}

/* Frees a text that was left behind. */
static int free_text(lua_State *L)
{
	char **text = lua_touserdata(L, 1);

	free(*text);
	*text = NULL;
	return 0;
}

/* metrics(): all counters of the daemon, in the text format of Prometheus. The text is freed also where there is no memory for a string. */
static int l_metrics(lua_State *L)
{
	const struct loop *loop = vm_of(L)->options.loop;
	char **text = lua_newuserdatauv(L, sizeof *text, 0);

	*text = NULL;
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, free_text);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	*text = metrics_text(scoreboard_of(loop->score), loop_clock());
	lua_pushstring(L, *text);
	free(*text);
	*text = NULL;
	return 1;
}

/* loop_lag(): seconds of the longest turn of this process's loop of late, or of the one that runs. */
static int l_loop_lag(lua_State *L)
{
	const struct loop *loop = vm_of(L)->options.loop;

	arg_push_seconds(L, score_lag(loop->score, loop_clock()));
	return 1;
}

/* Registers all of it. */
void lua_sys_open(lua_State *L)
{
	static const enum log_level levels[] = {LEVEL_DEBUG, LEVEL_INFO, LEVEL_WARN, LEVEL_ERROR};

	lua_newtable(L);
	for (size_t i = 0; i < sizeof levels / sizeof *levels; i++) {
		lua_pushinteger(L, levels[i]);
		lua_getglobal(L, "string");
		lua_getfield(L, -1, "format");
		lua_remove(L, -2);
		lua_pushcclosure(L, l_log, 2);
		lua_setfield(L, -2, log_level_name(levels[i]));
	}
	lua_setfield(L, 1, "log");
	lua_pushcfunction(L, l_metrics);
	lua_setfield(L, 1, "metrics");
	lua_pushcfunction(L, l_loop_lag);
	lua_setfield(L, 1, "loop_lag");
	lua_pushcfunction(L, l_uuid);
	lua_setfield(L, 1, "uuid");
	lua_pushcfunction(L, l_set_descriptor_table_size);
	lua_setfield(L, 1, "set_descriptor_table_size");
	lua_pushcfunction(L, l_set_effective_user);
	lua_setfield(L, 1, "set_effective_user");
	lua_pushcfunction(L, l_print);
	lua_setglobal(L, "print");
}
