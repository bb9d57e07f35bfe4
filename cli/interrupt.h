/* interrupt.h - Ctrl-C and its kin as a flag that waiting code looks at.
 *
 * SIGINT, SIGTERM and SIGHUP set the flag and interrupt sleeps; SIGPIPE is ignored. The flag is process-wide
 * by nature and changes no result: it only ends work early.
 */
#ifndef QUARRY_CLI_INTERRUPT_H
#define QUARRY_CLI_INTERRUPT_H

#include <stdbool.h>
#include <stdint.h>

#include "common/err.h"

void interrupt_setup(void);
/* How often a signal asked to stop: 0 = go on, 2 or more = stop without waiting. */
int interrupt_count(void);
bool interrupted(void);
/* -1 with ERR_CANCELLED "interrupted" when a signal asked to stop. */
int interrupt_check(struct err *err);
/* Sleeps, or returns early when a signal asks to stop. */
void interruptible_sleep_ms(int64_t ms);

#endif
