/* The spec of a distill task: docs/protocol.md. */
#include "worker/distill_run.h"

enum { SEQUENCES_MAX = 1000000, BATCH_MAX = 1024, EPOCHS_MAX = 64, WEIGHT_MAX = 1000000 };

static const struct tuned_rates usual = { .code = 0.01f, .scale = 0.003f, .zero = 1e-3f, .norm = 1e-3f };

static int take_rate(const struct json *rates, const char *key, float *rate, struct err *err)
{
	const double value = json_get_number(rates, key, *rate);

	if (!(value >= 0 && value <= 1))
		return err_set(err, ERR_INVALID, "the rate \"%s\" is %g; it must be 0 to 1", key, value);
	*rate = (float)value;
	return 0;
}

static int take_rates(struct tuned_rates *r, const struct json *rates, struct err *err)
{
	*r = usual;
	if (take_rate(rates, "code", &r->code, err) != 0 || take_rate(rates, "scale", &r->scale, err) != 0 ||
	    take_rate(rates, "zero", &r->zero, err) != 0)
		return -1;
	return take_rate(rates, "norm", &r->norm, err);
}

int distill_plan_read(struct distill_plan *p, const struct json *spec, struct err *err)
{
	*p = (struct distill_plan){
		.train_codes = json_get_bool(spec, "train_codes", true),
		.weight_hidden = json_get_number(spec, "weight_hidden", 1), .percent = 1,
	};
	if (json_require_int(spec, "sequences", 1, SEQUENCES_MAX, &p->sequences, err) != 0 ||
	    json_require_int(spec, "epochs", 1, EPOCHS_MAX, &p->epochs, err) != 0 ||
	    json_require_int(spec, "batch", 1, BATCH_MAX, &p->batch, err) != 0 ||
	    json_require_int(spec, "seed", 0, (int64_t)1 << 53, &p->seed, err) != 0 ||
	    (json_get(spec, "checkpoint_percent") &&
	     json_require_int(spec, "checkpoint_percent", 1, 100, &p->percent, err) != 0) ||
	    table_bits_read(&p->tables, spec, err) != 0)
		return -1;
	if (!(p->weight_hidden >= 0 && p->weight_hidden <= WEIGHT_MAX))
		return err_set(err, ERR_INVALID, "\"weight_hidden\" is %g; it must be 0 to %d", p->weight_hidden,
			       WEIGHT_MAX);
	if (p->batch > p->sequences)
		p->batch = p->sequences;
	p->per_epoch = (p->sequences + p->batch - 1) / p->batch;
	p->steps = p->per_epoch * p->epochs;
	return take_rates(&p->rates, json_get(spec, "rates"), err);
}
