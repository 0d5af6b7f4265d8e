// bayes_write, forward: one launch, and one that redoes what was too hard for a small memory's
// kernel or for a cluster (cluster_write.cuh). One block per memory; or per memory and block of
// columns, in which case the K x K half is done by each of them; or a team per memory. plan_write
// says when. Long episodes of large memories take two launches more, before: sums over their steps
// by all processors (episode_sums.cuh), with which a team solves.
//
// Floor at (B, T, K, C) = (16, 32, 32, 100): 0.9 MB in and out, 0.3 us at 3 TB/s; 6 million
// multiply-adds, 0.2 us at 30 T/s; a launch is 2 to 3 us and the chain of L = 32 pivots, a barrier
// and a reciprocal each, 2 to 3 us: latency is what binds there. At B = 4096 it is the bytes, 75
// us.
//
// Arithmetic: the information form (information.cuh) for long episodes, float32 where it is easy,
// else float64; else chunks in float32 while max w'Uw / n is at most 16, else everything in float64
// in shorter chunks of the same shared memory, else (hardness above 1e11; float64 state: above 1e3)
// float64 steps on a square root.
#include "cluster_write_plan.cuh"
#include "stationary.h"

namespace kanerva::cuda {

namespace {

// The whole episode in information form, where it serves.
__device__ __noinline__ Outcome write_long(const BayesWriteArgs& args, int64_t b,
                                           const ColumnBlock& columns, const WritePlan& plan,
                                           const EpisodeSums& sums, Arena arena, double& evidence) {
  const int64_t c0 = columns.first;
  const int n = columns.count;
  const bool stores_cov = columns.index == 0;
  if (!information_serves(args, kept_steps(args, b))) return Outcome::harder;
  const bool narrow_state = args.mean.dtype == Dtype::float32;
  const double limit = information_limit(args.mean.dtype);
  Outcome outcome = Outcome::harder;
  if (narrow_state && args.n.K >= kManySlots) {
    outcome = write_information<float>(args, b, c0, n, plan.long_steps, plan.width, sums, arena,
                                       limit, kEasyInformation, stores_cov, evidence);
    sync();
  }
  if (outcome == Outcome::harder) {
    outcome = write_information<double>(args, b, c0, n, plan.long_steps, plan.width, {}, arena,
                                        limit, kNoLimit, stores_cov, evidence);
    sync();
  }
  return outcome;
}

// The scales of a memory's steps, by a thread each, for what follows.
__global__ void __launch_bounds__(256)
    scales_kernel(const __grid_constant__ BayesWriteArgs args,
                  const __grid_constant__ SumsPlan plan, char* workspace) {
  const int64_t b = blockIdx.x, t = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;
  if (t < args.n.T) store_scale(args, b, t, EpisodeSums(workspace, plan, args.n.T, b).scales);
}

__global__ void __launch_bounds__(kSumThreads, 1)
    episode_sums_kernel(const __grid_constant__ BayesWriteArgs args,
                        const __grid_constant__ SumsPlan plan, char* workspace) {
  const int64_t b = blockIdx.x;
  BlockSums(args, EpisodeSums(workspace, plan, args.n.T, b), b).run(int(blockIdx.y));
}

void start_sums(const BayesWriteArgs& args, const WritePlan& plan, const Launch& to) {
  const Sizes& n = args.n;
  char* const workspace = static_cast<char*>(to.workspace) + workspace_before_sums(n, plan);
  launch(scales_kernel, {n.B, (n.T + 255) / 256}, 256, 0, to.stream, args, plan.sums, workspace);
  launch(episode_sums_kernel, {n.B, plan.sums.blocks}, kSumThreads, sizeof(SumMemory), to.stream,
         args, plan.sums, workspace);
}

// teams: a TeamMemory for each memory, if teams work on them. partials: the evidence of every block
// where a memory has more than one, else null.
__global__ void __launch_bounds__(256, 1)
    write_kernel(const __grid_constant__ BayesWriteArgs args,
                 const __grid_constant__ WritePlan plan, TeamMemory* teams, char* workspace,
                 double* partials) {
  const auto [columns, arena] = enter_write(args.n, plan, teams, workspace);
  const Item item = item_of(args, blockIdx.x);
  double evidence = 0.0;
  Outcome outcome = Outcome::harder;
  if (plan.long_steps > 0) {
    EpisodeSums sums;
    if (plan.sums.blocks > 0)
      sums =
          EpisodeSums(workspace + args.n.B * int64_t(plan.global), plan.sums, args.n.T, item.state);
    outcome = write_long(args, item.state, columns, plan, sums, arena, evidence);
  }
  if (outcome == Outcome::harder && args.mean.dtype == Dtype::float32 &&
      args.method != WriteMethod::sqrt && !is_small(args.n.T, args.n)) {
    outcome = write_block<float>(args, item, columns, plan.steps, plan.width, arena, false,
                                 kHardForFloat32Factors, evidence);
    sync();
  }
  if (outcome == Outcome::harder)
    outcome = write_robustly(args, item, columns, plan.robust_steps, plan.width, arena,
                             args.method == WriteMethod::sqrt, evidence);
  finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
}

__global__ void __launch_bounds__(256, 1)
    finish_kernel(const __grid_constant__ BayesWriteArgs args, int blocks, const double* partials) {
  finish_item(args, item_of(args, blockIdx.x), blocks, partials);
}

WriteCall call_of(const BayesWriteArgs& args) {
  WriteCall call;
  call.n = args.n;
  call.steps = double(args.n.T);
  call.in_float32 = args.mean.dtype == Dtype::float32;
  call.may_be_long = information_serves(args, args.n.T);
  call.must_be_long = args.method == WriteMethod::information;
  call.price_of_long = call.in_float32 && args.n.K < kManySlots ? 2.0 : 1.0;
  call.may_be_summed =
      call.in_float32 && args.n.K >= kManySlots && are_float32_by_rows(args.weights, args.values);
  call.may_be_small = args.method != WriteMethod::sqrt;
  return call;
}

}  // namespace

size_t bayes_write_workspace(const BayesWriteArgs& args, const Device& device) {
  if (args.moves()) return stationary_workspace(args, device);
  const WriteCall call = call_of(args);
  const WritePlan plan = plan_write(call, device);
  const ClusterPlan cluster = plan_cluster(args, call, plan, device);
  const size_t otherwise = workspace_of_write(args, call, device);
  if (cluster.blocks == 0) return otherwise;
  const size_t own = workspace_of(args.n, cluster);
  return own > otherwise ? own : otherwise;  // which device takes it is known at the launch
}

void bayes_write(const BayesWriteArgs& args, const Launch& to) {
  if (args.moves()) return stationary(args, to);
  const WriteCall call = call_of(args);
  const WritePlan plan = plan_write(call, to.device);
  const ClusterPlan cluster = plan_cluster(args, call, plan, to.device);
  if (cluster.blocks > 0 && takes_clusters(cluster)) return start_cluster(args, cluster, to);
  if (plan.sums.blocks > 0) start_sums(args, plan, to);
  start_either_write(write_kernel, finish_kernel, args, call, to);
}

}  // namespace kanerva::cuda
