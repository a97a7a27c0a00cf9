/*
 * The table of counters as data: one row for each member of struct stats.
 */
#include "stats.h"

/* gauge, common */
#define KIND_counter false, false
#define KIND_gauge true, false
#define KIND_common false, true
#define KIND_level true, true

const struct stats_row stats_rows[] = {
#define STATS_ROW(name, kind, help) {#name, help, KIND_##kind, offsetof(struct stats, name)},
	STATS(STATS_ROW)
#undef STATS_ROW
};

const size_t stats_row_count = sizeof stats_rows / sizeof stats_rows[0];
