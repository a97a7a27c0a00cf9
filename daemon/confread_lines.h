/*
 * Where names are assigned in the text of a configuration file: Lua keeps no lines for the fields of a table.
 */
#ifndef REACTORD_CONFREAD_LINES_H
#define REACTORD_CONFREAD_LINES_H

#include <stddef.h>

struct source_lines;

struct source_lines *source_lines_new(const char *text, size_t length) __attribute__((returns_nonnull, warn_unused_result));
void source_lines_free(struct source_lines *s);

/* The first line from "from" to "to" on which "name =" stands; "from" if there is none. */
int source_lines_find_after(const struct source_lines *s, const char *name, int from, int to);

/* The last line up to "from" on which "name =" stands; "from" if there is none. */
int source_lines_find_before(const struct source_lines *s, const char *name, int from);

#endif
