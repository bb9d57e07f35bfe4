/* log.h - one line per event on stderr: time, level, component, text.
 *
 * "2026-01-31T12:00:00.123Z info server job j_1: RUNNING=>ASSEMBLING"
 * Control characters in the text are escaped, so hostile names cannot forge lines.
 * Thread-safe; one write(2) per line. Never used by worker/quant or worker/backend.
 */
#ifndef QUARRY_COMMON_LOG_H
#define QUARRY_COMMON_LOG_H

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* `component` must outlive the process (a literal). Call before threads start. */
void log_setup(const char *component, enum log_level least);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)

#endif
