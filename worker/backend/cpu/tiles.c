/* See tiles.h. */
#include "worker/backend/cpu/tiles.h"

size_t ceil_div(size_t a, size_t b)
{
	return a / b + (a % b != 0);
}

size_t tile_length(size_t total, size_t tile, size_t index)
{
	const size_t left = total - index * tile;

	return left < tile ? left : tile;
}

struct row_tiles row_tiles_of(size_t n_seq, size_t seq_len, size_t tile)
{
	const size_t per_seq = ceil_div(seq_len, tile);

	return (struct row_tiles){ n_seq, seq_len, tile, per_seq, n_seq * per_seq };
}

struct row_tile row_tile_at(const struct row_tiles *t, size_t index)
{
	const size_t position = index % t->per_seq * t->tile;

	return (struct row_tile){
		.first = index / t->per_seq * t->seq_len + position,
		.rows = tile_length(t->seq_len, t->tile, index % t->per_seq),
		.position = position,
	};
}
