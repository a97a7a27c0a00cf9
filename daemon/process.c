/* Child processes: see process.h. */
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "log.h"
#include "mem.h"

#define DEFAULT_PATH "/usr/local/bin:/usr/bin:/bin"

/* What happens to a child whose connection has ended. */
enum ending { ENDING_BY_ITSELF, ENDING_CLOSED, ENDING_TERMINATED, ENDING_KILLED };

struct process {
	struct processes *set;
	struct conn *c; /* NULL: none yet, or its end has come */
	const struct process_events *events;
	pid_t pid;
	int pidfd;
	struct event exited; /* pidfd is readable */
	bool ended;          /* it has been reaped */
	enum ending ending;
	struct timer timer; /* the next stage; after the child's end the wait for output that others hold */
	int fd;             /* our end of its input and output until a connection has it; -1 then */
	int err_fd;         /* its standard error; -1: none, or ended */
	struct event err_readable;
	bool err_reading;
	uint64_t err_in;             /* bytes read from it */
	uint64_t out_last, err_last; /* how many bytes each had sent when the child ended */
	struct process *previous, *next;
};

struct processes {
	struct loop *loop;
	struct watches *watches; /* told of each child that was reaped */
	rlim_t descriptor_limit;
	struct process *all;
};

/* Variables that the service manager meant for us alone. */
static const char *const our_variables[] = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"};

/* Frees a NULL-terminated array of strings. */
static void free_strings(char **strings)
{
	for (size_t i = 0; strings && strings[i]; i++)
		free(strings[i]);
	free(strings);
}

/* Appends to a NULL-terminated array. */
static void append(char ***strings, size_t *count, char *string)
{
	*strings = mem_realloc(*strings, (*count + 2) * sizeof **strings);
	(*strings)[(*count)++] = string;
	(*strings)[*count] = NULL;
}

/* Frees what a spec has. */
void process_spec_clear(struct process_spec *spec)
{
	free_strings(spec->argv);
	free_strings(spec->env);
	free(spec->cwd);
	privs_identity_clear(&spec->identity);
	*spec = (struct process_spec){0};
}

/* Adds an argument; the first is the program. */
void process_spec_add(struct process_spec *spec, const char *argument)
{
	append(&spec->argv, &spec->argc, mem_strdup(argument));
}

/*
 * Reads one word of a command line into word, which has room for all of it. Quotes and backslashes are those of POSIX: between single
 * quotes everything counts as it is, between double quotes a backslash escapes $ ` " \ and a line's end. NULL: a quote is not closed.
 */
static const char *read_word(const char *at, char *word)
{
	char quote = 0;

	for (; *at && (quote || !strchr(" \t\r\n\v\f", *at)); at++) {
		if (quote ? *at == quote : *at == '\'' || *at == '"') {
			quote = quote ? 0 : *at;
		} else if (*at == '\\' && at[1] && quote != '\'' && (!quote || strchr("$`\"\\\n", at[1]))) {
			if (*++at != '\n')
				*word++ = *at;
		} else {
			*word++ = *at;
		}
	}
	*word = '\0';
	return quote ? NULL : at;
}

/* Splits a command line. */
bool process_spec_split(struct process_spec *spec, const char *text, const char **why)
{
	char *word = mem_alloc(strlen(text) + 1);

	while (text && *(text += strspn(text, " \t\r\n\v\f"))) {
		text = read_word(text, word);
		if (text)
			process_spec_add(spec, word);
	}
	free(word);
	*why = text ? "the command is empty" : "a quote is not closed";
	return text && spec->argc;
}

/* Is that entry of an environment the variable of that name? */
static bool is_variable(const char *entry, const char *name)
{
	size_t length = strlen(name);

	return strncmp(entry, name, length) == 0 && entry[length] == '=';
}

/* Takes a variable out. */
static void remove_variable(struct process_spec *spec, const char *name)
{
	for (size_t i = 0; i < spec->env_count;) {
		if (!is_variable(spec->env[i], name)) {
			i++;
			continue;
		}
		free(spec->env[i]);
		memmove(&spec->env[i], &spec->env[i + 1], (spec->env_count - i) * sizeof *spec->env); /* with the NULL */
		spec->env_count--;
	}
}

/* Begins an environment: ours without what is meant for us. */
static void copy_environment(struct process_spec *spec)
{
	spec->env = mem_zalloc(sizeof *spec->env);
	for (char **entry = environ; *entry; entry++)
		append(&spec->env, &spec->env_count, mem_strdup(*entry));
	for (size_t i = 0; i < sizeof our_variables / sizeof *our_variables; i++)
		remove_variable(spec, our_variables[i]);
}

/* Sets or removes a variable. */
void process_spec_env(struct process_spec *spec, const char *name, const char *value)
{
	if (!spec->env)
		copy_environment(spec);
	remove_variable(spec, name);
	if (value)
		append(&spec->env, &spec->env_count, mem_printf("%s=%s", name, value));
}

/* The children of a loop. SIGCHLD must not be ignored, as it may have been by whoever started us: children would leave no status. */
struct processes *processes_new(struct loop *loop, rlim_t descriptor_limit, struct watches *watches)
{
	struct processes *set = mem_zalloc(sizeof *set);

	set->loop = loop;
	set->watches = watches;
	set->descriptor_limit = descriptor_limit;
	signal(SIGCHLD, SIG_DFL);
	return set;
}

/* The end of a child's object, whose connection has gone. */
static void drop(struct process *p)
{
	struct processes *set = p->set;

	if (p->err_reading)
		event_del(&p->err_readable);
	event_del(&p->exited);
	timer_stop(set->loop, &p->timer);
	if (p->fd >= 0)
		close(p->fd);
	if (p->err_fd >= 0)
		close(p->err_fd);
	close(p->pidfd);
	if (p->previous)
		p->previous->next = p->next;
	else
		set->all = p->next;
	if (p->next)
		p->next->previous = p->previous;
	set->loop->stats->children--;
	free(p);
}

/* Kills what is left. */
void processes_free(struct processes *set)
{
	if (!set)
		return;
	while (set->all) {
		(void)!process_kill(set->all, SIGKILL);
		drop(set->all);
	}
	free(set);
}

/* --- starting -------------------------------------------------------------------------------------------------------- */

/* What a child has been prepared with, and in it the step that failed. */
struct launch {
	const struct process_spec *spec;
	char **env;
	char **programs; /* where the program may be, NULL-terminated */
	rlim_t descriptor_limit;
	int stdio;       /* its end of the pair */
	int err;         /* its end of the pipe for standard error, -1: none */
	int report;      /* takes a struct failure when it could not start; closed by exec */
	bool own_memory; /* it has been forked, it does not run in our memory */
};

struct failure {
	enum { STEP_STDIO, STEP_USER, STEP_CWD, STEP_EXEC } step;
	int error;
};

/* Tries one program after the other, as execvp does. Returns the errno of the first that is there, or of the last. */
static int exec_first(const struct launch *launch)
{
	int error = ENOENT;
	bool only = !launch->programs[1];

	for (char **program = launch->programs; *program; program++) {
		execve(*program, launch->spec->argv, launch->env);
		if (only)
			return errno;
		if (errno == EACCES)
			error = EACCES; /* one further on may do better */
		else if (errno != ENOENT && errno != ENOTDIR)
			return errno;
	}
	return error;
}

/* Everything from the fourth descriptor on goes with exec, whoever has opened it. */
static void close_on_exec(rlim_t limit)
{
	if (syscall(SYS_close_range, 3, ~0u, CLOSE_RANGE_CLOEXEC) == 0)
		return;
	for (int fd = 3; fd < (int)(limit < 65536 ? limit : 65536); fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
}

/*
 * The child, from fork to exec. All signals are blocked when it begins, so that none of our handlers runs in it: they would write into
 * our own descriptors. Only async-signal-safe functions are called, and nothing of our memory is changed.
 */
static _Noreturn void run_child(const struct launch *launch)
{
	const struct process_spec *spec = launch->spec;
	static const char standard[64]; /* the kernel's struct sigaction: SIG_DFL, no flags, no mask are all zero */
	struct rlimit limit;
	sigset_t none;
	struct failure failure = {.step = STEP_STDIO};

	for (int signo = 1; signo < NSIG; signo++)
		syscall(SYS_rt_sigaction, signo, standard, NULL, (NSIG - 1) / 8); /* sigaction leaves out two */
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		close_on_exec(limit.rlim_cur);
		limit.rlim_cur = launch->descriptor_limit < limit.rlim_max ? launch->descriptor_limit : limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	int err = spec->err == PROCESS_STDERR_MERGE ? launch->stdio : launch->err;
	if (dup2(launch->stdio, 0) < 0 || dup2(launch->stdio, 1) < 0 || (err >= 0 && dup2(err, 2) < 0))
		goto failed;
	failure.step = STEP_USER;
	if (spec->as_user && privs_become(&spec->identity) < 0)
		goto failed;
	failure.step = STEP_CWD;
	if (spec->cwd && chdir(spec->cwd) < 0)
		goto failed;
	failure.step = STEP_EXEC;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	errno = exec_first(launch);
failed:
	failure.error = errno;
	(void)!write(launch->report, &failure, sizeof failure);
	_exit(127);
}

/*
 * Forks. Where it can the child runs in our memory until exec, which takes the same short time however large we are. Not where it becomes
 * another user: whoever that is could look into the memory of a process of his, and so into ours.
 */
static pid_t launch_child(const struct launch *launch)
{
	sigset_t all, before;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	pid_t pid = launch->spec->as_user ? fork() : vfork();
	if (pid == 0)
		run_child(launch);
	int error = errno;
	sigprocmask(SIG_SETMASK, &before, NULL);
	errno = error;
	return pid;
}

/* A descriptor that is none of the standard ones, which may be free here and are laid out anew in the child; -1 with errno. */
static int above_stdio(int fd)
{
	if (fd < 0 || fd > 2)
		return fd;
	int higher = fcntl(fd, F_DUPFD_CLOEXEC, 3), error = errno;
	close(fd);
	errno = error;
	return higher;
}

/* Makes a pair of descriptors, ours first, that are above the standard ones: a socket pair or a pipe. */
static bool make_pair(int ends[2], bool sockets)
{
	ends[0] = ends[1] = -1;
	if ((sockets ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) : pipe2(ends, O_CLOEXEC)) < 0)
		return false;
	ends[0] = above_stdio(ends[0]);
	ends[1] = above_stdio(ends[1]);
	return ends[0] >= 0 && ends[1] >= 0;
}

/* Closes both, keeping errno. */
static void close_pair(int ends[2])
{
	int error = errno;

	for (int i = 0; i < 2; i++) {
		if (ends[i] >= 0)
			close(ends[i]);
		ends[i] = -1;
	}
	errno = error;
}

/* All places where a program may be found: the child's PATH. */
static char **find_programs(const char *program, char **env)
{
	const char *path = DEFAULT_PATH;
	char **programs = NULL;
	size_t count = 0;

	if (strchr(program, '/') || !*program) {
		append(&programs, &count, mem_strdup(program));
		return programs;
	}
	for (; *env; env++)
		if (is_variable(*env, "PATH"))
			path = *env + strlen("PATH=");
	for (;;) {
		size_t length = strcspn(path, ":");
		append(&programs, &count, length ? mem_printf("%.*s/%s", (int)length, path, program) : mem_printf("./%s", program));
		if (!path[length])
			return programs;
		path += length + 1;
	}
}

/* In words why a child could not start. */
static char *failure_text(const struct process_spec *spec, const struct failure *failure)
{
	switch (failure->step) {
	case STEP_USER:
		return mem_printf("cannot become uid %u for '%s': %s", (unsigned)spec->identity.uid, spec->argv[0], errno_text(failure->error));
	case STEP_CWD: return mem_printf("cannot enter '%s' for '%s': %s", spec->cwd, spec->argv[0], errno_text(failure->error));
	default: return mem_printf("cannot execute '%s': %s", spec->argv[0], errno_text(failure->error));
	}
}

/* Forks and sees whether the program could be executed. The pid, or -1 with errno and a failure. */
static pid_t launch_and_see(struct launch *launch, struct failure *failure)
{
	int report[2];

	failure->step = STEP_EXEC;
	if (!make_pair(report, false)) {
		failure->error = errno;
		close_pair(report);
		return -1;
	}
	launch->report = report[1];
	pid_t pid = launch_child(launch);
	failure->error = errno;
	close(report[1]);
	report[1] = -1;
	ssize_t n = 0;
	while (pid > 0 && (n = read(report[0], failure, sizeof *failure)) < 0 && errno == EINTR)
		continue;
	close_pair(report);
	if (pid > 0 && n > 0) { /* it ends by itself, at once */
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			continue;
		pid = -1;
	}
	return pid;
}

static void on_exited(evutil_socket_t fd, short what, void *data);
static void on_timer(void *data);

/* The object of a child that runs. It cannot be known without a pidfd, so without one it ends. */
static struct process *adopt(struct processes *set, pid_t pid)
{
	int pidfd = pidfd_open(pid, 0), error = errno;

	if (pidfd < 0) {
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			continue;
		errno = error;
		return NULL;
	}
	struct process *p = mem_zalloc(sizeof *p);
	p->set = set;
	p->pid = pid;
	p->pidfd = pidfd;
	p->fd = p->err_fd = -1;
	timer_init(&p->timer, on_timer, p);
	event_assign(&p->exited, set->loop->base, pidfd, EV_READ | EV_PERSIST, on_exited, p);
	p->next = set->all;
	if (p->next)
		p->next->previous = p;
	set->all = p;
	set->loop->stats->children++;
	set->loop->stats->children_started++;
	if (event_add(&p->exited, NULL) < 0) {
		kill(pid, SIGKILL);
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			continue;
		drop(p);
		errno = EIO;
		return NULL;
	}
	return p;
}

/* Starts a child. */
struct process *process_start(struct processes *set, const struct process_spec *spec, char **why)
{
	struct process_spec ours = {0};
	struct launch launch = {.spec = spec, .descriptor_limit = set->descriptor_limit, .stdio = -1, .err = -1, .report = -1};
	struct failure failure = {.step = STEP_EXEC};
	struct process *p = NULL;
	int stdio[2] = {-1, -1}, err[2] = {-1, -1};

	if (!spec->env)
		copy_environment(&ours);
	launch.env = spec->env ? spec->env : ours.env;
	launch.programs = find_programs(spec->argv[0], launch.env);
	if (!make_pair(stdio, true) || fcntl(stdio[0], F_SETFL, O_NONBLOCK) < 0 ||
	    (spec->err == PROCESS_STDERR_SEPARATE && (!make_pair(err, false) || fcntl(err[0], F_SETFL, O_NONBLOCK) < 0))) {
		failure.error = errno;
	} else {
		launch.stdio = stdio[1];
		launch.err = err[1];
		pid_t pid = launch_and_see(&launch, &failure);
		if (pid > 0 && !(p = adopt(set, pid)))
			failure.error = errno;
	}
	if (p) {
		p->fd = stdio[0];
		p->err_fd = err[0];
		stdio[0] = err[0] = -1;
	} else {
		*why = failure_text(spec, &failure);
	}
	close_pair(stdio);
	close_pair(err);
	free_strings(launch.programs);
	process_spec_clear(&ours);
	if (!p)
		errno = failure.error;
	return p;
}

/* --- living and ending ----------------------------------------------------------------------------------------------- */

/* Its pid, which stays its own until it has been reaped. */
pid_t process_pid(const struct process *p)
{
	return p->pid;
}

/* Sends a signal by way of the pidfd: a pid might be somebody else's by now. */
int process_kill(struct process *p, int signo)
{
	if (p->ended) {
		errno = ESRCH;
		return -1;
	}
	return pidfd_send_signal(p->pidfd, signo, NULL, 0);
}

/* Standard error has ended, or nobody wants to read it any more. */
static void close_stderr(struct process *p)
{
	if (p->err_fd < 0)
		return;
	if (p->err_reading)
		event_del(&p->err_readable);
	p->err_reading = false;
	close(p->err_fd);
	p->err_fd = -1;
}

/* Ends the connection, whose child has ended, too, and has no more to say. */
static void finish(struct process *p)
{
	struct conn *c = p->c;

	timer_stop(p->set->loop, &p->timer);
	if (c->finishing) /* it was asked to end so */
		conn_end(c, c->end_code, c->end_why);
	else
		conn_end(c, NULL, "eof");
}

/* Ends the connection if all is there: the status, the end of output and standard error. */
static void finish_if_done(struct process *p)
{
	if (p->ended && p->c->eof && p->err_fd < 0)
		finish(p);
}

/* Reads standard error as long as the connection takes data. */
static void watch_stderr(struct process *p)
{
	bool reading = p->err_fd >= 0 && p->c && p->c->state != CONN_ENDING && !p->c->paused;

	if (reading == p->err_reading)
		return;
	if (reading ? event_add(&p->err_readable, NULL) < 0 : event_del(&p->err_readable) < 0)
		return;
	p->err_reading = reading;
}

/* Standard error has something, or has ended. One read a pass, as for connections. */
static void on_err_readable(evutil_socket_t fd, short what, void *data)
{
	struct process *p = data;
	struct loop *loop = p->set->loop;
	ssize_t n = read(fd, loop->buffer, LOOP_BUFFER_SIZE);

	(void)what;
	if (n > 0) {
		p->err_in += (uint64_t)n;
		p->c->last_io_ns = loop_now(loop);
		loop->stats->bytes_in += (uint64_t)n;
		if (p->c->state == CONN_OPEN && !p->c->finishing)
			p->events->on_stderr(p->c, loop->buffer, (size_t)n);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close_stderr(p);
		finish_if_done(p);
	}
}

/* Has the other side of a descriptor gone, so that its end will be read after what is still in it? */
static bool hung_up(int fd)
{
	struct pollfd poll_fd = {.fd = fd, .events = POLLRDHUP};

	return poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP));
}

/* Bytes that wait in a descriptor. */
static uint64_t unread(int fd)
{
	int count = 0;

	return ioctl(fd, FIONREAD, &count) == 0 && count > 0 ? (uint64_t)count : 0;
}

/*
 * The child has ended. If all that could write has ended with it, the ends of its output will be read in good time, behind the last
 * bytes. But a child of the child may hold the output and live on: then what was there when the child ended is read, and no more is
 * waited for than PROCESS_ORPHAN_NS.
 */
static void await_tail(struct process *p)
{
	struct conn *c = p->c;
	bool out_ends = c->eof || hung_up(c->fd), err_ends = p->err_fd < 0 || hung_up(p->err_fd);

	finish_if_done(p);
	if (c->state == CONN_ENDING || (out_ends && err_ends))
		return;
	p->out_last = c->bytes_in + (c->eof ? 0 : unread(c->fd));
	p->err_last = p->err_in + (p->err_fd < 0 ? 0 : unread(p->err_fd));
	timer_start(p->set->loop, &p->timer, PROCESS_ORPHAN_NS);
}

/* Time is up: for the next stage of an end, or for output that others hold. */
static void on_timer(void *data)
{
	struct process *p = data;
	struct loop *loop = p->set->loop;
	struct conn *c = p->c;

	switch (p->ending) {
	case ENDING_BY_ITSELF:
		if (c->bytes_in < p->out_last || p->err_in < p->err_last) /* the reader is slow or paused: the tail is not lost */
			timer_start(loop, &p->timer, PROCESS_ORPHAN_NS);
		else
			finish(p);
		break;
	case ENDING_CLOSED:
		p->ending = ENDING_TERMINATED;
		(void)!process_kill(p, SIGTERM);
		timer_start(loop, &p->timer, PROCESS_KILL_NS);
		break;
	case ENDING_TERMINATED:
		p->ending = ENDING_KILLED;
		(void)!process_kill(p, SIGKILL);
		timer_start(loop, &p->timer, PROCESS_ABANDON_NS);
		break;
	case ENDING_KILLED: /* in the hands of the kernel, or another user's: it is reaped whenever it ends */
		log_warn("process %ld cannot be killed", (long)p->pid);
		p->c = NULL;
		p->events->on_exit(c, (struct process_status){.how = PROCESS_LOST});
		conn_release(c);
		break;
	}
}

/* The child has ended: takes its status, which frees its pid. */
static void on_exited(evutil_socket_t fd, short what, void *data)
{
	struct process *p = data;
	struct conn *c = p->c;
	siginfo_t info = {0};
	struct process_status status = {.how = PROCESS_LOST};

	(void)what;
	int result = waitid(P_PIDFD, (id_t)fd, &info, WEXITED | WNOHANG);
	if (result == 0 && info.si_pid == 0)
		return; /* not yet */
	if (result < 0 && errno == EINTR)
		return; /* it is still readable */
	if (result == 0 && info.si_code == CLD_EXITED)
		status = (struct process_status){.how = PROCESS_EXITED, .number = info.si_status};
	else if (result == 0)
		status = (struct process_status){.how = PROCESS_SIGNALED, .number = info.si_status};
	if (result == 0)
		watches_reaped(p->set->watches, p->pid, info.si_code != CLD_EXITED, info.si_status);
	p->ended = true;
	event_del(&p->exited);
	if (!c) {
		drop(p);
		return;
	}
	p->events->on_exit(c, status);
	if (c->parked) {
		p->c = NULL;
		conn_release(c);
		drop(p);
	} else if (c->state != CONN_ENDING) {
		await_tail(p);
	}
}

/* The connection has read the end of output. */
static void on_conn_eof(struct conn *c)
{
	finish_if_done(c->keeper_data);
}

/* The connection was paused or resumed. */
static void on_conn_pause(struct conn *c)
{
	watch_stderr(c->keeper_data);
}

/* The connection has been ended; its descriptor goes now. Is there anything that on_end has to wait for? */
static bool on_conn_ended(struct conn *c)
{
	struct process *p = c->keeper_data;

	close_stderr(p);
	timer_stop(p->set->loop, &p->timer);
	if (p->ended) {
		drop(p);
		return false;
	}
	p->ending = ENDING_CLOSED;
	timer_start(p->set->loop, &p->timer, PROCESS_TERM_NS);
	return true;
}

static const struct conn_keeper keeper = {.on_eof = on_conn_eof, .on_pause = on_conn_pause, .on_ended = on_conn_ended};

/* Gives the child to its connection. */
void process_attach(struct process *p, struct conn *c, const struct process_events *events)
{
	int fd = p->fd;

	p->c = c;
	p->events = events;
	p->fd = -1;
	conn_keep(c, &keeper, p);
	conn_open(c, fd, NULL);
	if (p->err_fd >= 0)
		event_assign(&p->err_readable, p->set->loop->base, p->err_fd, EV_READ | EV_PERSIST, on_err_readable, p);
	watch_stderr(p);
}

/* Nobody wants it: it is reaped when it has ended. */
void process_abandon(struct process *p)
{
	(void)!process_kill(p, SIGKILL);
	if (p->fd >= 0)
		close(p->fd);
	p->fd = -1;
	close_stderr(p);
}
