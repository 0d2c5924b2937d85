// The losses of rows of logits x on a CPU, and the logits' gradient. Each logit is read from memory
// once, and each entry of the gradient is written once.
//
// A row passes three stages. Stage 1 finds m = max_j x_j. Stage 2 keeps exp(x_j - m) in a buffer and
// adds it to s = Σ_j exp(x_j - m). Stage 3 scales the exponentials to the gradient. A thread has
// three rows in work, one in each stage, and takes some columns of each in turn. So memory is read
// for stage 1 and written by stage 3 while stage 2 computes. A row's logits and exponentials wait
// in the L2 cache for their next stage. Stage 3 writes past the caches.
//
// a, b and q are those of impls/shared/reduction.py; softcap and z-loss those of
// impls/shared/rows.py. T is the dtype of the logits. A is the dtype to sum in: float for half
// precision, else T. docs/experiments/0028-a-kernel-in-cpp.md has the designs that were compared.

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using at::vec::Vectorized;
constexpr int64_t BLOCK = 256;   // columns of each of the three rows in turn
constexpr int64_t AHEAD = 8192;  // columns from what stage 2 computes to what it prefetches

// exp(u) for u <= 0, within 2 units in the last place: 0 below 2^-126, nan for nan.
inline Vectorized<double> exp(Vectorized<double> u) { return u.exp(); }

inline Vectorized<float> exp(Vectorized<float> u) {
  using V = Vectorized<float>;
  u = at::vec::clamp_min(u, V(-88.02f));  // then n >= -127, and 0 is made in place of 2^-127
  // u = n log 2 + r. The bits of n + shift end with those of n + 127, the exponent of 2^n.
  const V shift(0x1.8p23f + 127);
  V n = at::vec::fmadd(u, V(1.442695041f), shift);
  V power = at::vec::cast<float>(at::vec::cast<int32_t>(n) << Vectorized<int32_t>(23));
  V r = at::vec::fnmadd(n - shift, V(0.6931471806f), u);
  // exp(r) for |r| <= log(2) / 2, by the polynomial with the smallest relative error: 3e-9.
  V p(1.381459879e-3f);
  for (float c : {8.368716575e-3f, 4.168838899e-2f, 0.1666652113f, 0.4999999404f, 1.f, 1.f})
    p = at::vec::fmadd(p, r, V(c));
  return p * power;
}

// `to` must be aligned to the size of v.
template <typename V> inline void write_past_caches(void* to, V v) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(static_cast<__m512i*>(to), c10::bit_cast<__m512i>(v));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(static_cast<__m256i*>(to), c10::bit_cast<__m256i>(v));
#else
  v.store(to);
#endif
}

// The members are the arguments of rows_ below. A plain loss has neither smoothing nor softcap: to
// test for them in the loops would cost as much as the exponentials.
template <typename T, bool IS_PLAIN> struct Kernel {
  using A = at::opmath_type<T>;
  static constexpr int LANES = Vectorized<A>::size();
  static constexpr int SIZE = Vectorized<T>::size();  // columns at once
  static constexpr int PARTS = SIZE / LANES;          // 2 in half precision, else 1
  using Wide = at::vec::VectorizedN<A, PARTS>;

  const T* logits;
  T* grad;  // nullptr: the losses alone
  A* losses;
  const int64_t* targets;
  const A* target_weight;
  const A *smoothing, *upstream;  // nullptr: none
  int64_t vocab, logits_stride, grad_stride;
  A sum_b, softcap, z_loss;  // a softcap of 0: none

  struct Row {
    int64_t number;
    const T* x;
    T* g;
    bool is_read;      // a row whose upstream gradient is 0 is not: its logits may be nan
    Wide top, s, t;    // the maximum, s and t = Σ_j b_j (x_j - m) of each lane
    A m, factor, g_y;  // factor: of the exponentials; g_y: the target's entry of the gradient
    int64_t written;   // columns
  };

  bool is_smoothed() const { return !IS_PLAIN && smoothing; }
  bool is_capped() const { return !IS_PLAIN && softcap != 0; }
  A cap(A x) const { return is_capped() ? softcap * std::tanh(x / softcap) : x; }
  Wide cap(Wide x) const { return is_capped() ? Wide(softcap) * (x / Wide(softcap)).tanh() : x; }

  C10_ALWAYS_INLINE static Wide load(const T* from, int64_t count) {
    auto v = count == SIZE ? Vectorized<T>::loadu(from) : Vectorized<T>::loadu(from, count);
    return at::vec::convert<A, PARTS, T, 1>(at::vec::VectorizedN<T, 1>(v));
  }

  C10_ALWAYS_INLINE void store(T* to, Wide v, int64_t count) const {
    Vectorized<T> rounded = at::vec::convert<T, 1, A, PARTS>(v);
    count == SIZE && grad != logits ? write_past_caches(to, rounded) : rounded.store(to, count);
  }

  // v, with `other` in place of the elements from `count` on.
  static Wide first(Wide v, int64_t count, A other) {
    for (int k = 0; k < PARTS && count < SIZE; ++k) {
      auto kept = std::clamp<int64_t>(count - k * LANES, 0, LANES);
      v[k] = Vectorized<A>::set(Vectorized<A>(other), v[k], kept);
    }
    return v;
  }

  template <typename F> static A reduce(Wide v, F f) {
    A lanes[SIZE];
    v.store(lanes);
    return std::accumulate(lanes + 1, lanes + SIZE, lanes[0], f);
  }

  // Calls f(j, count) for the columns from j to `stop`, `count` at once, and returns the column
  // after the last, which may be beyond `stop`.
  template <typename F> int64_t for_columns(int64_t j, int64_t stop, F f) const {
    for (; j < stop && j + SIZE <= vocab; j += SIZE) f(j, SIZE);
    if (j >= stop) return j;
    f(j, vocab - j);
    return vocab;
  }

  void find_maximum(Row& row, int64_t j, int64_t stop) const {  // stage 1
    Wide top = row.top;
    for_columns(j, stop, [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      top = clamp_min(first(load(row.x + j, count), count, -INFINITY), top);
    });
    row.top = top;
  }

  // Stage 2. A block has sums of its own: to add small numbers to a large sum loses digits.
  void add_exponentials(Row& row, A* exps, int64_t j, int64_t stop, const T* next) const {
    Wide s(A(0)), t(A(0)), m(row.m);
    for_columns(j, stop, [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      __builtin_prefetch(next + j + AHEAD, 0, 2);
      Wide u = first(cap(load(row.x + j, count)) - m, count, -INFINITY);
      Wide e = u.unary_op([](Vectorized<A> u) { return exp(u); });
      e.store(exps + j);
      s = s + e;
      if (is_smoothed()) t = t + first(Wide::loadu(smoothing + j, count) * u, count, 0);
    });
    row.s = row.s + s;
    row.t = row.t + t;
  }

  void write_gradient(Row& row, const A* exps, int64_t stop) const {  // stage 3
    auto write = [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      Wide g = Wide(row.factor) * Wide::loadu(exps + j);
      if (is_smoothed()) g = g - Wide(upstream[row.number]) * Wide::loadu(smoothing + j, count);
      if (is_capped()) {
        Wide ratio = cap(load(row.x + j, count)) / Wide(softcap);
        g = g * (Wide(A(1)) - ratio * ratio);
      }
      store(row.g + j, row.is_read ? g : Wide(A(0)), count);
    };
    // The columns before the first address at which a whole vector is aligned.
    auto head = std::min<int64_t>(-reinterpret_cast<uintptr_t>(row.g) / sizeof(T) % SIZE, vocab);
    if (row.written == 0) write(0, row.written = head);
    row.written = for_columns(row.written, stop, write);
  }

  // Between stages 2 and 3: the loss, and what stage 3 needs.
  void finish_sums(Row& row) const {
    int64_t i = row.number, y = targets[i];
    TORCH_CHECK_INDEX(y >= 0 && y < vocab, "target ", y, " is out of range for ", vocab, " classes");
    A s = reduce(row.s, std::plus<A>()), t = reduce(row.t, std::plus<A>()), a = target_weight[i];
    A log_s = std::log(s), lse = row.m + log_s;
    A x_y = cap(A(row.x[y])), log_p_y = x_y - row.m - log_s;
    losses[i] = row.is_read ? -a * log_p_y - (t - sum_b * log_s) + z_loss * lse * lse : A(0);
    if (!grad) return;
    A softmax_factor = (a + sum_b + 2 * z_loss * lse) * upstream[i];
    row.factor = softmax_factor / s;
    // The target's entry is computed apart: p_y - 1 would be lost in a rounded p_y.
    A q_y = is_smoothed() ? a + smoothing[y] : a;
    row.g_y = std::exp(log_p_y) * softmax_factor - q_y * upstream[i];
    if (is_capped()) row.g_y *= 1 - (x_y / softcap) * (x_y / softcap);
  }

  void run(int64_t begin, int64_t end) const {
    std::vector<A> exps(vocab + SIZE);
    Row rows[3] = {};
    for (int64_t i = begin; i < end + 2; ++i) {
      Row &one = rows[i % 3], &two = rows[(i + 2) % 3], &three = rows[(i + 1) % 3];
      bool has_one = i < end, has_two = begin < i && i <= end, has_three = begin + 1 < i && grad;
      if (has_one)
        one = {i, logits + i * logits_stride, grad + i * grad_stride, !upstream || upstream[i] != 0,
               Wide(A(-INFINITY)), Wide(A(0)), Wide(A(0))};
      for (int64_t j = 0; j < vocab; j += BLOCK) {
        int64_t stop = std::min(j + BLOCK, vocab);
        if (has_one && one.is_read) find_maximum(one, j, stop);
        if (has_three) write_gradient(three, exps.data(), stop);
        if (has_two && two.is_read) add_exponentials(two, exps.data(), j, stop, one.x);
      }
      if (has_one) one.m = cap(reduce(one.top, [](A a, A b) { return std::max(a, b); }));
      if (has_two) finish_sums(two);
      if (has_three && three.is_read) three.g[targets[three.number]] = T(three.g_y);
    }
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    _mm_sfence();  // other threads see what was written past the caches
#endif
  }
};

// The losses (n,) of logits (n, vocab), whose rows are contiguous. `grad` receives the logits'
// gradient; it may be the logits. y, target_weight and smoothing are q. Each thread holds a row of
// exponentials, which torch's allocator does not see.
Tensor rows_(const Tensor& logits, const Tensor& y, const Tensor& target_weight,
             const std::optional<Tensor>& smoothing, const std::optional<Tensor>& upstream,
             const std::optional<Tensor>& grad, std::optional<double> softcap, double z_loss) {
  int64_t n = logits.size(0), vocab = logits.size(1);
  Tensor losses = at::empty_like(target_weight), b = smoothing ? smoothing->contiguous() : Tensor();
  double sum_b = smoothing ? b.sum().item<double>() : 0;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "rows", [&] {
    using A = at::opmath_type<scalar_t>;
    auto run = [&](auto is_plain) {
      Kernel<scalar_t, decltype(is_plain)::value> kernel{
          logits.const_data_ptr<scalar_t>(), grad ? grad->data_ptr<scalar_t>() : nullptr,
          losses.data_ptr<A>(), y.const_data_ptr<int64_t>(), target_weight.const_data_ptr<A>(),
          smoothing ? b.const_data_ptr<A>() : nullptr,
          upstream ? upstream->const_data_ptr<A>() : nullptr, vocab, logits.stride(0),
          grad ? grad->stride(0) : 0, A(sum_b), A(softcap.value_or(0)), A(z_loss)};
      int64_t grain = at::internal::GRAIN_SIZE / std::max<int64_t>(vocab, 1) + 1;
      at::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) { kernel.run(begin, end); });
    };
    smoothing || softcap ? run(std::false_type()) : run(std::true_type());
  });
  return losses;
}

// Multiplies `grad`, whose memory has no gaps, by a number. A factor of 1 reads and writes nothing.
void scale_(const Tensor& grad, const Tensor& factor) {
  double by = factor.item<double>();
  if (by == 1) return;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "scale", [&] {
    using V = Vectorized<at::opmath_type<scalar_t>>;
    scalar_t* g = grad.data_ptr<scalar_t>();
    at::parallel_for(0, grad.numel(), at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
      auto scaled = [by](V v) { return v * V(by); };
      at::vec::map<scalar_t>(scaled, g + begin, g + begin, end - begin);
    });
  });
}

}  // namespace

TORCH_LIBRARY(cross_entropy_bench_cpp, library) {
  library.def("rows_", rows_);
  library.def("scale_", scale_);
}
