/* tokenizer_regex.h - patterns of tokenizer.json, written for Oniguruma, run by PCRE2.
 *
 * regex_translate() rewrites the part of Oniguruma's syntax that tokenizers use so that PCRE2 finds
 * exactly the same matches, and refuses everything else by name (ERR_UNSUPPORTED). A pattern is
 * immutable and may be shared by threads; a pattern_state belongs to one thread.
 */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_REGEX_H
#define QUARRY_WORKER_MODEL_TOKENIZER_REGEX_H

#include "common/buf.h"
#include "common/err.h"
#include "worker/model/tokenizer_spans.h"

/* --- translation --------------------------------------------------------------------------- */

enum { REGEX_LEN_MAX = 65536, REGEX_DEPTH_MAX = 64 };

/* Private to tokenizer_regex.c and tokenizer_regex_class.c: one pass over the text. */
struct regex_pass {
	const char *text;       /* well-formed UTF-8 */
	size_t len, at;
	struct buf *out;
	struct err *err;
	unsigned depth;
	bool caseless;
	int last;               /* caseless literal just written, parentheses aside, or -1 */
};
int regex_refuse(struct regex_pass *p, size_t at, const char *what);
/* An escape that stands for one character: p->at is behind the backslash. 1 = yes (*cp), 0 = no,
 * then p->at is unchanged; -1 = refused. */
int regex_escaped_char(struct regex_pass *p, uint32_t *cp);
/* "\d" and its like outside a class, "[...]": p->at is at the letter, or behind the '['. */
int regex_class_escape(struct regex_pass *p);
int regex_class(struct regex_pass *p);

/* Appends PCRE2 syntax for `text` (UTF-8) to out. */
int regex_translate(const char *text, struct buf *out, struct err *err);

/* --- matching ------------------------------------------------------------------------------ */

struct pattern;
struct pattern_state;

/* A regular expression, or the literal bytes of a non-empty string. NULL with err set. */
struct pattern *pattern_new(const char *regex, struct err *err);
struct pattern *pattern_new_literal(const char *text, size_t len, struct err *err);
void pattern_free(struct pattern *p);

struct pattern_state *pattern_state_new(struct err *err);
void pattern_state_free(struct pattern_state *s);

/* Cuts `text` (well-formed UTF-8) into spans: matches and what lies between. An empty match directly
 * behind a match is passed over, others are kept. */
int pattern_spans(const struct pattern *p, struct pattern_state *s, const char *text, size_t len,
		  struct spans *out, struct err *err);

#endif
