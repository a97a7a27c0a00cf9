/* Files for scripts: see lua_file.h. */
#include "lua_file.h"

#include <errno.h>
#include <stdlib.h>

#include "file.h"
#include "lua_arg.h"
#include "lua_conn.h"
#include "mem.h"

/* A stream whose end a script waits for. */
struct stream {
	struct lua_conn *lc;
	int done_ref; /* the function to call */
};

/* The end on its way into the VM. */
struct end_call {
	struct vm_call call;
	struct stream *stream;
	const char *code, *why;
};

/* send_file_data(path): the file's bytes are queued now, up to 32 KiB. As send_data; nil, message, code for what cannot be read. */
static int l_send_file_data(lua_State *L)
{
	struct conn *c = lua_conn_check(L, 1)->c;
	const char *path = luaL_checkstring(L, 2);
	luaL_Buffer buffer;

	if (!c)
		return arg_failure(L, "ENOTCONN", "closed");
	if (c->transport || c->watch_only)
		return lua_conn_push_sent(L, SEND_UNABLE);
	char *bytes = luaL_buffinitsize(L, &buffer, FILE_SMALL);
	ssize_t n = file_read(path, bytes);
	if (n < 0)
		return errno == EFBIG ? arg_failure(L, "EFBIG", "%s: larger than %d bytes, stream_file_data takes it", path, FILE_SMALL)
		                      : arg_failure(L, errno_code(errno), "%s: %s", path, errno_text(errno));
	return lua_conn_push_sent(L, conn_send(c, bytes, (size_t)n));
}

/* fn([message, code]) */
static int end_body(lua_State *L)
{
	struct end_call *e = lua_touserdata(L, 1);

	lua_rawgeti(L, LUA_REGISTRYINDEX, e->stream->done_ref);
	if (!e->why)
		return vm_call_script(L, 0);
	lua_pushstring(L, e->why);
	lua_pushstring(L, e->code ? e->code : "ENOTCONN");
	return vm_call_script(L, 2);
}

/* A stream is through, or its connection is. */
static void on_end(void *data, const char *code, const char *why)
{
	struct stream *s = data;
	struct end_call e = {.stream = s, .code = code, .why = why};

	e.call = (struct vm_call){.body = end_body, .argument = &e, .callback = "stream_file_data", .subject = &s->lc->subject};
	vm_enter(s->lc->vm, &e.call);
	vm_unref(s->lc->vm, &s->done_ref);
	free(s);
}

/* core.stream_file(connection, path, http_chunks, fn): true, or nil, message, code; after true fn is called once: without arguments when
 * all of the file is with the kernel, with message and code when the connection has ended before. */
static int l_stream_file(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	const char *path = luaL_checkstring(L, 2);
	bool chunks = lua_toboolean(L, 3);
	off_t size;

	arg_function(L, 4);
	lua_settop(L, 4);
	if (!lc->c)
		return arg_failure(L, "ENOTCONN", "closed");
	int done_ref = vm_ref(L); /* what may raise comes before the file is open */
	int fd = file_open(path, &size);
	if (fd < 0) {
		int error = errno;
		vm_unref(lc->vm, &done_ref);
		return arg_failure_errno(L, error);
	}
	struct stream *s = mem_alloc(sizeof *s);
	*s = (struct stream){.lc = lc, .done_ref = done_ref};
	enum send_result result = file_stream(lc->c, fd, size, chunks, on_end, s);
	if (result <= SEND_FULL) {
		lua_pushboolean(L, true);
		return 1;
	}
	vm_unref(lc->vm, &s->done_ref);
	free(s);
	return lua_conn_push_sent(L, result);
}

/* Registers both. */
void lua_file_open(lua_State *L)
{
	lua_pushcfunction(L, l_stream_file);
	lua_setfield(L, 1, "stream_file");
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	lua_pushcfunction(L, l_send_file_data);
	lua_setfield(L, -2, "send_file_data");
	lua_pop(L, 1);
}
