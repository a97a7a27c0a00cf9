/*
 * The texts of the files that a generation was loaded from, handlers and certificates. Who loads the same generation again (a process that takes the place of
 * a dead one, a VM that takes the place of a full one) gets these texts, whatever has become of the files.
 */
#ifndef REACTORD_SOURCES_H
#define REACTORD_SOURCES_H

#include <stdbool.h>
#include <stddef.h>

#define SOURCES_FILE_MAX (2u << 20) /* bytes of a file that is kept; larger ones are read anew */

struct source;

/* Counted: kept by the generations that were loaded from it. */
struct sources {
	struct source *files; /* uthash, by path */
	unsigned users;
};

struct sources *sources_new(void) __attribute__((warn_unused_result));
struct sources *sources_ref(struct sources *s);
void sources_unref(struct sources *s);

/* Keeps a copy of a file's text. False: there is one of that path already, and it is another. */
bool sources_add(struct sources *s, const char *path, const char *text, size_t length);

/* The text of a path, NULL if there is none. */
const char *sources_find(const struct sources *s, const char *path, size_t *length);

/* Calls f for each. */
void sources_each(const struct sources *s, void (*f)(void *data, const char *path, const char *text, size_t length), void *data);

#endif
