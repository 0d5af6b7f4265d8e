// Which accesses to memory come before which, and so which ones race.
//
// A block has a clock, which barriers and releases of its threads advance. An access is recorded
// with its thread and the clock. It comes before what a thread does now if the thread is the same,
// if a barrier of the block lies between, or if a chain of releases and acquires tells the thread
// of it: a View is what such a chain tells. Two accesses that overlap, of which one writes, race if
// neither comes first, unless both are strong (atomic, volatile or with an order) in a scope that
// has both threads. (PTX ISA, "Memory Consistency Model": causality order.)
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace ptx {

struct Block;
struct Warp;

struct Record {
  uint32_t time = 0, block = 0;
  uint16_t thread = 0;
  uint8_t bytes = 0;          // which of the four are meant; 0: nothing is recorded
  uint8_t several : 1;        // threads of the block
  uint8_t strong : 1;         // for the block
  uint8_t strong_device : 1;  // for the device
  Record() : several(0), strong(0), strong_device(0) {}
};

struct View {
  struct Part {
    uint32_t block, time;
    uint16_t thread;
  };
  std::vector<uint32_t> base;  // [block]: its accesses before this time
  std::vector<Part> parts;     // accesses of one thread up to this time

  bool empty() const { return base.empty() && parts.empty(); }
  bool covers(const Record& r) const;
  void join(const View& other);
  void raise(uint32_t block, uint32_t time);
  void add(Part part);
};
using SharedView = std::shared_ptr<const View>;

// What a thread has beyond its block: only of threads that use fences or strong accesses.
struct ThreadOrder {
  View known;                       // by its acquires since the block's last barrier
  SharedView fenced[2];             // [scope]: what its next strong write releases
  std::vector<SharedView> seen[2];  // [scope]: what its next fence acquires
};

struct BlockOrder {
  uint32_t id = 0;
  uint32_t time = 1, barrier_time = 1;
  View known;  // to all of its threads
  std::unordered_map<uint32_t, ThreadOrder> threads;

  void barrier();
};

// What the last strong write to an address released.
struct Released {
  uint32_t block = 0;
  SharedView view[2];  // [scope]
};

struct GlobalOrder {
  std::unordered_map<uint64_t, Released> released;
};

struct Strength {
  bool strong = false, device = false, acquires = false, releases = false;
};

enum class StrongKind : uint8_t { read, write, update };

// A fence by one thread; for the device or for its block.
void fence(Warp& warp, int lane, bool device);
// A strong access to an address (of shared memory: with its window), which may acquire or release
// by itself, for the device or for the block.
void strong_access(Warp& warp, int lane, uint64_t address, StrongKind kind, Strength strength);

// A race of an access with what is recorded; kind is null where there is none.
struct Race {
  const char* kind = nullptr;
  Record with;
};

// Shadow of a block's shared memory, for every four bytes.
class SharedShadow {
 public:
  struct Cell {
    Record write, read;
    uint8_t written = 0;  // which bytes ever were
  };
  void reset(size_t bytes) { cells_.assign((bytes + 3) / 4, Cell()); }
  // Whether f holds for all that is recorded.
  template <class F>
  bool all_accesses(F f) const {
    for (const Cell& c : cells_)
      if (!f(c.write) || !f(c.read)) return false;
    for (const auto& [cell, reads] : remote_reads_)
      for (const Record& r : reads)
        if (!f(r)) return false;
    return true;
  }
  // Records an access inside one cell; `mask` has its bytes. Sets `unwritten` if it reads bytes
  // that nobody wrote.
  Race access(Warp& warp, int lane, uint64_t offset, unsigned bytes, bool reads, bool writes,
              Strength strength, bool checks_races, bool* unwritten);

 private:
  std::vector<Cell> cells_;
  // Reads by other blocks of the cluster, of a cell since its last write: one for each block.
  std::unordered_map<uint64_t, std::vector<Record>> remote_reads_;
};

// Shadow of global memory.
class GlobalShadow {
 public:
  struct Cell {
    Record write, read, other_read;  // the reads are of two blocks
  };
  static constexpr int kCells = 1024;  // in a page of 4 KiB
  Race access(Warp& warp, int lane, uint64_t address, unsigned bytes, bool reads, bool writes,
              Strength strength);

 private:
  Cell* page(uint64_t number) {
    Known& known = known_[number % kKnown];
    return known.page && known.number == number ? known.page : find(number);
  }
  Cell* find(uint64_t number);
  struct Known {
    uint64_t number = 0;
    Cell* page = nullptr;
  };
  static constexpr size_t kKnown = 256;
  std::array<Known, kKnown> known_{};  // pages that were used lately
  std::unordered_map<uint64_t, std::unique_ptr<Cell[]>> pages_;
};

}  // namespace ptx
