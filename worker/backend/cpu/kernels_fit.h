/* kernels_fit.h - the inner loops of group fitting and nearest rounding, one table per
 * instruction-set level.
 *
 * Sums run over a fixed number of interleaved partial sums, and products are never contracted, so
 * every level gives the same bits. Pure, thread-safe, any alignment, n >= 1.
 */
#ifndef QUARRY_WORKER_BACKEND_CPU_KERNELS_FIT_H
#define QUARRY_WORKER_BACKEND_CPU_KERNELS_FIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FIT_LANES = 16 };

/* A group as the search sees it: t = (w - center) / unit, h of total about 1. */
struct fit_points {
	const float *t, *h;     /* (n) */
	size_t n;
	float total;            /* sum of h */
};

/* Codes here are centred: q - 2^(b-1), so -2^(b-1) .. 2^(b-1)-1, and zero-points likewise. */
struct fit_rule {
	float bottom, top;      /* first and last code */
	bool fixed;             /* zero-points stay: only the scale is fitted */
	float shift;            /* fixed: center / unit; else 0 */
};

/* FIT_LANES candidates (s, z) side by side: code q stands for t = s (q - z) - shift. */
struct fit_lanes { float s[FIT_LANES], z[FIT_LANES], loss[FIT_LANES]; };

/* Sums over a group for the nearest codes (not centred) q of one (s, z); e = w - s (q - z). */
struct fit_sums { double e2, e, eq, q, qq; };

/* Extremes of w, sum of h, weighted mean, weighted mean squared deviation. */
struct fit_moments { double low, high, total, mean, square; };

struct fit_kernels {
	/* One descent step of every lane: nearest codes, then the least-squares s (and z, unless
	 * fixed) for them; loss = sum of h (error)^2 of the result with those codes, which its own
	 * nearest codes can only lower. */
	void (*step)(const struct fit_points *points, const struct fit_rule *rule,
		     struct fit_lanes *lanes);
	/* levels = 2^b */
	void (*sums)(const float *w, const double *h, size_t n, double s, double z, int levels,
		     struct fit_sums *out);
	/* codes = clamp(round-half-even(w / s + z), 0, levels - 1) of n weights of one group. */
	void (*round)(const float *w, size_t n, double s, double z, int levels, uint8_t *codes);
	void (*moments)(const float *w, const double *h, size_t n, struct fit_moments *out);
	/* t = (w - center) * inverse_unit, out_h = h * inverse_total */
	void (*normalize)(const float *w, const double *h, size_t n, double center,
			  double inverse_unit, double inverse_total, float *t, float *out_h);
};

#endif
