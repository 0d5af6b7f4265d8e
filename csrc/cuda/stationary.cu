// bayes_write and causal_scan, forward, of memories that move: one launch, split into blocks and
// teams as those of memories that keep still (bayes_write.cu, causal_scan.cu). Of small memories
// with the identity for their stationary covariance, a kernel of their own and one that redoes what
// was too hard for it (small_moving_plan.cuh). Or, of few long sequences, in segments
// (segment_plan.cuh).
//
// Arithmetic: chunks in float32 while w'(U moved) w / n is at most 16, else float64 in shorter
// chunks while no variance is larger than a pivot by the limit of Cholesky factors, else (or where
// a square root was asked for) float64 step by step.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 135 MB of addresses, values, queries and
// reads, 45 us at 3 TB/s; 8 billion multiply-adds, 0.3 ms at 30 T/s; 64 chunks after each other,
// with a chain of 32 pivots each, 0.2 ms.
#include "segment_plan.cuh"
#include "small_moving_plan.cuh"
#include "stationary.h"

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

// marks: of the items to do; null: all.
template <class Args>
__global__ void __launch_bounds__(256, 1)
    write_kernel(const __grid_constant__ Args args, const __grid_constant__ WritePlan plan,
                 TeamMemory* teams, char* workspace, double* partials, const int* marks) {
  if (marks != nullptr && marks[blockIdx.x] == 0) return;
  const auto [columns, arena] = enter_write(args.n, plan, teams, workspace);
  const Item item = item_of(args, blockIdx.x);
  double evidence = 0.0;
  const Outcome outcome = write_moving(args, item, columns, plan, arena, tries_float32(args),
                                       only_steps(args), args.mean.dtype, evidence);
  finish_block(args, item, columns, plan.blocks, outcome, evidence, partials);
}

template <class Args>
__global__ void __launch_bounds__(256, 1)
    finish_kernel(const __grid_constant__ Args args, int blocks, const double* partials,
                  const int* marks) {
  if (marks != nullptr && marks[blockIdx.x] == 0) return;
  finish_item(args, item_of(args, blockIdx.x), blocks, partials);
}

// A segment each, but for those that are done already where it is for the rest; args has the
// beliefs before them and after them.
template <class Args>
__global__ void __launch_bounds__(256, 1)
    segment_kernel(const __grid_constant__ Args args, const __grid_constant__ WritePlan plan,
                   const __grid_constant__ SegmentPlan segments,
                   const __grid_constant__ SegmentRooms rooms, char* scratch, bool rest) {
  const int64_t b = blockIdx.x;
  if (rooms.marks[b] != 0) return;
  const Item all = item_of(args, b);
  const int of = segments_of(segments, all), i = int(blockIdx.y);
  if (i >= of) return;
  const Item item = segments.segment(all, of, i);
  if (rest && rooms.outcomes[item.state] == int(Outcome::done)) return;
  const Arena arena(block_memory(), plan.shared, scratch + item.state * int64_t(plan.global));
  double evidence = 0.0;
  const Outcome outcome =
      write_moving(args, item, {0, int(args.n.C), 0}, plan, arena, segments.in_float32 && !rest,
                   false, segments.state, evidence);
  if (thread() == 0) rooms.evidence.at(item.state)(0, 0) = evidence;
  keep_outcome(rooms, item.state, outcome);
}

// What the segments of an item leave; marks it if one of them is not done.
template <class Args>
__global__ void __launch_bounds__(256)
    gather_kernel(const __grid_constant__ Args args, const __grid_constant__ SegmentPlan segments,
                  const __grid_constant__ SegmentRooms rooms) {
  const int64_t b = blockIdx.x;
  if (rooms.marks[b] != 0) return;
  const int of = segments_of(segments, item_of(args, b));
  if (mark_item(rooms, segments, b, 0, of)) return;
  const int K = int(args.n.K), C = int(args.n.C);
  const int64_t first = b * segments.count, last = first + of - 1;
  store(args.mean_out, b, 0, 0, K, C, rooms.R_after.at(last));
  store(args.cov_out, b, 0, 0, K, K, rooms.U_after.at(last));
  if (thread() != 0) return;
  double evidence = 0.0;
  for (int i = 0; i < of; ++i) evidence += rooms.evidence.at(first + i)(0, 0);
  store_scalar(args.log_evidence, b, 0, evidence);
}

template <class Args>
WriteCall call_of(const Args& args) {
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
    call.may_be_small = are_float32_by_rows(args.queries);
  }
  // In place, no block may store while another has yet to load.
  call.splits = args.cov.data != args.cov_out.data && args.mean.data != args.mean_out.data;
  return call;
}

// A call, cut into segments or not.
template <class Args>
struct Parts {
  WriteCall call;
  WritePlan whole;  // of the chain
  SmallPlan small;  // in its place, without segments
  SegmentPlan segments;
  WritePlan first, one;  // of the write of the first segment, of every segment
  size_t rooms = 0, scratch = 0;

  Parts(const Args& args, const Device& device)
      : call(call_of(args)),
        whole(plan_write(call, device)),
        small(plan_small_moving(args, call, whole, device)),
        segments(plan_segments(cut(args, device), device)) {
    scratch = is_small() ? SmallWorkspace(args.n, small).size() : workspace_of(args.n, whole);
    if (segments.count < 2) return;
    first = plan_of_segments(call, segments, false, device);
    one = plan_of_segments(call, segments, call.reads, device);
    rooms = SegmentRooms(nullptr, args.n, segments.count, false, call.identity).bytes;
    const size_t needs[] = {scratch_for_beliefs(args.n, segments, first),
                            size_t(args.n.B * segments.count) * one.global};
    for (const size_t need : needs) scratch = scratch < need ? need : scratch;
  }

  bool is_small() const { return small.serves && segments.count < 2; }
  // Of a segment, by one block.
  size_t shared_of_small(const Args& args) const {
    return small_moving_shared(args.n.K, int(args.n.C), call.reads);
  }
  bool has_small_segments(const Args& args, const Device& device) const {
    return small.serves && shared_of_small(args) <= device.shared_per_block;
  }

  SegmentCall cut(const Args& args, const Device& device) const {
    SegmentCall cut;
    cut.write = call;
    cut.state = args.mean.dtype;
    cut.by_steps = only_steps(args);
    cut.has_teams = whole.team > 1;
    cut.whole = work_of(call, whole).of(whole.width) / call.steps;
    cut.segment = work_of(call, whole).of(args.n.C) / call.steps;
    if (small.serves) cut.clocks = clocks_of_small_moving(args.n.K, small.width);
    if (has_small_segments(args, device))
      cut.clocks_of_segment = clocks_of_small_moving(args.n.K, args.n.C);
    return cut;
  }
};

template <class Args>
void start_segments(const Args& args, const Parts<Args>& parts, const SegmentRooms& rooms,
                    char* scratch, const Launch& to) {
  const SegmentPlan& segments = parts.segments;
  const Stream stream = to.stream;
  BayesWriteArgs write;
  static_cast<WriteInputs&>(write) = args;
  find_beliefs(write, packing_of(args), parts.first, segments, rooms, false, scratch, stream);
  Args each = args;
  each.mean = rooms.R.view();
  each.cov = rooms.U.view();
  each.mean_out = rooms.R_after.view();
  each.cov_out = rooms.U_after.view();
  const bool small = parts.has_small_segments(args, to.device);
  if (small)
    launch(args.n.K > 32 ? moving_segment_kernel<64, Args> : moving_segment_kernel<32, Args>,
           {args.n.B, segments.count}, kSegmentThreads, parts.shared_of_small(args), stream, each,
           segments, rooms);
  launch(segment_kernel<Args>, {args.n.B, segments.count}, parts.one.threads, parts.one.shared,
         stream, each, parts.one, segments, rooms, scratch, small);
  launch(gather_kernel<Args>, {args.n.B}, 256, 0, stream, args, segments, rooms);
}

template <class Args>
void start_moving(const Args& args, const Launch& to) {
  const Parts<Args> parts(args, to.device);
  if (parts.is_small()) return start_small_moving(args, parts.small, to, finish_kernel<Args>);
  Launch chain = to;
  const int* marks = nullptr;
  if (parts.segments.count > 1) {
    const SegmentRooms rooms(to.workspace, args.n, parts.segments.count, false,
                             parts.call.identity);
    char* const scratch = static_cast<char*>(to.workspace) + rooms.bytes;
    start_segments(args, parts, rooms, scratch, to);
    chain.workspace = scratch;
    marks = rooms.marks;
  }
  start_write(write_kernel<Args>, finish_kernel<Args>, args, parts.whole, chain, marks);
}

template <class Args>
size_t workspace_for(const Args& args, const Device& device) {
  const Parts<Args> parts(args, device);
  return parts.rooms + parts.scratch;
}

}  // namespace

size_t stationary_workspace(const BayesWriteArgs& args, const Device& device) {
  return workspace_for(args, device);
}

size_t stationary_workspace(const CausalScanArgs& args, const Device& device) {
  return workspace_for(args, device);
}

void stationary(const BayesWriteArgs& args, const Launch& to) { start_moving(args, to); }
void stationary(const CausalScanArgs& args, const Launch& to) { start_moving(args, to); }

}  // namespace kanerva::cuda
