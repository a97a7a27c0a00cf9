/*
 * Plain data values: making, copying, comparing and freeing them.
 */
#include "value.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"

/* Frees what is in a value; it is nil afterwards. */
void value_clear(struct value *v)
{
	if (v->kind == VALUE_STRING) {
		free(v->string.bytes);
	} else if (v->kind == VALUE_TABLE) {
		for (size_t i = 0; i < v->table.count; i++) {
			value_clear(&v->table.fields[i].key);
			value_clear(&v->table.fields[i].value);
		}
		free(v->table.fields);
	}
	*v = (struct value){.kind = VALUE_NIL};
}

/* A deep copy; what stood in to is overwritten, not cleared. */
void value_copy(struct value *to, const struct value *from)
{
	*to = *from;
	if (from->kind == VALUE_STRING) {
		to->string.bytes = mem_strndup(from->string.bytes, from->string.length);
	} else if (from->kind == VALUE_TABLE) {
		to->table.fields = NULL;
		to->table.count = 0;
		for (size_t i = 0; i < from->table.count; i++) {
			struct value key;

			value_copy(&key, &from->table.fields[i].key);
			value_copy(&value_add(to, key)->value, &from->table.fields[i].value);
		}
	}
}

/* Finds the field with a key. The place where it stands in an equal table is looked at first, so that comparing is mostly linear. */
static const struct field *value_find(const struct value *table, const struct value *key, size_t hint)
{
	if (hint < table->table.count && value_equal(&table->table.fields[hint].key, key))
		return &table->table.fields[hint];
	for (size_t i = 0; i < table->table.count; i++)
		if (value_equal(&table->table.fields[i].key, key))
			return &table->table.fields[i];
	return NULL;
}

/* Whether two tables have the same fields, in whatever order. */
static bool value_equal_tables(const struct value *a, const struct value *b)
{
	if (a->table.count != b->table.count)
		return false;
	for (size_t i = 0; i < a->table.count; i++) {
		const struct field *other = value_find(b, &a->table.fields[i].key, i);

		if (!other || !value_equal(&a->table.fields[i].value, &other->value))
			return false;
	}
	return true;
}

/* Whether two values are the same, deeply. A not-a-number equals itself here: the question is "did it change?". */
bool value_equal(const struct value *a, const struct value *b)
{
	if (a->kind != b->kind)
		return false;
	switch (a->kind) {
	case VALUE_NIL: return true;
	case VALUE_BOOLEAN: return a->boolean == b->boolean;
	case VALUE_INTEGER: return a->integer == b->integer;
	case VALUE_NUMBER: return a->number == b->number || (a->number != a->number && b->number != b->number);
	case VALUE_STRING: return a->string.length == b->string.length && memcmp(a->string.bytes, b->string.bytes, a->string.length) == 0;
	case VALUE_TABLE: return value_equal_tables(a, b);
	}
	return false;
}

/* Makes a string of a copy of the bytes; what stood in v is overwritten, not cleared. */
void value_string(struct value *v, const char *bytes, size_t length)
{
	v->kind = VALUE_STRING;
	v->string.bytes = mem_strndup(bytes, length);
	v->string.length = length;
}

/* Appends a field with a nil value; key is taken over. Room doubles whenever the count reaches a power of two. */
struct field *value_add(struct value *table, struct value key)
{
	size_t count = table->table.count;

	if ((count & (count - 1)) == 0)
		table->table.fields = mem_realloc(table->table.fields, (count > 0 ? count * 2 : 1) * sizeof(struct field));
	table->table.fields[count] = (struct field){.key = key};
	table->table.count++;
	return &table->table.fields[count];
}

/* The value under a string key, NULL if absent. */
const struct value *value_get(const struct value *table, const char *key)
{
	size_t length = strlen(key);

	if (table->kind != VALUE_TABLE)
		return NULL;
	for (size_t i = 0; i < table->table.count; i++) {
		const struct value *k = &table->table.fields[i].key;

		if (k->kind == VALUE_STRING && k->string.length == length && memcmp(k->string.bytes, key, length) == 0)
			return &table->table.fields[i].value;
	}
	return NULL;
}
