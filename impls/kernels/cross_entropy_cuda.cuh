// What the kernel needs of a Hopper GPU, a line or an instruction each. The names are those of NVIDIA's
// PTX ISA: a block of threads is a CTA there, and an mbarrier is called a barrier here. A barrier has
// phases. A phase ends when the barrier has its arrivals and all bytes that these expect. An address in
// shared memory is a u32. tests/impls/emulated has the same functions for a CPU.

#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE __device__ __forceinline__

DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }
DEVICE u32 rank_in_cluster() {
  u32 rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEVICE void init_barrier(u32 barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
DEVICE void show_barriers_to_cluster() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// Waits until the phase of this parity is over. What was written before it is then visible.
DEVICE void wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(barrier), "r"(parity)
      : "memory");
}
// Arrives at the barrier, and lets its phase wait for `bytes` more.
DEVICE void expect(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Starts a copy from global memory, whose bytes the barrier expects.
DEVICE void start_copy(u32 to, const void* from, u32 bytes, u32 barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
// What this thread has written to shared memory comes before a copy that is started later.
DEVICE void order_before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Writes two numbers to the shared memory of block `rank`, whose barrier expects 8 bytes. An arrival
// with release semantics would wait for all gradients that this thread has written.
DEVICE void give(u32 to, u32 barrier, u32 rank, float a, float b) {
  asm volatile(
      "{\n.reg .b32 there, bar;\n"
      "mapa.shared::cluster.u32 there, %0, %2;\n"
      "mapa.shared::cluster.u32 bar, %1, %2;\n"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%3, %4}, [bar];\n}" ::
          "r"(to),
      "r"(barrier), "r"(rank), "f"(a), "f"(b)
      : "memory");
}
DEVICE float exp2_(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float log2_(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 as_bits(float x) { return __float_as_uint(x); }
DEVICE void store_vector(void* to, uint4 v, bool where) {
  asm volatile(
      "{\n.reg .pred where;\nsetp.ne.u32 where, %5, 0;\n"
      "@where st.global.v4.b32 [%0], {%1, %2, %3, %4};\n}" ::"l"(to),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(static_cast<u32>(where))
      : "memory");
}
DEVICE float shuffle_xor(float x, int lane) { return __shfl_xor_sync(0xffffffff, x, lane); }
DEVICE void synchronize_warp() { __syncwarp(); }

// Two logits of half precision in a register.
#if DTYPE == 0
DEVICE float low(u32 pair) { return as_float(pair << 16); }
DEVICE float high(u32 pair) { return as_float(pair & 0xffff0000); }
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DEVICE u32 larger(u32 a, u32 b) {
  u32 pair;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
}
#elif DTYPE == 1
DEVICE float low(u32 pair) {
  float x;
  asm("{\n.reg .f16 l, h;\nmov.b32 {l, h}, %1;\ncvt.f32.f16 %0, l;\n}" : "=f"(x) : "r"(pair));
  return x;
}
DEVICE float high(u32 pair) { return low(pair >> 16); }
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
DEVICE u32 larger(u32 a, u32 b) {
  u32 pair;
  asm("max.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(a), "r"(b));
  return pair;
}
#endif
#define KERNEL                                                                                     \
  extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(32 * WARPS, 1)
#define SHARED(type, name) __shared__ type name
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(128) type name[]
