/* model_family.h - what differs between the supported model families: one row each.
 *
 * A row holds what config.json leaves out (defaults of the family's reference configuration) and
 * which options the family's forward pass has at all. To add a family: a row in model_family.c,
 * cases in tests/unit/test_model_config.c, golden values for its forward pass.
 */
#ifndef QUARRY_COMMON_MODEL_FAMILY_H
#define QUARRY_COMMON_MODEL_FAMILY_H

#include <stdbool.h>
#include <stddef.h>

enum bias_rule {
	BIAS_NONE,      /* never; asking for them is refused */
	BIAS_OPTION,    /* "attention_bias": q, k, v and o */
	BIAS_QKV,       /* always q, k and v; never o */
};

enum window_rule {
	WINDOW_NEVER,   /* the family has none: "sliding_window" is ignored, as its reference does */
	WINDOW_SET,     /* in force when "sliding_window" is not null */
	WINDOW_SWITCH,  /* in force when "use_sliding_window" is true */
};

struct model_family {
	const char *model_type;
	const char *architecture;
	enum bias_rule attention_bias;
	bool mlp_bias_option;           /* has "mlp_bias" */
	bool qk_norm;
	enum window_rule window;
	size_t default_window;          /* when the key is absent */
	size_t default_kv_heads;        /* when the key is absent; 0 = as many as heads */
	size_t default_head_dim;        /* when the key is absent; 0 = hidden / heads */
	size_t default_max_position;
};

/* NULL for an unknown family. */
const struct model_family *model_family_find(const char *model_type);

#endif
