/*
 * Users, groups, and giving up rights for good.
 */
#include "privs.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mem.h"

/* Reads a user or group number; (id_t)-1 stands for "no change" in the system calls and is none. */
static bool parse_id(const char *text, id_t *id)
{
	unsigned long number;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	number = strtoul(text, &end, 10);
	if (errno != 0 || *end != '\0' || number >= (id_t)-1)
		return false;
	*id = (id_t)number;
	return true;
}

/* Finds a user by name, or else by number. Only the loop's thread asks for users, so the C library's own memory will do. */
static struct passwd *find_user(const char *user)
{
	struct passwd *pw = getpwnam(user); // cppcheck-suppress getpwnamCalled
	id_t id;

	if (!pw && parse_id(user, &id))
		// cppcheck-suppress getpwuidCalled
		pw = getpwuid(id);
	return pw;
}

/* Finds user and group by name or number. A number needs no entry in the user database, but then a group must be named. */
bool privs_lookup(const char *user, const char *group, uid_t *uid, gid_t *gid, char **why)
{
	struct passwd *pw = find_user(user);
	struct group *gr;

	if (pw) {
		*uid = pw->pw_uid;
	} else if (!parse_id(user, uid)) {
		*why = mem_printf("there is no user '%s'", user);
		return false;
	}
	if (!group) {
		if (!pw) {
			*why = mem_printf("user %s has no entry in the user database: name a group too", user);
			return false;
		}
		*gid = pw->pw_gid;
		return true;
	}
	gr = getgrnam(group); // cppcheck-suppress getgrnamCalled
	if (gr) {
		*gid = gr->gr_gid;
	} else if (!parse_id(group, gid)) {
		*why = mem_printf("there is no group '%s'", group);
		return false;
	}
	return true;
}

/* Whether all three ids of the process are these already. */
static bool already(uid_t uid, gid_t gid)
{
	uid_t ruid, euid, suid;
	gid_t rgid, egid, sgid;

	return getresuid(&ruid, &euid, &suid) == 0 && getresgid(&rgid, &egid, &sgid) == 0 && ruid == uid && euid == uid && suid == uid &&
	       rgid == gid && egid == gid && sgid == gid;
}

/* Finds user, group and supplementary groups. */
bool privs_identity(const char *user, const char *group, struct identity *id, char **why)
{
	struct passwd *pw;

	*id = (struct identity){0};
	if (!privs_lookup(user, group, &id->uid, &id->gid, why))
		return false;
	pw = find_user(user);
	id->group_count = 1;
	id->groups = mem_alloc(sizeof *id->groups);
	if (!pw) {
		id->groups[0] = id->gid;
		return true;
	}
	while (getgrouplist(pw->pw_name, id->gid, id->groups, &id->group_count) < 0)
		id->groups = mem_realloc(id->groups, (size_t)id->group_count * sizeof *id->groups);
	return true;
}

/* Frees the groups. */
void privs_identity_clear(struct identity *id)
{
	free(id->groups);
	*id = (struct identity){0};
}

/* Takes it on by bare system calls: the C library's functions would want all threads to follow, which a forked child has not got. */
int privs_become(const struct identity *id)
{
	if (already(id->uid, id->gid))
		return 0;
	if (syscall(SYS_setgroups, (size_t)id->group_count, id->groups) < 0 || syscall(SYS_setresgid, id->gid, id->gid, id->gid) < 0 ||
	    syscall(SYS_setresuid, id->uid, id->uid, id->uid) < 0)
		return -1;
	if (already(id->uid, id->gid))
		return 0;
	errno = EPERM;
	return -1;
}

/* Says which step failed. */
static bool refuse(const char *user, const char *step, char **why)
{
	if (errno == EPERM && geteuid() != 0)
		*why = mem_printf("cannot become user '%s': only root can, and this process runs as uid %u", user, (unsigned)geteuid());
	else
		*why = mem_printf("cannot become user '%s': %s: %s", user, step, strerror(errno));
	return false;
}

/* Sets groups, gid and uid, in this order, since the later ones take away the right to the earlier. */
bool privs_drop(const char *user, const char *group, char **why)
{
	struct passwd *pw;
	uid_t uid;
	gid_t gid;

	if (!user)
		return true;
	if (!privs_lookup(user, group, &uid, &gid, why))
		return false;
	if (already(uid, gid))
		return true;
	pw = find_user(user);
	if (pw ? initgroups(pw->pw_name, gid) < 0 : setgroups(1, &gid) < 0)
		return refuse(user, "setting the supplementary groups", why);
	if (setresgid(gid, gid, gid) < 0)
		return refuse(user, "setting the group", why);
	if (setresuid(uid, uid, uid) < 0)
		return refuse(user, "setting the user", why);
	if (!already(uid, gid) || (uid != 0 && (setuid(0) == 0 || seteuid(0) == 0))) {
		*why = mem_printf("cannot become user '%s': the rights of before could be regained", user);
		return false;
	}
	return true;
}
