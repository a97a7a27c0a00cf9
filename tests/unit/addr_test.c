/*
 * Addresses and URLs: what is one, what is none and why, and the one spelling of each.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "addr.h"

/* What is a URL, and its one spelling. */
static void urls_have_one_spelling(void **state)
{
	static const char *const good[][2] = {
		{"tcp://127.0.0.1:8081", "tcp://127.0.0.1:8081"},
		{"TCP://LocalHost:08081", "tcp://localhost:8081"},
		{"tcp://*:80", "tcp://0.0.0.0:80"},
		{"tcp://127.0.0.1:0", "tcp://127.0.0.1:0"},
		{"tcp://h:65535", "tcp://h:65535"},
		{"tls://[::]:8443", "tls://[::]:8443"},
		{"tcp://[0:0::1]:1", "tcp://[::1]:1"},
		{"tcp://[2001:DB8::A]:1", "tcp://[2001:db8::a]:1"},
		{"tcp://[::ffff:1.2.3.4]:1", "tcp://[::ffff:1.2.3.4]:1"},
		{"tcp://[fe80::1%eth0]:1", "tcp://[fe80::1%eth0]:1"},
		{"udp://0.0.0.0:53", "udp://0.0.0.0:53"},
		{"tcp://my_host.example.org.:1", "tcp://my_host.example.org.:1"},
		{"tcp://3com.com:1", "tcp://3com.com:1"},
		{"tcp://a-b.c:1", "tcp://a-b.c:1"},
		{"unix:///run/x.sock", "unix:///run/x.sock"},
		{"unix://x.sock", "unix://x.sock"},
		{"unix://@name", "unix://@name"},
		{"fd://3", "fd://3"},
		{"fd://web", "fd://web"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		struct url u, again;
		char *why = NULL, *text;

		if (!url_parse(&u, good[i][0], &why))
			fail_msg("%s: %s", good[i][0], why);
		text = url_format(&u);
		assert_string_equal(text, good[i][1]);
		assert_true(url_parse(&again, text, &why));
		assert_true(url_equal(&u, &again));
		free(text);
		url_clear(&u);
		url_clear(&again);
	}
}

/* What is none, and a part of what is said about it. */
static void bad_urls_are_explained(void **state)
{
	static const char *const bad[][2] = {
		{"", "is no URL: write tcp://HOST:PORT"},
		{"127.0.0.1:80", "is no URL"},
		{"tcp:/x", "is no URL"},
		{"http://x:80", "there is no scheme 'http'"},
		{"://x:80", "there is no scheme ''"},
		{"tcp://8081", "has a port but no host: write tcp://127.0.0.1:8081, or tcp://*:8081 for every address"},
		{"tcp://", "has no host and no port"},
		{"tcp://:80", "has no host: write tcp://*:80"},
		{"tcp://127.0.0.1", "has no port: write tcp://127.0.0.1:PORT"},
		{"tcp://localhost", "has no port: write tcp://localhost:PORT"},
		{"tcp://[::1]", "has no port: write tcp://[::1]:PORT"},
		{"tcp://127.0.0.1:", "the port must be a number from 0 to 65535"},
		{"tcp://h:65536", "the port must be"},
		{"tcp://h:99999999999999999999", "the port must be"},
		{"tcp://h:-1", "the port must be"},
		{"tcp://h:+1", "the port must be"},
		{"tcp://h: 1", "the port must be"},
		{"tcp://h:1x", "the port must be"},
		{"tcp://h:80/", "nothing may follow the port"},
		{"tcp://[::1]:80/", "the port must be"},
		{"tcp://[::1]80", "the port must be"},
		{"tcp://[::1:80", "the ']' is missing"},
		{"tcp://::1:80", "stands in brackets"},
		{"tcp://[]:80", "[] is no IPv6 address"},
		{"tcp://[127.0.0.1]:80", "is no IPv6 address"},
		{"tcp://[:::]:80", "is no IPv6 address"},
		{"tcp://[fe80::1%]:80", "is no IPv6 address"},
		{"tcp://[fe80::1%a/b]:80", "is no IPv6 address"},
		{"tcp://1.2.3:80", "'1.2.3' is no IPv4 address"},
		{"tcp://256.1.1.1:80", "is no IPv4 address"},
		{"tcp://0x7f000001:80", "is no IPv4 address"},
		{"tcp://127.0.0.1.:80", "is no IPv4 address"},
		{"tcp://127.1:80", "is no IPv4 address"},
		{"tcp://1.2.3.4.5:80", "is no IPv4 address"},
		{"tcp://-a:80", "is no host name"},
		{"tcp://a-:80", "is no host name"},
		{"tcp://a..b:80", "is no host name"},
		{"tcp://a b:80", "is no host name"},
		{"tcp://user@host:80", "is no host name"},
		{"tcp://\xff:80", "is no host name"},
		{"unix://", "has no path"},
		{"unix://@", "has no path"},
		{"unix:///run/", "names a folder"},
		{"unix:///a\nb", "may not stand in a path"},
		{"fd://", "has no name"},
		{"fd://a:b", "may not stand in a name"},
	};

	(void)state;
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		struct url u;
		char *why = NULL;

		if (url_parse(&u, bad[i][0], &why))
			fail_msg("%s passed", bad[i][0]);
		if (!strstr(why, bad[i][1]))
			fail_msg("%s: %s", bad[i][0], why);
		assert_non_null(strstr(why, bad[i][0]));
		assert_null(u.host);
		assert_null(u.path);
		free(why);
	}
}

/* A host name may be as long as DNS allows, and no longer. */
static void host_names_have_a_length(void **state)
{
	char text[400] = "tcp://", *why = NULL;
	struct url u;

	(void)state;
	memset(text + 6, 'a', 63);
	strcpy(text + 69, ":1");
	assert_true(url_parse(&u, text, &why));
	url_clear(&u);
	memset(text + 6, 'a', 64);
	strcpy(text + 70, ":1");
	assert_false(url_parse(&u, text, &why));
	free(why);
	for (int i = 0; i < 254; i++)
		text[6 + i] = i % 2 ? '.' : 'a';
	strcpy(text + 6 + 253, ":1");
	assert_true(url_parse(&u, text, &why));
	url_clear(&u);
	strcpy(text + 6 + 253, ".aa:1");
	assert_false(url_parse(&u, text, &why));
	free(why);
}

/* Numeric hosts become addresses and come back; names do not. */
static void numeric_hosts_become_addresses(void **state)
{
	static const char *const good[][3] = {
		{"127.0.0.1", "127.0.0.1", "127.0.0.1:80"},
		{"", "0.0.0.0", "0.0.0.0:80"},
		{"*", "0.0.0.0", "0.0.0.0:80"},
		{"::1", "::1", "[::1]:80"},
		{"::ffff:1.2.3.4", "1.2.3.4", "1.2.3.4:80"},
		{"fe80::1%lo", "fe80::1%lo", "[fe80::1%lo]:80"},
		{"::", "::", "[::]:80"},
		{"fe80::1%1", "fe80::1%lo", "[fe80::1%lo]:80"},
	};
	static const char *const bad[] = {"localhost", "1.2.3", "127.0.0.01x", "[::1]", "::1%nosuchinterface", "fe80::1%", "1.2.3.4 "};
	char text[ADDR_TEXT_SIZE];
	struct addr a;

	(void)state;
	for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
		assert_true(addr_from_numeric(&a, good[i][0], 80));
		assert_string_equal(addr_host(&a, text), good[i][1]);
		assert_string_equal(addr_format(&a, text), good[i][2]);
		assert_int_equal(addr_port(&a), 80);
		addr_set_port(&a, 65535);
		assert_int_equal(addr_port(&a), 65535);
	}
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
		assert_false(addr_from_numeric(&a, bad[i], 80));
		assert_int_equal(a.length, 0);
	}
	assert_string_equal(addr_format(&a, text), "");
}

/* Paths fill sun_path to its last byte but one, abstract names to the last. */
static void paths_become_addresses(void **state)
{
	char path[120], text[ADDR_TEXT_SIZE];
	struct addr a;

	(void)state;
	assert_true(addr_from_path(&a, "/run/x.sock"));
	assert_string_equal(addr_format(&a, text), "/run/x.sock");
	assert_int_equal(addr_port(&a), 0);
	assert_true(addr_from_path(&a, "@name"));
	assert_int_equal(a.un.sun_path[0], 0);
	assert_int_equal(a.length, offsetof(struct sockaddr_un, sun_path) + 5);
	assert_string_equal(addr_host(&a, text), "@name");

	memset(path, 'x', sizeof path);
	path[107] = '\0';
	assert_true(addr_from_path(&a, path));
	assert_string_equal(addr_format(&a, text), path);
	path[107] = 'x';
	path[108] = '\0';
	assert_false(addr_from_path(&a, path));
	assert_int_equal(errno, ENAMETOOLONG);
	path[0] = '@';
	assert_true(addr_from_path(&a, path));
	assert_string_equal(addr_format(&a, text), path);
	path[108] = 'x';
	path[109] = '\0';
	assert_false(addr_from_path(&a, path));
	assert_false(addr_from_path(&a, ""));
	assert_int_equal(errno, EINVAL);
	assert_false(addr_from_path(&a, "@"));

	a = (struct addr){.length = sizeof(sa_family_t)}; /* an unnamed peer */
	a.un.sun_family = AF_UNIX;
	assert_string_equal(addr_format(&a, text), "");
}

/* The same host by whatever port and family; Unix peers have none. */
static void hosts_are_compared_without_ports(void **state)
{
	struct addr a, b;

	(void)state;
	assert_true(addr_from_numeric(&a, "1.2.3.4", 1) && addr_from_numeric(&b, "1.2.3.4", 2));
	assert_true(addr_same_host(&a, &b));
	assert_true(addr_from_numeric(&b, "::ffff:1.2.3.4", 2));
	assert_true(addr_same_host(&a, &b) && addr_same_host(&b, &a));
	assert_true(addr_from_numeric(&a, "::1", 1));
	assert_false(addr_same_host(&a, &b));
	assert_true(addr_from_numeric(&b, "::1", 2));
	assert_true(addr_same_host(&a, &b));
	assert_true(addr_from_path(&a, "/x") && addr_from_path(&b, "/x"));
	assert_false(addr_same_host(&a, &b));
}

/* Networks, and who belongs to them. */
static void networks_have_their_addresses(void **state)
{
	static const struct {
		const char *network, *address;
		bool has;
	} cases[] = {
		{"127.0.0.0/8", "127.255.0.1", true},
		{"127.0.0.0/8", "128.0.0.1", false},
		{"127.0.0.0/8", "::ffff:127.0.0.1", true},
		{"127.0.0.0/8", "::1", false},
		{"192.0.2.1", "192.0.2.1", true},
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.129/25", "192.0.2.128", true},
		{"192.0.2.129/25", "192.0.2.127", false},
		{"0.0.0.0/0", "203.0.113.5", true},
		{"0.0.0.0/0", "::1", false},
		{"::/0", "::1", true},
		{"::/0", "127.0.0.1", false},
		{"2001:db8::/33", "2001:db8:7fff::1", true},
		{"2001:db8::/33", "2001:db8:8000::1", false},
		{"::1", "::1", true},
		{"::1", "::2", false},
		{"unix", "/run/x.sock", true},
		{"unix", "@x", true},
		{"unix", "127.0.0.1", false},
		{"0.0.0.0/0", "/run/x.sock", false},
	};
	static const char *const wrong[] = {
		"",     "/", "/8",        "10.0.0.0/",  "10.0.0.0/33", "::/129",       "10.0.0.0/-1",    "10.0.0.0/8x",
		"10/8", "*", "localhost", "fe80::1%lo", "Unix",        "10.0.0.0/8/8", "10.0.0.0/00008", "1.2.3.4.5"};
	struct network n;

	(void)state;
	for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
		struct addr a;

		assert_true(network_parse(&n, cases[i].network));
		assert_true(addr_from_numeric(&a, cases[i].address, 5) || addr_from_path(&a, cases[i].address));
		if (network_has(&n, &a) != cases[i].has)
			fail_msg("%s, %s", cases[i].network, cases[i].address);
		assert_false(network_has(&n, &(struct addr){0}));
	}
	for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
		if (network_parse(&n, wrong[i]))
			fail_msg("%s", wrong[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(networks_have_their_addresses),    cmocka_unit_test(urls_have_one_spelling),
		cmocka_unit_test(bad_urls_are_explained),           cmocka_unit_test(host_names_have_a_length),
		cmocka_unit_test(numeric_hosts_become_addresses),   cmocka_unit_test(paths_become_addresses),
		cmocka_unit_test(hosts_are_compared_without_ports),
	};

	return cmocka_run_group_tests_name("addr", tests, NULL, NULL);
}
