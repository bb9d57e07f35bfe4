/* output_check.c - whether a format holds a model, and the sentences when it does not.
 *
 * Codecs speak of each module: a model of thirty layers would be refused in two hundred equal sentences. What follows
 * the first ": " is compared, and told once, for the first module and the number of the others.
 */
#include <string.h>

#include "common/alloc.h"
#include "formats/gguf_blocks.h"
#include "formats/gguf_meta.h"
#include "formats/output_parts.h"

/* Sentences that are told already; `more` counts those alike. */
struct told { char *sentence; size_t head; size_t more; };

struct gathering { struct told *items; size_t count, cap; };

/* Bytes before ": ", or 0 when the sentence names nothing. */
static size_t head_of(const char *sentence)
{
	const char *colon = strstr(sentence, ": ");

	return colon ? (size_t)(colon - sentence) : 0;
}

static bool alike(const struct told *t, const char *sentence, size_t head)
{
	return (t->head > 0) == (head > 0) && strcmp(t->sentence + t->head, sentence + head) == 0;
}

/* Takes the sentence over. */
static int gather(struct gathering *g, char *sentence)
{
	const size_t head = head_of(sentence);

	for (size_t i = 0; i < g->count; i++) {
		if (!alike(&g->items[i], sentence, head))
			continue;
		g->items[i].more++;
		mem_free(sentence);
		return 0;
	}
	if (g->count == g->cap) {
		const size_t cap = g->cap ? 2 * g->cap : 8;
		struct told *grown = mem_realloc(g->items, cap, sizeof(*grown));

		if (!grown) {
			mem_free(sentence);
			return -1;
		}
		g->items = grown;
		g->cap = cap;
	}
	g->items[g->count++] = (struct told){ sentence, head, 0 };
	return 0;
}

static int gather_all(struct gathering *g, struct problems *p)
{
	int rc = 0;

	for (size_t i = 0; i < p->count; i++) {
		char *sentence = p->items[i];

		p->items[i] = NULL;
		rc |= gather(g, sentence);
	}
	problems_deinit(p);
	return rc;
}

/* Empties `g` into `problems`. */
static int tell(struct gathering *g, struct problems *problems)
{
	int rc = 0;

	for (size_t i = 0; i < g->count; i++) {
		const struct told *t = &g->items[i];

		if (t->more > 0 && t->head > 0)
			rc |= problems_add(problems, "%.*s (and %zu more)%s", (int)t->head, t->sentence, t->more,
					   t->sentence + t->head);
		else
			rc |= problems_add(problems, "%s", t->sentence);
		mem_free(t->sentence);
	}
	mem_free(g->items);
	*g = (struct gathering){ 0 };
	return rc;
}

/* --- the checks ---------------------------------------------------------------------------------- */

static int check_module(const struct output_format *f, const struct codec_module *m, struct problems *problems)
{
	enum gguf_type type;

	if (m->settings.skip)
		return 0;
	if (output_is_table(m))
		return output_table_check(f, m, problems);
	return f->codec ? f->codec->check(m, problems) : gguf_choose(m, &type, problems);
}

static int check_whole(const struct output_format *f, const struct output_model *m, struct problems *problems)
{
	if (!f->codec)
		return gguf_check_model(m->config, problems);
	return f->codec->check_model ? f->codec->check_model(m->modules, output_codec_count(f, m), problems) : 0;
}

int output_check(const struct output_format *f, const struct output_model *m, struct problems *problems)
{
	struct gathering g = { 0 };
	struct problems some = { 0 };
	bool short_of_memory = false;
	int rc = 0;

	for (size_t i = 0; i < m->count; i++) {
		rc |= check_module(f, &m->modules[i], problems ? &some : NULL);
		short_of_memory |= gather_all(&g, &some) != 0;
	}
	if (check_whole(f, m, problems ? &some : NULL) != 0)
		rc = -1;
	short_of_memory |= gather_all(&g, &some) != 0;
	short_of_memory |= tell(&g, problems) != 0;
	return rc == 0 && !short_of_memory ? 0 : -1;
}

int output_caution(const struct output_format *f, const struct output_model *m, struct problems *warnings)
{
	if (!f->codec || !f->codec->caution)
		return 0;
	return f->codec->caution(m->modules, output_codec_count(f, m), warnings);
}
