/* An evaluate job that compares with another model: what the two must share. */
#include <inttypes.h>
#include <string.h>

#include "server/plan_parts.h"

static bool same_text(const char *a, const char *b)
{
	return a && b ? strcmp(a, b) == 0 : a == b;
}

/* The model's own head turns the reference's last hidden states into predictions (worker/task_evaluate.c). */
static int check_shapes(const struct plan_request *r, struct problems *problems)
{
	const struct model_config *own = r->config, *other = r->reference.config;

	if (other->vocab != own->vocab &&
	    problems_add(problems, "%s has a vocabulary of %zu tokens, the reference %s one of %zu; they must be equal",
			 r->model_name, own->vocab, r->reference.name, other->vocab) != 0)
		return -1;
	if (other->hidden != own->hidden &&
	    problems_add(problems, "%s has hidden states of width %zu, the reference %s of %zu; models are compared that "
			 "share their final norm and output embedding", r->model_name, own->hidden, r->reference.name,
			 other->hidden) != 0)
		return -1;
	return 0;
}

int plan_check_reference(const struct plan_request *r, struct problems *problems)
{
	const struct plan_reference *ref = &r->reference;

	if (!ref->config)
		return 0;
	if (check_shapes(r, problems) != 0)
		return -1;
	if (!same_text(ref->tokenizer_sha256, r->tokenizer_sha256) &&
	    problems_add(problems, "%s and the reference %s have different tokenizer.json files; their predictions cannot "
			 "be compared", r->model_name, ref->name) != 0)
		return -1;
	if ((uint64_t)r->recipe->seq_len > ref->config->max_position)
		return problems_add(problems, "seq_len %" PRId64 " exceeds max_position_embeddings %zu of the reference %s",
				    r->recipe->seq_len, ref->config->max_position, ref->name);
	return 0;
}
