/* TLS with a peer that does what no ordinary client can be brought to do. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/err.h>
#include <cmocka.h>

#include "conn.h"
#include "tls_filter.h"

static struct score score;
static struct loop *loop;
static struct conns *conns;
static struct tls_contexts *contexts;

/* How the server's side has fared. */
struct user {
	int handshakes, ends;
	char code[32], why[64];
};

static void on_data(struct conn *c, const char *bytes, size_t length)
{
	(void)c, (void)bytes, (void)length;
}

static void on_eof(struct conn *c)
{
	conn_finish(c, NULL, "eof");
}

static void on_drained(struct conn *c)
{
	(void)c;
}

static void on_end(struct conn *c)
{
	struct user *u = c->user;

	u->ends++;
	snprintf(u->code, sizeof u->code, "%s", c->end_code ? c->end_code : "");
	snprintf(u->why, sizeof u->why, "%s", c->end_why);
}

static void on_handshake(struct conn *c)
{
	struct user *u = c->user;

	u->handshakes++;
}

static const struct conn_events events = {.on_data = on_data, .on_eof = on_eof, .on_drained = on_drained, .on_end = on_end};
static const struct tls_events tls_events = {.on_handshake = on_handshake};
static const struct flow flow = {
	.linger_timeout_ns = 1000000000ull, .low_water = 1000, .high_water = 10000, .max_outbound = 10000000, .keepalive = -1};

static int set_up(void **state)
{
	(void)state;
	signal(SIGPIPE, SIG_IGN);
	memset(&score, 0, sizeof score);
	loop = loop_new(&score);
	if (!loop || !timers_open(loop))
		return -1;
	conns = conns_new(loop, 100000000);
	contexts = tls_contexts_new();
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	assert_int_equal(conns->count, 0);
	assert_int_equal(conns->queued, 0);
	assert_int_equal(score.stats.bytes_queued, 0);
	conns_free(conns);
	tls_contexts_free(contexts);
	timers_close(loop);
	loop_free(loop);
	return 0;
}

/* A turn that does not sleep. */
static void turn(void)
{
	loop_wake(loop);
	loop_turn(loop);
}

/* Who demands answers and reads none does not make the queue grow without end. */
static void answers_are_bounded(void **state)
{
	struct user u = {0};
	struct tls_conf conf;
	const char *code;
	char *why = NULL;
	int ends[2], small = 4096;

	(void)state;
	assert_true(config_tls(&conf, NULL, &why));
	conf.self_signed = true;
	struct tls_context *context = tls_context_get(contexts, &conf, true, &code, &why);
	assert_non_null(context);
	tls_conf_clear(&conf);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
	setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
	struct conn *c = conn_new(conns, &flow, &events, &u);
	assert_true(tls_start(c, context, NULL, &tls_events));
	tls_context_unref(context);
	conn_open(c, ends[0], NULL);

	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	SSL *ssl = SSL_new(ctx);
	SSL_set_fd(ssl, ends[1]);
	for (int i = 0; SSL_connect(ssl) != 1; i++) {
		assert_true(i < 1000);
		turn();
	}
	size_t most = 0;
	for (int i = 0; i < 100000 && !u.ends; i++) {
		ERR_clear_error();
		assert_int_equal(SSL_key_update(ssl, SSL_KEY_UPDATE_REQUESTED), 1);
		for (int tries = 0; SSL_do_handshake(ssl) != 1 && !u.ends; tries++) {
			assert_true(tries < 1000);
			turn();
		}
		if (conns->queued > most)
			most = conns->queued;
		if (i % 100 == 0)
			turn();
	}
	assert_int_equal(u.handshakes, 1);
	assert_int_equal(u.ends, 1);
	assert_string_equal(u.code, "ELIMIT");
	assert_string_equal(u.why, "outbound limit");
	assert_true(most < 200000);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	close(ends[1]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(answers_are_bounded),
	};

	return cmocka_run_group_tests_name("tls_filter", tests, NULL, NULL);
}
