#include "common/model_family.h"

#include <string.h>

#include "common/model_config.h"

#define FAMILIES(X)                                                                                     \
	X("llama", "LlamaForCausalLM", .attention_bias = BIAS_OPTION, .mlp_bias_option = true,          \
	  .window = WINDOW_NEVER, .default_max_position = 2048)                                         \
	X("mistral", "MistralForCausalLM", .attention_bias = BIAS_NONE, .window = WINDOW_SET,           \
	  .default_window = 4096, .default_kv_heads = 8, .default_max_position = 131072)                \
	X("qwen2", "Qwen2ForCausalLM", .attention_bias = BIAS_QKV, .window = WINDOW_SWITCH,             \
	  .default_window = 4096, .default_kv_heads = 32, .default_max_position = 32768)                \
	X("qwen3", "Qwen3ForCausalLM", .attention_bias = BIAS_OPTION, .qk_norm = true,                  \
	  .window = WINDOW_SWITCH, .default_window = 4096, .default_kv_heads = 32,                      \
	  .default_head_dim = 128, .default_max_position = 32768)

static const struct model_family families[] = {
#define FAMILY_ROW(type, arch, ...) { .model_type = type, .architecture = arch, __VA_ARGS__ },
	FAMILIES(FAMILY_ROW)
#undef FAMILY_ROW
};

static const char *const names[] = {
#define FAMILY_NAME(type, arch, ...) type,
	FAMILIES(FAMILY_NAME)
#undef FAMILY_NAME
	NULL,
};

const char *const *model_families(void)
{
	return names;
}

const struct model_family *model_family_find(const char *model_type)
{
	for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++)
		if (strcmp(families[i].model_type, model_type) == 0)
			return &families[i];
	return NULL;
}
