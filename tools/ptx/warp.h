// Threads at run time: frames of called functions, warps, blocks, a launch.
#pragma once

#include <memory>
#include <unordered_map>

#include "cluster.h"
#include "findings.h"
#include "global_memory.h"
#include "happens_before.h"
#include "program.h"
#include "weak_memory.h"

namespace ptx {

struct Block;
struct Launch;
class Counter;

// Lanes that are at one place of one frame.
struct Group {
  Frame* frame = nullptr;
  int at = 0;
  Mask lanes = 0;
};

struct AtBarrier {
  Group group;
  const Instruction* instruction = nullptr;
  int number = 0;   // of the barrier, 0 to 15
  int expects = 0;  // threads; 0: all of the block
};

// cp.async: a copy that has not landed.
struct AsyncCopy {
  uint64_t from = 0, to = 0;
  int bytes = 0, zeros = 0;
  uint64_t group = 0;       // that it belongs to, by the thread's count of commits
  bool has_landed = false;  // at once, as it may
  const Instruction* instruction = nullptr;
};

struct Warp {
  Block* block = nullptr;
  int index = 0;
  Mask exists = 0, exited = 0;
  Group current;
  uint8_t* registers = nullptr;      // of the current frame
  std::vector<Group> waiting;        // that could go on
  std::vector<Group> at_collective;  // that wait for lanes which it names
  std::vector<AtBarrier> at_barrier;
  std::vector<uint8_t> local[kLanes], local_written[kLanes];
  std::vector<AsyncCopy> copies[kLanes];
  uint64_t committed[kLanes] = {};
  uint32_t synced = 0;  // time of the last bar.warp.sync of all lanes
  std::unique_ptr<std::array<std::array<uint32_t, kLanes>, kLanes>> lane_synced;
  // At the barrier of the cluster: lanes that have arrived (and released what they did) at the one
  // that is open, or at one that is complete and not waited for; those that leave a barrier out.
  Mask arrived = 0, released = 0, complete = 0, leaves_out = 0;
  uint32_t arrival[kLanes] = {};  // the block's time then
  std::vector<Group> at_cluster;  // that wait
  SharedView acquired;            // by the last wait of these lanes
  Mask acquired_lanes = 0;
  Mask has_passed = 0;      // one at all
  int barriers = 0;         // passed
  bool has_stored = false;  // since the scheduler looked

  template <class T>
  T* at(uint32_t place) const {
    return reinterpret_cast<T*>(registers + place);
  }
  Mask& predicate(uint32_t place) const { return *reinterpret_cast<Mask*>(registers + place); }
  uint32_t thread(int lane) const { return uint32_t(index * kLanes + lane); }
  Mask living() const { return exists & ~exited; }
};

struct Block {
  Launch* launch = nullptr;
  uint32_t id = 0;
  std::array<uint32_t, 3> index{};
  uint32_t threads = 0;
  std::vector<std::unique_ptr<Warp>> warps;
  std::vector<uint8_t> shared;
  SharedShadow shared_shadow;
  BlockOrder order;
  StoreBuffer buffer;
  Cluster* cluster = nullptr;
  uint32_t rank = 0;     // in it
  bool went_on = false;  // a thread accessed memory between its arrival and its wait
  const Instruction* remote_access = nullptr;  // the last one of another block to its memory
  int finished_warps = 0;
  uint64_t barriers = 0;
};

struct Options {
  uint64_t seed = 0;      // of the order of warps and blocks; 0: as they are numbered
  int skip_barrier = -1;  // the barrier that each block leaves out
  bool checks_races = true;
  bool weak_memory = true;
  bool early_copies = false;  // whether cp.async lands at once, not as late as its wait allows
  bool counts = false;
  int quantum = 100000;  // instructions that a warp runs at most before another has its turn
};

struct LaunchShape {
  std::array<uint32_t, 3> grid{1, 1, 1}, block{1, 1, 1};
  int64_t dynamic_shared = 0;
  bool cooperative = false;
  std::array<uint32_t, 3> cluster{1, 1, 1};

  uint32_t cluster_size() const { return cluster[0] * cluster[1] * cluster[2]; }
};

struct Totals {
  uint64_t instructions = 0;  // of warps
  int most_barriers = 0;      // that a warp passed
};

struct Launch {
  Code* code = nullptr;
  LaunchShape shape;
  Options options;
  std::vector<uint8_t> parameters;
  Findings* findings = nullptr;
  GlobalMemory* memory = nullptr;
  GlobalShadow global_shadow;
  GlobalOrder global_order;
  WeakMemory weak;
  Counter* counter = nullptr;
  uint64_t frames_made = 0;
  Totals totals;
  int resident = 0;  // blocks that run at the same time

  uint32_t blocks() const { return shape.grid[0] * shape.grid[1] * shape.grid[2]; }
};

enum class Progress : uint8_t { blocked, slept, interrupted, finished };

// Runs the warp until it waits, sleeps, ends or has had its turn.
Progress run(Warp& warp, int quantum);
void start(Warp& warp, Code& code);
// Frames of the warp's call stack; also used by call.
Frame* new_frame(Warp& warp, Code& code, Frame* parent, int return_to, Mask lanes);
void free_frame(Frame* frame);

// Bytes of memory that an instruction reads or writes for each lane; alignment, bounds and races
// are checked. Global memory of a cooperative launch is read through store buffers.
class Access {
 public:
  Access(Warp& warp, const Instruction& i, Mask lanes, unsigned bytes, bool reads, bool writes);
  uint8_t* operator[](int lane) { return where_[lane]; }
  // Makes what was written at each lane's place the memory's.
  void commit();

 private:
  void generic(Mask lanes, bool mixed);
  void shared(Mask lanes);
  void shared_of(Block& block, int lane);
  void local(Mask lanes);
  void param(Mask lanes);
  void global(Mask lanes);

  Warp& warp_;
  const Instruction& i_;
  const unsigned bytes_;
  const bool reads_, writes_;
  Mask buffered_ = 0;
  uint64_t address_[kLanes];
  uint8_t* where_[kLanes];
  alignas(16) uint8_t scratch_[kLanes][16];
};

// Where a launch's dynamic shared memory begins: behind the module's own.
inline uint64_t dynamic_shared(const Launch& launch) {
  return uint64_t(launch.code->module->shared_bytes + 15) / 16 * 16;
}

// The address of a lane for an instruction that has one.
inline uint64_t lane_address(const Warp& w, const Instruction& i, int lane) {
  const uint64_t offset = uint64_t(i.offset);
  if (i.has_base && i.address_width == 8) return w.at<uint64_t>(i.source[0])[lane] + offset;
  if (i.has_base) return w.at<uint32_t>(i.source[0])[lane] + offset;
  if (i.relative == Instruction::to_dynamic_shared)
    return dynamic_shared(*w.block->launch) + offset;
  if (i.relative == Instruction::to_frame) return uint64_t(w.current.frame->local_base) + offset;
  return offset;
}

// Copies of cp.async land: those of the groups before `keep` of them from the end.
void land_copies(Warp& warp, int lane, uint64_t keep);

// The first lane of a mask, and loops over lanes.
inline int first_lane(Mask m) { return __builtin_ctz(m); }
template <class F>
inline void each_lane(Mask m, F f) {
  for (; m != 0; m &= m - 1) f(__builtin_ctz(m));
}

// Lets the lanes at a barrier go on that is complete; false: none is.
bool pass_barriers(Block& block);
// What a warp's lanes are doing, for messages.
std::string state_of(const Warp& warp);

// Runs a kernel. Findings are added; throws Fault or Unsupported.
Totals launch_kernel(Module& module, const std::string& kernel, const LaunchShape& shape,
                     const std::vector<uint8_t>& parameters, const Options& options,
                     Findings& findings, GlobalMemory* memory, Counter* counter);

// Reports something wrong at an instruction; fault() also ends the launch.
void report(Warp& warp, const Instruction& i, int lane, const char* kind, const std::string& what);
[[noreturn]] void fault(Warp& warp, const Instruction& i, int lane, const char* kind,
                        const std::string& what);

}  // namespace ptx
