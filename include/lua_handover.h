/*
 * Hand-over at a reload: live connections move from the code of before to the new code of the same handler, with state that the one's
 * `handover` returns and the other's `takeover` gets. The connection itself is not touched.
 */
#ifndef REACTORD_LUA_HANDOVER_H
#define REACTORD_LUA_HANDOVER_H

#include "lua_conn.h"

/* What became of a VM's connections. */
struct lua_handover_count {
	size_t moved;
	size_t stayed; /* of those whose handler has a handover */
};

/* Moves those connections of a VM whose handler has `handover` to the handlers of the same names in another VM, as far as these have
 * `takeover`. One that cannot move, or whose move fails, goes on as before; the log says why. on_moved is told of each that has moved,
 * while both handles are there. No script may be running. */
struct lua_handover_count lua_handover(struct vm *from, struct vm *to,
                                       void (*on_moved)(struct lua_conn *before, struct lua_conn *after, void *data), void *data);

#endif
