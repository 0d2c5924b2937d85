// The losses of rows of logits x on a CPU, and the logits' gradient. Each logit is read from memory
// once, and each entry of the gradient is written once.
//
// A row passes three stages. Stage 1 finds m = max_j x_j. Stage 2 computes exp(x_j - m), keeps it in
// a buffer, and adds it to s = Σ_j exp(x_j - m). Stage 3 scales the exponentials to the gradient.
// A thread has three rows in work, one in each stage, and takes a block of columns of all three in
// turn. So memory is read (stage 1) and written (stage 3) while stage 2 computes, and the logits and
// exponentials of a row wait in the L2 cache for their next stage. Stage 3 writes past the caches.
//
// a, b and q are those of impls/shared/reduction.py; softcap and z-loss those of
// impls/shared/rows.py. T is the dtype of the logits and A the dtype to sum in: float for half
// precision, else T. docs/experiments/0028-a-kernel-in-cpp.md has the designs that were compared.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/bit_cast.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

namespace {

using at::Tensor;
using at::vec::Vectorized;
using at::vec::VectorizedN;

constexpr int64_t BLOCK = 1024;  // columns

// exp(u) for u <= 0, within 2 units in the last place. It is 0 below 2^-126, and nan for nan.
inline Vectorized<double> exp(Vectorized<double> u) {
  return u.exp();
}

inline Vectorized<float> exp(Vectorized<float> u) {
  // u = n log 2 + r. The bits of n + shift end with those of n + 127, the exponent of 2^n.
  const Vectorized<float> shift(0x1.8p23f + 127);
  u = at::vec::clamp_min(u, Vectorized<float>(-88.02f));  // n >= -127, where 2^n becomes 0
  auto n = at::vec::fmadd(u, Vectorized<float>(1.442695041f), shift);
  auto power = at::vec::cast<int32_t>(n) << Vectorized<int32_t>(23);
  auto r = at::vec::fnmadd(n - shift, Vectorized<float>(0.6931471806f), u);
  // exp(r) for |r| <= log(2) / 2: the polynomial with the smallest relative error, 3e-9.
  Vectorized<float> p(1.381459878757596e-3f);
  for (float c : {8.368716575205326e-3f, 4.168838899e-2f, 0.1666652113f, 0.4999999404f, 1.f, 1.f})
    p = at::vec::fmadd(p, r, Vectorized<float>(c));
  return p * at::vec::cast<float>(power);
}

template <typename V>
inline void write_past_caches(void* to, V v) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(static_cast<__m512i*>(to), c10::bit_cast<__m512i>(v));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(static_cast<__m256i*>(to), c10::bit_cast<__m256i>(v));
#else
  v.store(to);
#endif
}

// The arguments are those of rows_ below. A plain loss has no smoothing and no softcap.
template <typename T, bool IS_PLAIN>
struct Kernel {
  using A = at::opmath_type<T>;
  static constexpr int LANES = Vectorized<A>::size();
  static constexpr int SIZE = Vectorized<T>::size();  // columns at once
  using Wide = VectorizedN<A, SIZE / LANES>;

  const T* logits;
  T* grad;  // nullptr: the losses alone
  A* losses;
  const int64_t* y;
  const A* target_weight;
  const A* smoothing;  // nullptr: none
  const A* upstream;
  int64_t vocab, logits_stride, grad_stride;
  bool is_uniform;  // b is the same number for all classes
  A sum_b, softcap, z_loss;  // a softcap of 0: none

  struct Row {
    int64_t number;
    const T* x;
    T* g;
    bool is_read;  // a row whose upstream gradient is 0 is not: its logits may be nan
    Wide top, s, t;
    A m, factor, target_grad;  // factor: of the exponentials; target_grad: the target's entry
    int64_t written;  // columns
  };

  bool has_softcap() const {
    return !IS_PLAIN && softcap != 0;
  }

  bool is_smoothed() const {
    return !IS_PLAIN && smoothing;
  }

  // v, with `other` in place of the elements from `count` on.
  static Wide first(Wide v, int64_t count, A other) {
    for (int k = 0; k < Wide::size() / LANES; ++k)
      v[k] = Vectorized<A>::set(
          Vectorized<A>(other), v[k], std::clamp<int64_t>(count - k * LANES, 0, LANES));
    return v;
  }

  C10_ALWAYS_INLINE static Wide load(const T* from, int64_t count) {
    auto v = count == SIZE ? Vectorized<T>::loadu(from) : Vectorized<T>::loadu(from, count);
    return at::vec::convert<A, Wide::size() / LANES, T, 1>(VectorizedN<T, 1>(v));
  }

  template <typename F>
  static A reduce(Wide v, F f) {
    A lanes[Wide::size()];
    v.store(lanes);
    return std::accumulate(lanes + 1, std::end(lanes), lanes[0], f);
  }

  C10_ALWAYS_INLINE void store(T* to, Wide v, int64_t count) const {
    Vectorized<T> rounded = at::vec::convert<T, 1, A, Wide::size() / LANES>(v);
    if (count < SIZE)
      rounded.store(to, count);
    else if (logits == grad)
      rounded.store(to);  // the row is in the cache
    else
      write_past_caches(to, rounded);
  }

  C10_ALWAYS_INLINE Wide smoothing_at(int64_t j, int64_t count) const {
    return is_uniform ? Wide(smoothing[0]) : Wide::loadu(smoothing + j, count);
  }

  C10_ALWAYS_INLINE Wide cap(Wide x) const {
    return has_softcap() ? Wide(softcap) * (x / Wide(softcap)).tanh() : x;
  }

  A cap(A x) const {
    return has_softcap() ? softcap * std::tanh(x / softcap) : x;
  }

  // Calls f(j, count) for the columns [j, stop), `count` at once. The last call may go beyond
  // `stop`, but not beyond the row. Returns the column after the last.
  template <typename F>
  C10_ALWAYS_INLINE int64_t for_columns(int64_t j, int64_t stop, F f) const {
    for (; j < stop && j + SIZE <= vocab; j += SIZE)
      f(j, SIZE);
    if (j < stop) {
      f(j, vocab - j);
      j = vocab;
    }
    return j;
  }

  // Stage 1.
  void find_maximum(Row& row, int64_t j, int64_t stop) const {
    Wide top = row.top;
    for_columns(j, stop, [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      Wide x = load(row.x + j, count);
      top = clamp_min(count == SIZE ? x : first(x, count, -INFINITY), top);
    });
    row.top = top;
  }

  // Stage 2. A block has sums of its own: to add small numbers to a large sum loses digits.
  void add_exponentials(Row& row, A* exps, int64_t j, int64_t stop) const {
    Wide s(A(0)), t(A(0)), m(row.m);
    for_columns(j, stop, [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      Wide u = cap(load(row.x + j, count)) - m;
      if (count < SIZE) u = first(u, count, -INFINITY);
      Wide e = u.unary_op([](Vectorized<A> u) { return exp(u); });
      e.store(exps + j);
      s = s + e;
      if (is_smoothed()) t = t + first(smoothing_at(j, count) * u, count, 0);
    });
    row.s = row.s + s;
    row.t = row.t + t;
  }

  // Stage 3.
  void write_gradient(Row& row, const A* exps, int64_t stop) const {
    auto write = [&](int64_t j, int64_t count) C10_ALWAYS_INLINE_ATTRIBUTE {
      Wide g = Wide(row.factor) * Wide::loadu(exps + j);
      if (is_smoothed()) g = g - Wide(upstream[row.number]) * smoothing_at(j, count);
      if (has_softcap()) {
        Wide ratio = cap(load(row.x + j, count)) / Wide(softcap);
        g = g * (Wide(A(1)) - ratio * ratio);
      }
      store(row.g + j, row.is_read ? g : Wide(A(0)), count);
    };
    if (row.written == 0) {  // to where whole vectors are aligned, as write_past_caches needs
      auto misaligned = reinterpret_cast<uintptr_t>(row.g) / sizeof(T) % SIZE;
      row.written = std::min<int64_t>((SIZE - misaligned) % SIZE, vocab);
      if (row.written > 0) write(0, row.written);
    }
    row.written = for_columns(row.written, stop, write);
  }

  void start(Row& row, int64_t number) const {
    row.number = number;
    row.x = logits + number * logits_stride;
    row.g = grad + number * grad_stride;
    row.is_read = !upstream || upstream[number] != 0;
    row.top = Wide(-std::numeric_limits<A>::infinity());
    row.s = row.t = Wide(A(0));
    row.written = 0;
  }

  // After stage 1.
  void finish_maximum(Row& row) const {
    row.m = cap(reduce(row.top, [](A a, A b) { return std::max(a, b); }));
  }

  // After stage 2: the loss, and what stage 3 needs.
  void finish_sums(Row& row) const {
    int64_t i = row.number, y = this->y[i];
    TORCH_CHECK_INDEX(
        0 <= y && y < vocab, "target ", y, " is out of range for ", vocab, " classes");
    A s = reduce(row.s, std::plus<A>()), t = reduce(row.t, std::plus<A>());
    A a = target_weight[i], log_s = std::log(s), lse = row.m + log_s;
    A x_y = cap(A(row.x[y])), log_p_y = x_y - row.m - log_s;
    losses[i] = row.is_read ? -a * log_p_y - (t - sum_b * log_s) + z_loss * lse * lse : A(0);
    if (!grad) return;
    A softmax_factor = (a + sum_b + 2 * z_loss * lse) * upstream[i];
    row.factor = softmax_factor / s;
    // The target's entry is computed apart: p_y - 1 would be lost in a rounded p_y.
    A q_y = smoothing ? a + smoothing[is_uniform ? 0 : y] : a;
    row.target_grad = std::exp(log_p_y) * softmax_factor - q_y * upstream[i];
    if (has_softcap()) row.target_grad *= 1 - (x_y / softcap) * (x_y / softcap);
  }

  // After stage 3.
  void finish_gradient(Row& row) const {
    if (row.is_read) row.g[y[row.number]] = T(row.target_grad);
  }

  void run(int64_t begin, int64_t end) const {
    std::vector<A> exps(vocab + SIZE);
    Row rows[3];
    for (int64_t i = begin; i < end + 2; ++i) {
      Row &first = rows[i % 3], &second = rows[(i + 2) % 3], &third = rows[(i + 1) % 3];
      bool has_first = i < end, has_second = begin < i && i <= end, has_third = begin + 1 < i;
      if (has_first) start(first, i);
      for (int64_t j = 0; j < vocab; j += BLOCK) {
        int64_t stop = std::min(j + BLOCK, vocab);
        if (has_first && first.is_read) find_maximum(first, j, stop);
        if (has_third && grad) write_gradient(third, exps.data(), stop);
        if (has_second && second.is_read) add_exponentials(second, exps.data(), j, stop);
      }
      if (has_first) finish_maximum(first);
      if (has_second) finish_sums(second);
      if (has_third && grad) finish_gradient(third);
    }
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    _mm_sfence();  // what was written past the caches comes before what other threads do next
#endif
  }
};

// The losses (n,) of logits (n, vocab), whose rows are contiguous. `grad` receives the logits'
// gradient; it may be the logits. y, target_weight and smoothing are q. Each thread holds a row of
// exponentials, which torch's allocator does not see.
Tensor rows_(
    const Tensor& logits,
    const Tensor& y,
    const Tensor& target_weight,
    const std::optional<Tensor>& smoothing,
    const std::optional<Tensor>& upstream,
    const std::optional<Tensor>& grad,
    std::optional<double> softcap,
    double z_loss) {
  int64_t n = logits.size(0), vocab = logits.size(1);
  Tensor losses = at::empty_like(target_weight);
  bool is_uniform = smoothing && smoothing->stride(0) == 0;
  Tensor b = smoothing && !is_uniform ? smoothing->contiguous() : smoothing.value_or(Tensor());
  double sum_b = smoothing ? smoothing->sum().item<double>() : 0.0;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "cross_entropy", [&] {
        using A = at::opmath_type<scalar_t>;
        auto run = [&]<bool IS_PLAIN>(std::bool_constant<IS_PLAIN>) {
          Kernel<scalar_t, IS_PLAIN> kernel{
              logits.const_data_ptr<scalar_t>(),
              grad ? grad->data_ptr<scalar_t>() : nullptr,
              losses.data_ptr<A>(),
              y.const_data_ptr<int64_t>(),
              target_weight.const_data_ptr<A>(),
              smoothing ? b.const_data_ptr<A>() : nullptr,
              upstream ? upstream->const_data_ptr<A>() : nullptr,
              vocab,
              logits.stride(0),
              grad ? grad->stride(0) : 0,
              is_uniform,
              A(sum_b),
              A(softcap.value_or(0)),
              A(z_loss)};
          int64_t grain = at::internal::GRAIN_SIZE / std::max<int64_t>(vocab, 1) + 1;
          at::parallel_for(
              0, n, grain, [&](int64_t begin, int64_t end) { kernel.run(begin, end); });
        };
        if (smoothing || softcap)
          run(std::false_type());
        else
          run(std::true_type());
      });
  return losses;
}

}  // namespace

TORCH_LIBRARY(cross_entropy_bench_cpp, library) {
  library.def(
      "rows_(Tensor logits, Tensor y, Tensor target_weight, Tensor? smoothing, Tensor? upstream, "
      "Tensor(a!)? grad, float? softcap, float z_loss) -> Tensor");
  library.impl("rows_", c10::DispatchKey::CPU, TORCH_FN(rows_));
}
