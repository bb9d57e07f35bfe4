/* tiles.h - how rows of sequences are cut into tiles: by shape alone.
 *
 * A tile never crosses a sequence, so the bits of a sequence do not depend on its neighbours either.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_TILES_H
#define QUARRY_WORKER_BACKEND_CPU_TILES_H

#include <stddef.h>

enum { ROW_TILE = 256, COL_TILE = 512, QUERY_TILE = 128 };

/* n_seq sequences of seq_len rows, cut into tiles of `tile` rows. */
struct row_tiles { size_t n_seq, seq_len, tile, per_seq, count; };

/* One tile: `rows` rows from `first` on; the first is at `position` of its sequence. */
struct row_tile { size_t first, rows, position; };

size_t ceil_div(size_t a, size_t b);
struct row_tiles row_tiles_of(size_t n_seq, size_t seq_len, size_t tile);
struct row_tile row_tile_at(const struct row_tiles *t, size_t index);
/* Length of tile `index` when `total` is cut into pieces of `tile`. */
size_t tile_length(size_t total, size_t tile, size_t index);

#endif
