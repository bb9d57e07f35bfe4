/* Submitting, listing, cancelling, deleting; models, datasets and blobs around them. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/digest.h"
#include "common/file.h"
#include "tests/lib/engine_case.h"

static struct engine_case c;

static void start(const char *dir)
{
	c = (struct engine_case){ 0 };
	snprintf(c.data_dir, sizeof(c.data_dir), "%s", dir);
	play_open(&c);
}

static int64_t blob_count(void)
{
	struct json *body = play_call(&c, VERB_STATS, "", 200, NULL);
	int64_t count = json_get_int(json_get(body, "blobs"), "count", -1);

	json_free(body);
	return count;
}

static void store_blob(const char *text, char sha256[DIGEST_HEX])
{
	struct err err = ERR_INIT;

	assert_int_equal(blobs_put(c.blobs, text, strlen(text), sha256, &err), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, sha256, 201, "{'sha256':'%s','bytes':%zu}", sha256, strlen(text)));
}

/* --- submitting --------------------------------------------------------------- */

static void a_dry_run_stores_nothing(void **state)
{
	struct json *plan;

	(void)state;
	start("dry-run");
	play_dry_run = true;
	plan = play_call(&c, VERB_JOB_SUBMIT, "", 200, "{'model':'%s','recipe':%s}", play_model(&c), play_small_recipe);
	play_dry_run = false;
	assert_int_equal(json_get_int(json_get(plan, "tasks"), "total", 0), 16);
	assert_int_equal(json_get_int(json_get(plan, "tasks"), "capture", 0), 3);
	assert_int_equal(json_size(json_get(plan, "modules")), 28);
	assert_true(json_get_number(plan, "memory_per_task_bytes", 0) > 1e6);
	assert_true(json_get_number(plan, "disk_bytes", 0) > 1e6);
	assert_int_equal(json_size(json_get(plan, "warnings")), 1);
	json_free(plan);
	plan = play_call(&c, VERB_JOB_LIST, "", 200, NULL);
	assert_int_equal(json_size(json_get(plan, "items")), 0);
	json_free(plan);
	assert_int_equal(blob_count(), 0);
	play_close(&c);
}

static void a_repeated_key_is_one_job(void **state)
{
	char model[64], first[64];
	struct json *body;

	(void)state;
	start("idempotency");
	snprintf(model, sizeof(model), "%s", play_model(&c));
	play_idempotency_key = "once";
	body = play_call(&c, VERB_JOB_SUBMIT, "", 201, "{'model':'%s','recipe':{}}", model);
	snprintf(first, sizeof(first), "%s", json_get_string(body, "job", ""));
	json_free(body);
	body = play_call(&c, VERB_JOB_SUBMIT, "", 200, "{'model':'%s','recipe':{}}", model);
	assert_string_equal(json_get_string(body, "job", ""), first);
	json_free(body);
	play_refused(&c, VERB_JOB_SUBMIT, "", ERR_CONFLICT, "{'model':'%s','recipe':{'bits':3}}", model);
	play_subject = "another";
	body = play_call(&c, VERB_JOB_SUBMIT, "", 201, "{'model':'%s','recipe':{'bits':3}}", model);
	assert_string_not_equal(json_get_string(body, "job", ""), first);
	json_free(body);
	play_subject = NULL;
	play_idempotency_key = NULL;
	play_close(&c);
}

static size_t problems_of(const char *fmt, const char *model, const char **first)
{
	struct engine_request r = { .verb = VERB_JOB_SUBMIT };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	static char kept[ERR_TEXT_MAX];
	char text[1024];
	size_t count;

	snprintf(text, sizeof(text), fmt, model);
	for (char *p = text; *p; p++)
		*p = *p == '\'' ? '"' : *p;
	r.body = json_parse(text, strlen(text), &err);
	assert_non_null(r.body);
	engine_call(c.engine, &r, &reply);
	assert_int_equal(reply.err.code, ERR_REFUSED);
	count = json_size(reply.problems);
	snprintf(kept, sizeof(kept), "%s", reply.err.text);
	*first = kept;
	engine_reply_deinit(&reply);
	engine_request_deinit(&r);
	return count;
}

static void what_cannot_work_is_refused_whole(void **state)
{
	const char *first, *model;

	(void)state;
	start("refused");
	model = play_model(&c);
	assert_int_equal(problems_of("{'model':'%s','recipe':{'group_size':100,'seq_len':4096}}", model, &first), 3);
	assert_int_equal(problems_of("{'model':'%s','recipe':{'bits':99,'nonsense':1,'method':'magic'}}", model, &first), 3);
	assert_int_equal(problems_of("{'model':'%s','recipe':{'calibration':'d_none','eval':['d_neither']}}", model, &first), 2);
	assert_non_null(strstr(first, "d_none"));
	play_refused(&c, VERB_JOB_SUBMIT, "", ERR_NOT_FOUND, "{'model':'m_none','recipe':{}}");
	play_refused(&c, VERB_JOB_SUBMIT, "", ERR_INVALID, "{'recipe':{}}");
	play_refused(&c, VERB_JOB_SUBMIT, "", ERR_INVALID, "{'model':'%s','name':'%0300d'}", model, 1);
	assert_int_equal(blob_count(), 0);
	play_close(&c);
}

/* --- lists -------------------------------------------------------------------- */

static void lists_have_pages(void **state)
{
	struct engine_request r = { .verb = VERB_JOB_LIST, .limit = 2 };
	struct engine_reply reply;
	char job[64];
	int seen = 0, pages = 0;

	(void)state;
	start("pages");
	for (int i = 0; i < 5; i++)
		play_submit(&c, job, play_small_recipe);
	do {
		engine_call(c.engine, &r, &reply);
		assert_int_equal(reply.status, 200);
		seen += (int)json_size(json_get(reply.body, "items"));
		snprintf(r.cursor, sizeof(r.cursor), "%s", json_get_string(reply.body, "next", ""));
		engine_reply_deinit(&reply);
		pages++;
	} while (r.cursor[0]);
	assert_int_equal(seen, 5);
	assert_int_equal(pages, 3);
	r.cursor[0] = '\0';
	snprintf(r.state, sizeof(r.state), "DONE");
	engine_call(c.engine, &r, &reply);
	assert_int_equal(json_size(json_get(reply.body, "items")), 0);
	engine_reply_deinit(&reply);
	snprintf(r.state, sizeof(r.state), "LOST");
	engine_call(c.engine, &r, &reply);
	assert_int_equal(reply.err.code, ERR_INVALID);
	engine_reply_deinit(&reply);
	r.state[0] = '\0';
	snprintf(r.cursor, sizeof(r.cursor), "zzz");
	engine_call(c.engine, &r, &reply);
	assert_int_equal(reply.err.code, ERR_INVALID);
	engine_reply_deinit(&reply);
	/* Tasks of a job, in their order. */
	r = (struct engine_request){ .verb = VERB_JOB_TASKS, .limit = 7 };
	snprintf(r.id, sizeof(r.id), "%s", job);
	seen = 0;
	do {
		engine_call(c.engine, &r, &reply);
		assert_int_equal(reply.status, 200);
		seen += (int)json_size(json_get(reply.body, "items"));
		snprintf(r.cursor, sizeof(r.cursor), "%s", json_get_string(reply.body, "next", ""));
		engine_reply_deinit(&reply);
	} while (r.cursor[0]);
	assert_int_equal(seen, 16);
	play_close(&c);
}

static void events_continue_after_a_number(void **state)
{
	struct engine_request r = { .verb = VERB_JOB_EVENTS };
	struct engine_reply reply;
	char job[64], worker[64];
	size_t all;

	(void)state;
	start("events");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	play_drain(&c, worker);
	snprintf(r.id, sizeof(r.id), "%s", job);
	engine_call(c.engine, &r, &reply);
	all = json_size(json_get(reply.body, "items"));
	assert_string_equal(json_get_string(json_at(json_get(reply.body, "items"), 0), "text", ""), "PLANNING=>RUNNING");
	assert_string_equal(json_get_string(json_at(json_get(reply.body, "items"), all - 1), "text", ""), "ASSEMBLING=>DONE");
	assert_string_equal(json_get_string(reply.body, "state", ""), "DONE");
	engine_reply_deinit(&reply);
	r.after = (int64_t)all - 1;
	engine_call(c.engine, &r, &reply);
	assert_int_equal(json_size(json_get(reply.body, "items")), 1);
	assert_int_equal(json_get_int(json_at(json_get(reply.body, "items"), 0), "seq", 0), (int64_t)all);
	engine_reply_deinit(&reply);
	play_close(&c);
}

static void the_etag_changes_with_the_job(void **state)
{
	struct engine_request r = { .verb = VERB_JOB_GET };
	struct engine_reply before, after;
	char job[64], worker[64];
	struct play_lease l;

	(void)state;
	start("etag");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	snprintf(r.id, sizeof(r.id), "%s", job);
	engine_call(c.engine, &r, &before);
	engine_call(c.engine, &r, &after);
	assert_string_equal(before.etag, after.etag);
	engine_reply_deinit(&after);
	assert_true(play_lease(&c, worker, &l));
	engine_call(c.engine, &r, &after);
	assert_string_not_equal(before.etag, after.etag);
	engine_reply_deinit(&before);
	before = after;
	play_heartbeat(&c, &l, 0.5, 200);
	engine_call(c.engine, &r, &after);
	assert_string_not_equal(before.etag, after.etag);
	assert_true(json_get_number(after.body, "progress", 0) > 0);
	engine_reply_deinit(&before);
	engine_reply_deinit(&after);
	play_lease_drop(&l);
	play_close(&c);
}

/* --- blobs -------------------------------------------------------------------- */

static bool output_stored(const char *sha256)
{
	return blobs_has(c.blobs, sha256, NULL);
}

static void hidden_states_go_with_their_last_reader(void **state)
{
	char job[64], worker[64], sha256[8][80];
	struct play_lease l;
	int made = 0;

	(void)state;
	start("hidden");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	while (play_lease(&c, worker, &l)) {
		const bool quantize = strcmp(l.kind, "quantize") == 0, capture = strcmp(l.kind, "capture") == 0;

		if (quantize)
			snprintf(sha256[made++], 80, "%s",
				 json_get_string(json_at(json_get(l.json, "inputs"), 0), "sha256", ""));
		if (quantize || capture) /* needed until this very task is done */
			assert_true(output_stored(sha256[made - 1]));
		play_complete(&c, &l, 200);
		/* The capture of the same layer reads it after the quantize; the last layer has none. */
		if (quantize)
			assert_int_equal(output_stored(sha256[made - 1]), made < 4);
		if (capture)
			assert_false(output_stored(sha256[made - 1]));
		play_lease_drop(&l);
	}
	assert_int_equal(made, 4);
	/* What is left: two shipped texts and the result's files. */
	assert_int_equal(blob_count(), 2 + 2 + 2 + 1 + 2 + 3);
	play_close(&c);
}

static void a_deleted_job_leaves_nothing(void **state)
{
	char keep[64], drop[64], worker[64];
	size_t len;

	(void)state;
	start("delete");
	play_submit(&c, keep, play_small_recipe);
	play_submit(&c, drop, "{'bits':3,'samples':8,'seq_len':64,'eval_windows':2,'effort':'fast'}");
	play_refused(&c, VERB_JOB_DELETE, drop, ERR_CONFLICT, NULL);
	play_worker(&c, worker, "one");
	play_drain(&c, worker);
	json_free(play_call(&c, VERB_JOB_DELETE, drop, 204, NULL));
	play_refused(&c, VERB_JOB_GET, drop, ERR_NOT_FOUND, NULL);
	play_refused(&c, VERB_JOB_DELETE, drop, ERR_NOT_FOUND, NULL);
	assert_int_equal(blob_count(), 2 + 2 + 2 + 1 + 2 + 3);
	mem_free(play_file(&c, keep, "dense/tokenizer.json", &len)); /* shared with the deleted job */
	json_free(play_call(&c, VERB_JOB_DELETE, keep, 204, NULL));
	assert_int_equal(blob_count(), 2);
	play_close(&c);
}

static void a_cancelled_job_drops_its_outputs(void **state)
{
	char job[64], worker[64];
	struct play_lease l;

	(void)state;
	start("cancel-drops");
	play_submit(&c, job, play_small_recipe);
	play_worker(&c, worker, "one");
	for (int i = 0; i < 15; i++) {
		assert_true(play_lease(&c, worker, &l));
		play_complete(&c, &l, 200);
		play_lease_drop(&l);
	}
	assert_true(blob_count() > 4);
	json_free(play_call(&c, VERB_JOB_CANCEL, job, 200, NULL));
	assert_int_equal(blob_count(), 2);
	play_close(&c);
}

static void a_blob_row_needs_its_file(void **state)
{
	char hex[DIGEST_HEX];

	(void)state;
	start("blob-add");
	assert_int_equal(digest_of("never stored", 12, hex), 0);
	play_refused(&c, VERB_BLOB_ADD, hex, ERR_CORRUPT, "{'sha256':'%s','bytes':12}", hex);
	play_refused(&c, VERB_BLOB_ADD, "", ERR_INVALID, "{'sha256':'../../etc'}");
	store_blob("stored", hex);
	c.now_ms += INT64_C(25) * 3600 * 1000; /* a day later nobody has named it */
	engine_tick(c.engine);
	assert_int_equal(blob_count(), 0);
	assert_false(output_stored(hex));
	play_close(&c);
}

/* --- datasets ----------------------------------------------------------------- */

static void datasets(void **state)
{
	char hex[DIGEST_HEX], id[64], job[64], recipe[256];
	struct json *body;
	struct buf text;

	(void)state;
	start("datasets");
	buf_init(&text, 1 << 20);
	for (int i = 0; i < 2000; i++)
		buf_printf(&text, "line %d of a text for evaluation\n", i);
	store_blob(buf_text(&text), hex);
	buf_deinit(&text);
	body = play_call(&c, VERB_DATASET_ADD, "", 201, "{'name':'mine.txt','sha256':'%s'}", hex);
	snprintf(id, sizeof(id), "%s", json_get_string(body, "dataset", ""));
	assert_string_equal(json_get_string(body, "format", ""), "text");
	json_free(body);
	play_refused(&c, VERB_DATASET_ADD, "", ERR_CORRUPT, "{'name':'x','sha256':'%064d'}", 0);
	play_refused(&c, VERB_DATASET_ADD, "", ERR_INVALID, "{'name':'','sha256':'%s'}", hex);
	play_refused(&c, VERB_DATASET_ADD, "", ERR_INVALID, "{'name':'x','sha256':'zz'}");
	snprintf(recipe, sizeof(recipe), "{'bits':2,'samples':8,'seq_len':64,'eval':['%s']}", id);
	play_submit(&c, job, recipe);
	assert_non_null(strstr(play_refused(&c, VERB_DATASET_DELETE, id, ERR_CONFLICT, NULL), "not over"));
	json_free(play_call(&c, VERB_JOB_CANCEL, job, 200, NULL));
	json_free(play_call(&c, VERB_DATASET_DELETE, id, 204, NULL));
	assert_false(output_stored(hex));
	play_refused(&c, VERB_DATASET_GET, id, ERR_NOT_FOUND, NULL);
	body = play_call(&c, VERB_DATASET_LIST, "", 200, NULL);
	assert_int_equal(json_size(json_get(body, "items")), 1); /* the shipped calibration text */
	json_free(body);
	play_close(&c);
}

/* --- models ------------------------------------------------------------------- */

static void the_same_folder_is_the_same_model(void **state)
{
	char first[64];
	struct json *body;

	(void)state;
	start("same-model");
	snprintf(first, sizeof(first), "%s", play_model(&c));
	assert_string_equal(play_model(&c), first);
	body = play_call(&c, VERB_MODEL_GET, first, 200, NULL);
	assert_string_equal(json_get_string(body, "name", ""), "fable-tiny");
	assert_int_equal(json_get_int(json_get(body, "config"), "parameters", 0), 1771200);
	assert_int_equal(json_size(json_get(body, "files")), 7);
	json_free(body);
	body = play_call(&c, VERB_MODEL_LIST, "", 200, NULL);
	assert_int_equal(json_size(json_get(body, "items")), 1);
	json_free(body);
	json_free(play_call(&c, VERB_MODEL_DELETE, first, 204, NULL));
	play_refused(&c, VERB_MODEL_DELETE, first, ERR_NOT_FOUND, NULL);
	play_close(&c);
}

static void folders_outside_the_roots_are_forbidden(void **state)
{
	static const char *const paths[] = { "/etc", "/nonexistent", "relative", "", "/" };
	char sneaky[4400];

	(void)state;
	start("roots");
	for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++)
		play_refused(&c, VERB_MODEL_ADD, "", ERR_FORBIDDEN, "{'path':'%s'}", paths[i]);
	snprintf(sneaky, sizeof(sneaky), "%s/../server", c.roots[0]);
	play_refused(&c, VERB_MODEL_ADD, "", ERR_FORBIDDEN, "{'path':'%s'}", sneaky);
	snprintf(sneaky, sizeof(sneaky), "%s/fable-tiny/config.json", c.roots[0]);
	play_refused(&c, VERB_MODEL_ADD, "", ERR_FORBIDDEN, "{'path':'%s'}", sneaky);
	play_refused(&c, VERB_MODEL_ADD, "", ERR_INVALID, "{'name':'x'}");
	play_refused(&c, VERB_MODEL_ADD, "", ERR_INVALID, "{'files':[{'name':'../x','sha256':'%064d'}]}", 0);
	play_close(&c);
}

static void a_broken_model_lists_its_problems(void **state)
{
	struct engine_request r = { .verb = VERB_MODEL_ADD };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	char path[5000];

	(void)state;
	start("broken");
	play_make_model(&c, "broken-model", 2);
	snprintf(path, sizeof(path), "%s/config.json", c.model_path);
	assert_int_equal(file_write_atomic(path, "{\"model_type\":\"mamba\",\"hidden_size\":-1}", 39, &err), 0);
	r.body = json_new_object();
	json_set_string(r.body, "path", c.model_path);
	engine_call(c.engine, &r, &reply);
	assert_true(reply.err.code == ERR_REFUSED || reply.err.code == ERR_UNSUPPORTED);
	assert_int_equal(err_http_status(reply.err.code), 422);
	assert_true(json_size(reply.problems) >= 1);
	engine_reply_deinit(&reply);
	engine_request_deinit(&r);
	play_close(&c);
}

static void upload(const char *name, struct buf *files)
{
	struct err err = ERR_INIT;
	char path[5000], sha256[DIGEST_HEX];
	size_t len;
	char *bytes;

	snprintf(path, sizeof(path), "%s/%s", c.model_path, name);
	bytes = file_read_all(path, 1 << 20, &len, &err);
	assert_non_null(bytes);
	assert_int_equal(blobs_put(c.blobs, bytes, len, sha256, &err), 0);
	json_free(play_call(&c, VERB_BLOB_ADD, sha256, 201, "{'sha256':'%s'}", sha256));
	buf_printf(files, "%s{'name':'%s','sha256':'%s'}", files->len ? "," : "", name, sha256);
	mem_free(bytes);
}

static void a_model_of_uploaded_files(void **state)
{
	char worker[64], job[64], id[64];
	struct json *body;
	struct buf files;
	struct play_lease l;
	size_t len;

	(void)state;
	start("uploaded");
	play_make_model(&c, "to-upload", 2);
	buf_init(&files, 1 << 16);
	upload("config.json", &files);
	upload("model.safetensors", &files);
	upload("tokenizer.json", &files);
	body = play_call(&c, VERB_MODEL_ADD, "", 201, "{'name':'mine','files':[%s]}", buf_text(&files));
	snprintf(id, sizeof(id), "%s", json_get_string(body, "model", ""));
	assert_int_equal(json_type(json_get(body, "path")), JSON_NULL);
	json_free(body);
	json_free(play_call(&c, VERB_MODEL_ADD, "", 200, "{'name':'mine','files':[%s]}", buf_text(&files)));
	play_refused(&c, VERB_MODEL_ADD, "", ERR_CORRUPT,
		     "{'files':[{'name':'config.json','sha256':'%064d'}]}", 0); /* not uploaded */
	body = play_call(&c, VERB_JOB_SUBMIT, "", 201,
			 "{'model':'%s','recipe':{'bits':2,'group_size':8,'samples':8,'seq_len':64,'eval':'none'}}", id);
	snprintf(job, sizeof(job), "%s", json_get_string(body, "job", ""));
	json_free(body);
	assert_non_null(strstr(play_refused(&c, VERB_MODEL_DELETE, id, ERR_CONFLICT, NULL), "not over"));
	play_worker(&c, worker, "one");
	assert_true(play_lease(&c, worker, &l));
	assert_int_equal(json_type(json_get(json_get(l.json, "model"), "path")), JSON_NULL);
	play_complete(&c, &l, 200);
	play_lease_drop(&l);
	play_drain(&c, worker);
	assert_string_equal(play_job_state(&c, job), "DONE");
	mem_free(play_file(&c, job, "dense/tokenizer.json", &len));
	json_free(play_call(&c, VERB_MODEL_DELETE, id, 204, NULL)); /* the job is over */
	mem_free(play_file(&c, job, "dense/tokenizer.json", &len)); /* its own by now */
	body = play_call(&c, VERB_JOB_GET, job, 200, NULL);
	assert_string_equal(json_get_string(json_get(body, "model"), "name", ""), "mine");
	json_free(body);
	buf_deinit(&files);
	play_close(&c);
}

/* --- tokens ------------------------------------------------------------------- */

struct made { char tokens[ROLE_COUNT][80]; int count; };

static void keep_token(void *ctx, enum role role, const char *token)
{
	struct made *m = ctx;

	snprintf(m->tokens[role], sizeof(m->tokens[role]), "%s", token);
	m->count++;
}

static void tokens(void **state)
{
	struct engine_config config = { .data_dir = "tokens", .clock = &clock_system, .lease_ms = 60000,
					.accept_ms = 10000, .max_attempts = 3 };
	struct made m = { 0 };
	struct err err = ERR_INIT;
	struct engine *e;
	char subject[64], again[64];
	enum role role;

	(void)state;
	assert_int_equal(dir_make("tokens", &err), 0);
	config.blobs = blobs_open("tokens", &err);
	e = engine_open(&config, keep_token, &m, &err);
	assert_non_null(e);
	assert_int_equal(m.count, ROLE_COUNT);
	for (int i = 0; i < ROLE_COUNT; i++) {
		assert_int_equal(engine_authenticate(e, m.tokens[i], subject, &role, &err), 0);
		assert_int_equal(role, i);
	}
	assert_int_equal(engine_authenticate(e, "wrong", subject, &role, &err), -1);
	assert_int_equal(err.code, ERR_UNAUTHORIZED);
	assert_int_equal(engine_authenticate(e, "", subject, &role, &err), -1);
	engine_close(e);
	/* A second start makes none, and takes new ones from a file. */
	m.count = 0;
	assert_int_equal(file_write_atomic("tokens.txt", "# mine\nworker:secret-one\n\nadmin:secret-two\r\n", 44, &err), 0);
	config.tokens_file = "tokens.txt";
	e = engine_open(&config, keep_token, &m, &err);
	assert_non_null(e);
	assert_int_equal(m.count, 0);
	assert_int_equal(engine_authenticate(e, "secret-one", subject, &role, &err), 0);
	assert_int_equal(role, ROLE_WORKER);
	assert_int_equal(engine_authenticate(e, "secret-two", again, &role, &err), 0);
	assert_int_equal(role, ROLE_ADMIN);
	assert_string_not_equal(subject, again);
	assert_int_equal(engine_authenticate(e, m.tokens[ROLE_ADMIN], subject, &role, &err), 0);
	engine_close(e);
	assert_int_equal(file_write_atomic("tokens.txt", "worker:short\nking:long-enough\n", 30, &err), 0);
	assert_null(engine_open(&config, keep_token, &m, &err));
	assert_non_null(strstr(err.text, "line 1"));
	blobs_close(config.blobs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_dry_run_stores_nothing),
		cmocka_unit_test(a_repeated_key_is_one_job),
		cmocka_unit_test(what_cannot_work_is_refused_whole),
		cmocka_unit_test(lists_have_pages),
		cmocka_unit_test(events_continue_after_a_number),
		cmocka_unit_test(the_etag_changes_with_the_job),
		cmocka_unit_test(hidden_states_go_with_their_last_reader),
		cmocka_unit_test(a_deleted_job_leaves_nothing),
		cmocka_unit_test(a_cancelled_job_drops_its_outputs),
		cmocka_unit_test(a_blob_row_needs_its_file),
		cmocka_unit_test(datasets),
		cmocka_unit_test(the_same_folder_is_the_same_model),
		cmocka_unit_test(folders_outside_the_roots_are_forbidden),
		cmocka_unit_test(a_broken_model_lists_its_problems),
		cmocka_unit_test(a_model_of_uploaded_files),
		cmocka_unit_test(tokens),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
