/* Datagram sockets of scripts: see lua_udp.h. */
#include "lua_udp.h"

#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lua_arg.h"
#include "lua_handler.h"
#include "mem.h"
#include "sock.h"

/* A datagram that waits for an address. */
struct unaddressed {
	struct unaddressed *next;
	uint16_t port;
	size_t length;
	char bytes[];
};

/* A name that is looked up, with all that is to go there. */
struct lua_sending {
	struct lua_conn *lc;
	struct lookup *lookup;
	struct unaddressed *first, **last;
	struct lua_sending *next;
	char host[];
};

/* A socket that an earlier generation has left behind. */
struct socket_inheritance {
	int fd;
	struct socket_inheritance *next;
	char url[];
};

/* --- opening --------------------------------------------------------------------------------------------------------- */

/* A descriptor that nobody has taken yet is closed with its holder. */
static int holder_gc(lua_State *L)
{
	int *fd = lua_touserdata(L, 1);

	if (*fd >= 0)
		close(*fd);
	return 0;
}

/* Pushes a holder of a descriptor, empty: what raises later loses none. */
static int *push_holder(lua_State *L)
{
	int *fd = lua_newuserdatauv(L, sizeof *fd, 0);

	*fd = -1;
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, holder_gc);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	return fd;
}

/* Makes the connection on a held descriptor; pushes it. */
static struct lua_conn *make(lua_State *L, int meta, const struct flow *flow, int *fd, const char *label)
{
	struct lua_conn *lc = lua_conn_create(L, meta, flow);

	lua_conn_set_label(lc, label);
	udp_open(lc->c, *fd, &lua_conn_udp_events);
	*fd = -1;
	return lc;
}

/* Takes an inherited socket of that URL, or returns -1. */
static int claim(struct vm *vm, const char *url)
{
	for (struct socket_inheritance **at = &vm->inherited_sockets; *at; at = &(*at)->next) {
		struct socket_inheritance *i = *at;
		int fd = i->fd;
		if (strcmp(i->url, url) != 0)
			continue;
		*at = i->next;
		free(i);
		return fd;
	}
	return -1;
}

/* Opens a socket of a script. */
int lua_udp_listen(lua_State *L, const struct listen_conf *conf, int handler, int last)
{
	struct vm *vm = vm_of(L);
	char text[ADDR_TEXT_SIZE], *why = NULL;
	struct sockfile none;
	struct addr a = {0};
	int count = last > handler ? last - handler : 0, args = 0;

	lua_handler_resolve(L, handler);
	int function = lua_gettop(L), meta = function - 1;
	if (count) {
		lua_createtable(L, count, 0);
		args = lua_gettop(L);
		for (int i = 1; i <= count; i++) {
			lua_pushvalue(L, handler + i);
			lua_rawseti(L, args, i);
		}
	}
	int *fd = push_holder(L);
	*fd = claim(vm, conf->url_text);
	if (*fd < 0)
		*fd = legacy_take(vm->options.loop->legacy, LEGACY_LISTENER, conf->url_text, NULL);
	if (*fd < 0)
		*fd = listener_bind(conf, &none, &why);
	if (*fd < 0) {
		int error = errno;
		arg_failure(L, errno_code(error), "%s", why);
		free(why);
		return 3;
	}
	const char *label = sock_local(*fd, &a) ? lua_pushfstring(L, "udp://%s", addr_format(&a, text)) : conf->url_text;
	struct lua_conn *lc = make(L, meta, &conf->flow, fd, label);
	int self = lua_gettop(L);
	lc->listens = conf->url.port ? mem_strdup(conf->url_text) : NULL;
	lua_conn_begin(L, lc, args, count, lua_isnil(L, function) ? 0 : function);
	lua_pushvalue(L, self);
	return 1;
}

/* A listen block on its way into the VM. */
struct serve_call {
	const struct lua_class *class;
	const struct flow *flow;
	char *handler;
	const struct listener *l;
	int fd;
	struct lua_conn *lc;
};

/* Makes the connection of a block. */
static int serve_body(lua_State *L)
{
	struct serve_call *k = lua_touserdata(L, 1);
	int function = 0, args = 0;

	lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->meta_ref);
	k->lc = make(L, -1, k->flow, &k->fd, k->l->name);
	k->lc->subject.label = k->l->label;
	k->lc->handler = k->handler;
	if (lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->function_ref) != LUA_TNIL)
		function = lua_gettop(L);
	if (lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->args_ref) == LUA_TTABLE)
		args = lua_gettop(L);
	lua_conn_begin(L, k->lc, args, k->class->args_count, function);
	return 0;
}

/* Serves a block. */
struct lua_conn *lua_udp_serve(struct vm *vm, const struct lua_class *class, const struct flow *flow, char *handler, struct listener *l)
{
	struct serve_call k = {.class = class, .flow = flow, .handler = handler, .l = l, .fd = sock_duplicate(l->fd)};
	struct vm_call call = {.body = serve_body, .argument = &k, .callback = "listen"};

	if (k.fd < 0) {
		log_error("listen %s: %s", l->name, errno_text(errno));
		return NULL;
	}
	vm_enter(vm, &call);
	if (k.fd >= 0) /* no memory for it */
		close(k.fd);
	return k.lc;
}

/* Leaves a socket to an heir. */
static void bequeath(struct vm *heir, const struct lua_conn *lc)
{
	size_t length = strlen(lc->listens);
	int fd = sock_duplicate(lc->c->fd);

	if (fd < 0) {
		log_warn("%s cannot be kept over the reload: %s", lc->listens, errno_text(errno));
		return;
	}
	struct socket_inheritance *i = mem_alloc(sizeof *i + length + 1);
	*i = (struct socket_inheritance){.fd = fd, .next = heir->inherited_sockets};
	memcpy(i->url, lc->listens, length + 1);
	heir->inherited_sockets = i;
}

/* Ends those that serve. */
void lua_udp_close_servers(struct vm *vm, struct vm *heir)
{
	for (struct lua_conn *lc = vm->conns; lc; lc = lc->next) {
		if (!lc->listens || !conn_usable(lc->c))
			continue;
		if (heir)
			bequeath(heir, lc);
		conn_finish(lc->c, NULL, heir ? "reloaded" : "stopped");
	}
}

/* Leaves those that serve. */
void lua_udp_leave(const struct vm *vm, struct legacy *legacy)
{
	for (const struct lua_conn *lc = vm->conns; lc; lc = lc->next)
		if (lc->listens && conn_usable(lc->c))
			legacy_leave(legacy, LEGACY_LISTENER, lc->listens, lc->c->fd, NULL);
}

/* Closes what was not claimed. */
void lua_udp_drop_inheritance(struct vm *vm)
{
	struct socket_inheritance *i;

	while ((i = vm->inherited_sockets)) {
		vm->inherited_sockets = i->next;
		close(i->fd);
		free(i);
	}
}

/* --- sending --------------------------------------------------------------------------------------------------------- */

/* Takes a look-up off its socket's list and frees it with its datagrams, each of which is handed to each first, unless that is NULL. */
static void sending_free(struct lua_sending *s, void (*each)(struct lua_sending *s, struct unaddressed *d, void *data), void *data)
{
	struct lua_sending **at = &s->lc->sendings;
	struct unaddressed *d = s->first, *next;

	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	for (; d; d = next) {
		next = d->next;
		udp_give_up(s->lc->c, d->length);
		if (each)
			each(s, d, data);
		free(d);
	}
	free(s);
}

/* Gives up all of a socket's look-ups. */
static void cancel_sendings(struct lua_conn *lc)
{
	while (lc->sendings) {
		resolver_cancel(lc->sendings->lookup);
		sending_free(lc->sendings, NULL, NULL);
	}
}

/* What a look-up has come to. */
struct outcome {
	struct addr to; /* length 0: none */
	const char *code, *why;
};

/* One datagram's turn. */
static void settle(struct lua_sending *s, struct unaddressed *d, void *data)
{
	struct outcome *o = data;

	if (!o->to.length) {
		udp_report(s->lc->c, o->code, o->why, s->host, d->port);
		return;
	}
	addr_set_port(&o->to, d->port);
	(void)udp_send(s->lc->c, d->bytes, d->length, &o->to);
}

/* A name is known, or will not be. */
static void on_lookup(void *data, const struct addr *addresses, size_t count, const char *code, const char *why)
{
	struct outcome o = {.code = code, .why = why};

	if (count)
		o.to = addresses[0];
	sending_free(data, settle, &o);
}

/* Keeps a datagram until the name has an address. */
static void send_by_name(struct lua_conn *lc, const char *bytes, size_t length, const char *host, uint16_t port)
{
	struct lua_sending *s = lc->sendings;
	size_t names = 0, host_length = strlen(host);
	struct addr local;

	for (; s && strcmp(s->host, host) != 0; s = s->next)
		names++;
	if (length > UDP_MAX_LENGTH) {
		udp_report(lc->c, "EMSGSIZE", errno_text(EMSGSIZE), host, port);
		return;
	}
	if (!s && names >= LUA_UDP_MAX_NAMES) {
		udp_report(lc->c, "EAGAIN", "too many names are being looked up", host, port);
		return;
	}
	if (!udp_reserve(lc->c, length)) {
		lc->c->conns->loop->stats->datagrams_dropped++;
		udp_report(lc->c, "ENOBUFS", errno_text(ENOBUFS), host, port);
		return;
	}
	struct unaddressed *d = mem_alloc(sizeof *d + length);
	*d = (struct unaddressed){.port = port, .length = length};
	memcpy(d->bytes, bytes, length);
	if (s) {
		*s->last = d;
		s->last = &d->next;
		return;
	}
	s = mem_alloc(sizeof *s + host_length + 1);
	*s = (struct lua_sending){.lc = lc, .first = d, .last = &d->next, .next = lc->sendings};
	memcpy(s->host, host, host_length + 1);
	lc->sendings = s;
	lc->cancel_sendings = cancel_sendings;
	int family = sock_local(lc->c->fd, &local) ? local.any.sa_family : AF_UNSPEC;
	struct lookup *lookup = resolver_lookup(lc->vm->options.resolver, host, port, family, NULL, on_lookup, s);
	if (lookup) /* else s is gone already */
		s->lookup = lookup;
}

/* The datagram socket of self: NULL after pushing why there is none. */
static struct conn *check_datagrams(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->c || !conn_usable(lc->c)) {
		arg_failure(L, "ENOTCONN", "closed");
		return NULL;
	}
	if (!udp_is(lc->c)) {
		arg_failure(L, "EOPNOTSUPP", "not a datagram socket");
		return NULL;
	}
	return lc->c;
}

/* send_datagram(data, host, port): true; false when more waits than high_water. What fails is told by send_error. */
static int l_send_datagram(lua_State *L)
{
	size_t length;
	const char *bytes = luaL_checklstring(L, 2, &length), *host = luaL_checkstring(L, 3);
	uint16_t port = arg_port(L, 4, false);
	struct addr to;

	luaL_argcheck(L, *host, 3, "must not be empty");
	struct conn *c = check_datagrams(L);
	if (!c)
		return 3;
	if (addr_from_numeric(&to, host, port))
		(void)udp_send(c, bytes, length, &to);
	else
		send_by_name(c->user, bytes, length, host, port);
	lua_pushboolean(L, !c->full);
	return 1;
}

/* --- groups ---------------------------------------------------------------------------------------------------------- */

/* The interface that has an address; 0: none. */
static unsigned interface_of(const struct addr *a)
{
	struct ifaddrs *all;
	unsigned index = 0;

	if (getifaddrs(&all) < 0)
		return 0;
	for (struct ifaddrs *i = all; i && !index; i = i->ifa_next) {
		struct addr own = {.length = a->length};
		if (!i->ifa_addr || i->ifa_addr->sa_family != a->any.sa_family)
			continue;
		memcpy(&own.any, i->ifa_addr, a->any.sa_family == AF_INET ? sizeof own.in : sizeof own.in6);
		if (addr_same_host(&own, a))
			index = if_nametoindex(i->ifa_name);
	}
	freeifaddrs(all);
	return index;
}

/* The interface that an argument names: by its name, one of its addresses, or its index; 0 for nil. False: there is none. */
static bool check_interface(lua_State *L, int index, unsigned *interface)
{
	struct addr a;

	*interface = 0;
	if (lua_isnoneornil(L, index))
		return true;
	if (lua_type(L, index) == LUA_TNUMBER) {
		*interface = (unsigned)arg_integer(L, index, 1, INT32_MAX);
		return true;
	}
	const char *name = luaL_checkstring(L, index);
	*interface = *name && addr_from_numeric(&a, name, 0) ? interface_of(&a) : if_nametoindex(name);
	return *interface != 0;
}

/* join_multicast, leave_multicast (group[, interface]) */
static int membership(lua_State *L, enum sock_multicast what)
{
	const char *text = luaL_checkstring(L, 2);
	struct addr group;
	unsigned interface;

	luaL_argcheck(L, *text && addr_from_numeric(&group, text, 0), 2, "must be a multicast address");
	bool found = check_interface(L, 3, &interface);
	struct conn *c = check_datagrams(L);
	if (!c)
		return 3;
	if (!found)
		return arg_failure(L, "ENODEV", "no such interface: %s", lua_tostring(L, 3));
	if (sock_multicast(c->fd, what, &group, interface) < 0)
		return arg_failure_errno(L, errno);
	lua_pushboolean(L, true);
	return 1;
}

static int l_join_multicast(lua_State *L)
{
	return membership(L, MULTICAST_JOIN);
}

static int l_leave_multicast(lua_State *L)
{
	return membership(L, MULTICAST_LEAVE);
}

/* set_multicast_interface(interface): by which datagrams to groups leave; nil: as the system's routes say. */
static int l_set_multicast_interface(lua_State *L)
{
	struct addr local;
	unsigned interface;
	bool found = check_interface(L, 2, &interface);
	struct conn *c = check_datagrams(L);

	if (!c)
		return 3;
	if (!found)
		return arg_failure(L, "ENODEV", "no such interface: %s", lua_tostring(L, 2));
	if (!sock_local(c->fd, &local) || sock_multicast(c->fd, MULTICAST_SEND, &local, interface) < 0)
		return arg_failure_errno(L, errno);
	lua_pushboolean(L, true);
	return 1;
}

static const luaL_Reg methods[] = {
	{"send_datagram", l_send_datagram},
	{"join_multicast", l_join_multicast},
	{"leave_multicast", l_leave_multicast},
	{"set_multicast_interface", l_set_multicast_interface},
	{NULL, NULL},
};

/* Registers the methods. */
void lua_udp_open(lua_State *L)
{
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, methods, 0);
	lua_pop(L, 1);
}
