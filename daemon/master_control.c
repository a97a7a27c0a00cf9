/* What the master answers by the control socket. */
#include <string.h>

#include "command.h"
#include "log.h"
#include "master_impl.h"
#include "mem.h"

#define PROGRESS_NS 250000000u /* between two lines that tell how a drain goes */

/* Asks a process, if it serves. */
bool master_send_request(void *data, unsigned process, const char *bytes, size_t length)
{
	struct seat *seat = &((struct master *)data)->seats.all[process - 1];

	return seat->state == SEAT_SERVING && !seat->bus_ended && bus_send(seat->bus, BUS_CONTROL_REQUEST, bytes, length, NULL, 0);
}

/* Tells those who wait for the end how many connections are left, and again in a while. */
void master_on_progress(void *data)
{
	struct master *m = data;
	json_int_t left = 0;

	for (size_t i = 0; i < m->board->count; i++)
		left += (json_int_t)m->board->scores[i].stats.connections;
	for (struct control_request *q = m->stoppers; q && left != m->told_left; q = q->next)
		control_progress(q, json_pack("{s:I}", "connections", left));
	m->told_left = left;
	timer_start(m->loop, &m->progress, PROGRESS_NS);
}

/* What is answered from the scoreboard, which the master shares, and by the processes. */
static void answer(struct master *m, struct control_request *q, const char *command)
{
	enum log_level level;

	if (strcmp(command, "status") == 0) {
		const char *state = m->state == STOPPING ? "draining" : "serving";
		control_answer(q, (struct report){.result = report_status(m->board, m->pid, state, m->config->config->file)});
	} else if (strcmp(command, "metrics") == 0) {
		control_answer(q, report_metrics(m->board));
	} else {
		if (strcmp(command, "log-level") == 0 && log_level_parse(json_string_value(json_object_get(q->json, "argument")), &level))
			log_set_level(level);
		inquiry_start(&m->inquiries, q);
	}
}

/* Somebody asks by the control socket. */
void master_on_ask(void *data, struct control_request *q)
{
	struct master *m = data;
	const char *command = json_string_value(json_object_get(q->json, "command"));

	bool reload = strcmp(command, "reload") == 0, upgrade = strcmp(command, "upgrade") == 0;

	if ((reload || upgrade) && m->state != SERVING) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("the daemon is stopping")));
	} else if (upgrade && (m->leaving || upgrade_under_way(&m->upgrade))) {
		control_answer(q, report_failure(COMMAND_FAILED, mem_strdup("an upgrade is under way")));
	} else if (upgrade) {
		q->next = m->upgraders;
		m->upgraders = q;
		m->upgrade_asked = true;
	} else if (reload) {
		q->next = m->reloaders;
		m->reloaders = q;
		m->reload_asked = true;
	} else if (strcmp(command, "drain") == 0 || strcmp(command, "stop") == 0) {
		q->next = m->stoppers;
		m->stoppers = q;
		if (*command == 's')
			master_stop_now(m);
		else if (m->state == SERVING)
			master_drain(m, -1);
		timer_start(m->loop, &m->progress, 0);
	} else {
		answer(m, q, command);
	}
}
