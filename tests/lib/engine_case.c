#include "tests/lib/engine_case.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/model_config.h"
#include "common/safetensors.h"

const char *play_subject;
const char *play_idempotency_key;
bool play_dry_run;
const char *const play_small_recipe =
	"{'bits':2,'group_size':64,'samples':8,'seq_len':64,'eval_windows':2,'effort':'fast'}";
const char *const play_distilled_recipe =
	"{'bits':2,'group_size':64,'samples':8,'seq_len':64,'eval_windows':2}";

/* --- clock -------------------------------------------------------------------- */

static int64_t play_wall_ms(void *ctx)
{
	return ((struct engine_case *)ctx)->now_ms + ((struct engine_case *)ctx)->wall_ahead_ms;
}

static int64_t play_mono_ms(void *ctx)
{
	return ((struct engine_case *)ctx)->now_ms;
}

static int play_random(void *ctx, char *out, size_t bytes)
{
	struct engine_case *c = ctx;
	char hex[17];

	snprintf(hex, sizeof(hex), "%016" PRIx64, ++c->random * 0x9e3779b97f4a7c15u);
	for (size_t i = 0; i < 2 * bytes; i++)
		out[i] = hex[i % 16];
	out[2 * bytes] = '\0';
	return 0;
}

static void heard(void *ctx, char kind, const char *id)
{
	struct engine_case *c = ctx;

	(void)id;
	if (kind == 'L')
		c->wakes++;
}

void play_open(struct engine_case *c)
{
	static char root[4096], here[4096];
	struct engine_config config = { .data_dir = c->data_dir, .clock = &c->clock, .lease_ms = 60000,
					.accept_ms = 10000, .max_attempts = 3, .background = c->background };
	struct err err = ERR_INIT;

	if (!c->data_dir[0])
		snprintf(c->data_dir, sizeof(c->data_dir), "data");
	snprintf(root, sizeof(root), "%s/examples", getenv("QUARRY_ROOT") ? getenv("QUARRY_ROOT") : ".");
	c->roots[0] = root;
	if (!c->roots[1] && realpath(".", here))
		c->roots[1] = here;
	if (c->now_ms == 0)
		c->now_ms = 1000000;
	c->clock = (struct clock){ play_wall_ms, play_mono_ms, play_random, c };
	assert_int_equal(dir_make(c->data_dir, &err), 0);
	c->blobs = blobs_open(c->data_dir, &err);
	if (!c->blobs)
		fail_msg("blobs_open: %s", err.text);
	config.blobs = c->blobs;
	config.model_roots = c->roots;
	c->engine = engine_open(&config, NULL, NULL, &err);
	if (!c->engine)
		fail_msg("engine_open: %s", err.text);
	if (!c->background)
		engine_on_change(c->engine, heard, c);
}

void play_close(struct engine_case *c)
{
	engine_close(c->engine);
	blobs_close(c->blobs);
	c->engine = NULL;
	c->blobs = NULL;
}

/* --- calls -------------------------------------------------------------------- */

static struct json *body_of(const char *fmt, va_list args)
{
	struct err err = ERR_INIT;
	struct json *body;
	char *text = NULL;
	int len;

	if (!fmt)
		return NULL;
	len = vasprintf(&text, fmt, args);
	assert_true(len >= 0);
	for (char *p = text; *p; p++)
		if (*p == '\'')
			*p = '"';
	body = json_parse(text, (size_t)len, &err);
	if (!body)
		fail_msg("%s in %s", err.text, text);
	free(text);
	return body;
}

static void call(struct engine_case *c, enum verb verb, const char *id, struct json *body,
		 struct engine_reply *reply)
{
	struct engine_request r = { .verb = verb, .role = ROLE_ADMIN, .body = body, .dry_run = play_dry_run };

	snprintf(r.subject, sizeof(r.subject), "%s", play_subject ? play_subject : "tester");
	snprintf(r.id, sizeof(r.id), "%s", id ? id : "");
	snprintf(r.idempotency_key, sizeof(r.idempotency_key), "%s", play_idempotency_key ? play_idempotency_key : "");
	engine_call(c->engine, &r, reply);
	engine_request_deinit(&r);
}

struct json *play_call(struct engine_case *c, enum verb verb, const char *id, int status, const char *fmt, ...)
{
	struct engine_reply reply;
	struct json *body;
	va_list args;

	va_start(args, fmt);
	call(c, verb, id, body_of(fmt, args), &reply);
	va_end(args);
	if (reply.err.code != ERR_NONE)
		fail_msg("verb %d %s: %s: %s", verb, id ? id : "", err_name(reply.err.code), reply.err.text);
	assert_int_equal(reply.status, status);
	body = reply.body;
	reply.body = NULL;
	engine_reply_deinit(&reply);
	return body;
}

const char *play_refused(struct engine_case *c, enum verb verb, const char *id, enum err_code code,
			 const char *fmt, ...)
{
	static char text[ERR_TEXT_MAX];
	struct engine_reply reply;
	va_list args;

	va_start(args, fmt);
	call(c, verb, id, body_of(fmt, args), &reply);
	va_end(args);
	if (reply.err.code != code)
		fail_msg("verb %d %s: wanted %s, got %s: %s", verb, id ? id : "", err_name(code),
			 err_name(reply.err.code), reply.err.text);
	snprintf(text, sizeof(text), "%s", reply.err.text);
	engine_reply_deinit(&reply);
	return text;
}

/* --- models ------------------------------------------------------------------- */

struct zero_model { struct st_item items[4096]; size_t count; };

static int add_zero_tensor(void *ctx, const struct model_tensor *t)
{
	static const float zeros[4096];
	struct zero_model *m = ctx;
	struct st_tensor tensor = { .name = mem_strdup(t->name), .dtype = ST_F32, .ndim = t->dim[1] ? 2 : 1,
				    .shape = { t->dim[0], t->dim[1] } };

	assert_true(m->count < 4096 && t->dim[0] * (t->dim[1] ? t->dim[1] : 1) <= 4096);
	m->items[m->count++] = (struct st_item){ tensor, zeros };
	return 0;
}

void play_make_model(struct engine_case *c, const char *dir, size_t layers)
{
	static struct zero_model m;
	struct model_config config;
	struct err err = ERR_INIT;
	char text[1024], path[512], here[4096];
	int len = snprintf(text, sizeof(text),
			   "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,"
			   "\"intermediate_size\":16,\"num_attention_heads\":1,\"num_key_value_heads\":1,\"head_dim\":8,"
			   "\"num_hidden_layers\":%zu,\"vocab_size\":16,\"max_position_embeddings\":4096,"
			   "\"rms_norm_eps\":1e-05,\"rope_theta\":10000.0,\"hidden_act\":\"silu\","
			   "\"tie_word_embeddings\":true,\"torch_dtype\":\"float32\"}", layers);

	assert_int_equal(dir_make(dir, &err), 0);
	if (model_config_parse(&config, text, (size_t)len, NULL, &err) != 0)
		fail_msg("%s", err.text);
	m.count = 0;
	assert_int_equal(model_each_tensor(&config, add_zero_tensor, &m), 0);
	snprintf(path, sizeof(path), "%s/model.safetensors", dir);
	if (st_write_file(path, m.items, m.count, NULL, NULL, 0, &err) != 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < m.count; i++)
		mem_free(m.items[i].tensor.name);
	snprintf(path, sizeof(path), "%s/config.json", dir);
	assert_int_equal(file_write_atomic(path, text, (size_t)len, &err), 0);
	snprintf(path, sizeof(path), "%s/tokenizer.json", dir);
	assert_int_equal(file_write_atomic(path, "{}", 2, &err), 0);
	assert_non_null(realpath(dir, here));
	snprintf(c->model_path, sizeof(c->model_path), "%s", here);
}

const char *play_model(struct engine_case *c)
{
	static char id[64];
	struct engine_reply reply;
	char path[4200];
	struct json *body = json_new_object();

	if (c->model_path[0])
		snprintf(path, sizeof(path), "%s", c->model_path);
	else
		snprintf(path, sizeof(path), "%s/fable-tiny", c->roots[0]);
	json_set_string(body, "path", path);
	call(c, VERB_MODEL_ADD, "", body, &reply);
	if (reply.err.code != ERR_NONE)
		fail_msg("model: %s", reply.err.text);
	snprintf(id, sizeof(id), "%s", json_get_string(reply.body, "model", ""));
	engine_reply_deinit(&reply);
	return id;
}

void play_submit(struct engine_case *c, char out[64], const char *recipe)
{
	struct json *body = play_call(c, VERB_JOB_SUBMIT, "", 201, "{'model':'%s','recipe':%s}", play_model(c), recipe);

	snprintf(out, 64, "%s", json_get_string(body, "job", ""));
	json_free(body);
}

void play_worker(struct engine_case *c, char out[64], const char *name)
{
	struct json *body = play_call(c, VERB_WORKER_ADD, "", 201,
				      "{'name':'%s','backend':'ref','identity':'played','threads':1,"
				      "'memory_bytes':1000000000,'version':'1','sees_paths':true}", name);

	snprintf(out, 64, "%s", json_get_string(body, "worker", ""));
	json_free(body);
}

/* --- a played worker ---------------------------------------------------------- */

bool play_lease(struct engine_case *c, const char *worker, struct play_lease *out)
{
	struct json *body = json_new_object();
	struct engine_reply reply;

	json_set_string(body, "worker", worker);
	call(c, VERB_LEASE, "", body, &reply);
	if (reply.err.code != ERR_NONE)
		fail_msg("lease: %s", reply.err.text);
	if (reply.status == 204) {
		engine_reply_deinit(&reply);
		return false;
	}
	assert_int_equal(reply.status, 200);
	memset(out, 0, sizeof(*out));
	out->json = reply.body;
	snprintf(out->task, sizeof(out->task), "%s", json_get_string(reply.body, "task", ""));
	snprintf(out->kind, sizeof(out->kind), "%s", json_get_string(reply.body, "kind", ""));
	snprintf(out->worker, sizeof(out->worker), "%s", worker);
	out->epoch = json_get_int(reply.body, "epoch", -1);
	return true;
}

void play_lease_drop(struct play_lease *l)
{
	json_free(l->json);
	l->json = NULL;
}

void play_heartbeat(struct engine_case *c, const struct play_lease *l, double progress, int status)
{
	if (status == 200)
		json_free(play_call(c, VERB_HEARTBEAT, l->task, 200,
				    "{'worker':'%s','epoch':%" PRId64 ",'progress':%g,'note':'at it'}", l->worker,
				    l->epoch, progress));
	else
		play_refused(c, VERB_HEARTBEAT, l->task, ERR_CONFLICT, "{'worker':'%s','epoch':%" PRId64 "}", l->worker,
			     l->epoch);
}

/* One module's row, made up from its name. */
static void put_module(struct buf *out, const struct json *m, bool first)
{
	const char *name = json_get_string(m, "name", "");
	double loss = 1 + (double)(strlen(name) % 7) / 7;

	buf_printf(out, "%s{\"name\":\"%s\",", first ? "" : ",", name);
	if (json_get_bool(m, "skip", false))
		buf_puts(out, "\"skip\":true}");
	else
		buf_printf(out, "\"rows\":8,\"cols\":8,\"bits\":%" PRId64 ",\"group_size\":%" PRId64
			   ",\"init_objective\":0.5,\"loss_exact\":2.0,\"loss_nearest\":2.5,\"loss_rounded\":%.17g,\"refine_rounds\":2,"
			   "\"loss\":%.17g,\"energy\":40,\"damp\":0.01,"
			   "\"damp_retries\":%d,\"bits_per_weight\":2.5}", json_get_int(m, "bits", 0),
			   json_get_int(m, "group_size", 0), 2 * loss, loss, strstr(name, "layers.1.mlp.up") != NULL);
}

static bool has_input(const struct play_lease *l, const char *name)
{
	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i))
		if (strcmp(json_get_string(i, "name", ""), name) == 0)
			return true;
	return false;
}

/* What a quantize task tells of training its block. */
static const char *block_result(const struct json *spec)
{
	return json_type(json_get(spec, "distill")) != JSON_OBJECT ? "" :
	       ",\"distill\":{\"before\":0.25,\"after\":0.125,\"kept\":true,\"steps\":2,\"curve\":[[1,0.25],[2,0.2]]}";
}

static void put_result(struct buf *out, const struct play_lease *l)
{
	const struct json *spec = json_get(l->json, "spec");

	if (strcmp(l->kind, "verify") == 0)
		buf_printf(out, "{\"sha256\":\"%064d\",\"bytes\":10,\"tensors\":3}", 7);
	else if (strcmp(l->kind, "tokenize") == 0)
		buf_puts(out, "{\"sequences\":8,\"tokens\":512,\"text_tokens\":1000}");
	else if (strcmp(l->kind, "evaluate") == 0)
		buf_printf(out, "{\"nll\":%.17g,\"predictions\":63,\"windows\":1,\"first_window\":%" PRId64 "%s}",
			   200 + 0.1 * (double)json_get_int(spec, "chunk", 0) +
			   (strcmp(json_get_string(spec, "model", ""), "quantized") == 0),
			   json_get_int(spec, "chunk", 0), has_input(l, "reference") ? ",\"kl\":6.3,\"top1\":56" : "");
	else if (strcmp(l->kind, "distill") == 0)
		buf_puts(out, "{\"before\":{\"kl\":0.5,\"hidden\":0.25},\"after\":{\"kl\":0.375,\"hidden\":0.125},"
			 "\"kept\":true,\"steps\":12,\"resumed_at\":0,\"curve\":[[6,0.5,0.25],[12,0.4,0.2]]}");
	else if (strcmp(l->kind, "assemble") == 0)
		buf_puts(out, "{\"bytes\":100,\"rounding\":0.00390625}");
	else if (strcmp(l->kind, "quantize") == 0) {
		bool first = true;

		buf_puts(out, "{\"tokens\":512,\"modules\":[");
		for (const struct json *m = json_first(json_get(spec, "modules")); m; m = json_next(m), first = false)
			put_module(out, m, first);
		buf_printf(out, "]%s}", block_result(spec));
	} else {
		buf_puts(out, "{}");
	}
}

static const char *output_name(const char *kind)
{
	static const char *const names[][2] = { { "tokenize", "tokens" }, { "embed", "hidden" },
						{ "capture", "hidden" }, { "quantize", "layer" },
						{ "assemble", "file" }, { "evaluate", "hidden" } };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (strcmp(kind, names[i][0]) == 0)
			return names[i][1];
	return NULL;
}

/* Output bytes: kind, name and spec, so that equal tasks give equal blobs. */
static void put_output(struct engine_case *c, struct buf *out, const struct play_lease *l, const char *name, bool first)
{
	char *spec = json_print(json_get(l->json, "spec"), false), *text = NULL, sha256[DIGEST_HEX];
	struct err err = ERR_INIT;
	int len = asprintf(&text, "%s %s %s", l->kind, name, spec);

	assert_int_equal(blobs_put(c->blobs, text, (size_t)len, sha256, &err), 0);
	json_free(play_call(c, VERB_BLOB_ADD, sha256, 201, "{'sha256':'%s','bytes':%d}", sha256, len));
	buf_printf(out, "%s{\"name\":\"%s\",\"sha256\":\"%s\",\"bytes\":%d}", first ? "" : ",", name, sha256, len);
	mem_free(spec);
	free(text);
}

/* A distill task hands in what it was given, layer by layer. */
static void put_layers(struct engine_case *c, struct buf *out, const struct play_lease *l)
{
	bool first = true;

	for (const struct json *i = json_first(json_get(l->json, "inputs")); i; i = json_next(i)) {
		const char *name = json_get_string(i, "name", "");

		if (strncmp(name, "layer-", 6) != 0)
			continue;
		put_output(c, out, l, name, first);
		first = false;
	}
}

static void put_outputs(struct engine_case *c, struct buf *out, const struct play_lease *l)
{
	const char *name = output_name(l->kind);
	bool keeps = strcmp(l->kind, "evaluate") != 0 || json_get_bool(json_get(l->json, "spec"), "keep_hidden", false);

	buf_puts(out, "[");
	if (strcmp(l->kind, "distill") == 0)
		put_layers(c, out, l);
	else if (name && keeps)
		put_output(c, out, l, name, true);
	buf_puts(out, "]");
}

void play_make_outputs(struct engine_case *c, const struct play_lease *l, char *out, size_t cap)
{
	struct buf text;

	buf_init(&text, cap);
	buf_puts(&text, "\"outputs\":");
	put_outputs(c, &text, l);
	buf_puts(&text, ",\"result\":");
	put_result(&text, l);
	assert_false(buf_failed(&text));
	snprintf(out, cap, "%s", buf_text(&text));
	buf_deinit(&text);
}

void play_complete(struct engine_case *c, const struct play_lease *l, int status)
{
	static char work[1 << 16];

	play_make_outputs(c, l, work, sizeof(work));
	if (status == 200)
		json_free(play_call(c, VERB_COMPLETE, l->task, 200,
				    "{'worker':'%s','epoch':%" PRId64 ",%s,'stats':{'wall_ms':5,'cpu_ms':4,"
				    "'peak_rss_bytes':1000,'backend':'ref','identity':'played'}}",
				    l->worker, l->epoch, work));
	else
		play_refused(c, VERB_COMPLETE, l->task, status == 409 ? ERR_CONFLICT : ERR_CANCELLED,
			     "{'worker':'%s','epoch':%" PRId64 ",%s,'stats':{}}", l->worker, l->epoch, work);
}

int play_drain(struct engine_case *c, const char *worker)
{
	struct play_lease l;
	int done = 0;

	while (play_lease(c, worker, &l)) {
		play_heartbeat(c, &l, 0.5, 200);
		play_complete(c, &l, 200);
		play_lease_drop(&l);
		done++;
	}
	return done;
}

/* --- results ------------------------------------------------------------------ */

char *play_file(struct engine_case *c, const char *job, const char *path, size_t *len)
{
	struct engine_request r = { .verb = VERB_JOB_FILES, .role = ROLE_ADMIN };
	struct engine_reply reply;
	struct err err = ERR_INIT;
	uint64_t bytes;
	char *text;
	int fd;

	snprintf(r.id, sizeof(r.id), "%s", job);
	snprintf(r.path, sizeof(r.path), "%s", path);
	engine_call(c->engine, &r, &reply);
	if (reply.err.code != ERR_NONE)
		fail_msg("%s", reply.err.text);
	fd = blobs_open_fd(c->blobs, json_get_string(reply.body, "sha256", ""), &bytes, &err);
	engine_reply_deinit(&reply);
	if (fd < 0)
		fail_msg("%s: %s", path, err.text);
	text = mem_alloc((size_t)bytes + 1, 1);
	assert_int_equal(file_pread(fd, text, (size_t)bytes, 0, path, &err), 0);
	close(fd);
	*len = (size_t)bytes;
	return text;
}

const char *play_job_state(struct engine_case *c, const char *job)
{
	static char state[32];
	struct json *body = play_call(c, VERB_JOB_GET, job, 200, NULL);

	snprintf(state, sizeof(state), "%s", json_get_string(body, "state", "?"));
	json_free(body);
	return state;
}
