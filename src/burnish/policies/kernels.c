/* What a decode step does between its matrix products, in float32: what torch needs dozens of calls for, each over a
   few kilobytes.

   In the vector types that gcc and clang share, so that the arithmetic is as written whatever an optimiser makes of
   loops.  Rows are computed one by one: what a row gives does not depend on the others.  Widths are multiples of LANES,
   `columns` is one of BLOCK. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 8
#define BLOCK 16
#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double wide __attribute__((vector_size(8 * LANES)));
typedef int32_t mask __attribute__((vector_size(4 * LANES)));

INLINE vec load(const float *p) { return *(const vec *)p; }
INLINE void store(float *p, vec v) { *(vec *)p = v; }
INLINE vec all(float x) { return (vec){x, x, x, x, x, x, x, x}; }
INLINE mask bits_of(vec v) { mask m; memcpy(&m, &v, sizeof m); return m; }
INLINE vec from_bits(mask m) { vec v; memcpy(&v, &m, sizeof v); return v; }
INLINE vec choose(mask where, vec yes, vec no) { return from_bits((bits_of(yes) & where) | (bits_of(no) & ~where)); }
INLINE float sum(vec v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

/* e^x to about one unit in the last place (the polynomial of Cephes); 0 below -87, e^87 above 87, NaN of NaN. */
INLINE vec exponential(vec x) {
  const vec shift = all(12582912.0f); /* 1.5 * 2^23: adding and taking it away again rounds */
  const mask below = (mask)(x < all(-87.0f)), bias = {127, 127, 127, 127, 127, 127, 127, 127};
  const mask place = {23, 23, 23, 23, 23, 23, 23, 23};
  x = choose((mask)(x > all(87.0f)), all(87.0f), x);
  vec n = (x * all(1.44269504088896341f) + shift) - shift;
  vec f = (x - n * all(0.693359375f)) + n * all(2.12194440e-4f);
  vec p = all(1.9875691500e-4f);
  p = p * f + all(1.3981999507e-3f);
  p = p * f + all(8.3334519073e-3f);
  p = p * f + all(4.1665795894e-2f);
  p = p * f + all(1.6666665459e-1f);
  p = p * f + all(5.0000001201e-1f);
  p = p * f * f + f + all(1.0f);
  /* times 2^n, by its exponent */
  mask power = (__builtin_convertvector(choose(below, all(0.0f), n), mask) + bias) << place;
  return choose(below, all(0.0f), p * from_bits(power));
}

INLINE float inverse_norm(const float *x, int64_t width, float floor_square) {
  vec squares = all(0.0f);
  for (int64_t i = 0; i < width; i += LANES) squares += load(x + i) * load(x + i);
  return 1.0f / sqrtf(sum(squares) + floor_square);
}

/* -- norms and gates ---------------------------------------------------------------------------------------------- */

typedef struct {
  const float *x; /* [rows, width], `stride` apart */
  float *out;     /* [rows, width] */
  double floor_square;
  int64_t rows, width, stride;
} Norm;

/* out = x / sqrt(sum of squares + floor_square), row by row */
void burnish_norm(const Norm *a) {
  for (int64_t r = 0; r < a->rows; r++) {
    const float *x = a->x + r * a->stride;
    float *out = a->out + r * a->width;
    const vec factor = all(inverse_norm(x, a->width, (float)a->floor_square));
    for (int64_t i = 0; i < a->width; i += LANES) store(out + i, load(x + i) * factor);
  }
}

typedef struct {
  const float *gate_up; /* [rows, 2 * width] */
  float *out;           /* [rows, width] */
  int64_t rows, width;
} Gate;

/* out = silu(gate) * up */
void burnish_silu(const Gate *a) {
  for (int64_t r = 0; r < a->rows; r++) {
    const float *gate = a->gate_up + r * 2 * a->width, *up = gate + a->width;
    float *out = a->out + r * a->width;
    for (int64_t i = 0; i < a->width; i += LANES) {
      vec x = load(gate + i);
      mask negative = (mask)(x < all(0.0f));
      vec e = exponential(choose(negative, x, -x));
      store(out + i, x * (choose(negative, e, all(1.0f)) / (all(1.0f) + e)) * load(up + i));
    }
  }
}

/* -- attention of one new token in every row ----------------------------------------------------------------------- */

typedef struct {
  float *qkv;               /* [rows, (heads + 2 kv_heads) * size]; queries and keys are changed in place */
  const int64_t *positions; /* [rows] */
  const float *gain;        /* [(heads + kv_heads) * size], or NULL: queries and keys are not normalised */
  const float *turns;       /* [positions, size / 2] cosines and sines, or NULL: no rotation */
  float *keys;              /* [rows, kv_heads, size, columns] */
  float *values;            /* [rows, kv_heads, columns, size] */
  float *mixed;             /* [rows, heads * size] */
  float *scores;            /* [4, columns] to work in */
  double floor_square;
  int64_t rows, heads, kv_heads, size, columns, window; /* window: 0 for none */
} Attend;

/* Scores of `heads` queries with `vecs` vectors of columns from `c` on. */
INLINE void score(const float *q, const float *keys, float *scores, int64_t c, int64_t size, int64_t columns,
                  const int heads, const int vecs) {
  vec sums[4][8], k[8];
  UNROLL for (int h = 0; h < heads; h++) UNROLL for (int v = 0; v < vecs; v++) sums[h][v] = all(0.0f);
  for (int64_t d = 0; d < size; d++) {
    UNROLL for (int v = 0; v < vecs; v++) k[v] = load(keys + d * columns + c + v * LANES);
    UNROLL for (int h = 0; h < heads; h++) {
      const vec x = all(q[h * size + d]);
      UNROLL for (int v = 0; v < vecs; v++) sums[h][v] += x * k[v];
    }
  }
  UNROLL for (int h = 0; h < heads; h++)
    UNROLL for (int v = 0; v < vecs; v++) store(scores + h * columns + c + v * LANES, sums[h][v]);
}

/* `vecs` vectors of dimensions of what `heads` rows of weights read from the columns [first, end). */
INLINE void mix(const float *weights, const float *values, float *out, const float *scale, int64_t first, int64_t end,
                int64_t size, int64_t columns, const int heads, const int vecs) {
  vec sums[4][8], x[8];
  UNROLL for (int h = 0; h < heads; h++) UNROLL for (int v = 0; v < vecs; v++) sums[h][v] = all(0.0f);
  for (int64_t c = first; c < end; c++) {
    UNROLL for (int v = 0; v < vecs; v++) x[v] = load(values + c * size + v * LANES);
    UNROLL for (int h = 0; h < heads; h++) {
      const vec w = all(weights[h * columns + c]);
      UNROLL for (int v = 0; v < vecs; v++) sums[h][v] += w * x[v];
    }
  }
  UNROLL for (int h = 0; h < heads; h++)
    UNROLL for (int v = 0; v < vecs; v++) store(out + h * size + v * LANES, sums[h][v] * all(scale[h]));
}

/* s = exp(s - largest) over [first, end); the inverse of their sum. */
INLINE float soften(float *s, int64_t first, int64_t end) {
  const int64_t begin = first / LANES * LANES, stop = (end + LANES - 1) / LANES * LANES;
  for (int64_t c = begin; c < first; c++) s[c] = -INFINITY;
  for (int64_t c = end; c < stop; c++) s[c] = -INFINITY;
  vec tops = all(-INFINITY), total = all(0.0f);
  for (int64_t c = begin; c < stop; c += LANES) tops = choose((mask)(load(s + c) > tops), load(s + c), tops);
  float top = tops[0];
  for (int i = 1; i < LANES; i++) top = tops[i] > top ? tops[i] : top;
  for (int64_t c = begin; c < stop; c += LANES) {
    vec e = exponential(load(s + c) - all(top));
    total += e;
    store(s + c, e);
  }
  return 1.0f / sum(total);
}

/* `heads` queries that share a key head; tiles are as large as there are registers. */
INLINE void read_memory(const float *q, const float *keys, const float *values, float *out, float *scores,
                        int64_t first, int64_t end, int64_t size, int64_t columns, const int heads) {
  int64_t c = first / BLOCK * BLOCK, d = 0;
  const int64_t stop = (end + BLOCK - 1) / BLOCK * BLOCK;
  float scale[4];
  if (heads < 4)
    for (; c + 4 * BLOCK <= stop; c += 4 * BLOCK)
      for (int h = 0; h < heads; h++) score(q + h * size, keys, scores + h * columns, c, size, columns, 1, 8);
  for (; c < stop; c += BLOCK) score(q, keys, scores, c, size, columns, heads, 2);
  for (int h = 0; h < heads; h++) scale[h] = soften(scores + h * columns, first, end);
  if (heads < 4)
    for (; d + 4 * LANES <= size; d += 4 * LANES)
      mix(scores, values + d, out + d, scale, first, end, size, columns, heads, 4);
  for (; d + 2 * LANES <= size; d += 2 * LANES)
    mix(scores, values + d, out + d, scale, first, end, size, columns, heads, 2);
  if (d < size) mix(scores, values + d, out + d, scale, first, end, size, columns, heads, 1);
}

static void turn(const Attend *a, float *row, int64_t at) {
  const int64_t size = a->size, both = a->heads + a->kv_heads;
  if (a->gain)
    for (int64_t h = 0; h < both; h++) {
      float *x = row + h * size;
      const vec factor = all(inverse_norm(x, size, (float)a->floor_square));
      for (int64_t d = 0; d < size; d += LANES) store(x + d, load(x + d) * factor * load(a->gain + h * size + d));
    }
  if (a->turns)
    for (int64_t h = 0; h < both; h++)
      for (int64_t d = 0; d < size; d += 2) {
        const float cosine = a->turns[at * size + d], sine = a->turns[at * size + d + 1];
        const float x = row[h * size + d], y = row[h * size + d + 1];
        row[h * size + d] = x * cosine - y * sine;
        row[h * size + d + 1] = x * sine + y * cosine;
      }
}

/* Normalise and rotate, write the new keys and values, read everything up to them. */
void burnish_attend(const Attend *a) {
  const int64_t size = a->size, columns = a->columns, group = a->heads / a->kv_heads;
  for (int64_t r = 0; r < a->rows; r++) {
    float *row = a->qkv + r * (a->heads + 2 * a->kv_heads) * size;
    const int64_t at = a->positions[r], end = at + 1;
    const int64_t first = a->window > 0 && end > a->window ? end - a->window : 0;
    turn(a, row, at);
    for (int64_t k = 0; k < a->kv_heads; k++) {
      float *keys = a->keys + (r * a->kv_heads + k) * size * columns;
      float *values = a->values + (r * a->kv_heads + k) * columns * size;
      const float *key = row + (a->heads + k) * size, *q = row + k * group * size;
      float *out = a->mixed + (r * a->heads + k * group) * size;
      int64_t g = 0;
      for (int64_t d = 0; d < size; d++) keys[d * columns + at] = key[d];
      memcpy(values + at * size, key + a->kv_heads * size, size * sizeof(float));
      for (; g + 4 <= group; g += 4)
        read_memory(q + g * size, keys, values, out + g * size, a->scores, first, end, size, columns, 4);
      for (; g + 2 <= group; g += 2)
        read_memory(q + g * size, keys, values, out + g * size, a->scores, first, end, size, columns, 2);
      if (g < group) read_memory(q + g * size, keys, values, out + g * size, a->scores, first, end, size, columns, 1);
    }
  }
}

/* -- drawing ------------------------------------------------------------------------------------------------------- */

typedef struct {
  const float *logits;   /* [rows, width] */
  const float *uniforms; /* [rows], in [0, 1) */
  float *weights;        /* [width + LANES] to work in */
  int64_t *tokens;       /* [rows] */
  float *logprobs;       /* [rows] */
  double smallest, largest;
  int64_t rows, width;
} Draw;

INLINE double total_of(wide v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

/* weights = e^(logits - shift) in whole vectors, 0 beyond the last; their sum. */
static double weigh(const float *logits, float *weights, int64_t width, float shift) {
  const int64_t whole = width / LANES * LANES;
  float tail[LANES];
  wide sums = {0};
  for (int i = 0; i < LANES; i++) tail[i] = whole + i < width ? logits[whole + i] : -INFINITY;
  for (int64_t i = 0; i <= whole; i += LANES) {
    const vec e = exponential(load(i < whole ? logits + i : tail) - all(shift));
    store(weights + i, e);
    sums += __builtin_convertvector(e, wide);
  }
  return total_of(sums);
}

/* The first token whose cumulative weight e^logit is above uniform * total, and its log-probability.  A row whose total
   is not within [smallest, largest] is shifted by its largest logit first.  Ends with 0 at one that is not finite. */
int burnish_draw(const Draw *a) {
  const int64_t chunk = 8 * LANES;
  for (int64_t r = 0; r < a->rows; r++) {
    const float *logits = a->logits + r * a->width, *w = a->weights;
    double total = weigh(logits, a->weights, a->width, 0.0f), below = 0.0;
    if (!(total >= a->smallest && total <= a->largest)) {
      float top = logits[0];
      for (int64_t i = 1; i < a->width; i++) top = logits[i] > top ? logits[i] : top;
      total = weigh(logits, a->weights, a->width, top);
      if (!(total >= 1.0 && total <= a->largest)) return 0;
    }
    const double goal = a->uniforms[r] * total;
    int64_t token = 0, found = 0;
    for (; token + chunk <= a->width; token += chunk) {
      wide part = {0};
      for (int64_t i = 0; i < chunk; i += LANES) part += __builtin_convertvector(load(w + token + i), wide);
      if (below + total_of(part) > goal) break;
      below += total_of(part);
    }
    for (; token < a->width; token++) {
      if (w[token] > 0.0f) found = token; /* rounding may leave nothing above the goal: then it is the last one */
      if ((below += w[token]) > goal) break;
    }
    a->tokens[r] = found;
    a->logprobs[r] = (float)log(w[found] / total);
  }
  return 1;
}
