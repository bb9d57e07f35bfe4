/* tokenizer_parts.h - the stages of a tokenizer, private to worker/model/tokenizer*.c.
 *
 * text -> added tokens as written -> normalizer -> added tokens in normalized text
 *      -> pre-tokenizer -> BPE -> ids; the post-processor puts special tokens around them.
 *
 * Each stage has a loader (its part of tokenizer.json; a missing part is JSON null or NULL) and a
 * function that runs it. Loaded parts are immutable; what a run needs lives in its own struct.
 * Loaders leave the part fit for its deinit when they fail.
 */
#ifndef QUARRY_WORKER_MODEL_TOKENIZER_PARTS_H
#define QUARRY_WORKER_MODEL_TOKENIZER_PARTS_H

#include "common/buf.h"
#include "common/json.h"
#include "worker/model/tokenizer.h"
#include "worker/model/tokenizer_regex.h"
#include "worker/model/tokenizer_unicode.h"

int token_list_push(struct token_list *l, int32_t id, struct err *err);

/* "type" of a part's object, or NULL with err set; `where` names the object in messages. */
const char *part_type(const struct json *object, const char *where, struct err *err);
/* A member that must be true or false. */
int part_bool(const struct json *object, const char *key, const char *where, bool *out,
	      struct err *err);
/* {"String": text} or {"Regex": text}. */
struct pattern *part_pattern(const struct json *pattern, const char *where, struct err *err);
/* `what` is a kind that Quarry does not know: names it and `known`. */
int part_unsupported(const char *where, const char *what, const char *known, struct err *err);

/* --- vocabulary: strings to ids (tokenizer_vocab.c) ----------------------------------------- */

struct vocab_entry { uint64_t text; uint32_t len; int32_t id; };

struct vocab {
	char *bytes; size_t bytes_len, bytes_cap;       /* all strings, one after another */
	struct vocab_entry *entries; size_t count, cap;
	uint32_t *table; size_t mask;                   /* open addressing; index + 1, 0 = free */
	uint64_t seed;                                  /* so that no file can aim at one bucket */
};

uint64_t text_hash(uint64_t seed, const char *text, size_t len);
int vocab_init(struct vocab *v, size_t expected, struct err *err);
void vocab_deinit(struct vocab *v);
/* Id, or -1 when absent. */
int32_t vocab_find(const struct vocab *v, const char *text, size_t len);
/* Adds a string that is not there yet, at most as many as vocab_init() was told. */
int vocab_add(struct vocab *v, const char *text, size_t len, int32_t id, struct err *err);

/* Pairs of ids to what they merge into. */
struct merge { uint64_t pair; uint32_t rank; int32_t id; }; /* id -1 = free */
struct merges { struct merge *table; size_t mask; };

int merges_init(struct merges *m, size_t expected, struct err *err);
void merges_deinit(struct merges *m);
const struct merge *merges_find(const struct merges *m, int32_t left, int32_t right);
/* At most as many pairs as merges_init() was told; a pair that is there is replaced. */
void merges_put(struct merges *m, int32_t left, int32_t right, uint32_t rank, int32_t id);

/* --- the model (tokenizer_model.c loads, tokenizer_bpe.c runs) ------------------------------ */

enum { CHAR_IDS = 1024 };

struct bpe {
	struct vocab vocab;
	struct merges merges;
	int32_t char_id[CHAR_IDS];      /* id of each such code point, or -1 */
	int32_t byte_id[256];           /* id of "<0xNN>", or -1 */
	int32_t unk_id;                 /* -1: none */
	bool unk_missing;               /* named, but not in the vocabulary */
	bool fuse_unk, byte_fallback, ignore_merges;
	bool cut_at_words;              /* no merge reaches across the start of a run of U+2581 */
	int32_t max_id;                 /* -1 when empty */
};

int bpe_load(struct bpe *b, const struct json *model, struct err *err);
void bpe_deinit(struct bpe *b);

/* What one thread needs to run BPE: symbols, queue and the cache of words. */
struct bpe_run;
/* text_len: about how much will be encoded, for the size of the cache. */
struct bpe_run *bpe_run_new(const struct bpe *b, size_t text_len, struct err *err);
void bpe_run_free(struct bpe_run *r);
/* Appends the ids of one pre-token (non-empty, well-formed UTF-8). */
int bpe_encode(struct bpe_run *r, const char *text, size_t len, struct token_list *out,
	       struct err *err);

/* --- normalizers (tokenizer_normalizer.c) --------------------------------------------------- */

enum { NORMALIZERS_MAX = 32 };
enum normalizer_kind { NORMALIZE_FORM, NORMALIZE_PREPEND, NORMALIZE_REPLACE };

struct normalizer {
	enum normalizer_kind kind;
	struct uni_form form;
	struct pattern *pattern;        /* replace */
	char *text; size_t text_len;    /* what to prepend, or the replacement */
};
struct normalizers { struct normalizer items[NORMALIZERS_MAX]; size_t count; };

int normalizers_load(struct normalizers *n, const struct json *json, struct err *err);
void normalizers_deinit(struct normalizers *n);

/* The normalized text: *out points into `text` or into the buffers of `w`, until the next run. */
struct normalize_run { struct buf buf[2]; struct spans spans; };
int normalizers_run(const struct normalizers *n, struct normalize_run *w, struct pattern_state *state,
		    const char *text, size_t len, const char **out, size_t *out_len,
		    struct err *err);

/* --- added tokens (tokenizer_added*.c) ------------------------------------------------------ */

struct added_token {
	int32_t id;
	char *text; size_t len;         /* what to look for: normalized where asked */
	bool single_word, lstrip, rstrip, normalized;
};

/* Tokens sorted by text, none a duplicate. */
struct added_set {
	const struct added_token **items; size_t count;
	size_t first[257];              /* items that begin with byte b: first[b] .. first[b+1]-1 */
};

struct added {
	struct added_token *tokens; size_t count;
	struct added_set written, normalized;
	int32_t max_id;
};

int added_load(struct added *a, const struct json *json, const struct bpe *model,
	       const struct normalizers *normalizers, struct err *err);
void added_deinit(struct added *a);

/* A piece of text: an added token (id >= 0) or text between. */
struct added_part { size_t start, end; int32_t id; };
struct added_parts { struct added_part *items; size_t count, cap; };
int added_find(const struct added_set *set, const char *text, size_t len, struct added_parts *out,
	       struct err *err);

/* --- pre-tokenizers (tokenizer_pre*.c) ------------------------------------------------------ */

enum { STAGES_MAX = 32 };
enum stage_kind { STAGE_SPLIT, STAGE_DIGITS, STAGE_BYTE_LEVEL, STAGE_METASPACE };
enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct stage {
	enum stage_kind kind;
	struct pattern *pattern;        /* split; byte level with its regex; metaspace that splits */
	enum split_behavior behavior;   /* split, digits */
	bool invert;                    /* split */
	bool add_prefix_space;          /* byte level */
	enum prepend_scheme prepend;    /* metaspace */
	char replacement[5];            /* metaspace: one character */
};
struct stages { struct stage items[STAGES_MAX]; size_t count; };

/* has_normalizer: some settings need the original text and are refused then. */
int stages_load(struct stages *s, const struct json *json, bool has_normalizer, struct err *err);
void stages_deinit(struct stages *s);

struct stage_scratch { struct spans spans; struct buf text, piece; };
struct stages_run {
	const struct stages *stages;
	struct pattern_state *state;
	struct bpe_run *bpe;
	struct token_list *out;
	struct err *err;
	struct stage_scratch scratch[STAGES_MAX];
};
void stages_run_init(struct stages_run *r, const struct stages *s);
void stages_run_deinit(struct stages_run *r);
/* Runs a non-empty text through all stages into the model. at_start: it begins the whole text. */
int stages_encode(struct stages_run *r, const char *text, size_t len, bool at_start);

/* --- post-processor (tokenizer_post.c) ------------------------------------------------------ */

/* The template as tokens around the sequence: `sequence` entries copy the text's ids. */
struct post_piece { bool sequence; int32_t id; };
struct post { struct post_piece *pieces; size_t count, cap; int32_t max_id; };

int post_load(struct post *p, const struct json *json, struct err *err);
void post_deinit(struct post *p);

#endif
