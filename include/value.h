/*
 * Plain data: nil, booleans, integers, numbers, strings, and tables of these. It is what a config file is made of and what
 * travels between Lua states. A value owns all that is in it.
 */
#ifndef REACTORD_VALUE_H
#define REACTORD_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum value_kind { VALUE_NIL, VALUE_BOOLEAN, VALUE_INTEGER, VALUE_NUMBER, VALUE_STRING, VALUE_TABLE };

struct value {
	enum value_kind kind;
	union {
		bool boolean;
		int64_t integer;
		double number;
		struct {
			char *bytes;   /* NUL-terminated behind its length, may hold NULs within */
			size_t length; /* bytes, without the terminator */
		} string;
		struct {
			struct field *fields; /* in the order in which they were read; array items first, by index */
			size_t count;
		} table;
	};
};

/* One entry of a table; key is an integer, number, string or boolean. */
struct field {
	struct value key;
	struct value value;
};

void value_clear(struct value *v);                              /* frees what is in it; it is nil afterwards */
void value_copy(struct value *to, const struct value *from);    /* a deep copy; to is overwritten, not cleared */
bool value_equal(const struct value *a, const struct value *b); /* deep; the order of fields does not matter */
void value_string(struct value *v, const char *bytes, size_t length);
struct field *value_add(struct value *table, struct value key);            /* appends a field with a nil value; key is taken over */
const struct value *value_get(const struct value *table, const char *key); /* NULL if absent */

#endif
