/* request_check.h - what a request must be before its body is read. */
#ifndef QUARRY_SERVER_REQUEST_CHECK_H
#define QUARRY_SERVER_REQUEST_CHECK_H

struct request;

/* Fills route, captures, subject and role. -1: a problem was replied. */
int request_check(struct request *r);
void request_body_too_large(struct request *r);

#endif
