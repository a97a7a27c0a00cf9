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
	struct channel *channel;
	struct event *event;
	ares_socket_t fd;
	struct server_socket *next;
};

/* One set of name servers. It lives as long as it is the current one or something is asked of it. */
struct channel {
	struct resolver *resolver;
	ares_channel ares;
	char *servers;  /* NULL: the system's */
	bool retired;   /* new look-ups go elsewhere */
	size_t lookups; /* under way */
	struct server_socket *sockets;
	struct timer timeout; /* c-ares' next */
	struct channel *next;
};

struct resolver {
	struct loop *loop;
	char *servers; /* as set */
	struct channel *channels;
	size_t lookups;     /* of all of them */
	struct timer sweep; /* frees those that have ended: not while c-ares calls */
	bool closing;       /* nobody is to be called any more */
};

struct lookup {
	struct channel *channel;
	void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why);
	void *data;
	struct timer limit;
	bool starting; /* resolver_lookup has not returned yet */
	bool done;     /* on_done was called or is not wanted */
	bool answered; /* c-ares is done with it */
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
static void arm(struct channel *ch)
{
	struct timeval tv, *next = ares_timeout(ch->ares, NULL, &tv);

	if (next)
		timer_start(ch->resolver->loop, &ch->timeout, (uint64_t)next->tv_sec * 1000000000u + (uint64_t)next->tv_usec * 1000u);
	else
		timer_stop(ch->resolver->loop, &ch->timeout);
}

/* A socket of c-ares is ready. */
static void on_socket(evutil_socket_t fd, short what, void *data)
{
	struct server_socket *s = data;
	struct channel *ch = s->channel; /* s may go within the call */

	ares_process_fd(ch->ares, what & EV_READ ? fd : ARES_SOCKET_BAD, what & EV_WRITE ? fd : ARES_SOCKET_BAD);
	arm(ch);
}

/* A query has waited long enough. */
static void on_timeout(void *data)
{
	struct channel *ch = data;

	ares_process_fd(ch->ares, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	arm(ch);
}

/* c-ares opens, changes its interest in, or closes a socket. */
static void on_interest(void *data, ares_socket_t fd, int readable, int writable)
{
	struct channel *ch = data;
	struct server_socket **at = &ch->sockets, *s;

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
	s->channel = ch;
	s->fd = fd;
	s->event =
		event_new(ch->resolver->loop->base, fd, (short)((readable ? EV_READ : 0) | (writable ? EV_WRITE : 0) | EV_PERSIST), on_socket, s);
	if (!s->event)
		abort();
	event_add(s->event, NULL);
	s->next = ch->sockets;
	ch->sockets = s;
}

/* Is it of no more use? One for servers of a single call goes with its last look-up. */
static bool is_over(const struct channel *ch)
{
	return !ch->lookups && (ch->retired || ch->servers != ch->resolver->servers);
}

/* Frees a channel: what is under way there ends without a call. */
static void channel_free(struct channel *ch)
{
	timer_stop(ch->resolver->loop, &ch->timeout);
	ares_destroy(ch->ares);
	if (ch->servers != ch->resolver->servers)
		free(ch->servers);
	free(ch);
}

/* Frees those that are over. */
static void on_sweep(void *data)
{
	struct resolver *r = data;

	for (struct channel **at = &r->channels; *at;) {
		struct channel *ch = *at;
		if (is_over(ch)) {
			*at = ch->next;
			channel_free(ch);
		} else {
			at = &ch->next;
		}
	}
}

/* Makes a resolver; nothing is opened yet. */
struct resolver *resolver_new(struct loop *loop)
{
	struct resolver *r = mem_zalloc(sizeof *r);

	ares_library_init(ARES_LIB_INIT_ALL);
	r->loop = loop;
	timer_init(&r->sweep, on_sweep, r);
	return r;
}

/* New servers: the channels there are, are left to what is under way. */
void resolver_set_servers(struct resolver *r, const char *servers)
{
	for (struct channel *ch = r->channels; ch; ch = ch->next) {
		if (ch->servers && ch->servers == r->servers)
			ch->servers = mem_strdup(ch->servers);
		ch->retired = true;
	}
	free(r->servers);
	r->servers = servers ? mem_strdup(servers) : NULL;
	if (r->channels)
		timer_start(r->loop, &r->sweep, 0);
}

/* Frees the resolver. */
void resolver_free(struct resolver *r)
{
	struct channel *ch;

	if (!r)
		return;
	r->closing = true;
	timer_stop(r->loop, &r->sweep);
	while ((ch = r->channels)) {
		r->channels = ch->next;
		channel_free(ch);
	}
	ares_library_cleanup();
	free(r->servers);
	free(r);
}

/* The channel for some servers; NULL: it cannot be made. */
static struct channel *find_channel(struct resolver *r, const char *servers)
{
	for (struct channel *ch = r->channels; ch; ch = ch->next)
		if (!ch->retired && (ch->servers == servers || (ch->servers && servers && strcmp(ch->servers, servers) == 0)))
			return ch;
	struct channel *ch = mem_zalloc(sizeof *ch);
	char order[] = "fb"; /* the hosts file, then the servers */
	struct ares_options options = {
		.timeout = RESOLVER_TRY_MS, .tries = RESOLVER_TRIES, .lookups = order, .sock_state_cb = on_interest, .sock_state_cb_data = ch};
	ch->resolver = r;
	timer_init(&ch->timeout, on_timeout, ch);
	if (ares_init_options(&ch->ares, &options, ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_LOOKUPS | ARES_OPT_SOCK_STATE_CB) !=
	    ARES_SUCCESS) {
		free(ch);
		return NULL;
	}
	if (servers && ares_set_servers_ports_csv(ch->ares, servers) != ARES_SUCCESS) {
		ares_destroy(ch->ares);
		free(ch);
		return NULL;
	}
	ch->servers = servers && servers != r->servers ? mem_strdup(servers) : r->servers;
	if (!servers)
		ch->servers = NULL;
	ch->next = r->channels;
	r->channels = ch;
	return ch;
}

/* Tells the outcome, once. */
static void conclude(struct lookup *lookup, const struct addr *addresses, size_t count, const char *code, const char *why)
{
	if (lookup->done)
		return;
	lookup->done = true;
	timer_stop(lookup->channel->resolver->loop, &lookup->limit);
	lookup->on_done(lookup->data, addresses, count, count ? NULL : code, count ? NULL : why);
}

/* It has taken too long; c-ares may go on for a while. */
static void on_limit(void *data)
{
	conclude(data, NULL, 0, "EAI_AGAIN", "name servers do not answer");
}

/* c-ares' answer to one look-up. */
static void on_answer(void *data, int status, int timeouts, struct ares_addrinfo *result)
{
	struct lookup *lookup = data;
	struct channel *ch = lookup->channel;
	const char *code = "EAI_FAIL", *why = "look-up failed";
	struct addr *addresses = NULL;
	size_t count = 0;

	(void)timeouts;
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
	if (result)
		ares_freeaddrinfo(result);
	lookup->answered = true;
	if (ch->resolver->closing)
		lookup->done = true;
	timer_stop(ch->resolver->loop, &lookup->limit);
	conclude(lookup, addresses, count, code, why);
	free(addresses);
	ch->lookups--;
	ch->resolver->lookups--;
	if (is_over(ch) && !ch->resolver->closing)
		timer_start(ch->resolver->loop, &ch->resolver->sweep, 0);
	if (!lookup->starting)
		free(lookup);
}

/* Adds what the hosts file says of localhost in one family. */
static size_t add_hosts(struct channel *ch, uint16_t port, int family, struct addr *addresses, size_t count, size_t most)
{
	struct hostent *entry = NULL;

	if (ares_gethostbyname_file(ch->ares, "localhost", family, &entry) != ARES_SUCCESS)
		return count;
	for (char **at = entry->h_addr_list; *at && count < most; at++) {
		char text[INET6_ADDRSTRLEN];
		if (ares_inet_ntop(family, *at, text, sizeof text) && addr_from_numeric(&addresses[count], text, port))
			count++;
	}
	ares_free_hostent(entry);
	return count;
}

/*
 * Answers for localhost, which no name server is ever asked about (RFC 6761): from the hosts file, and where that says nothing, or is not
 * there at all, with the loopback addresses. c-ares 1.18 would ask, and loses memory where the file has the other family alone.
 */
static void answer_localhost(struct channel *ch, uint16_t port, int family,
                             void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why),
                             void *data)
{
	struct addr addresses[8];
	size_t count = 0, most = sizeof addresses / sizeof *addresses;

	if (family != AF_INET)
		count = add_hosts(ch, port, AF_INET6, addresses, count, most);
	if (family != AF_INET6)
		count = add_hosts(ch, port, AF_INET, addresses, count, most);
	if (!count) {
		if (family != AF_INET && addr_from_numeric(&addresses[count], "::1", port))
			count++;
		if (family != AF_INET6 && addr_from_numeric(&addresses[count], "127.0.0.1", port))
			count++;
	}
	on_done(data, addresses, count, NULL, NULL);
}

/* Starts a look-up. */
struct lookup *resolver_lookup(struct resolver *r, const char *host, uint16_t port, int family, const char *servers,
                               void (*on_done)(void *data, const struct addr *addresses, size_t count, const char *code, const char *why),
                               void *data)
{
	struct ares_addrinfo_hints hints = {.ai_family = family, .ai_socktype = SOCK_STREAM, .ai_flags = ARES_AI_NUMERICSERV};
	char service[8];

	if (!addr_is_host_name(host)) { /* servers have their own opinions about other names */
		on_done(data, NULL, 0, "EAI_NONAME", "not a valid name");
		return NULL;
	}
	if (r->lookups >= RESOLVER_MAX_LOOKUPS) {
		on_done(data, NULL, 0, "EAI_AGAIN", "too many look-ups are under way");
		return NULL;
	}
	struct channel *ch = find_channel(r, servers ? servers : r->servers);
	if (!ch) {
		on_done(data, NULL, 0, "EAI_FAIL", "cannot start the resolver");
		return NULL;
	}
	if (strcasecmp(host, "localhost") == 0) {
		answer_localhost(ch, port, family, on_done, data);
		return NULL;
	}
	struct lookup *lookup = mem_zalloc(sizeof *lookup);
	*lookup = (struct lookup){.channel = ch, .on_done = on_done, .data = data, .starting = true};
	timer_init(&lookup->limit, on_limit, lookup);
	ch->lookups++;
	r->lookups++;
	snprintf(service, sizeof service, "%u", (unsigned)port);
	ares_getaddrinfo(ch->ares, host, port ? service : NULL, &hints, on_answer, lookup);
	arm(ch);
	if (lookup->answered) {
		free(lookup);
		return NULL;
	}
	lookup->starting = false;
	timer_start(r->loop, &lookup->limit, RESOLVER_TIMEOUT_NS);
	return lookup;
}

/* Forgets a look-up; c-ares has no way to end a single one, so its answer is thrown away. */
void resolver_cancel(struct lookup *lookup)
{
	lookup->done = true;
	timer_stop(lookup->channel->resolver->loop, &lookup->limit);
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
