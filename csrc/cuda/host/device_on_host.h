// CUDA's names for a C++ compiler, so that the kernels run on the host: see fibers.h.
#pragma once

// Standard headers that use names defined below go first.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "run_blocks.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifndef __noinline__
#define __noinline__ __attribute__((noinline))
#endif

namespace kanerva::cuda {

using Stream = void*;

// KANERVA_HOST_SHARED_BYTES and KANERVA_HOST_PROCESSORS stand for other devices than an H100;
// KANERVA_HOST_TEAM_WORK=0 makes teams serve small memories, of as many blocks as there are
// processors however many memories there are: teams run one after another here.
inline Device current_device() {
  const double team_work = double(host::environment("KANERVA_HOST_TEAM_WORK", -1));
  return {size_t(host::environment("KANERVA_HOST_SHARED_BYTES", 227 * 1024)) - kHeadBytes,
          int(host::environment("KANERVA_HOST_PROCESSORS", 132)), team_work, team_work < 0.0};
}

inline void clear(void* memory, size_t bytes, Stream) { std::memset(memory, 0, bytes); }

KANERVA_UNSEEN inline char* dynamic_shared() { return host::active->current->block->shared; }

inline unsigned load_relaxed(const unsigned* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

inline void store_relaxed(unsigned* address, unsigned value) {
  __atomic_store_n(address, value, __ATOMIC_RELAXED);
}

inline void arrive_and_wait(unsigned* counter, unsigned target) {
  const unsigned count = __atomic_add_fetch(counter, 1u, __ATOMIC_RELAXED);
  host::wait_for_team(counter, count, target);
}

namespace host {

KANERVA_UNSEEN inline Index thread_index() { return active->current->index; }
KANERVA_UNSEEN inline Index block_index() { return active->current->block->index; }
KANERVA_UNSEEN inline Index block_dim() { return active->dim; }
KANERVA_UNSEEN inline Index grid_dim() { return active->grid; }

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = wait_at_warp(Kind::shuffle, mask, source, bits);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int lane() { return int(thread_index().x % kWarp); }

}  // namespace host
}  // namespace kanerva::cuda

#define threadIdx (::kanerva::cuda::host::thread_index())
#define blockIdx (::kanerva::cuda::host::block_index())
#define blockDim (::kanerva::cuda::host::block_dim())
#define gridDim (::kanerva::cuda::host::grid_dim())

constexpr int warpSize = 32;

inline void __syncthreads() {
  using namespace kanerva::cuda::host;
  wait_at_barrier(Kind::sync, 0);
}
inline int __syncthreads_or(int predicate) {
  using namespace kanerva::cuda::host;
  return wait_at_barrier(Kind::any, predicate);
}
inline int __syncthreads_and(int predicate) {
  using namespace kanerva::cuda::host;
  return wait_at_barrier(Kind::all, predicate);
}
inline int __syncthreads_count(int predicate) {
  using namespace kanerva::cuda::host;
  return wait_at_barrier(Kind::count, predicate);
}
inline void __syncwarp(unsigned mask = ~0u) {
  using namespace kanerva::cuda::host;
  wait_at_warp(Kind::sync, mask, 0, 0);
}
inline int __any_sync(unsigned mask, int predicate) {
  using namespace kanerva::cuda::host;
  return int(wait_at_warp(Kind::any, mask, 0, uint64_t(predicate != 0)));
}
inline int __all_sync(unsigned mask, int predicate) {
  using namespace kanerva::cuda::host;
  return int(wait_at_warp(Kind::all, mask, 0, uint64_t(predicate != 0)));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using namespace kanerva::cuda::host;
  return unsigned(wait_at_warp(Kind::ballot, mask, 0, uint64_t(predicate != 0)));
}

// A lane whose source lies outside its group of `width` lanes keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  int lane = kanerva::cuda::host::lane();
  return kanerva::cuda::host::shuffle(mask, value,
                                      unsigned(lane / width * width + (source & (width - 1))));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  int lane = kanerva::cuda::host::lane(), source = lane ^ lane_mask;
  return kanerva::cuda::host::shuffle(
      mask, value, unsigned(source < lane / width * width + width ? source : lane));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = kanerva::cuda::host::lane(), source = lane + int(delta);
  return kanerva::cuda::host::shuffle(
      mask, value, unsigned(source < lane / width * width + width ? source : lane));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  int lane = kanerva::cuda::host::lane(), source = lane - int(delta);
  return kanerva::cuda::host::shuffle(mask, value,
                                      unsigned(source >= lane / width * width ? source : lane));
}

namespace kanerva::cuda {
namespace host {
KANERVA_UNSEEN inline float* factors_of(unsigned lane) {
  return active->current->block->warps[active->current->index.x / kWarp].factors[lane];
}
}  // namespace host

inline float round_to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (std::isfinite(x)) bits = (bits + 0x1000u) & ~0x1fffu;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

// Lanes exchange their factors behind the sanitizers' back: between two operations of the warp.
KANERVA_UNSEEN inline void multiply_add_tf32(float (&sum)[4], const float (&a)[4],
                                             const float (&b)[2]) {
  const unsigned lane = unsigned(host::lane()), g = lane / 4, t = lane % 4;
  float* own = host::factors_of(lane);
  for (int i = 0; i < 6; ++i) own[i] = i < 4 ? a[i] : b[i - 4];
  __syncwarp();
  for (unsigned k = 0; k < 8; ++k) {
    const float *left = host::factors_of(4 * g + k % 4), *first = host::factors_of(8 * t + k % 4),
                *second = host::factors_of(8 * t + 4 + k % 4);
    for (unsigned r = 0; r < 2; ++r) {
      const float x = left[2 * (k / 4) + r];
      sum[2 * r] += x * first[4 + k / 4];
      sum[2 * r + 1] += x * second[4 + k / 4];
    }
  }
  __syncwarp();
}
}  // namespace kanerva::cuda

// The blocks that count are ordered by it: kernels have a __threadfence beside it.
template <class T>
T atomicAdd(T* address, T value) {
  static_assert(std::is_integral_v<T>, "sums of floating-point numbers depend on the order");
  return __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline double __dsqrt_rn(double x) { return std::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }

using std::max;
using std::min;

struct __align__(8) float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct __align__(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
