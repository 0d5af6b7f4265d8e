// What kernels and their launchers may use of a device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../common/arguments.h"
#include "once_per_kernel.h"

namespace kanerva::cuda {

// What a launcher needs to know of the current device.
struct Device {
  size_t shared_per_block = 0;  // bytes a block may ask for, beside its head
  int processors = 1;           // multiprocessors
  double team_work = -1.0;      // multiply-adds from which a memory gets a team; < 0: as counted
  int segments = 0;             // of a sequence of a memory that moves; 0: as counted
};

constexpr size_t kHeadBytes = 288;  // of a block's shared memory, for team.cuh
constexpr int kMostBlocks = 256;    // in a team

struct Grid {
  int64_t x = 1, y = 1, z = 1;  // memories, blocks of columns, blocks in a team
};

// KANERVA_TEAM_WORK=0 gives every memory a team where the processors suffice for two blocks of it,
// to test teams on small memories.
inline double team_work_from_environment() {
  const char* text = std::getenv("KANERVA_TEAM_WORK");
  if (text == nullptr || *text == '\0') return -1.0;
  char* end = nullptr;
  const double work = std::strtod(text, &end);
  if (*end != '\0' || !(work >= 0.0)) {
    throw std::runtime_error(
        "KANERVA_TEAM_WORK must be a number of multiply-adds, at least 0, got " +
        std::string(text));
  }
  return work;
}

// KANERVA_SEGMENTS cuts every sequence of a memory that moves into so many segments, as on the CPU;
// 1: into none.
inline int segments_from_environment() {
  const char* text = std::getenv("KANERVA_SEGMENTS");
  if (text == nullptr || *text == '\0') return 0;
  char* end = nullptr;
  const long segments = std::strtol(text, &end, 10);
  if (*end != '\0' || segments < 1 || segments > 65535) {
    throw std::runtime_error("KANERVA_SEGMENTS must be a number of segments, 1 to 65535, got " +
                             std::string(text));
  }
  return int(segments);
}

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline Device current_device() {
  int index = 0, shared = 0, processors = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index),
        "cudaDeviceGetAttribute");
  return {size_t(shared) - kHeadBytes, processors, team_work_from_environment(),
          segments_from_environment()};
}

// Lets a kernel have all the shared memory that a block may ask for: once, so that no launch by
// another thread, or later in a capture, lowers what a launch counts on.
inline void allow_shared(const void* kernel) {
  static OncePerKernel allowed;
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  allowed.call(kernel, index, [&] {
    int most = 0;
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
          "cudaDeviceGetAttribute");
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
          "cudaFuncSetAttribute");
  });
}

// Zeroes memory in the stream's order.
inline void clear(void* memory, size_t bytes, Stream stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
}

#if defined(__CUDACC__)

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(16) char kanerva_shared[];
  return kanerva_shared;
}

__device__ inline unsigned load_relaxed(const unsigned* address) {
  return *static_cast<const volatile unsigned*>(address);
}

__device__ inline void store_relaxed(unsigned* address, unsigned value) {
  *static_cast<volatile unsigned*>(address) = value;
}

// x with a significand of 11 bits.
__device__ inline float round_to_tf32(float x) {
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

// 1 / x to the last bit or so; 0 or infinite where x or the result is subnormal.
__device__ inline float approximate_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / sqrt(x), likewise.
__device__ inline float approximate_rsqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// sum += a b by a warp, in tensor cores: a is 16 x 8, b 8 x 8. With g = lane / 4 and t = lane % 4 a
// lane holds a(g, t), a(g + 8, t), a(g, t + 4), a(g + 8, t + 4); b(t, g), b(t + 4, g); and of the
// sum (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ inline void multiply_add_tf32(float (&sum)[4], const float (&a)[4],
                                         const float (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
        "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// Starts a copy of `given` bytes of global memory and kSize - given zeros to kSize bytes of shared
// memory, both aligned to kSize. It may land at any time until the thread has waited for it.
template <int kSize>
__device__ inline void copy_async(float* to, const float* from, int given) {
  const unsigned place = unsigned(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(place), "l"(from), "n"(kSize),
               "r"(given)
               : "memory");
}

// Ends a group of the copies that this thread has started since the last.
__device__ inline void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all of this thread's groups but the last kOpen have landed. Others see them after the
// next barrier.
template <int kOpen>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// By one thread of a block: adds one to a counter, then waits until it is at least `target`. What
// any block wrote before its call is seen after.
__device__ inline void arrive_and_wait(unsigned* counter, unsigned target) {
  __threadfence();
  atomicAdd(counter, 1u);
  while (load_relaxed(counter) < target) __nanosleep(20);
  __threadfence();
}

template <class T>
struct Same {
  using type = T;
};

// Starts blocks of `threads` threads with `shared` bytes beside their heads; the blocks of a team
// all at once. Throws std::runtime_error.
template <class... P>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared, Stream stream,
            typename Same<P>::type... args) {
  if (grid.x <= 0 || grid.y <= 0) return;
  shared += kHeadBytes;
  if (shared > 48 * 1024) allow_shared(reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute together = {};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(unsigned(grid.x), unsigned(grid.y), unsigned(grid.z));
  how.blockDim = dim3(unsigned(threads));
  how.dynamicSmemBytes = shared;
  how.stream = stream;
  how.attrs = &together;
  how.numAttrs = grid.z > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&how, kernel, args...), "kernel launch");
}

#endif

}  // namespace kanerva::cuda
