/* json_scan.h - a strict pull scanner over JSON text (RFC 8259), without a tree.
 *
 * For what a tree parser hides: literal number text, duplicate keys, and documents
 * of 100 MB (safetensors headers). json_parse() also runs it as its gate-keeper.
 * Rejects: invalid UTF-8 or a BOM, raw control characters, lone \u surrogates, leading
 * zeros, numbers beyond double range (1e999), trailing commas, comments, nesting deeper
 * than the limit, and anything but white space around the value.
 * The text must outlive the scanner. Not thread-safe.
 */
#ifndef QUARRY_COMMON_JSON_SCAN_H
#define QUARRY_COMMON_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/err.h"

enum json_token {
	JT_OBJECT_BEGIN, JT_OBJECT_END, JT_ARRAY_BEGIN, JT_ARRAY_END,
	JT_KEY, JT_STRING, JT_NUMBER, JT_TRUE, JT_FALSE, JT_NULL, JT_END,
};

enum { JSON_SCAN_DEPTH_MAX = 128 };

struct json_scan {
	const char *text;
	size_t len, pos;
	unsigned depth, depth_limit;
	unsigned char stack[JSON_SCAN_DEPTH_MAX]; /* private */
	unsigned char state;                      /* private */
	const char *token;                        /* raw bytes of KEY/STRING (inside the quotes) or NUMBER */
	size_t token_len;
	bool token_escaped;                       /* KEY/STRING holds backslash escapes */
};

void json_scan_init(struct json_scan *s, const char *text, size_t len, unsigned depth_limit);
/* Next token, or -1 with err (ERR_INVALID, with the byte offset). JT_END after the value. */
int json_scan_next(struct json_scan *s, enum json_token *token, struct err *err);
/* Skips the value that begins with the next token. */
int json_scan_skip(struct json_scan *s, struct err *err);
/* The current KEY or STRING with escapes resolved, NUL-terminated, *len bytes (may hold NULs);
 * free with mem_free(). NULL when out of memory. */
char *json_scan_text(const struct json_scan *s, size_t *len);
/* The current NUMBER as a plain non-negative integer literal: digits only, <= 2^64-1. */
bool json_scan_u64(const struct json_scan *s, uint64_t *out);
/* Whole-document check, duplicate keys per object included. */
int json_check(const char *text, size_t len, unsigned depth_limit, struct err *err);

#endif
