/* What one process leaves to the next: see legacy.h. */
#include "legacy.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "log.h"
#include "mem.h"

struct item {
	struct legacy_entry entry;
	struct sockfile file;
	char *kind, *name;
	bool owned; /* closed with the legacy */
};

struct legacy {
	struct item **items;
	size_t count;
	json_t *texts;
	bool received;
};

/* Makes an empty one. */
struct legacy *legacy_new(void)
{
	struct legacy *l = mem_zalloc(sizeof *l);

	l->texts = json_object();
	return l;
}

/* Frees it. */
void legacy_free(struct legacy *l)
{
	if (!l)
		return;
	for (size_t i = 0; i < l->count; i++) {
		struct item *item = l->items[i];
		if ((l->received || item->owned) && item->entry.fd >= 0)
			close(item->entry.fd);
		sockfile_forget(&item->file);
		free(item->kind);
		free(item->name);
		free(item);
	}
	free(l->items);
	json_decref(l->texts);
	free(l);
}

/* Adds an entry. */
static void add(struct legacy *l, const char *kind, const char *name, int fd, const char *path, dev_t device, ino_t inode)
{
	struct item *item = mem_zalloc(sizeof *item);

	item->kind = mem_strdup(kind);
	item->name = name ? mem_strdup(name) : NULL;
	if (path)
		item->file = (struct sockfile){.path = mem_strdup(path), .device = device, .inode = inode};
	item->entry = (struct legacy_entry){.kind = item->kind, .name = item->name, .fd = fd, .file = path ? &item->file : NULL};
	l->items = mem_realloc(l->items, (l->count + 1) * sizeof *l->items);
	l->items[l->count++] = item;
}

/* Leaves a descriptor. */
void legacy_leave(struct legacy *l, const char *kind, const char *name, int fd, const struct sockfile *file)
{
	for (size_t i = 0; i < l->count; i++)
		if (l->items[i]->entry.fd == fd)
			return;
	if (file && file->path)
		add(l, kind, name, fd, file->path, file->device, file->inode);
	else
		add(l, kind, name, fd, NULL, 0, 0);
}

/* Leaves one of a process. */
void legacy_give(struct legacy *l, unsigned process, const char *name, int fd, const struct sockfile *file)
{
	legacy_leave(l, LEGACY_LISTENER, name, fd, file);
	struct item *item = l->items[l->count - 1];
	item->entry.process = process;
	item->owned = true;
}

/* Leaves a text. */
void legacy_leave_text(struct legacy *l, const char *name, const char *text)
{
	(void)!json_object_set_new(l->texts, name, json_string(text));
}

/* Writes the list. Paths and names need not be UTF-8, which JSON asks for: they go as Latin-1, a character a byte. */
static json_t *bytes_to_json(const char *bytes)
{
	char *text = mem_alloc(2 * strlen(bytes) + 1), *to = text;

	for (const unsigned char *from = (const unsigned char *)bytes; *from; from++) {
		if (*from >= 0x80)
			*to++ = (char)(0xc0 | *from >> 6);
		*to++ = (char)(*from < 0x80 ? *from : 0x80 | (*from & 0x3f));
	}
	*to = '\0';
	json_t *value = json_string(text);
	free(text);
	return value;
}

/* The reverse; NULL if it is no text. The caller frees. */
static char *json_to_bytes(const json_t *value)
{
	const char *text = json_string_value(value);

	if (!text)
		return NULL;
	char *bytes = mem_strdup(text), *to = bytes;
	for (const unsigned char *from = (const unsigned char *)text; *from; from++) {
		if (*from >= 0xc0 && from[1]) {
			*to++ = (char)(*from << 6 | (from[1] & 0x3f));
			from++;
		} else {
			*to++ = (char)*from;
		}
	}
	*to = '\0';
	return bytes;
}

/* Puts the list into a file of memory. */
int legacy_write(const struct legacy *l)
{
	json_t *list = json_array();

	for (size_t i = 0; i < l->count; i++) {
		const struct legacy_entry *e = &l->items[i]->entry;
		json_t *row = json_pack("{s:s, s:i}", "kind", e->kind, "fd", e->fd);
		if (e->name)
			json_object_set_new(row, "name", bytes_to_json(e->name));
		if (e->process)
			json_object_set_new(row, "process", json_integer(e->process));
		if (e->file) {
			json_object_set_new(row, "path", bytes_to_json(e->file->path));
			json_object_set_new(row, "device", json_integer((json_int_t)e->file->device));
			json_object_set_new(row, "inode", json_integer((json_int_t)e->file->inode));
		}
		json_array_append_new(list, row);
	}
	json_t *all = json_pack("{s:o, s:O}", "descriptors", list, "texts", l->texts);
	int fd = memfd_create("reactord-legacy", MFD_CLOEXEC);
	if (fd >= 0 && (json_dumpfd(all, fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0)) {
		int saved = errno ? errno : EIO;
		close(fd);
		fd = -1;
		errno = saved;
	}
	json_decref(all);
	return fd;
}

/* Takes a row of the list over: from here on the descriptor is no child's. */
static void receive(struct legacy *l, const json_t *row)
{
	const char *kind = json_string_value(json_object_get(row, "kind"));
	const json_t *number = json_object_get(row, "fd");
	int fd = (int)json_integer_value(number);

	if (!kind || !json_is_integer(number) || fd <= STDERR_FILENO || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return;
	char *name = json_to_bytes(json_object_get(row, "name")), *path = json_to_bytes(json_object_get(row, "path"));
	add(l, kind, name, fd, path, (dev_t)json_integer_value(json_object_get(row, "device")),
	    (ino_t)json_integer_value(json_object_get(row, "inode")));
	l->items[l->count - 1]->entry.process = (unsigned)json_integer_value(json_object_get(row, "process"));
	free(name);
	free(path);
}

/* Receives. */
struct legacy *legacy_receive(void)
{
	const char *variable = getenv(LEGACY_VARIABLE);
	struct stat st;

	if (!variable)
		return NULL;
	int fd = atoi(variable);
	unsetenv(LEGACY_VARIABLE);
	if (fd <= STDERR_FILENO || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return NULL;
	json_t *all = json_loadfd(fd, 0, NULL);
	json_t *list = json_object_get(all, "descriptors");
	if (!json_is_array(list)) { /* not meant for us */
		json_decref(all);
		return NULL;
	}
	close(fd);
	struct legacy *l = legacy_new();
	l->received = true;
	for (size_t i = 0; i < json_array_size(list); i++)
		receive(l, json_array_get(list, i));
	json_object_update(l->texts, json_object_get(all, "texts"));
	json_decref(all);
	return l;
}

/* Finds the first. */
static struct item *find(const struct legacy *l, const char *kind, const char *name)
{
	for (size_t i = 0; l && i < l->count; i++) {
		const struct legacy_entry *e = &l->items[i]->entry;
		if (e->fd >= 0 && strcmp(e->kind, kind) == 0 && (!name || (e->name && strcmp(e->name, name) == 0)))
			return l->items[i];
	}
	return NULL;
}

/* Takes one. */
int legacy_take(struct legacy *l, const char *kind, const char *name, struct sockfile *file)
{
	struct item *item = find(l, kind, name);

	if (!item)
		return -1;
	int fd = item->entry.fd;
	item->entry.fd = -1;
	if (file) {
		*file = item->file;
		item->file = (struct sockfile){0};
		item->entry.file = NULL;
	}
	return fd;
}

/* Looks. */
bool legacy_has(const struct legacy *l, const char *kind, const char *name)
{
	return find(l, kind, name) != NULL;
}

/* Gets a text. */
const char *legacy_text(const struct legacy *l, const char *name)
{
	return l ? json_string_value(json_object_get(l->texts, name)) : NULL;
}

/* One of all. */
const struct legacy_entry *legacy_at(const struct legacy *l, size_t index)
{
	return l && index < l->count ? &l->items[index]->entry : NULL;
}

/* Closes one. */
static void drop(struct item *item)
{
	close(item->entry.fd);
	item->entry.fd = -1;
	item->entry.file = NULL;
	sockfile_forget(&item->file);
}

/* Lets go of the rest. */
void legacy_drop(struct legacy *l, bool is_master)
{
	for (size_t i = 0; l && i < l->count; i++) {
		struct item *item = l->items[i];
		if (item->entry.fd < 0)
			continue;
		if (!is_master && strcmp(item->kind, LEGACY_LISTENER) == 0)
			log_info("no longer listening on %s", item->name ? item->name : "");
		if (!is_master && sockfile_remove(&item->file) < 0)
			log_warn("%s: cannot remove the socket file: %s", item->name ? item->name : "", strerrordesc_np(errno));
		drop(item);
	}
}

/* Keeps a process's part. The first has also what was the daemon's own, and what was left by processes that are no more. */
void legacy_select(struct legacy *l, unsigned process, unsigned count)
{
	for (size_t i = 0; l && i < l->count; i++) {
		struct item *item = l->items[i];
		unsigned heir = item->entry.process && item->entry.process <= count ? item->entry.process : 1;
		if (item->entry.fd >= 0 && (strcmp(item->kind, LEGACY_LISTENER) != 0 || heir != process))
			drop(item);
	}
	if (l)
		json_object_clear(l->texts);
}
