/* What the GPU is, for the worker's registration; and whether it still answers. */
#include "worker/backend/cuda/cuda.h"

#include <stdio.h>

#include "worker/backend/driver_release.h"

/* "580.82.07, CUDA 13.0": the driver, and what of CUDA it supports. */
static void name_driver(char *out, size_t size, unsigned supports)
{
	char release[DRIVER_RELEASE_MAX];

	driver_release_read(driver_release_path, release);
	snprintf(out, size, "%s%sCUDA %u.%u", release, release[0] ? ", " : "", supports / 1000 % 1000,
		 supports % 1000 / 10);
}

int cuda_describe(struct backend *be, struct backend_device *out)
{
	const struct cuda_backend *cuda = cuda_of(be);
	struct cudaDeviceProp p;
	size_t free_bytes = 0, all_bytes = 0;
	int khz = 0, driver = 0;

	/* After a failure that the process cannot recover from every call that needs the device repeats it. */
	if (cudaMemGetInfo(&free_bytes, &all_bytes) != cudaSuccess || cudaStreamSynchronize(cuda->stream) != cudaSuccess ||
	    cudaGetDeviceProperties(&p, cuda->device) != cudaSuccess || cudaDriverGetVersion(&driver) != cudaSuccess)
		return -1;
	if (cudaDeviceGetAttribute(&khz, cudaDevAttrClockRate, cuda->device) != cudaSuccess) {
		cudaGetLastError();
		khz = 0;
	}
	*out = (struct backend_device){ .number = cuda->device, .clock_mhz = khz / 1000, .memory_bytes = all_bytes,
					.memory_free = free_bytes };
	snprintf(out->name, sizeof(out->name), "%.63s", p.name);
	name_driver(out->driver, sizeof(out->driver), (unsigned)driver);
	return 0;
}
