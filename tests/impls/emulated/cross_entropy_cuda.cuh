// The functions of impls/kernels/cross_entropy_cuda.cuh, for a CPU: each GPU thread is a CPU thread.
// Copies end late and in any order. A phase that does not end within two minutes ends the process.

#pragma once

#include <unistd.h>

#include <barrier>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#define DEVICE inline
#define KERNEL static void
#define SHARED(type, name) type& name = *reinterpret_cast<type*>(block_memory())
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(block_memory() + TABLES)

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;
using std::max, std::min;

struct uint4 {
  u32 x, y, z, w;
};
struct float2 {
  float x, y;
};
struct Index {
  int x;
};

constexpr int TABLES = 1 << 14, BLOCK_MEMORY = 1 << 18;  // bytes

struct Barrier {
  int count, missing;  // arrivals
  i64 bytes;
  int phase;
};

struct Warp {
  std::barrier<> all{32};
  u32 values[32];
};

struct Cluster {
  std::vector<uint4> memory = std::vector<uint4>(CLUSTER * BLOCK_MEMORY / sizeof(uint4));
  std::map<u32, Barrier> barriers;
  std::mutex mutex;
  std::condition_variable changed;
  std::barrier<> all{CLUSTER * WARPS * 32};
  Warp warps[CLUSTER * WARPS];
  std::vector<std::thread> copies;
};

// An address is that of a byte in the memory of the cluster. Each block has a part of that memory.
inline thread_local Index threadIdx, blockIdx;
inline Index gridDim;
inline thread_local Cluster* cluster_of_thread;

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::fflush(stderr);
  _exit(1);
}

inline u32 rank_in_cluster() { return blockIdx.x % CLUSTER; }
inline char* memory() { return reinterpret_cast<char*>(cluster_of_thread->memory.data()); }
inline char* block_memory() { return memory() + rank_in_cluster() * BLOCK_MEMORY; }
inline u32 shared_address(const void* p) { return static_cast<const char*>(p) - memory(); }
inline Warp& warp_of_thread() {
  return cluster_of_thread->warps[rank_in_cluster() * WARPS + threadIdx.x / 32];
}

// Changes a barrier, and ends its phase if nothing is missing.
inline void change(Cluster& cluster, u32 address, int arrivals, i64 bytes) {
  std::lock_guard lock(cluster.mutex);
  Barrier& barrier = cluster.barriers.at(address);
  barrier.missing -= arrivals;
  barrier.bytes += bytes;
  if (barrier.missing < 0 || barrier.bytes < 0) fail("a barrier received more than it expected");
  if (barrier.missing || barrier.bytes) return;
  barrier.phase++;
  barrier.missing = barrier.count;
  cluster.changed.notify_all();
}

inline void init_barrier(u32 address, u32 count) {
  std::lock_guard lock(cluster_of_thread->mutex);
  int arrivals = count;
  cluster_of_thread->barriers[address] = {arrivals, arrivals, 0, 0};
}
inline void show_barriers_to_cluster() {}
inline void synchronize_cluster() { cluster_of_thread->all.arrive_and_wait(); }
inline void synchronize_warp() { warp_of_thread().all.arrive_and_wait(); }
inline void order_before_copies() {}
inline void expect(u32 address, u32 bytes) { change(*cluster_of_thread, address, 1, bytes); }

inline void wait(u32 address, u32 parity) {
  std::unique_lock lock(cluster_of_thread->mutex);
  Barrier& barrier = cluster_of_thread->barriers.at(address);
  auto is_over = [&] { return (barrier.phase & 1) != static_cast<int>(parity); };
  if (!cluster_of_thread->changed.wait_for(lock, std::chrono::minutes(2), is_over))
    fail("a phase of a barrier does not end");
}

inline void start_copy(u32 to, const void* from, u32 bytes, u32 address) {
  if (reinterpret_cast<u64>(from) % 16 || to % 16 || bytes % 16) fail("a copy is not aligned");
  Cluster& cluster = *cluster_of_thread;
  char* place = memory() + to;
  std::memset(place, 0x7f, bytes);  // large numbers, until the copy ends
  static thread_local std::minstd_rand random(threadIdx.x);
  std::chrono::microseconds late(random() % 300);
  std::lock_guard lock(cluster.mutex);
  cluster.copies.emplace_back([=, &cluster] {
    std::this_thread::sleep_for(late);
    std::memcpy(place, from, bytes);
    change(cluster, address, 0, -static_cast<i64>(bytes));
  });
}

inline void give(u32 to, u32 address, u32 rank, float a, float b) {
  const u32 there = rank * BLOCK_MEMORY;
  const float2 numbers{a, b};
  std::memcpy(memory() + there + to % BLOCK_MEMORY, &numbers, sizeof numbers);
  change(*cluster_of_thread, there + address % BLOCK_MEMORY, 0, -8);
}

inline float exp2_(float x) { return std::exp2(x); }
inline float log2_(float x) { return std::log2(x); }
inline float as_float(u32 bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline u32 as_bits(float x) {
  u32 bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline void store_vector(void* to, uint4 v, bool where) {
  if (where && reinterpret_cast<u64>(to) % 16) fail("a store is not aligned");
  if (where) std::memcpy(to, &v, 16);
}
inline float shuffle_xor(float x, int lane) {
  Warp& warp = warp_of_thread();
  warp.values[threadIdx.x % 32] = as_bits(x);
  synchronize_warp();
  const float other = as_float(warp.values[(threadIdx.x % 32) ^ lane]);
  synchronize_warp();
  return other;
}

#if DTYPE == 0
inline u32 rounded(float x) {  // to the nearest bfloat16, ties to even
  const u32 bits = as_bits(x);
  return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline float low(u32 pair) { return as_float(pair << 16); }
#elif DTYPE == 1
inline u32 rounded(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  unsigned short bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline float low(u32 pair) {
  _Float16 half;
  std::memcpy(&half, &pair, 2);
  return half;
}
#endif
#if DTYPE < 2
inline float high(u32 pair) { return low(pair >> 16); }
inline u32 pack(float low, float high) { return rounded(low) | rounded(high) << 16; }
inline u32 larger(u32 a, u32 b) {
  return pack(std::fmax(low(a), low(b)), std::fmax(high(a), high(b)));
}
#endif
