/*
 * What test programs need of the system and plain Lua has not: processes, signals, limits, clocks, descriptors with exact
 * errors. Built as testsys.so. Failures come back as nil, message, errno's name; wrong arguments raise.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

int luaopen_testsys(lua_State *L);

static int fail(lua_State *L)
{
	int number = errno;
	lua_pushnil(L);
	lua_pushstring(L, strerror(number));
	lua_pushstring(L, strerrorname_np(number));
	return 3;
}

static int done(lua_State *L, int result)
{
	if (result < 0)
		return fail(L);
	lua_pushboolean(L, 1);
	return 1;
}

/* --- processes --- */

static const struct {
	const char *name;
	int resource;
} limit_names[] = {
	{"as", RLIMIT_AS},       {"core", RLIMIT_CORE},     {"cpu", RLIMIT_CPU},     {"data", RLIMIT_DATA},
	{"fsize", RLIMIT_FSIZE}, {"nofile", RLIMIT_NOFILE}, {"stack", RLIMIT_STACK},
};

static int limit_by_name(lua_State *L, const char *name)
{
	for (size_t i = 0; i < sizeof limit_names / sizeof *limit_names; i++)
		if (strcmp(name, limit_names[i].name) == 0)
			return limit_names[i].resource;
	return luaL_error(L, "no limit is named '%s'", name);
}

static int signal_argument(lua_State *L, int index)
{
	if (lua_type(L, index) == LUA_TNUMBER)
		return (int)luaL_checkinteger(L, index);
	const char *name = luaL_checkstring(L, index);
	for (int number = 1; number < NSIG; number++) {
		const char *known = sigabbrev_np(number);
		if (known && strcmp(known, name) == 0)
			return number;
	}
	return luaL_error(L, "no signal is named '%s'", name);
}

/* Everything a child needs, prepared before the fork so that the child allocates nothing. */
struct job {
	const char **argv, **envp;
	const char *cwd, *in, *out, *err;
	struct {
		int resource;
		rlim_t value;
	} limits[8];
	int limit_count;
	int fds[16], fd_count;
	bool has_ids;
	uid_t uid;
	gid_t gid;
	bool survive;
};

static const char *string_field(lua_State *L, int index, const char *name)
{
	lua_getfield(L, index, name);
	const char *text = lua_isnil(L, -1) ? NULL : luaL_checkstring(L, -1);
	lua_pop(L, 1); /* the caller's table keeps it alive */
	return text;
}

/* The environment: ours with the fields of the table at index set, or removed where false. */
static const char **environment(lua_State *L, int index)
{
	lua_newtable(L);
	int merged = lua_gettop(L);
	for (char **variable = environ; *variable; variable++) {
		const char *equals = strchr(*variable, '=');
		if (!equals)
			continue;
		lua_pushlstring(L, *variable, (size_t)(equals - *variable));
		lua_pushstring(L, equals + 1);
		lua_rawset(L, merged);
	}
	if (index != 0) {
		lua_pushnil(L);
		while (lua_next(L, index)) {
			lua_pushvalue(L, -2);
			if (lua_isboolean(L, -2))
				lua_pushnil(L);
			else
				lua_pushstring(L, luaL_checkstring(L, -2));
			lua_rawset(L, merged);
			lua_pop(L, 1);
		}
	}
	size_t count = 0;
	lua_pushnil(L);
	while (lua_next(L, merged)) {
		count++;
		lua_pop(L, 1);
	}
	const char **envp = lua_newuserdatauv(L, (count + 1) * sizeof *envp, 1);
	lua_newtable(L); /* anchors the strings */
	size_t i = 0;
	lua_pushnil(L);
	while (lua_next(L, merged)) {
		lua_pushfstring(L, "%s=%s", lua_tostring(L, -2), lua_tostring(L, -1));
		envp[i++] = lua_tostring(L, -1);
		lua_rawseti(L, -4, (lua_Integer)i);
		lua_pop(L, 1);
	}
	envp[i] = NULL;
	lua_setiuservalue(L, -2, 1);
	return envp;
}

static void open_as(const char *path, int flags, int fd)
{
	int opened = open(path, flags, 0644);
	if (opened < 0)
		return;
	dup2(opened, fd);
	if (opened != fd)
		close(opened);
}

/* The child's side of spawn, up to exec; returns only when something failed. Errors of exec go up the pipe. */
static void become(const struct job *job, pid_t parent)
{
	if (!job->survive) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(127);
	}
	for (int number = 1; number < NSIG; number++)
		signal(number, SIG_DFL);
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	/* Descriptors to hand down go out of the way first, since their numbers may be among the targets. */
	int moved[16] = {0};
	for (int i = 0; i < job->fd_count; i++)
		moved[i] = fcntl(job->fds[i], F_DUPFD_CLOEXEC, 100);
	open_as(job->in ? job->in : "/dev/null", O_RDONLY, 0);
	if (job->out)
		open_as(job->out, O_WRONLY | O_CREAT | O_APPEND, 1);
	if (job->err)
		open_as(job->err, O_WRONLY | O_CREAT | O_APPEND, 2);
	close_range(3, ~0U, CLOSE_RANGE_CLOEXEC);
	for (int i = 0; i < job->fd_count; i++)
		dup2(moved[i], 3 + i);
	if (job->cwd && chdir(job->cwd) < 0)
		return;
	for (int i = 0; i < job->limit_count; i++) {
		struct rlimit limit = {job->limits[i].value, job->limits[i].value};
		if (setrlimit((__rlimit_resource_t)job->limits[i].resource, &limit) < 0)
			return;
	}
	if (job->has_ids) {
		if (setgroups(0, NULL) < 0 || setgid(job->gid) < 0 || setuid(job->uid) < 0)
			return;
		if (!job->survive)
			prctl(PR_SET_PDEATHSIG, SIGKILL); /* a change of ids clears it */
	}
	execvpe(job->argv[0], (char *const *)(void *)job->argv, (char *const *)(void *)job->envp);
}

/* spawn(argv, options) -> pid. options: env (name = text or false), cwd, stdin, stdout, stderr (paths; output is appended),
 * limits (name = number), fds (descriptors that become 3, 4, ...), uid and gid, survive (outlives us). */
static int l_spawn(lua_State *L)
{
	struct job job = {0};
	luaL_checktype(L, 1, LUA_TTABLE);
	lua_settop(L, 2);
	if (lua_isnil(L, 2)) {
		lua_newtable(L);
		lua_replace(L, 2);
	}
	luaL_checktype(L, 2, LUA_TTABLE);
	size_t count = lua_rawlen(L, 1);
	luaL_argcheck(L, count > 0, 1, "is empty");
	job.argv = lua_newuserdatauv(L, (count + 1) * sizeof *job.argv, 0);
	for (size_t i = 0; i < count; i++) {
		lua_rawgeti(L, 1, (lua_Integer)i + 1);
		job.argv[i] = luaL_checkstring(L, -1);
		lua_rawseti(L, 1, (lua_Integer)i + 1); /* a number has become a string that the table now keeps */
	}
	job.argv[count] = NULL;
	lua_getfield(L, 2, "env");
	job.envp = environment(L, lua_istable(L, -1) ? lua_gettop(L) : 0);
	job.cwd = string_field(L, 2, "cwd");
	job.in = string_field(L, 2, "stdin");
	job.out = string_field(L, 2, "stdout");
	job.err = string_field(L, 2, "stderr");
	lua_getfield(L, 2, "survive");
	job.survive = lua_toboolean(L, -1);
	lua_getfield(L, 2, "uid");
	if ((job.has_ids = !lua_isnil(L, -1))) {
		job.uid = (uid_t)luaL_checkinteger(L, -1);
		lua_getfield(L, 2, "gid");
		job.gid = (gid_t)luaL_checkinteger(L, -1);
	}
	lua_getfield(L, 2, "limits");
	if (lua_istable(L, -1)) {
		lua_pushnil(L);
		while (lua_next(L, -2)) {
			if (job.limit_count == 8)
				return luaL_error(L, "too many limits");
			job.limits[job.limit_count].resource = limit_by_name(L, luaL_checkstring(L, -2));
			job.limits[job.limit_count++].value = (rlim_t)luaL_checkinteger(L, -1);
			lua_pop(L, 1);
		}
	}
	lua_getfield(L, 2, "fds");
	if (lua_istable(L, -1)) {
		job.fd_count = (int)lua_rawlen(L, -1);
		if (job.fd_count > 16)
			return luaL_error(L, "too many descriptors");
		for (int i = 0; i < job.fd_count; i++) {
			lua_rawgeti(L, -1, i + 1);
			job.fds[i] = (int)luaL_checkinteger(L, -1);
			lua_pop(L, 1);
		}
	}
	/* The write end must survive close_range by number and die at exec: a high descriptor with CLOEXEC does both. */
	int report[2];
	if (pipe2(report, O_CLOEXEC) < 0)
		return fail(L);
	pid_t parent = getpid();
	pid_t pid = fork();
	if (pid == 0) {
		int high = fcntl(report[1], F_DUPFD_CLOEXEC, 200);
		become(&job, parent);
		int number = errno;
		if (write(high, &number, sizeof number) < 0)
			_exit(126);
		_exit(127);
	}
	close(report[1]);
	int number = 0;
	ssize_t length = pid > 0 ? read(report[0], &number, sizeof number) : 0;
	close(report[0]);
	if (pid < 0)
		return fail(L);
	if (length == sizeof number) {
		waitpid(pid, NULL, 0);
		errno = number;
		return fail(L);
	}
	lua_pushinteger(L, pid);
	return 1;
}

/* kill(pid, signal): by number or name ("TERM"); 0 asks whether the process is there. */
static int l_kill(lua_State *L)
{
	pid_t pid = (pid_t)luaL_checkinteger(L, 1);
	luaL_argcheck(L, pid > 0, 1, "must be one process");
	return done(L, kill(pid, signal_argument(L, 2)));
}

/* waitpid(pid, nohang) -> "exit", status | "signal", number | nil (still running) | nil, message, errno's name. */
static int l_waitpid(lua_State *L)
{
	int status;
	pid_t pid = waitpid((pid_t)luaL_checkinteger(L, 1), &status, lua_toboolean(L, 2) ? WNOHANG : 0);
	if (pid < 0)
		return fail(L);
	if (pid == 0) {
		lua_pushnil(L);
		return 1;
	}
	lua_pushstring(L, WIFEXITED(status) ? "exit" : "signal");
	lua_pushinteger(L, WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	return 2;
}

/* subreaper(): orphans below us become our children, so that what detached itself can be waited for. */
static int l_subreaper(lua_State *L)
{
	return done(L, prctl(PR_SET_CHILD_SUBREAPER, 1));
}

static int l_getpid(lua_State *L)
{
	lua_pushinteger(L, getpid());
	return 1;
}

static int l_getuid(lua_State *L)
{
	lua_pushinteger(L, getuid());
	return 1;
}

/* setrlimit(name, soft) sets our own soft limit. getrlimit(name) -> soft, hard; -1: none. */
static int l_setrlimit(lua_State *L)
{
	struct rlimit limit;
	__rlimit_resource_t resource = (__rlimit_resource_t)limit_by_name(L, luaL_checkstring(L, 1));
	if (getrlimit(resource, &limit) < 0)
		return fail(L);
	limit.rlim_cur = (rlim_t)luaL_checkinteger(L, 2);
	return done(L, setrlimit(resource, &limit));
}

static int l_getrlimit(lua_State *L)
{
	struct rlimit limit;
	if (getrlimit((__rlimit_resource_t)limit_by_name(L, luaL_checkstring(L, 1)), &limit) < 0)
		return fail(L);
	lua_pushinteger(L, (lua_Integer)limit.rlim_cur);
	lua_pushinteger(L, (lua_Integer)limit.rlim_max);
	return 2;
}

/* --- clocks --- */

/* now() -> seconds of the monotonic clock. */
static int l_now(lua_State *L)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	lua_pushnumber(L, (double)now.tv_sec + (double)now.tv_nsec / 1e9);
	return 1;
}

static int l_sleep(lua_State *L)
{
	double seconds = luaL_checknumber(L, 1);
	struct timespec rest = {.tv_sec = (time_t)seconds};
	rest.tv_nsec = (long)((seconds - (double)rest.tv_sec) * 1e9);
	while (nanosleep(&rest, &rest) < 0 && errno == EINTR)
		;
	return 0;
}

/* ticks() -> how many units of /proc/PID/stat's times make a second; page() -> bytes of a page. */
static int l_ticks(lua_State *L)
{
	lua_pushinteger(L, sysconf(_SC_CLK_TCK));
	return 1;
}

static int l_page(lua_State *L)
{
	lua_pushinteger(L, sysconf(_SC_PAGESIZE));
	return 1;
}

/* --- files and descriptors --- */

/* mkdtemp(template) -> path of a new folder for us alone. */
static int l_mkdtemp(lua_State *L)
{
	char path[256];
	size_t length;
	const char *template = luaL_checklstring(L, 1, &length);
	luaL_argcheck(L, length < sizeof path, 1, "is too long");
	memcpy(path, template, length + 1);
	if (!mkdtemp(path))
		return fail(L);
	lua_pushstring(L, path);
	return 1;
}

/* chmod(path, mode), chown(path, uid, gid): mode is octal text ("0640"). */
static int l_chmod(lua_State *L)
{
	return done(L, chmod(luaL_checkstring(L, 1), (mode_t)strtoul(luaL_checkstring(L, 2), NULL, 8)));
}

static int l_chown(lua_State *L)
{
	return done(L, chown(luaL_checkstring(L, 1), (uid_t)luaL_checkinteger(L, 2), (gid_t)luaL_checkinteger(L, 3)));
}

/* poll(fds, "r" or "w", seconds) -> list of those ready; an end or error of a descriptor counts as ready. */
static int l_poll(lua_State *L)
{
	luaL_checktype(L, 1, LUA_TTABLE);
	short events = *luaL_checkstring(L, 2) == 'w' ? POLLOUT : POLLIN;
	double seconds = luaL_checknumber(L, 3);
	size_t count = lua_rawlen(L, 1);
	struct pollfd *fds = lua_newuserdatauv(L, (count + 1) * sizeof *fds, 0);
	for (size_t i = 0; i < count; i++) {
		lua_rawgeti(L, 1, (lua_Integer)i + 1);
		fds[i] = (struct pollfd){.fd = (int)luaL_checkinteger(L, -1), .events = events};
		lua_pop(L, 1);
	}
	struct timespec limit = {.tv_sec = (time_t)seconds};
	limit.tv_nsec = (long)((seconds - (double)limit.tv_sec) * 1e9);
	if (ppoll(fds, count, seconds < 0 ? NULL : &limit, NULL) < 0 && errno != EINTR)
		return fail(L);
	lua_newtable(L);
	lua_Integer ready = 0;
	for (size_t i = 0; i < count; i++) {
		if (fds[i].revents) {
			lua_pushinteger(L, fds[i].fd);
			lua_rawseti(L, -2, ++ready);
		}
	}
	return 1;
}

/* recv(fd, most) -> bytes, "" at the peer's end; never blocks (EAGAIN). */
static int l_recv(lua_State *L)
{
	int fd = (int)luaL_checkinteger(L, 1);
	size_t most = (size_t)luaL_checkinteger(L, 2);
	luaL_Buffer buffer;
	char *bytes = luaL_buffinitsize(L, &buffer, most);
	ssize_t length = recv(fd, bytes, most, MSG_DONTWAIT);
	if (length < 0)
		return fail(L);
	luaL_pushresultsize(&buffer, (size_t)length);
	return 1;
}

/* send(fd, bytes, first) -> how many bytes from position first (1) on were taken; never blocks. */
static int l_send(lua_State *L)
{
	size_t length;
	int fd = (int)luaL_checkinteger(L, 1);
	const char *bytes = luaL_checklstring(L, 2, &length);
	size_t first = (size_t)luaL_optinteger(L, 3, 1) - 1;
	luaL_argcheck(L, first <= length, 3, "is behind the end");
	ssize_t sent = send(fd, bytes + first, length - first, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0)
		return fail(L);
	lua_pushinteger(L, sent);
	return 1;
}

/* shutdown(fd): no more will be sent. */
static int l_shutdown(lua_State *L)
{
	return done(L, shutdown((int)luaL_checkinteger(L, 1), SHUT_WR));
}

/* reset(fd): closing it, which the owner does next, sends RST. */
static int l_reset(lua_State *L)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};
	return done(L, setsockopt((int)luaL_checkinteger(L, 1), SOL_SOCKET, SO_LINGER, &now, sizeof now));
}

/* buffers(fd, bytes): small or large kernel buffers in both directions. */
static int l_buffers(lua_State *L)
{
	int fd = (int)luaL_checkinteger(L, 1), size = (int)luaL_checkinteger(L, 2);
	int result = setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	return done(L, result < 0 ? result : setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size));
}

/* reserve(name) -> descriptor that holds the name against other processes as long as it is open; nil, ..., "EADDRINUSE". */
static int l_reserve(lua_State *L)
{
	size_t length;
	const char *name = luaL_checklstring(L, 1, &length);
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	luaL_argcheck(L, length < sizeof address.sun_path - 1, 1, "is too long");
	memcpy(address.sun_path + 1, name, length);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(L);
	if (bind(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length)) < 0) {
		int number = errno;
		close(fd);
		errno = number;
		return fail(L);
	}
	lua_pushinteger(L, fd);
	return 1;
}

/* dup(fd) -> another descriptor of the same thing; close(fd). */
static int l_dup(lua_State *L)
{
	int fd = fcntl((int)luaL_checkinteger(L, 1), F_DUPFD_CLOEXEC, 3);
	if (fd < 0)
		return fail(L);
	lua_pushinteger(L, fd);
	return 1;
}

static int l_close(lua_State *L)
{
	return done(L, close((int)luaL_checkinteger(L, 1)));
}

static const luaL_Reg functions[] = {
	{"buffers", l_buffers}, {"chmod", l_chmod},         {"chown", l_chown},         {"close", l_close},       {"dup", l_dup},
	{"getpid", l_getpid},   {"getrlimit", l_getrlimit}, {"getuid", l_getuid},       {"kill", l_kill},         {"mkdtemp", l_mkdtemp},
	{"now", l_now},         {"page", l_page},           {"poll", l_poll},           {"recv", l_recv},         {"reserve", l_reserve},
	{"reset", l_reset},     {"send", l_send},           {"setrlimit", l_setrlimit}, {"shutdown", l_shutdown}, {"sleep", l_sleep},
	{"spawn", l_spawn},     {"subreaper", l_subreaper}, {"ticks", l_ticks},         {"waitpid", l_waitpid},   {NULL, NULL},
};

int luaopen_testsys(lua_State *L)
{
	luaL_newlib(L, functions);
	return 1;
}
