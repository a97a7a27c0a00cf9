/*
 * A small store of keys and bytes that all processes of a daemon share and every generation sees: LMDB in a folder of its own in memory
 * (of RUNTIME_DIRECTORY, /dev/shm, TMPDIR the first that can be written to). It lives as long as the daemon; what a crash leaves behind is
 * removed by the next one that makes a store there. Nothing is opened, nor made, before the first use, so that a process may be forked
 * before; afterwards it may not. Writers wait for one another, some microseconds: a process that dies in between holds up nobody, one that is
 * stopped there by a signal does. Each call is atomic. Keys are in spaces, each with a name. Results are 0, an errno, or LMDB's codes.
 */
#ifndef REACTORD_STORE_H
#define REACTORD_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STORE_MAX_NAME 255 /* bytes of a space's name, at least 1 */
#define STORE_MAX_KEY 255  /* bytes of a key, at least 1 */

/* Where a value is. */
struct store_place {
	const char *name, *key;
	size_t name_length, key_length;
};

/* A value; bytes are the caller's to free. */
struct store_value {
	char *bytes;
	size_t length;
};

struct store;

/* A store by a name of its own; it takes that many bytes at most, and as much again for its bookkeeping. */
struct store *store_new(uint64_t size) __attribute__((warn_unused_result));

/* Gives it another name, that of the other processes', before its first use. */
void store_rename(struct store *s, const char *name);

/* Makes it the heir of the store of a process that goes on with this one (or, name NULL, of none), before its first use: the last of both
 * removes it. */
void store_inherit(struct store *s, const char *name);

/* The name, as long as the store lives. */
const char *store_name(const struct store *s);

/* Closes it; with its name its own, removes it. */
void store_free(struct store *s);

/* A name that nobody else has and nobody can guess, for the caller to free; to be made before processes are, which all get it. */
char *store_make_name(void) __attribute__((warn_unused_result));

/* A descriptor that keeps the store of that name from being removed by others; -1: there is none. */
int store_hold(const char *name) __attribute__((warn_unused_result));

/* Removes what is there by that name, unless a process has it open or holds it. */
void store_remove(const char *name);

/* The value: ENOENT where there is none, or none any more. */
int store_get(struct store *s, const struct store_place *at, struct store_value *to) __attribute__((warn_unused_result));

/* Sets it, for so long (0: for ever). With absent only where there is none: else EEXIST. ENOSPC: the store is full. */
int store_set(struct store *s, const struct store_place *at, const char *bytes, size_t length, uint64_t ttl_ns, bool absent)
	__attribute__((warn_unused_result));

/* Replaces a value by what change makes of it (old NULL: there is none) with neither of them longer than STORE_SMALL; it lives as long as the
 * old one would have. What change returns, if not 0, is the result, and nothing is changed. */
#define STORE_SMALL 16 /* bytes */
int store_change(struct store *s, const struct store_place *at,
                 int (*change)(void *data, const char *old, size_t old_length, char new[STORE_SMALL], size_t *new_length), void *data)
	__attribute__((warn_unused_result));

/* Removes it; ENOENT where there is none. */
int store_delete(struct store *s, const struct store_place *at) __attribute__((warn_unused_result));

/* The first key of the space behind that one in the order of bytes (length 0: the first of all) takes its place. ENOENT: there is none. */
int store_next(struct store *s, const char *name, size_t name_length, char key[STORE_MAX_KEY], size_t *key_length)
	__attribute__((warn_unused_result));

/* An errno for a result, for what the world is told; text of it, valid for a moment. */
int store_errno(int result);
const char *store_text(int result);

#endif
