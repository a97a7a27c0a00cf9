/*
 * The same event again and again, for log.c: within a second only the first ones are written, the others are counted, and the count is
 * told. Events are the same where level, message, listener, handler, callback and source are; peer and connection may differ.
 */
#ifndef REACTORD_LOG_FOLD_H
#define REACTORD_LOG_FOLD_H

#include "log.h"

#define LOG_FOLD_PLACES 64
#define LOG_FOLD_SPAN_NS 1000000000u
#define LOG_FOLD_LONGEST 16384 /* bytes; longer events are not folded */

/* One kind of event. */
struct log_fold_entry {
	char *key; /* its texts, each with its NUL; NULL: a free place */
	size_t length;
	enum log_level level;
	uint64_t last;     /* when it came last, in events */
	uint64_t since_ns; /* when its second began, in which it was */
	uint32_t written;  /* written so many times, */
	uint64_t folded;   /* and so many times not */
};

/* The latest kinds. */
struct log_fold {
	struct log_fold_entry entries[LOG_FOLD_PLACES];
	uint64_t events;
	struct log_fold_entry told; /* the one that has lost its place last: its count is to be told now; key NULL: none */
};

/* May the event be written? Else it has been counted. most: how many of a kind may be in a second. */
bool log_fold_admit(struct log_fold *f, enum log_level level, const struct log_context *context, const char *message, uint32_t most,
                    uint64_t now_ns) __attribute__((warn_unused_result));

/* What an entry is about: fills in context and returns the message; the texts are the entry's. */
const char *log_fold_describe(const struct log_fold_entry *e, struct log_context *context);

/* Forgets all of them. */
void log_fold_clear(struct log_fold *f);

#endif
