/* The manifest of a training state as JSON. Numbers keep every digit, so that what is read equals what was written. */
#include <math.h>
#include <string.h>

#include "common/alloc.h"
#include "worker/distill_state_parts.h"

enum { FORMAT = 1, STEPS_MAX = 1 << 30 };

/* --- printing -------------------------------------------------------------------------------------- */

static struct json *loss_json(struct distill_loss loss)
{
	struct json *pair = json_new_array();

	if (pair && json_push(pair, json_new_number(loss.kl)) == 0 && json_push(pair, json_new_number(loss.hidden)) == 0)
		return pair;
	json_free(pair);
	return NULL;
}

static struct json *digests_json(const struct distill_digest *files, size_t count)
{
	struct json *list = json_new_array();

	for (size_t i = 0; list && i < count; i++)
		if (json_push(list, json_new_string(files[i].hex)) != 0) {
			json_free(list);
			return NULL;
		}
	return list;
}

static struct json *point_json(const struct distill_point *p)
{
	struct json *point = json_new_array();

	if (point && json_push(point, json_new_number((double)p->step)) == 0 &&
	    json_push(point, json_new_number(p->loss.kl)) == 0 &&
	    json_push(point, json_new_number(p->loss.hidden)) == 0)
		return point;
	json_free(point);
	return NULL;
}

struct json *distill_curve_json(const struct distill_course *p)
{
	struct json *curve = json_new_array();

	for (size_t i = 0; curve && i < p->curve_count; i++)
		if (json_push(curve, point_json(&p->curve[i])) != 0) {
			json_free(curve);
			return NULL;
		}
	return curve;
}

static bool set_owner(struct json *o, const struct distill_owner *owner)
{
	return json_set_int(o, "format", FORMAT) == 0 && json_set_string(o, "identity", owner->identity) == 0 &&
	       json_set_string(o, "backend", owner->backend) == 0 && json_set_string(o, "exact", owner->exact) == 0;
}

static bool set_progress(struct json *o, const struct distill_course *p)
{
	return json_set_int(o, "step", p->step) == 0 && json_set_int(o, "probes", p->probes) == 0 &&
	       json_set(o, "before", loss_json(p->before)) == 0 && json_set(o, "best", loss_json(p->best)) == 0 &&
	       json_set_int(o, "best_probe", p->best_probe) == 0 &&
	       json_set(o, "sum", loss_json(p->sum)) == 0 && json_set_int(o, "summed", p->summed) == 0 &&
	       json_set(o, "curve", distill_curve_json(p)) == 0;
}

static bool set_files(struct json *o, const struct distill_state *s)
{
	return json_set_int(o, "state_generation", s->current) == 0 &&
	       json_set_int(o, "best_generation", s->best) == 0 &&
	       json_set(o, "state_files", digests_json(s->files, s->owner.layers)) == 0 &&
	       json_set(o, "best_files", digests_json(s->best_files,
						      s->progress.best_probe > 0 ? s->owner.layers : 0)) == 0;
}

char *distill_manifest_print(const struct distill_state *s, struct err *err)
{
	struct json *o = json_new_object();
	char *text = NULL;

	if (o && set_owner(o, &s->owner) && set_progress(o, &s->progress) && set_files(o, s))
		text = json_print(o, false);
	if (!text)
		err_set_nomem(err, "the manifest of a training state");
	json_free(o);
	return text;
}

/* --- parsing ----------------------------------------------------------------------------------------- */

static int not_ours(struct err *err, const char *what)
{
	return err_set(err, ERR_CORRUPT, "a training state of another %s", what);
}

static int nonsense(struct err *err, const char *field)
{
	return err_set(err, ERR_CORRUPT, "\"%s\" of a training state's manifest makes no sense", field);
}

static int check_owner(const struct json *o, const struct distill_owner *owner, bool any_host, struct err *err)
{
	if (json_get_int(o, "format", 0) != FORMAT)
		return not_ours(err, "version");
	if (strcmp(json_get_string(o, "identity", ""), owner->identity) != 0)
		return not_ours(err, "task");
	if (strcmp(json_get_string(o, "backend", ""), owner->backend) != 0 ||
	    (!any_host && strcmp(json_get_string(o, "exact", ""), owner->exact) != 0))
		return not_ours(err, "backend");
	return 0;
}

static bool finite_number(const struct json *value, double *out)
{
	*out = json_number(value, NAN);
	return isfinite(*out);
}

static int get_loss(const struct json *o, const char *key, struct distill_loss *loss, struct err *err)
{
	const struct json *pair = json_get(o, key);

	if (json_size(pair) != 2 || !finite_number(json_at(pair, 0), &loss->kl) ||
	    !finite_number(json_at(pair, 1), &loss->hidden))
		return nonsense(err, key);
	return 0;
}

static int get_digests(const struct json *o, const char *key, struct distill_digest *files, size_t count,
		       struct err *err)
{
	const struct json *list = json_get(o, key), *item = json_first(list);

	if (json_size(list) != count)
		return nonsense(err, key);
	for (size_t i = 0; i < count; i++, item = json_next(item)) {
		const char *hex = json_string(item, "");

		if (!digest_is_hex(hex))
			return nonsense(err, key);
		memcpy(files[i].hex, hex, DIGEST_HEX);
	}
	return 0;
}

static int get_curve(const struct json *o, struct distill_course *p, struct err *err)
{
	const struct json *list = json_get(o, "curve");

	if (json_size(list) > DISTILL_CURVE_MAX)
		return nonsense(err, "curve");
	for (const struct json *item = json_first(list); item; item = json_next(item)) {
		struct distill_point *point = &p->curve[p->curve_count++];

		if (!json_int(json_at(item, 0), &point->step) || !finite_number(json_at(item, 1), &point->loss.kl) ||
		    !finite_number(json_at(item, 2), &point->loss.hidden))
			return nonsense(err, "curve");
	}
	return 0;
}

static int get_progress(const struct json *o, struct distill_course *p, struct err *err)
{
	*p = (struct distill_course){ 0 };
	if (json_require_int(o, "step", 0, STEPS_MAX, &p->step, err) != 0 ||
	    json_require_int(o, "probes", 0, STEPS_MAX, &p->probes, err) != 0 ||
	    json_require_int(o, "best_probe", 0, STEPS_MAX, &p->best_probe, err) != 0 ||
	    json_require_int(o, "summed", 0, STEPS_MAX, &p->summed, err) != 0 ||
	    get_loss(o, "before", &p->before, err) != 0 || get_loss(o, "best", &p->best, err) != 0 ||
	    get_loss(o, "sum", &p->sum, err) != 0)
		return -1;
	return get_curve(o, p, err);
}

static int get_files(const struct json *o, struct distill_state *s, struct err *err)
{
	const size_t layers = s->owner.layers;
	int64_t current, best;

	if (json_require_int(o, "state_generation", 0, 1, &current, err) != 0 ||
	    json_require_int(o, "best_generation", 0, 1, &best, err) != 0 ||
	    get_digests(o, "state_files", s->files, layers, err) != 0 ||
	    get_digests(o, "best_files", s->best_files, s->progress.best_probe > 0 ? layers : 0, err) != 0)
		return -1;
	s->current = s->target = (int)current;
	s->best = (int)best;
	return 0;
}

int distill_manifest_parse(struct distill_state *s, const char *text, size_t len, bool any_host, struct err *err)
{
	struct json *o = json_parse(text, len, err);
	int rc = -1;

	if (o && check_owner(o, &s->owner, any_host, err) == 0 && get_progress(o, &s->progress, err) == 0)
		rc = get_files(o, s, err);
	json_free(o);
	return rc;
}
