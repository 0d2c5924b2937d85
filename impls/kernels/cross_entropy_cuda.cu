// The losses of rows of logits x on a Hopper GPU, and the logits' gradient. Each logit is read from
// memory once, and each entry of the gradient is written once.
//
// A cluster of CLUSTER blocks, each on a multiprocessor of its own, holds SLOTS rows in its shared
// memory. Each warp has a strip of each row, and works on it alone. A copy engine brings the strip to
// a slot of the warp's ring. The warp finds m = max_j x_j and s = Σ_j exp(x_j - m) of its strip, and
// gives both to all warps of the cluster. While the others' numbers arrive, it does the same for the
// next row. Then it writes the gradient of its strip. So no warp waits for a barrier of its block, and
// memory is busy while the warps compute. docs/experiments/0033-a-kernel-for-hopper.md has the
// measurements.
//
// The loss is that of impls/shared/reduction.py without smoothing: a is target_weight. A row whose
// upstream gradient is 0 may hold nan: its loss and gradient are 0. A target out of range makes its
// row nan.
//
// Compiled with DTYPE (0: bfloat16, 1: float16, 2: float32), CLUSTER, WARPS of a block, WITH_GRAD,
// SLOTS (of a warp's ring: strips that it holds or waits for) and STRIP (vectors of a strip).

#include <cross_entropy_cuda.cuh>

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr float LOWEST = -1e38f;  // in place of -inf: -inf - -inf is nan
constexpr int SIZE = DTYPE == 2 ? 4 : 2;
constexpr int LOGITS = 16 / SIZE;  // of a vector, which a thread reads at once
constexpr int ALL_WARPS = CLUSTER * WARPS;
constexpr int VECTORS = STRIP / 32;  // of a strip, for each thread of its warp
// Rows whose parts are kept. A warp gives its part of row k when it is done with row k - 2. Then each
// warp has given its part of row k - 2, so it was done with row k - 4, whose parts are overwritten.
constexpr int KEPT = 4;

// A row's exponentials are of the form 2^((x - shift) log₂e) in float32, with shift = m, so that the
// largest is exactly 1. In half precision they are 2^(x log₂e - shift), with shift = m log₂e rounded:
// an instruction less, and a factor near 1 that all of a row's exponentials have in common.
DEVICE float shift_of(float m) { return DTYPE == 2 ? m : m * LOG2E; }
DEVICE float log2_exponential(float x, float shift) {
  return DTYPE == 2 ? (x - shift) * LOG2E : fmaf(x, LOG2E, -shift);
}
DEVICE float exponential(float x, float shift) { return exp2_(log2_exponential(x, shift)); }
// What turns exponentials with shift `from` to those with shift `to`.
DEVICE float rescale(float from, float to) {
  return exp2_(DTYPE == 2 ? (from - to) * LOG2E : from - to);
}

DEVICE float infinity() { return as_float(0x7f800000); }
DEVICE float not_a_number() { return as_float(0x7fc00000); }

// A logit's bits.
#if DTYPE == 2
using T = u32;
DEVICE float widened(T x) { return as_float(x); }
DEVICE T narrowed(float x) { return as_bits(x); }
constexpr T MINUS_INFINITY = 0xff800000;
#else
using T = unsigned short;
DEVICE float widened(T x) { return low(x); }
DEVICE T narrowed(float x) { return static_cast<T>(pack(x, 0)); }
constexpr T MINUS_INFINITY = DTYPE == 0 ? 0xff80 : 0xfc00;
#endif

// The logits of a vector, in float32.
DEVICE void unpack(uint4 v, float* x) {
#if DTYPE == 2
  x[0] = as_float(v.x), x[1] = as_float(v.y), x[2] = as_float(v.z), x[3] = as_float(v.w);
#else
  x[0] = low(v.x), x[1] = high(v.x), x[2] = low(v.y), x[3] = high(v.y);
  x[4] = low(v.z), x[5] = high(v.z), x[6] = low(v.w), x[7] = high(v.w);
#endif
}

DEVICE uint4 packed(const float* x) {
#if DTYPE == 2
  return {as_bits(x[0]), as_bits(x[1]), as_bits(x[2]), as_bits(x[3])};
#else
  return {pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])};
#endif
}

DEVICE float sum_of_warp(float x) {
#pragma unroll
  for (int lane = 16; lane; lane /= 2) x += shuffle_xor(x, lane);
  return x;
}

DEVICE float maximum_of_warp(float x) {
#pragma unroll
  for (int lane = 16; lane; lane /= 2) x = fmaxf(x, shuffle_xor(x, lane));
  return x;
}

// The maximum of a strip, the same in each thread of the warp. The thread has every 32nd vector.
DEVICE float maximum(const uint4 (&vectors)[VECTORS]) {
#if DTYPE == 2
  float top = -infinity();
#pragma unroll
  for (uint4 v : vectors) {
    float half = fmaxf(as_float(v.x), as_float(v.y));
    top = fmaxf(top, fmaxf(half, fmaxf(as_float(v.z), as_float(v.w))));
  }
  return maximum_of_warp(top);
#else
  u32 top = vectors[0].x;
#pragma unroll
  for (uint4 v : vectors) top = larger(top, larger(larger(v.x, v.y), larger(v.z, v.w)));
  return maximum_of_warp(fmaxf(low(top), high(top)));
#endif
}

// The sum of a strip's exponentials, the same in each thread of the warp.
DEVICE float sum_of_exponentials(const uint4 (&vectors)[VECTORS], float shift) {
  float sum = 0;
#pragma unroll
  for (uint4 v : vectors) {
    float e[LOGITS];
    unpack(v, e);
#pragma unroll
    for (float& entry : e) entry = exponential(entry, shift);
#pragma unroll
    for (int step = 1; step < LOGITS; step *= 2)
#pragma unroll
      for (int i = 0; i + step < LOGITS; i += 2 * step) e[i] += e[i + step];
    sum += e[0];
  }
  return sum_of_warp(sum);
}

struct Shared {
  u64 landed[WARPS][SLOTS];       // barriers: a slot holds its strip
  u64 exchanged[KEPT];            // barriers: all parts of a row are there
  float2 parts[KEPT][ALL_WARPS];  // the shift and the sum of each strip
};

struct Strip {  // the part of a row that a warp works on
  i64 row;
  int skipped;       // entries of the first vector that come before the row
  int first, count;  // vectors, counted from the vector with the row's first logit
  int vectors;       // of the row

  // Whether this strip has the vector with entries before the row, and the vector with some after.
  DEVICE bool has_first() const { return first == 0 && count > 0 && skipped > 0; }
  DEVICE int after(int vocab) const { return vectors * LOGITS - skipped - vocab; }
  DEVICE bool has_end() const { return count > 0 && first + count == vectors; }
  DEVICE bool has_last(int vocab) const { return has_end() && after(vocab) > 0; }
};

KERNEL rows_kernel(
    const char* logits, char* grad, float* losses, const i64* y, const float* target_weight,
    const float* upstream, int n, int vocab, i64 logits_stride, i64 grad_stride,  // bytes
    float z_loss) {
  DYNAMIC_SHARED(uint4, ring);
  SHARED(Shared, shared);

  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int number = rank_in_cluster() * WARPS + warp;  // of the warp in its cluster
  const int cluster = blockIdx.x / CLUSTER, clusters = gridDim.x / CLUSTER;
  const int rows = (n - cluster + clusters - 1) / clusters;  // of this cluster
  uint4* own = ring + warp * SLOTS * STRIP;
  const u32 own_landed = shared_address(shared.landed[warp]);

  if (threadIdx.x == 0) {
#pragma unroll 1
    for (auto& landed : shared.landed)
      for (u64& barrier : landed) init_barrier(shared_address(&barrier), 1);
    for (u64& barrier : shared.exchanged) init_barrier(shared_address(&barrier), 1);
    show_barriers_to_cluster();
    for (u64& barrier : shared.exchanged) expect(shared_address(&barrier), 8 * ALL_WARPS);
  }
  synchronize_cluster();

  auto strip = [&](int k) {
    Strip s;
    s.row = cluster + static_cast<i64>(k) * clusters;
    s.skipped = (reinterpret_cast<u64>(logits + s.row * logits_stride) & 15) / SIZE;
    s.vectors = (s.skipped + vocab + LOGITS - 1) / LOGITS;
    s.first = number * STRIP;
    s.count = max(0, min(STRIP, s.vectors - s.first));
    return s;
  };
  auto start = [&](int k) {  // the copy of row k's strip; a vector may hold another row's logits
    Strip s = strip(k);
    const u32 barrier = own_landed + 8 * (k % SLOTS);
    if (lane == 0) expect(barrier, 16 * s.count);
    if (lane == 0 && s.count > 0) {
      const char* row = logits + s.row * logits_stride - s.skipped * SIZE;
      const u32 slot = shared_address(own + k % SLOTS * STRIP);
      start_copy(slot, row + 16ll * s.first, 16 * s.count, barrier);
    }
  };

  const u32 pair = DTYPE == 2 ? MINUS_INFINITY : MINUS_INFINITY * 0x10001u;
#pragma unroll 1
  for (int v = lane; v < SLOTS * STRIP; v += 32) own[v] = {pair, pair, pair, pair};
  order_before_copies();
  synchronize_warp();
#pragma unroll 1
  for (int k = 0; k < min(SLOTS, rows); ++k) start(k);

  i64 target = 0, next_target = 0;
  float a = 0, next_a = 0, up = 1, next_up = 1;
  Strip s, next_strip;
  for (int k = -1; k < rows; ++k) {
    const int next = k + 1;
    if (next < rows) {  // the maximum and the sum of the next row's strip
      next_strip = strip(next);
      const Strip& s = next_strip;
      next_target = y[s.row], next_a = target_weight[s.row];
      if (WITH_GRAD) next_up = upstream[s.row];
      uint4* x = own + next % SLOTS * STRIP;
      float shift = shift_of(LOWEST), sum = 0;
      if (s.count > 0) {
        wait(own_landed + 8 * (next % SLOTS), next / SLOTS & 1);
        if (s.has_first() || s.has_end()) {  // what is not of this row becomes -inf
          T* entries = reinterpret_cast<T*>(x);
          if (s.has_first() && lane < s.skipped) entries[lane] = MINUS_INFINITY;
          // The row before this may have had a few entries more.
          const int at = s.count * LOGITS - s.after(vocab) + lane;
          if (s.has_end() && lane < LOGITS && at < STRIP * LOGITS) entries[at] = MINUS_INFINITY;
          order_before_copies();
          synchronize_warp();
        }
        uint4 vectors[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; ++i) vectors[i] = x[lane + 32 * i];
        shift = shift_of(fmaxf(maximum(vectors), LOWEST));
        sum = sum_of_exponentials(vectors, shift);
      }
      if (lane < CLUSTER)
        give(shared_address(&shared.parts[next % KEPT][number]),
             shared_address(shared.exchanged + next % KEPT), lane, shift, sum);
    }
    if (k >= 0) {  // the loss and the gradient of this row's strip
      const uint4* x = own + k % SLOTS * STRIP;
      const u32 barrier = shared_address(shared.exchanged + k % KEPT);
      wait(barrier, k / KEPT & 1);
      if (threadIdx.x == 0) expect(barrier, 8 * ALL_WARPS);  // for row k + KEPT
      float2 part[(ALL_WARPS + 31) / 32];
      float shift = shift_of(LOWEST), sum = 0;
#pragma unroll
      for (int i = 0; i < (ALL_WARPS + 31) / 32; ++i) {
        part[i] = {shift_of(LOWEST), 0};
        if (lane + 32 * i < ALL_WARPS) part[i] = shared.parts[k % KEPT][lane + 32 * i];
        shift = fmaxf(shift, part[i].x);
      }
      shift = maximum_of_warp(shift);
#pragma unroll
      for (float2 p : part) sum += p.y * rescale(p.x, shift);
      sum = sum_of_warp(sum);
      const float log2_sum = log2_(sum);
      const float lse = DTYPE == 2 ? shift + log2_sum * LN2 : (shift + log2_sum) * LN2;
      const bool in_range = target >= 0 && target < vocab, is_read = !WITH_GRAD || up != 0;
      float factor = (a + 2 * z_loss * lse) * up / sum;
      if (!in_range) factor = not_a_number();
      const int entry = s.skipped + static_cast<int>(target);  // of the row's vectors
      const int target_vector = in_range ? entry / LOGITS - s.first : -1;
      if (!in_range && number == 0 && lane == 0) losses[s.row] = is_read ? not_a_number() : 0;
      if (WITH_GRAD) {
        char* to = grad + s.row * grad_stride - s.skipped * SIZE + 16ll * s.first;
        const int begin = s.has_first(), end = s.count - s.has_last(vocab);
        if (is_read) {
#pragma unroll
          for (int i = 0; i < VECTORS; ++i) {
            const int v = lane + 32 * i;
            float e[LOGITS];
            unpack(x[v], e);
#pragma unroll
            for (float& entry : e) entry = exponential(entry, shift) * factor;
            store_vector(to + 16 * v, packed(e), v >= begin && v < end);
          }
        } else {
#pragma unroll 1
          for (int v = begin + lane; v < end; v += 32) store_vector(to + 16 * v, {0, 0, 0, 0}, true);
        }
        auto write_part = [&](int v) {  // of a vector that has entries outside the row
          const int column = (s.first + v) * LOGITS - s.skipped + lane, at = v * LOGITS + lane;
          if (lane >= LOGITS || column < 0 || column >= vocab) return;
          const float g = exponential(widened(reinterpret_cast<const T*>(x)[at]), shift) * factor;
          reinterpret_cast<T*>(to)[at] = narrowed(is_read ? g : 0);
        };
        if (s.has_first()) write_part(0);
        if (s.has_last(vocab)) write_part(s.count - 1);
        synchronize_warp();  // the target's entry is written again
      }
      // The target's entry is computed apart: p_y - 1 would be lost in a rounded p_y.
      if (target_vector >= 0 && target_vector < s.count && lane == 0) {
        const float x_y = widened(reinterpret_cast<const T*>(x)[entry - s.first * LOGITS]);
        const float e_y = exponential(x_y, shift);
        // Where the target's exponential is all of the sum, as with a single class, p_y is 1.
        const bool is_all = e_y == sum && sum > 0;
        const float log_p_y = is_all ? 0 : (log2_exponential(x_y, shift) - log2_sum) * LN2;
        losses[s.row] = is_read ? -a * log_p_y + z_loss * lse * lse : 0;
        const float g_y = fmaf(e_y, factor, -a * up);
        if (WITH_GRAD)
          reinterpret_cast<T*>(grad + s.row * grad_stride)[target] = narrowed(is_read ? g_y : 0);
      }
      synchronize_warp();
      if (k + SLOTS < rows) start(k + SLOTS);
    }
    s = next_strip, target = next_target, a = next_a, up = next_up;
  }
  synchronize_cluster();  // no block ends while others write to its shared memory
}
