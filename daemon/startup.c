/* The daemon's first and last steps: see startup.h. */
#include "startup.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "log.h"
#include "mem.h"
#include "notify.h"
#include "privs.h"
#include "upgrade.h"

/* Reads the configuration. */
struct config *startup_configure(const struct service_options *options)
{
	struct problems problems = {0};
	char *why = NULL;

	/* what is wrong with the configuration is told before that says how to log: in the journal's way if it is the journal */
	if (!log_open(LEVEL_INFO, FORMAT_AUTO, NULL, &why))
		free(why);
	struct config *config = settings_read(options, &problems);
	if (config && !settings_apply_log(config, &problems)) {
		config_free(config);
		config = NULL;
	}
	if (!config) {
		startup_tell_failed(options, &problems, false);
		log_close();
	}
	problems_clear(&problems);
	return config;
}

/* Gives socket files and the log to the user that the daemon becomes, so that it may change, remove and reopen them. */
static void give_away_files(struct ports *ports, struct control *control, const struct config *config)
{
	uid_t uid;
	gid_t gid;
	char *why = NULL;

	if (!config->user || !privs_lookup(config->user, config->group, &uid, &gid, &why)) {
		free(why);
		return;
	}
	ports_give(ports, uid, gid);
	if (control)
		control_give(control, uid, gid);
	log_give(uid, gid);
}

/* Opens the control socket. Nobody has asked for the one in the default place: without it the daemon serves all the same. */
static struct control *open_control(struct loop *loop, const struct config *config, struct control_host host, struct problems *problems)
{
	const char *path = config->control;
	char *why = NULL;

	if (!path && config->file && access(CONTROL_FOLDER, F_OK) == 0)
		path = CONTROL_PATH;
	if (!path)
		return NULL;
	struct control *control = control_open(loop, path, host, &why);
	if (!control && config->control)
		problems_add(problems, "%s", why);
	else if (!control)
		log_info("%s: there is no control socket", why);
	free(why);
	return control;
}

/* Opens sockets with the rights we came with, then drops them. */
bool startup_open(struct ports *ports, const struct config *config, struct pidfile *pid_file, struct control_host host,
                  struct control **control, struct problems *problems)
{
	char *why = NULL;
	size_t before = problems->count;
	struct port **open = ports_open(ports, config, false, problems);

	if (problems->count == before)
		ports_commit(ports, config, open, false);
	else
		ports_abort(open, config->listen_count);
	if (problems->count == before && config->pid_file &&
	    (!pidfile_open(pid_file, config->pid_file, legacy_take(ports->loop->legacy, LEGACY_PID_FILE, NULL, NULL), &why) ||
	     (!ports->loop->legacy && !pidfile_write(pid_file, &why)))) {
		problems_add(problems, "%s", why);
		free(why);
	}
	if (problems->count == before)
		*control = open_control(ports->loop, config, host, problems);
	if (problems->count == before)
		give_away_files(ports, *control, config);
	if (privs_drop(config->user, config->group, &why))
		return true;
	problems_add(problems, "%s", why);
	free(why);
	return false;
}

/* Lets go of the terminal. */
void startup_detach(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null >= 0) {
		dup2(null, 0);
		dup2(null, 1);
		dup2(null, 2);
		close(null);
	}
}

/* From here on we are the daemon. */
bool startup_announce(const struct service_options *options, const struct pidfile *pid_file, struct ports *ports, struct control *control,
                      struct problems *problems)
{
	char *why = NULL;

	if (!options->legacy)
		return true;
	/* the process before writes its own number again, should nothing come of it */
	if ((!pid_file->path || pidfile_write(pid_file, &why)) && upgrade_announce(options->legacy, &why)) {
		ports_own(ports);
		control_own(control);
		return true;
	}
	problems_add(problems, "%s", why);
	free(why);
	return false;
}

/* Tells whoever started us that we serve, and lets go of the terminal. */
void startup_tell_ready(const struct service_options *options, const struct config *config, uint64_t generation)
{
	char status[64];
	size_t count = config->listen_count;

	log_info("ready: pid %ld, %zu listener%s", (long)getpid(), count, count == 1 ? "" : "s");
	if (!options->legacy) { /* else the process before has told it already, as only the main process may */
		snprintf(status, sizeof status, "Serving, generation %llu", (unsigned long long)generation);
		notify_ready(status);
	}
	if (!options->detached)
		return;
	if (!config->log_file)
		log_warn("detached without log.file: from here on nothing is logged");
	startup_detach();
	if (write(options->ready_fd, "1", 1) != 1)
		log_warn("nobody waits for the daemon to be ready");
	close(options->ready_fd);
}

/* Says why not. */
void startup_tell_failed(const struct service_options *options, const struct problems *problems, bool to_file)
{
	if (upgrade_refuse(options->legacy, problems))
		return;
	settings_log_problems(problems, "");
	if (!to_file)
		return;
	log_close();
	settings_log_problems(problems, "");
}

/* The last line of the log: what is left over must be nothing. */
void startup_tell_stopped(const struct stats *stats)
{
	char *line = mem_strdup("stopped:");

	for (size_t i = 0; i < stats_row_count; i++) {
		const uint64_t *value = (const uint64_t *)((const char *)stats + stats_rows[i].offset);
		char *longer = mem_printf("%s %s=%llu", line, stats_rows[i].name, (unsigned long long)*value);
		free(line);
		line = longer;
	}
	log_info("%s", line);
	free(line);
}
