/* rules.h - private to formats/: the parts that check() and config() functions are made of.
 *
 * A refusal is one sentence: what the format holds, what was asked, and which formats hold the module as it is.
 * `problems` may be NULL everywhere: then only the answer counts.
 */
#ifndef QUARRY_FORMATS_RULES_H
#define QUARRY_FORMATS_RULES_H

#include "formats/codec.h"

/* What a format asks of one module. */
struct format_rule {
	const char *format;
	unsigned bits;                  /* bit b set: b bits fit */
	const char *bits_text;          /* "2, 3, 4 or 8 bits" */
	unsigned cols_of, rows_of;      /* K, N must be multiples of */
	const int64_t *groups;          /* that fit besides one group per output channel, ends with 0; NULL = any */
	unsigned group_of;              /* or: columns per group must be a multiple of */
	const char *outside;            /* the one module outside the blocks that fits; "*" = any, NULL = none */
};

/* Everything but zero-points. 0 or -1. */
int rule_check(const struct format_rule *rule, const struct codec_module *m, struct problems *problems);
/* z must be a multiple of 1/parts. 0 or -1. */
int rule_check_zeros(const struct format_rule *rule, const struct codec_module *m, unsigned parts,
		     struct problems *problems);

/* "mlx and gptq hold this module as it is". */
void rule_what_fits(const struct codec_module *m, struct buf *out);

/* Modules that runtimes join into one (q, k, v; gate, up) must agree: both skipped, or equal by `same`. They
 * are neighbours in model order. */
int rule_check_fused(const struct format_rule *rule, const struct codec_module *modules, size_t count,
		     bool (*same)(const struct codec_module *a, const struct codec_module *b),
		     const char *what, struct problems *problems);
bool rule_same_settings(const struct codec_module *a, const struct codec_module *b); /* bits, group, symmetric */

/* The module whose settings (by `same`) most modules share, the first of them; NULL when all are skipped. */
const struct codec_module *rule_most_frequent(const struct codec_module *modules, size_t count,
					      bool (*same)(const struct codec_module *a, const struct codec_module *b));
/* `prefix`, then a regular expression (Python and POSIX read it alike) that matches the module's whole name;
 * with `fused` also the names of the modules it is joined with, and of the joined one. NULL when out of memory. */
char *rule_pattern(const char *prefix, const struct codec_module *m, bool fused);
/* The name's last component replaced by `last`: "model.layers.0.self_attn.qkv_proj". NULL when out of memory. */
char *rule_sibling(const char *name, const char *last);
const struct codec_module *rule_find(const struct codec_module *modules, size_t count, const char *name);

/* A linear that runtimes join with others: the joined module's name ("qkv_proj") and the
 * alternatives "(q|k|v|qkv)_proj"; NULLs for those that stand alone. */
struct fused_name { const char *joined, *pattern; };
struct fused_name rule_fused(const struct codec_module *m);

#endif
