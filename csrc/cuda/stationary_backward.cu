// bayes_write and causal_scan, backward, of memories that move: one launch, one block or team per
// memory, as those of memories that keep still (bayes_write_backward.cu, causal_scan_backward.cu).
//
// Arithmetic as in stationary.cu. Gradients of retentions are sums by their logarithms, of which
// nothing cancels, and float32 serves them too.
//
// Floor at (B, T, K, C) = (64, 2048, 64, 64), float32: 270 MB in and out, 90 us at 3 TB/s; 25
// billion multiply-adds, 0.8 ms at 30 T/s; 128 chunks after each other, three times.
#include "adjoint_plan.cuh"
#include "segment_plan.cuh"
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

// Where an item keeps what does not fit its block, and the states at the starts of its chunks.
struct AdjointPlace {
  char *scratch, *states;
};

// The gradients of an item in the arithmetics that serve, one after another, from those of the
// belief after it, item `after` of these views.
template <class Args>
struct MovingAdjoint {
  const Args& args;
  const AdjointPlan& plan;
  bool in_float32, by_steps;
  Dtype state;

  template <class F>
  __device__ __noinline__ Outcome in(const Item& item, const AdjointPlace& place, const View& gR,
                                     const View& gU, int64_t after, int steps, double limit) const {
    const Arena arena(block_memory(), plan.shared, place.scratch);
    const Outcome outcome =
        StationaryAdjoint<F, Args>(args, item, steps, arena, place.states, limit)
            .run(gR, gU, after);
    sync();
    return outcome;
  }

  __device__ Outcome run(const Item& item, const AdjointPlace& place, const View& gR,
                         const View& gU, int64_t after) const {
    if (!item.valid) return Outcome::failed;
    Outcome outcome = Outcome::harder;
    if (in_float32)
      outcome = in<float>(item, place, gR, gU, after, plan.steps, kHardForFloat32Factors);
    for (int form = by_steps; form < 2 && outcome == Outcome::harder; ++form) {
      const bool last = form == 1;
      outcome = in<double>(item, place, gR, gU, after, last ? plan.root_steps : plan.robust_steps,
                           last ? kNoLimit : cholesky_limit(state));
    }
    return outcome;
  }
};

// marks: of the items to do; null: all.
template <class Args>
__global__ void __launch_bounds__(256, 1)
    backward_kernel(const __grid_constant__ Args args, const __grid_constant__ AdjointPlan plan,
                    char* workspace, const int* marks) {
  const int64_t b = blockIdx.x;
  if (marks != nullptr && marks[b] == 0) return;
  join_team(reinterpret_cast<TeamMemory*>(workspace) + b);
  const Item item = item_of(args, b);
  char* const scratch = workspace + plan.teams;
  int64_t sequence = 0;
  if constexpr (kReads<Args>) sequence = item.state % args.packing.count;
  const AdjointPlace place = {scratch + item.state * int64_t(plan.scratch),
                              scratch + args.n.B * int64_t(plan.scratch) +
                                  item.row * plan.states_of_row +
                                  plan.states_at(item.first, sequence)};
  const MovingAdjoint<Args> adjoint = {args, plan, tries_float32(args), only_steps(args),
                                       args.mean.dtype};
  if (adjoint.run(item, place, args.grad_mean, args.grad_cov, b) == Outcome::done) return;
  fill_gradients_with_nan(args, b);
  const int K = int(args.n.K);
  fill(args.d_retention, item.row, item.first, 0, item.steps, 1, NAN);
  if (args.d_stationary_cov.data != nullptr)
    fill(args.d_stationary_cov, item.state, 0, 0, K, K, NAN);
}

// A segment each, of those whose gradients are wanted: all but the first at first, with none coming
// in but of the last one, then all but the last. args has the beliefs before them, and room for
// what they leave.
template <class Args>
__global__ void __launch_bounds__(256, 1)
    segment_kernel(const __grid_constant__ Args args, const __grid_constant__ AdjointPlan plan,
                   const __grid_constant__ SegmentPlan segments,
                   const __grid_constant__ SegmentRooms rooms, const View gR_in, const View gU_in,
                   bool again, char* workspace) {
  const int64_t b = blockIdx.x;
  if (rooms.marks[b] != 0) return;
  const Item all = item_of(args, b);
  const int of = segments_of(segments, all), i = int(blockIdx.y) + (again ? 0 : 1);
  if (i >= of || (again && i + 1 == of)) return;
  const Item item = segments.segment(all, of, i);
  const int64_t places = int64_t(gridDim.x) * segments.count;
  const AdjointPlace place = {
      workspace + item.state * int64_t(plan.scratch),
      workspace + places * int64_t(plan.scratch) + item.state * plan.states_of_row};
  const MovingAdjoint<Args> adjoint = {args, plan, segments.in_float32, false, segments.state};
  const bool is_last = i + 1 == of;
  const Outcome outcome = adjoint.run(item, place, is_last ? args.grad_mean : gR_in,
                                      is_last ? args.grad_cov : gU_in, is_last ? b : item.state);
  keep_outcome(rooms, item.state, outcome);
}

// What the segments of an item leave at its start; marks it if one of them is not done.
template <class Args>
__global__ void __launch_bounds__(256)
    gather_kernel(const __grid_constant__ Args args, const __grid_constant__ SegmentPlan segments,
                  const __grid_constant__ SegmentRooms rooms) {
  const int64_t b = blockIdx.x;
  if (rooms.marks[b] != 0) return;
  const int of = segments_of(segments, item_of(args, b));
  if (mark_item(rooms, segments, b, 0, of)) return;
  const int K = int(args.n.K), C = int(args.n.C);
  const int64_t first = b * segments.count;
  store(args.d_mean, b, 0, 0, K, C, rooms.gR.at(first));
  store(args.d_cov, b, 0, 0, K, K, rooms.gU.at(first));
  if (args.d_stationary_cov.data == nullptr) return;
  const Mat<double> sum = rooms.dSigma.at(first);
  for (int i = 1; i < of; ++i) {
    const Mat<double> more = rooms.dSigma.at(first + i);
    each(K, K, [&](int r, int j) { sum(r, j) += more(r, j); });
  }
  store(args.d_stationary_cov, b, 0, 0, K, K, sum);  // by the threads that summed
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

// A call, cut into segments or not.
template <class Args>
struct Parts {
  AdjointCall call;
  AdjointPlan whole;  // of the chain
  WriteCall write;    // of the first segment
  SegmentPlan segments;
  WritePlan first;
  AdjointPlan one;  // of every segment
  size_t rooms = 0, scratch = 0;

  Parts(const Args& args, const Device& device)
      : call(call_of(args)),
        whole(plan_adjoint(call, device)),
        write(write_of(args, call)),
        segments(plan_segments(cut(args), device)) {
    scratch = workspace_of(call, whole);
    if (segments.count < 2) return;
    first = plan_of_segments(write, segments, false, device);
    AdjointCall each = call;
    each.n.B *= segments.count;
    each.n.T = segments.longest;
    each.sequences = 1;
    one = plan_alone(each, device);
    one.threads = kSegmentThreads;
    rooms = SegmentRooms(nullptr, args.n, segments.count, true, call.identity).bytes;
    const size_t needs[] = {scratch_for_beliefs(args.n, segments, first), workspace_of(each, one)};
    for (const size_t need : needs) scratch = scratch < need ? need : scratch;
  }

  SegmentCall cut(const Args& args) const {
    SegmentCall cut;
    cut.write = write;
    cut.state = args.mean.dtype;
    cut.by_steps = only_steps(args);
    cut.has_teams = whole.team > 1;
    cut.whole = cut.segment = adjoint_operations(call) / write.steps;
    cut.adjoint = true;
    return cut;
  }

  static WriteCall write_of(const Args& args, const AdjointCall& call) {
    WriteCall write;
    write.n = args.n;
    write.steps = double(args.n.T) / double(call.sequences);
    write.in_float32 = call.in_float32;
    write.reads = call.reads;
    write.moves = true;
    write.identity = call.identity;
    write.most_steps = call.most_steps;
    return write;
  }
};

template <class Args>
void start_segments(const Args& args, const Parts<Args>& parts, const SegmentRooms& rooms,
                    char* scratch, Stream stream) {
  const SegmentPlan& segments = parts.segments;
  const Sizes& n = args.n;
  const Packing packing = packing_of(args);
  BayesWriteArgs write;
  static_cast<WriteInputs&>(write) = args;
  find_beliefs(write, packing, parts.first, segments, rooms, true, scratch, stream);
  Args each = args;
  each.mean = rooms.R.view();
  each.cov = rooms.U.view();
  each.d_mean = rooms.gR.view();
  each.d_cov = rooms.gU.view();
  if (each.d_stationary_cov) each.d_stationary_cov = rooms.dSigma.view();
  const auto reverse = [&](const View& gR_in, const View& gU_in, bool again) {
    launch(segment_kernel<Args>, {n.B, segments.count - 1}, parts.one.threads, parts.one.shared,
           stream, each, parts.one, segments, rooms, gR_in, gU_in, again, scratch);
  };
  reverse({}, {}, false);
  chain_gradients(n, packing, segments, rooms, scratch, stream);
  reverse(rooms.gR_in.view(), rooms.gU_in.view(), true);
  launch(gather_kernel<Args>, {n.B}, 256, 0, stream, args, segments, rooms);
}

template <class Args>
size_t workspace_for(const Args& args, const Device& device) {
  const Parts<Args> parts(args, device);
  return parts.rooms + parts.scratch;
}

template <class Args>
void start_backward(const Args& args, const Launch& to) {
  const Parts<Args> parts(args, to.device);
  Launch chain = to;
  const int* marks = nullptr;
  if (parts.segments.count > 1) {
    const SegmentRooms rooms(to.workspace, args.n, parts.segments.count, true, parts.call.identity);
    char* const scratch = static_cast<char*>(to.workspace) + rooms.bytes;
    start_segments(args, parts, rooms, scratch, to.stream);
    chain.workspace = scratch;
    marks = rooms.marks;
  }
  start_adjoint(backward_kernel<Args>, args, parts.whole, chain, marks);
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
