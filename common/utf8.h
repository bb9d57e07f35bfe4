/* utf8.h - the few operations on UTF-8 that untrusted text needs. Pure, thread-safe. */
#ifndef QUARRY_COMMON_UTF8_H
#define QUARRY_COMMON_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length 1..4 of the well-formed sequence at `bytes` (`left` bytes remain, at least 1), or 0:
 * overlong forms, surrogates, values above U+10FFFF and cut sequences are not well-formed. */
size_t utf8_sequence(const char *bytes, size_t left);
/* Writes code point `cp` (a Unicode scalar value); returns its length 1..4. */
size_t utf8_encode(uint32_t cp, char out[4]);
/* The largest length <= limit that does not cut a sequence of well-formed text. */
size_t utf8_cut(const char *text, size_t len, size_t limit);

enum { UTF8_SHOWN_MAX = 128 };
/* A name from an untrusted file, fit for a sentence: cut to 120 bytes (then "..."), control
 * characters and bytes that are not UTF-8 replaced by '?'. Returns `out`. */
const char *utf8_show(char out[UTF8_SHOWN_MAX], const char *text);

#endif
