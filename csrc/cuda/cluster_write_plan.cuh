// How the kernel of cluster_write.cuh is started, for memories of more than 64 slots. A second
// launch redoes what is too hard for it in float64, by a block each (small_write_plan.cuh).
#pragma once

#include <cmath>

#include "cluster_write.cuh"
#include "small_write_plan.cuh"

namespace kanerva::cuda {

struct ClusterPlan {
  int blocks = 0;     // of a memory; 0: it does not serve
  size_t shared = 0;  // bytes of a block
  SmallPlan hard;     // of the second launch
};

// What the clusters take, in multiply-adds of the general kernel's block: of these a block does 14
// to 23 a clock, by the interpreter's counts, for the clocks of which those of a cluster are a
// line.
inline double cost_in_cluster(const WriteCall& call, int blocks, const Device& device) {
  constexpr double per_clock = 16;
  const double chunks = std::ceil(call.steps / kSmallChunk);
  const double at_once = double(clusters_at_once(blocks, device));
  const double waves = std::ceil(double(call.n.B) / (at_once < 1 ? 1 : at_once));
  const double slots = slots_in_cluster(call.n.K, blocks);
  const double columns = columns_in_cluster(call.n.C, blocks);
  const double of_slot = 0.24 * slots / blocks + 0.58 * columns;
  return per_clock * waves * (6000 + chunks * (9800 + slots * of_slot));
}

// As many blocks as have a processor each; or as few as have room for a memory. `otherwise`: the
// plan of the general kernel.
inline ClusterPlan plan_cluster(const BayesWriteArgs& args, const WriteCall& call,
                                const WritePlan& otherwise, const Device& device) {
  const Sizes& n = args.n;
  ClusterPlan plan;
  if (!device.has_clusters || device.team_work >= 0.0 || !call.may_be_small || call.must_be_long ||
      n.B < 1 || n.K <= kMostSmallSlots || n.K > 1024 || n.C > 65536 || is_small(n.T, n) ||
      call.most_steps < kSmallChunk ||
      !are_float32_by_rows(args.mean, args.cov, args.weights, args.values))
    return plan;
  for (const int blocks : {2, 4, kMostInCluster}) {
    const size_t shared = ClusterMemory::bytes(n.K, n.C, blocks);
    if (shared > device.shared_per_block) continue;
    if (plan.blocks > 0 && n.B > clusters_at_once(blocks, device)) break;
    plan.blocks = blocks;
    plan.shared = shared;
  }
  if (plan.blocks == 0) return plan;
  const WriteWork work = work_of(call, otherwise);
  const double general = otherwise.team > 1
                             ? cost_of_team({work.of(n.C), work.barriers}, otherwise.team, device)
                             : work.of(otherwise.width) *
                                   std::ceil(double(n.B) * otherwise.blocks / device.processors);
  if (cost_in_cluster(call, plan.blocks, device) >= general) return {};
  plan.hard.width = int(n.C);
  plan.hard.blocks = 1;
  plan_robust(n, false, device, plan.hard);
  return plan;
}

// The workspace: the marks of hard memories, then what does not fit the blocks that redo them.
inline size_t workspace_of(const Sizes& n, const ClusterPlan& plan) {
  return marks_size(n.B) + size_t(plan.hard.robust_blocks) * plan.hard.robust_global;
}

static __global__ void __launch_bounds__(256, 1)
    cluster_write_kernel(const __grid_constant__ BayesWriteArgs args, int* marks) {
  const bool done = ClusterWrite(args, blockIdx.x).run();
  if (block_rank() == 0 && block_thread() == 0) marks[blockIdx.x] = !done;
}

inline bool takes_clusters(const ClusterPlan& plan) {
  return takes_clusters(reinterpret_cast<const void*>(cluster_write_kernel), plan.blocks, 256,
                        plan.shared);
}

inline void start_cluster(const BayesWriteArgs& args, const ClusterPlan& plan, const Launch& to) {
  int* const marks = static_cast<int*>(to.workspace);
  char* const scratch = static_cast<char*>(to.workspace) + marks_size(args.n.B);
  launch(cluster_write_kernel, {args.n.B, 1, plan.blocks, true}, 256, plan.shared, to.stream, args,
         marks);
  launch(hard_write_kernel<BayesWriteArgs>, {plan.hard.robust_blocks}, 256, plan.hard.robust_shared,
         to.stream, args, plan.hard, static_cast<const int*>(marks), static_cast<double*>(nullptr),
         scratch);
}

}  // namespace kanerva::cuda
