/*
 * Users and groups: found by name and number, and given up for good. What needs root is passed over without it.
 */
#include <grp.h>
#include <pwd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "privs.h"

/* By name, by number, and what is neither. */
static void users_are_found(void **state)
{
	uid_t uid;
	gid_t gid;
	char *why = NULL;

	(void)state;
	assert_true(privs_lookup("root", NULL, &uid, &gid, &why));
	assert_true(uid == 0 && gid == 0);
	assert_true(privs_lookup("0", "12345", &uid, &gid, &why));
	assert_true(uid == 0 && gid == 12345);
	assert_true(privs_lookup("4242424", "root", &uid, &gid, &why));
	assert_true(uid == 4242424 && gid == 0);
	assert_false(privs_lookup("4242424", NULL, &uid, &gid, &why));
	assert_string_equal(why, "user 4242424 has no entry in the user database: name a group too");
	free(why);
	assert_false(privs_lookup("no-such-user", NULL, &uid, &gid, &why));
	assert_string_equal(why, "there is no user 'no-such-user'");
	free(why);
	assert_false(privs_lookup("root", "no-such-group", &uid, &gid, &why));
	assert_string_equal(why, "there is no group 'no-such-group'");
	free(why);
	assert_false(privs_lookup("4294967295", "0", &uid, &gid, &why));
	free(why);
	assert_false(privs_lookup("-1", "0", &uid, &gid, &why));
	free(why);
}

/* In a child: becomes a user; tells by its status what came of it. */
static void become(void)
{
	gid_t groups[8];
	char *why = NULL;

	if (!privs_drop("4242424", "4242425", &why))
		_exit(1);
	if (getuid() != 4242424 || geteuid() != 4242424 || getgid() != 4242425 || getegid() != 4242425)
		_exit(2);
	if (getgroups(8, groups) != 1 || groups[0] != 4242425)
		_exit(3);
	if (setuid(0) == 0 || setgid(0) == 0)
		_exit(4);
	if (!privs_drop("4242424", "4242425", &why)) /* already so: fine */
		_exit(5);
	if (privs_drop("0", "0", &why) || strcmp(why, "cannot become user '0': only root can, and this process runs as uid 4242424") != 0)
		_exit(6);
	free(why);
	_exit(0);
}

/* Rights are gone for good. */
static void rights_do_not_come_back(void **state)
{
	char *why = NULL;
	int status;
	pid_t pid;

	(void)state;
	assert_true(privs_drop(NULL, NULL, &why));
	if (geteuid() != 0)
		skip();
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		become();
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(users_are_found),
		cmocka_unit_test(rights_do_not_come_back),
	};

	return cmocka_run_group_tests_name("privs", tests, NULL, NULL);
}
