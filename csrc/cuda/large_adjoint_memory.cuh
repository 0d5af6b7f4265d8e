// Where large_adjoint.cuh has its matrices.
#pragma once

#include "streams.cuh"

namespace kanerva::cuda {

// Of a team, in the workspace: matrices of T and of K rows, a multiple of 16 bytes apart. Found
// anew wherever they are needed, for so many places would take the registers of a product.
struct LargeAdjointBuffers {
  float* data;
  const Sizes& n;
  int first = 0;  // always

  // From a row to the next.
  __host__ __device__ int slots() const { return int(n.K + 3) / 4 * 4; }
  __host__ __device__ int columns() const { return int(n.C + 3) / 4 * 4; }

  __device__ float* W() const { return of_steps(0); }  // without what the mask leaves out
  __device__ float* G() const { return of_steps(1); }
  __device__ float* M() const { return of_steps(2); }
  __device__ float* V() const { return of_steps(3); }
  __device__ float* Y() const { return of_steps(4); }
  __device__ float* gU() const { return of_slots(0); }  // symmetric
  __device__ float* E() const { return of_slots(1); }
  __device__ float* F() const { return of_slots(2); }  // transposed
  __device__ float* S() const { return of_slots(3); }  // the tiles with upper elements
  __device__ float* A() const { return of_slots(4); }
  __device__ float* D() const { return A() + int(n.T) * columns(); }
  // Parts of w'U0 w and of w'U w: T for each tile of slots.
  __device__ float* before() const { return D() + int(n.K) * columns(); }
  __device__ float* after() const { return before() + int(n.T) * stream_tiles(int(n.K)); }

  size_t bytes() const {
    const int64_t numbers =
        (5 * n.T + 4 * n.K) * slots() + (n.T + n.K) * columns() + 2 * n.T * stream_tiles(int(n.K));
    return (size_t(numbers) * sizeof(float) + 15) / 16 * 16;
  }

 private:
  __device__ float* of_steps(int i) const { return data + first + i * int(n.T) * slots(); }
  __device__ float* of_slots(int i) const { return of_steps(5) + i * int(n.K) * slots(); }
};

// Shared memory of a block: that of products, then 1 / n_t.
inline size_t large_adjoint_shared(int64_t T) {
  return sizeof(StreamMemory) + size_t(T + 3) / 4 * 4 * sizeof(float);
}

}  // namespace kanerva::cuda
