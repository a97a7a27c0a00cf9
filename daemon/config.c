/*
 * The configuration: what was read is checked against the table of options (config_schema.c) and against itself. Nothing stops at the
 * first mistake: every one is reported with its place.
 */
#include "config.h"

#include <ctype.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "config_scopes.h"
#include "confread.h"
#include "mem.h"

static const char *const block_names[] = {"listen", "connect", NULL};

/* --- options --------------------------------------------------------------------------------------------------------- */

/* Reports a name that no option has. */
static void report_unknown(const struct place *at, const struct scope *scope, const char *name)
{
	struct suggestion s = {.wanted = name};
	char near[SUGGESTION_SIZE];

	for (size_t i = 0; i < scope->count; i++)
		suggestion_consider(&s, scope->options[i].name);
	if (SCOPE_HAS_TLS(scope))
		suggestion_consider(&s, option_tls.name);
	if (scope != &scope_top) {
		problems_add_at(at->problems, at->file, at->line, "unknown option '%s' in %s%s", name, scope->name, suggestion_text(&s, near));
		return;
	}
	suggestion_consider(&s, scope_log.name);
	problems_add_at(at->problems, at->file, at->line, "unknown option '%s'%s", name,
	                s.best ? suggestion_text(&s, near) : " (a variable of your own begins with local)");
}

/* Sets one option, or reports why not. */
static void set_option(const struct place *at, const struct scope *scope, const struct option_def *o, void *base, const struct value *v)
{
	char *why;

	if (option_set(o, base, v, at->file, &why))
		return;
	problems_add_at(at->problems, at->file, at->line, "'%s'%s%s %s", o->name, scope == &scope_top ? "" : " in ",
	                scope == &scope_top ? "" : scope->name, why);
	free(why);
}

/* Takes the tls table of a block. */
static void take_tls(const struct place *at, const struct scope *scope, void *base, const struct value *v)
{
	struct tls_conf **tls = scope == &scope_listen ? &((struct listen_conf *)base)->tls : &((struct connect_conf *)base)->tls;

	if (v->kind == VALUE_NIL)
		return;
	if (v->kind != VALUE_TABLE) {
		problems_add_at(at->problems, at->file, at->line, "'tls' in %s must be a table such as { certificate = \"…\" }", scope->name);
		return;
	}
	*tls = mem_zalloc(sizeof **tls);
	config_take_tls(at, *tls, v);
}

/* Gives a tls:// block the options that it did not name. */
static void complete_tls(const struct place *at, const struct url *url, struct tls_conf **tls)
{
	if (url->scheme != SCHEME_TLS || *tls)
		return;
	*tls = mem_zalloc(sizeof **tls);
	config_take_tls(at, *tls, NULL);
}

/* Frees a block's tls_conf. */
static void free_tls(struct tls_conf *tls)
{
	if (tls)
		tls_conf_clear(tls);
	free(tls);
}

/* Sets the options that a table has; lines: of each field, or NULL. */
void config_set_options(const struct place *at, const struct scope *scope, void *base, const struct value *table, const int *lines)
{
	for (size_t i = 0; i < table->table.count; i++) {
		const struct field *f = &table->table.fields[i];
		struct place here = {at->problems, at->file, lines ? lines[i] : at->line};
		const struct option_def *o;

		if (f->key.kind != VALUE_STRING) {
			problems_add_at(here.problems, here.file, here.line, "%s takes options by name: name = value", scope->name);
			continue;
		}
		if (!at->file && strcmp(f->key.string.bytes, "url") == 0)
			continue;
		if (SCOPE_HAS_TLS(scope) && strcmp(f->key.string.bytes, option_tls.name) == 0) {
			take_tls(&here, scope, base, &f->value);
			continue;
		}
		o = scope_find(scope, f->key.string.bytes);
		if (!o)
			report_unknown(&here, scope, f->key.string.bytes);
		else if (f->value.kind != VALUE_NIL)
			set_option(&here, scope, o, base, &f->value);
	}
}

/* Whether a table has an option, be it of the wrong kind. */
static bool given(const struct value *table, const char *name)
{
	return table && value_get(table, name);
}

/* Brings the marks of the output queue in order. Defaults give way to what is set; what is set must fit together. */
static void check_flow(const struct place *at, const char *block, struct flow *flow, const struct value *table)
{
	if (!given(table, "high_water") && flow->high_water > flow->max_outbound)
		flow->high_water = flow->max_outbound;
	if (!given(table, "low_water") && flow->low_water > flow->high_water)
		flow->low_water = flow->high_water;
	if (flow->low_water > flow->high_water)
		problems_add_at(at->problems, at->file, at->line, "'low_water' in %s (%zu) must not be above high_water (%zu)", block,
		                flow->low_water, flow->high_water);
	if (flow->high_water > flow->max_outbound)
		problems_add_at(at->problems, at->file, at->line, "'high_water' in %s (%zu) must not be above max_outbound (%zu)", block,
		                flow->high_water, flow->max_outbound);
}

/* Takes a block's URL. False if it is wrong, which is reported. */
static bool set_url(const struct place *at, const char *block, struct url *url, char **url_text, const char *text)
{
	struct addr a;
	char *why;

	if (!url_parse(url, text, &why)) {
		problems_add_at(at->problems, at->file, at->line, "%s", why);
		free(why);
		return false;
	}
	if (url->scheme == SCHEME_UNIX && at->file && url->path[0] != '@') {
		char *path = confread_resolve(at->file, url->path);

		free(url->path);
		url->path = path;
	}
	*url_text = url_format(url);
	bool listens = strcmp(block, "listen") == 0,
		 stream = url->scheme == SCHEME_TCP || url->scheme == SCHEME_TLS || url->scheme == SCHEME_UNIX;
	if (!stream && !listens)
		problems_add_at(at->problems, at->file, at->line, "this version cannot connect to \"%s\": use tcp://, tls:// or unix://", text);
	if (url->scheme == SCHEME_UNIX && at->file && !addr_from_path(&a, url->path))
		problems_add_at(at->problems, at->file, at->line, "\"%s\": the path of a socket has %zu bytes at most", *url_text,
		                sizeof a.un.sun_path - 1);
	return true;
}

/* Reports a block of a file that names no handler. */
static void check_handler(const struct place *at, const char *block, const char *url, const struct value *table)
{
	if (at->file && !given(table, "handler"))
		problems_add_at(at->problems, at->file, at->line, "%s \"%s\" needs a handler: { handler = \"…\" }", block, url);
}

/* Reports options that a socket would have needed when it was opened, which others have done. */
static void check_given(const struct place *at, const char *url, const struct value *table)
{
	static const char *const late[] = {"backlog", "reuse_port", "mode"};

	for (size_t i = 0; i < sizeof late / sizeof late[0]; i++)
		if (given(table, late[i]))
			problems_add_at(at->problems, at->file, at->line,
			                "'%s' in listen \"%s\": the socket is open already, this belongs where it was made", late[i], url);
}

/* Reports options that make no sense for datagrams. */
static void check_datagrams(const struct place *at, const char *url, const struct value *table)
{
	static const char *const senseless[] = {
		"backlog", "max_connections", "max_connections_per_address", "first_byte_timeout", "nodelay", "keepalive", "tls", "proxy_protocol"};

	for (size_t i = 0; i < sizeof senseless / sizeof senseless[0]; i++)
		if (given(table, senseless[i]))
			problems_add_at(at->problems, at->file, at->line, "'%s' in listen \"%s\": only a stream socket has it", senseless[i], url);
}

/* Makes a listen_conf of a URL and its options. */
static void make_listen(const struct place *at, struct listen_conf *l, const char *url, const struct value *table, const int *lines)
{
	*l = (struct listen_conf){.line = at->line};
	scope_set_defaults(&scope_listen, l);
	l->file = at->file ? mem_strdup(at->file) : NULL;
	set_url(at, "listen", &l->url, &l->url_text, url);
	if (table)
		config_set_options(at, &scope_listen, l, table, lines);
	complete_tls(at, &l->url, &l->tls);
	check_handler(at, "listen", url, table);
	check_flow(at, "listen", &l->flow, table);
	if (l->url_text && l->url.scheme == SCHEME_UDP)
		check_datagrams(at, url, table);
	if (l->url_text && l->url.scheme == SCHEME_FD)
		check_given(at, url, table);
	else if (l->url_text && l->url.scheme != SCHEME_UNIX && l->mode >= 0)
		problems_add_at(at->problems, at->file, at->line, "'mode' in listen \"%s\": only a unix:// socket has permissions", url);
}

/* Makes a connect_conf of a URL and its options. */
static void make_connect(const struct place *at, struct connect_conf *c, const char *url, const struct value *table, const int *lines)
{
	*c = (struct connect_conf){.line = at->line};
	scope_set_defaults(&scope_connect, c);
	c->file = at->file ? mem_strdup(at->file) : NULL;
	if (set_url(at, "connect", &c->url, &c->url_text, url) && c->url.scheme != SCHEME_UNIX && c->url.port == 0)
		problems_add_at(at->problems, at->file, at->line, "\"%s\": the port to connect to must be a number from 1 to 65535", url);
	if (table)
		config_set_options(at, &scope_connect, c, table, lines);
	complete_tls(at, &c->url, &c->tls);
	check_handler(at, "connect", url, table);
	check_flow(at, "connect", &c->flow, table);
}

/* Frees what is in a listen_conf. */
void listen_conf_clear(struct listen_conf *l)
{
	scope_clear(&scope_listen, l);
	free_tls(l->tls);
	url_clear(&l->url);
	free(l->url_text);
	free(l->file);
	*l = (struct listen_conf){0};
}

/* Frees what is in a connect_conf. */
void connect_conf_clear(struct connect_conf *c)
{
	scope_clear(&scope_connect, c);
	free_tls(c->tls);
	url_clear(&c->url);
	free(c->url_text);
	free(c->file);
	*c = (struct connect_conf){0};
}

/* How bytes flow where nobody said anything. */
void flow_defaults(struct flow *flow)
{
	struct listen_conf l = {0};

	scope_set_defaults(&scope_listen, &l);
	*flow = l.flow;
	listen_conf_clear(&l);
}

/* Ends the making of a conf for a script: true without problems, else their text in *why. */
static bool conclude(struct problems *problems, char **why)
{
	bool ok = problems->count == 0;

	if (!ok)
		*why = problems_join(problems);
	problems_clear(problems);
	return ok;
}

/* The table that a script gave, NULL for none; another kind of value is a problem. */
static const struct value *script_table(struct problems *problems, const struct value *options)
{
	if (!options || options->kind == VALUE_NIL)
		return NULL;
	if (options->kind == VALUE_TABLE)
		return options;
	problems_add(problems, "the options must be a table");
	return NULL;
}

/* The options of em.listen. */
bool config_listen(struct listen_conf *out, const char *url, const struct value *options, char **why)
{
	struct problems problems = {0};
	struct place at = {.problems = &problems};

	make_listen(&at, out, url, script_table(&problems, options), NULL);
	if (conclude(&problems, why))
		return true;
	listen_conf_clear(out);
	return false;
}

/* The options of em.connect. */
bool config_connect(struct connect_conf *out, const char *url, const struct value *options, char **why)
{
	struct problems problems = {0};
	struct place at = {.problems = &problems};

	make_connect(&at, out, url, script_table(&problems, options), NULL);
	if (conclude(&problems, why))
		return true;
	connect_conf_clear(out);
	return false;
}

/* --- overrides ------------------------------------------------------------------------------------------------------- */

/* Finds the option that an override names; NULL if there is none that takes a text. */
static const struct option_def *find_override(const char *name)
{
	const struct option_def *o = strncmp(name, "log_", 4) == 0 ? scope_find(&scope_log, name + 4) : scope_find(&scope_top, name);

	return o && o->type != OPTION_FOLDERS && o->type != OPTION_ADDRESSES ? o : NULL;
}

/* How the options of log are called where there is no table around them. */
static const char *const log_overrides[] = {"log_level", "log_format", "log_file", "log_repeats"};

/* Applies the overrides in order. */
static void apply_overrides(struct config *config, const struct override *overrides, size_t count, struct problems *problems)
{
	for (size_t i = 0; i < count; i++) {
		const struct override *override = &overrides[i];
		const struct option_def *o = find_override(override->name);
		char near[SUGGESTION_SIZE], *why;

		if (!o) {
			struct suggestion s = {.wanted = override->name};

			for (size_t j = 0; j < scope_top.count; j++)
				suggestion_consider(&s, scope_top.options[j].name);
			for (size_t j = 0; j < sizeof log_overrides / sizeof log_overrides[0]; j++)
				suggestion_consider(&s, log_overrides[j]);
			problems_add(problems, "%s: unknown option '%s'%s", override->origin, override->name, suggestion_text(&s, near));
		} else if (!option_set_text(o, config, override->value, &why)) {
			problems_add(problems, "%s: '%s' %s", override->origin, override->name, why);
			free(why);
		}
	}
}

/* The texts that an override from the environment points to. */
struct variable {
	char option[40], name[64];
};

/* Appends an override for each option of a scope whose variable is set. */
static size_t collect_variables(const struct scope *scope, const char *prefix, struct override *overrides, struct variable *variables,
                                size_t count)
{
	for (size_t i = 0; i < scope->count; i++) {
		struct variable *v = &variables[count];
		const char *value;

		snprintf(v->option, sizeof v->option, "%s%s", prefix, scope->options[i].name);
		snprintf(v->name, sizeof v->name, "REACTORD_%s", v->option);
		for (char *p = v->name; *p; p++)
			*p = (char)toupper((unsigned char)*p);
		value = getenv(v->name);
		if (value && find_override(v->option))
			overrides[count++] = (struct override){v->option, value, v->name};
	}
	return count;
}

/* The environment's overrides in front of those given. One block of memory holds the array and, behind it, the names. */
struct override *config_overrides(const struct override *given_ones, size_t count, size_t *total)
{
	size_t most = scope_top.count + scope_log.count + 1;
	struct override *overrides = mem_zalloc((most + count) * sizeof *overrides + most * sizeof(struct variable));
	struct variable *variables = (void *)(overrides + most + count);

	*total = collect_variables(&scope_top, "", overrides, variables, 0);
	*total = collect_variables(&scope_log, "log_", overrides, variables, *total);
	for (size_t i = 0; i < count; i++)
		overrides[(*total)++] = given_ones[i];
	return overrides;
}

/* --- a whole file ---------------------------------------------------------------------------------------------------- */

/* Takes an option of the top level. */
static void take_option(struct config *config, const struct confread_item *item, struct problems *problems)
{
	struct place at = {problems, item->file, item->line};
	const struct option_def *o = scope_find(&scope_top, item->name);

	if (o)
		set_option(&at, &scope_top, o, config, &item->value);
	else if (strcmp(item->name, scope_log.name) != 0)
		report_unknown(&at, &scope_top, item->name);
	else if (item->value.kind == VALUE_TABLE)
		config_set_options(&at, &scope_log, config, &item->value, item->lines);
	else if (item->value.kind != VALUE_NIL)
		problems_add_at(problems, item->file, item->line, "'log' must be a table such as { level = \"info\" }");
}

/* Takes a block. What stood in place of its table is reported already if it was none. */
static void take_block(struct config *config, const struct confread_item *item, struct problems *problems)
{
	struct place at = {problems, item->file, item->line};

	if (item->value.kind != VALUE_TABLE)
		return;
	if (strcmp(item->block, "listen") == 0) {
		config->listens = mem_realloc(config->listens, (config->listen_count + 1) * sizeof *config->listens);
		make_listen(&at, &config->listens[config->listen_count++], item->name, &item->value, item->lines);
	} else {
		config->connects = mem_realloc(config->connects, (config->connect_count + 1) * sizeof *config->connects);
		make_connect(&at, &config->connects[config->connect_count++], item->name, &item->value, item->lines);
	}
}

/* Reports listeners that want the same address. Port 0 is another one each time. */
static void check_duplicates(const struct config *config, struct problems *problems)
{
	for (size_t i = 0; i < config->listen_count; i++) {
		const struct listen_conf *l = &config->listens[i];

		for (size_t j = 0; l->url_text && j < i; j++) {
			const struct listen_conf *other = &config->listens[j];

			if (!other->url_text || !url_equal(&l->url, &other->url) || (l->url.host && l->url.port == 0))
				continue;
			if (l->url.host && l->reuse_port && other->reuse_port)
				continue;
			problems_add_at(problems, l->file, l->line, "listen \"%s\" stands already at %s:%d%s", l->url_text, other->file, other->line,
			                l->url.host ? " (both need reuse_port = true to share the address)" : "");
			break;
		}
	}
}

/* The names of the top-level options; the caller frees the list. */
static const char **option_names(void)
{
	const char **names = mem_alloc((scope_top.count + 2) * sizeof *names);

	for (size_t i = 0; i < scope_top.count; i++)
		names[i] = scope_top.options[i].name;
	names[scope_top.count] = scope_log.name;
	names[scope_top.count + 1] = NULL;
	return names;
}

/* A config with all defaults. */
static struct config *config_new(void)
{
	struct config *config = mem_zalloc(sizeof *config);

	scope_set_defaults(&scope_top, config);
	scope_set_defaults(&scope_log, config);
	return config;
}

/* Ends the making of a config: overrides, what concerns the whole, and NULL if there were any problems. */
static struct config *finish(struct config *config, const struct override *overrides, size_t count, struct problems *problems,
                             size_t problems_before)
{
	apply_overrides(config, overrides, count, problems);
	check_duplicates(config, problems);
	if (config->group && !config->user)
		problems_add_at(problems, config->file, 0, "'group' needs 'user' as well");
	if (problems->count == problems_before)
		return config;
	config_free(config);
	return NULL;
}

/* Reads and validates a file. */
struct config *config_load(const char *path, const struct override *overrides, size_t count, struct problems *problems)
{
	struct config *config = config_new();
	const char **options = option_names();
	struct confread_names names = {options, block_names};
	size_t before = problems->count;
	struct confread c;

	config->file = mem_strdup(path);
	(void)!confread_file(&c, path, &names, problems); /* what could be read is checked all the same */
	for (size_t i = 0; i < c.count; i++) {
		if (c.items[i].block)
			take_block(config, &c.items[i], problems);
		else
			take_option(config, &c.items[i], problems);
	}
	confread_clear(&c);
	free(options);
	return finish(config, overrides, count, problems, before);
}

/* A config without a file. */
struct config *config_defaults(const struct override *overrides, size_t count, struct problems *problems)
{
	return finish(config_new(), overrides, count, problems, problems->count);
}

/* As many as there are cores that we may run on, if the file leaves it to us. */
unsigned config_processes(const struct config *config)
{
	cpu_set_t cores;

	if (config->processes)
		return (unsigned)config->processes;
	return sched_getaffinity(0, sizeof cores, &cores) == 0 && CPU_COUNT(&cores) > 0 ? (unsigned)CPU_COUNT(&cores) : 1;
}

/* Frees a config; NULL is fine. */
void config_free(struct config *config)
{
	if (!config)
		return;
	for (size_t i = 0; i < config->listen_count; i++)
		listen_conf_clear(&config->listens[i]);
	for (size_t i = 0; i < config->connect_count; i++)
		connect_conf_clear(&config->connects[i]);
	free(config->listens);
	free(config->connects);
	scope_clear(&scope_top, config);
	scope_clear(&scope_log, config);
	free(config->file);
	free(config);
}
