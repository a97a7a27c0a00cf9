/*
 * A store that processes share: see store.h. Two tables: values by space and key, each behind the time at which it ends; and what ends, by
 * that time, so that each write can clear away a few of those that have ended. LMDB writes by pwrite, not through its map: where memory is
 * full that is an error, and not a SIGBUS.
 */
#include "store.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"
#include "mem.h"
#include "store_folder.h"

#define PLACE_SIZE (1 + STORE_MAX_NAME + STORE_MAX_KEY) /* as a key of LMDB's, which has 511 bytes at most */
#define LOCK_BYTES 65536                                /* of LMDB's lock file, enough for 1,000 processes */
#define SPARE_BYTES (4 << 20)                           /* of the map, beside twice the store's size */
#define SWEEP_ALONG 4                                   /* ended values that every write clears away */
#define SWEEP_FULL 1000                                 /* ... and one that finds no room */

struct store {
	char *name;
	bool own; /* the name, and so the folder: removed at the end */
	uint64_t size;
	int folder; /* descriptor, locked as long as the store is in use; -1: not open */
	int hold;   /* descriptor that keeps what was inherited; -1: none */
	MDB_env *env;
	MDB_dbi values, endings;
	MDB_txn *reading; /* reset between two uses */
};

/* A place as LMDB's key: space's length, space, key. */
struct place_bytes {
	char bytes[PLACE_SIZE];
	MDB_val val;
};

/* Gives LMDB's lock file its memory: it is written to through a map. */
static int make_lock_file(int folder)
{
	int fd = openat(folder, "lock.mdb", O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int error = fd < 0 && errno != EEXIST ? errno : 0;

	if (fd >= 0) {
		error = posix_fallocate(fd, 0, LOCK_BYTES);
		if (error)
			unlinkat(folder, "lock.mdb", 0);
		close(fd);
	}
	return error;
}

/* Opens the tables. */
static int open_tables(struct store *s)
{
	MDB_txn *txn;
	int result = mdb_txn_begin(s->env, NULL, 0, &txn);

	if (result)
		return result;
	result = mdb_dbi_open(txn, "values", MDB_CREATE, &s->values);
	if (!result)
		result = mdb_dbi_open(txn, "endings", MDB_CREATE | MDB_DUPSORT, &s->endings);
	if (result) {
		mdb_txn_abort(txn);
		return result;
	}
	return mdb_txn_commit(txn);
}

/* Opens LMDB in the folder at path. */
static int open_environment(struct store *s, const char *path)
{
	int dead, fd, result = make_lock_file(s->folder);

	if (!result)
		result = mdb_env_create(&s->env);
	if (!result)
		result = mdb_env_set_maxdbs(s->env, 2);
	if (!result)
		result = mdb_env_set_mapsize(s->env, (s->size * 2 + SPARE_BYTES) & ~(uint64_t)0xffff);
	if (!result)
		result = mdb_env_open(s->env, path, MDB_NOSYNC | MDB_NOMETASYNC | MDB_NOTLS | MDB_NORDAHEAD, 0600);
	if (!result && mdb_env_get_fd(s->env, &fd) == 0)
		(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	if (!result)
		result = mdb_reader_check(s->env, &dead);
	if (!result)
		result = open_tables(s);
	if (!result)
		result = mdb_txn_begin(s->env, NULL, MDB_RDONLY, &s->reading);
	if (!result)
		mdb_txn_reset(s->reading);
	return result;
}

/* Closes what is open. */
static void close_all(struct store *s)
{
	mdb_txn_abort(s->reading);
	if (s->env)
		mdb_env_close(s->env);
	if (s->folder >= 0)
		close(s->folder);
	s->reading = NULL;
	s->env = NULL;
	s->folder = -1;
}

/* Opens the store with its first use. */
static int need(struct store *s)
{
	char *path;
	int result;

	if (s->reading)
		return 0;
	s->folder = store_folder_take(s->name, &path);
	if (s->folder < 0)
		return errno;
	result = open_environment(s, path);
	if (result) {
		log_error("em.shared: %s: %s", path, store_text(result));
		close_all(s);
	}
	free(path);
	return result;
}

/* A new store. */
struct store *store_new(uint64_t size)
{
	struct store *s = mem_zalloc(sizeof *s);

	s->name = store_make_name();
	s->own = true;
	s->size = size;
	s->folder = s->hold = -1;
	return s;
}

/* Takes the name of the daemon's. */
void store_rename(struct store *s, const char *name)
{
	free(s->name);
	s->name = mem_strdup(name);
	s->own = false;
}

/* Takes over what another process has. */
void store_inherit(struct store *s, const char *name)
{
	if (!name)
		return;
	store_rename(s, name);
	s->own = true;
	s->hold = store_hold(name);
}

/* Its name. */
const char *store_name(const struct store *s)
{
	return s->name;
}

/* The end of one. */
void store_free(struct store *s)
{
	if (!s)
		return;
	bool was_used = s->reading != NULL || s->hold >= 0;
	close_all(s);
	if (s->hold >= 0)
		close(s->hold);
	if (s->own && was_used)
		store_remove(s->name);
	free(s->name);
	free(s);
}

/* Makes LMDB's key of a place. */
static void set_place(struct place_bytes *to, const char *name, size_t name_length, const char *key, size_t key_length)
{
	to->bytes[0] = (char)name_length;
	memcpy(to->bytes + 1, name, name_length);
	memcpy(to->bytes + 1 + name_length, key, key_length);
	to->val = (MDB_val){.mv_data = to->bytes, .mv_size = 1 + name_length + key_length};
}

/* When a value ends, 0: never. */
static uint64_t ending(const MDB_val *v)
{
	uint64_t end_ns;

	memcpy(&end_ns, v->mv_data, sizeof end_ns);
	return end_ns;
}

/* Is it there still? */
static bool alive(const MDB_val *v)
{
	return ending(v) == 0 || ending(v) > loop_clock();
}

/* Finds the value of a place; ENOENT: none, or one that has ended. found: which of both. */
static int find(struct store *s, MDB_txn *txn, MDB_val *place, MDB_val *v, bool *found)
{
	int result = mdb_get(txn, s->values, place, v);

	*found = result == 0;
	if (result == MDB_NOTFOUND)
		return ENOENT;
	return result ? result : alive(v) ? 0 : ENOENT;
}

/* Begins to read. */
static int begin_reading(struct store *s)
{
	int result = need(s);

	if (!result)
		result = mdb_txn_renew(s->reading);
	if (result == MDB_MAP_RESIZED) { /* by a process with another configuration */
		result = mdb_env_set_mapsize(s->env, 0);
		if (!result)
			result = mdb_txn_renew(s->reading);
	}
	return result;
}

/* Gets a copy. */
int store_get(struct store *s, const struct store_place *at, struct store_value *to)
{
	struct place_bytes place;
	MDB_val v;
	bool found;
	int result = begin_reading(s);

	if (result)
		return result;
	set_place(&place, at->name, at->name_length, at->key, at->key_length);
	result = find(s, s->reading, &place.val, &v, &found);
	if (!result) {
		to->length = v.mv_size - sizeof(uint64_t);
		to->bytes = mem_alloc(to->length + 1);
		memcpy(to->bytes, (char *)v.mv_data + sizeof(uint64_t), to->length);
	}
	mdb_txn_reset(s->reading);
	return result;
}

/* The next key. */
int store_next(struct store *s, const char *name, size_t name_length, char key[STORE_MAX_KEY], size_t *key_length)
{
	struct place_bytes place;
	MDB_cursor *cursor;
	MDB_val at, v;
	int result = begin_reading(s);

	if (result)
		return result;
	set_place(&place, name, name_length, key, *key_length);
	at = place.val;
	result = mdb_cursor_open(s->reading, s->values, &cursor);
	if (!result) {
		result = mdb_cursor_get(cursor, &at, &v, MDB_SET_RANGE);
		while (!result && ((at.mv_size == place.val.mv_size && memcmp(at.mv_data, place.bytes, at.mv_size) == 0) || !alive(&v)))
			result = mdb_cursor_get(cursor, &at, &v, MDB_NEXT);
		mdb_cursor_close(cursor);
	}
	if (!result && (at.mv_size <= 1 + name_length || memcmp(at.mv_data, place.bytes, 1 + name_length) != 0))
		result = ENOENT; /* another space */
	if (!result) {
		*key_length = at.mv_size - 1 - name_length;
		memcpy(key, (char *)at.mv_data + 1 + name_length, *key_length);
	}
	mdb_txn_reset(s->reading);
	return result == MDB_NOTFOUND ? ENOENT : result;
}

/* Notes that a place ends at a time, or that it does not any more. */
static int set_ending(struct store *s, MDB_txn *txn, MDB_val *place, uint64_t end_ns, bool on)
{
	uint64_t big = htobe64(end_ns);
	MDB_val time = {.mv_data = &big, .mv_size = sizeof big};

	if (!end_ns)
		return 0;
	return on ? mdb_put(txn, s->endings, &time, place, 0) : mdb_del(txn, s->endings, &time, place);
}

/* Removes a value, which is there. */
static int take_out(struct store *s, MDB_txn *txn, MDB_val *place, const MDB_val *v)
{
	int result = set_ending(s, txn, place, ending(v), false);

	return result ? result : mdb_del(txn, s->values, place, NULL);
}

/* Clears away at most so many values that have ended; how many there were is added to count. */
static int sweep(struct store *s, MDB_txn *txn, size_t most, size_t *count)
{
	MDB_cursor *cursor;
	MDB_val time, place;
	uint64_t now_ns = loop_clock(), big;
	int result = mdb_cursor_open(txn, s->endings, &cursor);

	if (result)
		return result;
	for (size_t i = 0; i < most && !result; i++) {
		result = mdb_cursor_get(cursor, &time, &place, MDB_FIRST);
		if (result)
			break;
		memcpy(&big, time.mv_data, sizeof big);
		if (be64toh(big) > now_ns)
			break;
		result = mdb_del(txn, s->values, &place, NULL);
		if (!result)
			result = mdb_cursor_del(cursor, 0);
		(*count)++;
	}
	mdb_cursor_close(cursor);
	return result == MDB_NOTFOUND ? 0 : result;
}

/* Bytes of the pages in use. */
static uint64_t used(struct store *s, MDB_txn *txn)
{
	MDB_stat stat;
	uint64_t bytes = 0;

	if (mdb_stat(txn, s->values, &stat) == 0)
		bytes += (stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages) * stat.ms_psize;
	if (mdb_stat(txn, s->endings, &stat) == 0)
		bytes += (stat.ms_branch_pages + stat.ms_leaf_pages + stat.ms_overflow_pages) * stat.ms_psize;
	return bytes;
}

/* A write on its way. */
struct write {
	const struct store_place *at;
	const char *bytes; /* NULL: the value is removed */
	size_t length;
	uint64_t end_ns;
	bool absent; /* only where there is none */
	int (*change)(void *data, const char *old, size_t old_length, char new[STORE_SMALL], size_t *new_length);
	void *change_data;
	char small[STORE_SMALL]; /* what it makes */
};

/* The part of a write that is in a transaction. */
static int carry_out(struct store *s, MDB_txn *txn, struct write *w, size_t most, size_t *swept)
{
	struct place_bytes place;
	MDB_val v;
	bool found;
	uint64_t end_ns = w->end_ns;
	int result = sweep(s, txn, most, swept);

	if (result)
		return result;
	uint64_t before = used(s, txn);
	set_place(&place, w->at->name, w->at->name_length, w->at->key, w->at->key_length);
	result = find(s, txn, &place.val, &v, &found);
	bool old = result == 0;
	if (result && result != ENOENT)
		return result;
	if (old && w->absent)
		return EEXIST;
	if (w->change) {
		if (old)
			end_ns = ending(&v);
		result = w->change(w->change_data, old ? (char *)v.mv_data + sizeof end_ns : NULL, old ? v.mv_size - sizeof end_ns : 0, w->small,
		                   &w->length);
		if (result)
			return result;
		w->bytes = w->small;
	}
	if (!old && !w->bytes)
		return ENOENT; /* one that has ended is swept away sooner or later */
	result = 0;
	if (found)
		result = take_out(s, txn, &place.val, &v);
	if (result || !w->bytes)
		return result;
	v = (MDB_val){.mv_size = sizeof end_ns + w->length};
	result = mdb_put(txn, s->values, &place.val, &v, MDB_RESERVE);
	if (result)
		return result;
	memcpy(v.mv_data, &end_ns, sizeof end_ns);
	memcpy((char *)v.mv_data + sizeof end_ns, w->bytes, w->length);
	result = set_ending(s, txn, &place.val, end_ns, true);
	uint64_t after = used(s, txn);
	return !result && after > s->size && after > before ? MDB_MAP_FULL : result;
}

/* Writes. Where there is no room, what has ended is cleared away first. */
static int write_to(struct store *s, struct write *w)
{
	int result = need(s), dead;
	size_t swept = 0, most = SWEEP_ALONG;

	while (!result) {
		MDB_txn *txn;
		result = mdb_txn_begin(s->env, NULL, 0, &txn);
		if (result == MDB_MAP_RESIZED && mdb_env_set_mapsize(s->env, 0) == 0)
			result = mdb_txn_begin(s->env, NULL, 0, &txn);
		if (result)
			break;
		swept = 0;
		result = carry_out(s, txn, w, most, &swept);
		if (!result)
			return mdb_txn_commit(txn);
		mdb_txn_abort(txn);
		if (result != MDB_MAP_FULL && result != ENOSPC)
			break;
		if (most == SWEEP_FULL && !swept)
			return ENOSPC;
		/* A transaction for the sweeping alone: pages that it frees are there for the next one. */
		(void)mdb_reader_check(s->env, &dead);
		most = SWEEP_FULL;
		swept = 0;
		if (mdb_txn_begin(s->env, NULL, 0, &txn))
			return ENOSPC;
		if (sweep(s, txn, most, &swept) || !swept) {
			mdb_txn_abort(txn);
			return ENOSPC;
		}
		if (mdb_txn_commit(txn))
			return ENOSPC;
		result = 0;
	}
	return result;
}

/* Sets a value. */
int store_set(struct store *s, const struct store_place *at, const char *bytes, size_t length, uint64_t ttl_ns, bool absent)
{
	struct write w = {.at = at, .bytes = bytes, .length = length, .end_ns = ttl_ns ? loop_clock() + ttl_ns : 0, .absent = absent};

	return write_to(s, &w);
}

/* Changes a value. */
int store_change(struct store *s, const struct store_place *at,
                 int (*change)(void *data, const char *old, size_t old_length, char new[STORE_SMALL], size_t *new_length), void *data)
{
	struct write w = {.at = at, .change = change, .change_data = data};

	return write_to(s, &w);
}

/* Removes a value. */
int store_delete(struct store *s, const struct store_place *at)
{
	struct write w = {.at = at};

	return write_to(s, &w);
}

/* The errno of a result. */
int store_errno(int result)
{
	return result == MDB_MAP_FULL ? ENOSPC : result > 0 ? result : EIO;
}

/* Words for a result. */
const char *store_text(int result)
{
	return result == ENOSPC || result == MDB_MAP_FULL ? "the store is full" : mdb_strerror(result);
}
