/*
 * TLS contexts: what certificates, keys, trust and versions a side of a connection has, made from a configuration once and shared by
 * equal ones. Sessions of them are tls_filter.c's.
 */
#ifndef REACTORD_TLS_H
#define REACTORD_TLS_H

#include <openssl/ssl.h>
#include <stdbool.h>

#include "config.h"

struct sources;
struct tls_contexts;

/* One side's context. Counted: kept by the cache, by listeners, and by the sessions made of it. */
struct tls_context {
	SSL_CTX *ctx;
	struct tls_contexts *contexts;
	bool server;
	bool verify;           /* the peer must present a chain that holds */
	bool verify_name;      /* and, on a client, be whom we called */
	char *verify_hostname; /* that name; NULL: the one given to connect */
	char *sni_hostname;    /* NULL: the one given to connect */
	uint64_t handshake_timeout_ns;
	struct trust *trust; /* NULL: asks nobody for a certificate */
	struct tls_sni *sni; /* server: certificates by name */
	unsigned char *alpn; /* server: protocols in the wire's form */
	unsigned alpn_length;
	char *key; /* of the cache */
	unsigned users;
	struct tls_context *next;
};

/* What ticket keys are made of. It goes on from period to period of time, and earlier keys cannot be made of it any more. */
struct tls_secret {
	unsigned char bytes[32];
	uint64_t period; /* whose key it makes */
};

/* The contexts of a process with their trust stores and ticket keys. Each period of time has a key; that of the period before is still
 * accepted. So keys live over reloads, and processes that have the same secret take each other's tickets. */
struct tls_contexts *tls_contexts_new(void) __attribute__((warn_unused_result));
void tls_contexts_free(struct tls_contexts *contexts);

/* Files are taken from there, if they are in it, and else added to it; NULL: they are read from the disk. Borrowed until the next call. */
void tls_read_through(struct tls_contexts *contexts, struct sources *files);

/* Makes a secret to share; sees that what is too old cannot be made of it; has a set use it instead of its own; tells a set's. */
void tls_make_secret(struct tls_secret *secret);
void tls_forward_secret(struct tls_secret *secret);
void tls_set_secret(struct tls_contexts *contexts, const struct tls_secret *secret);
const struct tls_secret *tls_get_secret(const struct tls_contexts *contexts);

/* The context for a configuration; files are read anew when they have changed. The caller has one use of it. NULL with a code ("ENOENT",
 * "EACCES", "ETLS"; static) and a reason that names the file (caller frees). */
struct tls_context *tls_context_get(struct tls_contexts *contexts, const struct tls_conf *conf, bool server, const char **code, char **why)
	__attribute__((warn_unused_result));
struct tls_context *tls_context_ref(struct tls_context *context);
void tls_context_unref(struct tls_context *context);

/* A client's last session with a server, to resume: name is whom it calls under which context. A session of TLS 1.3 is gone when taken, as it is good for one
 * resumption; given ones are taken over. The oldest are forgotten over TLS_SESSIONS. */
#define TLS_SESSIONS 1000
char *tls_session_name(const struct tls_context *context, const char *hostname) __attribute__((warn_unused_result));
SSL_SESSION *tls_session_take(struct tls_contexts *contexts, const char *name);
void tls_session_give(struct tls_contexts *contexts, const char *name, SSL_SESSION *session);

/* For the sessions: room for plain bytes that all of them share within a call, and the kind of BIO that they are made of. */
#define TLS_BUFFER_SIZE (320 * 1024) /* more than one read and what is left of a record can hold */
char *tls_contexts_buffer(struct tls_contexts *contexts);
BIO_METHOD **tls_contexts_bio_method(struct tls_contexts *contexts);

/* Takes the errors that OpenSSL has queued; the text of the most telling one, static or until the next call in text. */
const char *tls_error_text(char text[256]);

#endif
