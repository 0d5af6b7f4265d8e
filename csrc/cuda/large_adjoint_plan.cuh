// How the kernel of large_adjoint.cuh is started. The general kernel follows it for the memories
// that are too hard, which are marked.
#pragma once

#include "adjoint_plan.cuh"
#include "large_adjoint.cuh"

namespace kanerva::cuda {

constexpr int kMostLargeSteps = 1024, kMostLargeSlots = 1024;

struct LargeAdjointPlan {
  bool serves = false;
  int blocks = 1;      // of a memory, a team if there are several
  int64_t teams = 0;   // that are started: each does some memories, one after the other
  size_t shared = 0;   // bytes of a block
  size_t of_team = 0;  // bytes of the workspace
};

// Blocks that a processor has at a time: two, by registers, where it has the shared memory.
inline int blocks_of_processor(size_t shared, const Device& device) {
  constexpr size_t of_each = 1024 + kHeadBytes;  // the first for the system
  return 2 * (shared + of_each) <= device.shared_per_block + of_each ? 2 : 1;
}

// Clocks that a memory takes `blocks`: 26 for each number of the depth of a tile, and four
// barriers.
inline double clocks_of_adjoint(const Sizes& n, int blocks, const Device& device) {
  const double T = stream_tiles(int(n.T)), K = stream_tiles(int(n.K)), C = stream_tiles(int(n.C));
  const double of_columns = T * C * 2 * n.K + K * C * 2 * n.T + T * K * 2 * n.C + K * K * n.C / 2;
  const double of_slots = T * K * 4 * n.K + K * K * (3 * n.T + n.K);
  const double barrier = blocks == 1 ? 0.0 : is_cluster(device, blocks) ? 900.0 : 3600.0;
  return 26 * (of_columns + of_slots) / blocks + 4 * barrier;
}

// As many blocks as have room beside each other, if that is worth their barriers.
inline int blocks_of_adjoint(const Sizes& n, int resident, const Device& device) {
  if (device.team_work >= 0.0) {  // teams are asked for
    const int64_t most = device.processors / n.B;
    return int(most < 1 ? 1 : most < kMostInCluster ? most : kMostInCluster);
  }
  for (const int blocks : {kMostInCluster, 4, 2}) {
    const int64_t room = is_cluster(device, blocks) ? clusters_at_once(blocks, device, resident)
                                                    : device.processors / blocks;
    if (n.B <= room && clocks_of_adjoint(n, blocks, device) < clocks_of_adjoint(n, 1, device))
      return blocks;
  }
  return 1;
}

inline LargeAdjointPlan plan_large(const BayesWriteBackwardArgs& args, const Device& device) {
  const Sizes& n = args.n;
  LargeAdjointPlan plan;
  if (n.B < 1 || n.T < 1 || n.T > kMostLargeSteps || n.K > kMostLargeSlots || n.C > 65536 ||
      n.T >= 2 * n.K || is_small(n.T, n) || args.method == WriteMethod::sqrt || args.decay ||
      !args.posterior_mean || large_adjoint_shared(n.T) > device.shared_per_block ||
      !are_float32_by_rows(args.mean, args.cov, args.weights, args.values, args.posterior_mean,
                           args.posterior_cov, args.grad_mean, args.grad_cov))
    return plan;
  plan.serves = true;
  plan.shared = large_adjoint_shared(n.T);
  const int resident = blocks_of_processor(plan.shared, device);
  plan.blocks = blocks_of_adjoint(n, resident, device);
  const int64_t most = int64_t(device.processors) * resident / plan.blocks;
  plan.teams = n.B < most ? n.B : most;
  plan.of_team = LargeAdjointBuffers{nullptr, n}.bytes();
  return plan;
}

// The workspace: barriers of teams, the matrices of each, the marks, and then that of the general
// kernel.
struct LargeAdjointWorkspace {
  size_t barriers, matrices, marks;

  LargeAdjointWorkspace(const Sizes& n, const LargeAdjointPlan& plan)
      : barriers(size_t(plan.teams) * sizeof(TeamBarrier)),
        matrices(size_t(plan.teams) * plan.of_team),
        marks(marks_size(n.B * plan.blocks)) {}
  size_t size() const { return barriers + matrices + marks; }
};

static __global__ void __launch_bounds__(kStreamThreads, kLoadsAhead ? 2 : 1)
    large_backward_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                          const __grid_constant__ LargeAdjointPlan plan, TeamBarrier* barriers,
                          float* matrices, int* marks) {
  if (in_cluster()) arrive_in_cluster();
  matrices += blockIdx.x * int64_t(plan.of_team / sizeof(float));
  unsigned passed = 0;
  for (int64_t b = blockIdx.x; b < args.n.B; b += gridDim.x) {
    LargeAdjoint adjoint(args, b, matrices, barriers + blockIdx.x, passed);
    const bool done = adjoint.run();
    passed = adjoint.barriers();
    if (block_thread() == 0) marks[b * blocks() + block_rank()] = !done;
  }
}

inline void start_large(const BayesWriteBackwardArgs& args, LargeAdjointPlan plan,
                        MarkedBackwardKernel general, const AdjointPlan& otherwise,
                        const Launch& to) {
  const LargeAdjointWorkspace sizes(args.n, plan);
  const bool in_clusters = is_cluster(to.device, plan.blocks);
  const auto kernel = reinterpret_cast<const void*>(large_backward_kernel);
  if (in_clusters && !takes_clusters(kernel, plan.blocks, kStreamThreads, plan.shared))
    plan.blocks = 1;
  char* const workspace = static_cast<char*>(to.workspace);
  auto* const barriers = static_cast<TeamBarrier*>(to.workspace);
  int* const marks = reinterpret_cast<int*>(workspace + sizes.barriers + sizes.matrices);
  if (plan.blocks > 1 && !in_clusters) clear(barriers, sizes.barriers, to.stream);
  launch(large_backward_kernel, {plan.teams, 1, plan.blocks, in_clusters}, kStreamThreads,
         plan.shared, to.stream, args, plan, barriers,
         reinterpret_cast<float*>(workspace + sizes.barriers), marks);
  start_marked(general, args, otherwise, to, workspace + sizes.size(), marks, plan.blocks);
}

}  // namespace kanerva::cuda
