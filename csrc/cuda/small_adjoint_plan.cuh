// How the kernel of small_adjoint.cuh is started. The general kernel follows it for the memories
// that are too hard, which are marked: twice in one kernel, it would take a minute to compile.
#pragma once

#include "adjoint_plan.cuh"
#include "marks.cuh"
#include "small_adjoint.cuh"

namespace kanerva::cuda {

constexpr int kMostSmallSteps = 64;

struct SmallAdjointPlan {
  bool serves = false;
  int panel = 0;      // columns at a time
  size_t shared = 0;  // bytes of a block
};

inline size_t small_adjoint_shared(const Sizes& n, int panel) {
  return n.T <= 32 && n.K <= 32 ? SmallAdjointMemory<32>::bytes(panel)
                                : SmallAdjointMemory<64>::bytes(panel);
}

// `otherwise`: the plan of the general kernel.
inline SmallAdjointPlan plan_small(const BayesWriteBackwardArgs& args, const AdjointPlan& otherwise,
                                   const Device& device) {
  const Sizes& n = args.n;
  SmallAdjointPlan plan;
  if (n.B < 1 || n.T > kMostSmallSteps || n.K > kMostSmallSlots || is_small(n.T, n) ||
      args.method == WriteMethod::sqrt || otherwise.team > 1 || args.decay ||
      !args.posterior_mean || small_adjoint_shared(n, 8) > device.shared_per_block ||
      !are_float32_by_rows(args.mean, args.cov, args.weights, args.values, args.posterior_mean,
                           args.posterior_cov, args.grad_mean, args.grad_cov))
    return plan;
  plan.serves = true;
  // Two blocks on a processor where there are more blocks than processors.
  size_t limit = device.shared_per_block;
  if (n.B > device.processors && small_adjoint_shared(n, 8) <= limit / 2) limit = limit / 2;
  int64_t panels = 1;
  const auto width = [&] { return int(((n.C + panels - 1) / panels + 7) / 8 * 8); };
  while (width() > 8 && small_adjoint_shared(n, width()) > limit) ++panels;
  plan.panel = width();
  plan.shared = small_adjoint_shared(n, plan.panel);
  return plan;
}

template <int kSize>
__global__ void __launch_bounds__(256, 2)
    small_backward_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                          const __grid_constant__ SmallAdjointPlan plan, int* marks) {
  const bool done = SmallAdjoint<kSize>(args, blockIdx.x, plan.panel).run();
  if (block_thread() == 0) marks[blockIdx.x] = !done;
}

using MarkedBackwardKernel = void (*)(BayesWriteBackwardArgs, AdjointPlan, char*, const int*);

// The workspace: the marks, then that of the general kernel.
inline void start_small(const BayesWriteBackwardArgs& args, const SmallAdjointPlan& plan,
                        MarkedBackwardKernel general, const AdjointPlan& otherwise,
                        const Launch& to) {
  const bool few = args.n.T <= 32 && args.n.K <= 32;
  const auto kernel = few ? small_backward_kernel<32> : small_backward_kernel<64>;
  int* const marks = static_cast<int*>(to.workspace);
  char* const workspace = static_cast<char*>(to.workspace) + marks_size(args.n.B);
  launch(kernel, {args.n.B}, 256, plan.shared, to.stream, args, plan, marks);
  launch(general, {blocks_for_marked(args.n.B, to.device)}, otherwise.threads, otherwise.shared,
         to.stream, args, otherwise, workspace, static_cast<const int*>(marks));
}

}  // namespace kanerva::cuda
