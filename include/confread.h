/*
 * Reads a configuration file, which is Lua, as plain data: no libraries, bounded memory and time. What the names mean is for
 * others to say; here it is only options that are assigned and blocks that are called with a name and a table.
 */
#ifndef REACTORD_CONFREAD_H
#define REACTORD_CONFREAD_H

#include <stdbool.h>
#include <stddef.h>

#include "problems.h"
#include "value.h"

/* An option (name = value) or a block (block "name" { … }). */
struct confread_item {
	const char *block; /* the block's word ("listen"); NULL for an option */
	char *name;        /* the option, or the block's name */
	const char *file;  /* where it stands, as opened; belongs to the struct confread */
	int line;
	struct value value; /* an option's value, never nil; a block's table */
	int *lines;         /* if value is a table: the line of each of its fields */
	bool complete;      /* a block has got its table */
};

struct confread {
	struct confread_item *items; /* in the order of the files */
	size_t count;
	char **files;
	size_t file_count;
};

/* The names that are known, each list ending with NULL. */
struct confread_names {
	const char *const *options;
	const char *const *blocks;
};

/* Reads a file and what it includes; false with problems. out is filled in with what could be read and always wants clearing. */
bool confread_file(struct confread *out, const char *path, const struct confread_names *names, struct problems *problems)
	__attribute__((warn_unused_result));

/* The same from memory; path is used in messages and for what it includes. */
bool confread_text(struct confread *out, const char *path, const char *text, size_t length, const struct confread_names *names,
                   struct problems *problems) __attribute__((warn_unused_result));
void confread_clear(struct confread *c);

/* The path that a relative one has when it is meant relative to the folder in which file stands; the caller owns it. */
char *confread_resolve(const char *file, const char *path) __attribute__((returns_nonnull, warn_unused_result));

#endif
