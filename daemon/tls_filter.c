/*
 * TLS on a connection: see tls_filter.h. Not libevent's bufferevent_openssl, which stalls under read limits, can lose the last bytes
 * before a close, and never says goodbye.
 */
#include "tls_filter.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"

#define RECORD 16384      /* bytes of plain text that one record holds */
#define MAX_ANSWERS 65536 /* bytes that wait to be sent because the peer has demanded them, once TLS is up */

struct tls_filter {
	struct conn *c;
	SSL *ssl;
	struct tls_context *context;
	const struct tls_events *events;
	char *session_name; /* client: what its session is kept under */
	const char *wire;   /* what is left of the bytes that are being read */
	size_t wire_left;
	struct timer deadline; /* of the handshake */
	struct evbuffer *late; /* plain bytes that had been read when the user paused, NULL: there never were any */
	struct timer resume;   /* tells of them, and of the peer's goodbye */
	size_t answers;        /* bytes that reading has made us send, since the output was empty */
	bool decided;          /* the user has its own say about certificates */
	bool begun;            /* the first message has been made */
	bool accepted;         /* the user has accepted a certificate that OpenSSL would not */
	bool up;               /* the handshake has ended */
	bool ticket;           /* one has been made */
	bool goodbye;          /* close_notify has been sent */
	bool peer_goodbye;     /* and received */
	bool failed;
};

/* --- the BIO: reads from the wire bytes at hand, writes to the connection's output -------------------------------------------- */

/* Gives OpenSSL what there is. */
static int bio_read(BIO *bio, char *to, int size)
{
	struct tls_filter *f = BIO_get_data(bio);
	size_t n = f->wire_left < (size_t)size ? f->wire_left : (size_t)size;

	BIO_clear_retry_flags(bio);
	if (n == 0) {
		BIO_set_retry_read(bio);
		return -1;
	}
	memcpy(to, f->wire, n);
	f->wire += n;
	f->wire_left -= n;
	return (int)n;
}

/* Takes what OpenSSL has to send. */
static int bio_write(BIO *bio, const char *from, int size)
{
	struct tls_filter *f = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	return evbuffer_add(f->c->output, from, (size_t)size) < 0 ? -1 : size;
}

/* Nothing to control but flushing, which the turn's end does. */
static long bio_control(BIO *bio, int command, long number, void *pointer)
{
	(void)bio, (void)number, (void)pointer;
	return command == BIO_CTRL_FLUSH;
}

/* The kind of BIO; made once for a process's contexts. */
static BIO_METHOD *bio_method(struct tls_contexts *contexts)
{
	BIO_METHOD **method = tls_contexts_bio_method(contexts);

	if (!*method) {
		*method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "connection");
		if (!*method)
			abort();
		BIO_meth_set_read(*method, bio_read);
		BIO_meth_set_write(*method, bio_write);
		BIO_meth_set_ctrl(*method, bio_control);
	}
	return *method;
}

/* --- the session ------------------------------------------------------------------------------------------------------------- */

/* The filter of a connection. */
static struct tls_filter *filter_of(const struct conn *c)
{
	return c->filter_data;
}

/* Ends the connection, and counts it unless something else has ended it before. */
static void end_by_tls(struct tls_filter *f, const char *code, char *why)
{
	if (f->c->state != CONN_ENDING)
		f->c->conns->loop->stats->tls_failures++;
	conn_end_text(f->c, code, why);
}

/* Ends the connection for OpenSSL's reason; the alert that it has made is sent, as far as the socket takes it. */
static void fail_with(struct tls_filter *f, const char *text)
{
	long verdict = SSL_get_verify_result(f->ssl);

	if (f->failed)
		return;
	f->failed = true;
	conn_wire_changed(f->c);
	conn_flush_now(f->c);
	if (!f->up && f->context->verify && !f->accepted && verdict != X509_V_OK)
		end_by_tls(f, "ETLS", mem_printf("certificate verify failed: %s", X509_verify_cert_error_string(verdict)));
	else
		end_by_tls(f, "ETLS", mem_strdup(text));
}

/* The same with the reason that is queued. */
static void fail(struct tls_filter *f)
{
	char text[256];

	fail_with(f, tls_error_text(text));
}

/* Is a result of OpenSSL's no error but want of more? */
static bool wants_more(struct tls_filter *f, int result)
{
	int error = SSL_get_error(f->ssl, result);

	return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE;
}

/* A client picks up where its last connection to that server has left off, if the server still knows. */
static void resume_session(struct tls_filter *f)
{
	SSL_SESSION *session = tls_session_take(f->context->contexts, f->session_name);

	if (session)
		SSL_set_session(f->ssl, session);
	SSL_SESSION_free(session);
}

/*
 * The handshake begins. A resumed session shows no certificates, so where the user has its own say about them nothing is resumed: neither
 * what it has accepted before, nor what somebody else has under the same options.
 */
static void begin(struct tls_filter *f)
{
	f->begun = true;
	f->decided = f->context->verify && f->c->user && f->events->decides(f->c);
	if (f->decided)
		SSL_set_options(f->ssl, SSL_OP_NO_TICKET);
	else if (f->session_name)
		resume_session(f);
}

/* Goes on with the handshake. True when it has ended. */
static bool shake_hands(struct tls_filter *f)
{
	if (f->up)
		return true;
	if (!f->begun)
		begin(f);
	ERR_clear_error();
	int result = SSL_do_handshake(f->ssl);
	if (result != 1) {
		if (wants_more(f, result))
			conn_wire_changed(f->c);
		else
			fail(f);
		return false;
	}
	f->up = true;
	f->c->conns->loop->stats->tls_handshakes++;
	timer_stop(f->c->conns->loop, &f->deadline);
	conn_wire_changed(f->c);
	if (f->c->user)
		f->events->on_handshake(f->c);
	return f->c->state != CONN_ENDING;
}

/* Plain bytes for the user, behind those that wait for the end of a pause. */
static void deliver(struct tls_filter *f, const char *plain, size_t length)
{
	size_t late = f->late ? evbuffer_get_length(f->late) : 0, taken;

	if (late == 0) {
		taken = conn_deliver(f->c, plain, length);
		if (taken == length)
			return;
		if (!f->late && !(f->late = evbuffer_new()))
			abort();
		evbuffer_add(f->late, plain + taken, length - taken);
		return;
	}
	evbuffer_add(f->late, plain, length);
	taken = conn_deliver(f->c, (const char *)evbuffer_pullup(f->late, -1), late + length);
	evbuffer_drain(f->late, taken);
}

/* The peer has said goodbye: to the user that is the end of the stream, though not while paused. */
static void tell_goodbye(struct tls_filter *f)
{
	if (!f->c->paused)
		conn_deliver_eof(f->c);
}

/* Output that reading has made: answers to key updates and refusals to renegotiate. Who demands them and reads none could have us queue
 * them without end. */
static void count_answers(struct tls_filter *f, size_t before)
{
	struct conn *c = f->c;
	size_t now = evbuffer_get_length(c->output);

	f->answers = before ? f->answers + (now - before) : now;
	if (f->answers > MAX_ANSWERS && c->state != CONN_ENDING) {
		c->conns->loop->stats->limits_met++;
		conn_end(c, "ELIMIT", "outbound limit");
	}
}

/* What waited for the end of a pause. */
static void deliver_late(struct tls_filter *f)
{
	if (f->late && evbuffer_get_length(f->late))
		deliver(f, "", 0);
}

/* Wire bytes have come in: all their records become one piece of plain data. */
static void on_input(struct conn *c, const char *bytes, size_t length)
{
	struct tls_filter *f = filter_of(c);
	char *plain = tls_contexts_buffer(f->context->contexts);
	size_t n = 0;

	if (f->failed)
		return;
	f->wire = bytes;
	f->wire_left = length;
	if (shake_hands(f)) {
		size_t before = evbuffer_get_length(c->output);
		while (n < TLS_BUFFER_SIZE) {
			size_t got = 0;
			ERR_clear_error();
			int result = SSL_read_ex(f->ssl, plain + n, TLS_BUFFER_SIZE - n, &got);
			if (result == 1) {
				n += got;
				continue;
			}
			int error = SSL_get_error(f->ssl, result);
			if (error == SSL_ERROR_ZERO_RETURN)
				f->peer_goodbye = true;
			else if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE) {
				char text[256];
				tls_error_text(text); /* the user may do things with TLS, too */
				if (n)
					deliver(f, plain, n);
				n = 0;
				fail_with(f, text);
			}
			break;
		}
		count_answers(f, before);
		conn_wire_changed(c);
	}
	f->wire_left = 0;
	if (n)
		deliver(f, plain, n);
	if (f->peer_goodbye && c->state != CONN_ENDING)
		tell_goodbye(f);
}

/* The end of the wire: orderly only after the peer's goodbye. Where we are closing anyway it does not matter how the peer leaves, but that
 * what waits for the handshake can never be sent. */
static void on_input_eof(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	deliver_late(f);
	if (c->paused || c->state == CONN_ENDING)
		return; /* it will be met again */
	if (f->peer_goodbye || (c->state != CONN_OPEN && (f->up || !(evbuffer_get_length(c->plain) || c->sources))))
		conn_deliver_eof(c);
	else if (f->up)
		end_by_tls(f, "ETLS", mem_strdup("tls truncated"));
	else
		end_by_tls(f, "ETLS", mem_strdup("the peer closed during the handshake"));
}

/* Plain output becomes records; what was queued before the handshake has ended waits for that. */
static void encrypt(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	if (!f->begun && !f->context->server && c->fd >= 0)
		(void)shake_hands(f); /* the client's first word */
	/*
	 * A ticket goes with the first answer and not with the handshake's end: a client that only writes and closes would have it unread
	 * in its buffer then, which makes its kernel send RST and destroy what it had written last.
	 */
	if (f->up && !f->ticket && !f->decided && f->context->server && evbuffer_get_length(c->plain)) {
		f->ticket = true;
		if (SSL_version(f->ssl) == TLS1_3_VERSION)
			(void)SSL_new_session_ticket(f->ssl);
	}
	while (f->up && !f->failed && evbuffer_get_length(c->plain)) {
		size_t length = evbuffer_get_length(c->plain), done = 0;
		const void *bytes = evbuffer_pullup(c->plain, (ev_ssize_t)(length < RECORD ? length : RECORD));
		ERR_clear_error();
		if (!bytes || SSL_write_ex(f->ssl, bytes, length < RECORD ? length : RECORD, &done) != 1) {
			fail(f);
			return;
		}
		evbuffer_drain(c->plain, done);
	}
}

/* Our goodbye, behind all that was sent. A user who closes one side alone still wants the handshake. */
static bool finish(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	if (!f->up && !f->failed && c->state == CONN_OPEN)
		return false;
	if (f->goodbye || f->failed)
		return true;
	f->goodbye = true;
	if (!f->up)
		return true;
	ERR_clear_error();
	(void)SSL_shutdown(f->ssl);
	ERR_clear_error();
	return true;
}

/* Reading goes on: data and a goodbye may have waited. Not told from here, which is inside a call of the user's. */
static void resumed(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	if ((f->peer_goodbye && !c->eof) || (f->late && evbuffer_get_length(f->late)))
		timer_start(c->conns->loop, &f->resume, 0);
}

/* The user has resumed. */
static void on_resume(void *data)
{
	struct tls_filter *f = data;

	deliver_late(f);
	if (f->peer_goodbye && f->c->state != CONN_ENDING && !f->c->eof)
		tell_goodbye(f);
}

/* The handshake has taken too long, however busy it was. */
static void on_deadline(void *data)
{
	struct tls_filter *f = data;

	end_by_tls(f, "ETIMEDOUT", mem_strdup("handshake timeout"));
}

/* The connection goes. */
static void filter_free(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	timer_stop(c->conns->loop, &f->deadline);
	timer_stop(c->conns->loop, &f->resume);
	if (f->late)
		evbuffer_free(f->late);
	SSL_free(f->ssl);
	free(f->session_name);
	tls_context_unref(f->context);
	free(f);
}

/* The descriptor is there: the handshake's time begins, and a client speaks first. */
static void opened(struct conn *c)
{
	struct tls_filter *f = filter_of(c);

	timer_start(c->conns->loop, &f->deadline, f->context->handshake_timeout_ns);
}

static const struct conn_filter tls_filter = {
	.opened = opened,
	.input = on_input,
	.input_eof = on_input_eof,
	.encrypt = encrypt,
	.finish = finish,
	.resumed = resumed,
	.free = filter_free,
};

/* OpenSSL's question about a certificate. */
static int on_verify(int preverified, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls_filter *f = SSL_get_app_data(ssl);
	int error = X509_STORE_CTX_get_error(store);
	int answer = -1;

	if (f->c->user && f->c->state != CONN_ENDING)
		answer = f->events->on_verify(f->c, X509_STORE_CTX_get_current_cert(store), preverified, X509_STORE_CTX_get_error_depth(store),
		                              X509_verify_cert_error_string(error));
	f->accepted |= answer == 1 && !preverified;
	if (answer == 0 && error == X509_V_OK)
		X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
	return answer < 0 ? preverified : answer;
}

/* Reads an address in numbers; returns its length in bytes, 0 if it is none. */
static size_t read_address(const char *host, unsigned char address[sizeof(struct in6_addr)])
{
	if (inet_pton(AF_INET, host, address) == 1)
		return sizeof(struct in_addr);
	return inet_pton(AF_INET6, host, address) == 1 ? sizeof(struct in6_addr) : 0;
}

/* A name without the dot at its end that says that it is whole: neither SNI nor certificates have it. The caller frees it. */
static char *without_root(const char *name)
{
	size_t length = name ? strlen(name) : 0;

	if (length > 1 && name[length - 1] == '.')
		length--;
	return mem_printf("%.*s", (int)length, name ? name : "");
}

/* Whom a client asks for and whom it accepts. */
static void set_names(struct tls_filter *f, const char *hostname)
{
	const char *asked = f->context->sni_hostname ? f->context->sni_hostname : hostname;
	const char *wanted = f->context->verify_hostname ? f->context->verify_hostname : hostname;
	char *asked_name = without_root(asked), *wanted_name = without_root(wanted);
	unsigned char address[sizeof(struct in6_addr)];

	if (*asked_name && !read_address(asked_name, address) && SSL_set_tlsext_host_name(f->ssl, asked_name) != 1)
		ERR_clear_error(); /* longer than a name can be: it is asked for none */
	if (f->context->verify_name && *wanted_name) {
		size_t length = read_address(wanted_name, address);
		SSL_set_hostflags(f->ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
		if ((length ? X509_VERIFY_PARAM_set1_ip(SSL_get0_param(f->ssl), address, length) : SSL_set1_host(f->ssl, wanted_name)) != 1)
			abort(); /* want of memory: to go on would be to check no name */
	}
	free(asked_name);
	free(wanted_name);
}

/* The server has given a ticket: it is kept for the next connection. */
static int on_new_session(SSL *ssl, SSL_SESSION *session)
{
	struct tls_filter *f = SSL_get_app_data(ssl);

	if (!f->session_name || f->decided || (f->context->verify && SSL_get_verify_result(ssl) != X509_V_OK))
		return 0;
	tls_session_give(f->context->contexts, f->session_name, session);
	return 1; /* taken over */
}

/* Switches to TLS. */
bool tls_start(struct conn *c, struct tls_context *context, const char *hostname, const struct tls_events *events)
{
	if (c->filter)
		return false;
	struct tls_filter *f = mem_zalloc(sizeof *f);
	BIO *bio = BIO_new(bio_method(context->contexts));
	f->c = c;
	f->context = tls_context_ref(context);
	f->events = events;
	f->ssl = SSL_new(context->ctx);
	if (!f->ssl || !bio)
		abort(); /* want of memory */
	BIO_set_data(bio, f);
	BIO_set_init(bio, 1);
	SSL_set_bio(f->ssl, bio, bio);
	SSL_set_app_data(f->ssl, f);
	timer_init(&f->deadline, on_deadline, f);
	timer_init(&f->resume, on_resume, f);
	if (context->verify)
		SSL_set_verify(f->ssl, SSL_CTX_get_verify_mode(context->ctx), on_verify);
	if (context->server) {
		SSL_set_accept_state(f->ssl);
	} else {
		SSL_set_connect_state(f->ssl);
		set_names(f, hostname);
		if (hostname) {
			f->session_name = tls_session_name(f->context, hostname);
			SSL_CTX_sess_set_new_cb(context->ctx, on_new_session);
		}
	}
	conn_set_filter(c, &tls_filter, f);
	return true;
}

/* The session. */
SSL *tls_session(const struct conn *c)
{
	return c->filter == &tls_filter ? filter_of(c)->ssl : NULL;
}

/* Is it up? */
bool tls_is_up(const struct conn *c)
{
	return c->filter == &tls_filter && filter_of(c)->up;
}
