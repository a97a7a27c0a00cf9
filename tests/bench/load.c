/*
 * Echo load on a server on this machine: N connections keep D messages of S bytes in flight each, every byte that comes back is
 * checked, and one line of JSON tells what a measured stretch of time brought. Any wrong, missing or extra byte is exit status 1.
 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PERIOD 65521        /* the pattern repeats after this many bytes: prime, so that no shift by whole messages fits it */
#define CHUNK (256 * 1024)  /* the most that one send or recv moves */
#define BATCH 64            /* events taken from epoll at once */
#define DRAIN_MS 5000       /* how long the last echoes may take */
#define LATENCIES 1024      /* buckets of times, each 1/16 of a power of two of nanoseconds wide */
#define SHOWN_ERRORS 10     /* mismatches described on stderr; all are counted */
#define NS_PER_S 1000000000 /* nanoseconds */

struct options {
	const char *address;
	uint16_t port;
	size_t connections;
	size_t size;      /* bytes a message */
	size_t depth;     /* messages in flight per connection */
	double seconds;   /* measured time */
	double warmup;    /* seconds before that */
	pid_t server_pid; /* whose CPU time is reported, 0: nobody's */
};

/* One connection; sent <= target always, and received <= sent unless the server invents bytes. */
struct conn {
	int fd;            /* -1: closed */
	size_t start;      /* where in the pattern its stream begins: no two connections have the same */
	uint64_t target;   /* bytes to be sent as of now, whole messages */
	uint64_t sent;     /* bytes sent */
	uint64_t received; /* bytes received and found right */
	int64_t asked_ns;  /* when the message that is under way was sent; with a depth of 1 only */
	bool waits;        /* for room to send */
	bool shut;         /* all came back, our side is closed, the server's end is awaited */
};

/* What a moment looked like; a result is the difference of two. */
struct snapshot {
	int64_t ns;
	uint64_t messages;
	uint64_t bytes;
	int64_t server_us;    /* CPU time used by the server */
	int64_t generator_us; /* CPU time used by us */
};

enum phase { WARMUP, MEASURE, DRAIN };

struct load {
	struct options o;
	int ep;
	enum phase phase;
	struct conn *conns;
	size_t open;       /* connections not closed yet */
	uint64_t messages; /* echoes complete, since the start */
	uint64_t bytes;    /* the same in bytes */
	uint64_t errors;
	uint64_t latencies[LATENCIES]; /* echoes by the time that they took, while it is measured */
	struct snapshot from, to;
};

static unsigned char pattern[PERIOD + CHUNK], buffer[CHUNK];

/* The monotonic clock in nanoseconds. */
static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

/* Fills the pattern with bytes that look random and are the same in every run. */
static void pattern_fill(void)
{
	uint32_t x = 2463534242u;

	for (size_t i = 0; i < sizeof pattern; i++) {
		x ^= x << 13;
		x ^= x >> 17;
		x ^= x << 5;
		pattern[i] = i < PERIOD ? (unsigned char)(x >> 8) : pattern[i - PERIOD];
	}
}

/* What a connection's stream holds from a position on; at least CHUNK bytes are good. */
static const unsigned char *pattern_at(const struct conn *c, uint64_t position)
{
	return pattern + (c->start + position) % PERIOD;
}

/* CPU time of a process in microseconds, user and system, all threads, from /proc; the clock ticks 100 times a second. */
static int64_t process_cpu_us(pid_t pid)
{
	char path[64], text[1024], *p;
	unsigned long user, sys;
	FILE *f;
	size_t n;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	if (!(f = fopen(path, "re")))
		err(1, "%s", path);
	n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = '\0';
	p = strrchr(text, ')');
	if (!p || sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &sys) != 2)
		errx(1, "%s: not understood", path);
	return (int64_t)(user + sys) * 1000000 / sysconf(_SC_CLK_TCK);
}

/* Notes time, counts and CPU use as they are now. */
static void snapshot_take(const struct load *load, struct snapshot *s)
{
	struct rusage own;

	getrusage(RUSAGE_SELF, &own);
	s->generator_us = (own.ru_utime.tv_sec + own.ru_stime.tv_sec) * (int64_t)1000000;
	s->generator_us += own.ru_utime.tv_usec + own.ru_stime.tv_usec;
	s->server_us = load->o.server_pid ? process_cpu_us(load->o.server_pid) : 0;
	s->messages = load->messages;
	s->bytes = load->bytes;
	s->ns = now_ns();
}

/* Closes a connection for good. */
static void conn_close(struct load *load, struct conn *c)
{
	close(c->fd);
	c->fd = -1;
	load->open--;
}

/* Counts an error, describes the first few, and gives the connection up. */
__attribute__((format(printf, 3, 4))) static void conn_fail(struct load *load, struct conn *c, const char *format, ...)
{
	va_list args;

	if (load->errors++ < SHOWN_ERRORS) {
		fprintf(stderr, "load: connection %zu, byte %" PRIu64 ": ", (size_t)(c - load->conns), c->received);
		va_start(args, format);
		vfprintf(stderr, format, args);
		va_end(args);
		fputc('\n', stderr);
	}
	conn_close(load, c);
}

/* Tells epoll whether a connection waits for room to send as well as for input. */
static void conn_watch(const struct load *load, struct conn *c, int operation, bool waits)
{
	struct epoll_event ev = {.events = EPOLLIN | (waits ? EPOLLOUT : 0), .data.ptr = c};

	if (epoll_ctl(load->ep, operation, c->fd, &ev) < 0)
		err(1, "epoll_ctl");
	c->waits = waits;
}

/* The bucket of a time. */
static size_t latency_bucket(int64_t ns)
{
	uint64_t n = ns < 16 ? 16 : (uint64_t)ns;
	unsigned power = 63 - (unsigned)__builtin_clzll(n);

	return power * 16 + (size_t)(n >> (power - 4) & 15);
}

/* The time in microseconds that a share of the measured echoes did not exceed. */
static double latency_percentile(const struct load *load, double share)
{
	uint64_t all = 0, seen = 0;
	size_t i = 0;

	for (size_t j = 0; j < LATENCIES; j++)
		all += load->latencies[j];
	while (i < LATENCIES - 1 && (double)(seen += load->latencies[i]) < (double)all * share)
		i++;
	return (double)((uint64_t)(16 + i % 16 + 1) << (i / 16)) / 16 / 1000;
}

/* Sends up to the target as far as there is room. */
static void conn_flush(struct load *load, struct conn *c)
{
	while (c->sent < c->target) {
		uint64_t left = c->target - c->sent;
		ssize_t n = send(c->fd, pattern_at(c, c->sent), left < CHUNK ? left : CHUNK, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			conn_fail(load, c, "send: %s", strerror(errno));
			return;
		}
		if (n < 0)
			break;
		c->sent += (uint64_t)n;
	}
	if (c->waits != (c->sent < c->target))
		conn_watch(load, c, EPOLL_CTL_MOD, !c->waits);
}

/* Once the load has stopped: when all came back says so to the server, whose end of stream must follow with no byte more. */
static void conn_finish(struct load *load, struct conn *c)
{
	if (c->received < c->target || c->shut)
		return;
	if (shutdown(c->fd, SHUT_WR) < 0)
		conn_fail(load, c, "shutdown: %s", strerror(errno));
	else
		c->shut = true;
}

/* Checks what came against the pattern; false after the connection was given up. */
static bool conn_check(struct load *load, struct conn *c, size_t size)
{
	const unsigned char *expected = pattern_at(c, c->received);
	size_t i = 0;

	if (c->received + size > c->sent) {
		conn_fail(load, c, "%zu bytes came that were never sent", (size_t)(c->received + size - c->sent));
		return false;
	}
	if (memcmp(buffer, expected, size) == 0)
		return true;
	while (buffer[i] == expected[i])
		i++;
	c->received += i;
	conn_fail(load, c, "0x%02x instead of 0x%02x", buffer[i], expected[i]);
	return false;
}

/* Reads once, checks, counts the messages this completed, and sends as many new ones. */
static void conn_on_readable(struct load *load, struct conn *c)
{
	ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
	uint64_t complete;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n == 0 && c->shut)
		conn_close(load, c);
	else if (n <= 0)
		conn_fail(load, c, "%s", n < 0 ? strerror(errno) : "the server closed the connection");
	if (n <= 0 || !conn_check(load, c, (size_t)n))
		return;
	complete = c->received / load->o.size;
	c->received += (uint64_t)n;
	load->bytes += (uint64_t)n;
	load->messages += c->received / load->o.size - complete;
	if (load->o.depth == 1 && c->received / load->o.size > complete) {
		int64_t now = now_ns();
		if (load->phase == MEASURE)
			load->latencies[latency_bucket(now - c->asked_ns)]++;
		c->asked_ns = now;
	}
	if (load->phase == DRAIN) {
		conn_finish(load, c);
	} else {
		c->target = (c->received / load->o.size + load->o.depth) * load->o.size;
		conn_flush(load, c);
	}
}

/* Reads a socket address and refuses whatever is not this machine's loopback. */
static socklen_t loopback_address(const struct options *o, struct sockaddr_storage *ss)
{
	struct sockaddr_in *sin = (struct sockaddr_in *)ss;
	struct sockaddr_in6 *sin6 = (struct sockaddr_in6 *)ss;

	memset(ss, 0, sizeof *ss);
	if (inet_pton(AF_INET, o->address, &sin->sin_addr) == 1 && ntohl(sin->sin_addr.s_addr) >> 24 == 127) {
		sin->sin_family = AF_INET;
		sin->sin_port = htons(o->port);
		return sizeof *sin;
	}
	if (inet_pton(AF_INET6, o->address, &sin6->sin6_addr) == 1 && IN6_IS_ADDR_LOOPBACK(&sin6->sin6_addr)) {
		sin6->sin6_family = AF_INET6;
		sin6->sin6_port = htons(o->port);
		return sizeof *sin6;
	}
	errx(2, "%s: only 127.0.0.0/8 and ::1 are loaded", o->address);
}

/* Opens all connections before the first byte goes out. */
static void load_connect(struct load *load)
{
	struct timeval limit = {.tv_sec = 5}, none = {0};
	struct sockaddr_storage ss;
	socklen_t size = loopback_address(&load->o, &ss);
	int one = 1;

	for (size_t i = 0; i < load->o.connections; i++) {
		struct conn *c = &load->conns[i];

		c->fd = socket(ss.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (c->fd < 0 || setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
			err(1, "socket");
		if (connect(c->fd, (struct sockaddr *)&ss, size) < 0)
			err(1, "connection %zu to %s port %d", i, load->o.address, load->o.port);
		if (setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none) < 0 || fcntl(c->fd, F_SETFL, O_NONBLOCK) < 0 ||
		    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0)
			err(1, "socket options");
		c->start = i * 1009 % PERIOD;
		c->target = load->o.depth * load->o.size;
		conn_watch(load, c, EPOLL_CTL_ADD, false);
		load->open++;
	}
}

/* Goes on to the next phase when its time has come; returns when the present one ends. */
static int64_t load_step(struct load *load, int64_t now, int64_t ends)
{
	if (now < ends)
		return ends;
	if (load->phase == WARMUP) {
		load->phase = MEASURE;
		snapshot_take(load, &load->from);
		return load->from.ns + (int64_t)(load->o.seconds * NS_PER_S);
	}
	if (load->phase == MEASURE) {
		load->phase = DRAIN;
		snapshot_take(load, &load->to);
		for (size_t i = 0; i < load->o.connections; i++)
			if (load->conns[i].fd >= 0)
				conn_finish(load, &load->conns[i]);
		return load->to.ns + DRAIN_MS * (int64_t)1000000;
	}
	for (size_t i = 0; i < load->o.connections; i++) {
		struct conn *c = &load->conns[i];

		if (c->fd >= 0 && c->shut)
			conn_fail(load, c, "the server did not close the connection after ours");
		else if (c->fd >= 0)
			conn_fail(load, c, "%" PRIu64 " bytes did not come back", c->target - c->received);
	}
	return ends;
}

/* Drives all connections through the phases until the last is closed. */
static void load_run(struct load *load)
{
	struct epoll_event events[BATCH];
	int64_t now = now_ns(), ends = now + (int64_t)(load->o.warmup * NS_PER_S);

	for (size_t i = 0; i < load->o.connections; i++) {
		load->conns[i].asked_ns = now_ns();
		conn_flush(load, &load->conns[i]);
	}
	while (load->open > 0) {
		int n = epoll_wait(load->ep, events, BATCH, now < ends ? (int)((ends - now) / 1000000) + 1 : 0);

		if (n < 0 && errno != EINTR)
			err(1, "epoll_wait");
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;

			if (events[i].events & ~(uint32_t)EPOLLOUT)
				conn_on_readable(load, c);
			if (c->fd >= 0 && events[i].events & EPOLLOUT)
				conn_flush(load, c);
		}
		now = now_ns();
		ends = load_step(load, now, ends);
	}
}

/* Prints the line of JSON. */
static void load_report(const struct load *load)
{
	const struct snapshot *from = &load->from, *to = &load->to;
	double seconds = (double)(to->ns - from->ns) / NS_PER_S;
	uint64_t messages = to->messages - from->messages;

	if (load->phase != DRAIN) /* every connection failed before the end: there is nothing to report but that */
		seconds = 0, messages = 0;
	printf("{\"connections\":%zu,\"size\":%zu,\"depth\":%zu,\"seconds\":%.4f,\"messages\":%" PRIu64 ",\"rate\":%.1f", load->o.connections,
	       load->o.size, load->o.depth, seconds, messages, seconds > 0 ? (double)messages / seconds : 0);
	printf(",\"bytes\":%" PRIu64 ",\"errors\":%" PRIu64, seconds > 0 ? to->bytes - from->bytes : 0, load->errors);
	printf(",\"generator_cpu_us\":%" PRId64, seconds > 0 ? to->generator_us - from->generator_us : 0);
	if (load->o.server_pid)
		printf(",\"server_cpu_us\":%" PRId64, seconds > 0 ? to->server_us - from->server_us : 0);
	if (load->o.depth == 1)
		printf(",\"p50_us\":%.1f,\"p99_us\":%.1f", latency_percentile(load, 0.5), latency_percentile(load, 0.99));
	printf("}\n");
}

/* Says how it is called and ends. */
static _Noreturn void usage(void)
{
	fprintf(stderr, "usage: load [-n connections] [-s size] [-d depth] [-t seconds] [-w warm-up seconds] [-p server pid] "
	                "ADDRESS PORT\n"
	                "Echo load, every byte checked; default: 50 connections, 64 bytes, depth 1, 1 s after 0.3 s of warm-up.\n"
	                "With -p the server's CPU time is reported too. Only loopback addresses are loaded.\n");
	exit(2);
}

/* Reads a number within limits. */
static double number(const char *text, double min, double max)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= min && value <= max))
		errx(2, "%s: not a number from %g to %g", text, min, max);
	return value;
}

/* Reads the command line. */
static struct options options_read(int argc, char **argv)
{
	struct options o = {.connections = 50, .size = 64, .depth = 1, .seconds = 1, .warmup = 0.3};
	int option;

	while ((option = getopt(argc, argv, "n:s:d:t:w:p:")) != -1) {
		switch (option) {
		case 'n': o.connections = (size_t)number(optarg, 1, 60000); break;
		case 's': o.size = (size_t)number(optarg, 1, 16 * 1024 * 1024); break;
		case 'd': o.depth = (size_t)number(optarg, 1, 10000); break;
		case 't': o.seconds = number(optarg, 0.01, 600); break;
		case 'w': o.warmup = number(optarg, 0, 60); break;
		case 'p': o.server_pid = (pid_t)number(optarg, 1, 1 << 30); break;
		default: usage();
		}
	}
	if (argc - optind != 2)
		usage();
	o.address = argv[optind];
	o.port = (uint16_t)number(argv[optind + 1], 1, 65535);
	return o;
}

/* Lifts the soft limit of descriptors to the hard one. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* Connects, loads, reports. */
int main(int argc, char **argv)
{
	struct load load = {.o = options_read(argc, argv)};

	raise_descriptor_limit();
	pattern_fill();
	load.conns = calloc(load.o.connections, sizeof *load.conns);
	load.ep = epoll_create1(EPOLL_CLOEXEC);
	if (!load.conns || load.ep < 0)
		err(1, "start");
	load_connect(&load);
	load_run(&load);
	load_report(&load);
	free(load.conns);
	return load.errors ? 1 : 0;
}
