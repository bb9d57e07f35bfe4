#include "worker/backend/plain_memory.h"

#include <inttypes.h>
#include <string.h>

#include "common/alloc.h"

void *plain_memory_take(struct backend *be, size_t bytes, const char *what, struct err *err)
{
	void *memory = mem_alloc_aligned(bytes, 1);

	(void)be;
	if (!memory)
		err_set_nomem(err, what);
	return memory;
}

void plain_memory_give(struct backend *be, void *memory)
{
	(void)be;
	mem_free(memory);
}

int plain_memory_copy(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	(void)be;
	(void)err;
	if (bytes > 0)
		memcpy(to, from, bytes);
	return 0;
}

int plain_memory_begin(struct backend *be, void *to, const void *from, size_t bytes, struct err *err)
{
	return plain_memory_copy(be, to, from, bytes, err);
}

int plain_memory_wait(struct backend *be, struct err *err)
{
	(void)be;
	(void)err;
	return 0;
}

int plain_options_check(const char *name, const struct backend_options *options, struct err *err)
{
	if (options->device != 0)
		return err_set(err, ERR_INVALID, "device is %d; the %s backend has only device 0, this machine",
			       options->device, name);
	if (options->device_memory != 0)
		return err_set(err, ERR_INVALID, "%" PRIu64 " bytes of device memory are asked for; the %s backend "
			       "has no memory of its own, so it must be 0", options->device_memory, name);
	return 0;
}
