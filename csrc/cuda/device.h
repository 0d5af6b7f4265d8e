// What kernels and their launchers may use of a device.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "../common/arguments.h"
#include "once_per_kernel.h"

namespace kanerva::cuda {

// What a launcher needs to know of the current device.
struct Device {
  size_t shared_per_block = 0;  // bytes a block may ask for, beside its head
  int processors = 1;           // multiprocessors
  double team_work = -1.0;      // multiply-adds from which a memory gets a team; < 0: as counted
  int segments = 0;             // of a sequence of a memory that moves; 0: as counted
  bool has_clusters = false;    // of blocks that wait for each other without global memory
};

constexpr size_t kHeadBytes = 480;  // of a block's shared memory, for team.cuh
constexpr int kMostBlocks = 256;    // in a team
constexpr int kMostInCluster = 8;   // blocks, on whatever device has clusters

struct Grid {
  int64_t x = 1, y = 1, z = 1;  // memories, blocks of columns, blocks in a team
  bool in_clusters = false;     // whether a team is a cluster
};

// Whether a team of so many blocks is a cluster; else it is a cooperative launch, and its blocks
// wait for each other by a counter in global memory, which whoever starts it clears.
inline bool is_cluster(const Device& device, int64_t team) {
  return device.has_clusters && (team == 2 || team == 4 || team == kMostInCluster);
}

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
  int index = 0, shared = 0, processors = 0, clusters = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, index),
        "cudaDeviceGetAttribute");
  return {size_t(shared) - kHeadBytes, processors, team_work_from_environment(),
          segments_from_environment(), clusters != 0};
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

// Blocks of a cluster, on architectures that have them: how many there are (1 where they are none),
// and their barrier in two halves, of which the second waits. What any thread did before the first
// is seen by all after the second. By all threads of all of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
__device__ inline unsigned cluster_blocks() {
  unsigned blocks;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return blocks;
}
__device__ inline void arrive_in_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ inline void wait_in_cluster() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// The place in shared memory of the block of this rank for one in the own.
__device__ inline unsigned place_in_cluster(const void* own, int rank) {
  unsigned place;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(place)
      : "r"(unsigned(__cvta_generic_to_shared(own))), "r"(rank));
  return place;
}
__device__ inline void store_in_cluster(unsigned* own, int rank, unsigned x) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(place_in_cluster(own, rank)), "r"(x)
               : "memory");
}
__device__ inline void store_in_cluster(double* own, int rank, double x) {
  asm volatile("st.shared::cluster.f64 [%0], %1;" ::"r"(place_in_cluster(own, rank)), "d"(x)
               : "memory");
}
__device__ inline float4 load_from_cluster(const float4* own, int rank) {
  float4 x;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(place_in_cluster(own, rank))
               : "memory");
  return x;
}
#else
__device__ inline unsigned cluster_blocks() { return 1; }
__device__ inline void arrive_in_cluster() {}
__device__ inline void wait_in_cluster() {}
__device__ inline void store_in_cluster(unsigned*, int, unsigned) {}
__device__ inline void store_in_cluster(double*, int, double) {}
__device__ inline float4 load_from_cluster(const float4*, int) { return {}; }
#endif

template <class T>
struct Same {
  using type = T;
};

// Whether the device takes clusters of so many blocks of a kernel, each with `shared` bytes beside
// its head: the kernel was compiled for them, and there is room for one. Where not, that is said
// once on stderr.
inline bool takes_clusters(const void* kernel, int64_t blocks, int threads, size_t shared) {
  struct Answers {
    std::mutex mutex;
    std::map<std::tuple<const void*, int, int64_t, size_t>, bool> known;
  };
  static Answers answers;
  int index = 0;
  check(cudaGetDevice(&index), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(answers.mutex);
  const auto [at, is_new] = answers.known.insert({{kernel, index, blocks, shared}, false});
  if (!is_new) return at->second;
  cudaLaunchAttribute of = {};
  of.id = cudaLaunchAttributeClusterDimension;
  of.val.clusterDim.x = of.val.clusterDim.y = 1;
  of.val.clusterDim.z = unsigned(blocks);
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(1, 1, unsigned(blocks));
  how.blockDim = dim3(unsigned(threads));
  how.dynamicSmemBytes = shared + kHeadBytes;
  how.attrs = &of;
  how.numAttrs = 1;
  if (how.dynamicSmemBytes > 48 * 1024) allow_shared(kernel);
  cudaFuncAttributes compiled = {};
  int clusters = 0;
  check(cudaFuncGetAttributes(&compiled, kernel), "cudaFuncGetAttributes");
  at->second = compiled.ptxVersion >= 90 &&
               cudaOccupancyMaxActiveClusters(&clusters, kernel, &how) == cudaSuccess &&
               clusters > 0;
  if (!at->second) {
    cudaGetLastError();  // of the question: no fault
    std::fprintf(stderr,
                 "kanerva_ext: device %d takes no clusters of %d blocks with %zu bytes of shared "
                 "memory: one block works on a memory, which is slower\n",
                 index, int(blocks), how.dynamicSmemBytes);
  }
  return at->second;
}

// Starts blocks of `threads` threads with `shared` bytes beside their heads; the blocks of a team
// all at once. A team that is a cluster has one block where the device takes no such clusters.
// Throws std::runtime_error.
template <class... P>
void launch(void (*kernel)(P...), Grid grid, int threads, size_t shared, Stream stream,
            typename Same<P>::type... args) {
  if (grid.x <= 0 || grid.y <= 0) return;
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (grid.in_clusters && !takes_clusters(function, grid.z, threads, shared)) grid.z = 1;
  shared += kHeadBytes;
  if (shared > 48 * 1024) allow_shared(function);
  cudaLaunchAttribute together = {};
  if (grid.in_clusters) {
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim.x = together.val.clusterDim.y = 1;
    together.val.clusterDim.z = unsigned(grid.z);
  } else {
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
  }
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
