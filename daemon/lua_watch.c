/* Descriptors, files and processes for scripts: see lua_watch.h. */
#include "lua_watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lua_arg.h"
#include "lua_handler.h"
#include "mem.h"
#include "watch.h"

static const char watch_key; /* its address is the registry key of the watches' metatable */

/* The watch behind an instance; a userdata. */
struct lua_watch {
	struct lua_conn *lc; /* NULL until it is there */
	int self_ref;        /* holds the userdata as long as lc lives */
	int handle_ref;      /* holds the Lua file whose descriptor is watched: collected it would be closed */
	struct file_watch *file;
	struct process_watch *process;
};

/* --- instances ------------------------------------------------------------------------------------------------------------------ */

/* What is made of a handler and its arguments. */
struct instance {
	int meta, function, args, count; /* stack indices */
	int self;
	struct lua_conn *lc;
};

/* Resolves the handler at index and takes the arguments behind it, up to last. */
static void prepare(lua_State *L, int handler, int last, struct instance *i)
{
	lua_handler_resolve(L, handler);
	i->function = lua_gettop(L);
	i->meta = i->function - 1;
	i->count = last > handler ? last - handler : 0;
	i->args = 0;
	if (!i->count)
		return;
	lua_createtable(L, i->count, 0);
	i->args = lua_gettop(L);
	for (int n = 1; n <= i->count; n++) {
		lua_pushvalue(L, handler + n);
		lua_rawseti(L, i->args, n);
	}
}

/* Makes the instance, whose connection has no descriptor yet; label is copied. */
static void create(lua_State *L, struct instance *i, const char *label)
{
	struct flow flow;

	flow_defaults(&flow);
	i->lc = lua_conn_create(L, i->meta, &flow);
	i->self = lua_gettop(L);
	lua_conn_set_label(i->lc, label);
}

/* Its first callbacks; pushes it. */
static int begin(lua_State *L, const struct instance *i)
{
	lua_conn_begin(L, i->lc, i->args, i->count, lua_isnil(L, i->function) ? 0 : i->function);
	lua_pushvalue(L, i->self);
	return 1;
}

/* Ends the watch behind it, if that is still there. */
static void stop(struct lua_watch *w)
{
	if (w->file)
		watch_file_stop(w->file);
	if (w->process)
		watch_process_stop(w->process);
	w->file = NULL;
	w->process = NULL;
}

/* The userdata goes. */
static int watch_gc(lua_State *L)
{
	stop(lua_touserdata(L, 1));
	return 0;
}

/* The instance has been unbound. */
static void on_unbound(struct lua_conn *lc, void *data)
{
	struct lua_watch *w = data;

	stop(w);
	vm_unref(lc->vm, &w->handle_ref);
	vm_unref(lc->vm, &w->self_ref); /* it may be collected from now on */
}

/* Pushes an empty watch. */
static struct lua_watch *push_watch(lua_State *L)
{
	struct lua_watch *w = lua_newuserdatauv(L, sizeof *w, 0);

	*w = (struct lua_watch){.self_ref = LUA_NOREF, .handle_ref = LUA_NOREF};
	lua_rawgetp(L, LUA_REGISTRYINDEX, &watch_key);
	lua_setmetatable(L, -2);
	return w;
}

/* Ties the watch at index to its instance. */
static void tie(lua_State *L, struct lua_watch *w, int index, const struct instance *i)
{
	lua_pushvalue(L, index);
	w->self_ref = vm_ref(L);
	w->lc = i->lc;
	i->lc->on_unbound = on_unbound;
	i->lc->on_unbound_data = w;
}

/* --- descriptors ---------------------------------------------------------------------------------------------------------------- */

/* The stream of a Lua file handle, NULL if it is none. */
static FILE *test_file(lua_State *L, int index)
{
	luaL_Stream *stream = luaL_testudata(L, index, LUA_FILEHANDLE);

	luaL_argcheck(L, !stream || stream->closef, index, "the file is closed");
	return stream ? stream->f : NULL;
}

/* Checks a number or file handle. */
int lua_watch_check_fd(lua_State *L, int index)
{
	FILE *file = test_file(L, index);

	if (!file && !lua_isinteger(L, index))
		return luaL_typeerror(L, index, "descriptor (a number or a file)");
	int fd = file ? fileno(file) : (int)arg_integer(L, index, INT_MIN, INT_MAX);
	if (fd < 0 || fcntl(fd, F_GETFD) < 0)
		arg_failure_errno(L, EBADF);
	else if (conn_fd_watched(vm_of(L)->options.conns, fd))
		arg_failure(L, "EEXIST", "descriptor %d is in use by the loop already", fd);
	else
		return fd;
	return -1;
}

/* Makes a byte stream of an open descriptor, or of a duplicate of it. What raises comes before the duplicate is made. */
static int attach(lua_State *L, int fd, bool duplicate, int handler, int last, const char *label)
{
	struct instance i;
	struct adopted a;

	prepare(L, handler, last, &i);
	if (duplicate && (fd = fcntl(fd, F_DUPFD_CLOEXEC, 3)) < 0)
		return arg_failure_errno(L, errno);
	create(L, &i, label);
	if (adopt_open(&a, fd))
		conn_adopt(i.lc->c, &a);
	else
		conn_end_errno(i.lc->c, errno);
	return begin(L, &i);
}

/* attach(fd, handler, ...): a descriptor as a byte stream. A number is the connection's from now on and closed at its end; of a Lua file a
 * duplicate is made, the file stays the script's. */
static int l_attach(lua_State *L)
{
	int last = lua_gettop(L);
	struct stat st;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	int fd = lua_watch_check_fd(L, 1);
	if (fd < 0)
		return 3;
	if (fstat(fd, &st) < 0 || S_ISDIR(st.st_mode))
		return arg_failure_errno(L, S_ISDIR(st.st_mode) ? EISDIR : errno);
	const char *label = lua_pushfstring(L, "fd:%d", fd);
	FILE *file = test_file(L, 1);
	if (file)
		fflush(file);
	return attach(L, fd, file != NULL, 2, last, label);
}

/* open_keyboard(handler, ...): standard input as a byte stream; a terminal stays as it is for others. */
static int l_open_keyboard(lua_State *L)
{
	int last = lua_gettop(L);

	if (!arg_may_open(L))
		return 3;
	if (last < 1)
		lua_settop(L, last = 1);
	lua_pushinteger(L, STDIN_FILENO);
	lua_insert(L, 1);
	last++;
	int fd = lua_watch_check_fd(L, 1);
	return fd < 0 ? 3 : attach(L, fd, false, 2, last, "keyboard");
}

/* watch(fd, handler, ...): readiness alone. The descriptor stays the script's, and so does closing it, after the end of the watch. */
static int l_watch(lua_State *L)
{
	int last = lua_gettop(L);
	struct instance i;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	int fd = lua_watch_check_fd(L, 1);
	if (fd < 0)
		return 3;
	const char *label = lua_pushfstring(L, "fd:%d", fd);
	prepare(L, 2, last, &i);
	struct lua_watch *w = push_watch(L);
	int index = lua_gettop(L);
	create(L, &i, label);
	if (lua_isuserdata(L, 1)) {
		lua_pushvalue(L, 1);
		w->handle_ref = vm_ref(L);
	}
	tie(L, w, index, &i);
	/* the callbacks of the same names must not stand before the methods */
	lua_getfield(L, lua_upvalueindex(1), "notify_readable");
	lua_setfield(L, i.self, "notify_readable");
	lua_getfield(L, lua_upvalueindex(1), "notify_writable");
	lua_setfield(L, i.self, "notify_writable");
	conn_watch(i.lc->c, fd);
	return begin(L, &i);
}

/* The work of notify_readable and notify_writable. */
static int notify(lua_State *L, bool readable)
{
	struct conn *c = lua_conn_check(L, 1)->c;

	if (!lua_isnoneornil(L, 2))
		luaL_checktype(L, 2, LUA_TBOOLEAN);
	if (!c || c->state == CONN_ENDING)
		return arg_failure(L, "ENOTCONN", "closed");
	if (!c->watch_only || c->fd < 0)
		return arg_failure(L, "EOPNOTSUPP", "not a watched descriptor");
	if (!lua_isnoneornil(L, 2)) {
		bool on = lua_toboolean(L, 2);
		conn_notify(c, readable ? on : c->notify_readable, readable ? c->notify_writable : on);
	}
	lua_pushboolean(L, readable ? c->notify_readable : c->notify_writable);
	return 1;
}

/* notify_readable([on]): is its callback of the same name wanted? */
static int l_notify_readable(lua_State *L)
{
	return notify(L, true);
}

/* notify_writable([on]) */
static int l_notify_writable(lua_State *L)
{
	return notify(L, false);
}

/* watch_only(): is it a watch, which carries no bytes? */
static int l_watch_only(lua_State *L)
{
	struct conn *c = lua_conn_check(L, 1)->c;

	if (!c)
		return arg_failure(L, "ENOTCONN", "closed");
	lua_pushboolean(L, c->watch_only);
	return 1;
}

/* detach(): the descriptor, which leaves the loop open and as it was given; nothing is flushed. unbind gets nil, "detached". */
static int l_detach(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->c)
		return arg_failure(L, "ENOTCONN", "closed");
	lua_conn_keep_names(lc);
	int fd = conn_detach(lc->c);
	if (fd < 0)
		return errno == EOPNOTSUPP ? arg_failure(L, "EOPNOTSUPP", "TLS or a child process has a part in the connection")
		                           : arg_failure(L, "ENOTCONN", "there is no descriptor");
	lua_pushinteger(L, fd);
	return 1;
}

/* --- files and processes -------------------------------------------------------------------------------------------------------- */

/* Is the instance alive? */
static bool is_alive(const struct lua_watch *w)
{
	return w->lc && w->lc->c && w->lc->c->state != CONN_ENDING;
}

/* An event of a file on its way into the VM. */
struct file_call {
	struct vm_call call;
	struct lua_conn *lc;
	const char *name;
};

/* file_modified(self, name), file_moved(self), file_deleted(self) */
static int file_body(lua_State *L)
{
	struct file_call *f = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, f->lc, f->call.callback))
		return 0;
	if (!f->name)
		return vm_call_script(L, 1);
	lua_pushstring(L, f->name);
	return vm_call_script(L, 2);
}

/* Something has happened to a file. */
static void on_file(void *data, enum watch_event event, const char *name)
{
	static const char *const callbacks[] = {"file_modified", "file_moved", "file_deleted"};
	struct lua_watch *w = data;
	struct file_call f = {.lc = w->lc, .name = name};

	if (!is_alive(w))
		return;
	f.call = (struct vm_call){.body = file_body, .argument = &f, .callback = callbacks[event], .subject = &w->lc->subject};
	vm_enter(w->lc->vm, &f.call);
	if (event == WATCH_DELETED && w->lc->c)
		conn_end(w->lc->c, NULL, "deleted");
}

/* watch_file(path, handler, ...): callbacks file_modified(name of a folder's entry), file_moved(), file_deleted(); path is in the handle. */
static int l_watch_file(lua_State *L)
{
	const char *path = luaL_checkstring(L, 1);
	int last = lua_gettop(L);
	struct instance i;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	const char *label = lua_pushfstring(L, "file:%s", path);
	prepare(L, 2, last, &i);
	struct lua_watch *w = push_watch(L);
	int index = lua_gettop(L);
	w->file = watch_file(vm_of(L)->options.watches, path, on_file, w);
	if (!w->file)
		return arg_failure(L, errno_code(errno), "watch %s: %s", path, errno_text(errno));
	create(L, &i, label);
	tie(L, w, index, &i);
	conn_watch(i.lc->c, -1);
	lua_pushvalue(L, 1);
	lua_setfield(L, i.self, "path");
	return begin(L, &i);
}

/* The end of a process on its way into the VM. */
struct exit_call {
	struct vm_call call;
	struct lua_conn *lc;
	const struct watch_status *status;
};

/* process_exited(self, {exited = n} or {signaled = n} or nil) */
static int exit_body(lua_State *L)
{
	struct exit_call *e = lua_touserdata(L, 1);

	if (!lua_conn_push_method(L, e->lc, "process_exited"))
		return 0;
	if (!e->status->known)
		return vm_call_script(L, 1);
	lua_createtable(L, 0, 1);
	lua_pushinteger(L, e->status->number);
	lua_setfield(L, -2, e->status->signaled ? "signaled" : "exited");
	return vm_call_script(L, 2);
}

/* A process has ended. */
static void on_exit_of_process(void *data, const struct watch_status *status)
{
	struct lua_watch *w = data;
	struct exit_call e = {.lc = w->lc, .status = status};

	if (!is_alive(w))
		return;
	e.call = (struct vm_call){.body = exit_body, .argument = &e, .callback = "process_exited", .subject = &w->lc->subject};
	vm_enter(w->lc->vm, &e.call);
	if (w->lc->c)
		conn_end(w->lc->c, NULL, "exited");
}

/* watch_process(pid, handler, ...): callback process_exited(status); pid is in the handle. */
static int l_watch_process(lua_State *L)
{
	lua_Integer pid = arg_integer(L, 1, 1, INT_MAX);
	int last = lua_gettop(L);
	struct instance i;

	if (!arg_may_open(L))
		return 3;
	if (last < 2)
		lua_settop(L, last = 2);
	const char *label = lua_pushfstring(L, "process:%d", (int)pid);
	prepare(L, 2, last, &i);
	struct lua_watch *w = push_watch(L);
	int index = lua_gettop(L);
	w->process = watch_process(vm_of(L)->options.watches, (pid_t)pid, on_exit_of_process, w);
	if (!w->process)
		return arg_failure(L, errno_code(errno), "watch process %d: %s", (int)pid, errno_text(errno));
	create(L, &i, label);
	tie(L, w, index, &i);
	conn_watch(i.lc->c, -1);
	lua_pushinteger(L, pid);
	lua_setfield(L, i.self, "pid");
	return begin(L, &i);
}

/* stop_watching(): ends the watch; unbind follows. */
static int l_stop_watching(lua_State *L)
{
	struct conn *c = lua_conn_check(L, 1)->c;

	if (!c || c->state == CONN_ENDING)
		return arg_failure(L, "ENOTCONN", "closed");
	if (!c->watch_only)
		return arg_failure(L, "EOPNOTSUPP", "not a watch");
	conn_end(c, NULL, "closed");
	lua_pushboolean(L, true);
	return 1;
}

/* Ends what only watches. */
void lua_watch_retire(struct vm *vm)
{
	for (struct lua_conn *lc = vm->conns; lc; lc = lc->next)
		if (lc->c->watch_only)
			conn_end(lc->c, NULL, "reloaded");
}

static const luaL_Reg methods[] = {
	{"notify_readable", l_notify_readable}, {"notify_writable", l_notify_writable},
	{"watch_only", l_watch_only},           {"detach", l_detach},
	{"stop_watching", l_stop_watching},     {NULL, NULL},
};

static const luaL_Reg functions[] = {
	{"attach", l_attach}, {"open_keyboard", l_open_keyboard}, {"watch_file", l_watch_file}, {"watch_process", l_watch_process},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_watch_open(lua_State *L)
{
	lua_createtable(L, 0, 1);
	lua_pushcfunction(L, watch_gc);
	lua_setfield(L, -2, "__gc");
	lua_pushliteral(L, "watch");
	lua_setfield(L, -2, "__metatable");
	lua_rawsetp(L, LUA_REGISTRYINDEX, &watch_key);
	lua_pushvalue(L, 1);
	luaL_setfuncs(L, functions, 0);
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, methods, 0);
	lua_pushcclosure(L, l_watch, 1); /* knows em.Connection */
	lua_setfield(L, -2, "watch");
	lua_pop(L, 1);
}
