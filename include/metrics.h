/*
 * What the scoreboard says in the text format of Prometheus.
 */
#ifndef REACTORD_METRICS_H
#define REACTORD_METRICS_H

#include "scoreboard.h"

/* All of it, at a time of the monotonic clock; the caller owns the text. */
char *metrics_text(const struct scoreboard *board, uint64_t now_ns) __attribute__((warn_unused_result));

#endif
