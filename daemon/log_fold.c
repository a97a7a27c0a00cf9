/* The same event again and again: see log_fold.h. */
#include "log_fold.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define TEXTS 5

/* The texts that make events the same; a missing one is an empty one. */
static void list_texts(const struct log_context *context, const char *message, const char *texts[TEXTS])
{
	static const struct log_context none;
	const struct log_context *c = context ? context : &none;
	const char *const given[TEXTS] = {message, c->listener, c->handler, c->callback, c->source};

	for (int i = 0; i < TEXTS; i++)
		texts[i] = given[i] ? given[i] : "";
}

/* Are those the texts of an entry? */
static bool matches(const struct log_fold_entry *e, const char *const texts[TEXTS], size_t length)
{
	const char *at = e->key;

	if (!at || e->length != length)
		return false;
	for (int i = 0; i < TEXTS; i++) {
		if (strcmp(at, texts[i]) != 0)
			return false;
		at += strlen(at) + 1;
	}
	return true;
}

/* The entry of an event, found or made in the place of the one that has not come for the longest time. */
static struct log_fold_entry *find(struct log_fold *f, enum log_level level, const char *const texts[TEXTS], size_t length)
{
	struct log_fold_entry *oldest = &f->entries[0];

	for (size_t i = 0; i < LOG_FOLD_PLACES; i++) {
		struct log_fold_entry *e = &f->entries[i];
		if (e->level == level && matches(e, texts, length))
			return e;
		if (oldest->key && (!e->key || e->last < oldest->last))
			oldest = e;
	}
	free(f->told.key);
	f->told = *oldest;
	*oldest = (struct log_fold_entry){.key = mem_alloc(length), .length = length, .level = level};
	for (int i = 0, at = 0; i < TEXTS; i++) {
		size_t size = strlen(texts[i]) + 1;
		memcpy(oldest->key + at, texts[i], size);
		at += (int)size;
	}
	return oldest;
}

/* May the event be written? */
bool log_fold_admit(struct log_fold *f, enum log_level level, const struct log_context *context, const char *message, uint32_t most,
                    uint64_t now_ns)
{
	const char *texts[TEXTS];
	size_t length = 0;

	list_texts(context, message, texts);
	for (int i = 0; i < TEXTS; i++)
		length += strlen(texts[i]) + 1;
	if (length > LOG_FOLD_LONGEST)
		return true;
	struct log_fold_entry *e = find(f, level, texts, length);
	e->last = ++f->events;
	if (!e->folded && now_ns - e->since_ns >= LOG_FOLD_SPAN_NS) {
		e->since_ns = now_ns;
		e->written = 0;
	}
	if (e->written < most) {
		e->written++;
		return true;
	}
	e->folded++;
	return false;
}

/* What an entry is about. */
const char *log_fold_describe(const struct log_fold_entry *e, struct log_context *context)
{
	const char *texts[TEXTS], *at = e->key;

	for (int i = 0; i < TEXTS; i++) {
		texts[i] = *at || i == 0 ? at : NULL;
		at += strlen(at) + 1;
	}
	*context = (struct log_context){.listener = texts[1], .handler = texts[2], .callback = texts[3], .source = texts[4]};
	return texts[0];
}

/* Forgets all of them. */
void log_fold_clear(struct log_fold *f)
{
	for (size_t i = 0; i < LOG_FOLD_PLACES; i++)
		free(f->entries[i].key);
	free(f->told.key);
	*f = (struct log_fold){0};
}
