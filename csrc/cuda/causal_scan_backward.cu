// causal_scan, backward: the adjoint of the write chunk by chunk, as in bayes_write_backward.cu,
// with what the reads add to it. One block or team per memory; of packed sequences too, each of
// which keeps its states in a part of the workspace that follows from its bounds.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 270 MB in and out, 90 us at 3 TB/s; 15
// billion multiply-adds, 0.5 ms at 30 T/s; 128 chunks after each other, three times with their
// chains of 16 pivots, 0.5 ms: they and the products of 64 processors bind.
//
// Arithmetic as in bayes_write.cu; gradients of decays cancel and are never done in float32.
#include "adjoint_plan.cuh"
#include "stationary.h"

namespace kanerva::cuda {

namespace {

__host__ __device__ bool tries_float32(const CausalScanBackwardArgs& args) {
  return args.mean.dtype == Dtype::float32 && args.decay.data == nullptr &&
         !is_small(args.n.T, args.n);
}

__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ CausalScanBackwardArgs args,
                    const __grid_constant__ AdjointPlan plan, char* workspace) {
  join_team(reinterpret_cast<TeamMemory*>(workspace) + blockIdx.x);
  adjoint_of_item(args, blockIdx.x, plan, workspace, tries_float32(args), false);
}

AdjointCall call_of(const CausalScanBackwardArgs& args) {
  AdjointCall call;
  call.n = args.n;
  call.sequences = args.packing.count;
  call.in_float32 = tries_float32(args);
  call.reads = true;
  if (args.chunk_size > 0 && args.chunk_size < call.most_steps) call.most_steps = args.chunk_size;
  return call;
}

}  // namespace

size_t causal_scan_backward_workspace(const CausalScanBackwardArgs& args, const Device& device) {
  if (args.moves()) return stationary_workspace(args, device);
  const AdjointCall call = call_of(args);
  return workspace_of(call, plan_adjoint(call, device));
}

void causal_scan_backward(const CausalScanBackwardArgs& args, const Launch& to) {
  if (args.moves()) return stationary(args, to);
  start_adjoint(backward_kernel, args, plan_adjoint(call_of(args), to.device), to);
}

}  // namespace kanerva::cuda
