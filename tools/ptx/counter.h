// Counts of what a launch does, from which its time can be argued.
#pragma once

#include <array>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "clock.h"
#include "warp.h"

namespace ptx {

// Of a value: the longest chain of instructions, each of which needs the result of the one before,
// that ends in it, and the most loads on such a chain. Chains go through registers and memory. And
// when it is ready, by the warp's clock; that goes through registers and atomic operations only.
struct Chain {
  uint32_t instructions = 0, loads = 0;
  Clocks ready{};
  void join(const Chain& other);
};

class Counter {
 public:
  // Before the instruction is executed by these lanes.
  void count(Warp& warp, const Instruction& i, Mask lanes);
  void diverged(Warp&) { ++divergent_branches_; }
  // A barrier of the block lets these go on.
  void pass_barrier(const std::vector<std::pair<Warp*, AtBarrier>>& there);
  // At that of a cluster a warp arrives; all have; a warp goes on.
  void arrive(Warp& warp);
  void complete_cluster(const Cluster& cluster);
  void pass_cluster(Warp& warp);
  // All its threads have ended. Its warps are forgotten.
  void end_block(const Block& block);
  // A call's arguments or results go from one frame to another.
  void pass(const Frame& from, const Frame& to, const std::vector<Call::Copy>& copies);
  // One line of JSON.
  std::string json(const std::string& kernel, const LaunchShape& shape) const;

 private:
  struct FrameState {
    uint64_t serial = 0;
    std::vector<Chain> chains;      // [slot]
    std::vector<uint64_t> pending;  // [slot]: the load that fills it; 0: none
    std::unordered_map<int64_t, Chain> parameters;
  };
  struct WarpState {
    uint64_t loads = 0, landed = 0;                   // numbers of global loads
    std::vector<std::pair<uint64_t, uint64_t>> sent;  // load, bytes
    uint64_t in_flight = 0;                           // bytes
    std::vector<uint64_t> copy_groups;                // the last load of each group of copies
    uint64_t open_copies = 0;                         // the last load of the group that is open
    WarpClock clock;
    bool was_collective = false;  // the instruction before
    // As it was after the last atomic operation, from which on the warp waits for other blocks. How
    // often it looks is the interpreter's affair: where it sleeps its clock goes back to here.
    WarpClock waiting;
    bool waits = false;
    Clocks arrival{}, meeting{};  // at the barrier of the cluster, and when it was complete
  };
  // How an access of a warp goes to memory.
  struct Traffic {
    uint64_t clocks = 0;  // that it occupies the path to memory
    uint64_t bytes = 0;   // of global memory
    bool is_new = false;  // a sector of global memory that this launch has not touched before
  };
  // Chains that end in what is in memory, by words of four bytes: of a block, and global.
  using Chains = std::unordered_map<uint64_t, Chain>;
  struct BlockState {
    std::vector<Chain> shared;
    Chains local;  // by thread and address
  };
  FrameState& state_of(const Frame& frame);
  const std::vector<int32_t>& slots_of(const Code& code);
  Space count_access(Warp& warp, const Instruction& i, Mask lanes, uint64_t* addresses,
                     Traffic& traffic);
  Space count_remote(const Warp& warp, Mask lanes, uint64_t* addresses, const Instruction& i,
                     Traffic& traffic);
  Traffic count_sectors(const uint64_t* addresses, const unsigned* bytes, Mask lanes);
  Traffic count_banks(const uint64_t* addresses, Mask lanes, unsigned bytes);
  Traffic count_copy(const Warp& warp, const Instruction& i, Mask lanes);
  void follow_chain(Warp& warp, const Instruction& i, Mask lanes, Space space, Kind kind,
                    const uint64_t* addresses, const Traffic& traffic);
  void follow_arrivals(WarpState& state, const Instruction& i, Mask lanes, Space space, Kind kind,
                       const uint64_t* addresses, Chain& chain);
  template <class Function>
  void each_word(const Warp& warp, Mask lanes, Space space, const uint64_t* addresses,
                 unsigned bytes, bool is_write, Function f);
  void follow_copies(WarpState& state, const Instruction& i, uint64_t bytes);
  Clocks tick(Warp& warp, const Instruction& i, Mask lanes, Space space, Kind kind,
              const Traffic& traffic, const Clocks& sources);
  void send(WarpState& state, uint64_t bytes);
  void wait_for(WarpState& state, uint64_t load);

  std::array<uint64_t, size_t(Kind::count)> kinds_{};
  uint64_t instructions_ = 0, lanes_ = 0, divergent_branches_ = 0, generic_ = 0;
  uint64_t global_requests_ = 0, sectors_ = 0, global_bytes_ = 0;
  uint64_t shared_requests_ = 0, wavefronts_ = 0, bank_conflicts_ = 0;
  std::array<uint64_t, size_t(Kind::count)> issue_{};  // clocks
  uint64_t access_clocks_ = 0;
  Clocks first_block_{}, longest_block_{};
  std::vector<Clocks> barriers_;          // when the first ones of the first block let go
  std::unordered_set<uint64_t> touched_;  // sectors of global memory
  uint64_t most_in_flight_ = 0, waits_ = 0, in_flight_at_waits_ = 0;
  Chain longest_;
  std::unordered_map<const Warp*, WarpState> warps_;
  std::unordered_map<const Frame*, FrameState> frames_;
  std::unordered_map<const Code*, std::vector<int32_t>> slots_;
  std::unordered_map<uint64_t, Clocks> arrivals_;  // the latest atomic operation at an address
  std::unordered_map<const Block*, BlockState> blocks_;
  Chains memory_;  // by global address / 4
};

}  // namespace ptx
