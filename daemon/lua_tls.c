/* TLS for scripts: see lua_tls.h. */
#include "lua_tls.h"

#include <arpa/inet.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <time.h>

#include "lua_arg.h"
#include "lua_conn.h"
#include "tls_filter.h"

/* start_tls([options]): as server on an accepted connection, as client on an outgoing one. True, or nil, message, code: what files and
 * certificates have against it; "EALREADY" where TLS is on; "EBUSY" where a file is being streamed; "EPIPE" where either direction has
 * ended; "ENOTCONN" where it is closing; "EOPNOTSUPP" where there is no stream. */
static int l_start_tls(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);
	struct value options = {.kind = VALUE_NIL};
	struct tls_conf conf;
	const char *why_static, *code;
	char *why = NULL;

	if (!lua_isnoneornil(L, 2)) {
		luaL_checktype(L, 2, LUA_TTABLE);
		if (!arg_read_value(L, 2, &options, &why_static))
			return luaL_argerror(L, 2, why_static);
	}
	bool ok = config_tls(&conf, &options, &why);
	value_clear(&options);
	if (!ok) {
		lua_pushstring(L, why);
		free(why);
		return luaL_argerror(L, 2, lua_tostring(L, -1));
	}
	if (!lc->c || !conn_usable(lc->c)) {
		tls_conf_clear(&conf);
		return arg_failure(L, "ENOTCONN", "closed");
	}
	if (lc->c->transport || lc->c->watch_only) {
		tls_conf_clear(&conf);
		return arg_failure(L, "EOPNOTSUPP", "not on a datagram socket or a watch");
	}
	if (lc->c->sources) { /* its bytes go as they were asked to */
		tls_conf_clear(&conf);
		return arg_failure(L, "EBUSY", "a file is being streamed");
	}
	if (tls_session(lc->c)) {
		tls_conf_clear(&conf);
		return arg_failure(L, "EALREADY", "TLS is on already");
	}
	if (lc->c->shut_asked || lc->c->eof) { /* a handshake takes both directions */
		tls_conf_clear(&conf);
		return arg_failure(L, "EPIPE", lc->c->eof ? "the peer sends no more" : "closed for writing");
	}
	struct tls_context *context = tls_context_get(lc->vm->options.tls, &conf, !lc->outgoing, &code, &why);
	tls_conf_clear(&conf);
	if (!context) {
		arg_failure(L, code, "%s", why);
		free(why);
		return 3;
	}
	(void)!tls_start(lc->c, context, lc->hostname, &lua_conn_tls_events);
	tls_context_unref(context);
	lua_pushboolean(L, true);
	return 1;
}

/* The session of self once its handshake has ended, else NULL. */
static SSL *check_session(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	return lc->c && tls_is_up(lc->c) ? tls_session(lc->c) : NULL;
}

/* What is returned where there is no session to ask: nil, or that the connection has ended. */
static int no_session(lua_State *L)
{
	if (!lua_conn_check(L, 1)->c)
		return arg_failure(L, "ENOTCONN", "closed");
	lua_pushnil(L);
	return 1;
}

/* Pushes the text that a memory BIO holds, and frees it. */
static int push_bio(lua_State *L, BIO *bio)
{
	char *bytes;
	long length = BIO_get_mem_data(bio, &bytes);

	lua_pushlstring(L, bytes, (size_t)length);
	BIO_free(bio);
	return 1;
}

/* Pushes a certificate as PEM. */
static void push_pem(lua_State *L, X509 *certificate)
{
	BIO *bio = BIO_new(BIO_s_mem());

	if (!bio || PEM_write_bio_X509(bio, certificate) != 1) {
		BIO_free(bio);
		lua_pushnil(L);
		return;
	}
	push_bio(L, bio);
}

/* get_peer_cert(): PEM */
static int l_get_peer_cert(lua_State *L)
{
	SSL *ssl = check_session(L);
	X509 *certificate = ssl ? SSL_get0_peer_certificate(ssl) : NULL;

	if (!certificate)
		return no_session(L);
	push_pem(L, certificate);
	return 1;
}

/* Sets a field to a name in one line, RFC 2253's way. */
static void set_name(lua_State *L, const char *field, const X509_NAME *name)
{
	BIO *bio = BIO_new(BIO_s_mem());

	if (!bio)
		return;
	X509_NAME_print_ex(bio, name, 0, XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB);
	push_bio(L, bio);
	lua_setfield(L, -2, field);
}

/* Sets a field to a time in seconds since 1970. */
static void set_time(lua_State *L, const char *field, const ASN1_TIME *time)
{
	struct tm tm;

	if (ASN1_TIME_to_tm(time, &tm) != 1)
		return;
	lua_pushinteger(L, (lua_Integer)timegm(&tm));
	lua_setfield(L, -2, field);
}

/* Sets names to the list of DNS names and addresses. */
static void set_alt_names(lua_State *L, X509 *certificate)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	lua_Integer n = 0;

	lua_newtable(L);
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		char address[INET6_ADDRSTRLEN];
		if (name->type == GEN_DNS || name->type == GEN_EMAIL || name->type == GEN_URI) {
			lua_pushlstring(L, (const char *)ASN1_STRING_get0_data(name->d.ia5), (size_t)ASN1_STRING_length(name->d.ia5));
		} else if (name->type == GEN_IPADD) {
			int length = ASN1_STRING_length(name->d.iPAddress);
			if (!inet_ntop(length == 4 ? AF_INET : AF_INET6, ASN1_STRING_get0_data(name->d.iPAddress), address, sizeof address) ||
			    (length != 4 && length != 16))
				continue;
			lua_pushstring(L, address);
		} else {
			continue;
		}
		lua_rawseti(L, -2, ++n);
	}
	lua_setfield(L, -2, "names");
	GENERAL_NAMES_free(names);
}

/* get_peer_cert_info(): subject, issuer, names, not_before, not_after, fingerprint (SHA-256, hexadecimal) */
static int l_get_peer_cert_info(lua_State *L)
{
	SSL *ssl = check_session(L);
	X509 *certificate = ssl ? SSL_get0_peer_certificate(ssl) : NULL;
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned length = 0;
	char text[2 * EVP_MAX_MD_SIZE + 1];

	if (!certificate)
		return no_session(L);
	lua_createtable(L, 0, 6);
	set_name(L, "subject", X509_get_subject_name(certificate));
	set_name(L, "issuer", X509_get_issuer_name(certificate));
	set_alt_names(L, certificate);
	set_time(L, "not_before", X509_get0_notBefore(certificate));
	set_time(L, "not_after", X509_get0_notAfter(certificate));
	X509_digest(certificate, EVP_sha256(), digest, &length);
	for (unsigned i = 0; i < length; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
	lua_pushlstring(L, text, 2 * (size_t)length);
	lua_setfield(L, -2, "fingerprint");
	ERR_clear_error();
	return 1;
}

/* Pushes a text, if there is one. */
static int push_text(lua_State *L, const char *text)
{
	if (!text)
		return no_session(L);
	lua_pushstring(L, text);
	return 1;
}

/* get_cipher_name() */
static int l_get_cipher_name(lua_State *L)
{
	SSL *ssl = check_session(L);

	return push_text(L, ssl ? SSL_get_cipher_name(ssl) : NULL);
}

/* get_cipher_bits() */
static int l_get_cipher_bits(lua_State *L)
{
	SSL *ssl = check_session(L);

	if (!ssl)
		return no_session(L);
	lua_pushinteger(L, SSL_get_cipher_bits(ssl, NULL));
	return 1;
}

/* get_cipher_protocol(): "TLSv1.3" */
static int l_get_cipher_protocol(lua_State *L)
{
	SSL *ssl = check_session(L);

	return push_text(L, ssl ? SSL_get_version(ssl) : NULL);
}

/* get_sni_hostname(): whom the client asked for */
static int l_get_sni_hostname(lua_State *L)
{
	SSL *ssl = check_session(L);

	return push_text(L, ssl ? SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name) : NULL);
}

/* get_alpn_protocol() */
static int l_get_alpn_protocol(lua_State *L)
{
	SSL *ssl = check_session(L);
	const unsigned char *name = NULL;
	unsigned length = 0;

	if (ssl)
		SSL_get0_alpn_selected(ssl, &name, &length);
	if (!name)
		return no_session(L);
	lua_pushlstring(L, (const char *)name, length);
	return 1;
}

/* session_reused(): did the handshake resume an earlier session? */
static int l_session_reused(lua_State *L)
{
	SSL *ssl = check_session(L);

	if (!ssl)
		return no_session(L);
	lua_pushboolean(L, SSL_session_reused(ssl));
	return 1;
}

/* uses_tls(): is TLS on, be it that its handshake has not ended yet? */
static int l_uses_tls(lua_State *L)
{
	struct lua_conn *lc = lua_conn_check(L, 1);

	if (!lc->c)
		return arg_failure(L, "ENOTCONN", "closed");
	lua_pushboolean(L, tls_session(lc->c) != NULL);
	return 1;
}

/* ssl(): is there TLS? */
static int l_ssl(lua_State *L)
{
	lua_pushboolean(L, true);
	return 1;
}

static const luaL_Reg methods[] = {
	{"start_tls", l_start_tls},
	{"get_peer_cert", l_get_peer_cert},
	{"get_peer_cert_info", l_get_peer_cert_info},
	{"get_cipher_name", l_get_cipher_name},
	{"get_cipher_bits", l_get_cipher_bits},
	{"get_cipher_protocol", l_get_cipher_protocol},
	{"get_sni_hostname", l_get_sni_hostname},
	{"get_alpn_protocol", l_get_alpn_protocol},
	{"session_reused", l_session_reused},
	{"uses_tls", l_uses_tls},
	{NULL, NULL},
};

/* Registers all of it. */
void lua_tls_open(lua_State *L)
{
	lua_rawgeti(L, LUA_REGISTRYINDEX, vm_of(L)->connection_ref);
	luaL_setfuncs(L, methods, 0);
	lua_pop(L, 1);
	lua_pushcfunction(L, l_ssl);
	lua_setfield(L, 1, "ssl");
}
