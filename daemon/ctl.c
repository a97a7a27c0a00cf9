/*
 * reactord ctl: see ctl.h. A program of its own that waits: it sends one line, reads lines of JSON and shows them. Lists of connections come
 * in pages and are put together here.
 */
#include "ctl.h"

#include <errno.h>
#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "command.h"
#include "config.h"
#include "control.h"
#include "mem.h"

#define PATIENCE_S 30 /* for an answer that takes no work; a reload and a drain take as long as they take */

/* What the command line has said. */
struct ctl {
	const char *config_path, *socket_path;
	bool is_json;
	const char *command;
	char *argument;
	char *path;   /* of the socket */
	FILE *daemon; /* to read from: it is written to by its descriptor */
};

static const char usage_text[] =
	"usage: reactord ctl [-c FILE | -s SOCKET] [--json] COMMAND      (or: reactorctl ...)\n"
	"\n"
	"  -c, --config FILE    the daemon's configuration, where control says which socket it is (default " REACTORD_CONF ")\n"
	"  -s, --socket PATH    the socket itself (default " CONTROL_PATH ")\n"
	"  -j, --json           print what the daemon has answered\n"
	"  -h, --help           print this\n"
	"\n"
	"Commands:\n";

static const struct option long_options[] = {
	{"config", required_argument, NULL, 'c'}, {"socket", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
	{"version", no_argument, NULL, 'V'},      {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
};

/* Says what is wrong with the usage. */
static int misuse(char *why)
{
	fprintf(stderr, "reactorctl: %s\ntry 'reactord ctl --help'\n", why);
	free(why);
	return COMMAND_USAGE;
}

/* A line "control = …" of a file that cannot be read as a configuration: the daemon is to say what is wrong with it. Caller frees. */
static char *scan_config(const char *path)
{
	FILE *file = fopen(path, "re");
	char line[4096], value[2048], *found = NULL;

	while (file && !found && fgets(line, sizeof line, file))
		if (sscanf(line, " control = %*1[\"']%2047[^\"']", value) == 1)
			found = *value == '/' || !strrchr(path, '/') ? mem_strdup(value)
			                                             : mem_printf("%.*s/%s", (int)(strrchr(path, '/') - path), path, value);
	if (file)
		fclose(file);
	return found;
}

/* The socket by the configuration. */
static char *find_socket(const struct ctl *k)
{
	const char *file = k->config_path ? k->config_path : getenv("REACTORD_CONFIG");
	struct problems problems = {0};
	size_t count;
	struct override *overrides = config_overrides(NULL, 0, &count);
	char *path = NULL;

	if (k->socket_path) {
		path = mem_strdup(k->socket_path);
	} else if (getenv("REACTORD_CONTROL")) {
		path = mem_strdup(getenv("REACTORD_CONTROL"));
	} else {
		if (!file)
			file = REACTORD_CONF;
		struct config *config = config_load(file, overrides, count, &problems);
		if (config && config->control)
			path = mem_strdup(config->control);
		else if (!config)
			path = scan_config(file);
		config_free(config);
	}
	problems_clear(&problems);
	free(overrides);
	return path ? path : mem_strdup(CONTROL_PATH);
}

/* Says that there is nobody. */
static int unreachable(const struct ctl *k, int error)
{
	bool absent = error == ECONNREFUSED || error == ENOENT;

	fprintf(stderr, "reactorctl: cannot reach the daemon at %s: %s%s\n", k->path, strerror(error), absent ? ": is it running?" : "");
	return COMMAND_UNREACHABLE;
}

/* Connects; 0, or the exit status. */
static int reach(struct ctl *k)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	if (k->config_path && !k->socket_path && access(k->config_path, R_OK) < 0) {
		fprintf(stderr, "reactorctl: %s: %s\n", k->config_path, strerror(errno));
		return COMMAND_USAGE;
	}
	k->path = find_socket(k);
	if (strlen(k->path) >= sizeof a.sun_path)
		return unreachable(k, ENAMETOOLONG);
	memcpy(a.sun_path, k->path, strlen(k->path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	static const char *const long_ones[] = {"reload", "upgrade", "drain", "stop"};
	bool waits = false;
	for (size_t i = 0; i < sizeof long_ones / sizeof *long_ones; i++)
		waits |= strcmp(k->command, long_ones[i]) == 0;
	struct timeval patience = {.tv_sec = waits ? 0 : PATIENCE_S}, sending = {.tv_sec = PATIENCE_S};
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) < 0 ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &sending, sizeof sending) < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0 ||
	    !(k->daemon = fdopen(fd, "r"))) {
		int error = errno == EAGAIN ? ETIMEDOUT : errno;
		if (fd >= 0)
			close(fd);
		return unreachable(k, error);
	}
	return 0;
}

/* Sends a request. */
static bool ask(struct ctl *k, json_int_t before)
{
	json_t *o = json_pack("{s:s, s:s*}", "command", k->command, "argument", k->argument);
	if (!o)
		return false;
	if (before)
		json_object_set_new(o, "before", json_integer(before));
	char *line = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (!line)
		mem_exhausted();
	size_t length = strlen(line), sent = 0;
	line[length++] = '\n'; /* in the place of its end */
	while (sent < length) {
		ssize_t n = send(fileno(k->daemon), line + sent, length - sent, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			break;
		sent += n > 0 ? (size_t)n : 0;
	}
	free(line);
	return sent == length;
}

/* Shows how it goes on. */
static void show_progress(const struct ctl *k, const json_t *progress)
{
	const json_t *left = json_object_get(progress, "connections");

	if (!k->is_json && left)
		fprintf(stderr, "%" JSON_INTEGER_FORMAT " connection(s) left\n", json_integer_value(left));
}

/* Reads lines up to an answer; NULL with errno when none comes. */
static json_t *read_answer(struct ctl *k)
{
	char *line = NULL;
	size_t size = 0;
	json_t *o = NULL;

	errno = 0;
	while (!o && getline(&line, &size, k->daemon) > 0) {
		o = json_loads(line, 0, NULL);
		const json_t *progress = json_object_get(o, "progress");
		if (progress) {
			show_progress(k, progress);
			json_decref(o);
			o = NULL;
		} else if (!json_object_get(o, "exit")) {
			json_decref(o);
			o = NULL;
			errno = EPROTO;
			break;
		}
	}
	int saved = errno == EAGAIN ? ETIMEDOUT : errno ? errno : ECONNRESET;
	free(line);
	errno = saved;
	return o;
}

/* Shows the outcome: results on standard output, reasons on standard error. */
static int show(const struct ctl *k, const json_t *answer)
{
	int status = (int)json_integer_value(json_object_get(answer, "exit"));
	const json_t *result = json_object_get(answer, "result"), *errors = json_object_get(answer, "errors"), *reason;
	size_t i;

	json_array_foreach(errors, i, reason)
	{
		fprintf(stderr, "reactorctl: %s\n", json_string_value(reason));
	}
	if (status == COMMAND_DONE && k->is_json) {
		json_dumpf(result, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
		putchar('\n');
	} else if (status == COMMAND_DONE) {
		command_show(stdout, k->command, result);
	} else if (k->is_json) {
		json_dumpf(answer, stdout, JSON_INDENT(2));
		putchar('\n');
	}
	return status;
}

/* Asks, again for each further page, and shows the whole. */
static int converse(struct ctl *k)
{
	json_t *whole = NULL, *answer;
	json_int_t more = 0;
	int status;

	do {
		answer = NULL;
		if (!ask(k, more) || !(answer = read_answer(k))) {
			json_decref(whole);
			return unreachable(k, errno);
		}
		json_t *rows = json_object_get(answer, "result");
		more = json_integer_value(json_object_get(answer, "more"));
		if (whole && json_is_array(rows)) {
			json_array_extend(json_object_get(whole, "result"), rows);
			json_decref(answer);
		} else {
			json_decref(whole);
			whole = answer;
		}
	} while (more);
	status = show(k, whole);
	json_decref(whole);
	return status;
}

/* Takes the options, wherever they stand; -1 to go on, else the exit status. */
static int parse(struct ctl *k, int argc, char **argv)
{
	int c;

	opterr = 0;
	optind = 0;
	while ((c = getopt_long(argc, argv, "c:s:jVh", long_options, NULL)) != -1) {
		switch (c) {
		case 'c': k->config_path = optarg; break;
		case 's': k->socket_path = optarg; break;
		case 'j': k->is_json = true; break;
		case 'V': printf("reactord %s\n", VERSION); return COMMAND_DONE;
		case 'h':
			fputs(usage_text, stdout);
			command_help(stdout);
			return COMMAND_DONE;
		default: return misuse(mem_printf("unknown option, or one that wants an argument: %s", argv[optind - 1]));
		}
	}
	if (optind == argc)
		return misuse(mem_strdup("which command?"));
	k->command = argv[optind++];
	if (optind + 1 < argc)
		return misuse(mem_printf("%s: too many arguments", k->command));
	k->argument = optind < argc ? argv[optind] : NULL;
	char *why = NULL;
	if (!command_check(k->command, k->argument, &why))
		return misuse(why);
	json_t *argument = json_string(k->argument ? k->argument : "");
	json_decref(argument);
	if (!argument)
		return misuse(mem_printf("%s: the argument is not UTF-8", k->command));
	return -1;
}

/* The whole. */
int ctl_main(int argc, char **argv)
{
	struct ctl k = {0};
	int status = parse(&k, argc, argv);

	if (status < 0 && strcmp(k.command, "help") == 0) {
		command_help(stdout);
		status = COMMAND_DONE;
	}
	if (status < 0)
		status = reach(&k);
	if (k.daemon) {
		status = converse(&k);
		fclose(k.daemon);
	}
	free(k.path);
	if (fflush(stdout) != 0 && status == COMMAND_DONE)
		status = COMMAND_FAILED;
	return status;
}
