/*
 * Kinds of options: how a plain value becomes a member of a struct, and the way back. Which options there are is config.c's.
 */
#ifndef REACTORD_OPTION_H
#define REACTORD_OPTION_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "value.h"

/* The member that belongs to each kind stands behind it. */
enum option_type {
	OPTION_STRING,      /* char *; NULL: none */
	OPTION_PATH,        /* char *, relative to the file */
	OPTION_SEARCH_PATH, /* char *, templates with ';' between, each relative to the file */
	OPTION_FOLDERS,     /* struct strings, each relative to the file */
	OPTION_BOOLEAN,     /* bool */
	OPTION_INTEGER,     /* int, int64_t or uint64_t */
	OPTION_SIZE,        /* size_t or uint64_t, bytes */
	OPTION_SECONDS,     /* uint64_t, nanoseconds */
	OPTION_CHOICE,      /* an enum whose constants have the order of the choices */
	OPTION_KEEPALIVE,   /* int: -1 off, 0 on, else seconds */
	OPTION_MODE,        /* int: permissions, -1: none */
	OPTION_ADDRESS,     /* char *, "host" or "host:port" with a numeric host */
	OPTION_ADDRESSES,   /* struct strings, each "host" or "host:port" with a numeric host */
	OPTION_PEM,         /* char *: PEM text, or a path relative to the file */
	OPTION_HOSTNAME,    /* char *; NULL: none said, "": false */
	OPTION_STRINGS,     /* struct strings */
	OPTION_NETWORKS,    /* struct strings, each for network_parse */
	OPTION_SWITCH,      /* int: -1 not said, else 0 or 1 */
	OPTION_TABLE,       /* struct value: any table, or nil */
	OPTION_LIST         /* struct value: a table of positional values, or nil */
};

/* A list of strings (paths). */
struct strings {
	char **items;
	size_t count;
};

struct option_def {
	const char *name;
	enum option_type type;
	size_t offset, size;        /* of the member */
	size_t present;             /* seconds that may be absent: offset of the bool that tells; else 0 */
	const char *fallback;       /* the default, as it is written in a file */
	double min, max;            /* of numbers */
	const char *const *choices; /* ends with NULL */
	bool automatic;             /* an integer may also be "auto", which is 0 */
	bool reloadable;            /* may differ after a reload */
	const char *help;           /* a sentence without its dot */
};

/* Sets the member of the struct at base from a value; nil is "none". file is where it stands, for relative paths, or NULL.
 * On failure the member stays and *why (caller frees) is what follows the option's name: "must be …, got …". */
bool option_set(const struct option_def *o, void *base, const struct value *v, const char *file, char **why)
	__attribute__((warn_unused_result));

/* The same from a text of the command line or the environment. */
bool option_set_text(const struct option_def *o, void *base, const char *text, char **why) __attribute__((warn_unused_result));

/* Sets the default; what stood there is overwritten, not freed. */
void option_set_default(const struct option_def *o, void *base);

/* Frees what the member owns. */
void option_clear(const struct option_def *o, void *base);
bool option_equal(const struct option_def *o, const void *a, const void *b);

/* The member as JSON, a new reference. */
json_t *option_json(const struct option_def *o, const void *base) __attribute__((warn_unused_result));

/* Plain data as JSON, a new reference: a table of 1 to n is an array. Bytes that are not UTF-8 become U+FFFD. */
json_t *option_value_json(const struct value *v) __attribute__((warn_unused_result));

/* Is it "host" or "host:port" with a numeric host? */
bool option_is_address(const char *text);

/* The kind of an option in a word: "string", "size", … */
const char *option_type_name(enum option_type type);

#endif
