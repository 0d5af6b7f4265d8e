// bayes_write and causal_scan, forward, of memories that move: one launch, split into blocks and
// teams as those of memories that keep still (bayes_write.cu, causal_scan.cu), of which no kernel
// for small memories is there.
//
// Arithmetic: chunks in float32 while w'(U moved) w / n is at most 16, else float64 in shorter
// chunks while no variance is larger than a pivot by the limit of Cholesky factors, else (or where
// a square root was asked for) float64 step by step.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 135 MB of addresses, values, queries and
// reads, 45 us at 3 TB/s; 8 billion multiply-adds, 0.3 ms at 30 T/s; 64 chunks after each other,
// with a chain of 32 pivots each, 0.2 ms.
#include "stationary.h"
#include "write_plan.cuh"

namespace kanerva::cuda {

namespace {

__host__ __device__ bool only_steps(const BayesWriteArgs& args) {
  return args.method == WriteMethod::sqrt;
}
__host__ __device__ bool only_steps(const CausalScanArgs&) { return false; }

template <class Args>
__host__ __device__ bool tries_float32(const Args& args) {
  return args.mean.dtype == Dtype::float32 && !only_steps(args) && !is_small(args.n.T, args.n);
}

template <class Args>
__global__ void __launch_bounds__(256, 1)
    write_kernel(const __grid_constant__ Args args, const __grid_constant__ WritePlan plan,
                 TeamMemory* teams, char* workspace, double* partials) {
  const auto [columns, arena] = enter_write(args.n, plan, teams, workspace);
  const Item item = item_of(args, blockIdx.x);
  double evidence = 0.0;
  Outcome outcome = item.valid ? Outcome::harder : Outcome::failed;
  if (item.valid && tries_float32(args)) {
    outcome = write_moving_block<float>(args, item, columns, plan.steps, plan.width, arena,
                                        kHardForFloat32Factors, evidence);
    sync();
  }
  for (int form = only_steps(args); form < 2 && outcome == Outcome::harder; ++form) {
    const bool by_steps = form == 1;
    outcome = write_moving_block<double>(
        args, item, columns, by_steps ? 1 : plan.robust_steps, plan.width, arena,
        by_steps ? kNoLimit : cholesky_limit(args.mean.dtype), evidence);
    sync();
  }
  finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
}

template <class Args>
__global__ void __launch_bounds__(256, 1)
    finish_kernel(const __grid_constant__ Args args, int blocks, const double* partials) {
  finish_item(args, item_of(args, blockIdx.x), blocks, partials);
}

template <class Args>
WritePlan plan_of(const Args& args, const Device& device) {
  WriteCall call;
  call.n = args.n;
  call.steps = double(args.n.T);
  call.in_float32 = tries_float32(args);
  call.moves = true;
  call.identity = !args.stationary_cov;
  call.most_steps = most_moving_steps(args.n.K, call.most_steps);
  if constexpr (kReads<Args>) {
    call.steps /= double(args.packing.count);
    call.reads = true;
    if (args.chunk_size > 0) call.most_steps = at_most(call.most_steps, args.chunk_size);
  }
  // In place, no block may store while another has yet to load.
  call.splits = args.cov.data != args.cov_out.data && args.mean.data != args.mean_out.data;
  return plan_write(call, device);
}

template <class Args>
void start_moving(const Args& args, const Launch& to) {
  start_write(write_kernel<Args>, finish_kernel<Args>, args, plan_of(args, to.device), to);
}

}  // namespace

size_t stationary_workspace(const BayesWriteArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args, device));
}

size_t stationary_workspace(const CausalScanArgs& args, const Device& device) {
  return workspace_of(args.n, plan_of(args, device));
}

void stationary(const BayesWriteArgs& args, const Launch& to) { start_moving(args, to); }
void stationary(const CausalScanArgs& args, const Launch& to) { start_moving(args, to); }

}  // namespace kanerva::cuda
