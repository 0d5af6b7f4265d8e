// How the kernel of small_moving.cuh is started: as that of small_write.cuh (small_write_plan.cuh),
// but that blocks which have a processor to themselves leave what is hard to a second launch, too.
#pragma once

#include "small_moving.cuh"
#include "small_write_plan.cuh"
#include "stationary_segments.cuh"

namespace kanerva::cuda {

inline size_t small_moving_shared(int64_t K, int width, bool reads) {
  return K <= 32 ? SmallMovingMemory<32>::bytes(width, reads)
                 : SmallMovingMemory<64>::bytes(width, reads);
}

// `otherwise`: the plan of the general kernel. Of few slots chunks of 32 steps are too long
// (most_moving_steps).
template <class Args>
SmallPlan plan_small_moving(const Args& args, const WriteCall& call, const WritePlan& otherwise,
                            const Device& device) {
  const Sizes& n = args.n;
  SmallPlan plan;
  if (!call.in_float32 || !call.identity || !call.may_be_small || n.B < 1 ||
      n.K > kMostSmallSlots || otherwise.team > 1 || call.most_steps < kSmallChunk ||
      !are_float32_by_rows(args.mean, args.cov, args.weights, args.values))
    return plan;
  const auto shared = [&](int width) { return small_moving_shared(n.K, width, call.reads); };
  if (!plan_columns(call, device, shared, plan)) return plan;
  // Of 64 slots no more than two blocks have room beside each other.
  plan.threads = n.K > 32 || n.B * plan.blocks <= device.processors ? 256 : 128;
  plan_robust(n, WriteLayout{false, call.reads, int(n.K), true, true}, device, plan);
  return plan;
}

// Clocks of a step, about, by the estimates of scripts/kernel_times.py.
inline double clocks_of_small_moving(int64_t K, int64_t columns) {
  return (6000.0 + 80.0 * double(K + columns)) / kSmallChunk;
}

template <int kSlots, int kThreads, class Args>
__global__ void __launch_bounds__(kThreads, 512 / kThreads)
    small_moving_kernel(const __grid_constant__ Args args, const __grid_constant__ SmallPlan plan,
                        int* marks, double* partials) {
  const int64_t b = blockIdx.x;
  const ColumnBlock columns = columns_of(args.n, plan, int(blockIdx.y));
  const Item item = item_of<true>(args, b);
  double evidence = 0.0;
  const bool done = item.valid && SmallMovingWrite<kSlots, Args>(args, item, columns).run(evidence);
  if (block_thread() != 0) return;
  const int64_t index = b * plan.blocks + blockIdx.y;
  marks[index] = !done;
  if (!done) return;
  if (partials != nullptr) {
    partials[index] = evidence;
  } else {
    store_scalar(args.log_evidence, b, 0, evidence);
  }
}

// A segment each, from the belief before it, of all columns: what is left to the general kernel is
// known from the outcomes.
template <int kSlots, class Args>
__global__ void __launch_bounds__(kSegmentThreads, 1)
    moving_segment_kernel(const __grid_constant__ Args args,
                          const __grid_constant__ SegmentPlan segments,
                          const __grid_constant__ SegmentRooms rooms) {
  const int64_t b = blockIdx.x;
  if (rooms.marks[b] != 0) return;
  const Item all = item_of<true>(args, b);
  const int of = segments_of(segments, all), i = int(blockIdx.y);
  if (i >= of) return;
  const Item item = segments.segment(all, of, i);
  const ColumnBlock columns = {0, int(args.n.C), 0};
  double evidence = 0.0;
  const bool done = SmallMovingWrite<kSlots, Args, double>(args, item, columns).run(evidence);
  if (thread() == 0) rooms.evidence.at(item.state)(0, 0) = evidence;
  keep_outcome(rooms, item.state, done ? Outcome::done : Outcome::harder);
}

// The blocks of columns that are marked, in float64.
template <class Args>
__global__ void __launch_bounds__(256, 1)
    hard_moving_kernel(const __grid_constant__ Args args, const __grid_constant__ SmallPlan plan,
                       const int* marks, double* partials, char* scratch) {
  WritePlan robust = {};
  robust.robust_steps = plan.robust_steps;
  robust.width = plan.width;
  const Arena arena(block_memory(), plan.robust_shared,
                    scratch + blockIdx.x * int64_t(plan.robust_global));
  for_marked(marks, args.n.B * plan.blocks, [&](int64_t index) {
    const Item item = item_of<true>(args, index / plan.blocks);
    const ColumnBlock columns = columns_of(args.n, plan, int(index % plan.blocks));
    double evidence = 0.0;
    const Outcome outcome =
        write_moving(args, item, columns, robust, arena, false, false, args.mean.dtype, evidence);
    finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
    sync();
  });
}

// finish: as FinishKernel, and the items' marks, null for all.
template <class Args>
void start_small_moving(const Args& args, const SmallPlan& plan, const Launch& to,
                        void (*finish)(Args, int, const double*, const int*)) {
  const SmallWorkspace sizes(args.n, plan);
  int* const marks = sizes.marks_of(to);
  double* const partials = sizes.partials_of(to);
  char* const scratch = sizes.robust_of(to);
  const auto kernel = args.n.K > 32         ? small_moving_kernel<64, 256, Args>
                      : plan.threads == 256 ? small_moving_kernel<32, 256, Args>
                                            : small_moving_kernel<32, 128, Args>;
  launch(kernel, {args.n.B, plan.blocks}, plan.threads, plan.shared, to.stream, args, plan, marks,
         partials);
  launch(hard_moving_kernel<Args>, {plan.robust_blocks}, 256, plan.robust_shared, to.stream, args,
         plan, static_cast<const int*>(marks), partials, scratch);
  if (partials != nullptr)
    launch(finish, {args.n.B}, 256, 0, to.stream, args, plan.blocks,
           static_cast<const double*>(partials), nullptr);
}

}  // namespace kanerva::cuda
