/* json.c - a thin layer over cJSON; the only file that knows it. `struct json` is never defined:
 * a pointer to one is a pointer to a cJSON. cJSON allocates through common/alloc.h, so that tests
 * can make each allocation fail. Printing is in json_print.c, on top of what is public here. */
#include "common/json.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "common/alloc.h"
#include "common/json_scan.h"
#include "common/utf8.h"

enum { JSON_DEPTH = 64 };

static void *hook_alloc(size_t bytes)
{
	return mem_alloc(bytes, 1);
}

__attribute__((constructor)) static void install_hooks(void)
{
	cJSON_Hooks hooks = { .malloc_fn = hook_alloc, .free_fn = mem_free };

	cJSON_InitHooks(&hooks);
}

static cJSON *node(const struct json *value)
{
	return (cJSON *)(uintptr_t)value;
}

static struct json *wrap(const cJSON *value)
{
	return (struct json *)(uintptr_t)value;
}

/* --- reading ------------------------------------------------------------------ */

struct json *json_parse(const char *text, size_t len, struct err *err)
{
	cJSON *value;

	if (json_check(text, len, JSON_DEPTH, err) != 0)
		return NULL;
	value = cJSON_ParseWithLength(text, len);
	if (!value) /* json_check() lets nothing through that cJSON cannot read */
		err_set_nomem(err, "a JSON value");
	return wrap(value);
}

void json_free(struct json *value)
{
	cJSON_Delete(node(value));
}

enum json_type json_type(const struct json *value)
{
	const cJSON *v = node(value);

	if (cJSON_IsBool(v))
		return JSON_BOOL;
	if (cJSON_IsNumber(v))
		return JSON_NUMBER;
	if (cJSON_IsString(v))
		return JSON_STRING;
	if (cJSON_IsArray(v))
		return JSON_ARRAY;
	if (cJSON_IsObject(v))
		return JSON_OBJECT;
	return JSON_NULL;
}

static bool is_container(const struct json *value)
{
	return json_type(value) == JSON_ARRAY || json_type(value) == JSON_OBJECT;
}

struct json *json_get(const struct json *object, const char *key)
{
	if (json_type(object) != JSON_OBJECT)
		return NULL;
	return wrap(cJSON_GetObjectItemCaseSensitive(node(object), key));
}

size_t json_size(const struct json *value)
{
	return is_container(value) ? (size_t)cJSON_GetArraySize(node(value)) : 0;
}

struct json *json_at(const struct json *array, size_t index)
{
	if (!is_container(array) || index > INT_MAX)
		return NULL;
	return wrap(cJSON_GetArrayItem(node(array), (int)index));
}

struct json *json_first(const struct json *container)
{
	return is_container(container) ? wrap(node(container)->child) : NULL;
}

struct json *json_next(const struct json *member)
{
	return member ? wrap(node(member)->next) : NULL;
}

const char *json_key(const struct json *member)
{
	return member ? node(member)->string : NULL;
}

const char *json_string(const struct json *value, const char *otherwise)
{
	return json_type(value) == JSON_STRING ? node(value)->valuestring : otherwise;
}

double json_number(const struct json *value, double otherwise)
{
	return json_type(value) == JSON_NUMBER ? node(value)->valuedouble : otherwise;
}

bool json_bool(const struct json *value, bool otherwise)
{
	return json_type(value) == JSON_BOOL ? cJSON_IsTrue(node(value)) : otherwise;
}

bool json_int(const struct json *value, int64_t *out)
{
	double number = json_number(value, NAN);

	if (!(fabs(number) <= 0x1p53) || number != floor(number))
		return false;
	*out = (int64_t)number;
	return true;
}

const char *json_get_string(const struct json *object, const char *key, const char *otherwise)
{
	return json_string(json_get(object, key), otherwise);
}

double json_get_number(const struct json *object, const char *key, double otherwise)
{
	return json_number(json_get(object, key), otherwise);
}

int64_t json_get_int(const struct json *object, const char *key, int64_t otherwise)
{
	int64_t number;

	return json_int(json_get(object, key), &number) ? number : otherwise;
}

bool json_get_bool(const struct json *object, const char *key, bool otherwise)
{
	return json_bool(json_get(object, key), otherwise);
}

int json_require_string(const struct json *object, const char *key, const char **out, struct err *err)
{
	const struct json *value = json_get(object, key);

	if (!value)
		return err_set(err, ERR_INVALID, "the field \"%s\" is missing; it must be a string", key);
	*out = json_string(value, NULL);
	return *out ? 0 : err_set(err, ERR_INVALID, "the field \"%s\" must be a string", key);
}

int json_require_int(const struct json *object, const char *key, int64_t min, int64_t max,
		     int64_t *out, struct err *err)
{
	const struct json *value = json_get(object, key);

	if (value && json_int(value, out) && *out >= min && *out <= max)
		return 0;
	return err_set(err, ERR_INVALID, "the field \"%s\" %s an integer from %lld to %lld", key,
		       value ? "must be" : "is missing; it must be", (long long)min, (long long)max);
}

/* --- building ----------------------------------------------------------------- */

struct json *json_new_object(void)
{
	return wrap(cJSON_CreateObject());
}

struct json *json_new_array(void)
{
	return wrap(cJSON_CreateArray());
}

/* Length of the well-formed UTF-8 that `text` begins with. */
static size_t utf8_prefix(const char *text, size_t len)
{
	size_t done = 0, used;

	while (done < len && (used = utf8_sequence(text + done, len - done)) > 0)
		done += used;
	return done;
}

/* `text` with U+FFFD for each byte that is not UTF-8 (messages may quote hostile names). */
static struct json *new_repaired_string(const char *text, size_t len)
{
	struct json *value = NULL;
	struct buf clean;

	buf_init(&clean, 3 * len);
	for (size_t done = 0; done < len;) {
		size_t good = utf8_prefix(text + done, len - done);

		buf_append(&clean, text + done, good);
		done += good;
		if (done < len && buf_puts(&clean, "\xEF\xBF\xBD") == 0)
			done++;
		if (buf_failed(&clean))
			break;
	}
	if (!buf_failed(&clean))
		value = wrap(cJSON_CreateString(buf_text(&clean)));
	buf_deinit(&clean);
	return value;
}

struct json *json_new_string(const char *text)
{
	size_t len = strlen(text);

	if (utf8_prefix(text, len) < len)
		return new_repaired_string(text, len);
	return wrap(cJSON_CreateString(text));
}

struct json *json_new_number(double number)
{
	return wrap(cJSON_CreateNumber(number));
}

struct json *json_new_bool(bool truth)
{
	return wrap(cJSON_CreateBool(truth));
}

struct json *json_new_null(void)
{
	return wrap(cJSON_CreateNull());
}

struct json *json_copy(const struct json *value)
{
	return wrap(cJSON_Duplicate(node(value), 1));
}

int json_set(struct json *object, const char *key, struct json *value)
{
	if (value && json_type(object) == JSON_OBJECT &&
	    cJSON_AddItemToObject(node(object), key, node(value)))
		return 0;
	json_free(value);
	return -1;
}

int json_push(struct json *array, struct json *value)
{
	if (value && json_type(array) == JSON_ARRAY && cJSON_AddItemToArray(node(array), node(value)))
		return 0;
	json_free(value);
	return -1;
}

int json_set_string(struct json *object, const char *key, const char *text)
{
	return json_set(object, key, json_new_string(text));
}

int json_set_number(struct json *object, const char *key, double number)
{
	return json_set(object, key, json_new_number(number));
}

int json_set_int(struct json *object, const char *key, int64_t number)
{
	return json_set(object, key, json_new_number((double)number));
}

int json_set_bool(struct json *object, const char *key, bool truth)
{
	return json_set(object, key, wrap(cJSON_CreateBool(truth)));
}

int json_set_null(struct json *object, const char *key)
{
	return json_set(object, key, wrap(cJSON_CreateNull()));
}

void json_remove(struct json *object, const char *key)
{
	if (json_type(object) == JSON_OBJECT)
		cJSON_DeleteItemFromObjectCaseSensitive(node(object), key);
}
