// How the kernel of small_adjoint.cuh is started. The general kernel follows it for the memories
// that are too hard, which are marked: twice in one kernel, it would take a minute to compile.
#pragma once

#include "adjoint_plan.cuh"
#include "small_adjoint_team.cuh"

namespace kanerva::cuda {

constexpr int kMostSmallSteps = 64;

struct SmallAdjointPlan {
  bool serves = false;
  int blocks = 1;       // of a memory, a team if there are several
  int width = 0;        // columns of a block
  int panel = 0;        // columns at a time
  size_t shared = 0;    // bytes of a block
  size_t exchange = 0;  // bytes of the workspace for each memory, of a team
};

inline bool is_of_32(const Sizes& n) { return n.T <= 32 && n.K <= 32; }

inline size_t small_adjoint_shared(const Sizes& n, int panel) {
  return is_of_32(n) ? SmallAdjointMemory<32>::bytes(panel) : SmallAdjointMemory<64>::bytes(panel);
}

// Columns per block of a memory: fewer where processors are idle and what the others take over is
// worth two barriers of a team, with what blocks leave each other some 5,000 clocks. A column takes
// a block some 280 clocks. With 32 steps and slots it takes 130, and no share of them is worth it.
inline int64_t small_adjoint_width(const Sizes& n, const Device& device) {
  const int64_t idle = device.processors / n.B;
  const int64_t blocks = idle < kMostAdjointBlocks ? idle : kMostAdjointBlocks;
  if (blocks < 2 || is_of_32(n)) return n.C;
  const int64_t width = ((n.C + blocks - 1) / blocks + 7) / 8 * 8;
  return (n.C - width) * 280 > 5000 ? width : n.C;
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
  plan.width = int(small_adjoint_width(n, device));
  plan.blocks = int((n.C + plan.width - 1) / plan.width);
  if (plan.blocks > 1) plan.exchange = AdjointExchange::bytes(plan.blocks);
  int64_t panels = 1;
  const auto width = [&] { return int(((plan.width + panels - 1) / panels + 7) / 8 * 8); };
  while (width() > 8 && small_adjoint_shared(n, width()) > limit) ++panels;
  plan.panel = width();
  plan.shared = small_adjoint_shared(n, plan.panel);
  return plan;
}

// The workspace: barriers of teams, what their blocks leave for each other, the marks, and then
// that of the general kernel.
struct SmallAdjointWorkspace {
  size_t barriers, exchange, marks;

  SmallAdjointWorkspace(const Sizes& n, const SmallAdjointPlan& plan)
      : barriers(plan.blocks > 1 ? size_t(n.B) * sizeof(TeamBarrier) : 0),
        exchange(size_t(n.B) * plan.exchange),
        marks(marks_size(n.B * plan.blocks)) {}
  size_t size() const { return barriers + exchange + marks; }
};

template <int kSize>
__global__ void __launch_bounds__(256, 2)
    small_backward_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                          const __grid_constant__ SmallAdjointPlan plan, int* marks) {
  const bool done = SmallAdjoint<kSize>(args, blockIdx.x, plan.panel, 0, int(args.n.C)).run();
  if (block_thread() == 0) marks[blockIdx.x] = !done;
}

static __global__ void __launch_bounds__(256, 2)
    small_backward_team_kernel(const __grid_constant__ BayesWriteBackwardArgs args,
                               const __grid_constant__ SmallAdjointPlan plan, TeamBarrier* barriers,
                               float* exchange, int* marks) {
  const int64_t b = blockIdx.x;
  exchange += b * int64_t(plan.exchange / sizeof(float));
  const bool done = SmallAdjointTeam(args, b, plan.panel, plan.width, barriers[b], exchange).run();
  if (block_thread() == 0) marks[b * blocks() + block_rank()] = !done;
}

inline void start_small(const BayesWriteBackwardArgs& args, SmallAdjointPlan plan,
                        MarkedBackwardKernel general, const AdjointPlan& otherwise,
                        const Launch& to) {
  const bool in_clusters = is_cluster(to.device, plan.blocks);
  const auto team = reinterpret_cast<const void*>(small_backward_team_kernel);
  if (in_clusters && !takes_clusters(team, plan.blocks, 256, plan.shared)) {
    Device busy = to.device;  // a block for each memory takes less of the workspace
    if (args.n.B < busy.processors) busy.processors = int(args.n.B);
    plan = plan_small(args, otherwise, busy);
  }
  const SmallAdjointWorkspace sizes(args.n, plan);
  char* const workspace = static_cast<char*>(to.workspace);
  auto* const barriers = static_cast<TeamBarrier*>(to.workspace);
  auto* const exchange = reinterpret_cast<float*>(workspace + sizes.barriers);
  int* const marks = reinterpret_cast<int*>(workspace + sizes.barriers + sizes.exchange);
  if (plan.blocks > 1) {
    if (!in_clusters) clear(barriers, sizes.barriers, to.stream);
    launch(small_backward_team_kernel, {args.n.B, 1, plan.blocks, in_clusters}, 256, plan.shared,
           to.stream, args, plan, barriers, exchange, marks);
  } else {
    const auto kernel = is_of_32(args.n) ? small_backward_kernel<32> : small_backward_kernel<64>;
    launch(kernel, {args.n.B}, 256, plan.shared, to.stream, args, plan, marks);
  }
  start_marked(general, args, otherwise, to, workspace + sizes.size(), marks, plan.blocks);
}

}  // namespace kanerva::cuda
