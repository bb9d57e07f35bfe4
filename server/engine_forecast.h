/* engine_forecast.h - the live workers as plan_time.h wants them. */
#ifndef QUARRY_SERVER_ENGINE_FORECAST_H
#define QUARRY_SERVER_ENGINE_FORECAST_H

#include "server/plan_time.h"

struct store;

/* Those heard of since then that are not draining; where nobody is, one worker with this machine's cores. */
int forecast_crew(struct store *db, int64_t live_since_ms, struct plan_crew *crew, struct err *err);

#endif
