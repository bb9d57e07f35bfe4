#include "worker/agent_decide.h"

int64_t decide_backoff_ms(unsigned failures, uint32_t random)
{
	int64_t most = DECIDE_BACKOFF_FIRST_MS;

	for (unsigned i = 1; i < failures && most < DECIDE_BACKOFF_MOST_MS; i++)
		most *= 2;
	if (most > DECIDE_BACKOFF_MOST_MS)
		most = DECIDE_BACKOFF_MOST_MS;
	return most / 2 + (int64_t)((uint64_t)(most - most / 2) * random / UINT32_MAX);
}

int64_t decide_heartbeat_ms(int64_t lease_ms)
{
	int64_t ms = lease_ms / 4;

	return ms < 50 ? 50 : ms > 60000 ? 60000 : ms;
}

int64_t decide_heartbeat_retry_ms(int64_t lease_ms, unsigned failures, uint32_t random)
{
	int64_t soon = decide_backoff_ms(failures, random), regular = decide_heartbeat_ms(lease_ms);

	return soon < regular ? soon : regular;
}

/* What a 4xx means depends on what was asked. */
static enum verdict judge_refusal(enum request_kind kind, int status, enum err_code code)
{
	switch (kind) {
	case REQUEST_REGISTER:
		return VERDICT_REFUSED;
	case REQUEST_LEASE:
		return status == 404 ? VERDICT_REGISTER : VERDICT_RETRY;
	case REQUEST_COMPLETE:
		if (status == 422 && code == ERR_CORRUPT)
			return VERDICT_UPLOAD_AGAIN;
		return status == 409 || status == 404 ? VERDICT_LOST : VERDICT_REFUSED;
	case REQUEST_HEARTBEAT:
		return status == 409 || status == 404 ? VERDICT_LOST : VERDICT_RETRY;
	case REQUEST_CHECKPOINT:
		return status == 409 ? VERDICT_LOST : VERDICT_REFUSED;
	case REQUEST_FAIL:
	case REQUEST_RELEASE:
		return status == 409 || status == 404 ? VERDICT_LOST : VERDICT_REFUSED;
	case REQUEST_UPLOAD_BEGIN:
		return VERDICT_REFUSED;
	case REQUEST_UPLOAD_PART:
	case REQUEST_UPLOAD_COMPLETE:
		if (status == 404 || status == 409)
			return VERDICT_RETRY; /* the upload was forgotten: begin again */
		return status == 422 && code == ERR_CORRUPT ? VERDICT_UPLOAD_AGAIN : VERDICT_REFUSED;
	case REQUEST_DOWNLOAD:
		return status == 416 ? VERDICT_RETRY : VERDICT_REFUSED;
	}
	return VERDICT_REFUSED;
}

enum verdict decide_reply(enum request_kind kind, int status, enum err_code code)
{
	if (status >= 200 && status < 300)
		return VERDICT_DONE;
	if (status == 0 || status >= 500 || status == 429 || status == 408)
		return VERDICT_RETRY;
	/* A token may be rotated while a worker runs; only registration takes it as final. */
	if ((status == 401 || status == 403) && kind != REQUEST_REGISTER)
		return VERDICT_RETRY;
	return judge_refusal(kind, status, code);
}

bool decide_want_lease(const struct decide_view *view)
{
	return view->state == AGENT_SERVING && !view->lease_under_way && view->busy == 0 &&
	       view->sealing_soon == 0 && view->sealing + view->uploading < DECIDE_UPLOADS_MOST;
}

int64_t decide_poll_again_ms(int64_t poll_took_ms)
{
	return poll_took_ms >= 1000 ? 0 : 1000;
}

bool decide_give_back(enum hold_state state, double progress, int64_t elapsed_ms, bool hurry)
{
	switch (state) {
	case HOLD_ACCEPTING:
	case HOLD_FETCHING:
		return true;
	case HOLD_COMPUTING:
		if (hurry)
			return true;
		if (progress > 0.5)
			return false;
		return progress < 0.01 ||
		       (double)elapsed_ms * (1 - progress) / progress >= DECIDE_DRAIN_SOON_MS;
	case HOLD_SEALING:
	case HOLD_UPLOADING:
		return hurry;
	case HOLD_COMPLETING:
	case HOLD_FAILING:
	case HOLD_RELEASING:
	case HOLD_STOPPING:
	case HOLD_GONE:
	case HOLD_STATES:
		return false;
	}
	return false;
}

bool decide_leave(double progress)
{
	return progress < 0.99;
}

bool decide_start_anew(const struct decide_view *view)
{
	return view->state == AGENT_DRAINING && view->busy == 0 && view->sealing == 0 && view->parting == 0;
}

bool decide_stop(const struct decide_view *view, int64_t away_ms, int64_t hurry_ms)
{
	if (view->state != AGENT_DRAINING)
		return false;
	if (view->held == 0 || hurry_ms >= DECIDE_HURRY_MS)
		return true;
	return view->busy == 0 && view->sealing == 0 && away_ms >= DECIDE_DRAIN_AWAY_MS;
}
