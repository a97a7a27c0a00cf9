/*
 * Handlers. A class table becomes the metatable of its instances once; a name is looked up in the handlers' folders and its file run
 * once in a VM.
 */
#include "lua_handler.h"

#include <stdlib.h>
#include <string.h>

#include "lua_arg.h"
#include "lua_source.h"
#include "mem.h"

/* The callbacks that the loop makes, for the warning about a name that is nearly one of them. */
static const char *const callbacks[] = {
	"initialize",
	"post_init",
	"connection_completed",
	"receive_data",
	"receive_stderr",
	"receive_eof",
	"drained",
	"unbind",
	"send_error",
	"proxy_target_unbound",
	"proxy_completed",
	"notify_readable",
	"notify_writable",
	"file_modified",
	"file_moved",
	"file_deleted",
	"process_exited",
	"ssl_handshake_completed",
	"ssl_verify_peer",
	"receive_message",
	"handover",
	"takeover",
};

/* Does the table at index find em.Connection by way of its metatables? */
static bool is_derived(lua_State *L, int index)
{
	struct vm *vm = vm_of(L);
	int top = lua_gettop(L);
	bool found = false;

	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->connection_ref);
	lua_pushvalue(L, index);
	for (int level = 0; level < 100 && !found; level++) {
		found = lua_rawequal(L, -1, top + 1);
		if (found || !lua_getmetatable(L, -1))
			break;
		lua_pushliteral(L, "__index");
		lua_rawget(L, -2);
		if (!lua_istable(L, -1))
			break;
		lua_replace(L, top + 2);
		lua_settop(L, top + 2);
	}
	lua_settop(L, top);
	return found;
}

/* __index of instances whose class has a metatable of its own that does not lead to em.Connection: upvalues class, Connection. */
static int l_index(lua_State *L)
{
	lua_settop(L, 2);
	lua_pushvalue(L, 2);
	if (lua_gettable(L, lua_upvalueindex(1)) != LUA_TNIL)
		return 1;
	lua_pushvalue(L, 2);
	lua_gettable(L, lua_upvalueindex(2));
	return 1;
}

/* Pushes the metatable of a class's instances; it is made the first time. */
static void push_meta(lua_State *L, int class)
{
	struct vm *vm = vm_of(L);

	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->metas_ref);
	lua_pushvalue(L, class);
	if (lua_rawget(L, -2) == LUA_TTABLE) {
		lua_remove(L, -2);
		return;
	}
	lua_pop(L, 1);
	lua_createtable(L, 0, 2);
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->connection_ref);
	if (is_derived(L, class)) {
		lua_pop(L, 1);
		lua_pushvalue(L, class);
	} else if (!lua_getmetatable(L, class)) { /* a plain table becomes a class */
		lua_createtable(L, 0, 1);
		lua_insert(L, -2);
		lua_setfield(L, -2, "__index");
		lua_setmetatable(L, class);
		lua_pushvalue(L, class);
	} else {
		lua_pop(L, 1);
		lua_pushvalue(L, class);
		lua_insert(L, -2);
		lua_pushcclosure(L, l_index, 2);
	}
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, "connection");
	lua_setfield(L, -2, "__name");
	lua_pushvalue(L, class);
	lua_pushvalue(L, -2);
	lua_rawset(L, -4);
	lua_remove(L, -2);
}

/* Loads a file of text into a function, or raises with the reason. */
void lua_handler_load_file(lua_State *L, const char *path)
{
	if (lua_source_load(L, path) != LUA_OK)
		lua_error(L);
}

/* Is it a name that may be looked up: no absolute path, no step out of the folder? */
static bool proper_name(const char *name)
{
	if (!*name || *name == '/' || strstr(name, "//"))
		return false;
	for (const char *part = name; part; part = strchr(part, '/') ? strchr(part, '/') + 1 : NULL)
		if (part[0] == '.')
			return false;
	return true;
}

/* Pushes the path of a handler's file, or raises. */
static void push_path(lua_State *L, const char *name)
{
	const struct vm_options *o = &vm_of(L)->options;
	size_t length = strlen(name);

	if (length > 4 && strcmp(name + length - 4, ".lua") == 0) { /* a file, not a name */
		lua_pushstring(L, name);
		return;
	}
	if (!proper_name(name))
		luaL_error(L, "'%s' is not a handler's name", name);
	lua_pushliteral(L, "");
	int looked = lua_gettop(L);
	for (size_t i = 0; i <= o->config->handlers.count; i++) {
		const char *folder = i < o->config->handlers.count ? o->config->handlers.items[i] : o->library_dir;
		const char *path = lua_pushfstring(L, "%s/%s.lua", folder, name);
		if (lua_source_exists(L, path))
			return;
		lua_pushfstring(L, "%s%s%s", lua_tostring(L, looked), i ? ", " : "", path);
		lua_replace(L, looked);
		lua_settop(L, looked);
	}
	luaL_error(L, "no such file (looked for %s)", lua_tostring(L, looked));
}

/* Warns of functions whose names are nearly those of callbacks. */
static void warn_of_near_names(lua_State *L, int class, const char *path)
{
	char near[SUGGESTION_SIZE];

	lua_pushnil(L);
	while (lua_next(L, class)) {
		if (lua_type(L, -2) == LUA_TSTRING && lua_isfunction(L, -1)) {
			struct suggestion s = {.wanted = lua_tostring(L, -2)};
			bool known = false;
			for (size_t i = 0; i < sizeof callbacks / sizeof *callbacks && !known; i++) {
				known = strcmp(callbacks[i], s.wanted) == 0;
				suggestion_consider(&s, callbacks[i]);
			}
			if (!known && s.best)
				log_warn("%s: '%s' is not a callback%s", path, s.wanted, suggestion_text(&s, near));
		}
		lua_pop(L, 1);
	}
}

/* Pushes the handler of that name: what its file returned. */
static void push_named(lua_State *L, const char *name)
{
	struct vm *vm = vm_of(L);

	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->handlers_ref);
	if (lua_getfield(L, -1, name) != LUA_TNIL) {
		lua_remove(L, -2);
		return;
	}
	lua_pop(L, 1);
	push_path(L, name);
	const char *path = lua_tostring(L, -1);
	lua_handler_load_file(L, path);
	lua_pushstring(L, name); /* ... of the file */
	lua_call(L, 1, 1);
	if (lua_istable(L, -1))
		warn_of_near_names(L, lua_gettop(L), path);
	else if (!lua_isfunction(L, -1))
		luaL_error(L, "%s must return a handler (a table or a function), it returned %s", path,
		           lua_isnil(L, -1) ? "nothing" : luaL_typename(L, -1));
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->handlers_ref);
	lua_pushvalue(L, -2);
	lua_setfield(L, -2, name);
	lua_pop(L, 1);
}

/* Pushes a copy of a handler's name that is kept as long as the VM, the one there is or a new one. */
static const char *push_kept_name(lua_State *L, const char *handler)
{
	luaL_getsubtable(L, LUA_REGISTRYINDEX, "handler names"); /* not on the path of a chunk */
	if (lua_getfield(L, -1, handler) == LUA_TNIL) {
		lua_pop(L, 1);
		lua_pushstring(L, handler);
		lua_pushvalue(L, -1);
		lua_setfield(L, -3, handler);
	}
	return lua_tostring(L, -1); /* anchored as the table's value */
}

/* The name of a handler that is given by name. */
char *lua_handler_name(lua_State *L, int index)
{
	if (lua_type(L, index) != LUA_TSTRING)
		return NULL;
	luaL_checkstack(L, 8, "handler");
	const char *name = push_kept_name(L, lua_tostring(L, index));
	lua_pop(L, 2);
	return (char *)name;
}

/* Pushes metatable and function for a handler. */
void lua_handler_resolve(lua_State *L, int index)
{
	struct vm *vm = vm_of(L);

	luaL_checkstack(L, 16, "handler");
	if (lua_type(L, index) == LUA_TSTRING) {
		const char *name = lua_tostring(L, index);
		push_named(L, name);
		lua_handler_resolve(L, lua_gettop(L));
		return;
	}
	switch (lua_type(L, index)) {
	case LUA_TNONE:
	case LUA_TNIL:
		lua_rawgeti(L, LUA_REGISTRYINDEX, vm->connection_ref);
		push_meta(L, lua_gettop(L));
		lua_pushnil(L);
		return;
	case LUA_TFUNCTION:
		lua_rawgeti(L, LUA_REGISTRYINDEX, vm->connection_ref);
		push_meta(L, lua_gettop(L));
		lua_pushvalue(L, index);
		return;
	case LUA_TTABLE:
		if (!lua_conn_test(L, index)) {
			push_meta(L, lua_absindex(L, index));
			lua_pushnil(L);
			return;
		}
		luaL_argerror(L, index, "handler expected, got connection");
		return;
	default: luaL_typeerror(L, index, "handler (table, name or function)");
	}
}

/* References for a handler and its arguments. */
void lua_handler_class(lua_State *L, int index, int first, int last, struct lua_class *class)
{
	*class = (struct lua_class){.meta_ref = LUA_NOREF, .function_ref = LUA_NOREF, .args_ref = LUA_NOREF};
	lua_handler_resolve(L, index);
	if (last >= first) {
		luaL_checkstack(L, 4, "arguments");
		class->args_count = last - first + 1;
		lua_createtable(L, class->args_count, 0);
		for (int i = first; i <= last; i++) {
			lua_pushvalue(L, i);
			lua_rawseti(L, -2, i - first + 1);
		}
		class->args_ref = vm_ref(L);
	}
	if (lua_isnil(L, -1))
		lua_pop(L, 1);
	else
		class->function_ref = vm_ref(L);
	class->meta_ref = vm_ref(L);
}

/* What lua_handler_load hands to its body. */
struct load_call {
	const char *handler;
	const struct value *args;
	struct lua_class *class;
};

/* Loads a handler and makes a class of it, with arguments from the config. */
static int load_body(lua_State *L)
{
	struct load_call *load = lua_touserdata(L, 1);
	int count = 0;

	lua_pushstring(L, load->handler);
	int name = lua_gettop(L);
	if (load->args && load->args->kind == VALUE_TABLE)
		for (size_t i = 0; i < load->args->table.count; i++) {
			const struct value *key = &load->args->table.fields[i].key;
			if (key->kind == VALUE_INTEGER && key->integer > count && key->integer < 250)
				count = (int)key->integer;
		}
	luaL_checkstack(L, count + 16, "too many args");
	if (count) {
		arg_push_value(L, load->args);
		int table = lua_gettop(L);
		for (int i = 1; i <= count; i++)
			lua_rawgeti(L, table, i);
		lua_remove(L, table);
	}
	lua_handler_class(L, name, name + 1, name + count, load->class);
	return 0;
}

/* Finds or makes a copy of the handler's name that lives as long as the VM. */
static int name_body(lua_State *L)
{
	struct load_call *load = lua_touserdata(L, 1);

	load->handler = push_kept_name(L, load->handler);
	return 0;
}

/* The traceback when no script has run: a file that is not there or does not compile. */
static const char empty_trace[] = "\nstack traceback:\n\t[C]: in ?";

/* Loads by name. */
bool lua_handler_load(struct vm *vm, const char *handler, const struct value *args, struct lua_class *class, char **name, char **why)
{
	struct load_call load = {.handler = handler, .args = args, .class = class};
	struct vm_call call = {.body = load_body, .argument = &load, .callback = "load"};
	char *reason;

	*class = (struct lua_class){.meta_ref = LUA_NOREF, .function_ref = LUA_NOREF, .args_ref = LUA_NOREF};
	if (!vm_try(vm, &call, &reason)) {
		size_t length = strlen(reason), tail = sizeof empty_trace - 1;
		if (length > tail && strcmp(reason + length - tail, empty_trace) == 0)
			reason[length - tail] = '\0';
		*why = mem_printf("handler '%s': %s", handler, reason);
		free(reason);
		return false;
	}
	call.body = name_body;
	if (!vm_try(vm, &call, &reason)) {
		*why = reason;
		lua_class_free(vm, class);
		return false;
	}
	*name = (char *)load.handler;
	return true;
}

/* The tables of handlers and of instances' metatables. */
void lua_handler_open(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_newtable(L);
	lua_createtable(L, 0, 1);
	lua_pushliteral(L, "k");
	lua_setfield(L, -2, "__mode");
	lua_setmetatable(L, -2);
	vm->metas_ref = luaL_ref(L, LUA_REGISTRYINDEX);
	lua_newtable(L);
	vm->handlers_ref = luaL_ref(L, LUA_REGISTRYINDEX);
}
