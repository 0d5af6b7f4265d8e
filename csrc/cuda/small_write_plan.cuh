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

inline size_t small_shared(int64_t K, int width, bool reads) {
  return K <= 32 ? SmallMemory<32>::bytes(width, reads) : SmallMemory<64>::bytes(width, reads);
}

// Columns per block. Blocks of columns redo the K x K half and need a last launch for the evidence,
// which takes about as long as `launch` multiply-adds: so only if processors are idle and a memory
// is long in one block; or if its columns do not fit. shared(width): bytes of a block.
template <class Shared>
int small_width(const WriteCall& call, const Device& device, Shared shared) {
  constexpr double launch = 4e5;
  const Sizes& n = call.n;
  const int64_t idle = device.processors / n.B;
  const double column = call.steps * (2.0 * double(n.K) + kSmallChunk);
  const auto cut = [&](int64_t blocks) { return ((n.C + blocks - 1) / blocks + 7) / 8 * 8; };
  int64_t width = n.C;
  if (!call.splits) return int(width);
  if (idle > 1 && cut(idle) < n.C && column * double(n.C - cut(idle)) > launch) width = cut(idle);
  while (width > 8 && shared(int(width)) > device.shared_per_block) width = (width / 2 + 7) / 8 * 8;
  return int(width);
}

// What redoes the hard blocks of columns of a plan: as many steps as fit, in float64.
inline void plan_robust(const Sizes& n, const WriteLayout& layout, const Device& device,
                        SmallPlan& plan) {
  plan.robust_steps = int(at_most(16, n.T > 0 ? n.T : 1));
  const size_t need = layout.need(plan.robust_steps, plan.width);
  plan.robust_shared = need < device.shared_per_block ? need : device.shared_per_block;
  const auto global = [&] {
    return layout.chunk<double>(plan.robust_shared, plan.robust_steps, plan.width).global_used();
  };
  while (plan.robust_steps > 4 && global() > 0) plan.robust_steps = (plan.robust_steps + 1) / 2;
  plan.robust_global = global();
  plan.robust_blocks = int(blocks_for_marked(n.B * plan.blocks, device));
}

// Gives the blocks their columns and their shared memory; false where they have no room.
template <class Shared>
bool plan_columns(const WriteCall& call, const Device& device, Shared shared, SmallPlan& plan) {
  plan.width = small_width(call, device, shared);
  plan.shared = shared(plan.width);
  if (plan.shared > device.shared_per_block) return false;
  plan.serves = true;
  plan.blocks = int((call.n.C + plan.width - 1) / plan.width);
  return true;
}

inline void plan_robust(const Sizes& n, bool reads, const Device& device, SmallPlan& plan) {
  plan_robust(n, WriteLayout{false, reads, int(n.K)}, device, plan);
}

// `otherwise`: the plan of the general kernel.
template <class Args>
SmallPlan plan_small(const Args& args, const WriteCall& call, const WritePlan& otherwise,
                     const Device& device) {
  const Sizes& n = args.n;
  SmallPlan plan;
  if (!call.may_be_small || n.B < 1 || n.K > kMostSmallSlots || is_small(n.T, n) ||
      otherwise.team > 1 || otherwise.long_steps > 0 || call.most_steps < kSmallChunk ||
      !are_float32_by_rows(args.mean, args.cov, args.weights, args.values))
    return plan;
  const auto shared = [&](int width) { return small_shared(n.K, width, call.reads); };
  if (!plan_columns(call, device, shared, plan)) return plan;
  plan.alone = n.B * plan.blocks <= device.processors;
  plan.threads = plan.alone ? 256 : 128;
  plan_robust(n, call.reads, device, plan);
  if (plan.alone && plan.shared < plan.robust_shared) plan.shared = plan.robust_shared;
  return plan;
}

// The workspace: the marks of hard blocks of columns, the evidence of blocks, then what does not
// fit the robust ones.
struct SmallWorkspace {
  size_t marks, partials, robust;

  SmallWorkspace(const Sizes& n, const SmallPlan& plan)
      : marks(plan.alone ? 0 : marks_size(n.B * plan.blocks)),
        partials(partials_size(n, plan.blocks)),
        robust(size_t(plan.robust_blocks) * plan.robust_global) {}
  size_t size() const { return marks + partials + robust; }

  // Where they lie in it; no partials where there is no need for any.
  int* marks_of(const Launch& to) const { return static_cast<int*>(to.workspace); }
  double* partials_of(const Launch& to) const {
    return partials > 0 ? reinterpret_cast<double*>(bytes(to) + marks) : nullptr;
  }
  char* robust_of(const Launch& to) const { return bytes(to) + marks + partials; }

 private:
  static char* bytes(const Launch& to) { return static_cast<char*>(to.workspace); }
};

__device__ inline ColumnBlock columns_of(const Sizes& n, const SmallPlan& plan, int index) {
  const int64_t first = int64_t(index) * plan.width;
  return {first, int(first + plan.width <= n.C ? plan.width : n.C - first), index};
}

template <class Args>
__device__ inline void write_hard(const Args& args, const SmallPlan& plan, int64_t b,
                                  const ColumnBlock& columns, char* scratch, double* partials) {
  double evidence = 0.0;
  const Item item = item_of<true>(args, b);
  const Arena arena(block_memory(), plan.robust_shared, scratch);
  Outcome outcome = Outcome::failed;
  if (item.valid)
    outcome =
        write_robustly(args, item, columns, plan.robust_steps, plan.width, arena, false, evidence);
  finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
  sync();
}

template <int kSlots, bool kAlone, class Args>
__global__ void __launch_bounds__(kAlone ? 256 : 128, kAlone ? 1 : 4)
    small_write_kernel(const __grid_constant__ Args args, const __grid_constant__ SmallPlan plan,
                       int* marks, double* partials, char* scratch) {
  const int64_t b = blockIdx.x;
  const ColumnBlock columns = columns_of(args.n, plan, int(blockIdx.y));
  const Item item = item_of<true>(args, b);
  double evidence = 0.0;
  const bool done = item.valid && SmallWrite<kSlots, Args>(args, item, columns).run(evidence);
  const int64_t index = b * plan.blocks + blockIdx.y;
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
template <class Args>
__global__ void __launch_bounds__(256, 1)
    hard_write_kernel(const __grid_constant__ Args args, const __grid_constant__ SmallPlan plan,
                      const int* marks, double* partials, char* scratch) {
  scratch += blockIdx.x * int64_t(plan.robust_global);
  for_marked(marks, args.n.B * plan.blocks, [&](int64_t index) {
    write_hard(args, plan, index / plan.blocks, columns_of(args.n, plan, int(index % plan.blocks)),
               scratch, partials);
  });
}

template <class Args>
void start_small(const Args& args, const SmallPlan& plan, const Launch& to,
                 FinishKernel<Args> finish) {
  const SmallWorkspace sizes(args.n, plan);
  int* const marks = sizes.marks_of(to);
  double* const partials = sizes.partials_of(to);
  char* const scratch = sizes.robust_of(to);
  const bool few = args.n.K <= 32;
  const auto kernel =
      plan.alone ? few ? small_write_kernel<32, true, Args> : small_write_kernel<64, true, Args>
      : few      ? small_write_kernel<32, false, Args>
                 : small_write_kernel<64, false, Args>;
  launch(kernel, {args.n.B, plan.blocks}, plan.threads, plan.shared, to.stream, args, plan, marks,
         partials, scratch);
  if (!plan.alone)
    launch(hard_write_kernel<Args>, {plan.robust_blocks}, 256, plan.robust_shared, to.stream, args,
           plan, static_cast<const int*>(marks), partials, scratch);
  if (partials != nullptr)
    launch(finish, {args.n.B}, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials));
}

// A write by the small kernel where it serves, else by the general one.
template <class Args>
size_t workspace_of_write(const Args& args, const WriteCall& call, const Device& device) {
  const WritePlan plan = plan_write(call, device);
  const SmallPlan small = plan_small(args, call, plan, device);
  return small.serves ? SmallWorkspace(args.n, small).size() : workspace_of(args.n, plan);
}

template <class Args>
void start_either_write(WriteKernel<Args> kernel, FinishKernel<Args> finish, const Args& args,
                        const WriteCall& call, const Launch& to) {
  const WritePlan plan = plan_write(call, to.device);
  const SmallPlan small = plan_small(args, call, plan, to.device);
  if (small.serves) {
    start_small(args, small, to, finish);
  } else {
    start_write(kernel, finish, args, plan, to);
  }
}

}  // namespace kanerva::cuda
