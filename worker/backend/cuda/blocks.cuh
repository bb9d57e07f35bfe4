/* blocks.cuh - how many blocks a launch has; functions of the host, for kernels_*.cu. */
#ifndef QUARRY_WORKER_BACKEND_CUDA_BLOCKS_CUH
#define QUARRY_WORKER_BACKEND_CUDA_BLOCKS_CUH

#include <stddef.h>

/* As many as n items need, `each` of them in a block. */
static inline unsigned blocks_of(size_t n, size_t each)
{
	return (unsigned)((n + each - 1) / each);
}

/* The same up to a limit, for kernels whose blocks go on with what lies gridDim.x blocks further. */
static inline unsigned blocks_for(size_t n, size_t each)
{
	const size_t blocks = (n + each - 1) / each, most = (size_t)1 << 20;

	return (unsigned)(blocks < most ? blocks : most);
}

#endif
