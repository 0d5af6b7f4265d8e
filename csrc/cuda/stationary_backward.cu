// bayes_write and causal_scan, backward, of memories that move: one launch, one block or team per
// memory, as those of memories that keep still (bayes_write_backward.cu, causal_scan_backward.cu).
//
// Arithmetic as in stationary.cu. Gradients of retentions are sums by their logarithms, of which
// nothing cancels, and float32 serves them too.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 270 MB in and out, 90 us at 3 TB/s; 25
// billion multiply-adds, 0.8 ms at 30 T/s; 128 chunks after each other, three times.
#include "adjoint_plan.cuh"
#include "stationary.h"

namespace kanerva::cuda {

namespace {

__host__ __device__ bool only_steps(const BayesWriteBackwardArgs& args) {
  return args.method == WriteMethod::sqrt;
}
__host__ __device__ bool only_steps(const CausalScanBackwardArgs&) { return false; }

template <class Args>
__host__ __device__ bool tries_float32(const Args& args) {
  return args.mean.dtype == Dtype::float32 && !only_steps(args) && !is_small(args.n.T, args.n);
}

// As adjoint_in() of adjoint_plan.cuh.
template <class F, class Args>
__device__ __noinline__ Outcome moving_adjoint_in(const Args& args, int64_t b,
                                                  const AdjointPlan& plan, char* workspace,
                                                  int steps, double limit) {
  const Item item = item_of(args, b);
  if (!item.valid) return Outcome::failed;
  char* const scratch = workspace + plan.teams;
  const Arena arena(block_memory(), plan.shared, scratch + item.state * int64_t(plan.scratch));
  int64_t sequence = 0;
  if constexpr (kReads<Args>) sequence = item.state % args.packing.count;
  char* const states = scratch + args.n.B * int64_t(plan.scratch) + item.row * plan.states_of_row +
                       plan.states_at(item.first, sequence);
  const Outcome outcome = StationaryAdjoint<F, Args>(args, item, steps, arena, states, limit)
                              .run(args.grad_mean, args.grad_cov, item.state);
  sync();
  return outcome;
}

template <class Args>
__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ Args args, const __grid_constant__ AdjointPlan plan,
                    char* workspace) {
  const int64_t b = blockIdx.x;
  join_team(reinterpret_cast<TeamMemory*>(workspace) + b);
  Outcome outcome = Outcome::harder;
  if (tries_float32(args))
    outcome =
        moving_adjoint_in<float>(args, b, plan, workspace, plan.steps, kHardForFloat32Factors);
  for (int form = only_steps(args); form < 2 && outcome == Outcome::harder; ++form) {
    const bool by_steps = form == 1;
    outcome = moving_adjoint_in<double>(args, b, plan, workspace,
                                        by_steps ? plan.root_steps : plan.robust_steps,
                                        by_steps ? kNoLimit : cholesky_limit(args.mean.dtype));
  }
  if (outcome == Outcome::done) return;
  fill_gradients_with_nan(args, b);
  const Item item = item_of(args, b);
  const int K = int(args.n.K);
  fill(args.d_retention, item.row, item.first, 0, item.steps, 1, NAN);
  if (args.d_stationary_cov.data != nullptr)
    fill(args.d_stationary_cov, item.state, 0, 0, K, K, NAN);
}

template <class Args>
AdjointCall call_of(const Args& args) {
  AdjointCall call;
  call.n = args.n;
  call.in_float32 = tries_float32(args);
  call.moves = true;
  call.identity = !args.stationary_cov;
  call.most_steps = most_moving_steps(args.n.K, call.most_steps);
  if constexpr (kReads<Args>) {
    call.sequences = args.packing.count;
    call.reads = true;
    if (args.chunk_size > 0 && args.chunk_size < call.most_steps) call.most_steps = args.chunk_size;
  }
  return call;
}

template <class Args>
size_t workspace_for(const Args& args, const Device& device) {
  const AdjointCall call = call_of(args);
  return workspace_of(call, plan_adjoint(call, device));
}

template <class Args>
void start_backward(const Args& args, const Launch& to) {
  start_adjoint(backward_kernel<Args>, args, plan_adjoint(call_of(args), to.device), to);
}

}  // namespace

size_t stationary_workspace(const BayesWriteBackwardArgs& args, const Device& device) {
  return workspace_for(args, device);
}

size_t stationary_workspace(const CausalScanBackwardArgs& args, const Device& device) {
  return workspace_for(args, device);
}

void stationary(const BayesWriteBackwardArgs& args, const Launch& to) { start_backward(args, to); }
void stationary(const CausalScanBackwardArgs& args, const Launch& to) { start_backward(args, to); }

}  // namespace kanerva::cuda
