/* fit_team.cuh - the threads that fit one group together, and the group as their search sees it; for kernels_fit.cu.
 *
 * A team is 1, 4 or 8 warps; several warps are the whole of their block.
 */
#ifndef QUARRY_WORKER_BACKEND_CUDA_FIT_TEAM_CUH
#define QUARRY_WORKER_BACKEND_CUDA_FIT_TEAM_CUH

#include "worker/backend/cuda/sums.cuh"

enum {
	FIT_KEEP = 16,
	FIT_POOL = 288,         /* candidates at once, the kept ones among them; a multiple of the warp */
	FIT_SUMS = 4,           /* of a step */
	FIT_ROOM = 5            /* doubles per warp for sums over the team */
};

struct fit_candidate { float s, z, loss; };

/* What the threads of a team share. */
template <int WARPS> struct fit_shared {
	double room[FIT_ROOM * WARPS];
	fit_candidate pool[FIT_POOL];           /* the kept ones first, by loss */
	int kept, count, next;
	float sums[FIT_SUMS][WARPS * WARP];
};

template <int WARPS> struct fit_team {
	static const int THREADS = WARPS * WARP;
	fit_shared<WARPS> *shared;
	int rank;                               /* of the thread */

	__device__ int lane() const { return rank % WARP; }
	__device__ bool leads() const { return rank < WARP; }
	__device__ void sync() const
	{
		if (WARPS == 1)
			__syncwarp();
		else
			__syncthreads();
	}
};

/* Over the team, in every thread; each call has the barriers of fold_warps() and the room to itself. */
template <class V, int WARPS> static __device__ V sum_team(const fit_team<WARPS> &team, V x)
{
	static_assert(sizeof(V) <= FIT_ROOM * sizeof(double), "there is room for it");
	return sum_block<WARPS * WARP>(x, reinterpret_cast<V *>(team.shared->room), team.rank);
}

template <int WARPS> static __device__ double max_team(const fit_team<WARPS> &team, double x)
{
	return max_block<WARPS * WARP>(x, team.shared->room, team.rank);
}

/* A group as the search sees it: (t, h) (t, h), an odd last one filled up with h = 0. */
struct fit_points {
	float4 *at;
	int pairs;
	bool fast;                              /* in shared memory */
};

struct fit_search {
	int bits, levels;
	bool fixed, symmetric;                  /* fixed: zero-points stay, only the scale is fitted */
	int n;
	float origin;                           /* t of the weight 0 */
	float shift;                            /* fixed: mean / deviation, else 0; code q stands for s (q - z) - shift */
	float low, high, largest;               /* reach of the levels in t, its min-max scale */
	fit_points whole, coarse;               /* the group; the same or fewer points that stand for it */
};

#endif
