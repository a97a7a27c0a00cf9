/*
 * TLS contexts: see tls.h. Defaults are those of a careful server: TLS 1.2 at least, AEAD suites with forward secrecy, our order, no
 * renegotiation, no compression, session tickets under keys of our own that rotate.
 */
#include "tls.h"

#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <uthash.h>

#include "mem.h"
#include "sources.h"

#define TRUSTS 32                     /* stores that are kept, those in use not counted: files change, texts may be made by a script */
#define TICKET_LIFETIME_S (12 * 3600) /* of a ticket key; tickets live as long again */

/* A certificate by server name. */
struct tls_sni {
	char *name; /* "example.org" or "*.example.org", lower case */
	struct tls_context *context;
	struct tls_sni *next;
};

/* Trusted certificates, shared by all contexts that name the same places. */
struct trust {
	char *key;
	X509_STORE *store;
	unsigned users; /* contexts */
	struct trust *next;
};

/* A key for session tickets. */
struct ticket_key {
	unsigned char name[16], aes[32], hmac[32];
	bool made;
};

/* A client's session to resume. */
struct kept_session {
	char *name;
	SSL_SESSION *session;
	UT_hash_handle hh;
};

struct tls_contexts {
	struct tls_context *all;
	struct trust *trusts;
	struct sources *files;         /* NULL: files are read from the disk */
	struct tls_secret secret;      /* of which the ticket keys are made */
	uint64_t period;               /* of the current one */
	struct ticket_key tickets[2];  /* the current one, the one before */
	struct kept_session *sessions; /* uthash, the oldest first */
	char *buffer;                  /* made with the first session */
	BIO_METHOD *bio_method;
};

/* --- errors ---------------------------------------------------------------------------------------------------------- */

/* The text of the first queued error that says something. */
const char *tls_error_text(char text[256])
{
	unsigned long error, best = 0;

	while ((error = ERR_get_error()))
		if (!best || !ERR_reason_error_string(best))
			best = error;
	const char *reason = best ? ERR_reason_error_string(best) : NULL;
	if (reason)
		snprintf(text, 256, "%s", reason);
	else if (best)
		ERR_error_string_n(best, text, 256);
	else
		snprintf(text, 256, "unknown TLS error");
	return text;
}

/* What a step that may fail is given, and what it leaves behind then. */
struct failure {
	struct sources *files; /* see tls_read_through */
	const char *code;
	char *why;
};

/* Notes a failure of OpenSSL's. */
static bool fail_tls(struct failure *f, const char *what, const char *about)
{
	char text[256];

	f->code = "ETLS";
	f->why = mem_printf("%s%s%s: %s", what, *about ? " " : "", about, tls_error_text(text));
	return false;
}

/* Notes a failure of the system's. */
static bool fail_errno(struct failure *f, const char *what, const char *about, int error)
{
	const char *name = strerrorname_np(error);

	f->code = name ? name : "EIO";
	f->why = mem_printf("%s %s: %s", what, about, strerrordesc_np(error));
	return false;
}

/* --- certificates and keys ------------------------------------------------------------------------------------------- */

/* Is it PEM text itself, not a path? */
static bool is_pem(const char *text)
{
	return strstr(text, "-----BEGIN ") != NULL;
}

/* The text of a file by way of the files that are kept; NULL: there are none, or it is not to be read. */
static const char *kept_text(struct sources *files, const char *path, size_t *length)
{
	const char *found = files ? sources_find(files, path, length) : NULL;
	char *text = NULL;
	FILE *file = !files || found ? NULL : fopen(path, "re");

	if (!file)
		return found;
	text = mem_alloc(SOURCES_FILE_MAX + 1);
	*length = fread(text, 1, SOURCES_FILE_MAX + 1, file);
	if (!ferror(file) && *length && *length <= SOURCES_FILE_MAX && sources_add(files, path, text, *length))
		found = sources_find(files, path, length);
	fclose(file);
	explicit_bzero(text, *length);
	free(text);
	return found;
}

/* A BIO on PEM text or on the file of that path; NULL with the failure noted. */
static BIO *open_pem(const char *text, const char *what, struct failure *f)
{
	if (is_pem(text))
		return BIO_new_mem_buf(text, -1);
	size_t length;
	const char *kept = kept_text(f->files, text, &length);
	if (kept)
		return BIO_new_mem_buf(kept, (int)length);
	errno = 0;
	BIO *bio = BIO_new_file(text, "r");
	if (!bio) {
		int error = errno ? errno : EIO;
		ERR_clear_error();
		fail_errno(f, what, text, error);
	}
	return bio;
}

/* What a PEM source is called in messages. */
static const char *pem_name(const char *text)
{
	return is_pem(text) ? "(given as text)" : text;
}

/* Loads the certificate and the chain behind it. */
static bool load_certificate(SSL_CTX *ctx, const char *source, struct failure *f)
{
	BIO *bio = open_pem(source, "certificate", f);
	bool ok = false;

	if (!bio)
		return false;
	X509 *leaf = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL);
	if (leaf && SSL_CTX_use_certificate(ctx, leaf) == 1) {
		X509 *more;
		SSL_CTX_clear_chain_certs(ctx);
		ok = true;
		while (ok && (more = PEM_read_bio_X509(bio, NULL, NULL, NULL)))
			ok = SSL_CTX_add0_chain_cert(ctx, more) == 1;
		if (ok) /* "no start line" is how the end of the file is told */
			ERR_clear_error();
	}
	if (!ok)
		fail_tls(f, "certificate", pem_name(source));
	X509_free(leaf);
	BIO_free(bio);
	return ok;
}

/* The password of a key. */
static int give_password(char *buffer, int size, int writing, void *data)
{
	const char *password = data;
	size_t length = password ? strlen(password) : 0;

	(void)writing;
	if (length > (size_t)size)
		return 0;
	if (length)
		memcpy(buffer, password, length);
	return (int)length;
}

/* Loads the key and sees that it belongs to the certificate. */
static bool load_key(SSL_CTX *ctx, const char *source, const char *password, struct failure *f)
{
	BIO *bio = open_pem(source, "private_key", f);

	if (!bio)
		return false;
	EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, give_password, (void *)(uintptr_t)password);
	BIO_free(bio);
	bool ok = key && SSL_CTX_use_PrivateKey(ctx, key) == 1 && SSL_CTX_check_private_key(ctx) == 1;
	EVP_PKEY_free(key);
	return ok ? true : fail_tls(f, "private_key", pem_name(source));
}

/* Makes a certificate that nobody has signed, for an hour of trying things out or a year of private use. */
static bool make_self_signed(SSL_CTX *ctx, struct failure *f)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();
	unsigned char serial[16];
	bool ok = key && cert && RAND_bytes(serial, sizeof serial) == 1;

	if (ok) {
		X509_NAME *name = X509_get_subject_name(cert);
		BIGNUM *number = BN_bin2bn(serial, sizeof serial, NULL);
		X509V3_CTX v3;
		X509_set_version(cert, 2);
		BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert));
		BN_free(number);
		X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
		X509_gmtime_adj(X509_getm_notAfter(cert), 365L * 24 * 3600);
		X509_set_pubkey(cert, key);
		X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0);
		X509_set_issuer_name(cert, name);
		X509V3_set_ctx_nodb(&v3);
		X509V3_set_ctx(&v3, cert, cert, NULL, NULL, 0);
		X509_EXTENSION *names = X509V3_EXT_conf_nid(NULL, &v3, NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1,IP:::1");
		ok = names && X509_add_ext(cert, names, -1) == 1 && X509_sign(cert, key, EVP_sha256()) > 0 &&
		     SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1;
		X509_EXTENSION_free(names);
	}
	X509_free(cert);
	EVP_PKEY_free(key);
	return ok ? true : fail_tls(f, "self_signed", "");
}

/* --- trust ----------------------------------------------------------------------------------------------------------- */

/* Eight bytes as a number. */
static unsigned long long first_bytes(const unsigned char *bytes)
{
	uint64_t number;

	memcpy(&number, bytes, sizeof number);
	return number;
}

/* Appends what identifies a file's contents for our purposes. */
static char *add_stamp(char *key, const char *path, struct sources *files)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	struct stat st;
	char *longer;
	size_t length;

	if (!path || is_pem(path))
		return key;
	const char *kept = kept_text(files, path, &length);
	if (kept && EVP_Digest(kept, length, digest, NULL, EVP_sha256(), NULL) == 1)
		longer = mem_printf("%s\n%s: %016llx%016llx", key, path, first_bytes(digest), first_bytes(digest + 8));
	else if (stat(path, &st) < 0)
		longer = mem_printf("%s\n%s: none", key, path);
	else
		longer = mem_printf("%s\n%s: %lld.%09ld %lld %llu", key, path, (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
		                    (long long)st.st_size, (unsigned long long)st.st_ino);
	free(key);
	return longer;
}

/* Frees one. */
static void trust_free(struct trust *t)
{
	X509_STORE_free(t->store);
	free(t->key);
	free(t);
}

/* What identifies whom a configuration trusts. */
static char *trust_key(const struct tls_conf *conf, struct sources *files)
{
	char *key = mem_printf("%s\n%s", conf->ca_file ? conf->ca_file : "", conf->ca_path ? conf->ca_path : "");

	if (conf->ca_file || conf->ca_path) {
		key = add_stamp(key, conf->ca_file, files);
		return add_stamp(key, conf->ca_path, NULL);
	}
	const char *file = getenv(X509_get_default_cert_file_env());
	return add_stamp(key, file ? file : X509_get_default_cert_file(), NULL);
}

/* Frees the oldest of the stores that nobody uses, but for so many. */
static void forget_trusts(struct tls_contexts *contexts)
{
	struct trust **at = &contexts->trusts;

	for (size_t unused = 0; *at;) {
		struct trust *t = *at;
		if (t->users || ++unused < TRUSTS) {
			at = &t->next;
			continue;
		}
		*at = t->next;
		trust_free(t);
	}
}

/* The store for a pair of places, or the system's; loading one costs tens of milliseconds, so they are kept. */
static struct trust *get_trust(struct tls_contexts *contexts, const struct tls_conf *conf, struct failure *f)
{
	char *key = trust_key(conf, f->files);

	for (struct trust *t = contexts->trusts; t; t = t->next)
		if (strcmp(t->key, key) == 0) {
			free(key);
			return t;
		}
	X509_STORE *store = X509_STORE_new();
	bool ok = store != NULL;
	ERR_clear_error();
	if (ok && conf->ca_file) {
		BIO *bio = open_pem(conf->ca_file, "ca_file", f);
		X509 *cert;
		int count = 0;
		if (bio) {
			while ((cert = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL))) {
				count += X509_STORE_add_cert(store, cert);
				X509_free(cert);
			}
			BIO_free(bio);
		}
		ok = count > 0;
		if (!ok && bio)
			fail_tls(f, "ca_file", pem_name(conf->ca_file));
		ERR_clear_error();
	}
	if (ok && conf->ca_path) {
		struct stat st;
		if (stat(conf->ca_path, &st) < 0)
			ok = fail_errno(f, "ca_path", conf->ca_path, errno);
		else if (X509_STORE_load_path(store, conf->ca_path) != 1)
			ok = fail_tls(f, "ca_path", conf->ca_path);
	}
	if (ok && !conf->ca_file && !conf->ca_path && X509_STORE_set_default_paths(store) != 1)
		ok = fail_tls(f, "the system's certificates", "");
	if (!ok) {
		X509_STORE_free(store);
		free(key);
		return NULL;
	}
	struct trust *t = mem_alloc(sizeof *t);
	*t = (struct trust){.key = key, .store = store};
	forget_trusts(contexts);
	t->next = contexts->trusts;
	contexts->trusts = t;
	return t;
}

/* --- tickets --------------------------------------------------------------------------------------------------------- */

/* The contexts that a session belongs to. */
static struct tls_contexts *contexts_of(SSL *ssl)
{
	struct tls_context *context = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

	return context->contexts;
}

/* Makes bytes of a secret, for one purpose. */
static bool derive(const struct tls_secret *secret, const char *purpose, unsigned char *to, size_t size)
{
	unsigned char bytes[EVP_MAX_MD_SIZE];
	unsigned length;

	if (!HMAC(EVP_sha256(), secret->bytes, sizeof secret->bytes, (const unsigned char *)purpose, strlen(purpose), bytes, &length))
		return false;
	memcpy(to, bytes, size);
	OPENSSL_cleanse(bytes, sizeof bytes);
	return true;
}

/* The ticket key of a secret's period. */
static void make_ticket_key(const struct tls_secret *secret, struct ticket_key *key)
{
	key->made = derive(secret, "name", key->name, sizeof key->name) && derive(secret, "aes", key->aes, sizeof key->aes) &&
	            derive(secret, "hmac", key->hmac, sizeof key->hmac);
}

/* The period that a time is in. */
static uint64_t period_of(time_t now)
{
	return (uint64_t)now / TICKET_LIFETIME_S;
}

/* Goes on to a period; from there is no way back, so the keys of those before are lost. */
static void forward(struct tls_secret *secret, uint64_t period)
{
	for (; secret->period < period; secret->period++)
		if (!derive(secret, "next", secret->bytes, sizeof secret->bytes))
			return;
}

/* Sees that the current key is that of the period which has begun, and the other one that of the period before. */
static void rotate_tickets(struct tls_contexts *contexts)
{
	uint64_t period = period_of(time(NULL));

	if (contexts->tickets[0].made && contexts->period == period)
		return;
	forward(&contexts->secret, period - 1);
	struct tls_secret next = contexts->secret;
	make_ticket_key(&next, &contexts->tickets[1]);
	forward(&next, period);
	make_ticket_key(&next, &contexts->tickets[0]);
	OPENSSL_cleanse(&next, sizeof next);
	contexts->period = period;
}

/* OpenSSL's callback: prepares cipher and MAC of a ticket that is made or read. */
static int on_ticket(SSL *ssl, unsigned char name[16], unsigned char iv[EVP_MAX_IV_LENGTH], EVP_CIPHER_CTX *cipher, EVP_MAC_CTX *mac,
                     int making)
{
	struct tls_contexts *contexts = contexts_of(ssl);
	struct ticket_key *key = NULL;

	rotate_tickets(contexts);
	if (making) {
		key = &contexts->tickets[0];
		memcpy(name, key->name, sizeof key->name);
		if (!key->made || RAND_bytes(iv, EVP_CIPHER_get_iv_length(EVP_aes_256_cbc())) != 1)
			return -1;
	} else {
		for (size_t i = 0; i < 2 && !key; i++)
			if (contexts->tickets[i].made && memcmp(name, contexts->tickets[i].name, sizeof key->name) == 0)
				key = &contexts->tickets[i];
		if (!key)
			return 0; /* a full handshake then */
	}
	OSSL_PARAM params[] = {
		OSSL_PARAM_construct_octet_string(OSSL_MAC_PARAM_KEY, key->hmac, sizeof key->hmac),
		OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char[]){"sha256"}, 0),
		OSSL_PARAM_construct_end(),
	};
	if (EVP_MAC_CTX_set_params(mac, params) != 1 || EVP_CipherInit_ex(cipher, EVP_aes_256_cbc(), NULL, key->aes, iv, making) != 1)
		return -1;
	return making || key == &contexts->tickets[0] ? 1 : 2; /* 2: give the client a ticket under the current key */
}

/* --- names ----------------------------------------------------------------------------------------------------------- */

/* Does a name match a pattern of the sni table? */
static bool name_matches(const char *pattern, const char *name)
{
	if (strcasecmp(pattern, name) == 0)
		return true;
	const char *dot = strchr(name, '.');
	return pattern[0] == '*' && dot && dot != name && strcasecmp(pattern + 1, dot) == 0;
}

/* The client has said whom it calls: picks the certificate. */
static int on_server_name(SSL *ssl, int *alert, void *data)
{
	struct tls_context *context = data;
	const char *name = SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name);

	(void)alert;
	struct tls_sni *best = NULL;
	for (struct tls_sni *s = name ? context->sni : NULL; s; s = s->next)
		if (name_matches(s->name, name) && (!best || best->name[0] == '*')) /* the name itself goes before a pattern */
			best = s;
	if (best)
		SSL_set_SSL_CTX(ssl, best->context->ctx);
	return SSL_TLSEXT_ERR_OK;
}

/* The wire form of the list of protocols: each with its length before it. The caller frees it. */
static unsigned char *alpn_wire(const struct strings *alpn, unsigned *length)
{
	size_t total = 0, at = 0;

	for (size_t i = 0; i < alpn->count; i++)
		total += 1 + strlen(alpn->items[i]);
	unsigned char *wire = mem_alloc(total + 1);
	for (size_t i = 0; i < alpn->count; i++) {
		size_t n = strlen(alpn->items[i]);
		wire[at++] = (unsigned char)n;
		memcpy(wire + at, alpn->items[i], n);
		at += n;
	}
	*length = (unsigned)total;
	return wire;
}

/* The client offers protocols: ours are in the order of our preference. None in common: the handshake fails, as RFC 7301 asks. */
static int on_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_length, const unsigned char *in, unsigned in_length, void *data)
{
	struct tls_context *context = data;
	unsigned char *picked;

	(void)ssl;
	if (SSL_select_next_proto(&picked, out_length, context->alpn, context->alpn_length, in, in_length) != OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*out = picked;
	return SSL_TLSEXT_ERR_OK;
}

/* --- a whole context ------------------------------------------------------------------------------------------------- */

/* Versions of the protocol by their place in the choice of the option; 0: none given. */
static int version_number(int choice)
{
	static const int numbers[] = {0, TLS1_VERSION, TLS1_1_VERSION, TLS1_2_VERSION, TLS1_3_VERSION};

	return numbers[choice];
}

/* Versions, suites, curves. */
static bool set_algorithms(SSL_CTX *ctx, const struct tls_conf *conf, struct failure *f)
{
	int low = conf->min_version ? version_number(conf->min_version) : TLS1_2_VERSION;

	if (low < TLS1_2_VERSION)
		SSL_CTX_set_security_level(ctx, 0); /* the old versions' signatures are refused otherwise; somebody has asked for them */
	if (SSL_CTX_set_min_proto_version(ctx, low) != 1)
		return fail_tls(f, "min_version", "");
	if (conf->max_version && SSL_CTX_set_max_proto_version(ctx, version_number(conf->max_version)) != 1)
		return fail_tls(f, "max_version", "");
	if (SSL_CTX_set_cipher_list(ctx, conf->cipher_list ? conf->cipher_list : "ECDHE+AESGCM:ECDHE+CHACHA20") != 1)
		return fail_tls(f, "cipher_list", conf->cipher_list ? conf->cipher_list : "");
	if (conf->ciphersuites && SSL_CTX_set_ciphersuites(ctx, conf->ciphersuites) != 1)
		return fail_tls(f, "ciphersuites", conf->ciphersuites);
	if (SSL_CTX_set1_groups_list(ctx, conf->ecdh_curve ? conf->ecdh_curve : "X25519:P-256:P-384") != 1)
		return fail_tls(f, "ecdh_curve", conf->ecdh_curve ? conf->ecdh_curve : "");
	if (conf->dhparam) {
		BIO *bio = open_pem(conf->dhparam, "dhparam", f);
		if (!bio)
			return false;
		EVP_PKEY *parameters = PEM_read_bio_Parameters(bio, NULL);
		BIO_free(bio);
		if (!parameters || SSL_CTX_set0_tmp_dh_pkey(ctx, parameters) != 1) {
			EVP_PKEY_free(parameters);
			return fail_tls(f, "dhparam", pem_name(conf->dhparam));
		}
	} else {
		SSL_CTX_set_dh_auto(ctx, 1);
	}
	return true;
}

/* Certificate and key. A server cannot do without. */
static bool set_identity(SSL_CTX *ctx, const struct tls_conf *conf, bool server, struct failure *f)
{
	if (conf->certificate) {
		/* a file may hold both */
		const char *key = conf->private_key ? conf->private_key : conf->certificate;
		return load_certificate(ctx, conf->certificate, f) && load_key(ctx, key, conf->private_key_pass, f);
	}
	if (conf->private_key) {
		f->code = "ETLS";
		f->why = mem_strdup("private_key without certificate");
		return false;
	}
	if (conf->self_signed)
		return make_self_signed(ctx, f);
	if (server) {
		f->code = "ETLS";
		f->why = mem_strdup("a server needs a certificate (or self_signed = true)");
		return false;
	}
	return true;
}

/* The certificates by name: contexts like the default one but for their identity. */
static bool set_sni(struct tls_context *context, const struct tls_conf *conf, struct failure *f)
{
	for (size_t i = 0; i < conf->sni_count; i++) {
		struct tls_conf other = *conf;
		other.certificate = conf->sni_list[i].certificate;
		other.private_key = conf->sni_list[i].private_key;
		other.private_key_pass = conf->sni_list[i].private_key_pass;
		other.self_signed = false;
		other.sni_count = 0;
		struct tls_context *made = tls_context_get(context->contexts, &other, true, &f->code, &f->why);
		if (!made) {
			char *why = mem_printf("sni \"%s\": %s", conf->sni_list[i].name, f->why);
			free(f->why);
			f->why = why;
			return false;
		}
		struct tls_sni *s = mem_alloc(sizeof *s);
		*s = (struct tls_sni){.name = mem_strdup(conf->sni_list[i].name), .context = made, .next = context->sni};
		context->sni = s;
	}
	if (context->sni) {
		SSL_CTX_set_tlsext_servername_callback(context->ctx, on_server_name);
		SSL_CTX_set_tlsext_servername_arg(context->ctx, context);
	}
	return true;
}

/*
 * All contexts share the ticket keys, so a ticket says under which demands on the client's certificate it was given: where others hold it
 * means a full handshake. Else a ticket of a server that asks for none would open one that does. Those of an sni table have the same
 * demands as the context that they belong to.
 */
static bool set_session_kind(SSL_CTX *ctx, const struct tls_context *context, const struct tls_conf *conf, struct failure *f)
{
	char *trusted = context->verify ? trust_key(conf, f->files) : mem_strdup("");
	char *kind = mem_printf("%d %d %s", context->verify, conf->fail_if_no_peer_cert, trusted);
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned length = 0;

	_Static_assert(SSL_MAX_SID_CTX_LENGTH >= 32, "a digest fits");
	bool ok = EVP_Digest(kind, strlen(kind), digest, &length, EVP_sha256(), NULL) == 1 &&
	          SSL_CTX_set_session_id_context(ctx, digest, length) == 1;
	free(trusted);
	free(kind);
	return ok ? true : fail_tls(f, "TLS", "");
}

/* What only servers have: tickets, ALPN choice, request for certificates. */
static bool set_server(struct tls_context *context, const struct tls_conf *conf, struct failure *f)
{
	SSL_CTX *ctx = context->ctx;

	SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_PRIORITIZE_CHACHA);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF); /* tickets keep the state with the clients */
	SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, on_ticket);
	SSL_CTX_set_timeout(ctx, TICKET_LIFETIME_S);
	SSL_CTX_set_num_tickets(ctx, 0); /* TLS 1.3's go with the first answer, see tls_filter.c */
	if (conf->alpn.count) {
		context->alpn = alpn_wire(&conf->alpn, &context->alpn_length);
		SSL_CTX_set_alpn_select_cb(ctx, on_alpn, context);
	}
	return set_session_kind(ctx, context, conf, f) && set_sni(context, conf, f);
}

/* What only clients have. */
static bool set_client(struct tls_context *context, const struct tls_conf *conf, struct failure *f)
{
	SSL_CTX_set_session_cache_mode(context->ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	if (!conf->alpn.count)
		return true;
	unsigned length;
	unsigned char *wire = alpn_wire(&conf->alpn, &length);
	bool ok = SSL_CTX_set_alpn_protos(context->ctx, wire, length) == 0;
	free(wire);
	return ok ? true : fail_tls(f, "alpn", "");
}

/* Trust and whether to ask for certificates. */
static bool set_verification(struct tls_context *context, const struct tls_conf *conf, struct failure *f)
{
	context->verify = conf->verify_peer < 0 ? !context->server : conf->verify_peer;
	context->verify_name = context->verify && !context->server && !(conf->verify_hostname && !conf->verify_hostname[0]);
	if (!context->verify)
		return true;
	struct trust *trust = get_trust(context->contexts, conf, f);
	if (!trust)
		return false;
	trust->users++;
	context->trust = trust;
	SSL_CTX_set1_cert_store(context->ctx, trust->store);
	SSL_CTX_set_verify(context->ctx, SSL_VERIFY_PEER | (conf->fail_if_no_peer_cert ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0), NULL);
	return true;
}

/* Frees a context that nobody uses. */
static void context_free(struct tls_context *context)
{
	while (context->sni) {
		struct tls_sni *s = context->sni;
		context->sni = s->next;
		tls_context_unref(s->context);
		free(s->name);
		free(s);
	}
	SSL_CTX_free(context->ctx);
	if (context->trust)
		context->trust->users--;
	free(context->alpn);
	free(context->verify_hostname);
	free(context->sni_hostname);
	free(context->key);
	free(context);
}

/* Makes a context, or notes why not. */
static struct tls_context *context_new(struct tls_contexts *contexts, const struct tls_conf *conf, bool server, struct failure *f)
{
	struct tls_context *context = mem_zalloc(sizeof *context);

	ERR_clear_error();
	context->contexts = contexts;
	context->server = server;
	context->handshake_timeout_ns = conf->handshake_timeout_ns;
	context->verify_hostname = conf->verify_hostname ? mem_strdup(conf->verify_hostname) : NULL;
	context->sni_hostname = conf->sni_hostname ? mem_strdup(conf->sni_hostname) : NULL;
	context->ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	if (!context->ctx) {
		fail_tls(f, "TLS", "");
		context_free(context);
		return NULL;
	}
	SSL_CTX_set_app_data(context->ctx, context);
	SSL_CTX_set_options(context->ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_mode(context->ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	if (set_algorithms(context->ctx, conf, f) && set_identity(context->ctx, conf, server, f) && set_verification(context, conf, f) &&
	    (server ? set_server(context, conf, f) : set_client(context, conf, f)))
		return context;
	context_free(context);
	return NULL;
}

/* What two configurations must have in common to share a context: every option, and the state of the files. */
static char *make_key(const struct tls_conf *conf, bool server, struct sources *files)
{
	char *text = config_tls_text(conf), *key = mem_printf("%s %s", server ? "server" : "client", text);

	free(text);
	key = add_stamp(key, conf->certificate, files);
	key = add_stamp(key, conf->private_key, files);
	key = add_stamp(key, conf->ca_file, files);
	key = add_stamp(key, conf->ca_path, NULL);
	key = add_stamp(key, conf->dhparam, files);
	for (size_t i = 0; i < conf->sni_count; i++) {
		key = add_stamp(key, conf->sni_list[i].certificate, files);
		key = add_stamp(key, conf->sni_list[i].private_key, files);
	}
	return key;
}

/* Finds or makes a context. */
struct tls_context *tls_context_get(struct tls_contexts *contexts, const struct tls_conf *conf, bool server, const char **code, char **why)
{
	char *key = make_key(conf, server, contexts->files);
	struct failure f = {.files = contexts->files};

	for (struct tls_context *context = contexts->all; context; context = context->next)
		if (strcmp(context->key, key) == 0) {
			free(key);
			return tls_context_ref(context);
		}
	struct tls_context *context = context_new(contexts, conf, server, &f);
	if (!context) {
		*code = f.code ? f.code : "ETLS";
		*why = f.why;
		free(key);
		return NULL;
	}
	context->key = key;
	context->users = 1;
	context->next = contexts->all;
	contexts->all = context;
	return context;
}

/* One use more. */
struct tls_context *tls_context_ref(struct tls_context *context)
{
	context->users++;
	return context;
}

/* One use less; the last one frees. */
void tls_context_unref(struct tls_context *context)
{
	if (!context || --context->users)
		return;
	for (struct tls_context **at = &context->contexts->all; *at; at = &(*at)->next)
		if (*at == context) {
			*at = context->next;
			break;
		}
	context_free(context);
}

/* An empty set. */
struct tls_contexts *tls_contexts_new(void)
{
	struct tls_contexts *contexts = mem_zalloc(sizeof *contexts);

	tls_make_secret(&contexts->secret);
	return contexts;
}

/* From now on. */
void tls_read_through(struct tls_contexts *contexts, struct sources *files)
{
	contexts->files = files;
}

/* Makes a secret, for the period before this one too. */
void tls_make_secret(struct tls_secret *secret)
{
	if (getrandom(secret->bytes, sizeof secret->bytes, 0) != sizeof secret->bytes)
		abort(); /* cannot happen for so few bytes */
	secret->period = period_of(time(NULL)) - 1;
}

/* Goes on to the period before this one. */
void tls_forward_secret(struct tls_secret *secret)
{
	forward(secret, period_of(time(NULL)) - 1);
}

/* Makes the keys of another secret. */
void tls_set_secret(struct tls_contexts *contexts, const struct tls_secret *secret)
{
	contexts->secret = *secret;
	contexts->tickets[0].made = false;
}

/* Tells it. */
const struct tls_secret *tls_get_secret(const struct tls_contexts *contexts)
{
	return &contexts->secret;
}

/* What a session is kept under: a digest of all that the context is made of, and whom it calls. */
char *tls_session_name(const struct tls_context *context, const char *hostname)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	char hex[2 * EVP_MAX_MD_SIZE + 1] = "";
	unsigned length = 0;

	EVP_Digest(context->key, strlen(context->key), digest, &length, EVP_sha256(), NULL);
	for (unsigned i = 0; i < length; i++)
		snprintf(hex + 2 * (size_t)i, 3, "%02x", digest[i]);
	return mem_printf("%s %s", hex, hostname ? hostname : "");
}

/* Frees a kept session but for the session itself. */
static SSL_SESSION *let_go(struct tls_contexts *contexts, struct kept_session *kept)
{
	SSL_SESSION *session = kept->session;

	HASH_DEL(contexts->sessions, kept);
	free(kept->name);
	free(kept);
	return session;
}

/* Takes one out; those of TLS 1.2 may be used again and stay. */
SSL_SESSION *tls_session_take(struct tls_contexts *contexts, const char *name)
{
	struct kept_session *kept;

	HASH_FIND_STR(contexts->sessions, name, kept);
	if (!kept)
		return NULL;
	if (SSL_SESSION_get_protocol_version(kept->session) >= TLS1_3_VERSION)
		return let_go(contexts, kept);
	SSL_SESSION_up_ref(kept->session);
	return kept->session;
}

/* Puts one in. */
void tls_session_give(struct tls_contexts *contexts, const char *name, SSL_SESSION *session)
{
	struct kept_session *kept = mem_zalloc(sizeof *kept);

	struct kept_session *before;
	HASH_FIND_STR(contexts->sessions, name, before);
	if (before)
		SSL_SESSION_free(let_go(contexts, before));
	if (HASH_COUNT(contexts->sessions) >= TLS_SESSIONS)
		SSL_SESSION_free(let_go(contexts, contexts->sessions));
	kept->name = mem_strdup(name);
	kept->session = session;
	HASH_ADD_KEYPTR(hh, contexts->sessions, kept->name, strlen(kept->name), kept);
}

/* The sessions' buffer. */
char *tls_contexts_buffer(struct tls_contexts *contexts)
{
	if (!contexts->buffer)
		contexts->buffer = mem_alloc(TLS_BUFFER_SIZE);
	return contexts->buffer;
}

/* The place of their kind of BIO. */
BIO_METHOD **tls_contexts_bio_method(struct tls_contexts *contexts)
{
	return &contexts->bio_method;
}

/* Frees it; contexts are gone with their users. */
void tls_contexts_free(struct tls_contexts *contexts)
{
	if (!contexts)
		return;
	while (contexts->trusts) {
		struct trust *t = contexts->trusts;
		contexts->trusts = t->next;
		trust_free(t);
	}
	while (contexts->sessions)
		SSL_SESSION_free(let_go(contexts, contexts->sessions));
	free(contexts->buffer);
	BIO_meth_free(contexts->bio_method);
	OPENSSL_cleanse(contexts->tickets, sizeof contexts->tickets);
	OPENSSL_cleanse(&contexts->secret, sizeof contexts->secret);
	free(contexts);
}
