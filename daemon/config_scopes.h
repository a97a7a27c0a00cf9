/*
 * The table of all options, for the family of config alone.
 */
#ifndef REACTORD_CONFIG_SCOPES_H
#define REACTORD_CONFIG_SCOPES_H

#include "option.h"

/* Where options stand; the struct that has their members is named behind it. */
struct scope {
	const char *name;
	const struct option_def *options;
	size_t count;
};

extern const struct scope scope_top;     /* struct config */
extern const struct scope scope_log;     /* struct config */
extern const struct scope scope_listen;  /* struct listen_conf */
extern const struct scope scope_connect; /* struct connect_conf */

const struct option_def *scope_find(const struct scope *scope, const char *name);
void scope_set_defaults(const struct scope *scope, void *base);
void scope_clear(const struct scope *scope, void *base);

#endif
