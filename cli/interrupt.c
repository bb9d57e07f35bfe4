#include "cli/interrupt.h"

#include <signal.h>
#include <time.h>

static volatile sig_atomic_t stops;

static void on_stop(int signum)
{
	(void)signum;
	if (stops < 100)
		stops++;
}

void interrupt_setup(void)
{
	struct sigaction action = { .sa_handler = on_stop };

	sigemptyset(&action.sa_mask);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	action.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &action, NULL);
}

int interrupt_count(void)
{
	return (int)stops;
}

bool interrupted(void)
{
	return stops > 0;
}

int interrupt_check(struct err *err)
{
	return interrupted() ? err_set(err, ERR_CANCELLED, "interrupted") : 0;
}

void interruptible_sleep_ms(int64_t ms)
{
	/* Slices: a signal that arrives between the check and the sleep is seen at the next one. */
	while (ms > 0 && !interrupted()) {
		int64_t slice = ms < 100 ? ms : 100;
		struct timespec span = { .tv_sec = 0, .tv_nsec = slice * 1000000 };

		nanosleep(&span, NULL);
		ms -= slice;
	}
}
