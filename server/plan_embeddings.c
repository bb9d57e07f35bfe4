/* plan_embeddings.c - embedding and output head in fewer than 16 bits: what is refused before a job exists, and what the
 * tasks that compute with the finished checkpoint are told. */
#include <inttypes.h>

#include "formats/embedding.h"
#include "server/plan_parts.h"

enum { UNTOUCHED = 16 };

/* A tied head is the embedding and gets no sentences of its own. */
static bool head_stands_alone(const struct plan_request *r)
{
	return !r->config->tied_embeddings;
}

/* Returns with each finding in `problems`; -1 only without memory, when one is missing there. */
static int check_table(const struct plan_request *r, int64_t bits, const char *option, struct problems *problems)
{
	const size_t before = problems->count;

	if (embedding_check((int)bits, r->config->hidden, option, problems) != 0)
		return problems->count > before ? 0 : -1;
	for (size_t i = 0; i < r->recipe->format_count; i++) {
		const size_t count = problems->count;

		if (embedding_check_format(r->recipe->formats[i], (int)bits, option, problems) != 0 &&
		    problems->count == count)
			return -1;
	}
	return 0;
}

int plan_check_embeddings(const struct plan_request *r, struct problems *problems)
{
	const struct recipe *recipe = r->recipe;

	if (recipe->kind != RECIPE_QUANTIZE)
		return 0;
	if (check_table(r, recipe->embeddings, "embeddings", problems) != 0)
		return -1;
	if (head_stands_alone(r))
		return check_table(r, recipe->lm_head, "lm_head", problems);
	if (recipe->lm_head == recipe->embeddings)
		return 0;
	return problems_add(problems, "the model's output head is its embedding, so \"lm_head\" %" PRId64 " must equal "
			    "\"embeddings\" %" PRId64 "; leave \"lm_head\" out, and it does", recipe->lm_head,
			    recipe->embeddings);
}

void spec_embeddings(struct spec *s, const struct recipe *recipe)
{
	if (recipe->embeddings != UNTOUCHED)
		spec_int(s, "embeddings", recipe->embeddings);
	if (recipe->lm_head != UNTOUCHED)
		spec_int(s, "lm_head", recipe->lm_head);
}
