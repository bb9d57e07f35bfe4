/* rules.c - sentences of refusal, and what formats say about many modules. */
#include "formats/rules.h"

#include <stdio.h>
#include <string.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/utf8.h"
#include "formats/gguf_blocks.h"

enum { SENTENCE_MAX = 1024 };

/* --- refusing ------------------------------------------------------------------------------------ */

static bool is_dense(const struct codec *c)
{
	return strncmp(c->name, "dense", 5) == 0;
}

/* "mlx and gptq hold this module as it is" */
void rule_what_fits(const struct codec_module *m, struct buf *out)
{
	const char *fit[32];
	enum gguf_type type;
	size_t count = 0;

	for (const struct codec *const *c = codec_list; *c && count < 31; c++)
		if (!(*c)->always && !is_dense(*c) && (*c)->check(m, NULL) == 0)
			fit[count++] = (*c)->name;
	if (m->layer >= 0 && gguf_choose(m, &type, NULL) == 0)
		fit[count++] = "gguf";
	for (size_t i = 0; i < count; i++)
		buf_printf(out, "%s%s", i == 0 ? "" : i + 1 == count ? " and " : ", ", fit[i]);
	buf_puts(out, count == 0 ? "dense holds" : count == 1 ? " holds" : " hold");
	buf_puts(out, " this module as it is");
}

static int refuse(const struct format_rule *rule, const struct codec_module *m, struct problems *problems,
		  const char *sentence)
{
	char shown[UTF8_SHOWN_MAX];
	struct buf fit;

	if (!problems)
		return -1;
	buf_init(&fit, SENTENCE_MAX);
	rule_what_fits(m, &fit);
	utf8_show(shown, m->name);
	problems_add(problems, "%s: %s %s; %s", shown, rule->format, sentence, buf_text(&fit));
	buf_deinit(&fit);
	return -1;
}

static int check_bits(const struct format_rule *rule, const struct codec_module *m, struct problems *problems)
{
	char text[SENTENCE_MAX];

	if (m->settings.bits >= 0 && m->settings.bits < 32 && rule->bits >> m->settings.bits & 1)
		return 0;
	snprintf(text, sizeof(text), "holds %s, not %d", rule->bits_text, m->settings.bits);
	return refuse(rule, m, problems, text);
}

static int check_multiple(const struct format_rule *rule, const struct codec_module *m, uint64_t size,
			  unsigned of, const char *what, struct problems *problems)
{
	char text[SENTENCE_MAX];

	if (of <= 1 || size % of == 0)
		return 0;
	snprintf(text, sizeof(text), "needs a multiple of %u %s channels, not %llu; leave the module out with an "
		 "override \"skip\"", of, what, (unsigned long long)size);
	return refuse(rule, m, problems, text);
}

static bool group_listed(const struct format_rule *rule, const struct codec_module *m)
{
	const int64_t group = m->settings.group_size;

	if (!rule->groups || group == -1 || (uint64_t)group == m->cols)
		return true;
	for (const int64_t *g = rule->groups; *g; g++)
		if (*g == group)
			return true;
	return false;
}

static void list_groups(const struct format_rule *rule, struct buf *out)
{
	for (const int64_t *g = rule->groups; *g; g++)
		buf_printf(out, "%lld%s", (long long)*g, g[1] ? ", " : "");
	buf_puts(out, " columns or one per output channel");
}

static int check_group(const struct format_rule *rule, const struct codec_module *m, struct problems *problems)
{
	const size_t group = codec_group(m);
	char text[SENTENCE_MAX];
	struct buf list;

	if (m->settings.group_size == 0 || m->settings.group_size < -1 || group == 0 || m->cols % group != 0) {
		snprintf(text, sizeof(text), "needs groups that divide the %llu input channels; groups of %lld do not",
			 (unsigned long long)m->cols, (long long)m->settings.group_size);
		return refuse(rule, m, problems, text);
	}
	if (rule->group_of && group % rule->group_of != 0) {
		snprintf(text, sizeof(text), "holds groups of a multiple of %u columns, not %zu", rule->group_of, group);
		return refuse(rule, m, problems, text);
	}
	if (group_listed(rule, m))
		return 0;
	buf_init(&list, SENTENCE_MAX);
	list_groups(rule, &list);
	snprintf(text, sizeof(text), "holds groups of %s, not %lld", buf_text(&list), (long long)m->settings.group_size);
	buf_deinit(&list);
	return refuse(rule, m, problems, text);
}

static int check_place(const struct format_rule *rule, const struct codec_module *m, struct problems *problems)
{
	char text[SENTENCE_MAX];

	if (m->layer >= 0 || (rule->outside && (rule->outside[0] == '*' || strcmp(rule->outside, m->name) == 0)))
		return 0;
	snprintf(text, sizeof(text), "holds the linear modules of the blocks%s%s, not this one",
		 rule->outside ? " and " : "", rule->outside ? rule->outside : "");
	return refuse(rule, m, problems, text);
}

int rule_check(const struct format_rule *rule, const struct codec_module *m, struct problems *problems)
{
	if (m->settings.skip)
		return 0;
	return check_place(rule, m, problems) | check_bits(rule, m, problems) |
	       check_multiple(rule, m, m->cols, rule->cols_of, "input", problems) |
	       check_multiple(rule, m, m->rows, rule->rows_of, "output", problems) |
	       check_group(rule, m, problems);
}

int rule_check_zeros(const struct format_rule *rule, const struct codec_module *m, unsigned parts,
		     struct problems *problems)
{
	const unsigned have = codec_zero_parts(m);
	char text[SENTENCE_MAX];

	if (m->settings.skip || (have > 0 && parts % have == 0))
		return 0;
	if (parts == 1)
		snprintf(text, sizeof(text), "holds integer zero-points; ask for \"zero_point\": \"integer\" or "
			 "\"symmetric\": true");
	else
		snprintf(text, sizeof(text), "holds %d bits with zero-points that are multiples of 1/%u; ask for those, for "
			 "\"zero_point\": \"integer\" or \"symmetric\": true", m->settings.bits, parts);
	return refuse(rule, m, problems, text);
}

/* --- several modules ----------------------------------------------------------------------------- */

bool rule_same_settings(const struct codec_module *a, const struct codec_module *b)
{
	return a->settings.bits == b->settings.bits && a->settings.group_size == b->settings.group_size &&
	       a->settings.symmetric == b->settings.symmetric;
}

static bool joined(const struct codec_module *a, const struct codec_module *b)
{
	const char *name = rule_fused(a).joined;

	return name && a->layer == b->layer && name == rule_fused(b).joined;
}

int rule_check_fused(const struct format_rule *rule, const struct codec_module *modules, size_t count,
		     bool (*same)(const struct codec_module *a, const struct codec_module *b),
		     const char *what, struct problems *problems)
{
	int rc = 0;

	for (size_t i = 0; i + 1 < count; i++) {
		const struct codec_module *a = &modules[i], *b = a + 1;
		char one[UTF8_SHOWN_MAX], other[UTF8_SHOWN_MAX];

		if (!joined(a, b) || (a->settings.skip && b->settings.skip) ||
		    (a->settings.skip == b->settings.skip && same(a, b)))
			continue;
		rc = -1;
		if (problems)
			problems_add(problems, "%s and %s: readers of %s join these modules into %s, so %s must be equal, or "
				     "both be skipped", utf8_show(one, a->name), utf8_show(other, b->name), rule->format,
				     rule_fused(a).joined, what);
	}
	return rc;
}

const struct codec_module *rule_most_frequent(const struct codec_module *modules, size_t count,
					      bool (*same)(const struct codec_module *a, const struct codec_module *b))
{
	const struct codec_module *best = NULL;
	size_t most = 0;

	for (size_t i = 0; i < count; i++) {
		size_t n = 0;

		if (modules[i].settings.skip || (best && same(best, &modules[i])))
			continue;
		for (size_t j = i; j < count; j++)
			n += !modules[j].settings.skip && same(&modules[i], &modules[j]);
		if (n > most) {
			most = n;
			best = &modules[i];
		}
	}
	return best;
}

const struct codec_module *rule_find(const struct codec_module *modules, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(modules[i].name, name) == 0)
			return &modules[i];
	return NULL;
}

struct fused_name rule_fused(const struct codec_module *m)
{
	static const struct fused_name qkv = { "qkv_proj", "(q|k|v|qkv)_proj" };
	static const struct fused_name gate_up = { "gate_up_proj", "(gate|up|gate_up)_proj" };
	static const struct fused_name alone = { NULL, NULL };

	if (m->layer < 0)
		return alone;
	switch (m->linear) {
	case LIN_Q:
	case LIN_K:
	case LIN_V:
		return qkv;
	case LIN_GATE:
	case LIN_UP:
		return gate_up;
	case LIN_O:
	case LIN_DOWN:
	case LIN_COUNT:
		break;
	}
	return alone;
}

/* --- names --------------------------------------------------------------------------------------- */

char *rule_sibling(const char *name, const char *last)
{
	const char *dot = strrchr(name, '.');
	struct buf b;

	buf_init(&b, 2 * (strlen(name) + strlen(last)) + 64);
	buf_append(&b, name, dot ? (size_t)(dot + 1 - name) : 0);
	buf_puts(&b, last);
	return buf_take(&b);
}

static void append_quoted(struct buf *b, const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (strchr(".\\+*?[^]$(){}|", text[i]))
			buf_puts(b, "\\");
		buf_append(b, &text[i], 1);
	}
}

char *rule_pattern(const char *prefix, const struct codec_module *m, bool fused)
{
	const char *pattern = fused ? rule_fused(m).pattern : NULL, *dot = strrchr(m->name, '.');
	struct buf b;

	buf_init(&b, 2 * strlen(m->name) + strlen(prefix) + 64);
	buf_printf(&b, "%s^", prefix);
	if (pattern && dot)
		append_quoted(&b, m->name, (size_t)(dot + 1 - m->name));
	else
		append_quoted(&b, m->name, strlen(m->name));
	buf_printf(&b, "%s$", pattern && dot ? pattern : "");
	return buf_take(&b);
}
