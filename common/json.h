/* json.h - JSON values; the only module that knows cJSON.
 *
 * Invariants:
 *  1. json_parse() accepts strict RFC 8259 only (json_scan.h checks first):
 *     UTF-8, no duplicate keys in one object, no NUL, depth <= 64, nothing after the value.
 *  2. A value belongs to its parent; the root belongs to whoever parsed or made it.
 *  3. Getters accept NULL objects and never abort: a missing or mistyped member
 *     gives the stated default, json_require_*() gives a sentence naming the field.
 *  4. Builders return -1 when out of memory and then free the value given to them.
 * A value is not thread-safe; reading one from several threads is.
 */
#ifndef QUARRY_COMMON_JSON_H
#define QUARRY_COMMON_JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/buf.h"
#include "common/err.h"

struct json; /* opaque: one value */

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

/* --- reading --------------------------------------------------------------- */

/* Parses len bytes. NULL with err set (ERR_INVALID, or ERR_NOMEM). Free with json_free(). */
struct json *json_parse(const char *text, size_t len, struct err *err);
void json_free(struct json *value);

enum json_type json_type(const struct json *value); /* NULL counts as JSON_NULL */
/* Member of an object (exact, case-sensitive); NULL when absent or not an object. */
struct json *json_get(const struct json *object, const char *key);
/* Members of an array or object. json_at() is O(index): walk with json_first/json_next. */
size_t json_size(const struct json *value);
struct json *json_at(const struct json *array, size_t index);
struct json *json_first(const struct json *container);
struct json *json_next(const struct json *member);
const char *json_key(const struct json *member); /* name of an object's member, else NULL */

const char *json_string(const struct json *value, const char *otherwise);
double json_number(const struct json *value, double otherwise);
bool json_bool(const struct json *value, bool otherwise);
/* Integer value; false when not a number, not integral or outside +-2^53. */
bool json_int(const struct json *value, int64_t *out);

/* The same for a member: json_get_string(o, "name", "") and so on. */
const char *json_get_string(const struct json *object, const char *key, const char *otherwise);
double json_get_number(const struct json *object, const char *key, double otherwise);
int64_t json_get_int(const struct json *object, const char *key, int64_t otherwise);
bool json_get_bool(const struct json *object, const char *key, bool otherwise);

/* Members that must be there. Strings stay owned by the object. 0 or -1 (ERR_INVALID). */
int json_require_string(const struct json *object, const char *key, const char **out, struct err *err);
/* min..max inclusive; the sentence gives the range. */
int json_require_int(const struct json *object, const char *key, int64_t min, int64_t max,
		     int64_t *out, struct err *err);

/* --- building -------------------------------------------------------------- */

struct json *json_new_object(void); /* NULL when out of memory; likewise below */
struct json *json_new_array(void);
struct json *json_new_string(const char *text);
struct json *json_new_number(double number);
struct json *json_new_bool(bool truth);
struct json *json_new_null(void);
struct json *json_copy(const struct json *value);

/* Take ownership of `value` (NULL value = failure, returns -1). A key is set once. */
int json_set(struct json *object, const char *key, struct json *value);
int json_push(struct json *array, struct json *value);
int json_set_string(struct json *object, const char *key, const char *text);
int json_set_number(struct json *object, const char *key, double number);
int json_set_int(struct json *object, const char *key, int64_t number);
int json_set_bool(struct json *object, const char *key, bool truth);
int json_set_null(struct json *object, const char *key);
/* Removes a member if present. */
void json_remove(struct json *object, const char *key);

/* --- printing -------------------------------------------------------------- */

/* Compact or indented text, NUL-terminated; free with mem_free(). NULL when out of memory.
 * Integral numbers up to 2^53 print without a fraction; others with the fewest
 * digits that read back to the same double; NaN and infinity as null. Members keep their order. */
char *json_print(const struct json *value, bool pretty);
/* Appends `text` (UTF-8) quoted and escaped; a failure sticks in the buffer. */
void json_append_string(struct buf *out, const char *text);

#endif
