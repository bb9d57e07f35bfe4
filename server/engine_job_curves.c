/* VERB_JOB_CURVES: how the losses of distillation fell. Apart from VERB_JOB_GET, which is asked for again and again:
 * this changes only when a task is done. */
#include "server/engine_distill.h"

/* The end-to-end curve alone; null while there is none. */
static struct json *end_curve(struct tx *tx, const struct job_ref *job, struct err *err)
{
	struct json *end = distill_end_json(tx->db, job, DISTILL_CURVE, err);
	struct json *curve = json_type(end) == JSON_OBJECT ? json_copy(json_get(end, "curve")) : json_new_null();

	if (!end) {
		json_free(curve);
		return NULL;
	}
	json_free(end);
	return curve;
}

int verb_job_curves(struct tx *tx, const struct engine_request *r, struct engine_reply *reply)
{
	struct job_ref job;

	if (job_find(tx->db, r->id, &job, &reply->err) != 0)
		return -1;
	reply->status = 200;
	reply->body = json_new_object();
	if ((json_set(reply->body, "layers", distill_layers_json(tx->db, &job, DISTILL_CURVE, &reply->err)) |
	     json_set(reply->body, "distillation", end_curve(tx, &job, &reply->err))) == 0)
		return 0;
	return reply->err.code != ERR_NONE ? -1 : err_set_nomem(&reply->err, "the curves");
}
