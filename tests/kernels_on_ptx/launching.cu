// What launchers of the CUDA kernels decide on the host: ./launching CASE prints "ok" or "wrong".
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "../../csrc/cuda/adjoint_plan.cuh"
#include "../../csrc/cuda/cluster_write_plan.cuh"
#include "../../csrc/cuda/segment_plan.cuh"
#include "../../csrc/cuda/small_adaptive.cuh"
#include "../../csrc/cuda/small_adjoint_plan.cuh"
#include "../../csrc/cuda/small_moving_plan.cuh"
#include "../../csrc/cuda/small_recall.cuh"
#include "../../csrc/cuda/small_write_plan.cuh"

namespace {

using namespace kanerva;
using namespace kanerva::cuda;

Sizes sizes(int64_t B) {
  Sizes n = {};
  n.B = B, n.T = 20, n.K = 17, n.C = 33;
  return n;
}

// Forced teams of tiny memories: as many blocks as fit the processors beside those of the others.
bool forced() {
  Device device;
  device.shared_per_block = 200 * 1024;
  device.processors = 132;
  device.team_work = 0.0;
  for (const int64_t B : {1, 3, 66, 67, 132, 133, 4096}) {
    const int blocks = most_blocks(sizes(B), device);
    if (B * blocks > device.processors) return false;
    const bool team = team_pays({1.0, 1.0}, blocks, 1.0, device);
    if (team != (2 * B <= device.processors)) return false;
  }
  return most_blocks(sizes(3), device) == 44;
}

bool counted() {
  Device device;
  device.shared_per_block = 200 * 1024;
  device.processors = 132;
  return most_blocks(sizes(3), device) == 1 && !team_pays({1e4, 10.0}, 1, 1e4, device);
}

bool environment() {
  unsetenv("KANERVA_TEAM_WORK");
  if (team_work_from_environment() != -1.0) return false;
  setenv("KANERVA_TEAM_WORK", "2.5e6", 1);
  if (team_work_from_environment() != 2.5e6) return false;
  for (const char* text : {"many", "-1", "1x", "nan"}) {
    setenv("KANERVA_TEAM_WORK", text, 1);
    try {
      team_work_from_environment();
      return false;
    } catch (const std::runtime_error& error) {
      if (std::strstr(error.what(), text) == nullptr) return false;
    }
  }
  return true;
}

// Segments of a sequence of memories that move, on so many processors; `sequences` are packed.
int segments(Sizes n, int64_t sequences, bool adjoint, int processors, int forced = 0) {
  Device device;
  device.shared_per_block = 232448 - kHeadBytes;
  device.processors = processors;
  device.segments = forced;
  SegmentCall cut;
  cut.adjoint = adjoint;
  cut.write.n = n;
  cut.write.steps = double(n.T) / double(sequences);
  cut.write.reads = cut.write.moves = cut.write.identity = true;
  cut.write.most_steps = most_moving_steps(n.K, 64);
  const WritePlan whole = plan_write(cut.write, device);
  AdjointCall gradient;
  gradient.n = n;
  gradient.sequences = sequences;
  gradient.reads = gradient.moves = gradient.identity = true;
  const double steps = cut.write.steps;
  cut.whole = adjoint ? adjoint_operations(gradient) / steps
                      : work_of(cut.write, whole).of(whole.width) / steps;
  cut.segment = adjoint ? cut.whole : work_of(cut.write, whole).of(n.C) / steps;
  if (!adjoint && n.K <= kMostSmallSlots) {
    const auto shared = [&](int width) { return small_moving_shared(n.K, width, true); };
    cut.clocks = clocks_of_small_moving(n.K, small_width(cut.write, device, shared));
    cut.clocks_of_segment = clocks_of_small_moving(n.K, n.C);
  }
  return plan_segments(cut, device).count;
}

// As many as pay, by count: the rule of docs/algorithms.md.
bool cut_by_count() {
  const auto of = [](int64_t B, int64_t T, int64_t K, int64_t C) {
    Sizes n = {};
    n.B = B, n.T = T, n.K = K, n.C = C;
    return n;
  };
  const Sizes one = of(1, 65536, 64, 64);
  if (segments(one, 1, false, 132) != 53 || segments(one, 1, true, 132) != 115) return false;
  // No more than there are processors for, of many memories none, of few steps none.
  if (segments(one, 1, true, 50) != 50 || segments(of(32, 4096, 64, 64), 1, true, 132) != 4)
    return false;
  if (segments(of(64, 4096, 64, 64), 1, true, 132) != 1) return false;
  // Of small memories fewer pay, which have a kernel of their own.
  if (segments(of(1, 32768, 64, 64), 1, false, 132) != 1) return false;
  if (segments(of(1, 32768, 65, 64), 1, false, 132) < 3) return false;
  if (segments(of(1, 100, 64, 64), 1, false, 132) != 1) return false;
  if (segments(of(8, 65536, 64, 64), 512, false, 132) != 1) return false;  // of 128 steps
  // Teams do large memories.
  if (segments(of(1, 65536, 512, 64), 1, false, 132) != 1) return false;
  return segments(of(3, 5, 64, 64), 1, false, 1, 4) == 4 &&
         segments(of(3, 5, 64, 64), 1, false, 1, 9) == 5 && segments(one, 1, false, 132, 1) == 1;
}

// Where the beliefs between segments come from fits the rooms that are made for it: first steps in
// their order, none of a segment longer than is said, one after another to the end.
bool cut_to_the_end() {
  for (int64_t T = 1; T < 5000; T = T * 3 / 2 + 1) {
    for (const int count : {2, 3, 7, 64}) {
      for (const int64_t least : {int64_t(1), kLeastOfSegment}) {
        SegmentPlan plan;
        plan.count = count;
        plan.least = least;
        for (int64_t steps = 0; steps <= T; steps = steps * 2 + 1) {
          const int of = plan.of(steps);
          const int64_t longest = longest_segment(T, plan);
          for (int i = 0; i < of; ++i) {
            const int64_t length =
                SegmentPlan::first(steps, of, i + 1) - SegmentPlan::first(steps, of, i);
            if (of > 1 && (length < 1 || length > longest)) return false;
          }
          if (of > 1 &&
              (SegmentPlan::first(steps, of, 0) != 0 || SegmentPlan::first(steps, of, of) != steps))
            return false;
        }
      }
    }
  }
  return true;
}

bool segments_of_the_environment() {
  unsetenv("KANERVA_SEGMENTS");
  if (segments_from_environment() != 0) return false;
  setenv("KANERVA_SEGMENTS", "12", 1);
  return segments_from_environment() == 12;
}

// Shared memory of kernels for small memories, of as many columns as overflow 32 bits of bytes.
bool columns() {
  Sizes n = {};
  n.B = 1, n.T = 40, n.K = 40;
  bool more = true;
  for (const int C : {33'000'000, 50'000'000, 67'000'000, 140'000'000, 1'000'000'000}) {
    n.C = C;
    const auto least = [&](size_t bytes, int rows) {
      more = more && bytes >= size_t(rows) * size_t(C) * sizeof(float);
    };
    least(small_shared(32, C, true), 32);
    least(small_shared(64, C, false), 64);
    least(small_adjoint_shared(n, C), 4 * 64);
    least(SmallReadMemory<64>::bytes(C, true), 2 * 64);
    least(SmallRecallMemory<64>::bytes(C), 64);
    least(SmallAdaptiveMemory<32>::bytes(C), 64);
    least(SmallAdaptiveMemory<64>::bytes(C), 96);
  }
  return more;
}

// Of which memories a cluster writes, and of how many blocks; the layout has room for all of it.
bool clusters() {
  Device device;
  device.shared_per_block = 227 * 1024 - kHeadBytes;
  device.processors = 132;
  device.has_clusters = true;
  const auto blocks = [&](int64_t B, int64_t T, int64_t K, int64_t C) {
    BayesWriteArgs args = {};
    args.n.B = B, args.n.T = T, args.n.K = K, args.n.C = C;
    WriteCall call;
    call.n = args.n;
    call.steps = double(T);
    return plan_cluster(args, call, plan_write(call, device), device).blocks;
  };
  bool right = blocks(4, 128, 128, 256) == 8 && blocks(16, 128, 128, 256) == 8;
  right = right && blocks(17, 128, 128, 256) == 4 && blocks(33, 128, 128, 256) == 2;
  right = right && blocks(64, 128, 128, 200) == 2 && blocks(4096, 128, 128, 200) == 2;
  right = right && blocks(8, 256, 256, 512) == 8 && blocks(400, 256, 256, 512) == 8;
  right = right && blocks(4, 128, 64, 256) == 0;                                     // small
  right = right && blocks(4, 128, 512, 768) == 0 && blocks(4, 128, 257, 9000) == 0;  // no room
  right = right && blocks(4, 1, 65, 3) == 0;
  for (const int of : {2, 4, 8})
    for (const int K : {65, 128, 200, 256})
      for (const int C : {1, 33, 200, 512}) {
        const int columns = columns_in_cluster(C, of);
        const ClusterMemory m(nullptr, K, columns, of);
        const float* const end = m.R + int64_t(m.slots) * m.ld;
        right = right && size_t(end - static_cast<float*>(nullptr)) * sizeof(float) ==
                             ClusterMemory::bytes(K, C, of);
        right = right && m.slots >= K && m.slab * of == m.slots && columns * of >= C;
      }
  // Those of at most 64 slots have kernels of their own, and no team beside them.
  for (const int64_t B : {1, 16, 32}) {
    AdjointCall call;
    call.n.B = B, call.n.T = 64, call.n.K = 64, call.n.C = 200;
    right = right && plan_adjoint(call, device).team == 1;
    call.n.K = 128, call.n.C = 256;
    right = right && plan_adjoint(call, device).team > 1;
  }
  device.team_work = 0.0;  // asks for teams
  right = right && blocks(4, 128, 128, 256) == 0;
  device.team_work = -1.0;
  device.has_clusters = false;
  return right && blocks(4, 128, 128, 256) == 0;
}

}  // namespace

int main(int count, char** arguments) {
  const struct {
    const char* name;
    bool (*run)();
  } cases[] = {{"forced", forced},
               {"counted", counted},
               {"environment", environment},
               {"columns", columns},
               {"cut_by_count", cut_by_count},
               {"cut_to_the_end", cut_to_the_end},
               {"segments_of_the_environment", segments_of_the_environment},
               {"clusters", clusters}};
  for (const auto& one : cases) {
    if (count > 1 && std::strcmp(arguments[1], one.name) == 0) {
      std::puts(one.run() ? "ok" : "wrong");
      return 0;
    }
  }
  std::fputs("no such case\n", stderr);
  return 1;
}
