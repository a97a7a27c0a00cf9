/*
 * The table of all options, for the family of config alone.
 */
#ifndef REACTORD_CONFIG_SCOPES_H
#define REACTORD_CONFIG_SCOPES_H

#include "config.h"
#include "option.h"
#include "problems.h"

/* Where a message belongs. */
struct place {
	struct problems *problems;
	const char *file; /* NULL: a script's options */
	int line;
};

/* Where options stand; the struct that has their members is named behind it. */
struct scope {
	const char *name;
	const struct option_def *options;
	size_t count;
};

extern const struct scope scope_top;      /* struct config */
extern const struct scope scope_log;      /* struct config */
extern const struct scope scope_listen;   /* struct listen_conf */
extern const struct scope scope_connect;  /* struct connect_conf */
extern const struct scope scope_tls;      /* struct tls_conf */
extern const struct scope scope_identity; /* struct tls_sni_conf */

/* Is it listen or connect, which may have a tls table? Its row of the table; it has no member. */
#define SCOPE_HAS_TLS(scope) ((scope) == &scope_listen || (scope) == &scope_connect)
extern const struct option_def option_tls;

const struct option_def *scope_find(const struct scope *scope, const char *name);
void scope_set_defaults(const struct scope *scope, void *base);
void scope_clear(const struct scope *scope, void *base);

/* Sets the options that a table has, reporting what is wrong; lines: of each field, or NULL. */
void config_set_options(const struct place *at, const struct scope *scope, void *base, const struct value *table, const int *lines);

/* Makes a tls_conf of a table (NULL: none), reporting what is wrong. */
void config_take_tls(const struct place *at, struct tls_conf *tls, const struct value *table);

#endif
