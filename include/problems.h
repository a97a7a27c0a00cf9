/*
 * Everything that is wrong with a configuration, and what its author may have meant.
 */
#ifndef REACTORD_PROBLEMS_H
#define REACTORD_PROBLEMS_H

#include <stddef.h>

/* In the order found; each one is "file:line: message" or "message". */
struct problems {
	char **lines;
	size_t count;
};

void problems_add(struct problems *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Adds a message about a place; file NULL or line 0: without that part. */
void problems_add_at(struct problems *p, const char *file, int line, const char *format, ...) __attribute__((format(printf, 4, 5)));
void problems_clear(struct problems *p);

/* All of them in one text, "; " between them; the caller owns it. */
char *problems_join(const struct problems *p) __attribute__((warn_unused_result));

/* The search for the name that somebody may have meant: start with {.wanted = name}, then consider every name there is. */
struct suggestion {
	const char *wanted;
	const char *best; /* NULL: nothing is near */
	size_t distance;
};

void suggestion_consider(struct suggestion *s, const char *name);

/* " (did you mean 'best'?)" or "". Returns text. */
#define SUGGESTION_SIZE 96
const char *suggestion_text(const struct suggestion *s, char text[SUGGESTION_SIZE]);

#endif
