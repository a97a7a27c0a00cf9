/*
 * Configurations shown: as JSON, as the table of options, and as the differences that a reload cannot bring about.
 */
#include "config.h"

#include "config_scopes.h"
#include "mem.h"

/* Puts every option of a scope into an object. */
static json_t *dump_scope(json_t *object, const struct scope *scope, const void *base)
{
	for (size_t i = 0; i < scope->count; i++)
		json_object_set_new(object, scope->options[i].name, option_json(&scope->options[i], base));
	return object;
}

/* Begins the object of a block with where it stands. */
static json_t *begin_block(const char *url, const char *file, int line)
{
	json_t *block = json_object();

	json_object_set_new(block, "url", json_string(url));
	json_object_set_new(block, "file", file ? json_string(file) : json_null());
	json_object_set_new(block, "line", json_integer(line));
	return block;
}

/* The tls table of a block. */
static json_t *with_tls(json_t *block, const struct tls_conf *tls)
{
	json_object_set_new(block, "tls", tls ? dump_scope(json_object(), &scope_tls, tls) : json_null());
	return block;
}

/* The whole effective configuration as JSON, in the order of the schema. */
void config_dump_json(const struct config *config, FILE *to)
{
	json_t *all = json_object(), *listens = json_array(), *connects = json_array();

	json_object_set_new(all, "file", config->file ? json_string(config->file) : json_null());
	dump_scope(all, &scope_top, config);
	json_object_set_new(all, "log", dump_scope(json_object(), &scope_log, config));
	for (size_t i = 0; i < config->listen_count; i++) {
		const struct listen_conf *l = &config->listens[i];

		json_array_append_new(listens, with_tls(dump_scope(begin_block(l->url_text, l->file, l->line), &scope_listen, l), l->tls));
	}
	for (size_t i = 0; i < config->connect_count; i++) {
		const struct connect_conf *c = &config->connects[i];

		json_array_append_new(connects, with_tls(dump_scope(begin_block(c->url_text, c->file, c->line), &scope_connect, c), c->tls));
	}
	json_object_set_new(all, "listen", listens);
	json_object_set_new(all, "connect", connects);
	json_dumpf(all, to, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
	fputc('\n', to);
	json_decref(all);
}

/* The options that differ and cannot change while running. */
void config_check_reload(const struct config *now, const struct config *next, struct problems *problems)
{
	for (size_t i = 0; i < scope_top.count; i++) {
		const struct option_def *o = &scope_top.options[i];

		if (!o->reloadable && !option_equal(o, now, next))
			problems_add_at(problems, next->file, 0, "'%s' cannot change in a reload: restart the daemon", o->name);
	}
}

/* An option as those see it who describe them all. */
static struct option_row describe(const struct scope *scope, const struct option_def *o)
{
	return (struct option_row){scope->name, o->name, option_type_name(o->type), o->fallback, o->reloadable, o->help};
}

/* All options, scope by scope. */
struct option_row *config_option_rows(size_t *count)
{
	const struct scope *const scopes[] = {&scope_top, &scope_log, &scope_listen, &scope_connect, &scope_tls};
	struct option_row *rows = NULL;

	*count = 0;
	for (size_t i = 0; i < sizeof scopes / sizeof scopes[0]; i++) {
		rows = mem_realloc(rows, (*count + scopes[i]->count + 1) * sizeof *rows);
		for (size_t j = 0; j < scopes[i]->count; j++)
			rows[(*count)++] = describe(scopes[i], &scopes[i]->options[j]);
		if (SCOPE_HAS_TLS(scopes[i]))
			rows[(*count)++] = describe(scopes[i], &option_tls);
	}
	return rows;
}
