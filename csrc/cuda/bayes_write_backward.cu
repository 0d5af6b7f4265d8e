// bayes_write, backward: one launch, one block or team per memory. The closed-form adjoint of
// ../cpu/write_adjoint.h, chunk by chunk from the last to the first; the states at the starts of
// the chunks are computed again, about twice the square root of their number kept in the workspace.
//
// Floor at (16, 32, 32, 100): 2 MB in and out, 0.7 us at 3 TB/s; 20 million multiply-adds, 0.7 us
// at 30 T/s; launch 2 to 3 us, chains of pivots as in bayes_write.cu: latency binds there.
//
// Arithmetic as in bayes_write.cu; gradients of decays cancel and are never done in float32.
#include "large_adjoint_plan.cuh"
#include "small_adjoint_plan.cuh"
#include "stationary.h"

namespace kanerva::cuda {

namespace {

// The gradients of every item or, where there are marks, `shares` of an item, of those that have
// one.
__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                    const __grid_constant__ AdjointPlan plan, char* workspace, const int* marks,
                    int shares) {
  join_team(reinterpret_cast<TeamMemory*>(workspace) + blockIdx.x);
  const bool only_sqrt = args.method == WriteMethod::sqrt;
  const bool in_float32 = args.mean.dtype == Dtype::float32 && !only_sqrt &&
                          args.decay.data == nullptr && !is_small(args.n.T, args.n);
  const auto gradients = [&](int64_t b) {
    adjoint_of_item(args, b, plan, workspace, in_float32, only_sqrt);
    sync();
  };
  for_marked(marks, args.n.B, gradients, shares);
}

AdjointCall call_of(const BayesWriteBackwardArgs& args) {
  AdjointCall call;
  call.n = args.n;
  call.in_float32 = args.mean.dtype == Dtype::float32;
  return call;
}

}  // namespace

size_t bayes_write_backward_workspace(const BayesWriteBackwardArgs& args, const Device& device) {
  if (args.moves()) return stationary_workspace(args, device);
  const AdjointCall call = call_of(args);
  const AdjointPlan plan = plan_adjoint(call, device);
  const SmallAdjointPlan small = plan_small(args, plan, device);
  const LargeAdjointPlan large = plan_large(args, device);
  const size_t before = small.serves   ? SmallAdjointWorkspace(args.n, small).size()
                        : large.serves ? LargeAdjointWorkspace(args.n, large).size()
                                       : 0;
  return before + workspace_of(call, plan);
}

void bayes_write_backward(const BayesWriteBackwardArgs& args, const Launch& to) {
  if (args.moves()) return stationary(args, to);
  const AdjointPlan plan = plan_adjoint(call_of(args), to.device);
  const SmallAdjointPlan small = plan_small(args, plan, to.device);
  if (small.serves) {
    start_small(args, small, backward_kernel, plan, to);
  } else if (const LargeAdjointPlan large = plan_large(args, to.device); large.serves) {
    start_large(args, large, backward_kernel, plan, to);
  } else {
    start_adjoint(backward_kernel, args, plan, to, nullptr, 1);
  }
}

}  // namespace kanerva::cuda
