/* Texts of files by their paths: see sources.h. */
#include "sources.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#include "mem.h"

struct source {
	char *path, *text;
	size_t length;
	UT_hash_handle hh;
};

/* An empty set with one user. */
struct sources *sources_new(void)
{
	struct sources *s = mem_zalloc(sizeof *s);

	s->users = 1;
	return s;
}

/* One user more. */
struct sources *sources_ref(struct sources *s)
{
	s->users++;
	return s;
}

/* One user less; the last one frees. */
void sources_unref(struct sources *s)
{
	struct source *f, *next;

	if (!s || --s->users)
		return;
	HASH_ITER(hh, s->files, f, next)
	{
		HASH_DEL(s->files, f);
		explicit_bzero(f->text, f->length); /* may be a key */
		free(f->path);
		free(f->text);
		free(f);
	}
	free(s);
}

/* Keeps one. */
bool sources_add(struct sources *s, const char *path, const char *text, size_t length)
{
	struct source *f;

	HASH_FIND_STR(s->files, path, f);
	if (f)
		return f->length == length && memcmp(f->text, text, length) == 0;
	if (length > SOURCES_FILE_MAX)
		return true;
	f = mem_zalloc(sizeof *f);
	f->path = mem_strdup(path);
	f->text = mem_alloc(length + 1);
	memcpy(f->text, text, length);
	f->text[length] = '\0';
	f->length = length;
	HASH_ADD_KEYPTR(hh, s->files, f->path, strlen(f->path), f);
	return true;
}

/* Finds one. */
const char *sources_find(const struct sources *s, const char *path, size_t *length)
{
	struct source *f;

	HASH_FIND_STR(s->files, path, f);
	if (f)
		*length = f->length;
	return f ? f->text : NULL;
}

/* All. */
void sources_each(const struct sources *s, void (*f)(void *data, const char *path, const char *text, size_t length), void *data)
{
	for (struct source *one = s->files; one; one = one->hh.next)
		f(data, one->path, one->text, one->length);
}
