/* listen.h - a listening TCP socket from "ADDR:PORT". */
#ifndef QUARRY_SERVER_LISTEN_H
#define QUARRY_SERVER_LISTEN_H

#include "common/err.h"

/* The form only, without asking any name server. */
int listen_check(const char *address, struct err *err);

/* "127.0.0.1:8750", "[::1]:8750", "host:0" (0 = any free port). Returns a non-blocking listening
 * descriptor and its port, or -1. */
int listen_open(const char *address, unsigned *port, struct err *err);

#endif
