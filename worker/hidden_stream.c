#include "worker/hidden_stream.h"

#include "common/alloc.h"

enum { CHUNK_BYTES = 16 << 20 };

/* --- pieces ------------------------------------------------------------------------------------------ */

static size_t piece_end(const struct hidden_stream_config *c, size_t first)
{
	const size_t borders[] = { c->length, c->cut[0], c->cut[1] };
	size_t end = hidden_shards_end(c->in, first);

	if (end - first > c->piece)
		end = first + c->piece;
	for (size_t i = 0; i < sizeof(borders) / sizeof(borders[0]); i++)
		if (borders[i] > first && borders[i] < end)
			end = borders[i];
	return end;
}

static int plan_pieces(struct hidden_pieces *p, const struct hidden_stream_config *c, struct err *err)
{
	size_t i = 0;

	p->sequence_bytes = c->in->seq_len * c->in->width * sizeof(float);
	for (size_t first = 0; first < c->length; first = piece_end(c, first))
		p->count++;
	p->first = mem_alloc(p->count + 1, sizeof(*p->first));
	if (!p->first)
		return err_set_nomem(err, "the pieces of hidden states");
	for (size_t first = 0, end; first < c->length; first = end) {
		end = piece_end(c, first);
		p->first[++i] = end;
		if ((end - first) * p->sequence_bytes > p->largest)
			p->largest = (end - first) * p->sequence_bytes;
	}
	return 0;
}

static size_t piece_bytes(const struct hidden_stream *s, size_t i)
{
	return (size_t)(hidden_pieces_at(&s->pieces, i + 1) - hidden_pieces_at(&s->pieces, i));
}

/* Where the run is after `pieces` of its pieces, or all. */
static uint64_t after(const struct hidden_stream *s, size_t pieces)
{
	return hidden_pieces_at(&s->pieces, pieces < s->pieces.count ? pieces : s->pieces.count);
}

/* --- what the threads do ------------------------------------------------------------------------------- */

static int read_chunk(void *ctx, size_t piece, size_t from, char *bytes, size_t len, struct err *err)
{
	struct hidden_stream *s = ctx;

	return hidden_shards_read_part(s->config.in, s->pieces.first[piece], from, len, bytes, err);
}

static int write_chunk(void *ctx, size_t piece, size_t from, char *bytes, size_t len, struct err *err)
{
	struct hidden_stream *s = ctx;

	return hidden_file_write_part(&s->out, s->pieces.first[piece], from, len, bytes, err);
}

/* --- opening and closing --------------------------------------------------------------------------------- */

static int open_output(struct hidden_stream *s, struct err *err)
{
	const struct hidden_stream_config *c = &s->config;

	if (!c->out_path)
		return 0;
	return hidden_file_create(&s->out, c->out_path, c->length, c->in->seq_len, c->in->width, err);
}

/* One buffer a piece, as far as there are pieces. */
static int take_arrays(struct hidden_stream *s, struct err *err)
{
	const struct backend_ops *ops = s->config.backend->ops;
	const bool own = ops->own_memory, out = s->config.out_path != NULL;
	const size_t bytes = s->pieces.largest;

	for (size_t i = 0; i < HIDDEN_BUFFERS && i < s->pieces.count; i++) {
		struct backend *be = s->config.backend;

		if (!(s->in_buffer[i] = ops->buffer_take(be, bytes, "hidden states", err)) ||
		    (out && !(s->out_buffer[i] = ops->buffer_take(be, bytes, "hidden states", err))) ||
		    (own && !(s->x[i] = ops->memory_take(be, bytes, "hidden states", err))) ||
		    (own && out && !(s->y[i] = ops->memory_take(be, bytes, "hidden states", err))))
			return -1;
	}
	return 0;
}

static struct hidden_lane lane(struct hidden_stream *s, char *const *buffer,
			       int (*work)(void *ctx, size_t piece, size_t from, char *bytes, size_t len, struct err *err))
{
	return (struct hidden_lane){ .pieces = &s->pieces, .buffer = buffer, .work = work, .ctx = s,
				     .chunk = s->config.chunk ? s->config.chunk : CHUNK_BYTES };
}

static int start_lanes(struct hidden_stream *s, struct err *err)
{
	s->reading = lane(s, s->in_buffer, read_chunk);
	s->writing = lane(s, s->out_buffer, write_chunk);
	if (hidden_lane_start(&s->reading, "read hidden states", err) != 0)
		return -1;
	hidden_lane_allow(&s->reading, after(s, HIDDEN_BUFFERS));
	if (!s->config.out_path)
		return 0;
	return hidden_lane_start(&s->writing, "write hidden states", err);
}

int hidden_stream_open(struct hidden_stream *s, const struct hidden_stream_config *config, struct err *err)
{
	*s = (struct hidden_stream){ .config = *config, .out = TENSOR_FILE_CLOSED };
	if (plan_pieces(&s->pieces, config, err) == 0 && open_output(s, err) == 0 && take_arrays(s, err) == 0 &&
	    start_lanes(s, err) == 0)
		return 0;
	hidden_stream_close(s);
	return -1;
}

void hidden_stream_close(struct hidden_stream *s)
{
	struct backend *be = s->config.backend;

	be->ops->memory_wait(be, NULL);
	hidden_lane_stop(&s->reading);
	hidden_lane_stop(&s->writing);
	for (size_t i = 0; i < HIDDEN_BUFFERS; i++) {
		be->ops->buffer_give(be, s->in_buffer[i]);
		be->ops->buffer_give(be, s->out_buffer[i]);
		be->ops->memory_give(be, s->x[i]);
		be->ops->memory_give(be, s->y[i]);
	}
	tensor_file_close(&s->out);
	mem_free(s->pieces.first);
	*s = (struct hidden_stream){ .config = s->config, .out = TENSOR_FILE_CLOSED };
}

/* --- the output -------------------------------------------------------------------------------------------- */

/* Its buffer holds the output of piece i. */
static void put(struct hidden_stream *s, size_t i)
{
	hidden_lane_allow(&s->writing, after(s, i + 1));
}

/* Waits until `pieces` pieces are written. */
static int wait_for_output(struct hidden_stream *s, size_t pieces, struct err *err)
{
	return hidden_lane_wait(&s->writing, after(s, pieces), NULL, err);
}

/* Waits until the output's buffer of piece i is free. */
static int wait_for_buffer(struct hidden_stream *s, size_t i, struct err *err)
{
	return i < HIDDEN_BUFFERS ? 0 : wait_for_output(s, i + 1 - HIDDEN_BUFFERS, err);
}

/* The output of piece i, which has been computed, sets out for its buffer. */
static int fetch(struct hidden_stream *s, size_t i, struct err *err)
{
	struct backend *be = s->config.backend;

	if (wait_for_buffer(s, i, err) != 0)
		return -1;
	return be->ops->memory_begin(be, s->out_buffer[i % HIDDEN_BUFFERS], s->y[i % HIDDEN_BUFFERS], piece_bytes(s, i),
				     err);
}

/* --- the input --------------------------------------------------------------------------------------------- */

/* What has been read of piece i sets out for the backend; all of it: waits for the rest. */
static int send_piece(struct hidden_stream *s, size_t i, bool all, struct err *err)
{
	struct backend *be = s->config.backend;
	const uint64_t begin = hidden_pieces_at(&s->pieces, i), end = hidden_pieces_at(&s->pieces, i + 1);
	uint64_t read;

	while (s->sent < end) {
		const size_t from = (size_t)(s->sent - begin);

		if (hidden_lane_wait(&s->reading, all ? s->sent + 1 : 0, &read, err) != 0)
			return -1;
		if (read <= s->sent)
			return 0;
		read = read < end ? read : end;
		if (be->ops->memory_begin(be, s->x[i % HIDDEN_BUFFERS] + from, s->in_buffer[i % HIDDEN_BUFFERS] + from,
					  (size_t)(read - s->sent), err) != 0)
			return -1;
		s->sent = read;
	}
	return 0;
}

/* --- pieces as they come ------------------------------------------------------------------------------------- */

/* With memory of the backend: the arrays of i - 2 and i + 2 are those of i. */
static int step_through_memory(struct hidden_stream *s, size_t i, struct err *err)
{
	struct backend *be = s->config.backend;

	if (send_piece(s, i, true, err) != 0 || be->ops->memory_wait(be, err) != 0)
		return -1;
	hidden_lane_allow(&s->reading, after(s, i + 1 + HIDDEN_BUFFERS));
	if (s->config.out_path && i >= 2)
		put(s, i - 2);
	if (s->config.out_path && i >= 1 && fetch(s, i - 1, err) != 0)
		return -1;
	return i + 1 < s->pieces.count ? send_piece(s, i + 1, false, err) : 0;
}

/* Computing in the buffers. */
static int step_in_place(struct hidden_stream *s, size_t i, struct err *err)
{
	hidden_lane_allow(&s->reading, after(s, i + HIDDEN_BUFFERS));
	if (s->config.out_path && i >= 1)
		put(s, i - 1);
	if (hidden_lane_wait(&s->reading, after(s, i + 1), NULL, err) != 0)
		return -1;
	return s->config.out_path ? wait_for_buffer(s, i, err) : 0;
}

bool hidden_stream_more(const struct hidden_stream *s)
{
	return s->next < s->pieces.count;
}

int hidden_stream_next(struct hidden_stream *s, struct hidden_piece *piece, struct err *err)
{
	const bool own = s->config.backend->ops->own_memory;
	const size_t i = s->next, at = i % HIDDEN_BUFFERS;
	int rc = own ? step_through_memory(s, i, err) : step_in_place(s, i, err);

	if (rc != 0)
		return -1;
	*piece = (struct hidden_piece){
		.first = s->pieces.first[i], .count = s->pieces.first[i + 1] - s->pieces.first[i],
		.x = (const float *)(own ? s->x[at] : s->in_buffer[at]),
		.y = (float *)(own ? s->y[at] : s->out_buffer[at]),
	};
	s->next++;
	return 0;
}

/* The outputs of the last two pieces are still in the backend's memory, or on their way. */
static int fetch_last(struct hidden_stream *s, struct err *err)
{
	struct backend *be = s->config.backend;
	const size_t count = s->pieces.count;

	if (be->ops->memory_wait(be, err) != 0)
		return -1;
	if (count >= 2)
		put(s, count - 2);
	if (fetch(s, count - 1, err) != 0)
		return -1;
	return be->ops->memory_wait(be, err);
}

int hidden_stream_finish(struct hidden_stream *s, struct err *err)
{
	const size_t count = s->pieces.count;

	if (count > 0) {
		if (s->config.backend->ops->own_memory && fetch_last(s, err) != 0)
			return -1;
		put(s, count - 1);
	}
	return wait_for_output(s, count, err);
}
