// What kernels and their launchers may use of a device. nvcc compiles the kernels for GPUs; any C++
// compiler compiles the same sources for the host (host/device_on_host.h), where a block's threads
// are fibers with real barriers: that is how the kernels are tested without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace kanerva::cuda {

// What a launcher needs to know of the current device.
struct Device {
  size_t shared_per_block = 0;  // bytes a block may have
  int processors = 1;           // multiprocessors
};

}  // namespace kanerva::cuda

// USE_CUDA: what calls the launchers, compiled by a C++ compiler with the CUDA runtime at hand.
#if defined(__CUDACC__) || defined(USE_CUDA)
#include <cuda_runtime.h>
#else
#include "host/device_on_host.h"
#endif

#include "../core/arguments.h"

namespace kanerva::cuda {

#if defined(__CUDACC__) || defined(USE_CUDA)

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
  return {size_t(shared), processors};
}

#endif

#if defined(__CUDACC__)

// The block's dynamic shared memory, 16-byte aligned.
__device__ inline char* dynamic_shared() {
  extern __shared__ __align__(16) char kanerva_shared[];
  return kanerva_shared;
}

#endif

#if defined(__CUDACC__) || !defined(USE_CUDA)

template <class T>
struct Same {
  using type = T;
};

// Starts grid_x x grid_y blocks of `threads` threads. Throws std::runtime_error.
template <class... P>
void launch(void (*kernel)(P...), int64_t grid_x, int64_t grid_y, int threads, size_t shared,
            Stream stream, typename Same<P>::type... args) {
  if (grid_x <= 0 || grid_y <= 0) return;
#if defined(__CUDACC__)
  if (shared > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)),
          "cudaFuncSetAttribute");
  }
  kernel<<<dim3(unsigned(grid_x), unsigned(grid_y)), threads, shared, stream>>>(args...);
  check(cudaGetLastError(), "kernel launch");
#else
  (void)stream;
  host::run_blocks(unsigned(grid_x), unsigned(grid_y), unsigned(threads), shared,
                   [&] { kernel(args...); });
#endif
}

#endif

}  // namespace kanerva::cuda
