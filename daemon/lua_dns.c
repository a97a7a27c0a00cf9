/* Names for scripts: see lua_dns.h. */
#include "lua_dns.h"

#include <stdlib.h>
#include <string.h>

#include "lua_arg.h"
#include "mem.h"
#include "option.h"

/* A look-up of a script. */
struct lua_lookup {
	struct vm *vm;
	struct lookup *lookup; /* NULL until resolver_lookup has returned */
	int function_ref;
	struct lua_lookup *previous, *next;
};

/* An outcome on its way into the VM. */
struct outcome_call {
	struct vm_call call;
	struct lua_lookup *l;
	const struct addr *addresses;
	size_t count;
	const char *code, *why;
};

/* Pushes the addresses as texts, each once. */
static void push_list(lua_State *L, const struct addr *addresses, size_t count)
{
	char text[ADDR_TEXT_SIZE];
	lua_Integer n = 0;

	luaL_checkstack(L, 6, "addresses");
	lua_newtable(L);
	lua_newtable(L); /* those that are in the list */
	for (size_t i = 0; i < count; i++) {
		lua_pushstring(L, addr_host(&addresses[i], text));
		lua_pushvalue(L, -1);
		if (lua_rawget(L, -3) == LUA_TNIL) {
			lua_pushvalue(L, -2);
			lua_rawseti(L, -5, ++n);
			lua_pushvalue(L, -2);
			lua_pushboolean(L, true);
			lua_rawset(L, -5);
		}
		lua_pop(L, 2);
	}
	lua_pop(L, 1);
}

/* fn(list), or fn(nil, why, code) */
static int outcome_body(lua_State *L)
{
	struct outcome_call *o = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, o->l->function_ref);
	if (o->count) {
		push_list(L, o->addresses, o->count);
		return vm_call_script(L, 1);
	}
	lua_pushnil(L);
	lua_pushstring(L, o->why);
	lua_pushstring(L, o->code);
	return vm_call_script(L, 3);
}

/* Takes a look-up off its VM's list and frees it. */
static void let_go(struct lua_lookup *l)
{
	struct vm *vm = l->vm;

	if (l->previous)
		l->previous->next = l->next;
	else
		vm->lookups = l->next;
	if (l->next)
		l->next->previous = l->previous;
	vm_unref(vm, &l->function_ref);
	free(l);
}

/* The name is known, or will not be. */
static void on_lookup(void *data, const struct addr *addresses, size_t count, const char *code, const char *why)
{
	struct outcome_call o = {.l = data, .addresses = addresses, .count = count, .code = code, .why = why};

	o.l->lookup = NULL;
	o.call = (struct vm_call){.body = outcome_body, .argument = &o, .callback = "resolve"};
	vm_enter(o.l->vm, &o.call);
	let_go(o.l);
}

/* The family that a type asks for. */
static int check_family(lua_State *L, int index)
{
	const char *type = luaL_optstring(L, index, "");

	if (strcmp(type, "A") == 0)
		return AF_INET;
	if (strcmp(type, "AAAA") == 0)
		return AF_INET6;
	luaL_argcheck(L, !*type, index, "type must be \"A\" or \"AAAA\"");
	return AF_UNSPEC;
}

/* resolve(host, type, nameserver, fn): type and nameserver may be nil. fn is called once, perhaps at once. */
static int l_resolve(lua_State *L)
{
	struct vm *vm = vm_of(L);
	size_t length;
	const char *host = luaL_checklstring(L, 1, &length);
	int family = check_family(L, 2);
	const char *server = luaL_optstring(L, 3, NULL);
	struct addr a;

	luaL_argcheck(L, !server || option_is_address(server), 3, "nameserver must be \"address\" or \"address:port\"");
	arg_function(L, 4);
	vm_check_open(L);
	lua_settop(L, 4);
	int ref = vm_ref(L);
	struct lua_lookup *l = mem_zalloc(sizeof *l);
	*l = (struct lua_lookup){.vm = vm, .function_ref = ref, .next = vm->lookups};
	if (l->next)
		l->next->previous = l;
	vm->lookups = l;
	if (!*host || strlen(host) != length) {
		on_lookup(l, NULL, 0, "EAI_NONAME", "not a valid name");
	} else if (addr_from_numeric(&a, host, 0)) { /* an address never goes to the resolver */
		bool fits = family == AF_UNSPEC || family == a.any.sa_family;
		on_lookup(l, &a, fits, "EAI_NONAME", "name has no address");
	} else {
		struct lookup *lookup = resolver_lookup(vm->options.resolver, host, 0, family, server, on_lookup, l);
		if (lookup) /* else l is gone already */
			l->lookup = lookup;
	}
	return 0;
}

/* Gives all up. */
void lua_dns_cancel_all(struct vm *vm)
{
	struct lua_lookup *l, *next;

	for (l = vm->lookups; l; l = next) {
		next = l->next;
		if (!l->lookup)
			continue; /* its function runs */
		resolver_cancel(l->lookup);
		let_go(l);
	}
}

/* Registers it. */
void lua_dns_open(lua_State *L)
{
	lua_pushcfunction(L, l_resolve);
	lua_setfield(L, 1, "resolve");
}
