/* reply.h - what goes back: JSON, problems (RFC 9457), files with Range, and their headers. */
#ifndef QUARRY_SERVER_REPLY_H
#define QUARRY_SERVER_REPLY_H

#include "common/err.h"
#include "common/json.h"
#include "server/http.h"

struct engine_reply;
struct request;

/* Problem document of an error; `problems` (may be NULL) stays the caller's. */
void reply_problem(struct http_exchange *x, const struct err *err, const struct json *problems);
/* The same with a status that the error list does not have (405, 415, 416 ...). */
void reply_problem_status(struct http_exchange *x, int status, enum err_code code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* JSON body (stays the caller's; NULL = none). On GET adds an ETag (`etag`, or one made of the bytes
 * when "") and answers If-None-Match with 304. */
void reply_json(struct http_exchange *x, int status, const struct json *body, const char *etag);
void reply_engine(struct http_exchange *x, const struct engine_reply *reply);
void reply_not_modified(struct http_exchange *x, const char *etag);
void reply_empty(struct http_exchange *x, int status);
/* Bytes that live for ever, with an ETag of their digest. */
void reply_static(struct http_exchange *x, const void *bytes, size_t len, const char *type);
/* A file's bytes, or the range asked for. Takes fd. etag without quotes. */
void reply_file(struct http_exchange *x, int fd, uint64_t bytes, const char *etag, const char *type);

/* true when a header like If-None-Match names this ETag ("*" included). */
bool etag_listed(const char *header, const char *etag);

#endif
