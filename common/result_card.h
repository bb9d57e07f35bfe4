/* result_card.h - what the README.md of a job's result and that of a converted checkpoint say in the same words. */
#ifndef QUARRY_COMMON_RESULT_CARD_H
#define QUARRY_COMMON_RESULT_CARD_H

#include "common/buf.h"
#include "common/json.h"

/* Names come from users: no line breaks, no table or markup characters that would break the page. */
void card_put_plain(struct buf *out, const char *text);
/* The table of report.json's "perplexity" and what its columns mean; nothing when nothing was measured. */
void card_put_perplexity(struct buf *out, const struct json *report);

#endif
