/* Compiled patterns and their matches; the only file that knows PCRE2.
 *
 * Allocation goes through common/alloc.h. A pattern is compiled to machine code where that is
 * possible (the results are the same); how far one match may search is bounded, so that a hostile
 * pattern ends in an error.
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/model/tokenizer_regex.h"
#include "worker/model/tokenizer_unicode.h"

enum {
	JIT_STACK_FIRST = 32 * 1024,
	JIT_STACK_MAX = 16 * 1024 * 1024,
	MATCH_STEPS_MAX = 50 * 1000 * 1000,
	MATCH_HEAP_MAX_KIB = 512 * 1024,
};

struct pattern {
	pcre2_code *code;       /* NULL: a literal */
	char *literal;
	size_t literal_len;
};

struct pattern_state {
	pcre2_match_data *data;
	pcre2_match_context *context;
	pcre2_jit_stack *stack;
};

static void *pcre_alloc(size_t size, void *ctx)
{
	(void)ctx;
	return mem_alloc(size, 1);
}

static void pcre_free(void *ptr, void *ctx)
{
	(void)ctx;
	mem_free(ptr);
}

static int compile(struct pattern *p, const struct buf *text, struct err *err)
{
	pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
	pcre2_compile_context *context = general ? pcre2_compile_context_create(general) : NULL;
	PCRE2_UCHAR message[160] = { 0 };
	PCRE2_SIZE offset = 0;
	int number = 0;

	if (context) {
		pcre2_set_newline(context, PCRE2_NEWLINE_LF);
		p->code = pcre2_compile((PCRE2_SPTR)buf_text(text), text->len,
					PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &number,
					&offset, context);
	}
	pcre2_compile_context_free(context);
	pcre2_general_context_free(general);
	if (!context || (!p->code && number == PCRE2_ERROR_HEAP_FAILED))
		return err_set_nomem(err, "a regular expression");
	if (!p->code) {
		pcre2_get_error_message(number, message, sizeof(message));
		return err_set(err, ERR_UNSUPPORTED, "regular expression: %s", (const char *)message);
	}
	/* Without machine code the interpreter finds the same matches. */
	(void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE);
	return 0;
}

struct pattern *pattern_new(const char *regex, struct err *err)
{
	struct pattern *p = mem_alloc(1, sizeof(*p));
	struct buf text;
	int rc;

	if (!p) {
		err_set_nomem(err, "a regular expression");
		return NULL;
	}
	buf_init(&text, (size_t)1 << 24);
	rc = regex_translate(regex, &text, err);
	if (rc == 0)
		rc = compile(p, &text, err);
	buf_deinit(&text);
	if (rc == 0)
		return p;
	pattern_free(p);
	return NULL;
}

struct pattern *pattern_new_literal(const char *text, size_t len, struct err *err)
{
	struct pattern *p = mem_alloc(1, sizeof(*p));

	if (p) {
		p->literal = mem_strndup(text, len);
		p->literal_len = len;
	}
	if (p && p->literal)
		return p;
	pattern_free(p);
	err_set_nomem(err, "a pattern");
	return NULL;
}

void pattern_free(struct pattern *p)
{
	if (!p)
		return;
	pcre2_code_free(p->code);
	mem_free(p->literal);
	mem_free(p);
}

struct pattern_state *pattern_state_new(struct err *err)
{
	pcre2_general_context *general = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
	struct pattern_state *s = mem_alloc(1, sizeof(*s));

	if (s && general) {
		s->data = pcre2_match_data_create(1, general);
		s->context = pcre2_match_context_create(general);
		s->stack = pcre2_jit_stack_create(JIT_STACK_FIRST, JIT_STACK_MAX, general);
	}
	pcre2_general_context_free(general);
	if (!s || !s->data || !s->context) {
		pattern_state_free(s);
		err_set_nomem(err, "a regular expression's matches");
		return NULL;
	}
	pcre2_set_match_limit(s->context, MATCH_STEPS_MAX);
	pcre2_set_heap_limit(s->context, MATCH_HEAP_MAX_KIB);
	if (s->stack)
		pcre2_jit_stack_assign(s->context, NULL, s->stack);
	return s;
}

void pattern_state_free(struct pattern_state *s)
{
	if (!s)
		return;
	pcre2_match_data_free(s->data);
	pcre2_match_context_free(s->context);
	pcre2_jit_stack_free(s->stack);
	mem_free(s);
}

/* Searches from `from`; 1 with *start, *end, or 0. */
static int search(const struct pattern *p, struct pattern_state *s, const char *text, size_t len,
		  size_t from, size_t *start, size_t *end, struct err *err)
{
	const PCRE2_SIZE *ovector;
	const char *hit;
	int rc;

	if (!p->code) {
		hit = memmem(text + from, len - from, p->literal, p->literal_len);
		if (!hit)
			return 0;
		*start = (size_t)(hit - text);
		*end = *start + p->literal_len;
		return 1;
	}
	rc = pcre2_match(p->code, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, s->data, s->context);
	if (rc == PCRE2_ERROR_NOMATCH)
		return 0;
	if (rc == PCRE2_ERROR_NOMEMORY)
		return err_set_nomem(err, "a regular expression's matches");
	if (rc < 0)
		return err_set(err, ERR_REFUSED,
			       "a regular expression of the tokenizer needs too many steps on this text");
	ovector = pcre2_get_ovector_pointer(s->data);
	*start = ovector[0];
	*end = ovector[1];
	return 1;
}

int pattern_spans(const struct pattern *p, struct pattern_state *s, const char *text, size_t len,
		  struct spans *out, struct err *err)
{
	size_t from = 0, done = 0, start = 0, end = 0, n;
	bool any = false;

	out->count = 0;
	while (from <= len) {
		int rc = search(p, s, text, len, from, &start, &end, err);

		if (rc < 0)
			return -1;
		if (rc == 0)
			break;
		if (end == start && any && done == end) {
			n = 1;
			if (from < len)
				uni_decode(text + from, &n);
			from += n;
			continue;
		}
		if (start > done && spans_push(out, done, start, false, err) != 0)
			return -1;
		if (spans_push(out, start, end, true, err) != 0)
			return -1;
		from = done = end;
		any = true;
	}
	return done < len ? spans_push(out, done, len, false, err) : 0;
}
