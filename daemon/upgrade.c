/* The upgrade of a running daemon: see upgrade.h. */
#include "upgrade.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "mem.h"
#include "notify.h"

#define MESSAGE_MAX 4096      /* bytes; longer reasons are cut */
#define ANSWER_LIMIT_MS 60000 /* for the old process, which only has to come to its next turn */

/* --- how we were started ---------------------------------------------------------------------------------------------- */

/* The absolute path of our binary. By argv[0], if that leads there: a link in it may lead to a newer one some day. */
static char *find_path(const char *arg)
{
	char exe[PATH_MAX], cwd[PATH_MAX];
	struct stat ours, named;
	ssize_t length = readlink("/proc/self/exe", exe, sizeof exe - 1);

	exe[length > 0 ? length : 0] = '\0';
	if (!arg || !strchr(arg, '/') || stat("/proc/self/exe", &ours) < 0 || stat(arg, &named) < 0 || ours.st_dev != named.st_dev ||
	    ours.st_ino != named.st_ino)
		return mem_strdup(exe);
	if (*arg == '/')
		return mem_strdup(arg);
	return getcwd(cwd, sizeof cwd) ? mem_printf("%s/%s", cwd, arg) : mem_strdup(exe);
}

/* Copies what main got. */
struct upgrade_self *upgrade_self_new(char *const *argv)
{
	struct upgrade_self *self = mem_zalloc(sizeof *self);
	size_t count = 0;

	while (argv[count])
		count++;
	self->path = find_path(argv[0]);
	self->argv = mem_zalloc((count + 1) * sizeof *self->argv);
	for (size_t i = 0; i < count; i++)
		self->argv[i] = mem_strdup(argv[i]);
	return self;
}

/* Frees it. */
void upgrade_self_free(struct upgrade_self *self)
{
	for (char **arg = self->argv; *arg; arg++)
		free(*arg);
	free(self->argv);
	free(self->path);
	free(self);
}

/* --- the old process -------------------------------------------------------------------------------------------------- */

/* Forgets the new process. */
static void let_go(struct upgrade *u)
{
	if (u->on_message)
		event_free(u->on_message);
	if (u->on_exit)
		event_free(u->on_exit);
	timer_stop(u->loop, &u->limit);
	if (u->link >= 0)
		close(u->link);
	if (u->pidfd >= 0)
		close(u->pidfd);
	u->on_message = u->on_exit = NULL;
	u->link = u->pidfd = -1;
	u->pid = 0;
}

/* It is ready: it may serve, unless it has just died. */
static void take_over(struct upgrade *u)
{
	if (send(u->link, "C", 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
		return; /* on_exit finds it */
	u->taken_over = true;
	timer_stop(u->loop, &u->limit);
	event_free(u->on_message);
	u->on_message = NULL;
	u->loop->stats->upgrades++;
	notify_main_pid(u->pid);
	log_info("upgraded: process %ld serves", (long)u->pid);
	u->on_done(u, true);
}

/* Nothing has come of it: tells all reasons. */
static void refuse(struct upgrade *u)
{
	char *status = mem_printf("Upgrade refused: %s", u->reasons.count ? u->reasons.lines[0] : "");

	u->loop->stats->upgrades_refused++;
	for (size_t i = 0; i < u->reasons.count; i++)
		log_error("upgrade refused: %s", u->reasons.lines[i]);
	log_error("upgrade refused: process %ld serves on", (long)getpid());
	notify_ready(status);
	free(status);
	u->on_done(u, false);
	problems_clear(&u->reasons);
}

/* Reads what the new process has said; false: it has said no more. */
static bool read_message(struct upgrade *u)
{
	char message[MESSAGE_MAX + 1];
	ssize_t n = recv(u->link, message, sizeof message - 1, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		u->ended = true;
		return false;
	}
	message[n] = '\0';
	if (message[0] == 'F')
		problems_add(&u->reasons, "%s", message + 1);
	else if (message[0] == 'R' && !u->timed_out)
		take_over(u);
	return !u->taken_over;
}

/* The link is readable. When it has ended the process's end tells the rest. */
static void on_link(evutil_socket_t fd, short what, void *data)
{
	struct upgrade *u = data;

	(void)fd, (void)what;
	while (read_message(u)) {
	}
	if (u->ended && u->on_message)
		event_del(u->on_message);
}

/* Says how a process has ended. */
static void add_end(struct upgrade *u, const siginfo_t *info)
{
	if (info->si_code == CLD_EXITED)
		problems_add(&u->reasons, "process %ld ended with status %d before it served", (long)u->pid, info->si_status);
	else
		problems_add(&u->reasons, "process %ld was ended by signal %d (%s) before it served", (long)u->pid, info->si_status,
		             strsignal(info->si_status));
}

/* The new process has ended; its last words are read first. */
static void on_end(evutil_socket_t fd, short what, void *data)
{
	struct upgrade *u = data;
	siginfo_t info = {0};

	(void)fd, (void)what;
	while (!u->taken_over && read_message(u)) {
	}
	if (waitid(P_PIDFD, (id_t)u->pidfd, &info, WEXITED | WNOHANG) == 0 && !info.si_pid)
		return;
	if (!u->taken_over && !u->reasons.count)
		add_end(u, &info);
	if (u->taken_over && (info.si_code != CLD_EXITED || info.si_status)) /* in good order it may have been upgraded itself */
		log_error("process %ld, which has taken over, has ended while connections are drained here", (long)u->pid);
	let_go(u);
	if (!u->taken_over)
		refuse(u);
}

/* It takes too long. Its end is what is waited for now. */
static void on_limit(void *data)
{
	struct upgrade *u = data;

	u->timed_out = true;
	problems_add(&u->reasons, "process %ld took too long to get ready", (long)u->pid);
	kill(u->pid, SIGKILL);
}

/* The environment of the new process: ours, less what names this one, and with the list's descriptor. */
static char **make_environment(char *variable)
{
	size_t count = 0, kept = 0;

	while (environ[count])
		count++;
	char **env = mem_zalloc((count + 2) * sizeof *env);
	for (size_t i = 0; i < count; i++)
		if (strncmp(environ[i], "WATCHDOG_PID=", 13) != 0 && strncmp(environ[i], LEGACY_VARIABLE "=", sizeof LEGACY_VARIABLE) != 0)
			env[kept++] = environ[i];
	env[kept] = variable;
	return env;
}

/* Starts the process; 0 or an errno. Duplicating a descriptor onto itself is how posix_spawn takes close-on-exec off in the child alone. */
static int spawn(pid_t *pid, const struct upgrade_self *self, const struct legacy *legacy, int list, rlim_t descriptor_limit)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none;
	struct rlimit ours, theirs;
	char *variable = mem_printf(LEGACY_VARIABLE "=%d", list), **env = make_environment(variable);
	const struct legacy_entry *e;

	sigemptyset(&none);
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
	int error = posix_spawn_file_actions_adddup2(&actions, list, list);
	for (size_t i = 0; !error && (e = legacy_at(legacy, i)); i++)
		error = posix_spawn_file_actions_adddup2(&actions, e->fd, e->fd);
	bool limited = getrlimit(RLIMIT_NOFILE, &ours) == 0;
	theirs = ours;
	theirs.rlim_cur = descriptor_limit < ours.rlim_max ? descriptor_limit : ours.rlim_max;
	if (!error) {
		limited = limited && setrlimit(RLIMIT_NOFILE, &theirs) == 0; /* nothing is opened until it is back */
		error = posix_spawn(pid, self->path, &actions, &attributes, self->argv, env);
		if (limited)
			(void)!setrlimit(RLIMIT_NOFILE, &ours);
	}
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	free(env);
	free(variable);
	return error;
}

/* Kills a process that does not serve yet, and forgets it. */
static void end_process(struct upgrade *u)
{
	kill(u->pid, SIGKILL);
	while (waitpid(u->pid, NULL, 0) < 0 && errno == EINTR) {
	}
	let_go(u);
}

/* Watches the link and the end of a started process; false with errno. */
static bool watch(struct upgrade *u, uint64_t limit_ns)
{
	u->pidfd = pidfd_open(u->pid, 0);
	if (u->pidfd < 0)
		return false;
	u->on_message = event_new(u->loop->base, u->link, EV_READ | EV_PERSIST, on_link, u);
	u->on_exit = event_new(u->loop->base, u->pidfd, EV_READ | EV_PERSIST, on_end, u);
	timer_start(u->loop, &u->limit, limit_ns);
	return u->on_message && u->on_exit && event_add(u->on_message, NULL) == 0 && event_add(u->on_exit, NULL) == 0;
}

/* Makes the link and the process; false with errno. */
static bool launch(struct upgrade *u, const struct upgrade_self *self, struct legacy *legacy, rlim_t descriptor_limit)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return false;
	u->link = ends[0];
	legacy_leave(legacy, LEGACY_LINK, NULL, ends[1], NULL);
	int list = legacy_write(legacy);
	int error = list < 0 ? errno : spawn(&u->pid, self, legacy, list, descriptor_limit);
	if (error)
		u->pid = 0;
	close(ends[1]);
	if (list >= 0)
		close(list);
	errno = error;
	return !error;
}

/* Starts. */
void upgrade_start(struct upgrade *u, struct loop *loop, const struct upgrade_self *self, struct legacy *legacy, rlim_t descriptor_limit,
                   uint64_t limit_ns)
{
	char number[24];

	if (u->pid) {
		loop->stats->upgrades_refused++;
		log_error("upgrade refused: process %ld is about to take over", (long)u->pid);
		legacy_free(legacy);
		return;
	}
	u->loop = loop;
	u->link = u->pidfd = -1;
	u->taken_over = u->timed_out = u->ended = false;
	timer_init(&u->limit, on_limit, u);
	snprintf(number, sizeof number, "%llu", (unsigned long long)loop->stats->upgrades + 1);
	legacy_leave_text(legacy, "upgrades", number);
	notify_upgrading();
	if (!launch(u, self, legacy, descriptor_limit)) {
		problems_add(&u->reasons, "cannot start %s: %s", self->path, strerrordesc_np(errno));
		let_go(u);
		refuse(u);
	} else if (!watch(u, limit_ns)) {
		problems_add(&u->reasons, "cannot watch process %ld: %s", (long)u->pid, strerrordesc_np(errno));
		end_process(u);
		refuse(u);
	} else {
		log_info("upgrading: process %ld of %s gets ready", (long)u->pid, self->path);
	}
	legacy_free(legacy);
}

/* Leaves the secret, as the number of its period and its bytes in hexadecimal figures. */
void upgrade_leave_secret(struct legacy *legacy, const struct tls_secret *secret)
{
	char text[32 + 2 * sizeof secret->bytes];
	int length = snprintf(text, sizeof text, "%llu ", (unsigned long long)secret->period);

	for (size_t i = 0; i < sizeof secret->bytes; i++)
		length += snprintf(text + length, sizeof text - (size_t)length, "%02x", secret->bytes[i]);
	legacy_leave_text(legacy, "tls_secret", text);
	explicit_bzero(text, sizeof text);
}

/* Takes it. */
bool upgrade_take_secret(const struct legacy *legacy, struct tls_secret *secret)
{
	const char *text = legacy_text(legacy, "tls_secret");
	char *bytes;

	if (!text)
		return false;
	secret->period = strtoull(text, &bytes, 10);
	if (*bytes++ != ' ' || strlen(bytes) != 2 * sizeof secret->bytes)
		return false;
	for (size_t i = 0; i < sizeof secret->bytes; i++)
		if (sscanf(bytes + 2 * i, "%2hhx", &secret->bytes[i]) != 1)
			return false;
	return true;
}

/* Is one under way? */
bool upgrade_under_way(const struct upgrade *u)
{
	return u->pid && !u->taken_over;
}

/* Passes a signal on. */
void upgrade_pass_on(const struct upgrade *u, int signo)
{
	if (u->pid)
		kill(u->pid, signo);
}

/* Forgets it. */
void upgrade_abandon(struct upgrade *u)
{
	if (u->pid)
		let_go(u);
	problems_clear(&u->reasons);
}

/* Ends it. */
void upgrade_cancel(struct upgrade *u)
{
	if (upgrade_under_way(u))
		end_process(u);
	upgrade_abandon(u);
}

/* --- the new process -------------------------------------------------------------------------------------------------- */

/* Announces. */
bool upgrade_announce(struct legacy *legacy, char **why)
{
	int link = legacy_take(legacy, LEGACY_LINK, NULL, NULL);
	struct pollfd p = {.fd = link, .events = POLLIN};
	char answer = 'C';
	int r;

	if (link < 0)
		return true;
	(void)!send(link, "R", 1, MSG_NOSIGNAL);
	do
		r = poll(&p, 1, ANSWER_LIMIT_MS);
	while (r < 0 && errno == EINTR);
	if (r == 1)
		r = (int)recv(link, &answer, 1, MSG_DONTWAIT) == 0 ? 1 : r; /* nobody is there any more: then it is for us to serve */
	close(link);
	if (r == 1 && answer == 'C')
		return true;
	*why = mem_strdup("the process before does not answer");
	return false;
}

/* Refuses. */
bool upgrade_refuse(struct legacy *legacy, const struct problems *problems)
{
	int link = legacy_take(legacy, LEGACY_LINK, NULL, NULL);
	char message[MESSAGE_MAX];
	bool told = link >= 0;

	for (size_t i = 0; i < problems->count && told; i++) {
		int length = snprintf(message, sizeof message, "F%s", problems->lines[i]);
		size_t size = (size_t)length < sizeof message ? (size_t)length : sizeof message - 1;
		told = send(link, message, size, MSG_NOSIGNAL) == (ssize_t)size;
	}
	if (link >= 0)
		close(link);
	return told;
}
