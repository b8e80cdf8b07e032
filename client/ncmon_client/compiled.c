/* Sums by class of one layer, in one pass: what accumulate.py does in a dozen of torch's operations.

   A row of features stays in the first cache from its norm to its sums. Single precision as there; squares that
   it would round away are taken again in double precision. Not for -ffast-math: a library that is linked with it makes the
   whole process flush denormals, and training would no longer be what it is without ncmon. */

#include <float.h>
#include <math.h>
#include <stdint.h>

#define LEAST_SQUARE 1e-30f
#define LEAST_NORM 1e-30
#define MOST_NORM 1e15

static float square(const float *restrict v, int64_t d)
{
    float sum = 0;
#pragma GCC ivdep
    for (int64_t j = 0; j < d; j++) sum += v[j] * v[j];
    return sum;
}

static double wide_square(const float *restrict v, int64_t d)
{
    double sum = 0;
    for (int64_t j = 0; j < d; j++) sum += (double)v[j] * v[j];
    return sum;
}

/* x = h - s into x, into the sums and, times 1 / |h|, into the unit sums; return |x|^2. */
static float add(const float *restrict h, const float *restrict s, float inverse, int64_t d,
                 float *restrict x, float *restrict sums, float *restrict units)
{
    float sum = 0;
#pragma GCC ivdep
    for (int64_t j = 0; j < d; j++) {
        float t = h[j] - s[j];
        sum += t * t;
        x[j] = t;
        sums[j] += t;
        units[j] += inverse * t;
    }
    return sum;
}

/* Samples h (n, d), `stride` floats apart, of classes rows (n,) in [0, C]; row C does not count.

   shift, sums, units (C + 1, d); scalars are five planes of C + 1, `plane` apart: zero vectors, |h|, |h|^2, |x|^2,
   1 / |h|; counts and nonfinite (C + 1,). Writes x (n, d) and the rows taken (n,), C for those left out.
   Returns how many were left out, or have a norm whose square or inverse single precision does not hold well. */
int64_t ncmon_add(const float *h, int64_t stride, const int64_t *rows, int64_t n, int64_t d, int64_t n_classes,
                  const float *shift, float *sums, float *units, double *scalars, int64_t plane,
                  double *counts, double *nonfinite, float *x, int64_t *taken)
{
    int64_t odd = 0;
    for (int64_t i = 0; i < n; i++) {
        const float *v = h + i * stride;
        float *own = x + i * d;
        int64_t c = rows[i];
        float q = square(v, d);
        /* As in accumulate.py: what counts is what single precision holds the square of. Of a NaN no comparison holds. */
        int finite = q <= FLT_MAX;
        double norm = sqrt((double)q);
        odd += !(norm > LEAST_NORM && norm < MOST_NORM && c < n_classes);
        if (!finite) nonfinite[c] += 1;
        if (!finite || c >= n_classes) {
            for (int64_t j = 0; j < d; j++) own[j] = 0;
            taken[i] = n_classes;
            counts[n_classes] += 1;
            continue;
        }
        float inverse = norm > 0 ? (float)(1 / norm) : 0;
        float r = add(v, shift + c * d, inverse, d, own, sums + c * d, units + c * d);
        double squares = r > LEAST_SQUARE ? (double)r : wide_square(own, d);
        taken[i] = c;
        counts[c] += 1;
        scalars[c] += norm == 0;
        scalars[plane + c] += norm;
        scalars[2 * plane + c] += norm * norm;
        scalars[3 * plane + c] += squares;
        scalars[4 * plane + c] += inverse;
    }
    return odd;
}
