#include "worker/layer_keep.h"

#include <string.h>

void layer_keep_drop(struct layer_keep *k)
{
	placed_deinit(&k->placed);
	block_free(&k->block);
}

void layer_keep_model(struct layer_keep *k, const char *id)
{
	const size_t len = strlen(id);

	if (len > 0 && strcmp(k->model, id) == 0)
		return;
	layer_keep_drop(k);
	k->model[0] = '\0';
	if (len < sizeof(k->model))
		memcpy(k->model, id, len + 1);
}

bool layer_keep_take(struct layer_keep *k, size_t layer, struct block *block, struct placed *placed)
{
	if (!k || !k->block.data)
		return false;
	if (k->layer != layer) {
		layer_keep_drop(k);
		return false;
	}
	*block = k->block;
	*placed = k->placed;
	k->block = (struct block){ 0 };
	k->placed = (struct placed){ 0 };
	return true;
}

bool layer_keep_put(struct layer_keep *k, size_t layer, struct block *block, struct placed *placed)
{
	if (!k || k->model[0] == '\0' || !block->data)
		return false;
	layer_keep_drop(k);
	k->layer = layer;
	k->block = *block;
	k->placed = *placed;
	*block = (struct block){ 0 };
	*placed = (struct placed){ 0 };
	return true;
}
