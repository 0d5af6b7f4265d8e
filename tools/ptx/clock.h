// A warp's clock: when its instructions start and when their results are ready, by the table of
// costs.h, in a multiprocessor that the warp has to itself.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "program.h"

namespace ptx {

struct Cost {
  uint64_t issue, latency;
};
const Cost& cost_of(Kind kind);
uint64_t second_level_latency();

// Each time is kept twice: with instructions issued in the order of the PTX, and with those of a
// basic block issued as soon as their sources are ready. ptxas, which orders them, is in between.
enum Schedule { kWritten, kMoved, kSchedules };
using Clocks = std::array<uint64_t, kSchedules>;

inline Clocks latest(const Clocks& a, const Clocks& b) {
  return {std::max(a[0], b[0]), std::max(a[1], b[1])};
}

class WarpClock {
 public:
  struct Step {
    uint64_t issue = 0, latency = 0;
    Clocks sources{};                    // when they are ready
    bool loads = false, stores = false;  // in this space: accesses stay in order about a store
    bool is_shared = false;
    bool ends_block = false;  // nothing moves across it
    bool stalls = false;      // what follows starts when its result is ready
  };
  // When the result is ready.
  Clocks issue(const Step& step);
  // A basic block begins: what comes before has been issued.
  void end_basic_block();
  Clocks now() const { return {now_, begin_}; }
  void wait_until(const Clocks& clocks);

  // cp.async: copies belong to the next group that is committed.
  void copy(const Clocks& ready) { open_ = latest(open_, ready); }
  void commit();
  // When all groups have landed but the last `keep`, and the open one if it has to.
  Clocks land(uint64_t keep, bool with_open);

 private:
  uint64_t now_ = 0;                            // in the order of the PTX
  uint64_t begin_ = 0, issued_ = 0, last_ = 0;  // of the basic block: its start, clocks, latest end
  uint64_t last_load_[2] = {}, last_store_[2] = {};
  Clocks open_{};
  std::vector<Clocks> groups_;
};

}  // namespace ptx
