/* route_handlers.h - the handlers that routes.c names; see request.h for what a handler may do. */
#ifndef QUARRY_SERVER_ROUTE_HANDLERS_H
#define QUARRY_SERVER_ROUTE_HANDLERS_H

#include <stddef.h>

struct request;

/* route_verb.c: passes the body to the engine and the engine's answer back. */
void route_verb(struct request *r);
/* route_wait.c: answers that may take their time. */
void route_lease(struct request *r);
void route_job(struct request *r);
/* route_events.c */
void route_events(struct request *r);
/* route_blobs.c */
void route_upload_begin(struct request *r);
void route_upload_part(struct request *r);
void route_upload_complete(struct request *r);
/* Bytes of a BODY_RAW body as they come. */
void route_upload_bytes(struct request *r, const void *bytes, size_t len);
void route_blob(struct request *r);
/* route_files.c */
void route_job_file(struct request *r);
void route_model_file(struct request *r);
/* route_plain.c: dashboard, api.yaml, health, metrics. */
void route_static(struct request *r);
void route_livez(struct request *r);
void route_readyz(struct request *r);
void route_metrics(struct request *r);

#endif
