/*
 * c-ares on our loop: its sockets become events, its time-out a timer. The channel is made with the first name.
 */
#include "resolver.h"

#include <ares.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "timer.h"

/* A socket of c-ares. */
struct server_socket {
	struct resolver *resolver;
	struct event *event;
	ares_socket_t fd;
	struct server_socket *next;
};

struct resolver {
	struct loop *loop;
	ares_channel channel;
	bool open;                /* channel is there */
	bool stale;               /* ... and to be made anew as soon as nothing is under way */
	size_t pending;           /* look-ups that c-ares has not answered, cancelled ones included */
	struct server_socket *sockets;
	struct timer timeout;
};

struct lookup {
	struct resolver *resolver;
	void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why);
	void *data;
	bool starting;            /* resolver_lookup has not returned yet */
	bool done;                /* on_done was called or is not wanted */
};

/* What c-ares' codes are called in getaddrinfo's terms. */
static const struct {
	int status;
	const char *code, *why;
} failures[] = {
	{ARES_ENOTFOUND, "EAI_NONAME", "name not known"},
	{ARES_ENODATA, "EAI_NONAME", "name has no address"},
	{ARES_EBADNAME, "EAI_NONAME", "not a valid name"},
	{ARES_ENONAME, "EAI_NONAME", "name not known"},
	{ARES_ETIMEOUT, "EAI_AGAIN", "name servers do not answer"},
	{ARES_ECONNREFUSED, "EAI_AGAIN", "name servers cannot be reached"},
	{ARES_ESERVFAIL, "EAI_AGAIN", "name servers could not answer"},
	{ARES_ECANCELLED, "EAI_AGAIN", "look-up cancelled"},
	{ARES_EDESTRUCTION, "EAI_AGAIN", "look-up cancelled"},
	{ARES_EREFUSED, "EAI_FAIL", "name servers refuse to answer"},
	{ARES_ENOMEM, "EAI_MEMORY", "out of memory"},
};

/* Sets the timer for the earliest time-out that c-ares waits for. */
static void arm(struct resolver *r)
{
	struct timeval tv, *next = r->open ? ares_timeout(r->channel, NULL, &tv) : NULL;

	if (next)
		timer_start(r->loop, &r->timeout, (uint64_t)next->tv_sec * 1000000000u + (uint64_t)next->tv_usec * 1000u);
	else
		timer_stop(r->loop, &r->timeout);
}

/* A socket of c-ares is ready. */
static void on_socket(evutil_socket_t fd, short what, void *data)
{
	struct server_socket *s = data;
	struct resolver *r = s->resolver; /* s may go within the call */

	ares_process_fd(r->channel, what & EV_READ ? fd : ARES_SOCKET_BAD, what & EV_WRITE ? fd : ARES_SOCKET_BAD);
	arm(r);
}

/* A query has waited long enough. */
static void on_timeout(void *data)
{
	struct resolver *r = data;

	ares_process_fd(r->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	arm(r);
}

/* c-ares opens, changes its interest in, or closes a socket. */
static void on_interest(void *data, ares_socket_t fd, int readable, int writable)
{
	struct resolver *r = data;
	struct server_socket **at = &r->sockets, *s;

	while (*at && (*at)->fd != fd)
		at = &(*at)->next;
	s = *at;
	if (s) {
		event_free(s->event);
		*at = s->next;
		free(s);
	}
	if (!readable && !writable)
		return;
	s = mem_zalloc(sizeof *s);
	s->resolver = r;
	s->fd = fd;
	s->event = event_new(r->loop->base, fd, (short)((readable ? EV_READ : 0) | (writable ? EV_WRITE : 0) | EV_PERSIST), on_socket, s);
	if (!s->event)
		abort();
	event_add(s->event, NULL);
	s->next = r->sockets;
	r->sockets = s;
}

/* Makes a resolver; nothing is opened yet. */
struct resolver *resolver_new(struct loop *loop)
{
	struct resolver *r = mem_zalloc(sizeof *r);

	ares_library_init(ARES_LIB_INIT_ALL);
	r->loop = loop;
	timer_init(&r->timeout, on_timeout, r);
	return r;
}

/* Ends the channel: what is under way is called back with ARES_EDESTRUCTION. */
static void close_channel(struct resolver *r)
{
	if (!r->open)
		return;
	ares_channel channel = r->channel;
	r->open = r->stale = false;
	timer_stop(r->loop, &r->timeout);
	ares_destroy(channel);
}

/* Asks for a new channel. What is under way is left to end on the old one. */
void resolver_reset(struct resolver *r)
{
	r->stale = r->open;
}

/* Frees the resolver. */
void resolver_free(struct resolver *r)
{
	if (!r)
		return;
	close_channel(r);
	ares_library_cleanup();
	free(r);
}

/* c-ares' answer to one look-up. */
static void on_answer(void *data, int status, int timeouts, struct ares_addrinfo *result)
{
	struct lookup *lookup = data;
	const char *code = "EAI_FAIL", *why = "look-up failed";
	struct addr *addresses = NULL;
	size_t count = 0;

	(void)timeouts;
	lookup->resolver->pending--;
	if (status == ARES_SUCCESS && result && !lookup->done) {
		size_t total = 0;
		for (struct ares_addrinfo_node *n = result->nodes; n; n = n->ai_next)
			total++;
		addresses = mem_zalloc((total + 1) * sizeof *addresses);
		for (struct ares_addrinfo_node *n = result->nodes; n; n = n->ai_next) {
			if (n->ai_addrlen > sizeof(struct sockaddr_in6))
				continue;
			memcpy(&addresses[count].any, n->ai_addr, n->ai_addrlen);
			addresses[count++].length = n->ai_addrlen;
		}
	}
	if (!count)
		for (size_t i = 0; i < sizeof failures / sizeof *failures; i++)
			if (failures[i].status == (status == ARES_SUCCESS ? ARES_ENODATA : status)) {
				code = failures[i].code;
				why = failures[i].why;
			}
	if (!lookup->done) {
		lookup->done = true;
		lookup->on_done(lookup->data, addresses, count, count ? NULL : code, count ? NULL : why);
	}
	free(addresses);
	if (result)
		ares_freeaddrinfo(result);
	if (!lookup->starting)
		free(lookup);
}

/* Starts a look-up. */
struct lookup *resolver_lookup(struct resolver *r, const char *host, uint16_t port,
	void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why), void *data)
{
	struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = ARES_AI_NUMERICSERV};
	char service[8];

	if (r->stale && !r->pending)
		close_channel(r);
	if (!r->open) {
		struct ares_options options = {.sock_state_cb = on_interest, .sock_state_cb_data = r};
		if (ares_init_options(&r->channel, &options, ARES_OPT_SOCK_STATE_CB) != ARES_SUCCESS) {
			on_done(data, NULL, 0, "EAI_FAIL", "cannot start the resolver");
			return NULL;
		}
		r->open = true;
	}
	struct lookup *lookup = mem_zalloc(sizeof *lookup);
	*lookup = (struct lookup){.resolver = r, .on_done = on_done, .data = data, .starting = true};
	r->pending++;
	snprintf(service, sizeof service, "%u", (unsigned)port);
	ares_getaddrinfo(r->channel, host, service, &hints, on_answer, lookup);
	arm(r);
	if (lookup->done) {
		free(lookup);
		return NULL;
	}
	lookup->starting = false;
	return lookup;
}

/* Forgets a look-up; c-ares has no way to end a single one, so its answer is thrown away. */
void resolver_cancel(struct lookup *lookup)
{
	lookup->done = true;
}

/* The hosts file alone. */
bool resolver_local_name(const char *host, uint16_t port, struct addr *a)
{
	static const int families[] = {AF_INET, AF_INET6};
	ares_channel channel;

	if (strcmp(host, "localhost") == 0)
		return addr_from_numeric(a, "127.0.0.1", port);
	if (ares_init(&channel) != ARES_SUCCESS)
		return false;
	bool found = false;
	for (size_t i = 0; i < 2 && !found; i++) {
		struct hostent *entry = NULL;
		if (ares_gethostbyname_file(channel, host, families[i], &entry) != ARES_SUCCESS)
			continue;
		char text[INET6_ADDRSTRLEN];
		if (entry->h_addr_list[0] && ares_inet_ntop(families[i], entry->h_addr_list[0], text, sizeof text))
			found = addr_from_numeric(a, text, port);
		ares_free_hostent(entry);
	}
	ares_destroy(channel);
	return found;
}
