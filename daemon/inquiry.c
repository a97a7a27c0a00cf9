/* Requests to all processes: see inquiry.h. A message is an object of JSON: the inquiry's number with the request, or with the report. */
#include "inquiry.h"

#include <stdlib.h>
#include <string.h>

#include "command.h"
#include "log.h"
#include "mem.h"

struct inquiry {
	struct inquiries *set;
	uint64_t number;
	struct control_request *q;
	bool *awaited;          /* of each process: is its answer due? */
	unsigned due;           /* how many are */
	struct report *reports; /* of each process; without a result: none has come */
	struct timer limit;
	struct inquiry *next;
};

/* Answers with the reports that have come, and ends it. */
static void conclude(struct inquiry *i)
{
	struct inquiry **at = &i->set->all;

	while (*at != i)
		at = &(*at)->next;
	*at = i->next;
	timer_stop(i->set->loop, &i->limit);
	control_answer(i->q, report_merge(i->q->json, i->reports, i->set->count));
	free(i->awaited);
	free(i->reports);
	free(i);
}

/* Whoever has not answered by now does not count. */
static void on_limit(void *data)
{
	struct inquiry *i = data;

	for (unsigned n = 0; n < i->set->count; n++)
		if (i->awaited[n])
			log_warn("process %u does not answer to %s", n + 1, json_string_value(json_object_get(i->q->json, "command")));
	conclude(i);
}

/* Asks. */
void inquiry_start(struct inquiries *set, struct control_request *q)
{
	struct inquiry *i = mem_zalloc(sizeof *i);
	json_t *o = json_pack("{s:I, s:O}", "number", (json_int_t)++set->last, "request", q->json);
	char *text = json_dumps(o, JSON_COMPACT);

	json_decref(o);
	if (!text)
		mem_exhausted();
	i->set = set;
	i->number = set->last;
	i->q = q;
	i->awaited = mem_zalloc(set->count * sizeof *i->awaited);
	i->reports = mem_zalloc(set->count * sizeof *i->reports);
	i->next = set->all;
	set->all = i;
	timer_init(&i->limit, on_limit, i);
	for (unsigned n = 0; n < set->count; n++) {
		i->awaited[n] = set->send(set->data, n + 1, text, strlen(text));
		i->due += i->awaited[n];
	}
	free(text);
	if (i->due)
		timer_start(set->loop, &i->limit, INQUIRY_NS);
	else
		conclude(i);
}

/* One answer less is due. */
static void settle(struct inquiry *i, unsigned process)
{
	if (!i->awaited[process - 1])
		return;
	i->awaited[process - 1] = false;
	if (--i->due == 0)
		conclude(i);
}

/* An answer. */
void inquiry_answered(struct inquiries *set, unsigned process, const struct bus_message *message)
{
	json_t *o = json_loadb(message->bytes, message->length, 0, NULL);
	json_int_t number = json_integer_value(json_object_get(o, "number"));

	for (struct inquiry *i = set->all; i; i = i->next) {
		if ((json_int_t)i->number != number || !i->awaited[process - 1])
			continue;
		(void)!report_unpack(&i->reports[process - 1], json_object_get(o, "report"));
		settle(i, process);
		break;
	}
	json_decref(o);
}

/* A process has gone. */
void inquiry_lost(struct inquiries *set, unsigned process)
{
	for (struct inquiry *i = set->all, *next; i; i = next) {
		next = i->next;
		settle(i, process);
	}
}

/* The end. */
void inquiries_end(struct inquiries *set)
{
	while (set->all)
		conclude(set->all);
}

/* Sends a report to the master; false when it is too large for that, or for what waits to be sent. */
static bool send_report(struct bus *bus, const json_t *number, const struct report *report)
{
	json_t *answer = json_pack("{s:O, s:o}", "number", number, "report", report_pack(report));
	char *text = json_dumps(answer, JSON_COMPACT);
	bool sent = !text || bus_send(bus, BUS_CONTROL_REPLY, text, strlen(text), NULL, 0);

	free(text);
	json_decref(answer);
	return sent;
}

/* Answers for a process. */
void inquiry_reply(struct bus *bus, const struct bus_message *message, struct runtime *r, struct generation *newest)
{
	json_t *o = json_loadb(message->bytes, message->length, 0, NULL);
	struct report report = newest ? report_answer(r, newest, "serving", json_object_get(o, "request"))
	                              : report_failure(COMMAND_FAILED, mem_strdup("the process does not serve yet"));
	const json_t *number = json_object_get(o, "number");

	if (!send_report(bus, number, &report)) {
		struct report failure = report_failure(COMMAND_FAILED, mem_printf("process %u: the answer is too large", r->loop->process));
		log_warn("an answer to the master is too large, or cannot be sent");
		(void)send_report(bus, number, &failure);
		json_decref(failure.result);
	}
	json_decref(report.result);
	json_decref(o);
}
