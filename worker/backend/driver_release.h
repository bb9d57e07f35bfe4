/* driver_release.h - the release of NVIDIA's driver, which the CUDA runtime does not tell.
 *
 * The kernel module writes it into the first line of a file of /proc:
 *   NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024
 *   NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build  (dvs-builder@...)  ...
 * Here and not below cuda/, so that it is tested where there is no CUDA. Thread-safe.
 */
#ifndef QUARRY_WORKER_BACKEND_DRIVER_RELEASE_H
#define QUARRY_WORKER_BACKEND_DRIVER_RELEASE_H

#include <stddef.h>

enum { DRIVER_RELEASE_MAX = 16 };
extern const char driver_release_path[];

/* The first word of the first line that is numbers with dots between them, "580.82.07"; "" when there is none that fits. */
void driver_release_parse(const char *text, char out[DRIVER_RELEASE_MAX]);
/* The same of a file; "" also when it cannot be read. */
void driver_release_read(const char *path, char out[DRIVER_RELEASE_MAX]);

#endif
