/*
 * Users, groups, and giving up rights for good.
 */
#ifndef REACTORD_PRIVS_H
#define REACTORD_PRIVS_H

#include <stdbool.h>
#include <sys/types.h>

/* Finds user and group by name or number; group NULL: the user's own. False with a reason (caller frees). */
bool privs_lookup(const char *user, const char *group, uid_t *uid, gid_t *gid, char **why) __attribute__((warn_unused_result));

/* All that a process is as a user: looked up before a fork, taken on behind it. */
struct identity {
	uid_t uid;
	gid_t gid;
	gid_t *groups; /* supplementary */
	int group_count;
};

/* Looks it up as privs_lookup does; the caller ends it with privs_identity_clear. */
bool privs_identity(const char *user, const char *group, struct identity *id, char **why) __attribute__((warn_unused_result));
void privs_identity_clear(struct identity *id);

/* Becomes that user for good, in a process that has one thread: -1 with errno. A process that is that user already keeps what it has.
 * Async-signal-safe. */
int privs_become(const struct identity *id) __attribute__((warn_unused_result));

/* Sets supplementary groups, gid and uid so that they cannot be regained, and checks that. A process that already runs as that
 * user and group keeps what it has. user NULL: nothing to do. */
bool privs_drop(const char *user, const char *group, char **why) __attribute__((warn_unused_result));

#endif
