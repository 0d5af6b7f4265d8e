// The beliefs between the segments of a sequence of a memory that moves, and the gradients of them:
// what stationary.cu and stationary_backward.cu start before a launch of all segments.
#include "stationary_element.cuh"

namespace kanerva::cuda {

namespace {

constexpr int kThreads = kSegmentThreads;
static_assert(kThreads == kFactorThreads);

// A block for each segment but the last: the write of the first one, which also keeps the belief
// before it, and the elements of the others.
__global__ void __launch_bounds__(kThreads, 1)
    element_kernel(const __grid_constant__ BayesWriteArgs args, const Packing packing,
                   const __grid_constant__ WritePlan plan,
                   const __grid_constant__ SegmentPlan segments,
                   const __grid_constant__ SegmentRooms rooms, char* scratch, int64_t per_block) {
  const int64_t b = blockIdx.x;
  const Item all = item_in(packing, args.n.T, b);
  const int of = segments_of(segments, all), i = int(blockIdx.y);
  if (i + 1 >= of && i > 0) return;
  const int64_t place = b * segments.count + i;
  char* const own = scratch + place * per_block;
  if (of < 2) return keep_outcome(rooms, place, Outcome::harder);
  Item item = segments.segment(all, of, i);
  Outcome outcome;
  if (i == 0) {
    const int K = int(args.n.K), C = int(args.n.C);
    item.state = b;
    load_covariance(args.cov, b, K, rooms.U.at(place));
    load(args.mean, b, 0, 0, K, C, rooms.R.at(place));
    double evidence = 0.0;
    outcome = write_moving(args, item, {0, C, 0}, plan, Arena(block_memory(), plan.shared, own),
                           segments.in_float32, false, segments.state, evidence);
  } else {
    outcome =
        make_element(args, item, segments, Arena(block_memory(), segments.shared, own), rooms);
  }
  keep_outcome(rooms, place, outcome);
}

// Member by member, as either() of stationary_chunk.cuh.
__device__ inline void swap(Mat<double>& a, Mat<double>& b) {
  double* const data = a.data;
  const int ld = a.ld;
  a.data = b.data, a.ld = b.ld;
  b.data = data, b.ld = ld;
}

// The elements of an item, applied one after another, by its block.
__global__ void __launch_bounds__(kThreads, 1)
    belief_kernel(const Sizes n, const Packing packing,
                  const __grid_constant__ SegmentPlan segments,
                  const __grid_constant__ SegmentRooms rooms, bool adjoint, char* scratch) {
  const int64_t b = blockIdx.x;
  const int K = int(n.K), C = int(n.C);
  const int of = segments_of(segments, item_in(packing, n.T, b));
  if (thread() == 0) rooms.marks[b] = 0;  // which mark_item() may set, by the same thread
  if (mark_item(rooms, segments, b, 0, of < 2 ? 1 : of - 1)) return;
  Arena arena(block_memory(), segments.shared_of_beliefs,
              scratch + b * int64_t(segments.scratch_of_beliefs));
  BeliefBuffers m(arena, K, C);
  copy(K, K, rooms.U.at(b * segments.count + 1), m.U);
  copy(K, C, rooms.R.at(b * segments.count + 1), m.R);
  sync();
  const double limit = segments.state == Dtype::float64 ? kHardSegment64 : kHardSegment32;
  bool ok = true;
  for (int i = 1; i + 1 < of && ok; ++i) {
    ok = apply_element(K, C, b * segments.count + i, rooms, m, limit, adjoint);
    swap(m.U, m.V);
    swap(m.R, m.x);
  }
  if (!ok && thread() == 0) rooms.marks[b] = 1;
}

// gR and gU of an item's segments, the last of which has its own, become gR_in and gU_in of those
// before.
__global__ void __launch_bounds__(kThreads, 1)
    gradient_kernel(const Sizes n, const Packing packing,
                    const __grid_constant__ SegmentPlan segments,
                    const __grid_constant__ SegmentRooms rooms, char* scratch) {
  const int64_t b = blockIdx.x;
  const int K = int(n.K), C = int(n.C);
  if (rooms.marks[b] != 0) return;
  const int of = segments_of(segments, item_in(packing, n.T, b));
  if (mark_item(rooms, segments, b, 1, of)) return;
  Arena arena(block_memory(), segments.shared_of_beliefs,
              scratch + b * int64_t(segments.scratch_of_beliefs));
  const ChainBuffers m(arena, K, C);
  const int64_t first = b * segments.count;
  copy(K, K, rooms.gU.at(first + of - 1), m.gU);
  copy(K, C, rooms.gR.at(first + of - 1), m.gR);
  sync();
  for (int i = of - 2; i >= 0; --i) {
    copy(K, K, m.gU, rooms.gU_in.at(first + i));
    copy(K, C, m.gR, rooms.gR_in.at(first + i));
    if (i > 0) chain_gradient(K, C, first + i, rooms, m);
  }
}

size_t per_block(const SegmentPlan& plan, const WritePlan& write) {
  return plan.scratch > write.global ? plan.scratch : write.global;
}

}  // namespace

size_t scratch_for_beliefs(const Sizes& n, const SegmentPlan& plan, const WritePlan& write) {
  const size_t elements = size_t(n.B * plan.count) * per_block(plan, write),
               beliefs = size_t(n.B) * plan.scratch_of_beliefs;
  return elements > beliefs ? elements : beliefs;
}

void find_beliefs(const BayesWriteArgs& args, const Packing& packing, const WritePlan& write,
                  const SegmentPlan& plan, const SegmentRooms& rooms, bool adjoint, char* scratch,
                  Stream stream) {
  BayesWriteArgs first = args;
  first.mean_out = rooms.R.view(1, plan.count);
  first.cov_out = rooms.U.view(1, plan.count);
  const size_t shared = plan.shared > write.shared ? plan.shared : write.shared;
  launch(element_kernel, {args.n.B, plan.count - 1}, kThreads, shared, stream, first, packing,
         write, plan, rooms, scratch, int64_t(per_block(plan, write)));
  launch(belief_kernel, {args.n.B}, kThreads, plan.shared_of_beliefs, stream, args.n, packing, plan,
         rooms, adjoint, scratch);
}

void chain_gradients(const Sizes& n, const Packing& packing, const SegmentPlan& plan,
                     const SegmentRooms& rooms, char* scratch, Stream stream) {
  launch(gradient_kernel, {n.B}, kThreads, plan.shared_of_beliefs, stream, n, packing, plan, rooms,
         scratch);
}

}  // namespace kanerva::cuda
