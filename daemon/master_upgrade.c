/* SIGUSR2 with several processes: another daemon of the binary at our path takes the sockets over. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "activation.h"
#include "command.h"
#include "log.h"
#include "master_impl.h"
#include "mem.h"
#include "member.h"
#include "store.h"

/* The new daemon serves, or has failed. */
static void on_upgraded(struct upgrade *u, bool taken_over)
{
	struct master *m = u->data;
	struct report r = {.status = COMMAND_DONE};
	char *why = NULL;

	m->replaced = taken_over;
	if (taken_over)
		r.result = json_pack("{s:i}", "pid", (int)u->pid);
	else
		r = report_failures(&u->reasons);
	control_answer_all(&m->upgraders, r);
	if (taken_over) {
		if (m->control)
			control_shut(m->control);
		if (m->reload_asked) /* meant for who serves */
			upgrade_pass_on(u, SIGHUP);
		master_drain(m, -1);
		return;
	}
	master_keep_all(m);
	if (m->pid_file.path && !pidfile_write(&m->pid_file, &why)) {
		log_error("%s", why);
		free(why);
	}
}

/* All have told: starts it. */
void master_go_on_upgrading(struct master *m)
{
	struct legacy *legacy = m->leaving;

	if (!legacy || master_awaited(m))
		return;
	m->leaving = NULL;
	timer_stop(m->loop, &m->attempt.limit);
	activation_leave(m->activation, legacy);
	ports_leave(&m->ports, legacy);
	legacy_leave_text(legacy, "store", m->store);
	control_leave(m->control, legacy);
	upgrade_leave_secret(legacy, &m->secret);
	if (m->pid_file.path)
		legacy_leave(legacy, LEGACY_PID_FILE, NULL, m->pid_file.fd, NULL);
	m->upgrade.on_done = on_upgraded;
	m->upgrade.data = m;
	upgrade_start(&m->upgrade, m->loop, m->options->self, legacy, m->descriptor_limit, m->config->config->upgrade_timeout_ns);
}

/* A process has told of one more, or that it has told of all. */
void master_on_left(struct master *m, struct seat *seat, const struct bus_message *message)
{
	struct member_left left;

	if (!message->length)
		seat->awaited = false;
	if (m->leaving && message->length > sizeof left && message->fd_count == 1 && message->fds[0] >= 0) {
		const char *name = message->bytes + sizeof left, *path = name + strlen(name) + 1;
		memcpy(&left, message->bytes, sizeof left);
		struct sockfile file = {.path = (char *)path, .device = left.device, .inode = left.inode};
		legacy_give(m->leaving, seat->index, name, message->fds[0], *path ? &file : NULL);
		message->fds[0] = -1;
	}
	master_go_on_upgrading(m);
}

/* SIGUSR2: starts another daemon with our sockets, once every process has told what its scripts listen on. */
void master_upgrade(struct master *m)
{
	m->upgrade_asked = false;
	m->leaving = legacy_new();
	timer_start(m->loop, &m->attempt.limit, master_answer_limit(m));
	for (unsigned i = 0; i < m->seats.count; i++) {
		struct seat *seat = &m->seats.all[i];
		seat->awaited = seat->state == SEAT_SERVING;
		if (seat->awaited)
			seat_send(seat, BUS_LEAVE, NULL, 0, NULL, 0);
	}
	master_go_on_upgrading(m);
}
