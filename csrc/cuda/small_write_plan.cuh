// How the kernel of small_write.cuh is started: for which writes, with how many blocks, and what
// becomes of the memories that are too hard for it.
//
// Blocks that have a processor to themselves redo a hard memory at once in float64: registers are
// not short there. Else the kernel marks it (marks.cuh).
#pragma once

#include "marks.cuh"
#include "small_write.cuh"
#include "write_plan.cuh"

namespace kanerva::cuda {

struct SmallPlan {
  bool serves = false;
  bool alone = false;         // whether every block has a processor to itself
  int width = 0, blocks = 0;  // columns per block, blocks of columns per memory
  int threads = 0;
  int robust_steps = 0, robust_blocks = 0;
  size_t shared = 0;                            // bytes of a block
  size_t robust_shared = 0, robust_global = 0;  // of a block, in float64
};

inline size_t small_shared(int64_t K, int width) {
  return K <= 32 ? SmallMemory<32>::bytes(width) : SmallMemory<64>::bytes(width);
}

// Columns per block. Blocks of columns redo the K x K half and need a last launch for the evidence,
// which takes about as long as `launch` multiply-adds: so only if processors are idle and a memory
// is long in one block; or if its columns do not fit.
inline int small_width(const Sizes& n, const Device& device) {
  constexpr double launch = 4e5;
  const int64_t idle = device.processors / n.B;
  const double column = double(n.T) * (2.0 * double(n.K) + kSmallChunk);
  const auto cut = [&](int64_t blocks) { return ((n.C + blocks - 1) / blocks + 7) / 8 * 8; };
  int64_t width = n.C;
  if (idle > 1 && cut(idle) < n.C && column * double(n.C - cut(idle)) > launch) width = cut(idle);
  while (width > 8 && small_shared(n.K, int(width)) > device.shared_per_block)
    width = (width / 2 + 7) / 8 * 8;
  return int(width);
}

// `otherwise`: the plan of the general kernel.
inline SmallPlan plan_small(const BayesWriteArgs& args, const WritePlan& otherwise,
                            const Device& device) {
  const Sizes& n = args.n;
  SmallPlan plan;
  const bool has_method = args.method == WriteMethod::automatic || args.method == WriteMethod::chunk;
  if (n.B < 1 || n.K > kMostSmallSlots || is_small(n) || !has_method || otherwise.team > 1 ||
      otherwise.long_steps > 0 || device.shared_per_block < small_shared(n.K, 8) ||
      !is_float32_by_rows(args.mean) || !is_float32_by_rows(args.cov) ||
      !is_float32_by_rows(args.weights) || !is_float32_by_rows(args.values))
    return plan;
  plan.serves = true;
  plan.width = small_width(n, device);
  plan.blocks = int((n.C + plan.width - 1) / plan.width);
  plan.alone = n.B * plan.blocks <= device.processors;
  plan.threads = plan.alone ? 256 : 128;
  plan.shared = small_shared(n.K, plan.width);
  const WriteLayout layout = {false, false, int(n.K)};
  plan.robust_steps = int(at_most(16, n.T));
  const size_t need = layout.need(plan.robust_steps, plan.width);
  plan.robust_shared = need < device.shared_per_block ? need : device.shared_per_block;
  while (plan.robust_steps > 4 &&
         layout.chunk<double>(plan.robust_shared, plan.robust_steps, plan.width).global_used() > 0)
    plan.robust_steps = (plan.robust_steps + 1) / 2;
  plan.robust_global =
      layout.chunk<double>(plan.robust_shared, plan.robust_steps, plan.width).global_used();
  if (plan.alone && plan.shared < plan.robust_shared) plan.shared = plan.robust_shared;
  plan.robust_blocks = int(blocks_for_marked(n.B * plan.blocks, device));
  return plan;
}

// The workspace: the marks of hard blocks of columns, the evidence of blocks, then what does not fit
// the robust ones.
struct SmallWorkspace {
  size_t marks, partials, robust;

  SmallWorkspace(const Sizes& n, const SmallPlan& plan)
      : marks(plan.alone ? 0 : marks_size(n.B * plan.blocks)),
        partials(plan.blocks == 1 ? 0
                                  : (size_t(n.B * plan.blocks) * sizeof(double) + 15) / 16 * 16),
        robust(size_t(plan.robust_blocks) * plan.robust_global) {}
  size_t size() const { return marks + partials + robust; }
};

__device__ inline ColumnBlock columns_of(const Sizes& n, const SmallPlan& plan, int index) {
  const int64_t first = int64_t(index) * plan.width;
  return {first, int(first + plan.width <= n.C ? plan.width : n.C - first), index};
}

__device__ inline void write_hard(const BayesWriteArgs& args, const SmallPlan& plan, int64_t b,
                                  const ColumnBlock& columns, char* scratch, double* partials) {
  double evidence = 0.0;
  const Arena arena(block_memory(), plan.robust_shared, scratch);
  const Outcome outcome = write_robustly(args, item_of(args, b), columns, plan.robust_steps,
                                         plan.width, arena, false, evidence);
  finish_block(args, item_of(args, b), columns, plan.blocks, outcome, evidence, partials);
  sync();
}

template <int kSlots, bool kAlone>
__global__ void __launch_bounds__(kAlone ? 256 : 128, kAlone ? 1 : 4)
    small_write_kernel(const __grid_constant__ BayesWriteArgs args,
                       const __grid_constant__ SmallPlan plan, int* marks, double* partials,
                       char* scratch) {
  const int64_t b = blockIdx.x, index = b * plan.blocks + blockIdx.y;
  const ColumnBlock columns = columns_of(args.n, plan, int(blockIdx.y));
  double evidence = 0.0;
  const bool done = write_small<kSlots>(args, b, columns, evidence);
  if constexpr (kAlone) {
    if (!done)
      return write_hard(args, plan, b, columns, scratch + index * int64_t(plan.robust_global),
                        partials);
  } else if (block_thread() == 0) {
    marks[index] = !done;
  }
  if (done && block_thread() == 0) {
    if (partials != nullptr) {
      partials[index] = evidence;
    } else {
      store_scalar(args.log_evidence, b, 0, evidence);
    }
  }
}

// The blocks of columns that are marked.
__global__ void __launch_bounds__(256, 1)
    hard_write_kernel(const __grid_constant__ BayesWriteArgs args,
                      const __grid_constant__ SmallPlan plan, const int* marks, double* partials,
                      char* scratch) {
  scratch += blockIdx.x * int64_t(plan.robust_global);
  for_marked(marks, args.n.B * plan.blocks, [&](int64_t index) {
    write_hard(args, plan, index / plan.blocks,
               columns_of(args.n, plan, int(index % plan.blocks)), scratch, partials);
  });
}

inline void start_small(const BayesWriteArgs& args, const SmallPlan& plan, const Launch& to,
                        FinishKernel<BayesWriteArgs> finish) {
  const SmallWorkspace sizes(args.n, plan);
  char* const workspace = static_cast<char*>(to.workspace);
  int* const marks = reinterpret_cast<int*>(workspace);
  double* const partials =
      sizes.partials > 0 ? reinterpret_cast<double*>(workspace + sizes.marks) : nullptr;
  char* const scratch = workspace + sizes.marks + sizes.partials;
  const bool few = args.n.K <= 32;
  const auto kernel = plan.alone ? few ? small_write_kernel<32, true> : small_write_kernel<64, true>
                      : few      ? small_write_kernel<32, false>
                                 : small_write_kernel<64, false>;
  launch(kernel, {args.n.B, plan.blocks}, plan.threads, plan.shared, to.stream, args, plan, marks,
         partials, scratch);
  if (!plan.alone)
    launch(hard_write_kernel, {plan.robust_blocks}, 256, plan.robust_shared, to.stream, args, plan,
           static_cast<const int*>(marks), partials, scratch);
  if (partials != nullptr)
    launch(finish, {args.n.B}, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials));
}

}  // namespace kanerva::cuda
