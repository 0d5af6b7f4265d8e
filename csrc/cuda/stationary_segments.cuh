// One long sequence of a memory that moves on many blocks: its steps in segments, all of which go
// on at once as soon as the beliefs between them are known. Those come from elements
// (stationary_element.cuh), which all segments but the ends are made into at once, and which are
// composed one after another. Gradients go the same way back: those of the beliefs between segments
// from a reversal of every segment with none coming in, and then every segment again. The algebra
// is that of ../cpu/stationary_segments.h.
//
// Launches, in their order on the stream: elements, and the write of the first segment; beliefs;
// every segment; what they leave is gathered; the chain of chunks, by the kernels of stationary.cu
// and stationary_backward.cu, for items that are marked: those of which an element, or a segment,
// was too hard. It writes again what segments have written.
#pragma once

#include "marks.cuh"
#include "write_plan.cuh"

namespace kanerva::cuda {

// Doubles of all segments side by side, those of item b's i-th at place b count + i.
struct Room {
  double* data = nullptr;
  int64_t rows = 0, columns = 0;

  __host__ __device__ int64_t size() const { return rows * columns; }
  __device__ Mat<double> at(int64_t place) const { return {data + place * size(), int(columns)}; }
  // Of every `step`-th place, from `first` on.
  View view(int64_t first = 0, int64_t step = 1) const {
    return {data + first * size(), Dtype::float64, {step * size(), columns, 1}};
  }
};

// In the workspace: what passes between launches.
struct SegmentRooms {
  Room A, b, C, eta, J;       // elements
  Room R, U;                  // beliefs before the segments
  Room R_after, U_after;      // what the segments leave
  Room evidence;              // 1 x 1
  Room T, y;                  // adjoints of the beliefs; from here on only of a gradient
  Room gR, gU, gR_in, gU_in;  // gradients of the beliefs before a segment, and after it
  Room dSigma;                // of the stationary covariance; absent where it is the identity
  int* outcomes = nullptr;    // of the segments
  int* marks = nullptr;       // of the items: those that the chain has to do
  size_t bytes = 0;

  SegmentRooms(void* workspace, const Sizes& n, int count, bool adjoint, bool identity) {
    char* const base = static_cast<char*>(workspace);
    const int64_t places = n.B * count;
    const auto take = [&](Room& room, int64_t rows, int64_t columns) {
      room = {reinterpret_cast<double*>(base + bytes), rows, columns};
      bytes += size_t(places * rows * columns) * sizeof(double);
    };
    for (Room* x : {&A, &C, &J, &U}) take(*x, n.K, n.K);
    for (Room* x : {&b, &eta, &R}) take(*x, n.K, n.C);
    if (adjoint) {
      for (Room* x : {&T, &gU, &gU_in}) take(*x, n.K, n.K);
      for (Room* x : {&y, &gR, &gR_in}) take(*x, n.K, n.C);
      if (!identity) take(dSigma, n.K, n.K);
    } else {
      take(U_after, n.K, n.K);
      take(R_after, n.K, n.C);
      take(evidence, 1, 1);
    }
    outcomes = reinterpret_cast<int*>(base + bytes);
    bytes += marks_size(places);
    marks = reinterpret_cast<int*>(base + bytes);
    bytes += marks_size(n.B);
    bytes = (bytes + 15) / 16 * 16;
  }
};

// Each block has a processor to itself.
constexpr int kSegmentThreads = 256;

struct SegmentPlan {
  int count = 1;        // segments of an item, at most; 1: there are none
  int64_t least = 1;    // steps of a segment, at least
  int64_t longest = 0;  // and at most
  int steps = 0;        // per chunk of an element
  // Of the items, whose views are replaced by those of beliefs.
  bool in_float32 = false;
  Dtype state = Dtype::float32;
  // Bytes per block: of elements, and where beliefs are composed.
  size_t shared = 0, scratch = 0, shared_of_beliefs = 0, scratch_of_beliefs = 0;

  __host__ __device__ int of(int64_t steps_of_item) const {
    const int64_t most = steps_of_item / least;
    return int(most < count ? most : count);
  }
  // Of `of` segments the i-th starts at. Whole vectors of steps where a segment is many of them.
  __host__ __device__ static int64_t first(int64_t T, int of, int i) {
    constexpr int64_t whole = 16;
    const int64_t at = T * i / of;
    return i == of || T < 8 * whole * of ? at : at / whole * whole;
  }
  // Segment i of item `all`, of which there are `of`.
  __device__ Item segment(const Item& all, int of, int i) const {
    const int64_t from = first(all.steps, of, i), to = first(all.steps, of, i + 1);
    return {all.state * count + i, all.row, all.first + from, to - from, true, all.state};
  }
};

// What the plan of a call follows from.
struct SegmentCall {
  WriteCall write;  // of the whole
  Dtype state = Dtype::float32;
  bool by_steps = false;   // whether a square root was asked for,
  bool has_teams = false;  // and whether teams do the whole
  double whole = 0.0,
         segment = 0.0;  // multiply-adds of a step: the busiest block's, and all of them
  bool adjoint = false;
  // Clocks of a step where the kernel for small memories does the whole, or segments; else 0.
  double clocks = 0.0, clocks_of_segment = 0.0;
};

// Of the chunks of a segment, by a block.
inline WritePlan plan_of_segments(WriteCall call, const SegmentPlan& plan, bool reads,
                                  const Device& device) {
  call.n.B *= plan.count;
  call.n.T = plan.longest;
  call.steps = double(plan.longest);
  call.reads = reads;
  call.splits = false;
  WritePlan blocks = plan_blocks(call, device);
  blocks.threads = kSegmentThreads;
  return blocks;
}

template <class Args>
Packing packing_of(const Args& args) {
  if constexpr (kReads<Args>) {
    return args.packing;
  } else {
    return {};
  }
}

// Bytes of scratch memory of the launches that find the beliefs.
size_t scratch_for_beliefs(const Sizes& n, const SegmentPlan& plan, const WritePlan& write);

// Starts these: the beliefs before all segments, and marks. `write` is of chunks of a write alone.
void find_beliefs(const BayesWriteArgs& args, const Packing& packing, const WritePlan& write,
                  const SegmentPlan& plan, const SegmentRooms& rooms, bool adjoint, char* scratch,
                  Stream stream);
// gR_in and gU_in of all segments but the last from gR and gU.
void chain_gradients(const Sizes& n, const Packing& packing, const SegmentPlan& plan,
                     const SegmentRooms& rooms, char* scratch, Stream stream);

// The write of one item's columns in the arithmetics that serve, one after another; by_steps: in
// the last of them alone. Leaves the team synchronised.
template <class Args>
__device__ inline Outcome write_moving(const Args& args, const Item& item,
                                       const ColumnBlock& columns, const WritePlan& plan,
                                       const Arena& arena, bool in_float32, bool by_steps,
                                       Dtype state, double& evidence) {
  Outcome outcome = item.valid ? Outcome::harder : Outcome::failed;
  if (item.valid && in_float32) {
    outcome = write_moving_block<float>(args, item, columns, plan.steps, plan.width, arena,
                                        kHardForFloat32Factors, evidence);
    sync();
  }
  for (int form = by_steps; form < 2 && outcome == Outcome::harder; ++form) {
    const bool last = form == 1;
    outcome =
        write_moving_block<double>(args, item, columns, last ? 1 : plan.robust_steps, plan.width,
                                   arena, last ? kNoLimit : cholesky_limit(state), evidence);
    sync();
  }
  return outcome;
}

// The segments of an item, in a kernel of a block for each of them.
__device__ inline int segments_of(const SegmentPlan& plan, const Item& item) {
  return item.valid ? plan.of(item.steps) : 1;
}

// An item's mark is set if a segment of it, `from` the first one on, is not done. By its block.
__device__ inline bool mark_item(const SegmentRooms& rooms, const SegmentPlan& plan, int64_t b,
                                 int from, int to) {
  bool bad = false;
  for (int i = from + thread(); i < to; i += threads())
    bad = bad || rooms.outcomes[b * plan.count + i] != int(Outcome::done);
  bad = any(bad);
  if (bad && thread() == 0) rooms.marks[b] = 1;
  return bad;
}

// Of one thread of a segment's block.
__device__ inline void keep_outcome(const SegmentRooms& rooms, int64_t place, Outcome outcome) {
  if (thread() == 0) rooms.outcomes[place] = int(outcome);
}

}  // namespace kanerva::cuda
