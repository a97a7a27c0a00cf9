/*
 * The configuration: defaults, every option with what it takes and what it refuses, what must fit together, overrides, the dump.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>
#include <cmocka.h>

#include "config.h"

static char folder[] = "/tmp/config-XXXXXX";
static char path[128];

/* Makes the folder of the test's file. */
static int set_up(void **state)
{
	(void)state;
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof path, "%s/reactord.conf", folder);
	return 0;
}

/* Removes it. */
static int tear_down(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

/* Loads a text as a configuration file. */
static struct config *load_with(const char *text, const struct override *overrides, size_t count, struct problems *p)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	return config_load(path, overrides, count, p);
}

/* Loads a text that must pass. */
static struct config *load(const char *text)
{
	struct problems p = {0};
	struct config *config = load_with(text, NULL, 0, &p);

	if (!config)
		fail_msg("%s", p.lines[0]);
	assert_int_equal(p.count, 0);
	return config;
}

/* Checks that a text gives exactly these messages (each without the folder, several with '\n' between). */
static void assert_refused(const char *text, const char *expected)
{
	struct problems p = {0};
	struct config *config = load_with(text, NULL, 0, &p);
	char got[4096] = "";

	assert_null(config);
	for (size_t i = 0; i < p.count; i++) {
		const char *line = p.lines[i], *at;

		strcat(got, i > 0 ? "\n" : "");
		for (size_t length = strlen(folder) + 1; (at = strstr(line, folder)); line = at + length)
			strncat(got, line, (size_t)(at - line));
		strcat(got, line);
	}
	problems_clear(&p);
	if (strcmp(got, expected) != 0)
		fail_msg("%s\ngives      %s\ninstead of %s", text, got, expected);
}

/* An empty file is the defaults. */
static void defaults_are_filled_in(void **state)
{
	struct config *config = load("listen 'tcp://127.0.0.1:1' { handler = 'echo' } connect 'tcp://h:2' { handler = 'x' }");
	const struct listen_conf *l = &config->listens[0];
	const struct connect_conf *c = &config->connects[0];

	(void)state;
	assert_int_equal(config->handlers.count, 0);
	assert_null(config->user);
	assert_null(config->pid_file);
	assert_int_equal(config->memory_limit, 1 << 30);
	assert_int_equal(config->max_queued, 1 << 30);
	assert_int_equal(config->callback_time_ns, 1000000000);
	assert_int_equal(config->drain_timeout_ns, 30 * 1000000000ll);
	assert_int_equal(config->reload_timeout_ns, 3600 * 1000000000ll);
	assert_int_equal(config->generations, 4);
	assert_int_equal(config->processes, 1);
	assert_false(config->unsafe);
	assert_int_equal(config->log_level, LEVEL_INFO);
	assert_int_equal(config->log_format, FORMAT_AUTO);
	assert_null(config->log_file);

	assert_string_equal(l->handler, "echo");
	assert_string_equal(l->url_text, "tcp://127.0.0.1:1");
	assert_string_equal(l->file, path);
	assert_int_equal(l->line, 1);
	assert_int_equal(l->args.kind, VALUE_NIL);
	assert_int_equal(l->backlog, 4096);
	assert_int_equal(l->max_connections, 0);
	assert_int_equal(l->flow.idle_timeout_ns, 0);
	assert_int_equal(l->flow.linger_timeout_ns, 30 * 1000000000ll);
	assert_int_equal(l->flow.low_water, 65536);
	assert_int_equal(l->flow.high_water, 1048576);
	assert_int_equal(l->flow.max_outbound, 64 << 20);
	assert_true(l->flow.nodelay);
	assert_int_equal(l->flow.keepalive, -1);
	assert_false(l->reuse_port);
	assert_int_equal(l->mode, -1);

	assert_int_equal(c->connect_timeout_ns, 20 * 1000000000ll);
	assert_false(c->has_reconnect);
	assert_null(c->bind);
	assert_int_equal(c->flow.max_outbound, 64 << 20);
	assert_null(l->tls);
	assert_null(c->tls);
	config_free(config);
}

/* A tls table, and a tls:// address without one, have every option of TLS. */
static void defaults_of_tls_are_filled_in(void **state)
{
	struct config *config = load("listen 'tls://*:1' { handler = 'x' } connect 'tcp://h:1' { handler = 'x', tls = {} }\n"
	                             "listen 'unix://x' { handler = 'x', tls = { self_signed = true } }");
	const struct tls_conf *const all[] = {config->listens[0].tls, config->connects[0].tls};

	(void)state;
	for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
		const struct tls_conf *t = all[i];

		assert_non_null(t);
		assert_null(t->certificate);
		assert_null(t->private_key);
		assert_null(t->private_key_pass);
		assert_false(t->self_signed);
		assert_int_equal(t->verify_peer, -1);
		assert_null(t->verify_hostname);
		assert_null(t->ca_file);
		assert_null(t->ca_path);
		assert_false(t->fail_if_no_peer_cert);
		assert_null(t->sni_hostname);
		assert_int_equal(t->alpn.count, 0);
		assert_int_equal(t->sni_count, 0);
		assert_int_equal(t->min_version, 0);
		assert_int_equal(t->max_version, 0);
		assert_int_equal(t->ssl_version.count, 0);
		assert_null(t->cipher_list);
		assert_null(t->ciphersuites);
		assert_null(t->ecdh_curve);
		assert_null(t->dhparam);
		assert_int_equal(t->handshake_timeout_ns, 10 * 1000000000ll);
	}
	assert_true(config->listens[1].tls->self_signed);
	config_free(config);
}

/* Everything that TLS has is set, under our names and under EventMachine's; paths are relative to the file, PEM text is none. */
static void options_of_tls_are_taken(void **state)
{
	struct config *config = load(
		"local text = '-----BEGIN CERTIFICATE-----\\nMII\\n'\n"
		"listen 'tls://*:1' { handler = 'x', tls = { certificate = 'a.pem', private_key = '/b.key', private_key_pass = 'p',\n"
		"  verify_peer = true, fail_if_no_peer_cert = true, ca_file = text, ca_path = 'ca', alpn = { 'h2', 'x' }, dhparam = 'dh.pem',\n"
		"  min_version = 'TLSv1.3', ciphersuites = 's', cipher_list = 'l', ecdh_curve = 'c', handshake_timeout = 0.25,\n"
		"  sni = { ['a.b'] = { cert = text, private_key_file = 'k' }, ['*.c'] = { certificate = '/c.pem', private_key_pass = 'q' } } } }\n"
		"connect 'tls://h:1' { handler = 'x', tls = { cert_chain_file = 'a.pem', private_key_file = 'b.key', verify_peer = false,\n"
		"  verify_hostname = false, sni_hostname = 'n', ssl_version = { 'TLSv1_2', 'tlsv1_1' } } }\n"
		"connect 'tls://h:2' { handler = 'x', tls = { verify_hostname = 'v', ssl_version = { 'tlsv1_3' }, min_version = 'TLSv1.2' } }\n");
	const struct tls_conf *l = config->listens[0].tls, *c = config->connects[0].tls, *d = config->connects[1].tls;
	char expected[256];

	(void)state;
	snprintf(expected, sizeof expected, "%s/a.pem", folder);
	assert_string_equal(l->certificate, expected);
	assert_string_equal(c->certificate, expected);
	assert_string_equal(l->private_key, "/b.key");
	assert_string_equal(l->private_key_pass, "p");
	assert_int_equal(l->verify_peer, 1);
	assert_true(l->fail_if_no_peer_cert);
	assert_string_equal(l->ca_file, "-----BEGIN CERTIFICATE-----\nMII\n");
	snprintf(expected, sizeof expected, "%s/ca", folder);
	assert_string_equal(l->ca_path, expected);
	assert_int_equal(l->alpn.count, 2);
	assert_string_equal(l->alpn.items[1], "x");
	snprintf(expected, sizeof expected, "%s/dh.pem", folder);
	assert_string_equal(l->dhparam, expected);
	assert_int_equal(l->min_version, 4);
	assert_int_equal(l->max_version, 0);
	assert_string_equal(l->ciphersuites, "s");
	assert_string_equal(l->cipher_list, "l");
	assert_string_equal(l->ecdh_curve, "c");
	assert_int_equal(l->handshake_timeout_ns, 250000000);
	assert_int_equal(l->sni_count, 2);
	for (size_t i = 0; i < 2; i++) {
		const struct tls_sni_conf *s = &l->sni_list[i];

		snprintf(expected, sizeof expected, "%s/k", folder);
		if (strcmp(s->name, "a.b") == 0) {
			assert_string_equal(s->certificate, l->ca_file);
			assert_string_equal(s->private_key, expected);
			assert_null(s->private_key_pass);
		} else {
			assert_string_equal(s->name, "*.c");
			assert_string_equal(s->certificate, "/c.pem");
			assert_null(s->private_key);
			assert_string_equal(s->private_key_pass, "q");
		}
	}
	snprintf(expected, sizeof expected, "%s/b.key", folder);
	assert_string_equal(c->private_key, expected);
	assert_int_equal(c->verify_peer, 0);
	assert_string_equal(c->verify_hostname, "");
	assert_string_equal(c->sni_hostname, "n");
	assert_int_equal(c->min_version, 2);
	assert_int_equal(c->max_version, 3);
	assert_string_equal(d->verify_hostname, "v");
	assert_int_equal(d->min_version, 3); /* said in both ways: our own goes first */
	assert_int_equal(d->max_version, 4);
	config_free(config);
}

/* Everything that can be set is set; paths are relative to the file. */
static void options_are_taken(void **state)
{
	struct config *config =
		load("handlers = { '../handlers', '/srv/h' }\n"
	         "user = 'nobody' group = 'nogroup' pid_file = 'r.pid'\n"
	         "memory_limit = '64 MiB' max_queued = '2g' callback_time = 0 drain_timeout = 0.25\n"
	         "generations = 8 / 2 unsafe = true lua_path = 'a/?.lua;/b/?.lua;;'\n"
	         "log = { level = 'debug', format = 'json', file = 'log/x.log' }\n"
	         "listen 'unix://x.sock' { handler = 'e', mode = '0660', args = { 'lobby', { a = 1 }, 2.5 } }\n"
	         "listen 'TCP://*:1' { handler = 'e', keepalive = 60, reuse_port = true, low_water = '64k', max_outbound = 4096 * 32 }\n"
	         "connect 'tcp://[::1]:2' { handler = 'e', reconnect = 0.5, bind = '[::1]:99', keepalive = true, nodelay = false }\n");
	char expected[256];

	(void)state;
	assert_int_equal(config->handlers.count, 2);
	snprintf(expected, sizeof expected, "%s/../handlers", folder);
	assert_string_equal(config->handlers.items[0], expected);
	assert_string_equal(config->handlers.items[1], "/srv/h");
	snprintf(expected, sizeof expected, "%s/r.pid", folder);
	assert_string_equal(config->pid_file, expected);
	snprintf(expected, sizeof expected, "%s/a/?.lua;/b/?.lua;;", folder);
	assert_string_equal(config->lua_path, expected);
	snprintf(expected, sizeof expected, "%s/log/x.log", folder);
	assert_string_equal(config->log_file, expected);
	assert_int_equal(config->log_level, LEVEL_DEBUG);
	assert_int_equal(config->log_format, FORMAT_JSON);
	assert_int_equal(config->memory_limit, 64 << 20);
	assert_int_equal(config->max_queued, 2ll << 30);
	assert_int_equal(config->callback_time_ns, 0);
	assert_int_equal(config->drain_timeout_ns, 250000000);
	assert_int_equal(config->generations, 4);
	assert_true(config->unsafe);

	snprintf(expected, sizeof expected, "unix://%s/x.sock", folder);
	assert_string_equal(config->listens[0].url_text, expected);
	assert_int_equal(config->listens[0].mode, 0660);
	assert_int_equal(config->listens[0].args.table.count, 3);
	assert_string_equal(config->listens[1].url_text, "tcp://0.0.0.0:1");
	assert_int_equal(config->listens[1].flow.keepalive, 60);
	assert_true(config->listens[1].reuse_port);
	assert_int_equal(config->listens[1].flow.max_outbound, 131072);
	assert_int_equal(config->listens[1].flow.high_water, 131072); /* a default gives way */
	assert_int_equal(config->listens[1].flow.low_water, 65536);
	assert_true(config->connects[0].has_reconnect);
	assert_int_equal(config->connects[0].reconnect_ns, 500000000);
	assert_string_equal(config->connects[0].bind, "[::1]:99");
	assert_int_equal(config->connects[0].flow.keepalive, 0);
	assert_false(config->connects[0].flow.nodelay);
	config_free(config);
}

/* Values that no option of the kind takes. */
static const struct {
	const char *type, *values[12];
} wrong[] = {
	{"string", {"5", "true", "{}", "''", "'a\\0b'", "1.5"}},
	{"path", {"5", "true", "{}", "''", "'a\\0b'"}},
	{"search path", {"5", "true", "{}", "''"}},
	{"folders", {"5", "true", "'x'", "{ 5 }", "{ a = 'x' }", "{ '' }", "{ { 'x' } }"}},
	{"boolean", {"0", "1", "'true'", "{}"}},
	{"integer", {"-1", "1.5", "'1'", "true", "{}", "1e300", "0/0", "1/0", "math_maxinteger"}},
	{"size", {"-1", "1.5", "'x'", "'1 TB'", "'1.5 MiB'", "'k'", "''", "'64 KiB '", "true", "{}", "1e300"}},
	{"seconds", {"-1", "-0.001", "'5'", "true", "{}", "1e300", "0/0", "1/0", "315360001"}},
	{"choice", {"'x'", "5", "true", "{}", "''", "'INFO'"}},
	{"keepalive", {"0", "-1", "1.5", "32768", "'yes'", "{}"}},
	{"mode", {"660", "'0888'", "'01000'", "'1777'", "''", "'rw'", "true", "'-1'", "'660x'"}},
	{"address", {"5", "''", "'localhost'", "'1.2.3'", "'1.2.3.4:x'", "'::1'", "{}"}},
	{"addresses", {"5", "'127.0.0.1'", "{ 'localhost' }", "{ '127.0.0.1', '' }", "{ 5 }", "{ a = '127.0.0.1' }", "{ '::1' }"}},
	{"networks", {"5", "true", "'127.0.0.1'", "{ 'localhost' }", "{ '10.0.0.0/33' }", "{ '::1', '' }", "{ 5 }", "{ a = '::1' }"}},
	{"PEM", {"5", "true", "{}", "''", "'a\\0b'"}},
	{"host name", {"5", "true", "{}", "''", "'a\\0b'"}},
	{"strings", {"5", "true", "'h2'", "{ 5 }", "{ a = 'h2' }", "{ 'h2', '' }", "{ 'a\\0b' }", "{ { 'h2' } }"}},
	{"switch", {"0", "1", "'true'", "{}"}},
	{"table", {"5", "true", "'x'"}},
	{"list", {"5", "'x'", "true", "{ a = 1 }", "{ [0] = 1 }", "{ [1000] = 1 }"}},
};

/* Every option of the table refuses every wrong value with its place and name, and only says so once. */
static void wrong_values_are_refused(void **state)
{
	size_t count, checked = 0;
	struct option_row *rows = config_option_rows(&count);

	(void)state;
	assert_true(count > 60);
	for (size_t i = 0; i < count; i++) {
		bool known = false;

		for (size_t j = 0; j < sizeof wrong / sizeof wrong[0]; j++) {
			if (strcmp(wrong[j].type, rows[i].type) != 0)
				continue;
			known = true;
			for (const char *const *value = wrong[j].values; *value; value++) {
				struct problems p = {0};
				char text[512], lead[256];
				bool top = strcmp(rows[i].scope, "top") == 0;

				if (top)
					snprintf(text, sizeof text, "local math_maxinteger = 9223372036854775807\ngroup = nil\n%s = %s", rows[i].name, *value);
				else if (strcmp(rows[i].scope, "log") == 0)
					snprintf(text, sizeof text, "local math_maxinteger = 9223372036854775807; log = {\n\n%s = %s }", rows[i].name, *value);
				else if (strcmp(rows[i].scope, "tls") == 0)
					snprintf(text, sizeof text, "connect 'tls://h:1' {\nhandler = 'x',\ntls = { %s = %s } }", rows[i].name, *value);
				else
					snprintf(text, sizeof text, "local math_maxinteger = 9223372036854775807; %s 'unix://x' {\n%s\n%s = %s }",
					         rows[i].scope, strcmp(rows[i].name, "handler") == 0 ? "" : "handler = 'x',", rows[i].name, *value);
				snprintf(lead, sizeof lead, "%s:3: '%s'%s%s must be ", path, rows[i].name, top ? "" : " in ", top ? "" : rows[i].scope);
				if (load_with(text, NULL, 0, &p))
					fail_msg("%s %s = %s passed", rows[i].scope, rows[i].name, *value);
				if (strncmp(p.lines[0], lead, strlen(lead)) != 0)
					fail_msg("%s\ngives %s\nnot   %s…", text, p.lines[0], lead);
				assert_int_equal(p.count, 1);
				problems_clear(&p);
				checked++;
			}
		}
		if (!known)
			fail_msg("no wrong values for the type %s", rows[i].type);
	}
	assert_true(checked > 300);
	free(rows);
}

/* The default of every option, written into a file, changes nothing. */
static void defaults_are_valid(void **state)
{
	size_t count;
	struct option_row *rows = config_option_rows(&count);

	(void)state;
	for (size_t i = 0; i < count; i++) {
		char text[512];

		if (strcmp(rows[i].scope, "top") == 0)
			snprintf(text, sizeof text, "%s = %s", rows[i].name, rows[i].fallback);
		else if (strcmp(rows[i].scope, "log") == 0)
			snprintf(text, sizeof text, "log = { %s = %s }", rows[i].name, rows[i].fallback);
		else if (strcmp(rows[i].scope, "tls") == 0)
			snprintf(text, sizeof text, "connect 'tls://h:1' { handler = 'x', tls = { %s = %s } }", rows[i].name, rows[i].fallback);
		else if (strcmp(rows[i].name, "handler") == 0)
			continue;
		else
			snprintf(text, sizeof text, "%s 'unix://x' { handler = 'x', %s = %s }", rows[i].scope, rows[i].name, rows[i].fallback);
		config_free(load(text));
		assert_true(strlen(rows[i].help) > 10);
		assert_int_not_equal(rows[i].help[strlen(rows[i].help) - 1], '.');
	}
	free(rows);
}

/* Whole messages, word by word. */
static void mistakes_are_explained(void **state)
{
	static const char *const cases[][2] = {
		{"\n\nlisten 'tcp://h:1' {\nhandler = 'x',\nidle_timeot = 5 }",
	     "reactord.conf:5: unknown option 'idle_timeot' in listen (did you mean 'idle_timeout'?)"},
		{"listen 'tcp://h:1' { handler = 'x',\n\n\n\nbacklog = 'x' }",
	     "reactord.conf:5: 'backlog' in listen must be a whole number from 1 to 65535, got \"x\""},
		{"usr = 'x'", "reactord.conf:1: unknown option 'usr' (did you mean 'user'?)"},
		{"folder = 'x'", "reactord.conf:1: unknown option 'folder' (a variable of your own begins with local)"},
		{"lgo = {}", "reactord.conf:1: unknown option 'lgo' (did you mean 'log'?)"},
		{"log = 'debug'", "reactord.conf:1: 'log' must be a table such as { level = \"info\" }"},
		{"log = { levl = 1 }", "reactord.conf:1: unknown option 'levl' in log (did you mean 'level'?)"},
		{"log = { 'debug' }", "reactord.conf:1: log takes options by name: name = value"},
		{"log = { level = 'loud' }",
	     "reactord.conf:1: 'level' in log must be one of \"error\", \"warn\", \"info\", \"debug\", got \"loud\""},
		{"processes = 257", "reactord.conf:1: 'processes' must be a whole number from 1 to 256, or \"auto\", got 257"},
		{"processes = 'many'", "reactord.conf:1: 'processes' must be a whole number from 1 to 256, or \"auto\", got \"many\""},
		{"callback_time = -1", "reactord.conf:1: 'callback_time' must be a number of seconds from 0 to 315360000, got -1"},
		{"memory_limit = 5",
	     "reactord.conf:1: 'memory_limit' must be a whole number of bytes from 1048576 to 1099511627776, or a text such as "
	     "\"64 KiB\", \"1 MiB\", \"1 GiB\", got 5"},
		{"group = 'x'", "reactord.conf: 'group' needs 'user' as well"},
		{"listen 'tcp://h:1' {}", "reactord.conf:1: listen \"tcp://h:1\" needs a handler: { handler = \"…\" }"},
		{"connect 'tcp://h:1' {}", "reactord.conf:1: connect \"tcp://h:1\" needs a handler: { handler = \"…\" }"},
		{"connect 'tcp://h:0' { handler = 'x' }",
	     "reactord.conf:1: \"tcp://h:0\": the port to connect to must be a number from 1 to 65535"},
		{"listen 'tcp://8081' { handler = 'x' }",
	     "reactord.conf:1: \"tcp://8081\" has a port but no host: write tcp://127.0.0.1:8081, or tcp://*:8081 for every address"},
		{"connect 'udp://h:1' { handler = 'x' }",
	     "reactord.conf:1: this version cannot connect to \"udp://h:1\": use tcp://, tls:// or unix://"},
		{"listen 'tcp://h:1' { handler = 'x', tsl = {} }", "reactord.conf:1: unknown option 'tsl' in listen (did you mean 'tls'?)"},
		{"listen 'tcp://h:1' { handler = 'x',\ntls = true }",
	     "reactord.conf:2: 'tls' in listen must be a table such as { certificate = \"…\" }"},
		{"log = { tls = {} }", "reactord.conf:1: unknown option 'tls' in log"},
		{"listen 'tls://h:1' { handler = 'x',\ntls = { certifcate = 'x' } }",
	     "reactord.conf:2: unknown option 'certifcate' in tls (did you mean 'certificate'?)"},
		{"listen 'tls://h:1' { handler = 'x', tls = { 'a.pem' } }", "reactord.conf:1: tls takes options by name: name = value"},
		{"listen 'tls://h:1' { handler = 'x', tls = { url = 'x' } }", "reactord.conf:1: unknown option 'url' in tls"},
		{"listen 'tls://h:1' { handler = 'x', tls = { cert = 'a', cert_chain_file = 'b' } }",
	     "reactord.conf:1: 'cert_chain_file' in tls says the same as 'certificate': give one of them"},
		{"listen 'tls://h:1' { handler = 'x', tls = { min_version = 'SSLv3' } }",
	     "reactord.conf:1: 'min_version' in tls must be one of \"default\", \"TLSv1\", \"TLSv1.1\", \"TLSv1.2\", \"TLSv1.3\", got \"SSLv3\""},
		{"listen 'tls://h:1' { handler = 'x', tls = { min_version = 'TLSv1.3', max_version = 'TLSv1.2' } }",
	     "reactord.conf:1: 'min_version' in tls is newer than max_version"},
		{"listen 'tls://h:1' { handler = 'x', tls = { ssl_version = { 'sslv3' } } }",
	     "reactord.conf:1: 'ssl_version' in tls: unknown version \"sslv3\" (there are tlsv1, tlsv1_1, tlsv1_2, tlsv1_3)"},
		{"listen 'tls://h:1' { handler = 'x', tls = { sni = { 'a.pem' } } }",
	     "reactord.conf:1: 'sni' in tls must be a table such as { [\"example.org\"] = { certificate = \"…\" } }"},
		{"listen 'tls://h:1' { handler = 'x', tls = { sni = { ['a.b'] = { private_key = 'k' } } } }",
	     "reactord.conf:1: 'sni' in tls: \"a.b\" needs a certificate"},
		{"listen 'tls://h:1' { handler = 'x', tls = { sni = { ['a.b'] = { certificate = 'c', alpn = {} } } } }",
	     "reactord.conf:1: unknown option 'alpn' in sni"},
		{"listen 'tls://h:1' { handler = 'x', tls = { handshake_timeout = 0 } }",
	     "reactord.conf:1: 'handshake_timeout' in tls must be a number of seconds from 0.001 to 315360000, got 0"},
		{"listen 'udp://h:1' { handler = 'x', tls = {} }", "reactord.conf:1: 'tls' in listen \"udp://h:1\": only a stream socket has it"},
		{"listen 'tcp://h:1' { handler = 'x', mode = '0660' }",
	     "reactord.conf:1: 'mode' in listen \"tcp://h:1\": only a unix:// socket has permissions"},
		{"connect 'unix://x' { handler = 'x', mode = '0660' }", "reactord.conf:1: unknown option 'mode' in connect"},
		{"listen 'tcp://h:1' { handler = 'x', low_water = 10, high_water = 5 }",
	     "reactord.conf:1: 'low_water' in listen (10) must not be above high_water (5)"},
		{"listen 'tcp://h:1' { handler = 'x', high_water = '1g' }",
	     "reactord.conf:1: 'high_water' in listen (1073741824) must not be above max_outbound (67108864)"},
		{"listen 'tcp://h:1' { handler = 'x' }\nlisten 'tcp://H:01' { handler = 'y', reuse_port = true }",
	     "reactord.conf:2: listen \"tcp://h:1\" stands already at reactord.conf:1 (both need reuse_port = true to share the address)"},
		{"listen 'tcp://h:1' { handler = nme }", "reactord.conf:1: unknown name 'nme'"},
		{"listn 'x' {}\nlisten 'tcp://h:1' {\nhandler = 5 }\nusr = 1",
	     "reactord.conf:1: unknown block 'listn' (did you mean 'listen'?)\n"
	     "reactord.conf:3: 'handler' in listen must be a text that is not empty, got 5\n"
	     "reactord.conf:4: unknown option 'usr' (did you mean 'user'?)"},
	};
	char text[512] = "listen 'unix:///", expected[512] = "reactord.conf:1: \"unix:///";

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
		assert_refused(cases[i][0], cases[i][1]);
	memset(text + strlen(text), 'x', 107);
	strcat(text, "' { handler = 'x' }");
	memset(expected + strlen(expected), 'x', 107);
	strcat(expected, "\": the path of a socket has 107 bytes at most");
	assert_refused(text, expected);
	strcpy(text, "connect 'tls://h:1' { handler = 'x', tls = { alpn = { '");
	memset(text + strlen(text), 'x', 256);
	strcat(text, "' } } }");
	assert_refused(text, "reactord.conf:1: 'alpn' in tls: a protocol's name has 255 bytes at most");
}

/* One address may stand twice where that can work. */
static void addresses_may_be_shared(void **state)
{
	struct problems p = {0};

	(void)state;
	config_free(load("for i = 1, 2 do listen 'tcp://h:1' { handler = 'x', reuse_port = true } end"));
	config_free(load("for i = 1, 2 do listen 'tcp://h:0' { handler = 'x' } end"));
	config_free(load("listen 'tcp://h:1' { handler = 'x' } listen 'tcp://h:2' { handler = 'x' } listen 'tcp://[::]:1' { handler = 'x' }"));
	assert_null(load_with("for i = 1, 2 do listen 'unix://x' { handler = 'x', reuse_port = true } end", NULL, 0, &p));
	assert_int_equal(p.count, 1);
	assert_non_null(strstr(p.lines[0], "/x\" stands already at "));
	problems_clear(&p);
}

/* Command line before environment before file. */
static void overrides_go_first(void **state)
{
	const struct override given[] = {{"log_level", "error", "--log-level"}, {"unsafe", "yes", "--set unsafe"}};
	struct problems p = {0};
	struct override *all;
	struct config *config;
	size_t total;

	(void)state;
	setenv("REACTORD_LOG_LEVEL", "debug", 1);
	setenv("REACTORD_LOG_FORMAT", "json", 1);
	setenv("REACTORD_USER", "nobody", 1);
	setenv("REACTORD_MEMORY_LIMIT", "2 MiB", 1);
	setenv("REACTORD_DRAIN_TIMEOUT", "1.5", 1);
	setenv("REACTORD_CONFIG", "/x", 1);
	setenv("REACTORD_HANDLERS", "/x", 1);
	setenv("REACTORD_NONSENSE", "/x", 1);
	all = config_overrides(given, 2, &total);
	assert_int_equal(total, 7);
	config = load_with("log = { level = 'warn', format = 'text', file = 'f' } user = 'root'", all, total, &p);
	if (!config) {
		fail_msg("%s", p.lines[0]);
		return;
	}
	assert_int_equal(config->log_level, LEVEL_ERROR);
	assert_int_equal(config->log_format, FORMAT_JSON);
	assert_string_equal(config->user, "nobody");
	assert_int_equal(config->memory_limit, 2 << 20);
	assert_int_equal(config->drain_timeout_ns, 1500000000);
	assert_true(config->unsafe);
	config_free(config);
	config = config_defaults(all, total, &p);
	assert_string_equal(config->user, "nobody");
	assert_null(config->file);
	config_free(config);
	free(all);
	unsetenv("REACTORD_LOG_FORMAT");
	unsetenv("REACTORD_USER");
	unsetenv("REACTORD_DRAIN_TIMEOUT");

	setenv("REACTORD_LOG_LEVEL", "loud", 1);
	setenv("REACTORD_MEMORY_LIMIT", "much", 1);
	all = config_overrides(&(struct override){"log_levl", "x", "--set log_levl"}, 1, &total);
	assert_null(config_defaults(all, total, &p));
	assert_int_equal(p.count, 3);
	assert_non_null(strstr(p.lines[0], "REACTORD_MEMORY_LIMIT: 'memory_limit' must be a whole number of bytes"));
	assert_string_equal(p.lines[1],
	                    "REACTORD_LOG_LEVEL: 'log_level' must be one of \"error\", \"warn\", \"info\", \"debug\", got \"loud\"");
	assert_string_equal(p.lines[2], "--set log_levl: unknown option 'log_levl' (did you mean 'log_level'?)");
	unsetenv("REACTORD_LOG_LEVEL");
	unsetenv("REACTORD_MEMORY_LIMIT");
	problems_clear(&p);
	free(all);
}

/* A string field of a table. */
static void add_text(struct value *table, const char *key, const char *text)
{
	struct value k;

	value_string(&k, key, strlen(key));
	value_string(&value_add(table, k)->value, text, strlen(text));
}

/* The same options from a script: no handler needed, no places, all mistakes in one text. */
static void scripts_use_the_same_schema(void **state)
{
	struct value table = {.kind = VALUE_TABLE}, text;
	struct listen_conf l;
	struct connect_conf c;
	struct flow flow;
	char *why = NULL;

	(void)state;
	assert_true(config_listen(&l, "tcp://127.0.0.1:0", NULL, &why));
	assert_null(l.file);
	assert_null(l.handler);
	flow_defaults(&flow);
	assert_memory_equal(&flow, &l.flow, sizeof flow);
	listen_conf_clear(&l);

	add_text(&table, "url", "ignored");
	add_text(&table, "mode", "0600");
	assert_true(config_listen(&l, "unix://x", &table, &why));
	assert_int_equal(l.mode, 0600);
	assert_string_equal(l.url.path, "x");
	listen_conf_clear(&l);

	add_text(&table, "backlg", "5");
	add_text(&table, "nodelay", "5");
	assert_false(config_listen(&l, "unix://x", &table, &why));
	assert_string_equal(
		why, "unknown option 'backlg' in listen (did you mean 'backlog'?); 'nodelay' in listen must be true or false, got \"5\"");
	assert_null(l.url_text);
	free(why);
	assert_false(config_connect(&c, "nonsense", &(struct value){.kind = VALUE_NIL}, &why));
	assert_string_equal(why, "\"nonsense\" is no URL: write tcp://HOST:PORT or unix:///PATH");
	free(why);
	value_string(&text, "x", 1);
	assert_false(config_connect(&c, "tcp://h:1", &text, &why));
	assert_string_equal(why, "the options must be a table");
	free(why);
	value_clear(&text);
	value_clear(&table);
}

/* The dump is JSON with every option of the schema. */
static void the_dump_is_complete(void **state)
{
	struct config *config =
		load("drain_timeout = 0.1 log = { level = 'warn' }\n"
	         "listen 'unix:///x' { handler = 'e', mode = '0600', args = { 1, 'a\\xff', { x = {} } }, keepalive = 5 }\n"
	         "connect 'tcp://h:1' { handler = 'e' }\n"
	         "connect 'tls://h:1' { handler = 'e', tls = { cert = 'c.pem', verify_peer = false, verify_hostname = false,\n"
	         "  alpn = { 'a', 'b' }, ssl_version = { 'tlsv1_2' }, sni = { ['a.b'] = { cert = 'd.pem' } } } }\n");
	size_t count, size;
	struct option_row *rows = config_option_rows(&count);
	char *text;
	FILE *memory = open_memstream(&text, &size);
	json_error_t error;
	json_t *json, *l, *c, *t;
	char expected[256];

	(void)state;
	config_dump_json(config, memory);
	fclose(memory);
	json = json_loads(text, JSON_REJECT_DUPLICATES, &error);
	if (!json)
		fail_msg("%s\n%s", error.text, text);
	l = json_array_get(json_object_get(json, "listen"), 0);
	c = json_array_get(json_object_get(json, "connect"), 0);
	t = json_object_get(json_array_get(json_object_get(json, "connect"), 1), "tls");
	for (size_t i = 0; i < count; i++) {
		json_t *scope = strcmp(rows[i].scope, "top") == 0      ? json
		                : strcmp(rows[i].scope, "log") == 0    ? json_object_get(json, "log")
		                : strcmp(rows[i].scope, "listen") == 0 ? l
		                : strcmp(rows[i].scope, "tls") == 0    ? t
		                                                       : c;

		if (!json_object_get(scope, rows[i].name))
			fail_msg("%s %s is missing", rows[i].scope, rows[i].name);
	}
	assert_true(json_is_integer(json_object_get(json, "memory_limit")));
	assert_int_equal(json_integer_value(json_object_get(json, "reload_timeout")), 3600);
	assert_non_null(strstr(text, "\"drain_timeout\": 0.1,"));
	assert_string_equal(json_string_value(json_object_get(json_object_get(json, "log"), "level")), "warn");
	assert_string_equal(json_string_value(json_object_get(l, "url")), "unix:///x");
	assert_string_equal(json_string_value(json_object_get(l, "mode")), "0600");
	assert_int_equal(json_integer_value(json_object_get(l, "keepalive")), 5);
	assert_int_equal(json_integer_value(json_object_get(l, "line")), 2);
	assert_string_equal(json_string_value(json_array_get(json_object_get(l, "args"), 1)), "a\xef\xbf\xbd");
	assert_true(json_is_null(json_object_get(c, "reconnect")));
	assert_true(json_is_null(json_object_get(c, "tls")));
	snprintf(expected, sizeof expected, "%s/c.pem", folder);
	assert_string_equal(json_string_value(json_object_get(t, "certificate")), expected);
	assert_true(json_is_null(json_object_get(t, "private_key")));
	assert_true(json_is_false(json_object_get(t, "verify_peer")));
	assert_true(json_is_false(json_object_get(t, "verify_hostname")));
	assert_int_equal(json_array_size(json_object_get(t, "alpn")), 2);
	assert_string_equal(json_string_value(json_object_get(t, "min_version")), "TLSv1.2"); /* what it comes to */
	assert_int_equal(json_integer_value(json_object_get(t, "handshake_timeout")), 10);
	assert_string_equal(json_string_value(json_object_get(json_object_get(json_object_get(t, "sni"), "a.b"), "cert")), "d.pem");
	json_decref(json);
	free(text);
	free(rows);
	config_free(config);
}

/* A reload cannot change who we are. */
static void some_options_stay_until_a_restart(void **state)
{
	struct config *now = load("user = 'a' generations = 2");
	struct config *next = load("user = 'b' pid_file = '/x' generations = 3 log = { level = 'debug' }");
	struct problems p = {0};
	char expected[256];

	(void)state;
	config_check_reload(now, now, &p);
	assert_int_equal(p.count, 0);
	config_check_reload(now, next, &p);
	assert_int_equal(p.count, 2);
	snprintf(expected, sizeof expected, "%s: 'user' cannot change in a reload: restart the daemon", path);
	assert_string_equal(p.lines[0], expected);
	problems_clear(&p);
	config_free(now);
	config_free(next);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_are_filled_in),
		cmocka_unit_test(options_are_taken),
		cmocka_unit_test(defaults_of_tls_are_filled_in),
		cmocka_unit_test(options_of_tls_are_taken),
		cmocka_unit_test(wrong_values_are_refused),
		cmocka_unit_test(defaults_are_valid),
		cmocka_unit_test(mistakes_are_explained),
		cmocka_unit_test(addresses_may_be_shared),
		cmocka_unit_test(overrides_go_first),
		cmocka_unit_test(scripts_use_the_same_schema),
		cmocka_unit_test(the_dump_is_complete),
		cmocka_unit_test(some_options_stay_until_a_restart),
	};

	return cmocka_run_group_tests_name("config", tests, set_up, tear_down);
}
