/*
 * From a value in a Lua state to plain data, with every reason why something is none.
 */
#ifndef REACTORD_CONFREAD_VALUE_H
#define REACTORD_CONFREAD_VALUE_H

#include <lua.h>
#include <stddef.h>

#include "value.h"

#define DEPTH_LIMIT 32

/* One reading of a value. */
struct value_reader {
	size_t *room;                  /* bytes of data that may still come; counted down */
	void (*on_full)(lua_State *L); /* no room: raises */
	/* Something is no plain data; key: the field of the outermost table in which it stands, or NULL. */
	void (*on_mistake)(lua_State *L, const char *key, const char *why);
	const char *key;
	const void *ancestors[DEPTH_LIMIT]; /* the tables around what is being read */
};

/* Takes room for so many bytes. */
void value_charge(struct value_reader *vr, lua_State *L, size_t bytes);

/* Reads the value at an absolute index of the stack into v, which is overwritten. What is no plain data becomes nil. May raise, and
 * leaves v in a state then that can be cleared. */
void value_read(struct value_reader *vr, lua_State *L, int index, struct value *v);

#endif
