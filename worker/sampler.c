#include "worker/sampler.h"

#include <string.h>

#include "common/alloc.h"
#include "common/json.h"

void sampler_deinit(struct sampler *s)
{
	token_list_deinit(&s->ids);
}

static int append_ids(struct token_list *to, const int32_t *ids, size_t count, struct err *err)
{
	if (to->cap - to->count < count) {
		size_t cap = to->cap ? to->cap * 2 : 4096;
		int32_t *grown;

		if (cap < to->count + count)
			cap = to->count + count;
		grown = mem_realloc(to->ids, cap, sizeof(*grown));
		if (!grown)
			return err_set_nomem(err, "token ids");
		to->ids = grown;
		to->cap = cap;
	}
	if (count)
		memcpy(to->ids + to->count, ids, count * sizeof(*ids));
	to->count += count;
	return 0;
}

static int check_ids(const struct sampler *s, const struct token_list *l, struct err *err)
{
	for (size_t i = 0; i < l->count; i++)
		if (l->ids[i] < 0 || (size_t)l->ids[i] >= s->vocab)
			return err_set(err, ERR_INVALID,
				       "%s: token id %d is outside the model's vocabulary of %zu (line %zu)",
				       s->name, l->ids[i], s->vocab, s->lines);
	return 0;
}

/* `input_ids` of a line, appended to out. */
static int copy_ids(const struct sampler *s, const struct json *array, struct token_list *out,
		    struct err *err)
{
	for (const struct json *item = json_first(array); item; item = json_next(item)) {
		int64_t id;
		int32_t narrow;

		if (!json_int(item, &id) || id < 0 || id > INT32_MAX)
			return err_set(err, ERR_INVALID, "%s line %zu: input_ids must hold token ids (integers >= 0)",
				       s->name, s->lines);
		narrow = (int32_t)id;
		if (append_ids(out, &narrow, 1, err) != 0)
			return -1;
	}
	return 0;
}

/* Tokens of one .jsonl line, appended to out. */
static int line_tokens(struct sampler *s, const char *line, size_t len, struct token_list *out,
		       struct err *err)
{
	struct json *object = json_parse(line, len, err);
	const struct json *ids;
	const char *text;
	int rc = -1;

	if (!object)
		return err_prefix(err, "%s line %zu", s->name, s->lines);
	ids = json_get(object, "input_ids");
	text = json_get_string(object, "text", NULL);
	if (ids && json_type(ids) == JSON_ARRAY)
		rc = copy_ids(s, ids, out, err);
	else if (text)
		rc = tokenizer_encode(s->tokenizer, text, strlen(text), true, out, err);
	else
		err_set(err, ERR_INVALID, "%s line %zu: an object with `text` or `input_ids` is needed",
			s->name, s->lines);
	json_free(object);
	return rc;
}

static bool is_blank(const char *line, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (!strchr(" \t\r", line[i]))
			return false;
	return true;
}

/* Next line of text at *pos; false at the end. */
static bool next_line(const char *text, size_t len, size_t *pos, const char **line, size_t *line_len)
{
	const char *end;

	if (*pos >= len)
		return false;
	*line = text + *pos;
	end = memchr(*line, '\n', len - *pos);
	*line_len = end ? (size_t)(end - *line) : len - *pos;
	*pos += *line_len + (end ? 1 : 0);
	return true;
}

/* The number of sequences to collect: with a seed all of them, to choose from. */
static bool enough(const struct sampler *s)
{
	return s->seed == 0 && s->wanted != 0 && s->sequences >= s->wanted;
}

/* splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014). */
static uint64_t next_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void swap_sequences(struct sampler *s, size_t a, size_t b)
{
	for (size_t i = 0; i < s->seq_len; i++) {
		int32_t id = s->ids.ids[a * s->seq_len + i];

		s->ids.ids[a * s->seq_len + i] = s->ids.ids[b * s->seq_len + i];
		s->ids.ids[b * s->seq_len + i] = id;
	}
}

/* Cuts to `wanted` sequences: the first ones, or with a seed as many drawn without replacement. */
static void choose(struct sampler *s)
{
	uint64_t state = s->seed;

	if (s->wanted == 0 || s->sequences <= s->wanted)
		return;
	for (size_t i = 0; s->seed != 0 && i < s->wanted; i++)
		swap_sequences(s, i, i + (size_t)(next_random(&state) % (s->sequences - i)));
	s->sequences = s->wanted;
	s->ids.count = s->wanted * s->seq_len;
}

static int too_little(const struct sampler *s, struct err *err)
{
	if (s->sequences == 0)
		return err_set(err, ERR_REFUSED,
			       "%s: no line has %zu tokens; give longer texts or a smaller --seq-len",
			       s->name, s->seq_len);
	return err_set(err, ERR_REFUSED,
		       "%s: only %zu of its %zu lines have at least %zu tokens, %zu are asked for; give more "
		       "text, --samples %zu or a smaller --seq-len",
		       s->name, s->sequences, s->lines, s->seq_len, s->wanted, s->sequences);
}

int sampler_take_lines(struct sampler *s, const char *text, size_t len, struct err *err)
{
	struct token_list tokens = { 0 };
	const char *line;
	size_t line_len, pos = 0;
	int rc = 0;

	while (rc == 0 && !enough(s) && next_line(text, len, &pos, &line, &line_len)) {
		s->lines++;
		if (is_blank(line, line_len))
			continue;
		tokens.count = 0;
		rc = line_tokens(s, line, line_len, &tokens, err);
		if (rc == 0)
			rc = check_ids(s, &tokens, err);
		s->text_tokens += tokens.count;
		if (rc != 0 || tokens.count < s->seq_len)
			continue;
		rc = append_ids(&s->ids, tokens.ids, s->seq_len, err);
		s->sequences++;
	}
	token_list_deinit(&tokens);
	if (rc == 0 && s->sequences < s->wanted)
		rc = too_little(s, err);
	if (rc == 0)
		choose(s);
	return rc;
}

static int all_tokens(struct sampler *s, const char *text, size_t len, bool jsonl, struct err *err)
{
	const char *line;
	size_t line_len, pos = 0;

	if (!jsonl)
		return tokenizer_encode(s->tokenizer, text, len, true, &s->ids, err) != 0
			? err_prefix(err, "%s", s->name) : 0;
	while (next_line(text, len, &pos, &line, &line_len)) {
		s->lines++;
		if (!is_blank(line, line_len) && line_tokens(s, line, line_len, &s->ids, err) != 0)
			return -1;
	}
	return 0;
}

int sampler_take_windows(struct sampler *s, const char *text, size_t len, bool jsonl, bool exact,
			 struct err *err)
{
	size_t windows;

	if (all_tokens(s, text, len, jsonl, err) != 0 || check_ids(s, &s->ids, err) != 0)
		return -1;
	s->text_tokens = s->ids.count;
	windows = s->ids.count / s->seq_len;
	if (windows == 0 || (exact && windows < s->wanted))
		return err_set(err, ERR_REFUSED,
			       "%s has %zu tokens, which make %zu windows of %zu; %zu are needed: give more text or "
			       "smaller --samples or --seq-len",
			       s->name, s->ids.count, windows, s->seq_len, exact ? s->wanted : (size_t)1);
	s->sequences = windows;
	s->ids.count = windows * s->seq_len;
	choose(s);
	return 0;
}
