#include "worker/layer_load.h"

#include <pthread.h>
#include <stdatomic.h>

#include "common/alloc.h"
#include "worker/backend/pool.h"

/* A piece is small enough to be shared out evenly, large enough for a read to be worth its call. What one thread reads
 * alone, it may be from afar, comes in large ones. A buffer holds some pieces for each thread. */
enum { PIECE_FLOATS = 1 << 18, BUFFER_FLOATS = 1 << 23, BUFFERS = 2, THREADS_MAX = 16 };

/* --- reading pieces ------------------------------------------------------------------------------------------ */

/* Some pieces under way into `out`. */
struct filling {
	const struct block_pieces *pieces;
	const struct tensor_reader *reader;
	size_t first;
	float *out;             /* of the first of them */
	atomic_size_t failed;   /* the first piece that did; SIZE_MAX: none */
	pthread_mutex_t lock;   /* guards err, and failed against falling back */
	struct err err;         /* why */
};

static void note_failure(struct filling *f, size_t piece, const struct err *why)
{
	pthread_mutex_lock(&f->lock);
	if (piece < atomic_load(&f->failed)) {
		atomic_store(&f->failed, piece);
		f->err = *why;
	}
	pthread_mutex_unlock(&f->lock);
}

/* Pieces behind one that failed need no reading; those before it are read, and may fail as well. */
static void fill_piece(void *ctx, size_t item, int worker)
{
	struct filling *f = ctx;
	const size_t i = f->first + item, begin = block_piece_of(f->pieces, f->first).at;
	const struct block_piece p = block_piece_of(f->pieces, i);
	struct err why = ERR_INIT;

	(void)worker;
	if (i < atomic_load(&f->failed) &&
	    f->reader->read(f->reader->ctx, p.tensor->name, p.row, p.rows, p.tensor->cols, f->out + (p.at - begin),
			    &why) != 0)
		note_failure(f, i, &why);
}

static int fill(struct pool *pool, const struct block_pieces *pieces, const struct tensor_reader *reader, size_t first,
		size_t count, float *out, struct err *err)
{
	struct filling f = { .pieces = pieces, .reader = reader, .first = first, .out = out, .failed = SIZE_MAX };

	pthread_mutex_init(&f.lock, NULL);
	pool_run(pool, count, fill_piece, &f);
	pthread_mutex_destroy(&f.lock);
	if (atomic_load(&f.failed) == SIZE_MAX)
		return 0;
	if (err)
		*err = f.err;
	return -1;
}

/* --- into ordinary memory -------------------------------------------------------------------------------------- */

static int take_array(struct block *block, size_t floats, struct err *err)
{
	if (block->data && block->floats == floats)
		return 0;
	block_free(block);
	block->data = mem_alloc_aligned(floats, sizeof(*block->data));
	if (!block->data)
		return err_set_nomem(err, "the weights of one block");
	block->floats = floats;
	return 0;
}

static int load_array(const struct layer_load *l, struct pool *pool, const struct block_pieces *pieces,
		      struct block *block, struct err *err)
{
	if (take_array(block, pieces->floats, err) != 0 ||
	    fill(pool, pieces, &l->reader, 0, pieces->count, block->data, err) != 0)
		return -1;
	block->w = block_weights_at(l->config, block->data);
	return 0;
}

/* --- into memory of the backend --------------------------------------------------------------------------------- */

void layer_room_free(struct layer_room *room)
{
	if (room->weights)
		room->be->ops->memory_give(room->be, room->weights);
	*room = (struct layer_room){ 0 };
}

static int take_room(struct layer_room *room, struct backend *be, size_t floats, struct err *err)
{
	if (room->weights && room->floats == floats)
		return 0;
	layer_room_free(room);
	*room = (struct layer_room){ .be = be, .floats = floats };
	room->weights = be->ops->memory_take(be, floats * sizeof(float), "the weights of one block", err);
	return room->weights ? 0 : -1;
}

/* What the weights pass through. */
struct passage {
	const struct layer_load *load;
	struct pool *pool;
	const struct block_pieces *pieces;
	float *buffer[BUFFERS];
	size_t floats;          /* in each */
};

/* What holds every piece, and no more than the block. */
static size_t buffer_floats(const struct block_pieces *pieces)
{
	size_t longest = BUFFER_FLOATS;

	for (size_t i = 0; i < pieces->tensors; i++)
		if (pieces->tensor[i].cols > longest)
			longest = pieces->tensor[i].cols;
	return longest < pieces->floats ? longest : pieces->floats;
}

static int take_buffers(struct passage *p, struct err *err)
{
	struct backend *be = p->load->be;

	for (int i = 0; i < BUFFERS; i++) {
		p->buffer[i] = be->ops->buffer_take(be, p->floats * sizeof(float), "weights on their way to the backend",
						    err);
		if (!p->buffer[i])
			return -1;
	}
	return 0;
}

static void give_buffers(struct passage *p)
{
	for (int i = 0; i < BUFFERS; i++)
		p->load->be->ops->buffer_give(p->load->be, p->buffer[i]);
}

/* Pieces from `first` on that one buffer holds, and their floats. */
static size_t pieces_that_fit(const struct block_pieces *pieces, size_t first, size_t most, size_t *floats)
{
	size_t count = 0;

	for (*floats = 0; first + count < pieces->count; count++) {
		const size_t more = block_piece_of(pieces, first + count).floats;

		if (*floats + more > most)
			break;
		*floats += more;
	}
	return count;
}

/* One buffer's worth at a time: while it is filled, the one before travels. */
static int send_pieces(const struct passage *p, float *weights, struct err *err)
{
	struct backend *be = p->load->be;

	for (size_t first = 0, count, floats, turn = 0; first < p->pieces->count; first += count, turn++) {
		float *buffer = p->buffer[turn % BUFFERS], *to = weights + block_piece_of(p->pieces, first).at;

		count = pieces_that_fit(p->pieces, first, p->floats, &floats);
		if (fill(p->pool, p->pieces, &p->load->reader, first, count, buffer, err) != 0 ||
		    be->ops->memory_wait(be, err) != 0 ||
		    be->ops->memory_begin(be, to, buffer, floats * sizeof(*to), err) != 0)
			return -1;
	}
	return 0;
}

static int load_room(const struct layer_load *l, struct pool *pool, const struct block_pieces *pieces,
		     struct layer_room *room, struct err *err)
{
	struct passage p = { .load = l, .pool = pool, .pieces = pieces, .floats = buffer_floats(pieces) };
	int rc = -1;

	if (take_room(room, l->be, pieces->floats, err) == 0 && take_buffers(&p, err) == 0)
		rc = send_pieces(&p, room->weights, err);
	/* Whatever came of it, nothing is under way when buffers and memory are given back. */
	if (l->be->ops->memory_wait(l->be, rc == 0 ? err : NULL) != 0)
		rc = -1;
	give_buffers(&p);
	return rc;
}

/* --- the whole ---------------------------------------------------------------------------------------------- */

static int thread_count(const struct layer_load *l)
{
	const int threads = l->reader.threads ? l->threads : 1;

	return threads < 1 ? 1 : threads < THREADS_MAX ? threads : THREADS_MAX;
}

static int load(const struct layer_load *l, struct block *block, struct layer_room *room, struct err *err)
{
	const size_t most = l->reader.threads ? PIECE_FLOATS : BUFFER_FLOATS;
	struct block_pieces pieces;
	struct pool *pool;
	int rc;

	if (block_pieces_init(&pieces, l->config, l->layer, most, err) != 0)
		return -1;
	pool = pool_new(thread_count(l), err);
	if (!pool)
		return -1;
	if (l->be->ops->own_memory) {
		block_free(block); /* a copy of what was there before */
		rc = load_room(l, pool, &pieces, room, err);
	} else {
		rc = load_array(l, pool, &pieces, block, err);
	}
	pool_free(pool);
	return rc;
}

int layer_load(const struct layer_load *l, struct block *block, struct layer_room *room, struct err *err)
{
	if (load(l, block, room, err) != 0) {
		block_free(block);
		layer_room_free(room);
		return -1;
	}
	block->shape = block_shape_of(l->config);
	return 0;
}

int layer_load_ordinary(const struct model_config *config, struct block *block, const struct layer_room *room,
			struct err *err)
{
	struct backend *be = room->be;
	struct block copy = { 0 };

	if (block->data)
		return 0;
	if (take_array(&copy, room->floats, err) != 0)
		return -1;
	if (be->ops->memory_copy(be, copy.data, room->weights, room->floats * sizeof(float), err) != 0) {
		block_free(&copy);
		return -1;
	}
	copy.shape = block->shape;
	copy.w = block_weights_at(config, copy.data);
	*block = copy;
	return 0;
}

struct block_weights layer_room_weights(const struct model_config *config, const struct block *block,
					const struct layer_room *room)
{
	return room->weights ? block_weights_at(config, room->weights) : block->w;
}
