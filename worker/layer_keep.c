#include "worker/layer_keep.h"

#include <string.h>

void layer_keep_drop(struct layer_keep *k)
{
	layer_room_free(&k->room);
	block_free(&k->block);
	k->holds = false;
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

bool layer_keep_take(struct layer_keep *k, size_t layer, struct block *block, struct layer_room *room)
{
	if (!k || !k->holds)
		return false;
	*block = k->block;
	*room = k->room;
	k->block = (struct block){ 0 };
	k->room = (struct layer_room){ 0 };
	k->holds = false;
	return k->layer == layer;
}

bool layer_keep_put(struct layer_keep *k, size_t layer, struct block *block, struct layer_room *room)
{
	if (!k || k->model[0] == '\0')
		return false;
	layer_keep_drop(k);
	k->holds = true;
	k->layer = layer;
	k->block = *block;
	k->room = *room;
	*block = (struct block){ 0 };
	*room = (struct layer_room){ 0 };
	return true;
}
