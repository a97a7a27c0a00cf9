/* The command line: a table of subcommands, and what each does with its options. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ctl.h"
#include "log.h"
#include "master.h"
#include "mem.h"
#include "run.h"
#include "service.h"
#include "startup.h"
#include "upgrade.h"

enum { STATUS_FAILED = 1, STATUS_USAGE = 2 };

/* What the options of any subcommand have said. */
struct command_line {
	const char *config_path;
	struct override given[64];
	size_t given_count;
	struct override *overrides; /* environment and command line */
	size_t override_count;
	char *urls[64];
	size_t url_count;
	bool detach, check;
	const char *dump;
};

static const char usage_text[] =
	"usage: reactord [-c FILE] [-d] [-p PIDFILE] [-s OPTION=VALUE]   serve as FILE says (default " REACTORD_CONF ")\n"
	"       reactord check [-c FILE] [--dump=json]                   check FILE and every handler; -t is the same\n"
	"       reactord run SCRIPT [ARGUMENTS]                          run a script inside the loop\n"
	"       reactord run HANDLER.lua -l URL [-l URL]                 serve one handler\n"
	"       reactord ctl COMMAND                                     ask a running daemon (reactord ctl --help; also reactorctl)\n"
	"\n"
	"  -c, --config FILE        configuration (or REACTORD_CONFIG in the environment)\n"
	"  -t, --check              check and exit: 0 if all is good, 1 with every mistake\n"
	"      --dump=json          with check: print the whole configuration, defaults included\n"
	"  -d, --detach             go to the background when ready\n"
	"  -p, --pid-file FILE      write the process id there\n"
	"  -s, --set OPTION=VALUE   set a top-level option; goes before REACTORD_OPTION in the environment, that before the file\n"
	"  -l, --listen URL         with run: serve the handler there (tcp://127.0.0.1:8081, unix:///run/x.sock)\n"
	"      --log-level LEVEL    error, warn, info or debug\n"
	"  -V, --version            print the version\n"
	"  -h, --help               print this\n"
	"\n"
	"Signals: HUP reloads, TERM drains (twice: stops), INT stops, USR1 opens the log file anew, USR2 upgrades.\n"
	"Exit status: 0, 1 for a mistake in configuration or script, 2 for wrong usage.\n";

static const struct option long_options[] = {
	{"config", required_argument, NULL, 'c'},
	{"check", no_argument, NULL, 't'},
	{"dump", required_argument, NULL, 'D'},
	{"detach", no_argument, NULL, 'd'},
	{"pid-file", required_argument, NULL, 'p'},
	{"set", required_argument, NULL, 's'},
	{"listen", required_argument, NULL, 'l'},
	{"log-level", required_argument, NULL, 'L'},
	{"version", no_argument, NULL, 'V'},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

/* Says what is wrong with the usage. */
static int misuse(const char *message, const char *what)
{
	fprintf(stderr, "reactord: %s%s\ntry 'reactord --help'\n", message, what);
	return STATUS_USAGE;
}

/* Remembers an option that goes before the file. */
static bool override(struct command_line *line, const char *name, const char *value, const char *origin)
{
	if (line->given_count == sizeof line->given / sizeof *line->given)
		return false;
	line->given[line->given_count++] = (struct override){.name = name, .value = value, .origin = origin};
	return true;
}

/* Whether a subcommand has an option. getopt asks its list of letters for short options only; these are for the long ones. */
static bool belongs(int option, const char *short_options)
{
	if (option == 'D')
		option = 't'; /* --dump goes with --check */
	return option == '?' || option == 'L' || option == 'V' || strchr(short_options, option);
}

/* Takes the options; -1 to go on, else the exit status. The index of the first operand is in optind. */
static int parse(struct command_line *line, int argc, char **argv, const char *short_options)
{
	int c, index = 0;

	while ((c = getopt_long(argc, argv, short_options, long_options, &index)) != -1) {
		char *equals;
		if (!belongs(c, short_options))
			return misuse("this command does not take --", long_options[index].name);
		switch (c) {
		case 'c': line->config_path = optarg; break;
		case 't': line->check = true; break;
		case 'D':
			if (strcmp(optarg, "json") != 0)
				return misuse("--dump knows only json, not ", optarg);
			line->dump = optarg;
			line->check = true;
			break;
		case 'd': line->detach = true; break;
		case 'p':
			if (!override(line, "pid_file", optarg, "--pid-file"))
				return misuse("too many options", "");
			break;
		case 'L':
			if (!override(line, "log_level", optarg, "--log-level"))
				return misuse("too many options", "");
			break;
		case 's':
			equals = strchr(optarg, '=');
			if (!equals)
				return misuse("--set wants OPTION=VALUE, not ", optarg);
			*equals = '\0';
			if (!override(line, optarg, equals + 1, "--set"))
				return misuse("too many options", "");
			break;
		case 'l':
			if (line->url_count == sizeof line->urls / sizeof *line->urls)
				return misuse("too many URLs", "");
			line->urls[line->url_count++] = optarg;
			break;
		case 'V': printf("reactord %s\n", VERSION); return 0;
		case 'h': fputs(usage_text, stdout); return 0;
		default: fputs("try 'reactord --help'\n", stderr); return STATUS_USAGE;
		}
	}
	if (!line->config_path)
		line->config_path = getenv("REACTORD_CONFIG");
	if (!line->config_path)
		line->config_path = REACTORD_CONF;
	line->overrides = config_overrides(line->given, line->given_count, &line->override_count);
	return -1;
}

/* Goes to the background. The parent waits here until the daemon serves, or has failed, and exits with what became of it. */
static int detach(int *ready_fd)
{
	int ends[2];
	char c;

	if (pipe2(ends, O_CLOEXEC) < 0) {
		fprintf(stderr, "reactord: cannot detach: %s\n", strerror(errno));
		return STATUS_FAILED;
	}
	pid_t child = fork();
	if (child < 0) {
		fprintf(stderr, "reactord: cannot detach: %s\n", strerror(errno));
		return STATUS_FAILED;
	}
	if (child > 0) {
		close(ends[1]);
		_exit(read(ends[0], &c, 1) == 1 ? 0 : STATUS_FAILED);
	}
	close(ends[0]);
	setsid();
	*ready_fd = ends[1];
	return -1;
}

/* Serves until stopped; the exit status. */
static int serve_config(const struct service_options *options)
{
	struct config *config = startup_configure(options);

	if (!config)
		return STATUS_FAILED;
	unsigned processes = config_processes(config);
	return processes > 1 ? master_run(options, config, processes) : service_run(options, config);
}

/* reactord, reactord check */
static int serve(int argc, char **argv, bool check)
{
	struct command_line line = {.check = check};
	struct upgrade_self *self = upgrade_self_new(argv); /* as it was, before it is taken apart */
	struct legacy *legacy = NULL;
	int status = parse(&line, argc, argv, "+c:tdp:s:Vh");

	if (status < 0 && optind < argc)
		status = misuse("unknown command or too many arguments: ", argv[optind]);
	if (status < 0 && !line.check)
		legacy = legacy_receive();
	struct service_options options = {.config_path = line.config_path,
	                                  .overrides = line.overrides,
	                                  .override_count = line.override_count,
	                                  .detached = line.detach && !legacy, /* else that has been done */
	                                  .legacy = legacy,
	                                  .self = self};
	if (status < 0 && line.check)
		status = service_check(&options, line.dump != NULL);
	if (status < 0 && options.detached)
		status = detach(&options.ready_fd);
	if (status < 0)
		status = serve_config(&options);
	free(line.overrides);
	legacy_free(legacy);
	upgrade_self_free(self);
	return status;
}

/* Runs a script under a configuration of defaults. */
static int run_file(const struct command_line *line, const char *path, int count, char **arguments)
{
	struct problems problems = {0};
	struct override *overrides = mem_zalloc((line->override_count + 2) * sizeof *overrides);
	char *why = NULL;
	int status = STATUS_FAILED;

	/* a script may compute for as long as it likes, unless somebody says otherwise */
	overrides[0] = (struct override){.name = "callback_time", .value = "0", .origin = "run"};
	overrides[1] = (struct override){.name = "slow_callback", .value = "0", .origin = "run"};
	for (size_t i = 0; i < line->override_count; i++)
		overrides[i + 2] = line->overrides[i];
	struct config *config = config_defaults(overrides, line->override_count + 2, &problems);
	if (config && !log_open(config->log_level, config->log_format, config->log_file, &why)) {
		problems_add(&problems, "%s", why);
		free(why);
	}
	if (config && !problems.count) {
		log_set_repeats((unsigned)config->log_repeats);
		config->unsafe = true;
		status = run_script(config, path, count, arguments);
	}
	for (size_t i = 0; i < problems.count; i++)
		fprintf(stderr, "%s\n", problems.lines[i]);
	problems_clear(&problems);
	config_free(config);
	free(overrides);
	return status;
}

/* reactord run */
static int run(int argc, char **argv)
{
	struct command_line line = {0};
	int status = parse(&line, argc, argv, "+s:l:h"), first = optind;
	char *path = first < argc ? argv[first] : NULL;

	if (status < 0 && !path)
		status = misuse("run wants a script or a handler", "");
	/* options may also follow a handler: run HANDLER.lua -l URL. A script's own arguments are its own. */
	if (status < 0 && first + 1 < argc && (strcmp(argv[first + 1], "-l") == 0 || strncmp(argv[first + 1], "--listen", 8) == 0)) {
		free(line.overrides);
		argv[first] = argv[0];
		optind = 0;
		status = parse(&line, argc - first, argv + first, "+s:l:h");
		if (status < 0 && first + optind < argc)
			status = misuse("a handler takes no arguments: ", argv[first + optind]);
	}
	if (status < 0 && line.url_count) {
		char *file = strrchr(path, '/') ? mem_strdup(path) : mem_printf("./%s", path);
		struct service_options options = {.overrides = line.overrides,
		                                  .override_count = line.override_count,
		                                  .handler = file,
		                                  .urls = line.urls,
		                                  .url_count = line.url_count};
		status = serve_config(&options);
		free(file);
	} else if (status < 0) {
		status = run_file(&line, path, argc - first - 1, argv + first + 1);
	}
	free(line.overrides);
	return status;
}

/* reactord check */
static int check(int argc, char **argv)
{
	return serve(argc, argv, true);
}

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} subcommands[] = {
	{"check", check},
	{"ctl", ctl_main},
	{"run", run},
};

/* Finds the subcommand. */
int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];

	if (strcmp(name, "reactorctl") == 0)
		return ctl_main(argc, argv);
	for (size_t i = 0; argc > 1 && i < sizeof subcommands / sizeof *subcommands; i++)
		if (strcmp(argv[1], subcommands[i].name) == 0)
			return subcommands[i].run(argc - 1, argv + 1);
	return serve(argc, argv, false);
}
