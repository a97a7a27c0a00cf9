/* Listeners and outgoing connections of scripts: see lua_net.h. */
#include "lua_net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "lua_arg.h"
#include "lua_handler.h"
#include "lua_udp.h"
#include "lua_watch.h"
#include "mem.h"
#include "sock.h"

static const char server_key; /* its address is the registry key of the servers' metatable */

/* A listener that a script has opened; a userdata. */
struct lua_server {
	struct lua_acceptor acceptor;
	struct listener *l; /* NULL once stopped */
	int self_ref;       /* holds the userdata while it listens */
	bool has_listeners; /* of its events */
	struct addr local;  /* still known when stopped */
	struct lua_server *previous, *next;
};

/* A listener that an earlier generation has left behind. */
struct inheritance {
	struct listener *l;
	struct inheritance *next;
};

/* A connection has come in. */
void lua_net_on_accept(struct listener *l, int fd, const struct addr *peer)
{
	struct lua_acceptor *a = l->user;

	lua_conn_accept(a->vm, &a->class, &a->flow, a->handler, l, fd, peer, a->tls, a->accepted, a->server);
}

/* The server at index. */
static struct lua_server *check_server(lua_State *L, int index)
{
	struct lua_server *s = NULL;

	if (lua_getmetatable(L, index)) {
		lua_rawgetp(L, LUA_REGISTRYINDEX, &server_key);
		if (lua_rawequal(L, -1, -2))
			s = lua_touserdata(L, index);
		lua_pop(L, 2);
	}
	if (!s)
		luaL_typeerror(L, index, "server");
	return s;
}

/* Tells a server's listeners of a connection. */
static int accepted_body(lua_State *L)
{
	struct lua_accepted *a = lua_touserdata(L, 1);
	struct lua_server *s = a->server;

	if (!s->has_listeners || s->self_ref == LUA_NOREF)
		return 0;
	lua_conn_push_emit(L);
	lua_rawgeti(L, LUA_REGISTRYINDEX, s->self_ref);
	lua_pushliteral(L, "accept");
	lua_rawgeti(L, LUA_REGISTRYINDEX, a->lc->subject.self_ref);
	return vm_call_script(L, 3);
}

/* Tells a server's listeners that it has ended. */
static int closed_body(lua_State *L)
{
	struct lua_server *s = lua_touserdata(L, 1);

	lua_conn_push_emit(L);
	lua_rawgeti(L, LUA_REGISTRYINDEX, s->self_ref);
	lua_pushliteral(L, "close");
	return vm_call_script(L, 2);
}

/* Ends a server, whose listener is closed or left to an heir. */
static void server_stop(struct lua_server *s, struct vm *heir)
{
	struct vm *vm = s->acceptor.vm;
	struct listener *l = s->l;

	if (!l)
		return;
	s->l = NULL;
	if (heir) {
		struct inheritance *i = mem_alloc(sizeof *i);
		listener_pause(l);
		l->user = NULL;
		*i = (struct inheritance){.l = l, .next = heir->inherited};
		heir->inherited = i;
	} else {
		listener_close(l);
	}
	if (s->has_listeners) {
		struct vm_call call = {.body = closed_body, .argument = s, .callback = "close"};
		vm_enter(vm, &call);
	}
	if (s->previous)
		s->previous->next = s->next;
	else
		vm->servers = s->next;
	if (s->next)
		s->next->previous = s->previous;
	vm->server_count--;
	lua_class_free(vm, &s->acceptor.class);
	tls_context_unref(s->acceptor.tls);
	s->acceptor.tls = NULL;
	vm_unref(vm, &s->self_ref);
}

/* Ends all servers of a VM. Their listeners open nothing meanwhile, or this would have no end. */
void lua_net_close_servers(struct vm *vm, struct vm *heir)
{
	bool before = vm->closing;

	vm->closing = true;
	while (vm->servers)
		server_stop(vm->servers, heir);
	lua_udp_close_servers(vm, heir);
	vm->closing = before;
	if (!heir)
		return;
	struct inheritance **end = &heir->inherited; /* what nobody has claimed yet, the heir may */
	while (*end)
		end = &(*end)->next;
	*end = vm->inherited;
	vm->inherited = NULL;
}

/* Leaves them, and what an older generation has left and nobody has claimed yet. */
void lua_net_leave(struct vm *vm, struct legacy *legacy)
{
	for (struct lua_server *s = vm->servers; s; s = s->next)
		listener_leave(s->l, legacy);
	for (struct inheritance *i = vm->inherited; i; i = i->next)
		listener_leave(i->l, legacy);
	lua_udp_leave(vm, legacy);
}

/* Keeps them. */
void lua_net_keep(struct vm *vm)
{
	for (struct lua_server *s = vm->servers; s; s = s->next)
		listener_keep(s->l);
	for (struct inheritance *i = vm->inherited; i; i = i->next)
		listener_keep(i->l);
}

/* Closes what was not claimed. */
void lua_net_drop_inheritance(struct vm *vm)
{
	struct inheritance *i;

	lua_udp_drop_inheritance(vm);
	while ((i = vm->inherited)) {
		vm->inherited = i->next;
		listener_close(i->l);
		free(i);
	}
}

/* Takes an inherited listener of that URL, or (fd >= 0) on that descriptor; NULL if there is none. */
static struct listener *claim(struct vm *vm, const struct listen_conf *conf, int fd)
{
	for (struct inheritance **at = &vm->inherited; *at; at = &(*at)->next) {
		struct inheritance *i = *at;
		struct listener *l = i->l;
		if (fd >= 0 ? l->fd != fd : strcmp(l->url, conf->url_text) != 0)
			continue;
		*at = i->next;
		free(i);
		listener_update(l, conf);
		listener_resume(l);
		return l;
	}
	return NULL;
}

/* Opens a server for the handler at index handler (0: none) with the arguments after it up to last, on a descriptor that listens already if
 * fd >= 0; pushes it. */
static int open_server(lua_State *L, struct listen_conf *conf, int handler, int last, int fd)
{
	struct vm *vm = vm_of(L);
	char *why = NULL;

	if (conf->url.scheme == SCHEME_UDP)
		return lua_udp_listen(L, conf, handler, last);
	struct lua_server *s = lua_newuserdatauv(L, sizeof *s, 0);
	memset(s, 0, sizeof *s);
	lua_rawgetp(L, LUA_REGISTRYINDEX, &server_key);
	lua_setmetatable(L, -2);
	int self = lua_gettop(L);
	s->self_ref = LUA_NOREF;
	s->acceptor = (struct lua_acceptor){.vm = vm, .flow = conf->flow, .accepted = accepted_body, .server = s};
	s->acceptor.handler = lua_handler_name(L, handler);
	lua_handler_class(L, handler, handler + 1, last, &s->acceptor.class);
	lua_pushvalue(L, self);
	s->self_ref = vm_ref(L);
	if (conf->tls) {
		const char *code;
		s->acceptor.tls = tls_context_get(vm->options.tls, conf->tls, true, &code, &why);
		if (!s->acceptor.tls) {
			lua_class_free(vm, &s->acceptor.class);
			vm_unref(vm, &s->self_ref);
			arg_failure(L, code, "listen %s: %s", conf->url_text, why);
			free(why);
			return 3;
		}
	}
	s->l = claim(vm, conf, fd);
	if (!s->l && fd >= 0)
		s->l = listener_adopt(vm->options.loop, conf, fd, lua_net_on_accept, &s->acceptor, &why);
	else if (!s->l)
		s->l = listener_open(vm->options.loop, conf, lua_net_on_accept, &s->acceptor, &why);
	if (s->l && s->l->inherited)
		listener_update(s->l, conf);
	if (!s->l) {
		int error = errno;
		lua_class_free(vm, &s->acceptor.class);
		tls_context_unref(s->acceptor.tls);
		vm_unref(vm, &s->self_ref);
		arg_failure(L, errno_code(error), "%s", why);
		free(why);
		return 3;
	}
	lua_settop(L, self);
	s->l->user = &s->acceptor;
	s->local = s->l->local;
	s->next = vm->servers;
	if (s->next)
		s->next->previous = s;
	vm->servers = s;
	vm->server_count++;
	return 1;
}

/* A listen_conf that is freed with its userdata, however the function ends. */
static int conf_gc(lua_State *L)
{
	listen_conf_clear(lua_touserdata(L, 1));
	return 0;
}

/* The same for connect blocks. */
static int connect_conf_gc(lua_State *L)
{
	connect_conf_clear(lua_touserdata(L, 1));
	return 0;
}

/* Pushes a zeroed userdata of that size whose contents are freed by gc. */
static void *push_conf(lua_State *L, size_t size, lua_CFunction gc)
{
	void *conf = lua_newuserdatauv(L, size, 0);

	memset(conf, 0, size);
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, gc);
	lua_setfield(L, -2, "__gc");
	lua_setmetatable(L, -2);
	return conf;
}

/* Pushes the text of a URL for host and port. */
static const char *push_url(lua_State *L, enum scheme scheme, const char *host, uint16_t port)
{
	if (!*host)
		host = "0.0.0.0";
	return lua_pushfstring(L, strchr(host, ':') ? "%s://[%s]:%d" : "%s://%s:%d", scheme_name(scheme), host, (int)port);
}

/* The options table at index (or none) as plain data; raises where it is none. The value is the caller's to clear. */
static struct value read_options(lua_State *L, int index)
{
	struct value v = {.kind = VALUE_NIL};
	const char *why;

	if (index && !arg_read_value(L, index, &v, &why))
		luaL_argerror(L, index, why);
	return v;
}

/* Raises what is wrong with a URL or, if that is good, with the options at an index (0: there are none). The text is in C memory. */
static void raise_text(lua_State *L, const char *url, int options, char *text)
{
	struct url u;
	char *why = NULL;
	bool good = url_parse(&u, url, &why);

	if (good)
		url_clear(&u);
	free(why);
	lua_pushstring(L, text);
	free(text);
	luaL_argerror(L, good && options ? options : 1, lua_tostring(L, -1));
}

/* Validates URL and options for listening; pushes the conf. */
static struct listen_conf *push_listen_conf(lua_State *L, const char *url, int options)
{
	struct listen_conf *conf = push_conf(L, sizeof *conf, conf_gc);
	struct value v = read_options(L, options);
	char *why = NULL;
	bool ok = config_listen(conf, url, &v, &why);

	value_clear(&v);
	if (!ok)
		raise_text(L, url, options, why);
	return conf;
}

/* The URL in an options table at index. */
static const char *url_option(lua_State *L, int index)
{
	if (lua_getfield(L, index, "url") != LUA_TSTRING)
		luaL_argerror(L, index, "the table needs a url");
	return lua_tostring(L, -1); /* stays on the stack */
}

/* start_server(host, port, handler, ...) or start_server(url, handler, ...) */
static int l_start_server(lua_State *L)
{
	const char *text = luaL_checkstring(L, 1);
	int last = lua_gettop(L), handler = strstr(text, "://") ? 2 : 3;

	if (!arg_may_open(L))
		return 3;
	if (last < handler) {
		lua_settop(L, handler);
		last = handler;
	}
	const char *url = handler == 2 ? text : push_url(L, SCHEME_TCP, text, arg_port(L, 2, true));
	return open_server(L, push_listen_conf(L, url, 0), handler, last, -1);
}

/* start_unix_domain_server(path, handler, ...) */
static int l_start_unix_domain_server(lua_State *L)
{
	const char *path = luaL_checkstring(L, 1);
	int last = lua_gettop(L);
	struct addr a;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	if (!addr_from_path(&a, path))
		return arg_failure(L, errno_code(errno), "listen unix://%s: %s", path, errno_text(errno));
	return open_server(L, push_listen_conf(L, lua_pushfstring(L, "unix://%s", path), 0), 2, last, -1);
}

/* open_datagram_socket(host, port, handler, ...) */
static int l_open_datagram_socket(lua_State *L)
{
	const char *host = luaL_checkstring(L, 1);
	uint16_t port = arg_port(L, 2, true);
	int last = lua_gettop(L);

	if (!arg_may_open(L))
		return 3;
	if (last < 3)
		lua_settop(L, last = 3);
	return open_server(L, push_listen_conf(L, push_url(L, SCHEME_UDP, host, port), 0), 3, last, -1);
}

/* listen(url or table[, handler[, options]]); a table is url and options in one, arguments may follow the handler then. */
static int l_listen(lua_State *L)
{
	int last = lua_gettop(L);

	if (!arg_may_open(L))
		return 3;
	if (lua_istable(L, 1)) {
		if (last < 2)
			lua_settop(L, last = 2);
		const char *url = url_option(L, 1);
		return open_server(L, push_listen_conf(L, url, 1), 2, last, -1);
	}
	const char *url = luaL_checkstring(L, 1);
	lua_settop(L, 3);
	if (!lua_isnil(L, 3))
		luaL_checktype(L, 3, LUA_TTABLE);
	return open_server(L, push_listen_conf(L, url, lua_isnil(L, 3) ? 0 : 3), 2, 2, -1);
}

/* The URL of what a descriptor listens on: for names and logs, it is not opened by it. */
static const char *push_local_url(lua_State *L, int fd)
{
	struct addr a;
	char text[ADDR_TEXT_SIZE];

	if (!sock_local(fd, &a))
		return lua_pushfstring(L, "unix://@fd-%d", fd);
	if (a.any.sa_family == AF_UNIX)
		return lua_pushfstring(L, "unix://%s", addr_host(&a, text));
	return lua_pushfstring(L, "tcp://%s", addr_format(&a, text));
}

/* attach_server(fd, handler, ...): a descriptor that listens already. It is the server's from now on and closed when that stops; the file
 * of a Unix socket stays. */
static int l_attach_server(lua_State *L)
{
	struct vm *vm = vm_of(L);
	int last = lua_gettop(L), listening = 0;
	socklen_t size = sizeof listening;
	struct inheritance *i = vm->inherited;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	while (i && i->l->fd != lua_tointeger(L, 1))
		i = i->next;
	int fd = i ? i->l->fd : lua_watch_check_fd(L, 1);
	if (fd < 0)
		return 3;
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) < 0)
		return arg_failure_errno(L, errno);
	if (!listening)
		return arg_failure(L, "EINVAL", "descriptor %d does not listen", fd);
	return open_server(L, push_listen_conf(L, push_local_url(L, fd), 0), 2, last, fd);
}

/* server:stop(), em.stop_server(server) */
static int l_server_stop(lua_State *L)
{
	struct lua_server *s = check_server(L, 1);

	if (!s->l)
		return arg_failure(L, "ENOTCONN", "closed");
	server_stop(s, NULL);
	lua_pushboolean(L, true);
	return 1;
}

/* server:address() */
static int l_server_address(lua_State *L)
{
	return arg_push_addr(L, &check_server(L, 1)->local);
}

/* server:pause(), server:resume() */
static int l_server_pause(lua_State *L)
{
	struct lua_server *s = check_server(L, 1);

	if (!s->l)
		return arg_failure(L, "ENOTCONN", "closed");
	listener_pause(s->l);
	lua_pushboolean(L, true);
	return 1;
}

static int l_server_resume(lua_State *L)
{
	struct lua_server *s = check_server(L, 1);

	if (!s->l)
		return arg_failure(L, "ENOTCONN", "closed");
	listener_resume(s->l);
	lua_pushboolean(L, true);
	return 1;
}

/* core.listening(object[, does]): somebody listens to its events, or (false) nobody any more. Anything but a connection or server is left
 * alone. */
static int l_listening(lua_State *L)
{
	struct lua_conn *lc = lua_conn_test(L, 1);
	bool does = lua_isnoneornil(L, 2) || lua_toboolean(L, 2);

	if (lc)
		lc->has_listeners = does;
	else if (lua_isuserdata(L, 1))
		check_server(L, 1)->has_listeners = does;
	return 0;
}

/* What a connect function has found in its arguments. */
struct target {
	const char *host; /* NULL: to */
	uint16_t port;
	struct addr to;
	const char *label;   /* URL for the log, on the stack */
	struct addr bind;    /* length 0: any */
	const char *failure; /* code of what is known to fail already, or NULL */
	const char *why;
	uint64_t timeout_ns;
	struct flow flow;
	const struct tls_conf *tls_conf; /* NULL: plain */
	int proxy_version;               /* of a PROXY header to begin with, 0: none */
	struct lua_conn_names proxy_for; /* whose addresses it tells, with has_proxy_for */
	bool has_proxy_for;
};

/* Starts a new connection towards its target. */
static void start(struct lua_conn *lc, const struct target *t, struct tls_context *tls)
{
	lc->proxy_version = t->proxy_version;
	if (t->has_proxy_for) {
		lc->proxy_for = mem_alloc(sizeof *lc->proxy_for);
		*lc->proxy_for = t->proxy_for;
	}
	if (tls)
		lua_conn_use_tls(lc, tls, t->host);
	else
		lc->hostname = t->host ? mem_strdup(t->host) : NULL;
	if (t->failure)
		conn_end(lc->c, t->failure, t->why);
	else
		lua_conn_connect(lc, t->host, t->port, &t->to, t->bind.length ? &t->bind : NULL);
}

/* Makes the connection, runs its first callbacks, starts to connect; pushes it. */
static int connect_to(lua_State *L, const struct target *t, int handler, int last)
{
	char *name = lua_handler_name(L, handler);
	lua_handler_resolve(L, handler);
	int function = lua_gettop(L), meta = function - 1, args = 0, count = last > handler ? last - handler : 0;
	struct tls_context *tls = NULL;
	const char *code;
	char *why = NULL;

	if (count) {
		lua_createtable(L, count, 0);
		args = lua_gettop(L);
		for (int i = 1; i <= count; i++) {
			lua_pushvalue(L, handler + i);
			lua_rawseti(L, args, i);
		}
	}
	if (t->tls_conf && !(tls = tls_context_get(vm_of(L)->options.tls, t->tls_conf, false, &code, &why))) {
		arg_failure(L, code, "connect %s: %s", t->label, why);
		free(why);
		return 3;
	}
	struct lua_conn *lc = lua_conn_create(L, meta, &t->flow);
	int self = lua_gettop(L);
	lc->outgoing = true;
	lc->handler = name;
	lua_conn_set_label(lc, t->label);
	lc->connect_timeout_ns = t->timeout_ns;
	start(lc, t, tls);
	tls_context_unref(tls);
	lua_conn_begin(L, lc, args, count, lua_isnil(L, function) ? 0 : function);
	lua_pushvalue(L, self);
	return 1;
}

/* A target with the defaults of every way to connect. */
static void target_init(struct target *t)
{
	memset(t, 0, sizeof *t);
	flow_defaults(&t->flow);
	t->timeout_ns = 20000000000u;
}

/* The local address to connect from: an address or a name of the hosts file. */
static void set_bind(struct target *t, const char *host, uint16_t port)
{
	if (!addr_from_numeric(&t->bind, *host ? host : "0.0.0.0", port) && !resolver_local_name(host, port, &t->bind)) {
		t->failure = "EADDRNOTAVAIL";
		t->why = "the local address is neither an address nor a name in /etc/hosts";
	}
}

/* Fills a target from a Unix path. */
static void set_path(lua_State *L, struct target *t, const char *path)
{
	t->label = lua_pushfstring(L, "unix://%s", path);
	if (!addr_from_path(&t->to, path)) {
		t->failure = errno_code(errno);
		t->why = errno_text(errno);
	}
}

/* Fills a target from a connect block. */
static void set_conf(lua_State *L, struct target *t, const struct connect_conf *conf)
{
	t->flow = conf->flow;
	t->timeout_ns = conf->connect_timeout_ns;
	t->tls_conf = conf->tls;
	t->proxy_version = conf->proxy_protocol;
	if (conf->url.scheme == SCHEME_UNIX) {
		set_path(L, t, conf->url.path);
	} else {
		t->host = conf->url.host;
		t->port = conf->url.port;
		t->label = conf->url_text;
	}
	if (conf->bind && conf->url.scheme != SCHEME_UNIX) {
		struct url local;
		char *why = NULL, *text = mem_printf("tcp://%s", conf->bind), *any_port = mem_printf("tcp://%s:0", conf->bind);
		if (url_parse(&local, text, &why) || (free(why), why = NULL, url_parse(&local, any_port, &why))) {
			set_bind(t, local.host, local.port);
			url_clear(&local);
		} else {
			t->failure = "EADDRNOTAVAIL";
			t->why = "bind is no host or host:port";
		}
		free(why);
		free(text);
		free(any_port);
	}
}

/* Takes proxy_for, a connection, out of the options at index 1, of which a copy takes the place: the rest is plain data. */
static void take_proxy_for(lua_State *L, struct target *t)
{
	if (lua_getfield(L, 1, "proxy_for") == LUA_TNIL) {
		lua_pop(L, 1);
		return;
	}
	struct lua_conn *client = lua_conn_test(L, -1);
	if (!client)
		luaL_argerror(L, 1, lua_pushfstring(L, "proxy_for must be a connection, got %s", luaL_typename(L, -1)));
	if (lua_getfield(L, 1, "proxy_protocol") == LUA_TNIL)
		luaL_argerror(L, 1, "proxy_for needs proxy_protocol");
	t->has_proxy_for = true;
	if (client->c) {
		t->proxy_for.peer = client->c->peer;
		(void)!conn_local(client->c, &t->proxy_for.local);
	} else if (client->names) {
		t->proxy_for = *client->names;
	}
	lua_pop(L, 2);
	lua_newtable(L);
	lua_pushnil(L);
	while (lua_next(L, 1)) {
		lua_pushvalue(L, -2);
		lua_insert(L, -2);
		if (lua_type(L, -2) == LUA_TSTRING && strcmp(lua_tostring(L, -2), "proxy_for") == 0)
			lua_pop(L, 2);
		else
			lua_rawset(L, -4);
	}
	lua_replace(L, 1);
}

/* connect(host, port, handler, ...), connect(url, handler, ...), connect({url = …, …}, handler, ...) */
static int l_connect(lua_State *L)
{
	int last = lua_gettop(L), handler = 2, options = 0;
	const char *url;
	struct target t;

	if (!arg_may_open(L))
		return 3;
	target_init(&t);
	if (lua_istable(L, 1)) {
		options = 1;
	} else if (!strstr(luaL_checkstring(L, 1), "://")) {
		handler = 3;
	}
	if (last < handler)
		lua_settop(L, last = handler);
	if (handler == 3) {
		t.host = lua_tostring(L, 1);
		t.port = arg_port(L, 2, false);
		t.label = push_url(L, SCHEME_TCP, t.host, t.port);
		if (!*t.host) {
			t.failure = "EAI_NONAME";
			t.why = "not a valid name";
		}
		return connect_to(L, &t, 3, last);
	}
	if (options)
		take_proxy_for(L, &t);
	url = options ? url_option(L, 1) : lua_tostring(L, 1);
	struct connect_conf *conf = push_conf(L, sizeof *conf, connect_conf_gc);
	struct value v = read_options(L, options);
	char *why = NULL;
	bool ok = config_connect(conf, url, &v, &why);
	value_clear(&v);
	if (!ok)
		raise_text(L, url, options, why);
	set_conf(L, &t, conf);
	return connect_to(L, &t, handler, last);
}

/* connect_unix_domain(path, handler, ...) */
static int l_connect_unix_domain(lua_State *L)
{
	const char *path = luaL_checkstring(L, 1);
	int last = lua_gettop(L);
	struct target t;

	if (!arg_may_open(L))
		return 3;
	target_init(&t);
	if (last < 2)
		lua_settop(L, last = 2);
	set_path(L, &t, path);
	return connect_to(L, &t, 2, last);
}

/* bind_connect(bind_host, bind_port, host, port, handler, ...) */
static int l_bind_connect(lua_State *L)
{
	int last = lua_gettop(L);
	struct target t;

	if (!arg_may_open(L))
		return 3;
	target_init(&t);
	if (last < 5)
		lua_settop(L, last = 5);
	set_bind(&t, luaL_checkstring(L, 1), lua_isnil(L, 2) ? 0 : arg_port(L, 2, true));
	t.host = luaL_checkstring(L, 3);
	t.port = arg_port(L, 4, false);
	t.label = push_url(L, SCHEME_TCP, t.host, t.port);
	return connect_to(L, &t, 5, last);
}

/* The work of reconnect: self at index 1. Still connected: nothing happens, as in EventMachine. */
static int reconnect(lua_State *L, const char *host, uint16_t port)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	struct vm *vm = lc->vm;

	if (!arg_may_open(L))
		return 3;
	if (vm->options.host->stopping && vm->options.host->stopping(vm))
		return arg_failure(L, "ECANCELED", "stopping");
	if (lc->moved)
		return arg_failure(L, "ENOTCONN", "closed");
	if (!lc->outgoing)
		return arg_failure(L, "EOPNOTSUPP", "only an outgoing connection can reconnect");
	if (lc->again || (lc->c && !lc->unbinding)) {
		lua_settop(L, 1);
		return 1;
	}
	struct flow flow = lc->unbinding ? lc->c->flow : lc->names->flow;
	const char *label = push_url(L, SCHEME_TCP, host, port);
	if (!lc->unbinding) /* long gone: it is taken back into the VM's keeping */
		lua_conn_hold(L, lc, 1);
	free(lc->hostname); /* the new one is whom TLS asks for and verifies */
	lc->hostname = mem_strdup(host);
	lua_conn_revive(lc, &flow);
	lua_conn_set_label(lc, label);
	lua_conn_connect(lc, host, port, NULL, NULL);
	lua_settop(L, 1);
	return 1;
}

/* conn:reconnect(host, port) */
static int l_conn_reconnect(lua_State *L)
{
	const char *host = luaL_checkstring(L, 2);

	return reconnect(L, host, arg_port(L, 3, false));
}

/* em.reconnect(host, port, conn) */
static int l_reconnect(lua_State *L)
{
	const char *host = luaL_checkstring(L, 1);
	uint16_t port = arg_port(L, 2, false);

	lua_conn_check(L, 3);
	lua_insert(L, 1); /* conn, host, port */
	return reconnect(L, host, port);
}

/* connection_count(): listeners and connections, as in EventMachine. */
static int l_connection_count(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushinteger(L, (lua_Integer)(vm->options.conns->count + vm->options.loop->stats->listeners));
	return 1;
}

/* A connect block on its way into the VM. */
struct connect_call {
	const struct connect_conf *conf;
	const struct lua_class *class;
	struct tls_context *tls;
	struct lua_conn *lc;
	char *handler;
};

/* Makes the connection of a block. */
static int connect_body(lua_State *L)
{
	struct connect_call *k = lua_touserdata(L, 1);
	struct target t;
	int function = 0, args = 0;

	target_init(&t);
	set_conf(L, &t, k->conf);
	lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->meta_ref);
	struct lua_conn *lc = lua_conn_create(L, -1, &t.flow);
	lua_conn_set_label(lc, t.label);
	lc->subject.label = scorer_label(vm_of(L)->options.loop->scorer, t.label);
	lc->handler = k->handler;
	lc->connect_timeout_ns = t.timeout_ns;
	k->lc = lc;
	lc->outgoing = true;
	start(lc, &t, k->tls);
	if (lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->function_ref) != LUA_TNIL)
		function = lua_gettop(L);
	if (lua_rawgeti(L, LUA_REGISTRYINDEX, k->class->args_ref) == LUA_TTABLE)
		args = lua_gettop(L);
	lua_conn_begin(L, lc, args, k->class->args_count, function);
	return 0;
}

/* Connects for a block. */
struct lua_conn *lua_net_connect(struct vm *vm, const struct connect_conf *conf, const struct lua_class *class, struct tls_context *tls,
                                 char *handler)
{
	struct connect_call k = {.conf = conf, .class = class, .tls = tls, .handler = handler};
	struct vm_call call = {.body = connect_body, .argument = &k, .callback = "connect"};

	vm_enter(vm, &call);
	return k.lc;
}

static const luaL_Reg server_methods[] = {
	{"stop", l_server_stop}, {"address", l_server_address}, {"pause", l_server_pause}, {"resume", l_server_resume}, {NULL, NULL},
};

static const luaL_Reg functions[] = {
	{"start_server", l_start_server},
	{"start_unix_domain_server", l_start_unix_domain_server},
	{"open_datagram_socket", l_open_datagram_socket},
	{"listen", l_listen},
	{"attach_server", l_attach_server},
	{"stop_server", l_server_stop},
	{"connect", l_connect},
	{"connect_unix_domain", l_connect_unix_domain},
	{"bind_connect", l_bind_connect},
	{"reconnect", l_reconnect},
	{"connection_count", l_connection_count},
	{"listening", l_listening},
	{NULL, NULL},
};

/* Registers the functions; core.Server is the table of servers' methods. */
void lua_net_open(lua_State *L)
{
	struct vm *vm = vm_of(L);

	lua_pushvalue(L, 1);
	luaL_setfuncs(L, functions, 0);
	lua_pop(L, 1);
	lua_newtable(L);
	luaL_newlib(L, server_methods);
	lua_pushvalue(L, -1);
	lua_setfield(L, 1, "Server");
	lua_setfield(L, -2, "__index");
	lua_pushliteral(L, "server");
	lua_setfield(L, -2, "__name");
	lua_pushliteral(L, "server");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &server_key);
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm->connection_ref);
	lua_pushcfunction(L, l_conn_reconnect);
	lua_setfield(L, -2, "reconnect");
	lua_pop(L, 1);
}
