// Kernels for easy memories mark those that are too hard for them; a second launch, of few blocks,
// does those that are marked and mostly leaves at once.
#pragma once

#include "plan.cuh"

namespace kanerva::cuda {

// Of what a thread stores: whether all of it is finite. One that is not marks its memory.
class Finite {
 public:
  __device__ void check(float x) { zero_ = fmaf(0.0f, x, zero_); }
  __device__ bool all() const { return zero_ == 0.0f; }

 private:
  float zero_ = 0.0f;  // or NaN
};

// Bytes of the marks, at the start of a workspace.
inline size_t marks_size(int64_t count) { return (size_t(count) * sizeof(int) + 15) / 16 * 16; }

// The blocks of the second launch.
inline int64_t blocks_for_marked(int64_t count, const Device& device) {
  return count < device.processors ? count : device.processors;
}

// f(index) for what is marked of `count`, each by `shares` marks, by a block each; without marks,
// for the block or team's own index.
template <class F>
__device__ inline void for_marked(const int* marks, int64_t count, F f, int shares = 1) {
  if (marks == nullptr) return f(int64_t(blockIdx.x));
  const auto is_marked = [&](int64_t index) {
    int marked = 0;  // without a branch: the loads go on side by side
#pragma unroll 4
    for (int i = 0; i < shares; ++i) marked |= marks[index * shares + i];
    return marked != 0;
  };
  const int64_t step = gridDim.x;
  for (int64_t first = blockIdx.x; first < count; first += step * block_threads()) {
    const int64_t own = first + step * block_thread();
    if (!__syncthreads_or(own < count && is_marked(own))) continue;
    for (int i = 0; i < block_threads(); ++i) {
      const int64_t index = first + step * i;
      if (index < count && is_marked(index)) f(index);
    }
  }
}

}  // namespace kanerva::cuda
