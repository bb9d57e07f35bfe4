/* sealed_backend.h - a backend with memory of its own, without a device: proof that the program keeps to backend.h.
 *
 * It computes what the backend it wraps computes, to the bit. Its memory (own_memory is true) cannot be read or written
 * except while one of its operations runs, and is closed again while a tap or a loss of the program's is called: who
 * reaches into it ends with a signal. What a tap or a loss is given is such memory too. A copy that was begun is
 * not done before memory_wait(): until then its target holds bytes 0xff, and whoever copies or gives back what it uses
 * ends with a signal. Closing it fails the test when memory or a buffer was not given back, or a copy not waited for.
 */
#ifndef QUARRY_TESTS_LIB_SEALED_BACKEND_H
#define QUARRY_TESTS_LIB_SEALED_BACKEND_H

#include "worker/backend/backend.h"

/* Takes `inner` over and closes it in its own close(). Its operations bear the name of inner's; its open() wraps cpu. */
struct backend *sealed_open(struct backend *inner);
/* Opens cpu and wraps it; its other operations are those of what it opens. */
extern const struct backend_ops sealed_cpu_ops;
/* Bytes of it that are not given back yet. */
size_t sealed_bytes(struct backend *be);

#endif
